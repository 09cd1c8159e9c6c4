# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from monai.transforms import LoadImage

from monai_attn.data import CheckingReader
from monai_attn.data.formats import check_series
from monai_attn.errors import DataError


def problem(folder: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        check_series(folder)
    assert str(folder) in caught.value.what
    assert len(str(caught.value).splitlines()) == 3
    return caught.value


@pytest.mark.parametrize("positions", [[-5, -10, -15, -20], [0.0, 0.62, 1.25, 1.88], [7]])
def test_a_whole_series_is_loaded_in_order(write_series, tmp_path, positions):
    folder = write_series(tmp_path / "series", positions)
    volume = LoadImage(image_only=True, ensure_channel_first=True)(folder, CheckingReader())
    order = np.argsort(positions)
    assert volume[0, 0, 0].flatten().tolist() == [10 * index for index in order] if len(positions) > 1 else True


def test_files_that_are_no_images_do_not_matter(write_series, tmp_path):
    folder = write_series(tmp_path / "series", [0, 2, 4])
    (folder / "broken.dcm").write_text("no DICOM")
    (folder / "preview.png").write_bytes(b"\x89PNG")
    (folder / "more").mkdir()
    first = (folder / "1.2.3_000.dcm").read_bytes()
    report = first.replace(b"1.2.840.10008.5.1.4.1.1.2\0", b"1.2.840.10008.1.3.10\0\0\0\0\0\0")  # a DICOMDIR
    (folder / "DICOMDIR").write_bytes(report[:400])
    check_series(folder)


def test_a_folder_without_images_is_refused_with_what_it_holds(tmp_path):
    assert "it holds: nothing" in problem(tmp_path).problem
    (tmp_path / "notes.txt").touch()
    assert "it holds: notes.txt" in problem(tmp_path).problem


def test_two_series_are_listed_not_the_first_taken(write_series, tmp_path):
    folder = write_series(tmp_path / "series", [0, 2, 4], "1.2.3", "soft tissue")
    write_series(folder, [0, 2], "1.2.4", "lung")
    error = problem(folder)
    assert "2 DICOM series" in error.problem
    assert "1.2.3 (soft tissue: 3 files, 1.2.3_000.dcm …)" in error.problem
    assert "1.2.4 (lung: 2 files, 1.2.4_000.dcm …)" in error.problem


@pytest.mark.parametrize(
    ("positions", "words"),
    [
        ([0, 2, 4, 10, 12, 14, 18, 20], "every 2.00 mm: 2 missing between the slices at 4.00 and 10.00 mm (and 1 more"),
        ([0, 2, 4, 4, 6, 8], "two slices lie at 4.00 mm"),
        ([0, 0, 2, 2, 4, 4], "every 2.00 mm: two slices lie at 0.00 mm (and 2 more"),
        ([0, 0], "two slices lie at 0.00 mm"),
        ([0, 2, 4, 6.5, 8.5], "the slices at 4.00 and 6.50 mm are 2.50 mm apart"),
    ],
)
def test_slices_that_are_not_evenly_spaced_are_refused_with_their_positions(write_series, tmp_path, positions, words):
    assert words in problem(write_series(tmp_path / "series", positions)).problem


@pytest.mark.parametrize("kept", [0.5, 0.99])
def test_a_slice_that_was_cut_off_is_named_not_dropped(write_series, tmp_path, kept):
    folder = write_series(tmp_path / "series", [0, 2, 4, 6])
    slice_ = folder / "1.2.3_003.dcm"  # the last one leaves no gap
    slice_.write_bytes(slice_.read_bytes()[: int(kept * slice_.stat().st_size)])
    error = problem(folder)
    assert error.what == str(slice_)
    assert "cut off" in error.problem
