# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from monai.data import CacheDataset, DataLoader, MetaTensor
from monai.transforms import Compose, Lambdad, RandFlipd

from monai_attn.transforms import RandSlicesD, RandSlicesd, RandSlicesDict

SHAPE = (8, 9, 10)
FOREGROUND = {0: [2, 3, 4], 1: [5], 2: [0, 9]}  # indices with foreground for each axis


def numbered(axis: int) -> torch.Tensor:
    """A volume whose every voxel tells the index of its slice."""
    view = [1] * 4
    view[axis + 1] = SHAPE[axis]
    return torch.arange(SHAPE[axis]).reshape(view).expand(1, *SHAPE).float()


def volumes(axis: int = 2, foreground: list[int] | None = None) -> dict[str, torch.Tensor]:
    label = torch.zeros(1, *SHAPE)
    for index in FOREGROUND[axis] if foreground is None else foreground:
        label.select(axis + 1, index)[0, 1, 2] = 1 + index % 3
    return {"image": numbered(axis), "label": label}


def indices(items: list[dict[str, torch.Tensor]]) -> list[int]:
    return [int(item["image"].flatten()[0]) for item in items]


def cutter(axis: int = 2, num_samples: int = 60, seed: int = 0, **kwargs) -> RandSlicesd:
    transform = RandSlicesd(["image", "label"], "label", spatial_dim=axis, num_samples=num_samples, **kwargs)
    return transform.set_random_state(seed=seed)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_slice_is_the_select_of_every_key_at_one_index(axis):
    data = volumes(axis)
    data["image"] = torch.rand(2, *SHAPE)
    transform = cutter(axis)
    items = transform(data)
    assert len(items) == len(transform.indices) == 60
    for index, item in zip(transform.indices, items, strict=True):
        for key in ("image", "label"):
            assert torch.equal(item[key], data[key].select(axis + 1, index))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_only_pos_gives_every_slice_with_foreground_and_no_other(axis):
    assert set(indices(cutter(axis, pos=1, neg=0)(volumes(axis)))) == set(FOREGROUND[axis])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_only_neg_gives_every_slice_without_foreground_and_no_other(axis):
    drawn = indices(cutter(axis, num_samples=200, pos=0, neg=1)(volumes(axis)))
    assert set(drawn) == set(range(SHAPE[axis])) - set(FOREGROUND[axis])


@pytest.mark.parametrize(("pos", "neg"), [(1, 1), (3, 1), (1, 4), (0.2, 0.3)])
def test_the_share_of_slices_with_foreground_is_pos_of_pos_and_neg(pos, neg):
    drawn = indices(cutter(2, num_samples=4000, pos=pos, neg=neg)(volumes(2)))
    share = sum(index in FOREGROUND[2] for index in drawn) / 4000
    assert share == pytest.approx(pos / (pos + neg), abs=0.04)  # five standard deviations


