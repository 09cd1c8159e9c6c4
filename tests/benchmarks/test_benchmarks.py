# SPDX-License-Identifier: Apache-2.0
"""Every benchmark runs at a tiny size, and asserts that what it compares is equal; no time is asserted."""

import logging

import argmax
import autofocus
import edges
import measure
import pytest
import scse
import slices
import torch
import training
import waits
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
        (argmax.rows, {"side": 32, "classes": 3}),
        (autofocus.rows, {"side": 8, "rounds": 1}),
        (scse.rows, {"side": 48, "batch": 2, "rounds": 1}),
        (slices.rows, {"features": 4, "volume": (16, 24, 6), "rounds": 1}),
        (edges.rows, {"side": 32, "rounds": 1}),
        pytest.param(training.rows, {"cases": 6, "rounds": 1}, marks=pytest.mark.slow),
        pytest.param(waits.rows, {"cases": 3, "checked": 6, "side": 64, "rounds": 1}, marks=pytest.mark.slow),
    ],
    ids=lambda value: getattr(value, "__module__", ""),
)
def test_what_a_benchmark_compares_is_equal(rows, sizes):
    assert all(row.ratio > 0 and row.met in ("yes", "no") for row in rows(**sizes))


def test_the_usual_training_ends_with_the_same_weights():
    training.check(cases=6)


def test_ways_that_differ_are_not_timed():
    case = measure.Case(lambda: torch.ones(3), lambda: torch.full((3,), 1.001))
    with pytest.raises(AssertionError, match="ours is"):
        measure.time_row("", "", ">= 1 x speed", lambda: case, rounds=1)
    case._replace(tolerance=1e-2).check()
    case._replace(tolerance=None).check()


def test_a_ratio_is_the_median_of_the_rounds():
    times = [1.0, 4.0, 1.0], [2.0, 9.0, 3.0]
    row = measure.ratio_row("", "", ">= 2.25 x speed", *times)
    assert (row.ratio, row.of_minima, row.met) == (2.25, "2.00", "yes")
    assert measure.ratio_row("", "", "<= 0.4 x time", *times).met == "no"


def test_turns_are_taken_in_the_reverse_order_every_other_round():
    turns = []
    measure.take_turns(*(lambda name=name: turns.append(name) for name in "ab"), rounds=2)
    assert turns == ["a", "b", "b", "a"]
