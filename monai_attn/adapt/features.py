# SPDX-License-Identifier: Apache-2.0
"""Encoder and decoder features of MONAI networks."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from contextlib import ExitStack
from functools import partial
from threading import get_ident
from typing import Any

import torch
from monai.networks import nets
from monai.utils import ensure_tuple_rep
from torch import nn

from monai_attn.adapt.places import Places, places_of

__all__ = ["FeatureExtractor", "dry_run", "features_of"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

# encoder features, fine to coarse; decoder features, coarse to fine; logits
Features = tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]


class FeatureExtractor(nn.Module):
    """Network that also returns its encoder and decoder features.

    Forward hooks at the :class:`Places` read the features, so the network can be traced and exported, but not scripted;
    for that, write a subclass whose ``forward`` runs the network by its children. The state dict has ``net.`` before
    every key. The network must not change a listed module's output in place afterwards (such as by an in-place ReLU):
    list the last module that touches the feature.

    Args:
        net: the network.
        places: where its features are, for a network that is not in the table of :func:`places_of`.

    Attributes:
        spatial_dims: number of spatial dimensions.
        encoder_channels, decoder_channels, out_channels: numbers of channels of the features and of the logits.

    Raises:
        ValueError: if the network has no module of such a path, does not run it, or has no convolution, or if the
            features are not in the order of :class:`Places`.
        TypeError: if a module does not give one tensor, or the network is not in the table and ``places`` is missing.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 8, 1), nn.Conv2d(8, 16, 2, stride=2), nn.ConvTranspose2d(16, 4, 2, 2))
        >>> FeatureExtractor(net, Places(["0"], [], bottleneck="1", classifier="2", divisor=2)).encoder_channels
        (8, 16)
    """

    def __init__(self, net: nn.Module, places: Places | None = None) -> None:
        super().__init__()
        self.net: Any = net
        places = places or places_of(net)
        self.encoder = tuple(places.features or filter(None, [*places.encoders, places.bottleneck]))
        self.decoder = tuple(places.decoders)
        self.classifier = places.classifier or ""  # the path of the network itself
        seen = dry_run(net, places, [*self.encoder, *self.decoder, self.classifier])
        for part, paths in (("encoder", self.encoder), ("decoder", self.decoder)):
            order = "fine to coarse" if part == "encoder" else "coarse to fine"
            sizes = [tuple(seen[path].shape[2:]) for path in paths]
            if sizes != sorted(sizes, key=math.prod, reverse=part == "encoder"):
                raise ValueError(f"{part} features of {type(net).__name__} must go from {order}, got sizes {sizes}.")
        self.encoder_channels = tuple(seen[path].shape[1] for path in self.encoder)
        self.decoder_channels = tuple(seen[path].shape[1] for path in self.decoder)
        self.out_channels = seen[self.classifier].shape[1]
        self.spatial_dims = seen[self.classifier].ndim - 2

    def forward(self, x: torch.Tensor) -> Features:
        """Map an image (B, C, *spatial) to encoder features, decoder features and logits."""
        seen = _listen(self.net, x, (*self.encoder, *self.decoder, self.classifier))
        return [seen[path] for path in self.encoder], [seen[path] for path in self.decoder], seen[self.classifier]


class _Borrowed(nn.ModuleList):
    """Modules of a network that saves and loads them itself."""

    def __init__(self, net: nn.Module, paths: Iterable[str]) -> None:
        super().__init__(net.get_submodule(path) for path in paths)
        self.register_load_state_dict_pre_hook(_complete)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return kwargs.get("destination")


def _complete(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    # what the network has loaded already stands in for the keys that nobody saved
    state_dict.update(nn.ModuleList.state_dict(module, prefix=prefix))


class _UShaped(FeatureExtractor):
    """Scriptable features of a network whose decoders take two features."""

    __constants__ = ("concatenates",)
    concatenates = False

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        places = places_of(net)
        self.downs = _Borrowed(net, filter(None, [*places.encoders, places.bottleneck]))
        self.ups = _Borrowed(net, [path.removesuffix(".convs") for path in places.decoders])
        self.last = _Borrowed(net, [self.classifier])

    def forward(self, x: torch.Tensor) -> Features:
        """Map an image (B, C, *spatial) to encoder features, decoder features and logits."""
        encoder: list[torch.Tensor] = []
        decoder: list[torch.Tensor] = []
        for down in self.downs:
            x = down(x)
            encoder.append(x)
        for i, up in enumerate(self.ups):
            x = up(torch.cat([encoder[-2 - i], x], dim=1)) if self.concatenates else up(x, encoder[-2 - i])
            decoder.append(x)
        if self.concatenates:  # so does the classifier
            return encoder[:-1], decoder, self.last[0](torch.cat([encoder[0], x], dim=1))
        return encoder, decoder, self.last[0](x)


class _UNet(_UShaped):
    """Scriptable features of MONAI's ``UNet``, whose decoders take two features as one."""

    concatenates = True


