# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from monai.transforms import LoadImage

from monai_attn.data import CheckingReader
from monai_attn.data.dicom import check_series
from monai_attn.transforms import SafeSaveImage, provenance_of

from ..conftest import BUNDLES, refused

# the steps along the axes of an oblique volume in mm (LPS), and the position of its first voxel
STEPS = np.array([[1.6, 1.2, 0], [-0.9, 1.2, 0], [0, 0, 4]])
CORNER = np.array([10, 20, 30])
VOXELS = np.arange(4 * 5 * 6).reshape(4, 5, 6)
PLACES = CORNER + np.outer(np.arange(6), STEPS[2])


def load(path):
    return LoadImage(image_only=True, ensure_channel_first=True)(path, CheckingReader())


@pytest.fixture(params=["slices", "frames"])
def write(request, write_series, tmp_path):
    """Writes a volume as a folder of slices, or as a file of frames, in other places than it says, or the same."""
    path = tmp_path / ("series" if request.param == "slices" else "series.dcm")
    return lambda places=PLACES, **tags: write_series(
        path, places, voxels=tags.pop("voxels", VOXELS), axes=tags.pop("axes", STEPS[:2]), **tags
    )


def lies_where_its_slices_lie(volume, voxels=VOXELS, places=PLACES) -> None:
    """Assert that every voxel is at its place in the world (RAS)."""
    for (i, j, k), value in np.ndenumerate(volume[0].numpy()):
        place = volume.affine.numpy() @ [i, j, k, 1] * [-1, -1, 1, 1]
        (index,) = np.nonzero((np.abs(places + STEPS[0] * i + STEPS[1] * j - place[:3]) < 1e-4).all(1))[0]
        assert voxels[i, j, index] == value


@pytest.mark.fault(71)
@pytest.mark.parametrize("order", [range(6), range(5, -1, -1), (0, 2, 4, 1, 3, 5), (2,)], ids=str)
@pytest.mark.parametrize("between", [None, "4", "-4", "7"])
def test_every_slice_lies_where_its_own_file_says(write, between, order, caplog):
    tags = {} if between is None else {"SpacingBetweenSlices": between}
    places, voxels = PLACES[[*order]], VOXELS[..., [*order]]
    volume = load(write(places, voxels=voxels, **tags))
    lies_where_its_slices_lie(volume, voxels, places)
    assert volume.shape == (1, 4, 5, len(order))
    if between in (None, "4") and order != (0, 2, 4, 1, 3, 5):
        assert caplog.records == []


@pytest.mark.fault(71)
@pytest.mark.parametrize(
    ("places", "words"),
    [
        (PLACES[[0, 1, 3, 4, 5]], "1 missing between the slices at 34.00 and 42.00 mm"),
        (PLACES[[0, 1, 2, 2, 3, 4]], "two slices lie at 38.00 mm"),
        (PLACES[[0, 1, 2] * 2], "two slices lie at 30.00 mm (and 2 more such places)"),
        (PLACES + np.outer([0, 0, 0, 1, 1, 1], [0, 0, 1]), "the slices at 38.00 and 43.00 mm are 5.00 mm apart"),
        (PLACES + np.outer(range(6), [0, 0.5, 0]), "shifted against each other, by up to 2.50 mm (tilted gantry?)"),
        (PLACES + np.outer([0, 0, 1, 0, 0, 0], [2, 0, 0]), "shifted against each other, by up to 2.00 mm"),
        (np.array([[0, 0, 1.08 ** k * k] for k in range(40)]), "not evenly spaced"),
    ],
    ids=["missing", "doubled", "two times", "uneven", "tilted", "one moved", "farther and farther"],
)  # fmt: skip
def test_slices_on_no_grid_are_refused(write, places, words):
    path = write(places, voxels=np.zeros((4, 5, len(places))))
    assert words in refused(path, load, path).problem


@pytest.mark.fault(71)
def test_slices_without_a_place_or_of_another_direction_are_refused(write_series, tmp_path):
    path = write_series(tmp_path / "a", PLACES, voxels=VOXELS, ImagePositionPatient=None)
    assert "it has no ImagePositionPatient" in refused(path / "1.2.3_000.dcm", load, path).problem
    path = write_series(tmp_path / "b.dcm", PLACES[:4], voxels=VOXELS)
    assert "it has 6 frames, and positions of 4" in refused(path, load, path).problem
    for number, places in enumerate((PLACES[:3], PLACES[3:])):
        write_series(tmp_path / f"c{number}", places, voxels=VOXELS[..., :3], axes=STEPS[:2] * (1 + number / 9))
    for file in (tmp_path / "c1").iterdir():
        file.rename(tmp_path / "c0" / f"more_{file.name}")
    assert "not parallel, or differ" in refused(tmp_path / "c0", load, tmp_path / "c0").problem


