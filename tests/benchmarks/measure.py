# SPDX-License-Identifier: Apache-2.0
"""How the benchmarks measure time and peak memory, and how they print it.

A benchmark is a script with a function ``make(*arguments)`` that gives the :class:`Case` of these arguments: named ways
to compute the same, the first of them ours. Whatever is measured runs in a fresh process, which imports the script and
calls ``make`` by itself; so ``make`` is on the level of its module, and its arguments are plain values.

Times: the ways take turns, A B A B, in the reverse order every other round, in a process that keeps its heap; otherwise
page faults would be measured. A ratio is taken within each round. One thread is timed by the processor's clock, which
other work on the machine does not move; several by the wall clock, and CUDA by its events.

Peak memory: one way per process, after a warm-up on a small input. It counts from what is resident before the call.
"""

import argparse
import inspect
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch

Way = Callable[[], Any]

KEEP_HEAP = {
    "MALLOC_MMAP_THRESHOLD_": "8000000000",
    "MALLOC_TRIM_THRESHOLD_": "16000000000",
    "MALLOC_TOP_PAD_": "536870912",
}
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_TOP_PAD_": "0"}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FLOOR = "floor"


@dataclass
class Case:
    """Ways to compute the same.

    Args:
        ways: the ways by their names, ours first. Each returns what it computes, as tensors or tuples of them.
        tolerance: how far results may be apart, relative to their norm; 0 for bitwise equality.
        unlike: the ways that compute something else: ``"floor"`` is the least that must be done.
    """

    ways: Mapping[str, Way]
    tolerance: float = 1e-5
    unlike: tuple[str, ...] = (FLOOR,)

    def check(self) -> None:
        """Raise an ``AssertionError`` unless all ways compute the same."""
        compared = {name: list(_tensors(way())) for name, way in self.ways.items() if name not in self.unlike}
        (_, first), *others = compared.items()
        for name, results in others:
            assert len(results) == len(first), f"{name} returns {len(results)} tensors, not {len(first)}"
            for result, expected in zip(results, first):
                assert result.shape == expected.shape, f"{name}: {result.shape}, not {expected.shape}"
                distance = (result.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-30)
                assert distance <= self.tolerance, f"{name} is {distance:.1e} away, more than {self.tolerance:.0e}"


class Ratio(NamedTuple):
    """A ratio of two ways: of each round the median and the least one, and that of the two shortest times."""

    median: float
    least: float
    of_minima: float


class Times(dict[str, list[float]]):
    """Seconds of every way in each round."""

    def ratio(self, way: str, to: str) -> Ratio:
        """How many times as long as ``to`` a way takes."""
        ratios = [one / other for one, other in zip(self[way], self[to])]
        return Ratio(statistics.median(ratios), min(ratios), min(self[way]) / min(self[to]))


def take_turns(ways: Mapping[str, Way], rounds: int, clock: Callable[[Way], float] | None = None) -> Times:
    """Time ways in turn, in this process; by a clock of one's own, or by :func:`seconds_of`."""
    clock = clock or seconds_of
    times = Times((name, []) for name in ways)
    for number in range(rounds):
        for name in list(ways)[:: -1 if number % 2 else 1]:
            times[name].append(clock(ways[name]))
    return times


def times(make: Callable[..., Case], *arguments: Any, rounds: int = 7) -> Times:
    """Check in a fresh process that the ways of a case are equal, and time them."""
    return in_fresh_process(_time, make, arguments, rounds, environment=KEEP_HEAP)


def peak(make: Callable[..., Case], way: str, *arguments: Any, warm_up: tuple) -> float:
    """Bytes that one way takes at its peak on top of its inputs, in a fresh process.

    Args:
        make: gives the case.
        way: the name of the way.
        arguments: those of ``make``.
        warm_up: those that make a small case, which runs first.
    """
    return in_fresh_process(_measure_peak, make, way, arguments, warm_up, environment=GIVE_BACK)


def in_fresh_process(function: Callable[..., Any], *arguments: Any, environment: Mapping[str, str]) -> Any:
    """Call a function of a module in a new process, whose C library starts with these settings."""
    with (
        mock.patch.dict(os.environ, environment),
        ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool,
    ):
        return pool.submit(function, *arguments).result()


def _time(make: Callable[..., Case], arguments: tuple, rounds: int) -> Times:
    case = make(*arguments)
    case.check()
    for name in set(case.unlike) & set(case.ways) if rounds > 1 else ():
        case.ways[name]()  # warm up, as the others have
    return take_turns(case.ways, rounds)


def seconds_of(way: Way) -> float:
    """Time one call by the clock that fits the device and the threads."""
    return _cuda_seconds(way) if DEVICE.type == "cuda" else _cpu_seconds(way)


def _cpu_seconds(way: Way) -> float:
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    way()
    return clock() - start


def _cuda_seconds(way: Way) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    way()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def _measure_peak(make: Callable[..., Case], way: str, arguments: tuple, warm_up: tuple) -> float:
    make(*warm_up).ways[way]()
    return peak_of(make(*arguments).ways[way])


