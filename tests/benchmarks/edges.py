# SPDX-License-Identifier: Apache-2.0
r"""How much faster edge targets and consistency loss are than MONAI's Sobel filter and a dense convolution.

Run it as a script; without the settings of the heap, page faults would be measured::

    MALLOC_MMAP_THRESHOLD_=8000000000 MALLOC_TRIM_THRESHOLD_=16000000000 MALLOC_TOP_PAD_=536870912 OMP_NUM_THREADS=1 \
        python tests/benchmarks/edges.py [side of the volume ...]

Every pair must first give equal values. Then the two take turns, the first one being another in every round, and the
ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from unittest import mock

import torch
import torch.nn.functional as F
from monai.data import set_track_meta
from monai.transforms import SobelGradients

from monai_attn.losses import EdgeConsistencyLoss, consistency
from monai_attn.transforms import edge_targets, foreground_masks, sobel_edges

BATCH, CLASSES, ROUNDS = 2, 4, 15


def monai_edges(masks: torch.Tensor) -> torch.Tensor:
    """MONAI's filter, one sample at a time."""
    sobel = SobelGradients(padding_mode="replicate")
    return torch.stack([sobel(sample).unflatten(0, (3, -1)).norm(dim=0) for sample in masks.float()])


def dense_edges(x: torch.Tensor) -> torch.Tensor:
    """One convolution with the three 3x3x3 kernels."""
    difference, smooth = torch.tensor([-1.0, 0.0, 1.0]) / 2, torch.tensor([1.0, 2.0, 1.0]) / 4
    axes = [[difference if axis == other else smooth for other in range(3)] for axis in range(3)]
    kernels = torch.stack([torch.einsum("i,j,k->ijk", *taps) for taps in axes])[:, None]
    padded = F.pad(x.float().flatten(0, 1)[:, None], [1] * 6, mode="replicate")
    square = F.conv3d(padded, kernels).square().sum(1).reshape(x.shape)
    return torch.sqrt(square + 1e-12) - 1e-6


def consistency_step(logits: torch.Tensor, label: torch.Tensor, noise: bool, dense: bool) -> Callable[[], torch.Tensor]:
    loss = EdgeConsistencyLoss(noise=noise)

    def step() -> torch.Tensor:
        torch.manual_seed(0)
        logits.grad = None
        with mock.patch.object(consistency, "sobel_edges", dense_edges if dense else sobel_edges):
            loss(logits, label).backward()
        return logits.grad

    return step


def seconds(step: Callable[[], torch.Tensor]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def compare(name: str, ours: Callable[[], torch.Tensor], peer: Callable[[], torch.Tensor]) -> None:
    result, expected = ours(), peer()
    assert torch.allclose(result, expected, atol=2e-6), f"{name}: {(result - expected).abs().max()} apart"
    rounds = []
    for number in range(ROUNDS):
        first, second = (ours, peer) if number % 2 else (peer, ours)
        times = {step: seconds(step) for step in (first, second)}
        rounds.append((times[ours], times[peer]))
    ratio = statistics.median(slow / fast for fast, slow in rounds)
    fastest = [1e3 * min(column) for column in zip(*rounds)]
    print(f"{name:56} {fastest[0]:9.1f} {fastest[1]:9.1f} {fastest[1] / fastest[0]:9.1f} {ratio:9.1f}", flush=True)


def compare_all(side: int) -> None:
    coarse = torch.rand(BATCH, 1, *[side // 8] * 3)
    label = (F.interpolate(coarse, size=[side] * 3, mode="trilinear") * CLASSES).to(torch.uint8)
    masks = foreground_masks(label, CLASSES)
    x = torch.rand(masks.shape)
    logits = torch.randn(BATCH, CLASSES, *[side] * 3, requires_grad=True)
    compare(f"{side}^3 magnitude / MONAI", lambda: sobel_edges(x), lambda: monai_edges(x))
    compare(
        f"{side}^3 edge target / MONAI",
        lambda: edge_targets(masks),
        lambda: (monai_edges(masks).amax(1, keepdim=True) > 1e-4).float(),
    )
    compare(
        f"{side}^3 magnitude, forward+backward / dense",
        lambda: torch.autograd.grad(sobel_edges(logits).sum(), logits)[0],
        lambda: torch.autograd.grad(dense_edges(logits).sum(), logits)[0],
    )
    for noise in (False, True):
        steps = [consistency_step(logits, label, noise, dense) for dense in (False, True)]
        compare(f"{side}^3 consistency, noise={noise}, forward+backward / dense", *steps)


def main(sides: list[int]) -> None:
    set_track_meta(False)
    torch.manual_seed(0)
    print(f"load {os.getloadavg()[0]:.1f}, {torch.get_num_threads()} thread(s), batch {BATCH}, {CLASSES} classes")
    print(f"{'':56} {'ours, ms':>9} {'peer, ms':>9} {'of minima':>9} {'median':>9}")
    for side in sides:
        compare_all(side)
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main([int(side) for side in sys.argv[1:]] or [48, 96])
