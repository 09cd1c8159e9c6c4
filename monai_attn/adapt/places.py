# SPDX-License-Identifier: Apache-2.0
"""Encoders, decoders, bottleneck and classifier of MONAI networks.

The table at the end has exact classes: a subclass may have another ``forward``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from monai.networks import nets
from monai.utils import ensure_tuple_rep
from torch import nn

__all__ = ["Places", "places_of"]


class Places(NamedTuple):
    """Paths of the modules whose outputs are a network's features.

    A path is what ``network.get_submodule`` takes. Each module must run once and return one tensor.

    Args:
        encoders: the encoders, fine to coarse, without the bottleneck; their outputs are also the skip connections.
        decoders: the decoders, coarse to fine.
        bottleneck: the bottleneck, or None if no module returns its output.
        classifier: the last layer, which returns the logits, or None.
        divisor: a number, or one for each dimension; each side of an image must be a multiple of it.
        size: a valid image size, if not every multiple of ``divisor`` is valid.
        features: the encoder features for an edge stream, one for each resolution, fine to coarse; by default the
            encoders and the bottleneck. ``path:i`` is the i-th input of a module.

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
    features: Sequence[str] | None = None


def places_of(network: nn.Module) -> Places:
    """Return the places of a MONAI network.

    Raises:
        TypeError: if the network's class, or the encoder of a ``FlexibleUNet``, is not in the table.

    Example:
        >>> places_of(nets.VNet()).encoders
        ['in_tr', 'down_tr32', 'down_tr64', 'down_tr128']
    """
    if type(network) not in _PLACES:
        raise _unknown(type(network).__name__, _PLACES)
    return _PLACES[type(network)](network)


def _unknown(network: str, known: Iterable[type]) -> TypeError:
    return TypeError(
        f"the places of {network} are not known, only those of {', '.join(c.__name__ for c in known)}; name them by "
        "monai_attn.adapt.Places(encoders=[...], decoders=[...], bottleneck=..., classifier=..., divisor=...): "
        "recalibrate(network, places=...), EGCNN(FeatureExtractor(network, places)), autofocus(network, size=...)."
    )


def _numbered(path: str, count: int) -> list[str]:
    return [path.format(index) for index in range(count)]


def _total_stride(strides: Iterable[Sequence[int] | int], spatial_dims: int) -> tuple[int, ...]:
    return tuple(math.prod(axis) for axis in zip(*(ensure_tuple_rep(stride, spatial_dims) for stride in strides)))


def _unet(net: nets.UNet) -> Places:
    # the topmost up path is the classifier; the bottom layer has the size of the last down path
    *levels, bottom = ["model." + "1.submodule." * depth for depth in range(len(net.channels))]
    encoders = [f"{level}0" for level in levels]
    decoders = [f"{level}2" for level in levels[:0:-1]]
    divisor = _total_stride(net.strides[: len(levels)], net.dimensions)
    return Places(encoders, decoders, bottom.rstrip("."), f"{levels[0]}2", divisor, features=encoders)


def _attention_unet(net: nets.AttentionUnet) -> Places:
    # the submodule of a level is the next encoder and the level below; at the bottom it is the bottleneck alone
    levels = ["model.1." + "submodule.1." * depth for depth in range(len(net.channels) - 1)]
    encoders = ["model.0", *(f"{level}submodule.0" for level in levels[:-1])]
    divisor = _total_stride(net.strides[: len(levels)], net.dimensions)
    return Places(encoders, [f"{level}merge" for level in levels[::-1]], f"{levels[-1]}submodule", "model.2", divisor)


def _basic_unet(net: nets.BasicUNet) -> Places:
    decoders = [f"upcat_{level}.convs" for level in (4, 3, 2, 1)]
    return Places(["conv_0", "down_1", "down_2", "down_3"], decoders, "down_4", "final_conv", 16)


def _vnet(net: nets.VNet) -> Places:
    encoders = ["in_tr", "down_tr32", "down_tr64", "down_tr128"]
    return Places(encoders, ["up_tr256", "up_tr128", "up_tr64", "up_tr32"], "down_tr256", "out_tr", 16)


