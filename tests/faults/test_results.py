# SPDX-License-Identifier: Apache-2.0
import os
import platform
from pathlib import Path

import numpy as np
import pytest
import torch

fault = pytest.mark.fault


@fault(33)
def test_a_result_that_is_there_already(lab):
    path = lab.copy()
    first = lab.segment(path).finished()
    result = first.output / "scan_seg.nii.gz"
    written = result.stat().st_mtime_ns
    again = lab.segment(path, output_dir=first.output).finished()
    assert "1 of 1 cases are finished" in again.screen
    assert result.stat().st_mtime_ns == written

    weights = torch.load(lab.bundle.weights, weights_only=True)
    torch.save({name: value * 1.5 for name, value in weights.items()}, lab.folder / "other.pt")
    other = lab.segment(path, output_dir=first.output, checkpoint=str(lab.folder / "other.pt"))
    assert other.code == 2
    assert "it was made with another checkpoint" in other.screen
    assert "--overwrite True" in other.screen
    assert result.stat().st_mtime_ns == written
    lab.segment(path, output_dir=first.output, overwrite=True).finished()
    assert result.stat().st_mtime_ns > written


@fault(34)
def test_a_folder_that_cannot_be_written(lab):
    path = lab.copy()
    (lab.folder / "file").write_text("")
    for part in ("", "/results"):
        output = Path(f"{lab.folder / 'file'}{part}")
        attempt = lab.segment(path, output_dir=output)
        attempt.refused(output, "cannot be written", "give another output_dir")
        assert (lab.folder / "file").read_text() == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk without room")
@fault(35)
def test_no_room_for_one_of_the_results(lab):
    for name in ("a", "b", "c"):
        lab.copy(f"in/{name}.nii.gz")
    output = lab.folder / "out"
    output.mkdir()
    # what is written to the draft of the result goes where there is no room
    (output / f".partial-{platform.node()}-{os.getpid()}-b_seg.nii.gz").symlink_to("/dev/full")
    attempt = lab.segment(lab.folder / "in", output_dir=output)
    assert attempt.code == 3
    said = ("1 of 3 cases have no result", "b_seg.nii.gz", "No space left on device", "make room")
    assert [words for words in said if words not in attempt.screen] == []
    assert not list(output.glob(".partial*"))
    assert sorted(path.name for path in output.glob("*_seg*")) == ["a_seg.nii.gz", "c_seg.nii.gz"]
    lab.segment(lab.folder / "in", output_dir=output).finished()
    assert np.array_equal(np.asarray(attempt.mask("b.nii.gz").dataobj), lab.mask)
