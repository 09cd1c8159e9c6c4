# SPDX-License-Identifier: Apache-2.0
import resource
import shutil

import itk
import nibabel
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from monai.bundle import ConfigParser
from monai.data import MetaTensor

from monai_attn.transforms import AsLabelMapd, CheckImaged, SafeChannelFirstd, SafeLoadImaged, SafeSaveImage

from ..conftest import BUNDLES

fault = pytest.mark.fault


@fault(72)
@pytest.mark.parametrize(
    "change",
    [np.eye(4) + np.eye(4, k=3) * 30, np.diag([-1, 1, 1, 1]), np.eye(4)[[1, 0, 2, 3]]],
    ids=["shifted", "flipped", "other axes"],
)
def test_two_forms_that_differ(lab, change):
    image = nibabel.Nifti1Image(lab.scan, lab.affine)
    image.set_sform(lab.affine, 2)
    image.set_qform(change @ lab.affine, 1)
    path = lab.folder / "scan.nii.gz"
    nibabel.save(image, path)
    attempt = lab.segment(path)
    lab.reproduces(attempt, path)
    attempt.warned(path, "qform and sform differ", "(code 1)", "(code 2)", "used: spacing 1 x 1 x 1 mm")
    image, result = nibabel.load(path), attempt.mask(path)
    for read in (lambda file: file.get_qform(coded=True), lambda file: file.get_sform(coded=True)):
        assert np.allclose(read(result)[0], read(image)[0], atol=1e-4)
        assert read(result)[1] == read(image)[1]
    seen = [itk.imread(str(file)) for file in (path, next(attempt.output.glob("*_seg.nii.gz")))]
    for kind in ("GetOrigin", "GetSpacing"):
        assert np.allclose(*(getattr(file, kind)() for file in seen), atol=1e-4)
    assert np.allclose(*(itk.array_from_matrix(file.GetDirection()) for file in seen), atol=1e-4)


@fault(73)
@pytest.mark.parametrize(("unit", "factor"), [("meter", 0.001), ("micron", 1000)])
def test_a_unit_other_than_mm(lab, unit, factor):
    affine = np.diag([factor] * 3 + [1]) @ lab.affine
    image = nibabel.Nifti1Image(lab.scan, affine)
    image.header.set_xyzt_units(unit)
    path = lab.folder / "scan.nii.gz"
    nibabel.save(image, path)
    attempt = lab.segment(path)
    lab.reproduces(attempt, path)
    attempt.warned(path, f"its unit is the {unit}", "used: spacing 1 x 1 x 1 mm")
    assert np.allclose(attempt.mask(path).affine, lab.affine, atol=1e-4)


