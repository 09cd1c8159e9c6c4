# SPDX-License-Identifier: Apache-2.0
import nibabel
import numpy as np
import pytest

from monai_attn.data import cases

fault = pytest.mark.fault


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(lambda v: np.stack([v] * 2, -1), ("4D (2 volumes)", "expected 3D, 1 channel"), marks=fault(8)),
        pytest.param(lambda v: np.stack([np.stack([v] * 2, -1)] * 2, -1), ("expected 3D",), marks=fault(9)),
        pytest.param(lambda v: v[..., 0], ("it is 2D", "expected 3D", "give a volume"), marks=fault(11)),
        pytest.param(lambda v: v[:1, :1, :1], ("no more than one voxel",), marks=fault(13)),
        pytest.param(lambda v: v.astype(np.complex64), ("complex64",), marks=fault(28)),
    ],
    ids=["two volumes", "five dimensions", "a picture", "one voxel", "complex numbers"],
)
def test_an_image_that_is_no_volume_of_numbers(lab, change, words):
    path = lab.write(change(lab.scan))
    lab.segment(path).refused(path, *words)


@pytest.mark.parametrize(
    ("part", "thickness"),
    [
        pytest.param(np.s_[..., 20:21], 1, marks=fault(12)),
        pytest.param(np.s_[:8, :8, :8], 1, marks=fault(14)),
        pytest.param(np.s_[:30, :31, :33], 1, marks=fault(16)),
        pytest.param(np.s_[..., ::8], 8, marks=fault(23)),
    ],
    ids=["one slice", "smaller than what the network sees", "no size to halve", "far from cubes"],
)
def test_a_volume_of_another_size(lab, part, thickness):
    affine = lab.affine @ np.diag([1, 1, thickness, 1])
    path = lab.write(lab.scan[part], affine=affine)
    result = lab.segment(path).finished().mask(path)
    assert result.shape == lab.scan[part].shape
    assert np.allclose(result.affine, affine)


