# SPDX-License-Identifier: Apache-2.0
import ignite.distributed as idist
import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import AsDiscreted, Compose, Spacing
from torch import nn

from monai_attn.data import find_images
from monai_attn.errors import ConfigError, DataError
from monai_attn.handlers import OverlaySaver
from monai_attn.run import FinishedCases, Provenance
from monai_attn.transforms import SafeSaveImaged, provenance_of

from ..conftest import refused


@pytest.fixture
def folder(tmp_path):
    for name in ("a/t1", "a/t2", "b/t1"):
        write_image(tmp_path / "in" / f"{name}.nii.gz", len(name) + ord(name[0]))
    (tmp_path / "model.pt").write_text("weights")
    return tmp_path


def write_image(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.full((4, 4, 4), value, np.int16), np.eye(4)), path)


def look(folder, *, overwrite=False, postfixes=("seg",), source="in", provenance=None, handlers=()):
    """Return the results of a run, what segments a case, and what lists the cases that are left."""
    provenance = provenance or Provenance(str(folder / "model.pt"))
    output, source = str(folder / "out"), str(folder / source)
    savers = [SafeSaveImaged("pred", output, output_postfix=postfix, provenance=provenance) for postfix in postfixes]
    post = Compose([Compose(savers)])

    def segment(case):
        meta = {"filename_or_obj": case["image"], "spatial_shape": (4, 4, 4)}
        post({"pred": MetaTensor(torch.ones(1, 4, 4, 4, dtype=torch.uint8), meta=meta)})

    results = FinishedCases(post, overwrite, handlers)
    return results, segment, lambda: results(find_images(source))


def names(cases, folder):
    return [case["image"].removeprefix(f"{folder}/in/") for case in cases]


@pytest.mark.parametrize(("rank", "expected"), [(0, ["a/t1.nii.gz"]), (1, ["a/t2.nii.gz", "b/t1.nii.gz"])])
def test_processes_share_what_the_first_one_found(folder, monkeypatch, rank, expected):
    _, _, unfinished = look(folder)
    everything = unfinished()
    monkeypatch.setattr(idist, "get_world_size", lambda: 2)
    monkeypatch.setattr(idist, "get_rank", lambda: rank)
    given = []
    monkeypatch.setattr(idist, "all_gather", lambda items: given.append(items) or [everything, []])
    results, _, unfinished = look(folder)
    assert names(unfinished(), folder) == expected
    assert given == [everything if rank == 0 else []]
    assert results.finished == 0


def test_what_is_finished_is_not_segmented_again_and_said_so(folder, capsys):
    results, segment, unfinished = look(folder)
    cases = unfinished()
    assert names(cases, folder) == ["a/t1.nii.gz", "a/t2.nii.gz", "b/t1.nii.gz"]
    assert capsys.readouterr().err == ""
    for case in cases[:2]:
        segment(case)

    results, _, unfinished = look(folder)
    assert names(unfinished(), folder) == ["b/t1.nii.gz"]
    assert results.finished == 2
    assert capsys.readouterr().err == ("monai-attn: 2 of 3 cases are finished; --overwrite True segments them again\n")


def test_a_folder_that_has_grown_and_moved_has_its_new_images_segmented(folder):
    _, segment, unfinished = look(folder)
    for case in unfinished():
        segment(case)
    write_image(folder / "in" / "b" / "t9.nii.gz", 5)
    (folder / "in").rename(folder / "moved")
    _, _, unfinished = look(folder, source="moved")
    assert [case["image"] for case in unfinished()] == [str(folder / "moved" / "b" / "t9.nii.gz")]


@pytest.mark.parametrize("change", ["checkpoint", "configuration", "image of that name", "nothing says"])
def test_a_result_of_another_origin_is_refused(folder, change):
    _, segment, unfinished = look(folder)
    segment(unfinished()[1])
    provenance = None
    if change == "checkpoint":
        (folder / "model.pt").write_text("other weights")
    elif change == "configuration":
        provenance = Provenance(str(folder / "model.pt"), [{"slice_dim": 1}])
    elif change == "image of that name":
        write_image(folder / "in" / "a" / "t2.nii.gz", 1)
    else:
        write_image(folder / "out" / "a" / "t2_seg.nii.gz", 1)
    _, _, unfinished = look(folder, provenance=provenance)
    error = refused(folder / "out" / "a" / "t2_seg.nii.gz", unfinished, kind=ConfigError)
    assert change in error.problem
    assert error.fix == "give another output_dir, or --overwrite True to replace it"
    assert len(look(folder, provenance=provenance, overwrite=True)[2]()) == 3