@pytest.mark.parametrize(("pos", "neg"), [(1, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize("foreground", [[], list(range(10))], ids=["none", "all"])
def test_a_volume_of_one_kind_of_slices_gives_any_of_them(foreground, pos, neg):
    drawn = indices(cutter(2, num_samples=200, pos=pos, neg=neg)(volumes(2, foreground)))
    assert set(drawn) == set(range(10))


def test_equal_seeds_draw_equal_slices_and_other_seeds_draw_others():
    first, again, other = (indices(cutter(seed=seed)(volumes())) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_successive_calls_draw_other_slices():
    transform = cutter()
    assert indices(transform(volumes())) != indices(transform(volumes()))


@pytest.mark.parametrize("axis", [0, 1])
def test_an_image_is_cut_into_lines(axis):
    image = torch.rand(1, 6, 7)
    items = RandSlicesd(["image"], "label", spatial_dim=axis, num_samples=3)({"image": image, "label": image > 2})
    assert [tuple(item["image"].shape) for item in items] == [(1, (7, 6)[axis])] * 3


def test_other_entries_are_kept_and_the_input_is_not_changed():
    data = {**volumes(), "name": "case_1", "weights": torch.ones(3)}
    items = RandSlicesd("image", "label", num_samples=2)(data)
    assert all(item["name"] == "case_1" and item["weights"] is data["weights"] for item in items)
    assert all(item["label"] is data["label"] for item in items)
    assert data["image"].shape == (1, *SHAPE)


def test_slices_are_views_of_the_volume():
    data = volumes()
    data["image"] = torch.rand(1, *SHAPE)
    (item,) = RandSlicesd("image", "label")(data)
    assert item["image"].untyped_storage().data_ptr() == data["image"].untyped_storage().data_ptr()


def test_slices_of_a_file_keep_its_name_and_no_other_metadata():
    meta = {"filename_or_obj": "scan.nii.gz", "spatial_shape": (4, 5, 6)}
    item = {"image": MetaTensor(torch.rand(1, 4, 5, 6), meta=meta), "label": MetaTensor(torch.ones(1, 4, 5, 6))}
    (cut,) = RandSlicesd(["image", "label"], "label")(item)
    assert cut["image"].meta["filename_or_obj"] == "scan.nii.gz"
    assert "spatial_shape" not in cut["image"].meta
    assert type(cut["label"]) is torch.Tensor


def test_numpy_arrays_and_boolean_and_integer_labels_are_taken():
    data = volumes()
    for label in (data["label"].numpy(), data["label"] > 0, data["label"].to(torch.uint8)):
        items = cutter(2, pos=1, neg=0)({"image": data["image"].numpy(), "label": label})
        assert set(indices(items)) == set(FOREGROUND[2])


def test_a_missing_key_raises_unless_it_is_allowed():
    data = volumes()
    with pytest.raises(KeyError, match="mask"):
        RandSlicesd(["image", "mask"], "label")(data)
    (item,) = RandSlicesd(["image", "mask"], "label", allow_missing_keys=True)(data)
    assert "mask" not in item
    assert item["image"].ndim == 3


@pytest.mark.parametrize("num_samples", [0, -1])
def test_a_number_of_samples_below_one_raises(num_samples):
    with pytest.raises(ValueError, match=f"num_samples must be at least 1, got {num_samples}"):
        RandSlicesd("image", "label", num_samples=num_samples)


@pytest.mark.parametrize(("pos", "neg"), [(0, 0), (-1, 2), (2, -1), (0.0, 0.0)])
def test_weights_that_are_none_raise(pos, neg):
    with pytest.raises(ValueError, match=f"pos={pos}, neg={neg}"):
        RandSlicesd("image", "label", pos=pos, neg=neg)


def test_the_three_names_are_one_class():
    assert RandSlicesD is RandSlicesDict is RandSlicesd


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_batch_of_a_data_loader_is_volumes_times_samples(num_workers):
    transform = Compose(
        [
            Lambdad("image", lambda image: image + 100),
            RandSlicesd(["image", "label"], "label", num_samples=3, pos=1, neg=0),
            RandFlipd(["image", "label"], prob=0.5, spatial_axis=0),
        ]
    ).set_random_state(seed=0)
    dataset = CacheDataset([volumes() for _ in range(4)], transform, progress=False)
    batches = list(DataLoader(dataset, batch_size=2, num_workers=num_workers))
    assert [tuple(batch["image"].shape) for batch in batches] == [(6, 1, 8, 9)] * 2
    for batch in batches:
        assert batch["label"].flatten(1).any(dim=1).all()
        assert {int(value) for value in batch["image"].unique()} <= {100, 109}


def test_compose_draws_equal_slices_for_equal_seeds():
    def drawn(seed: int) -> list[int]:
        transform = Compose([RandSlicesd(["image", "label"], "label", num_samples=40)]).set_random_state(seed=seed)
        return indices(transform(volumes()))

    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)
