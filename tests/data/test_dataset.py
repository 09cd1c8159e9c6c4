# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging

import pytest
import torch
from monai.data import DataLoader

from monai_attn.data import CaseDataset
from monai_attn.data.dataset import failure_in
from monai_attn.errors import ConfigError, DataError, Failure


def prepare(case):
    errors = {
        "empty.nii": DataError("empty.nii", "it is empty", "copy it again"),
        "odd.nii": ZeroDivisionError("division by zero\nand more"),
        "config": ConfigError("pixdim", "it is 0", "give a number"),
        "large.nii": MemoryError("30 TiB"),
    }
    name = case["image"][0] if isinstance(case["image"], list) else case["image"]
    if name in errors:
        raise errors[name]
    return {"image": torch.ones(1, 2)}


DATA = [{"image": name} for name in ("good.nii", "empty.nii", ["odd.nii", "other.nii"], "large.nii")]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_case_becomes_an_item_that_says_what_is_wrong(workers):
    loader = DataLoader(CaseDataset(DATA, prepare, on_error="skip"), batch_size=1, num_workers=workers)
    good, empty, odd, large = loader
    assert torch.equal(good["image"], torch.ones(1, 1, 2))
    assert failure_in(good) is None
    assert failure_in(empty) == Failure("empty.nii", "it is empty", "copy it again")
    assert failure_in(odd) == Failure(
        "odd.nii", "ZeroDivisionError: division by zero", "see the trace in the log", expected=False
    )
    assert failure_in(large).problem == "memory ran out: 30 TiB"


def test_an_item_that_was_not_collated_says_the_same():
    assert failure_in(CaseDataset(DATA, prepare, on_error="skip")[1]).what == "empty.nii"


def test_the_trace_goes_to_the_log(caplog):
    with caplog.at_level(logging.ERROR):
        assert failure_in(CaseDataset(DATA, prepare, on_error="skip")[1])
    assert caplog.records[0].exc_info
    assert "empty.nii cannot be prepared" in caplog.text


def test_by_default_the_error_is_raised_with_what_it_came_from():
    with pytest.raises(RuntimeError) as caught:
        CaseDataset(DATA, prepare)[1]
    assert isinstance(caught.value.__cause__, DataError)


def test_an_error_of_the_configuration_is_raised_anyway():
    with pytest.raises(RuntimeError) as caught:
        CaseDataset([{"image": "config"}], prepare, on_error="skip")[0]
    assert isinstance(caught.value.__cause__, ConfigError)


def test_another_word_than_stop_and_skip_is_refused():
    with pytest.raises(ValueError, match="ignore"):
        CaseDataset(DATA, prepare, on_error="ignore")