def test_a_case_is_finished_when_all_of_its_files_are_there(folder):
    _, segment, unfinished = look(folder, postfixes=("seg", "edges"))
    for case in unfinished():
        segment(case)
    (folder / "out" / "a" / "t1_edges.nii.gz").unlink()
    _, _, unfinished = look(folder, postfixes=("seg", "edges"))
    assert names(unfinished(), folder) == ["a/t1.nii.gz"]


def test_a_case_without_its_picture_or_the_files_of_a_handler_is_segmented_again(folder):
    handlers = [object(), OverlaySaver(str(folder / "out"))]
    results, segment, unfinished = look(folder, handlers=handlers)
    for case in unfinished():
        segment(case)
    for result in list((folder / "out").rglob("*_seg.nii.gz"))[1:]:
        result.with_name(result.name.replace("seg.nii.gz", "overlay.png")).touch()
    results, _, unfinished = look(folder, handlers=handlers)
    assert len(unfinished()) == 1
    assert results.finished == 2
    handlers[1].write = Compose([SafeSaveImaged("map", str(folder / "out"), output_postfix="map")])
    assert len(look(folder, handlers=handlers)[2]()) == 3


def test_one_file_of_another_origin_a_word_for_overwrite_and_two_images_with_one_result_are_refused(folder):
    write_image(folder / "out" / "a" / "t1_edges.nii.gz", 1)
    with pytest.raises(ConfigError, match="t1_edges"):
        look(folder, postfixes=("seg", "edges"))[2]()
    with pytest.raises(ConfigError, match="give True or False"):
        look(folder, overwrite="False")[2]()
    (folder / "in" / "a" / "t1.nii").write_bytes(b"")
    with pytest.raises(DataError, match="its result would replace that of"):
        look(folder)[2]()


def test_results_are_not_segmented_in_their_turn_and_say_where_they_come_from(folder):
    _, segment, unfinished = look(folder)
    segment(unfinished()[0])
    found = provenance_of(folder / "out" / "a" / "t1_seg.nii.gz")
    assert len(found) < 80
    assert [field.split("=")[0] for field in found.split()] == ["monai_attn", "weights", "config", "image"]
    for name in ("t1_overlay.png", "t1_attention_0.nii.gz", "t1_seg.dcm"):
        (folder / "out" / "a" / name).touch()
    assert find_images(folder) == find_images(folder / "in")
    with pytest.raises(DataError, match="it is a result of an earlier run"):
        look(folder, source="out/a/t1_seg.nii.gz")[2]()


@pytest.mark.fault(83)
def test_the_settings_of_all_parts_count_and_those_of_the_writer_do_not(folder):
    def line(pixdim=1.0, threshold=0.5, output_dir="a"):
        provenance = Provenance(str(folder / "model.pt"), [nn.Conv2d(1, 2, 3), Compose([Spacing(pixdim=pixdim)])])
        saver = SafeSaveImaged("pred", str(folder / output_dir), provenance=provenance)
        FinishedCases(Compose([AsDiscreted("pred", threshold=threshold), saver]))
        return provenance(str(folder / "in" / "a" / "t1.nii.gz"))

    assert line() == line(output_dir="b")
    assert len({line(), line(pixdim=2.0), line(threshold=0.4)}) == 3


@pytest.mark.fault(83)
def test_an_image_is_known_by_all_of_its_files(folder):
    provenance = Provenance(str(folder / "model.pt"))
    files = [str(folder / "in" / "a" / f"{name}.nii.gz") for name in ("t1", "t2")]
    FinishedCases(Compose([SafeSaveImaged("pred", str(folder / "out"), provenance=provenance)]))([{"image": files}])
    places = (files[0], str(folder / "in" / "a"))  # of channels, and of a series
    (folder / "in" / "a" / "below").mkdir()
    before = [provenance(place) for place in places]
    write_image(folder / "in" / "a" / "t2.nii.gz", 99)
    assert all(provenance(place) != old for place, old in zip(places, before))
    (folder / "scan.mhd").write_text("ElementDataFile = scan.raw")
    (folder / "scan.raw").write_bytes(b"1")
    old = provenance(str(folder / "scan.mhd"))
    (folder / "scan.raw").write_bytes(b"2")
    assert provenance(str(folder / "scan.mhd")) != old