@pytest.mark.parametrize("positions", [[-5, -10, -15, -20], [0.0, 0.62, 1.25, 1.88], [7]])
def test_a_whole_series_is_loaded_in_order(write_series, tmp_path, positions):
    folder = write_series(tmp_path / "series", positions)
    volume = load(folder)
    order = np.argsort(positions)
    assert volume[0, 0, 0].flatten().tolist() == [10 * index for index in order] if len(positions) > 1 else True


def test_files_that_are_no_images_do_not_matter(write_series, tmp_path):
    folder = write_series(tmp_path / "series", [0, 2, 4])
    (folder / "broken.dcm").write_text("no DICOM")
    (folder / "preview.png").write_bytes(b"\x89PNG")
    (folder / "more").mkdir()
    first = (folder / "1.2.3_000.dcm").read_bytes()
    report = first.replace(b"1.2.840.10008.5.1.4.1.1.4\0", b"1.2.840.10008.1.3.10\0\0\0\0\0\0")  # a DICOMDIR
    (folder / "DICOMDIR").write_bytes(report[:400])
    check_series(folder)


def test_two_series_or_none_are_refused_with_what_there_is(write_series, tmp_path):
    assert "it holds: nothing" in refused(tmp_path, check_series, tmp_path).problem
    (tmp_path / "notes.txt").touch()
    assert "it holds: notes.txt" in refused(tmp_path, check_series, tmp_path).problem
    folder = write_series(tmp_path / "series", [0, 2, 4], "1.2.3", "soft tissue")
    write_series(folder, [0, 2], "1.2.4", "lung")
    problem = refused(folder, check_series, folder).problem
    assert "2 DICOM series" in problem
    assert "1.2.3 (soft tissue: 3 files, 1.2.3_000.dcm …)" in problem
    assert "1.2.4 (lung: 2 files, 1.2.4_000.dcm …)" in problem


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
    folder = write_series(tmp_path / "series", positions)
    assert words in refused(folder, check_series, folder).problem


@pytest.mark.parametrize("kept", [0.5, 0.99])
def test_a_slice_that_was_cut_off_is_named_not_dropped(write_series, tmp_path, kept):
    folder = write_series(tmp_path / "series", [0, 2, 4, 6])
    slice_ = folder / "1.2.3_003.dcm"  # the last one leaves no gap
    slice_.write_bytes(slice_.read_bytes()[: int(kept * slice_.stat().st_size)])
    assert "cut off" in refused(slice_, check_series, folder).problem


TO_LPS = np.diag([-1, -1, 1, 1])
METADATA = BUNDLES[0].parent / "kits_ct_egcnn_segmentation/configs/metadata.json"


def places_of(mask, affine):
    """The places of the voxels of a mask in the world, in mm, sorted."""
    return np.array(sorted((np.argwhere(mask) @ affine[:3, :3].T + affine[:3, 3]).round(3).tolist()))


@pytest.mark.parametrize(
    ("order", "angle"), [(range(6), 0.4), (range(5, -1, -1), 0), ((0, 2, 4, 1, 3, 5), -0.7)], ids=str
)
def test_a_dicom_seg_lies_on_its_series_for_highdicom_and_dcmqi(write, order, angle, tmp_path):
    highdicom = pytest.importorskip("highdicom")
    sine, cosine = np.sin(angle), np.cos(angle)
    turn = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
    image = load(write((PLACES @ turn)[[*order]], voxels=VOXELS[..., [*order]], axes=STEPS[:2] @ turn))
    image[:] = torch.randint(0, 3, image.shape)
    image[..., 2] = 0  # no frame of it is written
    options = {"metadata": METADATA, "class_names": ["kidney", "mine", "unused"], "provenance": lambda _: "a=b c"}
    SafeSaveImage(tmp_path / "out", output_ext=".dcm", **options)(image)
    file = tmp_path / "out" / "series_seg.dcm"
    assert provenance_of(file) == "a=b c"
    data = pydicom.dcmread(file)
    assert (data.PatientID, data.StudyInstanceUID, data.FrameOfReferenceUID) == ("P 7", "1.2", "1.2.9")
    assert data.ReferencedSeriesSequence[0].SeriesInstanceUID == "1.2.3"
    assert data.SeriesDescription == "Kidney tumor segmentation with EG-CNN"
    assert [segment.SegmentLabel for segment in data.SegmentSequence] == ["kidney", "mine"]
    assert data.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeValue == "64033007"
    assert data.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0].AlgorithmVersion == "0.1.0"
    volume = highdicom.seg.segread(file).get_volume(combine_segments=True)
    command = [Path(sys.executable).with_name("segimage2itkimage"), "--inputDICOM", file, "-t", "nii"]
    subprocess.run([*command, "--outputDirectory", tmp_path], check=True, capture_output=True)
    for value in (1, 2):
        expected = places_of(image[0].numpy() == value, TO_LPS @ image.affine.numpy())
        np.testing.assert_allclose(places_of(volume.array == value, volume.affine), expected, atol=2e-3)
        read = nibabel.load(tmp_path / f"{value}.nii.gz")
        np.testing.assert_allclose(places_of(np.asarray(read.dataobj) > 0, TO_LPS @ read.affine), expected, atol=2e-3)
