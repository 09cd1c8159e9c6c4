# SPDX-License-Identifier: Apache-2.0
"""A 2D network over a volume: our batches of whole slices against MONAI's ``SliceInferer`` with batches of 4."""

from collections.abc import Callable, Iterator

import measure
import torch
from measure import DEVICE, Case
from monai.inferers import SliceInferer

from monai_attn.inferers import SliceBatchInferer
from monai_attn.nets import SCSEUNet


def make(features: int, height: int, width: int, depth: int) -> Case:
    torch.manual_seed(0)
    net = SCSEUNet(2, 1, 3, features=features, depth=3, kernel_size=3, norm="batch").to(DEVICE).eval()
    x = torch.randn(1, 1, height, width, depth, device=DEVICE)
    peer = SliceInferer(spatial_dim=2, roi_size=(height, width), sw_batch_size=4)

    @torch.no_grad()
    def infer(inferer: Callable) -> torch.Tensor:
        return inferer(x, net)

    return Case(lambda: infer(SliceBatchInferer(spatial_dim=2)), lambda: infer(peer))


def rows(features: int = 24, volume: tuple[int, ...] = (96, 96, 64), rounds: int = 5) -> Iterator[measure.Row]:
    name = f"scSE U-Net, {'x'.join(map(str, volume))}"
    yield measure.time_row(name, "SliceInferer, 4 slices", ">= 1.6 x speed", make, features, *volume, rounds=rounds)


if __name__ == "__main__":
    measure.main(rows)
