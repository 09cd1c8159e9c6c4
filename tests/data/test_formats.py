# SPDX-License-Identifier: Apache-2.0
import gzip
import os
from functools import partial

import itk
import nibabel
import numpy as np
import pytest

from monai_attn.data.formats import check_nifti, check_stream, correct_affine, describe_affine, read_header
from monai_attn.errors import DataError

from ..conftest import refused

VOXELS = np.random.RandomState(0).rand(8, 9, 10).astype(np.float32)
HTML = b"<!DOCTYPE html><title>404"


def nifti(voxels: np.ndarray = VOXELS, kind: type = nibabel.Nifti1Image, **fields: object) -> bytes:
    """The content of a file, with other values in its header past nibabel's checks."""
    image = kind(voxels, np.diag([1.0, 1.0, 2.5, 1.0]))
    content = image.to_bytes()
    header = type(image.header)(content[: image.header.sizeof_hdr], check=False)
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + content[len(header.binaryblock) :]


def flipped(content: bytes, position: float) -> bytes:
    index = int(position * len(content))
    return content[:index] + bytes([content[index] ^ 0x10]) + content[index + 1 :]


packed = partial(gzip.compress, mtime=0)  # the names of tests must not depend on the time
WHOLE, PACKED = nifti(), packed(nifti())
HUGE = nifti(dim=[3, 30000, 30000, 30000, 1, 1, 1, 1])


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize(
    ("name", "dtype"), [("a.nii", ">i2"), ("B.NII.GZ", "uint8"), ("with space, # and ü.nii.gz", "float64")]
)
def test_a_whole_file_of_real_numbers_passes(tmp_path, name, dtype, kind):
    content = nifti(np.arange(24).reshape(2, 3, 4).astype(dtype), kind)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.lower().endswith(".gz") else content)
    check_nifti(str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.nii.gz", PACKED[: len(PACKED) // 2], "damaged: Compressed file ended"),
        ("a.nii.gz", flipped(PACKED, 0.3), "damaged"),
        ("a.nii.gz", flipped(PACKED, 0.999), "damaged"),
        ("a.nii.gz", packed(WHOLE[:2000]), "it is cut off: its header promises 3,232 bytes, it holds 2,000"),
        ("a.nii", WHOLE[:2000], "it is cut off: its header promises 3,232 bytes, it holds 2,000"),
        ("a.nii", nifti(dim=[3, 80, 90, 100, 1, 1, 1, 1]), "promises 2,880,352 bytes"),
        ("a.nii.gz", packed(HUGE), "30000 x 30000 x 30000: 100,583 GB, and this machine has"),
        ("a.nii", nifti(dim=[3, 8, -9, 10, 1, 1, 1, 1]), "size 8 x -9 x 10"),
        ("a.nii", nifti(datatype=7777), "header cannot be right"),
        ("a.nii.gz", HTML, "neither gzip nor NIfTI; it begins with '<!DOCTYPE html>"),
        ("a.nii", HTML, "not NIfTI; it begins with '<!DOCTYPE html>"),
        ("a.nii.gz", packed(b"hello" * 200), "not NIfTI; it begins with 'hello"),
        ("a.nii.gz", WHOLE, "not compressed by gzip\n  fix:     rename it to {folder}/a.nii"),
        ("a.nii", PACKED, "does not end in .gz\n  fix:     rename it to {folder}/a.nii.gz"),
        ("a.nii", nifti(VOXELS.astype(np.complex64)), "its voxels are complex64 numbers"),
        ("a.nii", nifti(np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])), "its voxels are colors (RGB)"),
    ],
)
def test_what_is_no_whole_volume_of_real_numbers_is_refused(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    path = str(tmp_path / name)
    assert words.format(folder=tmp_path) in str(refused(path, check_nifti, path))


def test_a_system_that_does_not_tell_its_memory_limits_nothing(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "sysconf")
    (tmp_path / "a.nii").write_bytes(HUGE)
    with pytest.raises(DataError, match="cut off"):
        check_nifti(str(tmp_path / "a.nii"))


def test_an_affine_is_described_by_spacing_axes_and_origin():
    affine = np.array([[0, -2, 0, 10], [1, 0, 0, -20.5], [0, 0, 3.25, 0], [0, 0, 0, 1]])
    assert describe_affine(affine) == "spacing 1 x 2 x 3.25 mm, axes ALS, origin (10, -20.5, 0)"
    assert describe_affine(np.diag([1, np.nan, 1, 1])) == "spacing 1 x nan x 1 mm, origin (0, 0, 0)"
    assert describe_affine(np.diag([0.5, 2, 1])) == "spacing 0.5 x 2 mm, origin (0, 0)"


def test_an_affine_other_than_that_in_the_file_is_told_with_both(tmp_path, caplog):
    path = tmp_path / "a.nii"
    path.write_bytes(nifti(pixdim=[1, 1, 1, 0, 0, 0, 0, 0]))
    assert read_header(str(path))["pixdim"][3] == 0  # nibabel makes it 1
    correct_affine(str(path), np.diag([1, 1, 2.5, 1]))
    assert caplog.records == []
    correct_affine(str(path), np.diag([-1, 1, 1, 1]))
    for words in (
        str(path),
        "pixdim [1.0, 1.0, 0.0]",
        "[0.0, 0.0, 2.5, 0.0]",
        "used: spacing 1 x 1 x 2.5 mm, axes RAS",
    ):
        assert words in caplog.text


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("a.mha", b"CompressedDataSize = ", b"CompressedDataSize = 1"),
        ("a.mha", b"CompressedDataSize", b"CompressedDataSizf"),
        ("a.mha", b"DimSize = 10 9 8", b"DimSize = 10 9 1"),
        ("a.nrrd", b"sizes: 10 9 8", b"sizes: 10 9 9"),
    ],
)
def test_a_header_that_does_not_fit_its_compressed_voxels_is_refused(tmp_path, name, old, new):
    path = tmp_path / name
    itk.imwrite(itk.image_from_array(VOXELS), str(path), compression=True)
    check_stream(str(path))
    path.write_bytes(path.read_bytes().replace(old, new))
    assert "its header does not fit its voxels" in refused(path, check_stream, str(path)).problem
