# SPDX-License-Identifier: Apache-2.0
"""A 2D network over a volume: our batches of whole slices against MONAI's ``SliceInferer`` with batches of 4."""

from collections.abc import Callable, Iterator

import measure
import torch
from measure import DEVICE, FLOOR, Case
from monai.inferers import SliceInferer

from monai_attn.inferers import SliceBatchInferer
from monai_attn.nets import SCSEUNet


def make(precision: str, features: int, height: int, width: int, depth: int) -> Case:
    torch.manual_seed(0)
    net = SCSEUNet(2, 1, 3, features=features, depth=3, kernel_size=3, norm="batch", positions="P5").to(DEVICE).eval()
    x = torch.randn(1, 1, height, width, depth, device=DEVICE)
    batch = x[0].movedim(-1, 0).contiguous(memory_format=torch.channels_last)
    inferers: dict[str, Callable] = {
        "ours": SliceBatchInferer(spatial_dim=2),
        "peer": SliceInferer(spatial_dim=2, roi_size=(height, width), sw_batch_size=4),
        FLOOR: lambda x, net: [net(part) for part in batch.split(4)],
    }

    def run(inferer: Callable, reduced: bool) -> torch.Tensor:
        with torch.no_grad(), torch.autocast(DEVICE.type, torch.bfloat16, enabled=reduced):
            return inferer(x, net)

    ways = {
        name: lambda inferer=inferer, name=name: run(inferer, precision == "bf16" and name != "peer")
        for name, inferer in inferers.items()
    }
    return Case(ways, tolerance=2e-2 if precision == "bf16" else 1e-5)


def rows(features: int = 24, volume: tuple[int, ...] = (96, 96, 64), rounds: int = 5) -> Iterator[measure.Row]:
    name, peer = f"scSE U-Net, {'x'.join(map(str, volume))}", "SliceInferer, 4 slices"
    times = measure.times(make, "float32", features, *volume, rounds=rounds)
    yield measure.speed_row(name, peer, times, ">= 1.6 x speed")
    yield measure.peak_row(name, peer, make, "float32", features, *volume, warm_up=("float32", features, 32, 32, 4))
    if measure.has_bf16():
        times = measure.times(make, "bf16", features, *volume, rounds=rounds)
        yield measure.speed_row(f"{name}, bf16", f"{peer}, float32", times, ">= 1.6 x speed")


if __name__ == "__main__":
    measure.main(rows)
