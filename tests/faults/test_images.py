# SPDX-License-Identifier: Apache-2.0
"""Images of other dimensions, voxels and places than a network expects."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest

from monai_attn.data import cases

fault = pytest.mark.fault


@fault(8)
def test_two_volumes_in_one_file(lab):
    path = lab.write(np.stack([lab.scan] * 2, -1))
    lab.segment(path).refused(path, "4D (2 volumes)", "expected 3D, 1 channel", "give one of them")


@fault(9)
def test_five_dimensions(lab):
    path = lab.write(np.stack([np.stack([lab.scan] * 2, -1)] * 2, -1))
    lab.segment(path).refused(path, "expected 3D")


@fault(10)
def test_colours(lab):
    colours = np.zeros(lab.scan.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    path = lab.write(colours)
    lab.segment(path).refused(path, "colours (RGB)")


@fault(11)
def test_a_picture_for_a_volume(lab):
    path = lab.write(lab.scan[..., 0])
    lab.segment(path).refused(path, "it is 2D", "expected 3D", "give a volume")


@fault(12)
def test_a_volume_of_one_slice(lab):
    path = lab.write(lab.scan[..., 20:21])
    result = lab.segment(path).finished().mask(path)
    assert result.shape == (*lab.scan.shape[:2], 1)
    assert np.allclose(result.affine, lab.affine)


@fault(13)
def test_one_voxel(lab):
    path = lab.write(lab.scan[:1, :1, :1])
    lab.segment(path).refused(path, "no more than one voxel")


@fault(14)
def test_an_image_smaller_than_what_the_network_sees(lab):
    path = lab.write(lab.scan[:8, :8, :8])
    result = lab.segment(path).finished().mask(path)
    assert result.shape == (8, 8, 8)
    assert np.allclose(result.affine, lab.affine)


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


@fault(16)
def test_an_image_that_the_network_cannot_halve(lab):
    path = lab.write(lab.scan[:30, :31, :33])
    assert lab.segment(path).finished().mask(path).shape == (30, 31, 33)


@fault(17)
@fault(18)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_no_numbers(lab, value):
    voxels = lab.scan.copy()
    voxels[:2, :2, :2] = value
    path = lab.write(voxels)
    lab.segment(path).refused(path, "8 of its", "NaN or infinite", 'nonfinite is "zero"')
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


@fault(23)
def test_voxels_that_are_far_from_cubes(lab):
    affine = np.diag([1.0, 1.0, 8.0, 1.0])
    path = lab.write(lab.scan[..., ::8], affine=affine)
    result = lab.segment(path).finished().mask(path)
    assert result.shape == lab.scan[..., ::8].shape
    assert np.allclose(result.affine, affine)


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
    path = lab.write(lab.scan)
    image = nibabel.load(path)
    image.header["qform_code"] = image.header["sform_code"] = 0
    path = lab.folder / "unknown.nii.gz"
    image = nibabel.Nifti1Image(lab.scan, None, image.header)
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
    if field == "pixdim":
        image.header["pixdim"][3] = 0
        image.header["qform_code"], image.header["sform_code"] = 1, 0
    else:
        image.header[field] = np.nan
        image.header["qform_code"] = 1
    rewrite(path, image.header)
    attempt = lab.segment(path).finished()
    attempt.warned(path, "contradicts itself", "used: spacing 1 x 1 x 1 mm")


@fault(28)
def test_complex_numbers(lab):
    path = lab.write(lab.scan.astype(np.complex64))
    lab.segment(path).refused(path, "complex64")


def as_stored(image: nibabel.Nifti1Image, kind: str) -> nibabel.Nifti1Image:
    voxels = np.asarray(image.dataobj)
    if kind == "big-endian":
        return nibabel.Nifti1Image(voxels, image.affine, nibabel.Nifti1Header(endianness=">"))
    if kind == "scaled":
        stored = nibabel.Nifti1Image(voxels / 4 - 10, image.affine)
        stored.header.set_data_dtype(np.int16)
        return stored
    return nibabel.Nifti1Image(voxels.astype(kind), image.affine, dtype=kind)


@fault(29)
@pytest.mark.parametrize("kind", ["uint8", "int16", "float64", "big-endian", "scaled"])
def test_other_ways_to_store_numbers(lab, kind):
    whole = np.round(np.clip(lab.scan, 0, None) / lab.scan.max() * 255).astype(np.float32)
    reference = lab.write(whole, "reference.nii.gz")
    path = lab.folder / "stored.nii.gz"
    nibabel.save(as_stored(nibabel.load(reference), kind), path)
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
