# SPDX-License-Identifier: Apache-2.0
"""Every benchmark runs at a tiny size, and asserts that what it compares is equal; no time is asserted."""

import logging

import argmax
import autofocus
import cost
import edges
import measure
import pytest
import scse
import slices
import startup
import torch
import training
from monai.data import set_track_meta


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """Fresh processes take seconds each. Memory that Python already has cannot be measured as a peak."""
    monkeypatch.setattr(measure, "in_fresh_process", lambda function, *arguments, environment: function(*arguments))
    monkeypatch.setattr(measure, "peak_of", lambda run: (run(), 1.0)[1])
    yield
    set_track_meta(True)  # a benchmark has its process to itself; tests share one
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize(
    ("rows", "sizes"),
    [
        (autofocus.rows, {"side": 8}),
        (scse.rows, {"side": 48}),
        (slices.rows, {"features": 4, "volume": (16, 24, 6)}),
        (edges.rows, {"sides": (32,)}),
        (training.rows, {"features": 2, "cases": 10}),
    ],
    ids=["autofocus", "scse", "slices", "edges", "training"],
)
def test_what_a_benchmark_compares_is_equal(rows, sizes):
    found = list(rows(**sizes, rounds=1))
    assert all(row.ratio > 0 for row in found)
    assert any(row.goal for row in found)


def test_the_label_maps_of_many_classes_are_equal():
    assert len(list(argmax.rows(side=40, classes=3))) == 3


@pytest.mark.slow
def test_what_the_package_adds_to_the_start_is_measured():
    assert len(list(startup.rows(rounds=1))) == 2


def test_every_point_of_the_figure_is_measured(tmp_path):
    cost.measure_all(tmp_path, largest=0, rounds=1)
    assert (tmp_path / "cost.png").stat().st_size > 1000
    assert len((tmp_path / "cost.csv").read_text().splitlines()) == 1 + len(cost.points(largest=0))


def test_ways_that_differ_are_not_timed():
    ways = {"ours": lambda: torch.ones(3), "peer": lambda: torch.full((3,), 1.001)}
    with pytest.raises(AssertionError, match="peer is"):
        measure.times(lambda: measure.Case(ways), rounds=1)
    measure.Case(ways, tolerance=1e-2).check()
    measure.Case(ways, unlike=("peer",)).check()


def test_a_ratio_is_that_of_a_round():
    times = measure.Times(ours=[1.0, 4.0, 1.0], peer=[2.0, 9.0, 3.0])
    assert times.ratio("peer", "ours") == (2.25, 2.0, 2.0)
    assert measure.speed_row("", "", times, ">= 2 x speed").met == "yes"
    assert measure.time_row("", "", times, "<= 0.4 x time").met == "no"


def test_turns_are_taken_in_the_reverse_order_every_other_round():
    turns = []
    measure.take_turns({name: lambda name=name: turns.append(name) for name in "ab"}, rounds=2)
    assert turns == ["a", "b", "b", "a"]