class _SegResNet(FeatureExtractor):
    """Scriptable features of MONAI's ``SegResNet``."""

    def forward(self, x: torch.Tensor) -> Features:
        """Map an image (B, C, *spatial) to encoder features, decoder features and logits."""
        x, encoder = self.net.encode(x)
        decoder: list[torch.Tensor] = []
        for i, (up, layer) in enumerate(zip(self.net.up_samples, self.net.up_layers)):
            x = layer(up(x) + encoder[-2 - i])
            decoder.append(x)
        return encoder, decoder, self.net.conv_final(x) if self.net.use_conv_final else x


_VIEWS: dict[type, type[FeatureExtractor]] = {nets.SegResNet: _SegResNet, nets.UNet: _UNet}
_VIEWS |= dict.fromkeys((nets.BasicUNet, nets.DynUNet, nets.VNet), _UShaped)


def features_of(network: nn.Module) -> FeatureExtractor:
    """Return the feature extractor of a network.

    It can be scripted for MONAI's ``UNet``, ``BasicUNet``, ``VNet``, ``SegResNet`` and ``DynUNet``.

    Args:
        network: a network of a class in the table of :func:`places_of`, or a :class:`FeatureExtractor`, which is
            returned unchanged.

    Raises:
        TypeError: if the network's class is not in the table.

    Example:
        >>> features_of(nets.SegResNet(init_filters=8)).encoder_channels
        (8, 16, 32, 64)
    """
    if isinstance(network, FeatureExtractor):
        return network
    return _VIEWS.get(type(network), FeatureExtractor)(network)


def dry_run(network: nn.Module, places: Places, paths: Collection[str], *, must_run: bool = True) -> dict[str, Any]:
    """Return outputs of a network's modules for a zero image.

    The network runs in evaluation mode without gradients, on an image with the first convolution's dimensions and
    channels. Without ``places.size`` its first side is twice the divisor, because instance norm refuses a single voxel.
    The outputs are in the order in which the network first ran the modules.

    Args:
        network: the network. Its modules' modes are restored.
        places: determines the size of the image.
        paths: the modules; each must give one tensor. ``path:i`` is the i-th input of a module.
        must_run: whether every module must run.

    Raises:
        ValueError: if the network has no convolution or no module of such a path, or does not run it.
        TypeError: if a module does not give one tensor.

    Example:
        >>> list(dry_run(nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU()), Places([], [], None, None, 8), ["1", "0"]))
        ['0', '1']
    """
    name = type(network).__name__
    known = dict(network.named_modules(remove_duplicate=False))
    missing = [path for path in paths if path.partition(":")[0] not in known]
    if missing:
        raise ValueError(f"{name} has no module {missing}; at its top it has {[*dict(network.named_children())]}.")
    stem = next((module for module in network.modules() if isinstance(module, CONVOLUTIONS)), None)
    if stem is None:
        raise ValueError(f"{name} has no convolution to read the image's dimensions and channels from.")
    first, *others = ensure_tuple_rep(places.divisor, stem.weight.ndim - 2)
    image = stem.weight.new_zeros(1, stem.in_channels, *(places.size or (2 * first, *others)))
    modes = {module: module.training for module in known.values()}
    network.eval()
    try:
        with torch.no_grad():
            seen = _listen(network, image, paths)
    finally:
        for module, training in modes.items():
            module.training = training
    silent = [path for path in paths if path not in seen]
    if silent and must_run:
        raise ValueError(f"{name} does not run its module {silent}; list modules that it calls.")
    for path, output in seen.items():
        if not isinstance(output, torch.Tensor):
            giver = f"module '{path}' of {name}" if path else name
            raise TypeError(f"{giver} must give one tensor, got {type(output).__name__}.")
    return seen


def _listen(network: nn.Module, x: torch.Tensor, paths: Collection[str]) -> dict[str, Any]:
    """Run a network and return what modules gave: ``path`` the output, ``path:i`` the i-th input."""
    seen: dict[str, Any] = {}
    thread = get_ident()

    # TorchScript stops here, at the hooks of a network that is none of _VIEWS
    def keep(path: str, index: str, _module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if get_ident() == thread:  # another one may run the same modules at the same time
            seen[path] = inputs[int(index)] if index else output

    with ExitStack() as hooks:
        for path in paths:
            module, _, index = path.partition(":")
            hooks.enter_context(network.get_submodule(module).register_forward_hook(partial(keep, path, index)))
        network(x)
    return seen
