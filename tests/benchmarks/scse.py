# SPDX-License-Identifier: Apache-2.0
"""scSE with the larger of both products against the authors' block: their equations and autograd.

``fused`` is with the compiled passes, ``portable`` by PyTorch alone. The floor is memory copied: three passes over the
features forward (the means need them all before the maps exist), eight forward and backward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from unittest import mock

import measure
import torch
from measure import DEVICE, FLOOR, Case
from torch import nn

from monai_attn.blocks import ChannelSpatialSE, scse_kernels

BATCH, CHANNELS = 4, 64
SPEED = {
    ("fused", "forward"): ">= 2.5 x speed",
    ("fused", "forward and backward"): ">= 5 x speed",
    ("portable", "forward"): ">= 1.1 x speed",
    ("portable", "forward and backward"): ">= 1.3 x speed",
}
PEAK = {("fused", "forward and backward"): "<= 0.35 x peak"}


class AuthorsForm(nn.Module):
    """The block as it is written in the paper, eqs. 2 to 4: every map is multiplied, then the larger product taken."""

    def __init__(self, block: ChannelSpatialSE) -> None:
        super().__init__()
        self.block = block

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        channel, spatial = self.block.channel, self.block.spatial
        z = u.flatten(2).mean(2)
        by_channel = u * torch.sigmoid(channel.fc2(torch.relu(channel.fc1(z))))[:, :, None, None]
        by_position = u * torch.sigmoid(spatial.conv(u))
        return torch.max(by_channel, by_position)


class PortableForm(AuthorsForm):
    """Our block as where no C compiler was."""

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        with mock.patch.object(scse_kernels, "has_kernels", return_value=False):
            return self.block(u)


def make(path: str, what: str, dtype: str, side: int) -> Case:
    torch.manual_seed(0)
    block = ChannelSpatialSE(2, CHANNELS).to(DEVICE, getattr(torch, dtype))
    u = torch.randn(BATCH, CHANNELS, side, side).relu().to(DEVICE, getattr(torch, dtype)).requires_grad_()
    grad = torch.rand(u.shape).to(u)
    store = torch.zeros(u.shape).to(u)

    def infer(form: nn.Module) -> Callable[[], torch.Tensor]:
        def run() -> torch.Tensor:
            with torch.no_grad():
                return form(u)

        return run

    def learn(form: nn.Module) -> Callable[[], tuple[torch.Tensor, ...]]:
        def run() -> tuple[torch.Tensor, ...]:
            u.grad = None
            form.zero_grad()
            output = form(u)
            output.backward(grad)
            return output.detach(), u.grad, *(parameter.grad for parameter in form.parameters())

        return run

    def copy(halves: int) -> None:
        """One pass for every half of the features that is read and written."""
        for _ in range(halves):
            store.detach()[: BATCH // 2].copy_(u.detach()[: BATCH // 2])

    way, passes = (infer, 3) if what == "forward" else (learn, 8)
    ways = {
        "ours": way(block if path == "fused" else PortableForm(block)),
        "peer": way(AuthorsForm(block)),
        FLOOR: lambda: copy(passes),
    }
    return Case(ways, tolerance=1e-4 if dtype == "float32" else 2e-2)


def rows(side: int = 256, rounds: int = 15) -> Iterator[measure.Row]:
    peer = "authors' equations"
    dtypes = ["float32", "bfloat16"] if DEVICE.type == "cuda" else ["float32"]
    paths = ["fused", "portable"] if scse_kernels.has_kernels() and DEVICE.type == "cpu" else ["portable"]
    for path, what, dtype in product(paths, ("forward", "forward and backward"), dtypes):
        name = f"scSE max, {path}, {what}, {dtype}, {BATCH}x{CHANNELS}x{side}x{side}"
        found = measure.times(make, path, what, dtype, side, rounds=rounds)
        yield measure.speed_row(name, peer, found, SPEED[path, what])
        small = (path, what, dtype, 64)
        yield measure.peak_row(
            name, peer, make, path, what, dtype, side, warm_up=small, goal=PEAK.get((path, what), "")
        )


if __name__ == "__main__":
    measure.main(rows)