@fault(74)
@pytest.mark.parametrize("factor", [1e-6, 0.01, 25, 50, 1e6])
def test_voxels_of_no_patient(lab, factor):
    path = lab.write(lab.scan, affine=lab.affine @ np.diag([factor] * 3 + [1]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lab.segment(path).refused(path, "mm", "correct the spacing in its header, and the unit")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1e5  # kB


@fault(75)
@pytest.mark.parametrize("bundle", [root for root in BUNDLES if "_ct_" in root.name], ids=lambda root: root.name)
def test_ct_that_is_not_in_hounsfield_units(bundle, caplog):
    volume = "inference_volume" if (bundle / "configs" / "inference_volume.json").exists() else "inference"
    parser = ConfigParser()
    parser.read_config([str(bundle / "configs" / f"{name}.json") for name in ("inference", volume)])
    check = parser.get_parsed_content("preprocessing#transforms#2")
    scan = MetaTensor(torch.linspace(-1000, 1500, 1000).reshape(1, 10, 10, 10), meta={"filename_or_obj": "ct.nii"})
    check({"image": scan})
    assert caplog.records == []
    window = (scan.clip(-160, 240) + 160) / 400
    for wrong in (window, 255 * window, 2 * window - 1, scan + 1024, scan % 65536, scan / scan.std()):
        caplog.clear()
        check({"image": wrong})
        words = f"ct.nii: its values go from {wrong.min():g} to {wrong.max():g}, expected Hounsfield units"
        assert [words in message for message in caplog.messages] == [True]


@fault(76)
def test_more_than_the_training_has_seen_and_an_empty_mask(lab):
    path = lab.write(np.pad(lab.scan, [(60, 0), (0, 60), (0, 0)]))
    lab.segment(path).finished().warned(path, "it is", "times the size of the training images (43 x 59 x 46 mm)")
    with pytest.raises(AssertionError):
        lab.segment(path, field_of_view="None").finished().warned("times the size")
    path = lab.write(np.zeros_like(lab.scan) + np.eye(*lab.scan.shape[:2])[..., None], "nothing.nii.gz")
    lab.segment(path).finished().warned("nothing", "the mask is empty")


VOXELS = np.random.RandomState(0).permutation(60).reshape(3, 4, 5)
TO_MM = {"mm": 1, "unknown": 1, "meter": 1000, "micron": 0.001}
numbers = st.integers(0, 10_000)


@settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["a.nii", "b.nii.gz", "nifti2.nii", "c.mha", "d.nrrd", "series", "frames.dcm"]),
    dtype=st.sampled_from(["u1", "i2", "f4", "f8"]), axes=st.permutations(range(3)), seed=numbers,
    codes=st.sampled_from([(1, 0), (0, 1), (2, 3), (1, 1)]), unit=st.sampled_from([*TO_MM]), scaled=st.booleans(),
)  # fmt: skip
def test_the_mask_lies_where_the_image_lies(tmp_path, write_series, kind, dtype, axes, seed, codes, unit, scaled):
    random, path = np.random.RandomState(seed), tmp_path / str(seed) / kind
    turn = np.linalg.qr(random.rand(3, 3))[0][:, axes] * random.choice([-1, 1], 3)
    affine = np.eye(4)
    affine[:3] = np.column_stack([turn * random.uniform(0.5, 5, 3), random.uniform(-200, 200, 3)])
    lps = np.diag([-1, -1, 1, 1]) @ affine
    path.parent.mkdir(exist_ok=True)
    if ".nii" in kind:
        image = (nibabel.Nifti2Image if "2" in kind else nibabel.Nifti1Image)(VOXELS.astype(dtype), None)
        forms = np.diag([1 / TO_MM[unit]] * 3 + [1]) @ affine
        image.set_qform(forms if codes[0] else None, codes[0])
        image.set_sform(forms if codes[1] else None, codes[1])
        image.header.set_xyzt_units(unit)
        image.header.set_data_dtype("i2" if scaled else dtype)
        nibabel.save(image, path)
    elif kind in ("series", "frames.dcm"):
        places = lps[:3, 3] + np.outer(range(5), lps[:3, 2])
        write_series(path, places, voxels=VOXELS, axes=lps[:3, :2].T)
    else:
        image, spacing = itk.image_from_array(VOXELS.T.astype(dtype, order="C")), np.linalg.norm(lps[:3, :3], axis=0)
        image.SetSpacing(spacing)
        image.SetOrigin(lps[:3, 3])
        image.SetDirection(itk.matrix_from_array(lps[:3, :3] / spacing))
        itk.imwrite(image, str(path), compression=scaled)
    volume = CheckImaged("image", 3, 1)(SafeChannelFirstd("image")(SafeLoadImaged("image")({"image": path})))["image"]
    SafeSaveImage(path.parent / "out")(AsLabelMapd("pred")({"pred": volume > 29.5})["pred"])
    mask = nibabel.load(next((path.parent / "out").iterdir()))
    for found in (mask.get_sform(), mask.get_qform()):
        index = np.argwhere(np.asarray(mask.dataobj))
        places = np.linalg.solve(affine, found @ np.column_stack([index, np.ones(len(index))]).T)[:3].T
        assert np.abs(places - places.round()).max() < 1e-3
        assert {*map(tuple, places.round().astype(int))} == {*map(tuple, np.argwhere(VOXELS > 29.5))}
    shutil.rmtree(path.parent)
