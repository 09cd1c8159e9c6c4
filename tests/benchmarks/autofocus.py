# SPDX-License-Identifier: Apache-2.0
"""The autofocus layer against the authors' form."""

from collections.abc import Iterator

import measure
import torch
import torch.nn.functional as F
from measure import DEVICE, FLOOR, Case
from torch import nn

from monai_attn.blocks import AutofocusConv


class AuthorsForm(nn.Module):
    """The layer as the authors compute it: all branches one after the other, each kept under a name of its own."""

    def __init__(self, layer: AutofocusConv) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layer = self.layer
        scales = layer.attend(x)
        first = layer.norms[0](F.conv3d(x, layer.conv.weight, None, 1, layer.dilations[0], layer.dilations[0]))
        output = first * scales[:, :1].expand(first.shape)
        for k in range(1, len(layer.dilations)):
            branch = F.conv3d(x, layer.conv.weight, None, 1, layer.dilations[k], layer.dilations[k])
            branch = layer.norms[k](branch)
            output += branch * scales[:, k : k + 1].expand(output.shape)
        return output


class Convolutions(nn.Module):
    """Nothing but the layer's convolutions."""

    def __init__(self, layer: AutofocusConv) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layer = self.layer
        x = x.contiguous(memory_format=torch.channels_last_3d)
        output = layer.logits(x)[:, :1]
        for dilation in layer.dilations:
            output = F.conv3d(x, layer.conv.weight, None, 1, dilation, dilation)
        return output


def make_block(what: str, side: int) -> Case:
    torch.manual_seed(0)
    layer = AutofocusConv(3, 40, 50, memory_efficient=True).to(DEVICE).train(what == "training")
    x = torch.randn(1, 40, *[side] * 3, device=DEVICE).relu().requires_grad_(what == "training")
    forms = {"ours": layer, "peer": AuthorsForm(layer), FLOOR: Convolutions(layer)}

    def infer(form: nn.Module) -> torch.Tensor:
        with torch.no_grad():
            return form(x)

    def infer_bf16() -> torch.Tensor:
        with torch.no_grad(), torch.autocast(DEVICE.type, torch.bfloat16):
            return layer(x)

    def learn(form: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        x.grad = None
        output = form(x)
        output.backward(torch.ones_like(output))
        return output.detach(), x.grad

    if what == "bf16":
        return Case({"ours": infer_bf16, "peer": lambda: infer(forms["peer"])}, tolerance=2e-2)
    run = learn if what == "training" else infer
    if what == "training":
        del forms[FLOOR]
    return Case({name: lambda form=form: run(form) for name, form in forms.items()}, tolerance=1e-4)


def rows(side: int = 48, rounds: int = 5) -> Iterator[measure.Row]:
    small, authors = 16, "authors' form"
    name = f"autofocus 40-50-50, {side}^3"
    times = measure.times(make_block, "evaluation", side, rounds=rounds)
    yield measure.speed_row(f"{name}, evaluation", authors, times, ">= 1.3 x speed")
    found = {"warm_up": ("evaluation", small), "goal": "<= 0.6 x peak"}
    yield measure.peak_row(f"{name}, evaluation", authors, make_block, "evaluation", side, **found)
    if measure.has_bf16():
        times = measure.times(make_block, "bf16", side, rounds=rounds)
        yield measure.speed_row(f"{name}, evaluation, bf16", f"{authors}, float32", times, ">= 2.5 x speed")
    times = measure.times(make_block, "training", side, rounds=rounds)
    yield measure.time_row(f"{name}, training", authors, times, "<= 1.25 x time")
    found = {"warm_up": ("training", small), "goal": "<= 0.45 x peak"}
    yield measure.peak_row(f"{name}, training", authors, make_block, "training", side, **found)


if __name__ == "__main__":
    measure.main(rows)
