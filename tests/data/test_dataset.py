# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging

import pytest
import torch
from monai.data import DataLoader

from monai_attn.data import CaseDataset
from monai_attn.data.reader import failure_in
from monai_attn.errors import ConfigError, DataError, Failure

ERRORS = {
    "empty.nii": DataError("empty.nii", "it is empty", "copy it again"),
    "odd.nii": ZeroDivisionError("division by zero\nand more"),
    "config": ConfigError("pixdim", "it is 0", "give a number"),
    "large.nii": MemoryError("30 TiB"),
}
DATA = [{"image": name} for name in ("good.nii", "empty.nii", ["odd.nii", "other.nii"], "large.nii")]


def prepare(case):
    name = case["image"][0] if isinstance(case["image"], list) else case["image"]
    if name in ERRORS:
        raise ERRORS[name]
    return {"image": torch.ones(1, 2)}


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


def test_the_trace_goes_to_the_log(caplog):
    with caplog.at_level(logging.ERROR):
        assert failure_in(CaseDataset(DATA, prepare, on_error="skip")[1]).what == "empty.nii"
    assert caplog.records[0].exc_info
    assert "empty.nii cannot be prepared" in caplog.text


@pytest.mark.parametrize(("case", "options"), [("empty.nii", {}), ("config", {"on_error": "skip"})])
def test_by_default_an_error_is_raised_and_one_of_the_configuration_anyway(case, options):
    with pytest.raises(RuntimeError) as caught:
        CaseDataset([{"image": case}], prepare, **options)[0]
    assert caught.value.__cause__ is ERRORS[case]


def test_another_word_than_stop_and_skip_is_refused():
    with pytest.raises(ValueError, match="ignore"):
        CaseDataset(DATA, prepare, on_error="ignore")
