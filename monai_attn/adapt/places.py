# SPDX-License-Identifier: Apache-2.0
"""Where the encoders, the decoders, the bottleneck and the classifier of a network are.

One small function for each class of MONAI, named in the table at the end by the class itself: a subclass may have
another ``forward`` and is not taken for its parent. For other networks write the :class:`Places` down.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from monai.networks.nets import (
    UNETR,
    AttentionUnet,
    BasicUNet,
    DynUNet,
    FlexibleUNet,
    MedNeXt,
    SegResNet,
    SegResNetDS,
    SwinUNETR,
    UNet,
    VNet,
)
from monai.networks.nets.efficientnet import EfficientNetEncoder
from monai.networks.nets.resnet import ResNetEncoder
from torch import nn

from monai_attn.adapt.streams.base import total_stride

__all__ = ["Places", "places_of"]


class Places(NamedTuple):
    """The paths of the modules whose outputs are a network's features.

    A path is what ``network.get_submodule`` takes. Each module must run once and give one tensor.

    Args:
        encoders: the encoders, fine to coarse, without the bottleneck; what they give is also what is skipped over.
        decoders: the decoders, coarse to fine.
        bottleneck: the bottleneck, or None if no module gives its output.
        classifier: the last layer, which gives the logits, or None if the network has none.
        divisor: what each side of an image must be a multiple of, one number or one for each dimension.
        size: the size of an image that the network takes, if not every multiple of ``divisor`` is one.

    Example:
        >>> Places(["fine"], ["up"], bottleneck="down", classifier="head", divisor=2).decoders
        ['up']
    """

    encoders: Sequence[str]
    decoders: Sequence[str]
    bottleneck: str | None
    classifier: str | None
    divisor: Sequence[int] | int
    size: Sequence[int] | None = None


def places_of(network: nn.Module) -> Places:
    """The places of a network of MONAI.

    Args:
        network: a network of one of MONAI's classes in the table.

    Raises:
        TypeError: if the network's class, or the encoder of a ``FlexibleUNet``, is not in the table.

    Example:
        >>> places_of(VNet()).encoders
        ['in_tr', 'down_tr32', 'down_tr64', 'down_tr128']
    """
    if type(network) not in _PLACES:
        raise TypeError(
            f"the places of {type(network).__name__} are not known, only those of "
            f"{', '.join(c.__name__ for c in _PLACES)}; name them: places=monai_attn.adapt.Places(encoders=[...], "
            "decoders=[...], bottleneck=..., classifier=..., divisor=...)."
        )
    return _PLACES[type(network)](network)


def _numbered(path: str, count: int) -> list[str]:
    return [path.format(index) for index in range(count)]


def _unet(net: UNet) -> Places:
    # the topmost up path is the classifier
    levels = ["model." + "1.submodule." * depth for depth in range(len(net.channels))]
    *levels, bottom = levels
    divisor = total_stride(net.strides[: len(levels)], net.dimensions)
    decoders = [f"{level}2" for level in levels[:0:-1]]
    return Places([f"{level}0" for level in levels], decoders, bottom.rstrip("."), f"{levels[0]}2", divisor)


def _attention_unet(net: AttentionUnet) -> Places:
    # the submodule of a level is the next encoder and the level below; at the bottom it is the bottleneck alone
    levels = ["model.1." + "submodule.1." * depth for depth in range(len(net.channels) - 1)]
    encoders = ["model.0", *(f"{level}submodule.0" for level in levels[:-1])]
    divisor = total_stride(net.strides[: len(levels)], net.dimensions)
    return Places(encoders, [f"{level}merge" for level in levels[::-1]], f"{levels[-1]}submodule", "model.2", divisor)


def _basic_unet(net: BasicUNet) -> Places:
    decoders = [f"upcat_{level}.convs" for level in (4, 3, 2, 1)]
    return Places(["conv_0", "down_1", "down_2", "down_3"], decoders, "down_4", "final_conv", 16)


def _vnet(net: VNet) -> Places:
    encoders = ["in_tr", "down_tr32", "down_tr64", "down_tr128"]
    return Places(encoders, ["up_tr256", "up_tr128", "up_tr64", "up_tr32"], "down_tr256", "out_tr", 16)


def _segresnet(net: SegResNet) -> Places:
    *encoders, bottleneck = _numbered("down_layers.{}", len(net.blocks_down))
    decoders = _numbered("up_layers.{}", len(net.blocks_up))
    classifier = "conv_final" if net.use_conv_final else None
    return Places(encoders, decoders, bottleneck, classifier, 2 ** len(encoders))


def _segresnet_ds(net: SegResNetDS) -> Places:
    *encoders, bottleneck = _numbered("encoder.layers.{}.blocks", len(net.blocks_down))
    decoders = _numbered("up_layers.{}.blocks", len(encoders))
    # without levels there is one head, and no decoder
    classifier = f"up_layers.{max(len(decoders) - 1, 0)}.head"
    return Places(encoders, decoders, bottleneck, classifier, [int(factor) for factor in net.shape_factor()])


def _dynunet(net: DynUNet) -> Places:
    encoders = ["input_block", *_numbered("downsamples.{}", len(net.downsamples))]
    divisor = total_stride(net.strides, net.spatial_dims)
    return Places(encoders, _numbered("upsamples.{}", len(net.upsamples)), "bottleneck", "output_block", divisor)


def _flexible_unet(net: FlexibleUNet) -> Places:
    if type(net.encoder) not in _BACKBONES:
        raise TypeError(
            f"the places of a FlexibleUNet with the encoder {type(net.encoder).__name__} are not known, only with "
            f"{', '.join(c.__name__ for c in _BACKBONES)}; name them: places=monai_attn.adapt.Places(...)."
        )
    *encoders, bottleneck = _BACKBONES[type(net.encoder)](net.encoder)
    decoders = _numbered("decoder.blocks.{}.convs", len(net.decoder.blocks))
    return Places(encoders, decoders, bottleneck, "segmentation_head", 32)


def _resnet(encoder: ResNetEncoder) -> list[str]:
    return ["encoder.act", "encoder.layer1", "encoder.layer2", "encoder.layer3", "encoder.layer4"]


def _efficientnet(encoder: EfficientNetEncoder) -> list[str]:
    # the last block of each stack that is shown: the encoder's `set_swish` wants nothing else in a stack
    shown = [stack - 1 for stack in encoder.extract_stacks]
    return [f"encoder._blocks.{stack}.{list(encoder._blocks[stack]._modules)[-1]}" for stack in shown]


def _unetr(net: UNETR) -> Places:
    # the bottleneck is the transformer's last tokens, which no module gives as an image
    size = [patches * side for patches, side in zip(net.feat_size, net.patch_size)]
    encoders = ["encoder1", "encoder2", "encoder3", "encoder4"]
    return Places(encoders, ["decoder5", "decoder4", "decoder3", "decoder2"], None, "out", size, size)


def _swin_unetr(net: SwinUNETR) -> Places:
    # the skip into decoder5 comes from the transformer without an encoder
    encoders = ["encoder1", "encoder2", "encoder3", "encoder4"]
    decoders = ["decoder5", "decoder4", "decoder3", "decoder2", "decoder1"]
    return Places(encoders, decoders, "encoder10", "out", net.patch_size**5)


def _mednext(net: MedNeXt) -> Places:
    encoders = _numbered("enc_stages.{}", len(net.enc_stages))
    decoders = _numbered("dec_stages.{}", len(net.dec_stages))
    return Places(encoders, decoders, "bottleneck", "out_0", 2 ** len(encoders))


_BACKBONES: dict[type[nn.Module], Callable[[Any], list[str]]] = {
    EfficientNetEncoder: _efficientnet,
    ResNetEncoder: _resnet,
}
_PLACES: dict[type[nn.Module], Callable[[Any], Places]] = {
    AttentionUnet: _attention_unet,
    BasicUNet: _basic_unet,
    DynUNet: _dynunet,
    FlexibleUNet: _flexible_unet,
    MedNeXt: _mednext,
    SegResNet: _segresnet,
    SegResNetDS: _segresnet_ds,
    SwinUNETR: _swin_unetr,
    UNet: _unet,
    UNETR: _unetr,
    VNet: _vnet,
}
