# SPDX-License-Identifier: Apache-2.0
"""Files that are damaged, or are not what their names say, or lie where nobody expects them."""

from __future__ import annotations

import gzip
import resource

import nibabel
import numpy as np
import pytest

fault = pytest.mark.fault


@fault(1)
def test_a_file_that_is_cut_off(lab):
    path = lab.copy()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    lab.segment(path).refused(path, "damaged", "copy, download or export it again")


@fault(2)
def test_a_flipped_byte(lab):
    path = lab.copy()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    lab.segment(path).refused(path, "damaged")


@fault(3)
def test_an_empty_file(lab):
    path = lab.copy()
    path.write_bytes(b"")
    lab.segment(path).refused(path, "empty")


@fault(4)
def test_a_text_with_the_name_of_an_image(lab):
    path = lab.folder / "scan.nii.gz"
    path.write_text("not an image at all")
    lab.segment(path).refused(path, "neither gzip nor NIfTI")


@fault(5)
def test_an_image_that_is_not_compressed_as_its_name_says(lab):
    path = lab.copy()
    path.write_bytes(gzip.decompress(path.read_bytes()))
    lab.segment(path).refused(path, "not compressed", f"rename it to {str(path)[:-3]}")


@fault(6)
def test_a_bad_file_among_good_ones(lab):
    for name in ("p1", "p2", "p3"):
        path = lab.copy(f"in/{name}.nii.gz")
        if name == "p2":
            path.write_bytes(path.read_bytes()[:100])
    attempt = lab.segment(lab.folder / "in")
    assert attempt.code == 3
    assert "1 of 3 cases have no result" in attempt.screen
    assert "p2.nii.gz" in attempt.screen
    for name in ("p1", "p3"):
        assert np.array_equal(np.asarray(attempt.mask(f"{name}.nii.gz").dataobj), lab.mask)
    assert len(list(attempt.output.glob("*_seg*"))) == 2


@fault(7)
def test_a_header_that_promises_more_than_there_is_memory_for(lab):
    path = lab.copy()
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[42:48] = np.array([30000] * 3, (content[40:42] == b"\x03\x00" and "<i2") or ">i2").tobytes()
    path.write_bytes(gzip.compress(content))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lab.segment(path).refused(path, "30000 x 30000 x 30000", "GB of memory")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1e6  # kB


@fault(7)
def test_a_header_that_promises_more_than_the_file_holds(lab):
    path = lab.copy()
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[42:44] = np.array([400], "<i2").tobytes()
    path.write_bytes(gzip.compress(content))
    lab.segment(path).refused(path, "cut off", "its header promises")


@fault(30)
def test_a_path_with_spaces_and_signs(lab):
    path = lab.copy("my data/Übung ß/100% = &.nii.gz")
    lab.reproduces(lab.segment(path), path)
    path = lab.copy("my scans/a # b/c #1.nii.gz")
    lab.reproduces(lab.segment(lab.folder / "my scans"), path)
    # as a part of a configuration, MONAI takes it for something else
    lab.segment(path).refused(f"--input {path}", "would read it as '::'", "give the folder above it")


@fault(31)
def test_a_folder_that_is_not_there(lab):
    lab.segment(lab.folder / "nowhere").refused(lab.folder / "nowhere", "no such file or folder")
    lab.train(lab.folder / "nowhere").refused(lab.folder / "nowhere")


@fault(31)
def test_a_folder_without_images(lab):
    (lab.folder / "in").mkdir()
    (lab.folder / "in" / "notes.txt").write_text("nothing here")
    lab.segment(lab.folder / "in").refused(lab.folder / "in", ".nii.gz", "notes.txt")
    lab.train(lab.folder / "in").refused(lab.folder / "in", "notes.txt")


@fault(32)
def test_two_images_of_one_name(lab):
    for folder in ("subA", "subB"):
        lab.copy(f"in/{folder}/t1.nii.gz")
    attempt = lab.segment(lab.folder / "in").finished()
    found = sorted(attempt.output.rglob("*_seg.nii.gz"))
    assert [str(path.relative_to(attempt.output)) for path in found] == ["subA/t1_seg.nii.gz", "subB/t1_seg.nii.gz"]
    assert all(np.array_equal(np.asarray(nibabel.load(path).dataobj), lab.mask) for path in found)