def _segresnet(net: nets.SegResNet) -> Places:
    *encoders, bottleneck = _numbered("down_layers.{}", len(net.blocks_down))
    decoders = _numbered("up_layers.{}", len(net.blocks_up))
    classifier = "conv_final" if net.use_conv_final else None
    return Places(encoders, decoders, bottleneck, classifier, 2 ** len(encoders))


def _segresnet_ds(net: nets.SegResNetDS) -> Places:
    *encoders, bottleneck = _numbered("encoder.layers.{}.blocks", len(net.blocks_down))
    decoders = _numbered("up_layers.{}.blocks", len(encoders))
    # without levels there is one head, and no decoder
    classifier = f"up_layers.{max(len(decoders) - 1, 0)}.head"
    return Places(encoders, decoders, bottleneck, classifier, [int(factor) for factor in net.shape_factor()])


def _dynunet(net: nets.DynUNet) -> Places:
    encoders = ["input_block", *_numbered("downsamples.{}", len(net.downsamples))]
    divisor = _total_stride(net.strides, net.spatial_dims)
    return Places(encoders, _numbered("upsamples.{}", len(net.upsamples)), "bottleneck", "output_block", divisor)


def _flexible_unet(net: nets.FlexibleUNet) -> Places:
    encoder: Any = net.encoder
    if type(encoder) is nets.ResNetEncoder:
        shown = ["act", "layer1", "layer2", "layer3", "layer4"]
    elif type(encoder) is nets.EfficientNetEncoder:
        # the last block of each stack that is shown: the encoder's `set_swish` wants nothing else in a stack;
        # MONAI has no public name for the stacks
        stacks = {stack - 1: list(encoder._blocks[stack - 1].named_children()) for stack in encoder.extract_stacks}
        shown = [f"_blocks.{stack}.{children[-1][0]}" for stack, children in stacks.items()]
    else:
        raise _unknown(f"a FlexibleUNet with {type(encoder).__name__}", (nets.EfficientNetEncoder, nets.ResNetEncoder))
    *encoders, bottleneck = [f"encoder.{path}" for path in shown]
    decoders = _numbered("decoder.blocks.{}.convs", len(net.decoder.blocks))
    return Places(encoders, decoders, bottleneck, "segmentation_head", 32)


def _unetr(net: nets.UNETR) -> Places:
    # the bottleneck is the transformer's last tokens, which no module gives as an image
    size = [patches * side for patches, side in zip(net.feat_size, net.patch_size)]
    encoders = ["encoder1", "encoder2", "encoder3", "encoder4"]
    decoders = ["decoder5", "decoder4", "decoder3", "decoder2"]
    return Places(encoders, decoders, None, "out", size, size, features=[*encoders, "decoder5:0"])


def _swin_unetr(net: nets.SwinUNETR) -> Places:
    # the skip into decoder5 comes from the transformer without an encoder
    encoders = ["encoder1", "encoder2", "encoder3", "encoder4"]
    decoders = ["decoder5", "decoder4", "decoder3", "decoder2", "decoder1"]
    features = [*encoders, "decoder5:1", "encoder10"]
    return Places(encoders, decoders, "encoder10", "out", net.patch_size**5, features=features)


def _mednext(net: nets.MedNeXt) -> Places:
    encoders = _numbered("enc_stages.{}", len(net.enc_stages))
    decoders = _numbered("dec_stages.{}", len(net.dec_stages))
    return Places(encoders, decoders, "bottleneck", "out_0", 2 ** len(encoders))


_PLACES: dict[type[nn.Module], Callable[[Any], Places]] = {
    nets.AttentionUnet: _attention_unet,
    nets.BasicUNet: _basic_unet,
    nets.DynUNet: _dynunet,
    nets.FlexibleUNet: _flexible_unet,
    nets.MedNeXt: _mednext,
    nets.SegResNet: _segresnet,
    nets.SegResNetDS: _segresnet_ds,
    nets.SwinUNETR: _swin_unetr,
    nets.UNet: _unet,
    nets.UNETR: _unetr,
    nets.VNet: _vnet,
}
