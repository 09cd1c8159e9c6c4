# SPDX-License-Identifier: Apache-2.0
"""scSE with the larger of both products against the plain definition by autograd, and both in a training step."""

from collections.abc import Iterator
from typing import Any
from unittest import mock

import measure
import torch
from measure import DEVICE, Case
from monai.losses import DiceCELoss

from monai_attn.blocks import ChannelSpatialSE, fast_max
from monai_attn.nets import SCSEUNet


def plain(way: measure.Way) -> Any:
    with mock.patch.object(fast_max, "_pays_off", return_value=False):
        return way()


def make_block(batch: int, side: int) -> Case:
    torch.manual_seed(0)
    block = ChannelSpatialSE(2, 64).to(DEVICE)
    u = torch.randn(batch, 64, side, side, device=DEVICE).relu().requires_grad_()
    grad = torch.randn_like(u)

    def learn() -> tuple[torch.Tensor, ...]:
        output = block(u)
        return output.detach(), *torch.autograd.grad(output, [u, *block.parameters()], grad)

    return Case(learn, lambda: plain(learn))


def make_step(batch: int) -> Case:
    """The network, loss and slices of the quick start."""
    torch.manual_seed(0)
    net = SCSEUNet(2, 1, 3, features=24, depth=3, kernel_size=3, norm="batch").to(DEVICE)
    loss = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True)
    image, label = torch.rand(batch, 1, 64, 48, device=DEVICE), torch.randint(3, (batch, 1, 64, 48), device=DEVICE)

    def learn() -> torch.Tensor:
        return torch.cat([x.flatten() for x in torch.autograd.grad(loss(net(image), label), list(net.parameters()))])

    return Case(learn, lambda: plain(learn), tolerance=1e-3)


def rows(side: int = 128, batch: int = 16, rounds: int = 15) -> Iterator[measure.Row]:
    peer = "plain definition"
    step = f"scSE max, training step of the quick start, {batch} slices"
    yield measure.time_row(step, peer, "<= 0.85 x time", make_step, batch, rounds=rounds)
    block = f"scSE max, forward and backward, 4x64x{side}x{side}"
    yield measure.time_row(block, peer, "<= 0.5 x time", make_block, 4, side, rounds=rounds)
    yield measure.peak_row(block, peer, "<= 0.5 x peak", make_block, 4, side, warm_up=(1, 32))


if __name__ == "__main__":
    measure.main(rows)
