# SPDX-License-Identifier: Apache-2.0
"""The autofocus layer against the authors' form."""

from collections.abc import Iterator

import measure
import torch
import torch.nn.functional as F
from measure import DEVICE, Case
from torch import nn

from monai_attn.blocks import AutofocusConv


class AuthorsForm(nn.Module):
    """The layer as the authors compute it: all branches one after the other, each kept under a name of its own."""

    def __init__(self, layer: AutofocusConv) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layer = self.layer
        scales, output = layer.attend(x), torch.zeros(())
        for k, (dilation, norm) in enumerate(zip(layer.dilations, layer.norms)):
            branch = norm(F.conv3d(x, layer.conv.weight, None, 1, dilation, dilation))
            product = branch * scales[:, k : k + 1].expand(branch.shape)
            output = product if k == 0 else output.add_(product)
        return output


def make(what: str, side: int) -> Case:
    torch.manual_seed(0)
    layer = AutofocusConv(3, 40, 50, memory_efficient=True).to(DEVICE).train(what == "training")
    authors = AuthorsForm(layer)
    x = torch.randn(1, 40, *[side] * 3, device=DEVICE).relu().requires_grad_(what == "training")

    def infer(form: nn.Module, reduced: bool) -> torch.Tensor:
        with torch.no_grad(), torch.autocast(DEVICE.type, torch.bfloat16, enabled=reduced):
            return form(x)

    def learn(form: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        x.grad = None
        output = form(x)
        output.backward(torch.ones_like(output))
        return output.detach(), x.grad

    if what == "training":
        return Case(lambda: learn(layer), lambda: learn(authors), tolerance=1e-4)
    bf16 = what == "bf16"
    return Case(lambda: infer(layer, bf16), lambda: infer(authors, False), tolerance=2e-2 if bf16 else 1e-4)


def rows(side: int = 48, rounds: int = 5) -> Iterator[measure.Row]:
    peer, name = "authors' form", f"autofocus 40-50-50, {side}^3"
    for what, speed, peak in (
        ("evaluation", ">= 1.3 x speed", "<= 0.6 x peak"),
        ("training", "<= 1.25 x time", "<= 0.45 x peak"),
    ):
        yield measure.time_row(f"{name}, {what}", peer, speed, make, what, side, rounds=rounds)
        yield measure.peak_row(f"{name}, {what}", peer, peak, make, what, side, warm_up=(what, 16))
    if DEVICE.type == "cuda" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        bf16, float32 = f"{name}, evaluation, bf16", f"{peer}, float32"
        yield measure.time_row(bf16, float32, ">= 2.5 x speed", make, "bf16", side, rounds=rounds)


if __name__ == "__main__":
    measure.main(rows)
