# SPDX-License-Identifier: Apache-2.0
import gzip
import resource
import shutil

import itk
import nibabel
import numpy as np
import pytest

fault = pytest.mark.fault


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        pytest.param(lambda file: file[: len(file) // 2], ("damaged", "copy, download or export it"), marks=fault(1)),
        pytest.param(lambda file: file[:2000] + bytes([file[2000] ^ 0xFF]) + file[2001:], ("damaged",), marks=fault(2)),
        pytest.param(lambda file: b"", ("empty",), marks=fault(3)),
        pytest.param(lambda file: b"not an image at all", ("neither gzip nor NIfTI",), marks=fault(4)),
        pytest.param(gzip.decompress, ("not compressed", "rename it to", "scan.nii"), marks=fault(5)),
    ],
    ids=["cut off", "a flipped byte", "empty", "a text", "not compressed"],
)
def test_a_file_that_is_damaged_or_not_what_its_name_says(lab, spoil, words):
    path = lab.copy()
    path.write_bytes(spoil(path.read_bytes()))
    lab.segment(path).refused(path, *words)


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
def test_a_header_that_promises_more_than_the_memory_or_the_file_has(lab):
    path = lab.copy()
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[42:44] = np.array([400], "<i2").tobytes()
    path.write_bytes(gzip.compress(content))
    lab.segment(path).refused(path, "cut off", "its header promises")
    content[42:48] = np.array([30000] * 3, "<i2").tobytes()
    path.write_bytes(gzip.compress(content))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lab.segment(path).refused(path, "30000 x 30000 x 30000", "GB of memory")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1e6  # kB


@fault(30)
def test_a_path_with_spaces_and_signs(lab):
    path = lab.copy("my data/Übung ß/100% = &.nii.gz")
    lab.reproduces(lab.segment(path), path)
    path = lab.copy("my scans/a # b/c #1.nii.gz")
    lab.reproduces(lab.segment(lab.folder / "my scans"), path)
    # as a part of a configuration, MONAI takes it for something else
    lab.segment(path).refused(f"--input {path}", "would read # as a separator", "give the folder above it")


@fault(31)
def test_a_folder_that_is_not_there_or_has_no_images(lab):
    lab.segment(lab.folder / "nowhere").refused(lab.folder / "nowhere", "no such file or folder")
    lab.train(lab.folder / "nowhere").refused(lab.folder / "nowhere")
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


@fault(90)
def test_a_flipped_bit_in_compressed_voxels(lab):
    voxels = itk.image_from_array(np.ascontiguousarray(lab.scan.T))
    sources = {"a.mha": "a.mha", "b.nrrd": "b.nrrd", "c.mhd": "c.zraw", "d.nhdr": "d.raw.gz", "e.mgz": "e.mgz"}
    (lab.folder / "in").mkdir()
    nibabel.save(nibabel.MGHImage(lab.scan, lab.affine), lab.folder / "in" / "e.mgz")
    for name in sources:
        if name != "e.mgz":
            itk.imwrite(voxels, str(lab.folder / "in" / name), compression=True)
    attempt = lab.segment(lab.folder / "in").finished()
    assert len(list(attempt.output.glob("*_seg.nii.gz"))) == len(sources)
    for name, file in sources.items():
        copy = shutil.copytree(lab.folder / "in", lab.folder / name[0])
        content = bytearray((copy / file).read_bytes())
        content[len(content) // 2] ^= 0x10
        (copy / file).write_bytes(content)
        lab.segment(copy / name).refused(copy / file, "damaged", "copy, download or export it")
        (copy / file).write_bytes(content[: len(content) // 3])
        lab.segment(copy / name).refused(copy, "damaged")


@fault(99)
def test_names_with_dots(lab, write_series):
    for name in ("scan.v2.nii.gz", "scan.v3.nii.gz", "x.NII.GZ"):
        lab.copy(f"in/{name}")
    attempt = lab.segment(lab.folder / "in", save_attention=True).finished()
    names = {path.name.partition("_")[0] for path in attempt.output.glob("*_*") if path.suffix != ".json"}
    assert names == {"scan.v2", "scan.v3", "x"}
    (lab.folder / "dicom").mkdir()
    for number in (7, 8):
        write_series(lab.folder / "dicom" / f"1.2.840.113619.{number}", range(4), "1.2.3", voxels=lab.scan[..., :4])
    attempt = lab.segment(lab.folder / "dicom", output_dir=lab.folder / "dicom_out")
    names = {path.name for path in attempt.finished().output.rglob("*_seg.nii.gz")}
    assert names == {"1.2.840.113619.7_seg.nii.gz", "1.2.840.113619.8_seg.nii.gz"}
