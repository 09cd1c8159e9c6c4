# SPDX-License-Identifier: Apache-2.0
"""EG-CNN: an edge stream beside any encoder-decoder.

Hatamizadeh, Terzopoulos, Myronenko: "Edge-Gated CNNs for Volumetric Semantic Segmentation of Medical Images",
arXiv 2020, https://arxiv.org/abs/2002.04207, after the text of Sec. 2.1::

    image ─► encoder ─► bottleneck ─► decoder ──────────────► main logits ────────┐
                │ m at each              │ first feature e                        ▼
                │ resolution             ▼                                     fusion ─► logits
                └─────────────► (residual block ─► up ─► gate) … ─► edge logits ─► σ

The authors have not released code. Where the paper is silent, we chose: the edge stream is as wide as the encoder at
each resolution; interpolation is linear; and the fusion is a 1x1 convolution that starts as the identity of the main
logits, so that wrapping a trained network keeps its output (on a GPU up to the rounding of TF32).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv, split_args
from monai.utils import look_up_option
from torch import nn
from torch.fx import Proxy

from monai_attn.adapt.features import FeatureExtractor, features_of
from monai_attn.blocks.gate import EdgeGate
from monai_attn.blocks.residual import PreActResidual

__all__ = ["EGCNN", "AllOutputs"]


class EGCNN(nn.Module):
    """Encoder-decoder with an edge stream (EG-CNN).

    ``forward`` returns the segmentation, ``forward_all`` also the edges and the main stream's own segmentation, to
    train them together. The state dict has the main network's weights under ``main_stream.net.``.

    Args:
        main_stream: a network, or a :class:`monai_attn.adapt.FeatureExtractor` for one that is not in the table of
            :func:`monai_attn.adapt.places_of`.
        edge_classes: number of edge channels, 1 for the edges of all structures together (the paper).
        start: where the edge stream begins: ``"decoder"`` at the decoder's first feature (L - 2 gates for an encoder of
            L levels), ``"bottleneck"`` at the coarsest encoder feature (L - 1 gates, and every resolution is an input).
            The paper describes the former, but also says that every resolution is an input and has a gate.
        gate, attention_channels, project: see :class:`monai_attn.blocks.EdgeGate`.
        norm: normalization of the residual blocks, as a name or ``(name, {args})``. The groups of a group
            norm (8 by default) are reduced to their greatest common divisor with the block's channels.

    Raises:
        ValueError: if the main stream has too few levels for ``start``, or an option is unknown.
        TypeError: if the network is not in the table.

    Example:
        >>> from monai.networks.nets import SegResNet
        >>> net = EGCNN(SegResNet(spatial_dims=2, init_filters=8, out_channels=4))
        >>> segmentation, edges, main = net.forward_all(torch.rand(1, 1, 32, 32))
        >>> segmentation.shape, edges.shape, main.shape
        (torch.Size([1, 4, 32, 32]), torch.Size([1, 1, 32, 32]), torch.Size([1, 4, 32, 32]))
    """

    def __init__(
        self,
        main_stream: nn.Module,
        *,
        edge_classes: int = 1,
        start: Literal["decoder", "bottleneck"] = "decoder",
        gate: Literal["relu_sigmoid", "sigmoid"] = "relu_sigmoid",
        attention_channels: int | None = 1,
        project: bool = True,
        norm: str | tuple = ("group", {"num_groups": 8}),
    ) -> None:
        super().__init__()
        stream = features_of(main_stream)
        dims = stream.spatial_dims
        self.from_bottleneck = look_up_option(start, {"decoder": False, "bottleneck": True})
        channels, *finer = _widths(stream, start)
        self.main_stream = stream
        self.blocks, self.gates = nn.ModuleList(), nn.ModuleList()
        for width in finer:
            fitted = _fit_groups(norm, channels, width)
            self.blocks.append(PreActResidual(dims, channels, width, norm=fitted, bias=False))
            self.gates.append(
                EdgeGate(dims, width, width, attention_channels=attention_channels, project=project, gate=gate)
            )
            channels = width
        conv = Conv[Conv.CONV, dims]
        self.head = conv(channels, edge_classes, kernel_size=1)
        self.fusion = conv(stream.out_channels + edge_classes, stream.out_channels, kernel_size=1)
        nn.init.dirac_(self.fusion.weight)
        nn.init.zeros_(self.fusion.bias)
        self.mode = ("linear", "bilinear", "trilinear")[dims - 1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map an image (B, C, *spatial) to segmentation logits (B, out_channels, *spatial)."""
        return self.forward_all(x)[0]

    def edges(self, x: torch.Tensor) -> torch.Tensor:
        """Map an image (B, C, *spatial) to edge probabilities (B, edge_classes, *spatial)."""
        return torch.sigmoid(self.forward_all(x)[1])

    def forward_all(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Map an image (B, C, *spatial) to logits of the segmentation, the edges and the main stream, of one size."""
        encoder, decoder, logits = self.main_stream(x)
        edges = encoder[-1] if self.from_bottleneck else decoder[0]
        for i, (block, gate) in enumerate(zip(self.blocks, self.gates)):
            main = encoder[len(self.blocks) - 1 - i]
            edges = gate(self.resize(block(edges), main), main)
        edge_logits = self.resize(self.head(edges), logits)
        return self.fusion(torch.cat([logits, torch.sigmoid(edge_logits)], dim=1)), edge_logits, logits

    def resize(self, x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Interpolate (B, C, *spatial) to the spatial size of another tensor."""
        size = like.shape[2:]
        if not torch.jit.is_scripting():  # noqa: SIM102 (TorchScript would compile the second condition)
            if isinstance(x, Proxy):  # torch.fx cannot decide
                return F.interpolate(x, size=size, mode=self.mode)
        return x if x.shape[2:] == size else F.interpolate(x, size=size, mode=self.mode)


class AllOutputs(nn.Module):
    """Wrapper that returns the logits of all streams for training.

    It shares the network's weights. A network without an edge stream returns its own output.

    Raises:
        ValueError: if an ``EGCNN`` is wrapped already, such as by ``torch.compile``.

    Example:
        >>> from monai.networks.nets import SegResNet
        >>> net = EGCNN(SegResNet(spatial_dims=2, init_filters=8))
        >>> len(AllOutputs(net)(torch.rand(1, 1, 16, 16)))
        3
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        if not isinstance(net, EGCNN) and any(isinstance(part, EGCNN) for part in net.modules()):
            raise ValueError(f"wrap the EGCNN itself in AllOutputs, then AllOutputs in {type(net).__name__}.")
        self.net = net

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...] | torch.Tensor:
        """Map an image (B, C, *spatial) to segmentation logits and, of an :class:`EGCNN`, those of its streams."""
        return self.net.forward_all(x) if isinstance(self.net, EGCNN) else self.net(x)


def _widths(stream: FeatureExtractor, start: str) -> tuple[int, ...]:
    """Return the channels of the edge stream's first feature and of all finer encoder features."""
    encoder, decoder = stream.encoder_channels, stream.decoder_channels
    begin, finer = (decoder[:1], encoder[:-2]) if start == "decoder" else (encoder[-1:], encoder[:-1])
    if not (begin and finer):
        needs, fix = {
            "decoder": ("3 encoder levels and a decoder feature", "a deeper network or start='bottleneck'"),
            "bottleneck": ("2 encoder levels", "a deeper network"),
        }[start]
        has = f"{type(stream.net).__name__} has {len(encoder)} levels and {len(decoder)} decoder features"
        raise ValueError(f"start='{start}' needs at least {needs}, {has}; use {fix}.")
    return begin + finer[::-1]


def _fit_groups(norm: str | tuple, *channels: int) -> str | tuple:
    """Reduce the groups of a group norm to a divisor of all channels."""
    name, args = split_args(norm)
    if str(name).lower() != "group":
        return norm
    return name, {**args, "num_groups": math.gcd(args.get("num_groups", 8), *channels)}
