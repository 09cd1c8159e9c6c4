# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gzip
import logging
import os
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest

from monai_attn.data import check_file, nifti
from monai_attn.data.files import _check_content
from monai_attn.data.nifti import check_nifti, describe_affine, read_header, warn_if_corrected
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
        check_file(path)
    assert str(path) in caught.value.what
    assert caught.value.fix
    assert len(str(caught.value).splitlines()) == 3
    return caught.value


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "B.NII.GZ", "with space, # and ü.nii.gz"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_a_whole_nifti_file_passes_whatever_its_name(tmp_path, name, kind):
    check_file(save(tmp_path / name, kind=kind))


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float64", ">i2", ">f4", "float32"])
def test_every_type_of_real_number_passes(tmp_path, dtype):
    check_file(save(tmp_path / "a.nii.gz", np.arange(24).reshape(2, 3, 4).astype(dtype)))


def test_a_file_that_is_not_there_is_named(tmp_path):
    assert "no such file" in problem(tmp_path / "none.nii.gz").problem


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    path = save(tmp_path / "a.nii.gz")

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr("monai_attn.data.files._check_content", refuse)
    assert "permission" in problem(path).problem


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.png", "a.nrrd"])
def test_an_empty_file_is_refused(tmp_path, name):
    (tmp_path / name).touch()
    assert "0 bytes" in problem(tmp_path / name).problem


@pytest.mark.parametrize("name", ["a.nii.gz", "a.png"])
def test_a_git_lfs_pointer_is_recognised(tmp_path, name):
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    assert "git lfs pull" in problem(tmp_path / name).fix


@pytest.mark.parametrize("part", [0.02, 0.5, 0.95])
def test_half_a_compressed_file_is_refused_though_some_readers_take_it_with_zeros(tmp_path, part):
    path = save(tmp_path / "a.nii.gz")
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    assert "damaged: Compressed file ended" in problem(path).problem


def test_half_an_uncompressed_file_is_refused_with_the_bytes_that_it_should_have(tmp_path):
    path = save(tmp_path / "a.nii")
    path.write_bytes(path.read_bytes()[:2000])
    assert problem(path).problem == "it is cut off: its header promises 3,232 bytes, it holds 2,000"


def test_half_a_file_that_was_compressed_afterwards_is_refused(tmp_path):
    whole = save(tmp_path / "a.nii").read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(whole[:2000]))
    assert "promises 3,232 bytes, it holds 2,000" in problem(tmp_path / "a.nii.gz").problem


@pytest.mark.parametrize("position", [0.3, 0.7, 0.999])
def test_one_wrong_byte_in_a_compressed_file_is_noticed(tmp_path, position):
    path = save(tmp_path / "a.nii.gz")
    content = bytearray(path.read_bytes())
    content[int(position * len(content))] ^= 0x10
    path.write_bytes(content)
    assert "damaged" in problem(path).problem


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii"])
def test_text_by_the_name_of_an_image_is_refused_and_shown(tmp_path, name):
    (tmp_path / name).write_text("<!DOCTYPE html><title>404</title>")
    assert "'<!DOCTYPE html>" in problem(tmp_path / name).problem


def test_compressed_text_by_the_name_of_an_image_is_refused(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(b"hello" * 200))
    assert "not NIfTI; it begins with 'hello" in problem(tmp_path / "a.nii.gz").problem


def test_a_name_that_is_wrong_about_the_compression_is_to_be_changed(tmp_path):
    save(tmp_path / "a.nii").rename(tmp_path / "a.nii.gz")
    assert problem(tmp_path / "a.nii.gz").fix == f"rename it to {tmp_path / 'a.nii'}"
    save(tmp_path / "b.nii.gz").rename(tmp_path / "b.nii")
    assert problem(tmp_path / "b.nii").fix == f"rename it to {tmp_path / 'b.nii.gz'}"


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_header_that_promises_more_than_there_is_memory_is_refused_before_memory_is_taken(tmp_path, ending):
    path = with_header(save(tmp_path / "a.nii"), dim=[3, 30000, 30000, 30000, 1, 1, 1, 1])
    if ending == ".nii.gz":
        (tmp_path / "a.nii.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert re.search(r"30000 x 30000 x 30000: 100,583 GB, .* memory", problem(tmp_path / f"a{ending}").problem)


def test_a_header_with_too_large_a_size_that_memory_could_hold_is_refused_too(tmp_path):
    path = with_header(save(tmp_path / "a.nii"), dim=[3, 80, 90, 100, 1, 1, 1, 1])
    assert "promises 2,880,352 bytes" in problem(path).problem


def test_a_system_that_does_not_tell_its_memory_limits_nothing(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "sysconf")
    path = with_header(save(tmp_path / "a.nii"), dim=[3, 30000, 30000, 30000, 1, 1, 1, 1])
    assert "cut off" in problem(path).problem


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"dim": [3, 8, 0, 10, 1, 1, 1, 1]}, "size 8 x 0 x 10"),
        ({"dim": [3, 8, -9, 10, 1, 1, 1, 1]}, "size 8 x -9 x 10"),
        ({"dim": [0, 8, 9, 10, 1, 1, 1, 1]}, "size 0"),
        ({"datatype": 7777}, "header cannot be right"),
    ],
)
def test_a_header_of_nonsense_is_refused(tmp_path, fields, words):
    assert words in problem(with_header(save(tmp_path / "a.nii"), **fields)).problem


def test_complex_numbers_and_colours_are_refused_by_their_name(tmp_path):
    assert "complex64" in problem(save(tmp_path / "c.nii.gz", np.ones((4, 4, 4), np.complex64))).problem
    colours = np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    assert "RGB" in problem(save(tmp_path / "rgb.nii.gz", colours)).problem


def test_a_file_is_read_to_its_end_once_until_it_changes(tmp_path, monkeypatch):
    looks = []
    monkeypatch.setattr("monai_attn.data.files.check_nifti", lambda path: looks.append(path) or check_nifti(path))
    _check_content.cache_clear()
    path = save(tmp_path / "a.nii.gz")
    check_file(path)
    check_file(str(path))
    assert len(looks) == 1
    path.write_bytes(path.read_bytes()[:100])
    problem(path)
    problem(path)  # an error is not remembered
    assert len(looks) == 3


# --- what nibabel and MONAI make of a header ---------------------------------------------------------------------


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
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    for words in (path, "pixdim [1.0, 1.0, 2.5]", "[0.0, 0.0, 2.5, 0.0]", "used: spacing 1 x 1 x 1 mm, axes LAS"):
        assert words in record.getMessage()


def test_the_header_of_the_file_is_not_mended(tmp_path):
    path = with_header(save(tmp_path / "a.nii"), pixdim=[1, 1, 1, 0, 0, 0, 0, 0])
    assert nifti.read_header(str(path))["pixdim"][3] == 0
    assert nibabel.load(path).header["pixdim"][3] == 1
