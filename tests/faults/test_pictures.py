# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from monai_attn.cli import main
from monai_attn.data import cases

from ..conftest import read_csv, refused

fault = pytest.mark.fault
TAG = 0x0112
WAY_BACK = {6: 8, 8: 6}
SKIN, RETINA = "skin_lesion_focusnet_segmentation", "retinal_oct_scse_segmentation"


@pytest.fixture
def skin(lab, train_bundle):
    """The bundle for pictures in color, and one of its pictures."""
    lab.bundle, lab.network = train_bundle(SKIN), {}
    (lab.folder / "in").mkdir()
    with Image.open(cases(lab.bundle.data)[0]["image"]) as picture:
        lab.picture = picture.convert("RGB").resize((60, 44))
    return lab


@pytest.fixture
def retina(bundle_on_phantom):
    """The preprocessing of the bundle for gray pictures, by configuration."""
    bundle = bundle_on_phantom(RETINA)

    def steps(config, entry, **overrides):
        return bundle.parsed(config, checkpoint="", **overrides).get_parsed_content(entry).transforms

    return steps


def apply(steps, **case):
    item = {key: str(path) for key, path in case.items()}
    for step in steps:
        item = step(item)
    return item


def turned(picture: Image.Image, orientation: int, path: Path) -> None:
    """Save a picture as a camera held in another way does."""
    picture = picture.copy()
    picture.getexif()[TAG] = WAY_BACK.get(orientation, orientation)
    picture = ImageOps.exif_transpose(picture)
    exif = Image.Exif()
    exif[TAG] = orientation
    picture.save(path, exif=exif)


@fault(86)
def test_a_picture_that_was_stored_turned(skin):
    skin.picture.save(skin.folder / "in" / "upright.png")
    for orientation in range(2, 9):
        turned(skin.picture, orientation, skin.folder / "in" / f"{orientation}.png")
    attempt = skin.segment(skin.folder / "in").finished()
    with Image.open(attempt.output / "upright_seg.png") as mask:
        expected = np.asarray(mask)
    for orientation in range(2, 9):
        with (
            Image.open(attempt.output / f"{orientation}_seg.png") as mask,
            Image.open(skin.folder / "in" / f"{orientation}.png") as picture,
        ):
            assert mask.size == picture.size  # as it is stored, and marked in the same way
            assert mask.getexif()[TAG] == orientation
            assert np.array_equal(np.asarray(ImageOps.exif_transpose(mask)), expected)

    data = skin.dataset()
    for case in cases(data, "validation"):  # labels as viewers show the picture
        with Image.open(case["image"]) as picture:
            turned(picture.convert("RGB"), 6, case["image"])
    rows = [
        read_csv(skin.evaluate(folder).finished().output / "val_dice_raw.csv") for folder in (skin.bundle.data, data)
    ]
    assert [float(row["mean"]) for row in rows[1]] == pytest.approx([float(row["mean"]) for row in rows[0]], abs=0.05)


@fault(87)
def test_pictures_in_other_colors(skin, retina):
    few = skin.picture.quantize(16)
    pictures = {"P": few, "RGB": few.convert("RGB"), "RGBA": few.convert("RGBA")}
    gray = skin.picture.convert("L")
    pictures |= {"L": gray, "LA": gray.convert("LA"), "gray": gray.convert("RGB")}
    for name, picture in pictures.items():
        picture.save(skin.folder / "in" / f"{name}.png")
    skin.picture.convert("CMYK").save(skin.folder / "in" / "CMYK.jpg")
    attempt = skin.segment(skin.folder / "in").finished()
    masks = {name: np.asarray(Image.open(attempt.output / f"{name}_seg.png")) for name in (*pictures, "CMYK")}
    assert all(np.array_equal(masks[name], masks["RGB"]) for name in ("P", "RGBA"))
    assert all(np.array_equal(masks[name], masks["gray"]) for name in ("L", "LA"))
    attempt.warned("RGBA.png", "read with 3 instead of 4 channels")
    printed = skin.folder / "in" / "CMYK.tif"
    skin.picture.convert("CMYK").save(printed)
    skin.segment(printed).refused(printed, "for print (CMYK)", "save it as PNG")

    steps = retina("inference", "preprocessing")[:3]
    pixels = np.asarray(gray)
    wide = {"a.png": pixels.astype(np.uint16) * 257, "b.tif": pixels.astype(np.uint16) * 257, "c.tif": pixels / 255}
    for name, values in {"8.png": pixels, **wide}.items():
        Image.fromarray(values.astype("f4") if values.dtype == float else values).save(skin.folder / name)
    plain, *others = (apply(steps, image=skin.folder / name)["image"].numpy() for name in ("8.png", *wide))
    assert all(np.allclose(other, plain, atol=1e-3) for other in others)
    assert np.allclose(apply(steps, image=skin.folder / "in" / "gray.png")["image"], plain)
    Image.fromarray(pixels.astype("f4") * 1000).save(path := skin.folder / "d.tif")
    assert "expected those of a picture, 0 to 255" in refused(path, apply, steps, image=path).problem
    path = skin.folder / "in" / "RGB.png"
    assert "in gray, or train with --in_channels 3" in refused(path, apply, steps, image=path).fix