def peak_of(run: Way) -> float:
    """Bytes that a call takes at its peak in this process, which should give freed memory back."""
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = run()
        found = torch.cuda.max_memory_allocated() - before
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the highest RSS so far
        before = resident("VmRSS")
        result = run()
        found = resident("VmHWM") - before
    least = sum(tensor.nbytes for tensor in _tensors(result))
    assert found >= 0.9 * least, f"a peak of {found} bytes for a result of {least} was not measured"
    return found


def resident(entry: str) -> int:
    """Bytes of resident memory of this process, now (``"VmRSS"``) or at most (``"VmHWM"``)."""
    with open("/proc/self/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(entry))


def _tensors(result: Any) -> Iterator[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        yield result
    elif isinstance(result, (tuple, list)):
        for part in result:
            yield from _tensors(part)


@dataclass
class Row:
    """One measured number.

    Args:
        what: what was measured.
        peer: what it is compared to.
        ratio: the ratio, in the unit of the goal.
        goal: ``">= 1.3 x speed"`` or ``"<= 0.6 x peak"``: the bound, and what the ratio is of. ``speed`` is the peer's
            time by ours.
        least: where it is a ratio of times, the worst round's ratio.
        of_minima: and the ratio of the two shortest times.
        floor: how many times as much as the least possible ours takes.
        units: the two numbers themselves, ours and the peer's.
    """

    what: str
    peer: str
    ratio: float
    goal: str = ""
    least: float | None = None
    of_minima: float | None = None
    floor: float | None = None
    units: str = ""

    @property
    def met(self) -> str:
        if not self.goal:
            return ""
        relation, bound, *_ = self.goal.split()
        return "yes" if (self.ratio >= float(bound) if relation == ">=" else self.ratio <= float(bound)) else "no"

    def cells(self) -> list[str]:
        numbers = (self.ratio, self.of_minima, self.least, self.floor)
        cells = ["" if number is None else f"{number:.2f}" for number in numbers]
        return [self.what, self.peer, *cells, self.units, self.goal, self.met]


def speed_row(what: str, peer: str, times: Times, goal: str = "", *, ours: str = "ours", way: str = "peer") -> Row:
    """How many times as fast as the peer we are."""
    median, least, of_minima = times.ratio(way, ours)
    return Row(what, peer, median, goal, least, of_minima, _to_floor(times, ours), _units(times, ours, way))


def time_row(what: str, peer: str, times: Times, goal: str = "", *, ours: str = "ours", way: str = "peer") -> Row:
    """How much of the peer's time we take; the worst round is the one of the largest ratio."""
    inverse = times.ratio(way, ours)
    median, _, of_minima = times.ratio(ours, way)
    worst = 1 / inverse.least
    return Row(what, peer, median, goal, worst, of_minima, _to_floor(times, ours), _units(times, ours, way))


def peak_row(
    what: str, peer: str, make: Callable[..., Case], *arguments: Any, warm_up: tuple, goal: str = "", way: str = "peer"
) -> Row:
    """How much of the peer's peak memory we take."""
    ours, theirs = (peak(make, name, *arguments, warm_up=warm_up) for name in ("ours", way))
    return Row(what, peer, ours / theirs, goal, units=f"{ours / 2**20:.0f} / {theirs / 2**20:.0f} MiB")


def _to_floor(times: Times, ours: str) -> float | None:
    return times.ratio(ours, FLOOR).median if FLOOR in times else None


def _units(times: Times, ours: str, way: str) -> str:
    return f"{min(times[ours]):.3g} / {min(times[way]):.3g} s"


HEADER = ["what", "peer", "median", "of minima", "worst round", "to floor", "ours / peer", "goal", "met"]


def print_table(rows: Iterable[Row]) -> None:
    """Print rows as they come, as a table in Markdown, with the machine above and its load around it."""
    print(f"{machine()}\n\n{_line(HEADER)}\n{_line(['-' * len(name) for name in HEADER])}", flush=True)
    for row in rows:
        print(_line(row.cells()), flush=True)
    print(f"\nload {os.getloadavg()[0]:.1f}", flush=True)


def main(rows: Callable[..., Iterable[Row]]) -> None:
    """Print the rows of a benchmark from the command line, where each argument of ``rows`` is an option."""
    description = inspect.getmodule(rows).__doc__
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, parameter in inspect.signature(rows).parameters.items():
        many = isinstance(parameter.default, tuple)
        kind = type(parameter.default[0] if many else parameter.default)
        help_text = f"default: {' '.join(map(str, parameter.default)) if many else parameter.default}"
        parser.add_argument(
            f"--{name}", type=kind, nargs="+" if many else None, default=parameter.default, help=help_text
        )
    print_table(rows(**vars(parser.parse_args())))


def machine() -> str:
    """What figures depend on."""
    if DEVICE.type == "cuda":
        device = torch.cuda.get_device_name()
    else:
        device = f"CPU with {torch.backends.cpu.get_cpu_capability()}, {'with' if has_bf16() else 'without'} bf16"
    return f"torch {torch.__version__}, {device}, {torch.get_num_threads()} thread(s), load {os.getloadavg()[0]:.1f}"


def has_bf16() -> bool:
    """Whether the device computes in bfloat16 by instructions of its own."""
    if DEVICE.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
