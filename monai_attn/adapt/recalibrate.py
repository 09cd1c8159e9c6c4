# SPDX-License-Identifier: Apache-2.0
"""Squeeze & excitation (scSE) for existing networks.

Roy et al. (scSE), IEEE TMI 2019, https://arxiv.org/abs/1808.08127, Fig. 2, Sec. II-D and Table IV.

Each block becomes a child ``recalibration`` of the module that it recalibrates: an ``nn.Sequential`` runs its new last
child, other modules call it by a forward hook. The network can be copied, pickled, scripted and exported as before.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from monai.utils import ensure_tuple, look_up_option
from torch import nn

from monai_attn.adapt.features import dry_run
from monai_attn.adapt.places import Places, places_of
from monai_attn.blocks.squeeze_excite import SE_POSITIONS, Aggregation, Position, complete_se, get_se_layer

__all__ = ["ZeroInitResidual", "recalibrate"]


class ZeroInitResidual(nn.Module):
    r"""Block that starts as the identity.

    The output is :math:`x + s\,(\mathrm{block}(x) - x)`, for a block that keeps the shape. The learnable strength
    :math:`s` starts at zero; at one the output is the block's. In the first step only :math:`s` has a gradient.

    Example:
        >>> from monai_attn.blocks import SpatialSE
        >>> x = torch.rand(1, 4, 8, 8)
        >>> torch.equal(ZeroInitResidual(SpatialSE(2, 4))(x), x)
        True
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.strength = nn.Parameter(torch.zeros([]))

    def reset_parameters(self) -> None:
        """Start as the identity again."""
        nn.init.zeros_(self.strength)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, C, *spatial) to (B, C, *spatial)."""
        return x + self.strength * (self.block(x) - x)


def recalibrate(
    network: nn.Module,
    se: str | tuple = "scse",
    positions: Position = "P5",
    *,
    reduction: int = 2,
    aggregation: Aggregation = "max",
    zero_effect: bool = False,
    places: Places | None = None,
) -> nn.Module:
    """Add squeeze & excitation (scSE) to a network.

    Existing parameters keep their keys, so weights can be loaded before or after (``strict=False``).

    Args:
        network: the network, which is changed in place and returned. Its output must be one tensor in evaluation mode.
        se: ``"scse"``, ``"cse"`` or ``"sse"``, or ``(name, {args})``.
        positions: ``"P1"`` encoders, ``"P2"`` decoders, ``"P3"`` bottleneck, ``"P4"`` after the classifier, ``"P5"``
            encoders and decoders, ``"P6"`` everywhere (Table IV).
        reduction: the paper's r.
        aggregation: see :class:`monai_attn.blocks.ChannelSpatialSE`.
        zero_effect: whether the network starts with its current output, each block in a :class:`ZeroInitResidual`.
        places: its places, if its class is not in the table of :func:`monai_attn.adapt.places_of`.

    Raises:
        ValueError: if an option is unknown, the network has no module at a position or has blocks already,
            ``aggregation`` is ``"concat"``, which would double the channels, or ``reduction`` leaves no hidden channel.
        TypeError: if the places of the network are not known.

    Example:
        >>> from monai.networks.nets import SegResNet
        >>> network = recalibrate(SegResNet(init_filters=8), "scse", "P1")
        >>> network.down_layers[0].recalibration.out_channels
        8
    """
    layer = complete_se(se, reduction=reduction, aggregation=aggregation)
    if layer is not None and layer[1].get("aggregation") == "concat":
        raise ValueError("aggregation='concat' would double the channels that the next layer takes; use another one.")
    if any(path.split(".")[-1] == "recalibration" for path, _ in network.named_modules()):
        fix = "name all positions in one call (P5 is P1 and P2, P6 all four), or start from a new network"
        raise ValueError(f"{type(network).__name__} has been recalibrated already; {fix}.")
    targets = _targets(network, places or places_of(network), positions)
    # everything that can fail comes before the first change
    blocks = {path: get_se_layer(layer, x.ndim - 2, x.shape[1]) for path, x in targets.items()}
    like = next(network.parameters())
    for path, block in blocks.items():
        module = network.get_submodule(path)
        child = ZeroInitResidual(block) if zero_effect else block
        module.add_module("recalibration", child.to(like.device, like.dtype).train(module.training))
        if not isinstance(module, nn.Sequential):
            inputs = len(inspect.signature(module.forward).parameters)
            module.register_forward_hook(_after_two_inputs if inputs == 2 else _after_one_input)
    return network


def _targets(network: nn.Module, places: Places, positions: Position) -> dict[str, torch.Tensor]:
    """Return an output of every module at the positions."""
    paths = {part: ensure_tuple(getattr(places, part) or ()) for part in SE_POSITIONS["P6"]}
    parts = look_up_option(positions, SE_POSITIONS)
    missing = [part for part in parts if not paths[part]]
    if missing:
        possible = [name for name, needed in SE_POSITIONS.items() if all(paths[part] for part in needed)]
        problem = f"positions='{positions}' needs the {' and the '.join(missing)} of {type(network).__name__}"
        raise ValueError(f"{problem}, but this network has no such module; it has those for {', '.join(possible)}.")
    # running all also finds paths that do not exist, do not run, or do not give a tensor
    seen = dry_run(network, places, [path for part in paths.values() for path in part])
    found = {path: seen[path] for part in parts for path in paths[part]}
    own = [path for path in found if _has_own_forward(network.get_submodule(path))]
    if own:
        raise ValueError(f"{own} are nn.Sequential with a forward of their own; name the last module inside instead.")
    return found


def _has_own_forward(module: nn.Module) -> bool:
    """Return whether an ``nn.Sequential`` may not run a new last child."""
    return isinstance(module, nn.Sequential) and type(module).forward is not nn.Sequential.forward


# TorchScript takes a hook whose second argument has the types of the module's inputs, and compiles it with the module
def _after_one_input(self: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
    return self.recalibration(output)


def _after_two_inputs(self: Any, inputs: tuple[torch.Tensor, torch.Tensor], output: torch.Tensor) -> torch.Tensor:
    return self.recalibration(output)
