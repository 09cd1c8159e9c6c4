# SPDX-License-Identifier: Apache-2.0
"""How the benchmarks measure time and peak memory, and print it.

A benchmark is a script with functions ``make(*arguments)`` that give the :class:`Case` of these arguments. Whatever is
measured runs in a fresh process, which imports the script and calls ``make`` by itself; so ``make`` is on the level of
its module, and its arguments are plain values.

Times: the ways take turns, A B B A, in a process that keeps its heap; otherwise page faults would be measured. A ratio
is taken within each round. One thread is timed by the processor's clock, which other work on the machine does not move;
several by the wall clock, and CUDA by its events. Peak memory: one way per process, after a warm-up on a small input,
from what is resident before the call.
"""

import argparse
import inspect
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch

Way = Callable[[], Any]

# of the C library: freed memory is kept, or given back at once
SETTINGS = "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_"
KEEP_HEAP = dict(zip(SETTINGS, ("8000000000", "16000000000", "536870912")))
GIVE_BACK = dict(zip(SETTINGS, ("131072", "131072", "0")))
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Case(NamedTuple):
    """Our way to compute something, its peer, and how far their results may be apart, relative to their norm.

    The results are tensors, or tuples of them. 0 stands for bitwise equality, None for results that differ.
    """

    ours: Way
    peer: Way
    tolerance: float | None = 1e-5

    def check(self) -> None:
        """Raise an ``AssertionError`` unless both compute the same; both are warm then."""
        results, expected = (list(_tensors(way())) for way in (self.ours, self.peer))
        if self.tolerance is None:
            return
        assert [x.shape for x in results] == [x.shape for x in expected]
        for one, other in zip(results, expected):
            distance = (one.double() - other.double()).norm() / other.double().norm().clamp(min=1e-30)
            assert distance <= self.tolerance, f"ours is {distance:.1e} away, more than {self.tolerance:.0e}"


class Row(NamedTuple):
    """A measured ratio; the goal, such as ``">= 1.3 x speed"``, says of what.

    ``speed`` is the peer's time by ours, ``time`` and ``peak`` are ours by the peer's.
    """

    what: str
    peer: str
    ratio: float
    of_minima: str
    units: str
    goal: str

    @property
    def met(self) -> str:
        """``"yes"`` or ``"no"``, to two digits."""
        relation, bound, *_ = self.goal.split()
        ratio = round(self.ratio, 2)
        return "yes" if (ratio >= float(bound) if relation == ">=" else ratio <= float(bound)) else "no"


def time_row(what: str, peer: str, goal: str, make: Callable[..., Case], *arguments: Any, rounds: int) -> Row:
    """Check in a fresh process that both ways of a case are equal, and time them."""
    return ratio_row(what, peer, goal, *in_fresh_process(_time, make, arguments, rounds, environment=KEEP_HEAP))


def ratio_row(what: str, peer: str, goal: str, ours: list[float], theirs: list[float]) -> Row:
    """Compare the seconds of each round."""
    numerators, denominators = (theirs, ours) if goal.endswith("speed") else (ours, theirs)
    ratio = statistics.median(one / other for one, other in zip(numerators, denominators))
    of_minima = f"{min(numerators) / min(denominators):.2f}"
    return Row(what, peer, ratio, of_minima, f"{min(ours):.3g} / {min(theirs):.3g} s", goal)


def take_turns(ours: Way, peer: Way, rounds: int, clock: Callable[[Way], float] | None = None) -> list[list[float]]:
    """Time two ways in turn, in this process."""
    times: list[list[float]] = [[], []]
    for number in range(rounds):
        for found, way in list(zip(times, (ours, peer)))[:: -1 if number % 2 else 1]:
            found.append((clock or _seconds_of)(way))
    return times


def in_fresh_process(function: Callable[..., Any], *arguments: Any, environment: Mapping[str, str]) -> Any:
    """Call a function of a module in a new process, whose C library starts with these settings."""
    with (
        mock.patch.dict(os.environ, environment),
        ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool,
    ):
        return pool.submit(function, *arguments).result()


def _time(make: Callable[..., Case], arguments: tuple, rounds: int) -> list[list[float]]:
    case = make(*arguments)
    case.check()
    return take_turns(case.ours, case.peer, rounds)


def _seconds_of(way: Way) -> float:
    if DEVICE.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        way()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    begin = clock()
    way()
    return clock() - begin


def peak_row(what: str, peer: str, goal: str, make: Callable[..., Case], *arguments: Any, warm_up: tuple) -> Row:
    """Compare what both ways of a case take at their peaks on top of their inputs, each in a fresh process."""
    ours, theirs = (
        in_fresh_process(_measure_peak, make, name, arguments, warm_up, environment=GIVE_BACK)
        for name in ("ours", "peer")
    )
    return Row(what, peer, ours / theirs, "", f"{ours / 2**20:.0f} / {theirs / 2**20:.0f} MiB", goal)


def _measure_peak(make: Callable[..., Case], name: str, arguments: tuple, warm_up: tuple) -> float:
    getattr(make(*warm_up), name)()
    return peak_of(getattr(make(*arguments), name))


def peak_of(run: Way) -> float:
    """Bytes that a call takes at its peak in this process, which should give freed memory back."""
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = run()
        found = torch.cuda.max_memory_allocated() - before
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the highest RSS so far
        before = _resident("VmRSS")
        result = run()
        found = _resident("VmHWM") - before
    least = sum(tensor.nbytes for tensor in _tensors(result))
    assert found >= 0.9 * least, f"a peak of {found} bytes for a result of {least} was not measured"
    return found


def _resident(entry: str) -> int:
    with open("/proc/self/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(entry))


def _tensors(result: Any) -> Iterator[torch.Tensor]:
    for part in result if isinstance(result, (tuple, list)) else [result]:
        if isinstance(part, torch.Tensor):
            yield part


def print_table(rows: Iterable[Row]) -> None:
    """Print rows as they come, as a table in Markdown, with the machine above and its load around it."""
    device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} thread(s), load {os.getloadavg()[0]:.1f}\n")
    print("| what | peer | median | of minima | ours / peer | goal | met |", "| --- " * 7 + "|", sep="\n")
    for row in rows:
        cells = row._replace(ratio=f"{row.ratio:.2f}")
        print("|", " | ".join((*cells, row.met)), "|", flush=True)
    print(f"\nload {os.getloadavg()[0]:.1f}")


def main(rows: Callable[..., Iterable[Row]]) -> None:
    """Print the rows of a benchmark from the command line, where each argument of ``rows`` is an option."""
    parser = argparse.ArgumentParser(description=inspect.getmodule(rows).__doc__)
    for name, parameter in inspect.signature(rows).parameters.items():
        count = "+" if isinstance(parameter.default, tuple) else None
        help_text = f"default: {parameter.default}"
        parser.add_argument(f"--{name}", type=int, nargs=count, default=parameter.default, help=help_text)
    print_table(rows(**vars(parser.parse_args())))
