# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from monai.data import CacheDataset, DataLoader, MetaTensor
from monai.transforms import Compose, Lambdad, RandFlipd

from monai_attn.transforms import RandSlicesd

SHAPE = (8, 9, 10)
FOREGROUND = {0: [2, 3, 4], 1: [5], 2: [0, 9]}  # indices with foreground for each axis

every_axis = pytest.mark.parametrize("axis", [0, 1, 2])


def volumes(axis: int = 2, foreground: list[int] | None = None) -> dict[str, torch.Tensor]:
    """A volume whose every voxel is the index of its slice, and its label."""
    label = torch.zeros(1, *SHAPE)
    for index in FOREGROUND[axis] if foreground is None else foreground:
        label.select(axis + 1, index)[0, 1, 2] = 1 + index % 3
    view = [1] * 4
    view[axis + 1] = SHAPE[axis]
    return {"image": torch.arange(SHAPE[axis]).reshape(view).expand(1, *SHAPE).float(), "label": label}


def indices(items: list[dict[str, torch.Tensor]]) -> list[int]:
    return [int(item["image"].flatten()[0]) for item in items]


def cutter(axis: int = 2, num_samples: int = 60, seed: int = 0, **kwargs) -> RandSlicesd:
    transform = RandSlicesd(["image", "label"], "label", spatial_dim=axis, num_samples=num_samples, **kwargs)
    return transform.set_random_state(seed=seed)


@every_axis
def test_a_slice_is_the_select_of_every_key_at_one_index(axis):
    data = volumes(axis)
    data["image"] = torch.rand(2, *SHAPE)
    transform = cutter(axis)
    items = transform(data)
    assert len(items) == 60
    for index, item in zip(transform.indices, items, strict=True):
        for key in ("image", "label"):
            assert torch.equal(item[key], data[key].select(axis + 1, index))


@every_axis
def test_only_pos_or_neg_gives_every_slice_with_or_without_foreground(axis):
    assert set(indices(cutter(axis, pos=1, neg=0)(volumes(axis)))) == set(FOREGROUND[axis])
    others = indices(cutter(axis, num_samples=200, pos=0, neg=1)(volumes(axis)))
    assert set(others) == set(range(SHAPE[axis])) - set(FOREGROUND[axis])


@pytest.mark.parametrize(("pos", "neg"), [(1, 4), (0.3, 0.2)])
def test_the_share_of_slices_with_foreground_is_pos_of_pos_and_neg(pos, neg):
    drawn = indices(cutter(num_samples=1000, pos=pos, neg=neg)(volumes()))
    share = sum(index in FOREGROUND[2] for index in drawn) / 1000
    assert share == pytest.approx(pos / (pos + neg), abs=0.08)  # five standard deviations


@pytest.mark.parametrize(("pos", "foreground"), [(1, []), (0, list(range(10)))], ids=["none", "all"])
def test_a_volume_of_one_kind_of_slices_gives_any_of_them(pos, foreground):
    drawn = indices(cutter(num_samples=200, pos=pos, neg=1 - pos)(volumes(2, foreground)))
    assert set(drawn) == set(range(10))


def test_equal_seeds_draw_equal_slices_and_other_seeds_and_calls_draw_others():
    transform = cutter(seed=1)
    first, again, other = indices(transform(volumes())), indices(cutter(seed=1)(volumes())), cutter(seed=2)
    assert first == again
    assert first != indices(other(volumes()))
    assert first != indices(transform(volumes()))
    composed = Compose([cutter()]).set_random_state(seed=3)
    assert indices(composed(volumes())) == indices(Compose([cutter()]).set_random_state(seed=3)(volumes()))


def test_slices_are_copies_and_other_entries_are_kept():
    data = {**volumes(), "image": torch.rand(1, *SHAPE), "name": "case_1", "weights": torch.ones(3)}
    items = RandSlicesd(["image", "mask"], "label", num_samples=2, allow_missing_keys=True)(data)
    assert all(item["name"] == "case_1" and item["weights"] is data["weights"] for item in items)
    assert all(item["label"] is data["label"] for item in items)
    items[0]["image"].zero_()  # an augmentation in place
    assert (data["image"] > 0).any(dim=(0, 2, 3)).all()
    assert data["image"].shape == (1, *SHAPE)


def test_slices_of_a_file_keep_its_name_and_no_other_metadata():
    meta = {"filename_or_obj": "scan.nii.gz", "spatial_shape": (4, 5, 6)}
    item = {"image": MetaTensor(torch.rand(1, 4, 5, 6), meta=meta), "label": MetaTensor(torch.ones(1, 4, 5, 6))}
    (cut,) = RandSlicesd(["image", "label"], "label")(item)
    assert cut["image"].meta["filename_or_obj"] == "scan.nii.gz"
    assert "spatial_shape" not in cut["image"].meta
    assert type(cut["label"]) is torch.Tensor


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_samples": 0}, "num_samples >= 1 .* got 0"),
        ({"spatial_dim": -1}, "spatial_dim 0, 1 or 2, got 1, -1"),
        ({"pos": 0, "neg": 0}, "pos=0, neg=0"),
        ({"pos": -1, "neg": 2}, "pos=-1, neg=2"),
    ],
)
def test_impossible_numbers_and_weights_raise(options, words):
    with pytest.raises(ValueError, match=words):
        RandSlicesd("image", "label", **options)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_batch_of_a_data_loader_is_volumes_times_samples(num_workers):
    steps = [Lambdad("image", lambda image: image + 100), cutter(num_samples=3, pos=1, neg=0)]
    transform = Compose([*steps, RandFlipd(["image", "label"], prob=0.5, spatial_axis=0)]).set_random_state(seed=0)
    dataset = CacheDataset([volumes() for _ in range(4)], transform, progress=False)
    batches = list(DataLoader(dataset, batch_size=2, num_workers=num_workers))
    assert [tuple(batch["image"].shape) for batch in batches] == [(6, 1, 8, 9)] * 2
    for batch in batches:
        assert batch["label"].flatten(1).any(dim=1).all()
        assert {int(value) for value in batch["image"].unique()} <= {100, 109}