@fault(88)
def test_labels_as_drawing_programs_save_them(tmp_path, retina, capsys):
    both, one = np.zeros((2, 40, 60), np.uint8)
    both[5:20, 5:20], both[20:30, 20:30], one[5:20, 5:20] = 127, 255, 127
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    noise = np.random.default_rng(0).integers(0, 256, both.shape, np.uint8)
    labels = {
        "a.png": Image.fromarray(both),
        "b.png": Image.fromarray(one),
        "c.png": Image.fromarray(both).convert("RGBA"),
    }
    labels |= {f"{name}.png": Image.fromarray(both).convert("RGB") for name in "def"}
    for name, label in labels.items():
        label.save(tmp_path / "labels" / name)
        Image.fromarray(noise).save(tmp_path / "images" / name)
    steps = retina("train", "train#preprocessing", structures=["x", "y"], ignore_index=-100)[:4]

    def load(name):
        return apply(steps, image=tmp_path / "images" / "a.png", label=tmp_path / "labels" / name)["label"]

    assert "'{127: 1, 255: 2}'" in refused(tmp_path / "labels/a.png", load, "a.png").fix.replace('"', "'")
    assert "monai-attn check" in refused(tmp_path / "labels/b.png", load, "b.png").fix
    options = ["-d", str(tmp_path), "--structures", "x", "y", "--ignore_index=-100", "--section", "training"]
    assert main(["check", RETINA, *options]) == 2
    said = capsys.readouterr().out
    assert "add --label_map '{127: 1, 255: 2}'" in said
    assert main(["check", RETINA, *options, "--label_map", "{127: 1, 255: 2}"]) == 0

    Image.fromarray(both).save(path := tmp_path / "labels" / "a.jpg")
    assert "JPEG blurs them" in refused(path, load, path.name).problem
    Image.fromarray(np.stack([both, one, one], -1)).save(path := tmp_path / "labels" / "colors.png")
    assert "in one gray channel" in refused(path, load, path.name).fix
    indexed = Image.fromarray(both // 127)
    indexed.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    indexed.save(tmp_path / "labels" / "palette.png")
    assert load("palette.png").unique().tolist() == [0, 1, 2]


@fault(89)
def test_labels_with_fewer_structures_than_the_bundle(lab, capsys):
    data = lab.dataset()
    for case in cases(data):
        lab.respell(case["label"], lambda voxels: (voxels == 1).astype(np.uint8))
    lab.train(data).finished().warned("1 of 2 structures in no training label: posterior")
    assert main(["check", lab.bundle.root.name, "-d", str(data), "--section", "training"]) == 0
    assert "1 of 2 structures in no label: posterior" in capsys.readouterr().out
    lab.train(structures="liver").refused("it has the values 2, expected 0, 1")  # one structure, not five letters
    images = [case["image"] for case in cases(data)]
    listing = {"training": [{"image": [image] * 4, "label": case["label"]} for image, case in zip(images, cases(data))]}
    (data / "dataset.json").write_text(json.dumps(listing))
    main(["check", "brats_mri_egcnn", "-d", str(data), "--section", "training"])
    said = capsys.readouterr().out
    assert "structures in no label" in said
    assert "the regions" in said


@fault(91)
def test_pictures_of_several_frames_or_too_many_pixels(skin):
    gray = skin.picture.convert("L")
    for name, frames in {"a.gif": 2, "b.png": 3, "c.webp": 2}.items():
        path = skin.folder / name
        more = [ImageOps.invert(gray), gray.point(lambda value: value // 2)]
        gray.save(path, save_all=True, append_images=more[: frames - 1])
        skin.segment(path).refused(path, f"it has {frames} frames", "save one of them")
    gray.save(path := skin.folder / "pages.tif", save_all=True, append_images=[gray])
    skin.segment(path).refused(path, "it is 3D", "expected 2D", "give a picture or single slices")
    gray.save(skin.folder / "in" / "one.gif")
    skin.segment(skin.folder / "in" / "one.gif").finished()
    for name, size in {"large.png": 13300, "larger.png": 14000, "large.tif": 13300}.items():
        path = skin.folder / name
        Image.new("1", (size, size)).save(path, compression="group4") if name.endswith("tif") else Image.new(
            "1", (size, size)
        ).save(path)
        skin.segment(path).refused(path, "cut or shrink it")