@fault(10)
def test_colors(lab):
    path = lab.write(np.zeros(lab.scan.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")]))
    lab.segment(path).refused(path, "colors (RGB)")


@fault(15)
@pytest.mark.parametrize("name", ["hippocampus_mri_egcnn_segmentation", "hippocampus_mri_scse_segmentation"])
def test_a_crop_larger_than_the_image(train_bundle, name):
    bundle = train_bundle(name)
    size = {"crop_size": [96, 96, 96]} if "crop_size" in bundle.entries("train") else {"padded_size": [-1, 96, 96]}
    config = bundle.parsed("train", **size)
    items = config.get_parsed_content("train#preprocessing")(cases(bundle.data)[0])
    images = [item["image"] for item in (items if isinstance(items, list) else [items])]
    assert {tuple(image.shape[-2:]) for image in images} == {(96, 96)}


@fault(16)
def test_a_crop_that_the_network_cannot_halve(train_bundle, lab):
    bundle = train_bundle("hippocampus_mri_egcnn_segmentation")
    lab.bundle, lab.network = bundle, {}
    lab.train(crop_size=[30, 30, 30]).refused("--crop_size [30, 30, 30]", "multiples of")


@fault(17)
@fault(18)
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_voxels_that_are_no_numbers(lab, value):
    voxels = lab.scan.copy()
    voxels[:2, :2, :2] = value
    path = lab.write(voxels)
    lab.segment(path).refused(path, "8 of its", "NaN or infinite", "--nonfinite zero")
    zeroed = lab.segment(path, nonfinite="zero").finished()
    zeroed.warned(path, "8 of its", "taken as 0")
    voxels[:2, :2, :2] = 0
    meant = lab.write(voxels, "meant.nii.gz")
    assert np.array_equal(zeroed.mask(path).dataobj, lab.segment(meant).finished().mask(meant).dataobj)


@fault(19)
@pytest.mark.parametrize("nonfinite", ["error", "zero"])
def test_no_voxel_is_a_number(lab, nonfinite):
    path = lab.write(np.full_like(lab.scan, np.nan))
    lab.segment(path, nonfinite=nonfinite).refused(path, "NaN or infinite", "export the image again")


@fault(20)
def test_a_voxel_of_a_training_image_is_no_number(lab):
    data = lab.dataset()
    path = cases(data)[1]["image"]
    lab.respell(path, lambda voxels: np.where(np.arange(voxels.size).reshape(voxels.shape) == 5, np.nan, voxels))
    lab.train(data).refused(path, "1 of its", "NaN or infinite")


@fault(21)
def test_an_image_without_contrast(lab):
    path = lab.write(np.full_like(lab.scan, 7))
    lab.segment(path).finished().warned(path, "no contrast")
    data = lab.dataset()
    image = lab.respell(cases(data)[1]["image"], lambda voxels: np.full_like(voxels, 7))
    lab.train(data).refused(image, "no contrast")


@fault(22)
@pytest.mark.parametrize("axcodes", ["LPS", "PIR"])
def test_an_image_stored_along_other_axes(lab, axcodes):
    turned = nibabel.Nifti1Image(lab.scan, lab.affine)
    ways = [nibabel.orientations.axcodes2ornt(codes) for codes in (nibabel.aff2axcodes(lab.affine), axcodes)]
    turned = turned.as_reoriented(nibabel.orientations.ornt_transform(*ways))
    path = lab.write(np.asarray(turned.dataobj), affine=turned.affine)
    result = lab.segment(path).finished().mask(path)
    assert np.allclose(result.affine, turned.affine)
    back = result.as_reoriented(nibabel.orientations.ornt_transform(*reversed(ways)))
    assert np.array_equal(np.asarray(back.dataobj), lab.mask)


@fault(24)
def test_axes_that_are_not_at_right_angles(lab):
    affine = lab.affine.copy()
    affine[0, 1] = 0.1
    path = lab.write(lab.scan, affine=affine)
    attempt = lab.segment(path).finished()
    attempt.warned(path, "not at right angles")
    assert attempt.mask(path).shape == lab.scan.shape
    assert np.allclose(attempt.mask(path).affine, affine, atol=1e-4)


@fault(25)
def test_an_image_that_does_not_say_how_it_is_oriented(lab):
    path = lab.folder / "unknown.nii.gz"
    image = nibabel.Nifti1Image(lab.scan, None)
    image.header["qform_code"] = image.header["sform_code"] = 0
    nibabel.save(image, path)
    lab.segment(path).refused(path, "orientation is unknown", "assume_orientation")
    assumed = lab.segment(path, assume_orientation="RAS").finished()
    assumed.warned(path, "assumed", "axes RAS")
    assert np.array_equal(np.asarray(assumed.mask(path).dataobj), lab.mask)


@fault(26)
def test_an_affine_that_no_place_can_be_found_with(lab):
    path = lab.copy()
    image = nibabel.load(path)
    image.header["qform_code"], image.header["sform_code"] = 0, 1
    image.header["srow_z"] = 0
    rewrite(path, image.header)
    lab.segment(path).refused(path, "singular")


@fault(27)
@pytest.mark.parametrize("field", ["srow_x", "pixdim"])
def test_a_header_that_contradicts_itself(lab, field):
    path = lab.write(lab.scan)
    image = nibabel.load(path)
    image.header["qform_code"] = 1
    if field == "pixdim":
        image.header["pixdim"][3] = image.header["sform_code"] = 0
    else:
        image.header[field] = np.nan
    rewrite(path, image.header)
    lab.segment(path).finished().warned(path, "contradicts itself", "used: spacing 1 x 1 x 1 mm")


@fault(29)
@pytest.mark.parametrize("kind", ["uint8", "int16", "float64", "big-endian", "scaled"])
def test_other_ways_to_store_numbers(lab, kind):
    whole = np.round(np.clip(lab.scan, 0, None) / lab.scan.max() * 255).astype(np.float32)
    reference = lab.write(whole, "reference.nii.gz")
    path = lab.folder / "stored.nii.gz"
    if kind == "big-endian":
        stored = nibabel.Nifti1Image(whole, lab.affine, nibabel.Nifti1Header(endianness=">"))
    elif kind == "scaled":
        stored = nibabel.Nifti1Image(whole / 4 - 10, lab.affine)
        stored.header.set_data_dtype(np.int16)
    else:
        stored = nibabel.Nifti1Image(whole.astype(kind), lab.affine, dtype=kind)
    nibabel.save(stored, path)
    masks = [np.asarray(lab.segment(file).finished().mask(file).dataobj) for file in (reference, path)]
    assert (masks[0] != masks[1]).mean() < 1e-4
    assert masks[0].any()


@fault(67)
def test_dicom_slices_that_are_missing_cut_off_or_of_two_series(lab, write_series):
    def series(name, uid="1.2.3"):
        return write_series(lab.folder / name, range(lab.scan.shape[2]), uid, voxels=lab.scan)

    whole = series("whole")
    (whole / "README.txt").write_text("from the archive")
    mask = next(lab.segment(whole).finished().output.rglob("*_seg.nii.gz"))
    assert sorted(nibabel.load(mask).shape) == sorted(lab.scan.shape)

    gap = series("gap")
    sorted(gap.glob("*.dcm"))[5].unlink()
    lab.segment(gap).refused(gap, "1 missing between the slices at")

    cut = sorted(series("cut").glob("*.dcm"))[7]
    cut.write_bytes(cut.read_bytes()[:600])
    lab.segment(cut.parent).refused(cut, "damaged or cut off")

    both = series(series("both").name, "1.2.4")
    lab.segment(both).refused(both, "2 DICOM series", "1.2.3", "1.2.4")


def rewrite(path, header):
    """Put a header in the place of that of a file, as it is: nibabel's writer would fix it."""
    voxels = np.asarray(nibabel.load(path).dataobj)
    with nibabel.openers.Opener(path, "wb") as file:
        header["vox_offset"] = 352
        file.write(header.structarr.tobytes() + b"\0" * 4)
        file.write(voxels.astype(header.get_data_dtype()).tobytes(order="F"))
