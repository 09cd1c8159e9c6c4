# SPDX-License-Identifier: Apache-2.0
"""Time and peak memory of the autofocus layer and of inference layer by layer, as ratios.

``python tests/benchmarks/autofocus.py [block] [inference]`` takes some minutes. It is not a test: times depend on the
machine. Variants are timed in turn, in an order that is reversed each round, in a process that keeps its heap; each
peak of memory is measured in a process of its own. It needs Linux. The tests assert that all variants are equal.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from monai.inferers import SlidingWindowInferer
from torch import nn

from monai_attn.blocks import AutofocusConv
from monai_attn.inferers import LayerwiseInferer
from monai_attn.nets import afn1

KEEP_HEAP = {
    "MALLOC_MMAP_THRESHOLD_": "8000000000",
    "MALLOC_TRIM_THRESHOLD_": "16000000000",
    "MALLOC_TOP_PAD_": "536870912",
}
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "131072"}
SIDE, VOLUME = 48, 120
CHANNELS = (10, 10, 14, 14, 14, 14, 16, 16)


class AuthorsForm(nn.Module):
    """The layer as the authors compute it: all branches one after the other, each kept under a name of its own."""

    def __init__(self, layer: AutofocusConv) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layer = self.layer
        scales = layer.attend(x)
        first = F.conv3d(x, layer.conv.weight, None, 1, 2, 2)
        output = layer.norms[0](first) * scales[:, :1].expand(first.shape)
        for k in range(1, 4):
            branch = F.conv3d(x, layer.conv.weight, None, 1, layer.dilations[k], layer.dilations[k])
            branch = layer.norms[k](branch)
            output += branch * scales[:, k : k + 1].expand(output.shape)
        return output


class PlainForm(AuthorsForm):
    """The layer by its definition, whether or not gradients are wanted."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scales = self.layer.attend(x)
        return sum(scales[:, k : k + 1] * norm(self.layer.branch(x, k)) for k, norm in enumerate(self.layer.norms))


def block_variants(training: bool) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    layer = AutofocusConv(3, 40, 50, memory_efficient=True).train(training)
    return {"authors": AuthorsForm(layer), "plain": PlainForm(layer), "ours": layer}


def block_runs(training: bool) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    def learn(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
        output = block(x.requires_grad_())
        output.backward(torch.ones_like(output))
        x.grad = None
        return output

    def infer(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return block(x)

    run = learn if training else infer
    return {name: lambda x, block=block: run(block, x) for name, block in block_variants(training).items()}


def inference_runs() -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    torch.manual_seed(0)
    net = afn1(3, 4, 5, channels=CHANNELS).eval()
    inferers: dict[str, Callable] = {
        "whole": lambda x, net: net(x),
        "ours": LayerwiseInferer(),
        "window .25": SlidingWindowInferer(75, overlap=0.25),
        "window .5": SlidingWindowInferer(75, overlap=0.5),
    }

    def run(inferer: Callable, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return inferer(x, net)

    return {name: lambda x, inferer=inferer: run(inferer, x) for name, inferer in inferers.items()}


CASES: dict[str, Callable[[], dict[str, Callable[[torch.Tensor], torch.Tensor]]]] = {
    "block, evaluation": lambda: block_runs(training=False),
    "block, training": lambda: block_runs(training=True),
    "inference": inference_runs,
}
ROUNDS = {"block, evaluation": 6, "block, training": 4, "inference": 1}


def picture(case: str, side: int | None = None) -> torch.Tensor:
    torch.manual_seed(0)
    channels, default = (4, VOLUME) if case == "inference" else (40, SIDE)
    return torch.randn(1, channels, *[side or default] * 3).relu()


def measure_times(case: str) -> None:
    x, runs = picture(case), CASES[case]()
    if case == "inference":
        torch.testing.assert_close(runs["ours"](x), runs["whole"](x), atol=1e-5, rtol=1e-5)
    else:
        for run in runs.values():  # warm up, and be equal
            torch.testing.assert_close(run(x), runs["plain"](x), atol=1e-4, rtol=1e-4)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(ROUNDS[case]):
        for name in list(runs)[:: 1 if number % 2 == 0 else -1]:
            start = time.perf_counter()
            runs[name](x)
            times[name].append(time.perf_counter() - start)
    for name, values in times.items():
        print(f"{name}\t{statistics.median(values)}\t{min(values)}")


def memory(entry: str) -> float:
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(entry))


def measure_peak(case: str, name: str) -> None:
    run = CASES[case]()[name]
    if not name.startswith("window"):
        run(picture(case, side=16))
    x = picture(case)
    with open("/proc/self/clear_refs", "w") as refs:
        refs.write("5")  # forget the highest RSS so far
    before = memory("VmRSS")
    run(x)
    print(memory("VmHWM") - before)


def fresh_process(environment: dict[str, str], *arguments: str) -> str:
    command = [sys.executable, __file__, *arguments]
    return subprocess.run(
        command, env={**os.environ, **environment}, check=True, capture_output=True, text=True
    ).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", default=["block", "inference"], help="block, inference")
    parser.add_argument("--times", help=argparse.SUPPRESS)
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if options.times:
        return measure_times(options.times)
    if options.peak:
        return measure_peak(*options.peak)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}")
    for case in CASES:
        if case.split(",")[0] not in options.what:
            continue
        lines = fresh_process(KEEP_HEAP, "--times", case).splitlines()
        rows = {name: (float(median), float(least)) for name, median, least in (line.split("\t") for line in lines)}
        peaks = {name: float(fresh_process(GIVE_BACK, "--peak", case, name)) for name in rows}
        print(f"\n{case:<20}{'median s':>10}{'min s':>8}{'ours is':>12}{'peak MiB':>10}{'ours has':>10}")
        for name, (median, least) in rows.items():
            faster, share = least / rows["ours"][1], peaks["ours"] / peaks[name]
            print(f"{name:<20}{median:>10.2f}{least:>8.2f}{faster:>10.2f} x{peaks[name]:>10.0f}{share:>9.2f}x")
    return None


if __name__ == "__main__":
    main()
