# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gzip
import os
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest

from monai_attn.data.reader.nifti import check_nifti, describe_affine, read_header, warn_if_corrected
from monai_attn.errors import DataError


def save(path: Path, voxels: np.ndarray | None = None, kind: type = nibabel.Nifti1Image) -> Path:
    if voxels is None:
        voxels = np.random.RandomState(0).rand(8, 9, 10).astype(np.float32)
    nibabel.save(kind(voxels, np.diag([1.0, 1.0, 2.5, 1.0])), path)
    return path


def with_header(path: Path, **fields: object) -> Path:
    """Write other values into the header of an uncompressed file, past nibabel's checks."""
    header = read_header(str(path))
    for name, value in fields.items():
        header[name] = value
    content = path.read_bytes()
    path.write_bytes(header.binaryblock + content[len(header.binaryblock) :])
    return path


def problem(path: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        check_nifti(str(path))
    assert caught.value.what == str(path)
    assert len(str(caught.value).splitlines()) == 3
    return caught.value


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize(
    ("name", "dtype"), [("a.nii", ">i2"), ("B.NII.GZ", "uint8"), ("with space, # and ü.nii.gz", "float64")]
)
def test_a_whole_file_of_real_numbers_passes(tmp_path, name, dtype, kind):
    check_nifti(str(save(tmp_path / name, np.arange(24).reshape(2, 3, 4).astype(dtype), kind)))


@pytest.mark.parametrize("part", [0.02, 0.5, 0.95])
def test_half_a_compressed_file_is_refused_though_some_readers_take_it_with_zeros(tmp_path, part):
    path = save(tmp_path / "a.nii.gz")
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    assert "damaged: Compressed file ended" in problem(path).problem


def test_half_a_file_is_refused_with_the_bytes_that_it_should_have(tmp_path):
    half = save(tmp_path / "a.nii").read_bytes()[:2000]
    (tmp_path / "a.nii").write_bytes(half)
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(half))
    for name in ("a.nii", "a.nii.gz"):
        assert problem(tmp_path / name).problem == "it is cut off: its header promises 3,232 bytes, it holds 2,000"


@pytest.mark.parametrize("position", [0.3, 0.7, 0.999])
def test_one_wrong_byte_in_a_compressed_file_is_noticed(tmp_path, position):
    path = save(tmp_path / "a.nii.gz")
    content = bytearray(path.read_bytes())
    content[int(position * len(content))] ^= 0x10
    path.write_bytes(content)
    assert "damaged" in problem(path).problem


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.nii.gz", b"<!DOCTYPE html><title>404", "neither gzip nor NIfTI; it begins with '<!DOCTYPE html>"),
        ("a.nii", b"<!DOCTYPE html><title>404", "not NIfTI; it begins with '<!DOCTYPE html>"),
        ("a.nii.gz", gzip.compress(b"hello" * 200), "not NIfTI; it begins with 'hello"),
    ],
)
def test_text_by_the_name_of_an_image_is_refused_and_shown(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    assert words in problem(tmp_path / name).problem


def test_a_name_that_is_wrong_about_the_compression_is_to_be_changed(tmp_path):
    save(tmp_path / "a.nii").rename(tmp_path / "a.nii.gz")
    assert problem(tmp_path / "a.nii.gz").fix == f"rename it to {tmp_path / 'a.nii'}"
    save(tmp_path / "b.nii.gz").rename(tmp_path / "b.nii")
    assert problem(tmp_path / "b.nii").fix == f"rename it to {tmp_path / 'b.nii.gz'}"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"dim": [3, 80, 90, 100, 1, 1, 1, 1]}, "promises 2,880,352 bytes"),
        ({"dim": [3, 8, -9, 10, 1, 1, 1, 1]}, "size 8 x -9 x 10"),
        ({"dim": [0, 8, 9, 10, 1, 1, 1, 1]}, "size 0"),
        ({"datatype": 7777}, "header cannot be right"),
    ],
)
def test_a_header_of_nonsense_is_refused(tmp_path, fields, words):
    assert words in problem(with_header(save(tmp_path / "a.nii"), **fields)).problem


def test_a_header_that_promises_more_than_there_is_memory_is_refused_if_the_system_tells(tmp_path, monkeypatch):
    path = with_header(save(tmp_path / "a.nii"), dim=[3, 30000, 30000, 30000, 1, 1, 1, 1])
    assert re.search(r"30000 x 30000 x 30000: 100,583 GB, .* memory", problem(path).problem)
    monkeypatch.delattr(os, "sysconf")
    assert "cut off" in problem(path).problem


def test_complex_numbers_and_colors_are_refused_by_their_name(tmp_path):
    assert "complex64" in problem(save(tmp_path / "c.nii.gz", np.ones((4, 4, 4), np.complex64))).problem
    colors = np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    assert "RGB" in problem(save(tmp_path / "rgb.nii.gz", colors)).problem


def test_an_affine_is_described_by_spacing_axes_and_origin():
    affine = np.array([[0, -2, 0, 10], [1, 0, 0, -20.5], [0, 0, 3.25, 0], [0, 0, 0, 1]])
    assert describe_affine(affine) == "spacing 1 x 2 x 3.25 mm, axes ALS, origin (10, -20.5, 0)"
    assert describe_affine(np.diag([1, np.nan, 1, 1])) == "spacing 1 x nan x 1 mm, origin (0, 0, 0)"
    assert describe_affine(np.diag([0.5, 2, 1])) == "spacing 0.5 x 2 mm, origin (0, 0)"


def test_an_affine_other_than_the_headers_is_told_with_both(tmp_path, caplog):
    path = str(save(tmp_path / "a.nii.gz"))
    warn_if_corrected(path, np.diag([1, 1, 2.5, 1]))
    assert caplog.records == []
    warn_if_corrected(path, np.diag([-1, 1, 1, 1]))
    for words in (path, "pixdim [1.0, 1.0, 2.5]", "[0.0, 0.0, 2.5, 0.0]", "used: spacing 1 x 1 x 1 mm, axes LAS"):
        assert words in caplog.text


def test_the_header_is_read_as_it_stands_in_the_file(tmp_path):
    path = with_header(save(tmp_path / "a.nii"), pixdim=[1, 1, 1, 0, 0, 0, 0, 0])
    assert read_header(str(path))["pixdim"][3] == 0
    assert nibabel.load(path).header["pixdim"][3] == 1
