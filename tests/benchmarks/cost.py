# SPDX-License-Identifier: Apache-2.0
"""Time and peak memory of each network and inferer over image size, width and number of dilations K.

It writes cost.csv, and the figure cost.png of docs/performance.md, into ``--out``.
"""

import argparse
import csv
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import measure
import torch
from matplotlib.figure import Figure
from measure import DEVICE, Way
from monai.inferers import SliceInferer, SlidingWindowInferer
from monai.networks.nets import SegResNet
from torch import nn

from monai_attn.inferers import SliceBatchInferer
from monai_attn.nets import EGCNN, AFNet, FocusNet, SCSEUNet
from monai_attn.visualize.figures import save

DILATIONS = (2, 6, 10, 14, 18, 22)


class Point(NamedTuple):
    """A network or inferer at one value of one of its sizes."""

    panel: str
    name: str
    value: int


def scse(width: int = 16) -> nn.Module:
    return SCSEUNet(2, 1, 3, features=width, depth=3, kernel_size=3, norm="batch")


def focusnet(width: int = 8) -> nn.Module:
    return FocusNet(2, 1, 1, channels=(width, 2 * width, 4 * width), se_reduction=4)


def afnet(width: int = 4, scales: int = 4, layers: int = 4) -> nn.Module:
    channels = [width] * 2 + [width + 2] * 6
    return AFNet(3, 1, 3, n_autofocus=layers, channels=channels, dilations=DILATIONS[:scales])


def egcnn(width: int = 8) -> nn.Module:
    return EGCNN(SegResNet(spatial_dims=3, init_filters=width, in_channels=1, out_channels=3))


def image(side: int, spatial_dims: int) -> torch.Tensor:
    return torch.randn(1, 1, *[side] * spatial_dims, device=DEVICE)


def apply(network: nn.Module, x: torch.Tensor, inferer: Callable | None = None) -> Way:
    network.to(DEVICE).eval()

    def run() -> torch.Tensor:
        with torch.no_grad():
            return inferer(x, network) if inferer else network(x)

    return run


# for each panel: what is varied, its values, and how a way is made of a value
PANELS: dict[str, tuple[str, tuple[int, ...], dict[str, Callable[[int], Way]]]] = {
    "2D networks, size": (
        "side of the image",
        (64, 128, 256),
        {"scSE U-Net": lambda n: apply(scse(), image(n, 2)), "FocusNet": lambda n: apply(focusnet(), image(n, 2))},
    ),
    "3D networks, size": (
        "side of the volume",
        (16, 32, 48),
        {"AFN-4": lambda n: apply(afnet(), image(n, 3)), "EG-CNN": lambda n: apply(egcnn(), image(n, 3))},
    ),
    "width": (
        "channels of the first stage",
        (8, 16, 32),
        {
            "scSE U-Net, 128^2": lambda n: apply(scse(n), image(128, 2)),
            "FocusNet, 128^2": lambda n: apply(focusnet(n), image(128, 2)),
            "AFN-4, 24^3": lambda n: apply(afnet(n), image(24, 3)),
            "EG-CNN, 24^3": lambda n: apply(egcnn(n), image(24, 3)),
        },
    ),
    "number of dilations": (
        "K",
        (1, 2, 4, 6),
        {"AFN-4, 32^3": lambda n: apply(afnet(scales=n), image(32, 3))},
    ),
    "inferers, size": (
        "side of the volume",
        (32, 48, 80),
        {
            "window of 32, overlap .25, AFN-1": lambda n: apply(
                afnet(layers=1), image(n, 3), SlidingWindowInferer(32, overlap=0.25)
            ),
            "window of 32, overlap .5, AFN-1": lambda n: apply(
                afnet(layers=1), image(n, 3), SlidingWindowInferer(32, overlap=0.5)
            ),
            "slices by 16, scSE": lambda n: apply(scse(), image(n, 3), SliceBatchInferer()),
            "SliceInferer by 4, scSE": lambda n: apply(
                scse(), image(n, 3), SliceInferer(spatial_dim=2, roi_size=(n, n), sw_batch_size=4)
            ),
        },
    ),
}


def points(largest: int) -> list[Point]:
    """Every point of every panel up to an index into its values."""
    return [
        Point(panel, name, value)
        for panel, (_, values, ways) in PANELS.items()
        for name in ways
        for value in values[: largest + 1]
    ]


def _way(point: Point) -> Way:
    torch.manual_seed(0)
    return PANELS[point.panel][2][point.name](point.value)


def seconds_of_all(wanted: list[Point], rounds: int) -> list[float]:
    found = []
    for point in wanted:
        way = _way(point)
        way()
        found.append(min(measure.seconds_of(way) for _ in range(rounds)))
    return found


def peaks_of_all(wanted: list[Point]) -> list[float]:
    _way(wanted[0])()
    return [measure.peak_of(_way(point)) / 2**20 for point in wanted]


def draw(rows: list[tuple[Point, float, float]]) -> Figure:
    """A column for each panel: time above, peak memory below."""
    figure = Figure(figsize=(2.6 * len(PANELS), 4.6), layout="constrained")
    grid = figure.subplots(2, len(PANELS), sharex="col")
    for column, (panel, (label, _, ways)) in zip(grid.T, PANELS.items()):
        for name in ways:
            chosen = [(point.value, time, peak) for point, time, peak in rows if point[:2] == (panel, name)]
            values, times, peaks = zip(*chosen)
            column[0].loglog(values, times, marker="o", markersize=3, linewidth=1, label=name)
            column[1].loglog(values, peaks, marker="o", markersize=3, linewidth=1)
        column[0].set_title(panel, fontsize=8)
        column[0].legend(fontsize=5)
        column[1].set_xlabel(label, fontsize=7)
        column[1].set_xticks(values, map(str, values), minor=False)
        column[1].set_xticks([], minor=True)
        for axis in column:
            axis.tick_params(which="both", labelsize=5)
            axis.grid(linewidth=0.3)
    grid[0, 0].set_ylabel("seconds", fontsize=7)
    grid[1, 0].set_ylabel("peak memory, MiB", fontsize=7)
    return figure


def measure_all(out: Path, largest: int = 3, rounds: int = 3) -> None:
    """Measure all points, and write table and figure."""
    wanted = points(largest)
    times = measure.in_fresh_process(seconds_of_all, wanted, rounds, environment=measure.KEEP_HEAP)
    peaks = measure.in_fresh_process(peaks_of_all, wanted, environment=measure.GIVE_BACK)
    rows = list(zip(wanted, times, peaks))
    out.mkdir(parents=True, exist_ok=True)
    with (out / "cost.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["panel", "varied", "what", "value", "seconds", "peak MiB"])
        for point, time, peak in rows:
            cells = [point.panel, PANELS[point.panel][0], point.name, point.value]
            table.writerow([*cells, f"{time:.4g}", f"{peak:.4g}"])
    save(draw(rows), out / "cost.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks"), help="folder to write into")
    print(measure.machine(), flush=True)
    measure_all(parser.parse_args().out)
