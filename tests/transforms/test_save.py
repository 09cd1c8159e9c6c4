# SPDX-License-Identifier: Apache-2.0
import errno

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import SaveImaged
from PIL import Image

from monai_attn.errors import ConfigError, DataError
from monai_attn.transforms import SafeSaveImage, SafeSaveImaged, provenance_of

from ..conftest import refused

AFFINE = torch.tensor([[-1.1, 0, 0, 3], [0, 0, 1.2, -4], [0, 2.5, 0, 5], [0, 0, 0, 1]], dtype=torch.float64)


def label_map(path, shape=(1, 6, 7, 8), channels=True):
    meta = {"filename_or_obj": str(path), "spatial_shape": np.array(shape[1:] if channels else shape)}
    return MetaTensor(torch.randint(0, 3, shape, dtype=torch.uint8), affine=AFFINE, meta=meta)


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("shape", [(35, 51, 1), (1, 1, 4), (5, 6, 7)])
def test_a_volume_keeps_its_shape_and_place_also_with_a_single_slice(tmp_path, shape):
    image = label_map("scan.nii.gz", (1, *shape))
    assert SafeSaveImage(tmp_path)(image) is image
    result = nibabel.load(tmp_path / "scan_seg.nii.gz")
    assert result.shape == shape
    assert result.get_data_dtype() == np.uint8
    np.testing.assert_allclose(result.affine, AFFINE, atol=1e-6)
    assert np.array_equal(result.dataobj, image[0])
    assert image.meta["saved_to"] == str(tmp_path / "scan_seg.nii.gz")


def test_channels_come_last_and_values_may_be_fractions(tmp_path):
    image = MetaTensor(
        torch.rand(3, 5, 6, 1), affine=AFFINE, meta={"filename_or_obj": "a.nii", "spatial_shape": (5, 6, 1)}
    )
    SafeSaveImage(tmp_path, output_postfix="edges", output_ext=".nii", output_dtype=torch.float32)(image)
    assert np.array_equal(nibabel.load(tmp_path / "a_edges.nii").dataobj, image.movedim(0, -1))


def test_a_picture_is_written_as_rows_and_columns(tmp_path):
    mask = label_map("skin.jpg", (12, 8), channels=False).clamp(max=1)
    SafeSaveImage(tmp_path, output_ext=".png", scale=255)(mask)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "skin_seg.png")), mask.T * 255)


@pytest.mark.parametrize("name", ["with space#", "Müller ß 影像", "a.b", "=cmd()$x$"])
@pytest.mark.parametrize("ending", [".nii.gz", ".png"])
def test_any_name_of_a_file_is_kept_and_its_origin_can_be_read(tmp_path, name, ending):
    shape = (1, 6, 7, 8) if ending == ".nii.gz" else (6, 7)
    saver = SafeSaveImage(tmp_path, output_ext=ending, provenance=lambda image: f"from {len(image)}")
    image = label_map(f"/data/{name}{ending}", shape, channels=len(shape) > 2)
    saver(image)
    assert files(tmp_path) == [f"{name}_seg{ending}"]
    assert provenance_of(tmp_path / f"{name}_seg{ending}") == f"from {len(f'/data/{name}{ending}')}"


def test_a_file_without_an_origin_has_an_empty_one(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)), tmp_path / "a.nii.gz")
    for name in ("b.nii.gz", "c.png", "d.txt"):
        (tmp_path / name).write_text("something else")
    assert [provenance_of(path) for path in sorted(tmp_path.iterdir())] == [""] * 4


def test_images_of_one_name_in_two_folders_give_two_results_in_the_output_folder(tmp_path):
    saver = SafeSaveImage(tmp_path / "out", data_root_dir=tmp_path / "in")
    for name in ("a", "b/deep"):
        saver(label_map(tmp_path / "in" / name / "t1.nii.gz"))
    with pytest.raises(DataError, match="is not below"):
        saver(label_map(tmp_path / "b.nii.gz"))
    assert files(tmp_path) == ["out/a/t1_seg.nii.gz", "out/b/deep/t1_seg.nii.gz"]


@pytest.mark.parametrize("ending", [".nii.gz", ".png"])
def test_a_full_disk_is_an_error_that_names_the_file_and_leaves_nothing_behind(tmp_path, monkeypatch, ending):
    def fill_up(_image, path, **_options):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(nibabel, "save", fill_up)
    monkeypatch.setattr(Image.Image, "save", fill_up)
    image = label_map("scan.nii.gz") if ending == ".nii.gz" else label_map("scan.png", (6, 7), channels=False)
    result = tmp_path / f"scan_seg{ending}"
    result.write_text("an earlier result")
    with pytest.raises(DataError, match="No space left on device") as caught:
        SafeSaveImage(tmp_path, output_ext=ending)(image)
    assert caught.value.what == str(result)
    assert files(tmp_path) == [result.name]
    assert result.read_text() == "an earlier result"


@pytest.mark.parametrize("fault", ["a voxel", "the shape", "the place"])
def test_a_file_that_reads_otherwise_than_it_was_meant_never_gets_the_name(tmp_path, monkeypatch, fault):
    save = nibabel.save

    def write_wrongly(image, path):
        values, affine = np.array(image.dataobj), image.affine.copy()
        if fault == "a voxel":
            values[1, 2, 3] += 1
        elif fault == "the shape":
            values = values[..., :-1]
        else:
            affine[0, 3] += 1
        save(nibabel.Nifti1Image(values, affine), path)

    monkeypatch.setattr(nibabel, "save", write_wrongly)
    with pytest.raises(DataError, match="is not what is read from it"):
        SafeSaveImage(tmp_path)(label_map("scan.nii.gz"))
    assert files(tmp_path) == []


def test_images_without_a_file_are_numbered_and_values_that_the_type_cannot_hold_are_refused(tmp_path):
    saver = SafeSaveImage(tmp_path)
    for image in (torch.zeros(1, 2, 2, 2), torch.ones(1, 2, 2, 2).numpy()):
        saver(image)
    assert [np.unique(nibabel.load(tmp_path / f"{name}_seg.nii.gz").dataobj) for name in (0, 1)] == [0, 1]
    for name, value in (("2", 300.0), ("3", 0.5)):
        assert refused(name, saver, torch.full((1, 2, 2, 2), value)).problem == "its values do not fit uint8"
    SafeSaveImage(tmp_path / "float", output_dtype=torch.float32)(torch.full((1, 2, 2, 2), 0.1, dtype=torch.float64))
    assert files(tmp_path) == ["0_seg.nii.gz", "1_seg.nii.gz", "float/0_seg.nii.gz"]
    with pytest.raises(ValueError, match=r"\.nrrd"):
        SafeSaveImage(output_ext=".nrrd")


def test_the_dictionary_form_writes_its_keys_and_is_one_that_monai_label_leaves_out(tmp_path):
    saver = SafeSaveImaged(["pred", "absent"], tmp_path, output_postfix="x", allow_missing_keys=True)
    assert isinstance(saver, SaveImaged)
    data = {"pred": label_map("scan.nii.gz"), "image": 1}
    assert saver(data) == data
    assert files(tmp_path) == ["scan_x.nii.gz"]


def test_a_dicom_seg_without_highdicom_names_the_extra(monkeypatch):
    monkeypatch.setattr("monai_attn.transforms.output.find_spec", lambda name: None)
    assert "pip install highdicom" in refused("--dicom_seg", SafeSaveImage, output_ext=".dcm", kind=ConfigError).fix
