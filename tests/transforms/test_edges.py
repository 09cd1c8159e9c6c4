# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Flipd, SobelGradients

from monai_attn.transforms import SobelEdges, SobelEdgesd, edge_targets, foreground_masks, sobel_edges

DIMS = pytest.mark.parametrize("spatial_dims", [1, 3])
STRIPES = torch.tensor([[0, 0, 0, 1, 1, 3, 3, 0, 0]], dtype=torch.uint8)  # classes 1 and 3 side by side, 2 is absent


@DIMS
def test_class_indices_become_a_mask_for_each_class(spatial_dims):
    label = torch.randint(0, 4, (2, 1, *[5] * spatial_dims))
    masks = foreground_masks(label.to(torch.uint8), 4)
    assert masks.dtype == torch.bool
    assert torch.equal(masks, torch.cat([label == index for index in (1, 2, 3)], dim=1))
    assert torch.equal(foreground_masks(label.float(), 4, include_background=True)[:, 1:], masks)


@DIMS
def test_the_target_is_the_union_of_the_edges_of_the_classes(spatial_dims):
    masks = foreground_masks(torch.randint(0, 3, (2, 1, *[7] * spatial_dims)), 3)
    one, each = edge_targets(masks), edge_targets(masks, per_class=True)
    assert one.shape == (2, 1, *[7] * spatial_dims)
    assert torch.equal(each, (sobel_edges(masks) > 1e-4).float())
    assert torch.equal(one, torch.maximum(each[:, :1], each[:, 1:]))
    assert torch.equal(edge_targets(masks, soft=True), sobel_edges(masks).amax(1, keepdim=True))
    assert torch.equal(edge_targets(masks, soft=True, per_class=True), sobel_edges(masks))


def test_neighboring_classes_have_an_edge_whatever_their_numbers():
    target = SobelEdges(num_classes=4)(STRIPES)
    assert target.tolist() == [[0, 0, 1, 1, 1, 1, 1, 1, 0]]
    each = SobelEdges(num_classes=4, per_class=True)(STRIPES)
    assert each.tolist() == [[0, 0, 1, 1, 1, 1, 0, 0, 0], [0] * 9, [0, 0, 0, 0, 1, 1, 1, 1, 0]]
    assert SobelEdges(num_classes=4, soft=True)(STRIPES).unique().tolist() == [0, 0.5]


@pytest.mark.parametrize(("threshold", "voxels"), [(0.0, 8**3 - 4**3), (0.25, 8**3 - 4**3 - 12 * 6 - 8), (1.0, 0)])
def test_the_threshold_narrows_the_band(threshold, voxels):
    label = torch.zeros(1, 20, 20, 20)
    label[:, 7:13, 7:13, 7:13] = 1
    edges = SobelEdges(threshold=threshold)(label)
    assert edges.sum() == voxels  # at 0.25 the edges and corners of the cube of 8 are left out
    assert torch.equal(edges, (SobelEdges(soft=True)(label) > max(threshold, 1e-4)).float())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bool])
def test_labels_of_any_type_have_edges_where_monais_filter_sees_none(dtype):
    label = (STRIPES > 0).to(dtype)
    expected = [[0, 0, 1, 1, 0, 0, 1, 1, 0]]
    assert SobelEdges()(label).tolist() == expected
    assert SobelEdges(num_classes=2)(label).tolist() == expected
    if dtype == torch.uint8:  # the day this fails, MONAI is fixed
        assert SobelGradients(padding_mode="replicate")(label[:, :, None].expand(-1, -1, 3)).max() == 0


def test_masks_are_taken_as_they_are_overlapping_or_not():
    masks = torch.zeros(3, 12, 12)  # whole tumor, core, enhancing: one within the other
    for channel, margin in enumerate((1, 3, 5)):
        masks[channel, margin:-margin, margin:-margin] = 1
    each = SobelEdges(per_class=True)(masks)
    assert torch.equal(each.as_tensor(), edge_targets(masks.bool()[None], per_class=True)[0])
    assert torch.equal(SobelEdges()(masks).as_tensor(), each.as_tensor().amax(0, keepdim=True))


def test_the_metadata_are_kept():
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0]))
    label = MetaTensor(torch.ones(1, 4, 5, 6, dtype=torch.uint8), affine=affine, meta={"filename_or_obj": "case.nii"})
    data = Compose([Flipd("label", 0), SobelEdgesd("label", num_classes=2, new_key_prefix="edges_of_")])(
        {"label": label}
    )
    edges = data["edges_of_label"]
    assert edges.dtype == torch.float32
    assert edges.meta["filename_or_obj"] == "case.nii"
    assert torch.equal(edges.affine, data["label"].affine)
    assert len(edges.applied_operations) == 1
    assert data["label"].dtype == torch.uint8


def test_the_dictionary_form_replaces_the_label_or_puts_the_edges_beside_it():
    options = {"num_classes": 4, "per_class": True, "threshold": 0.1, "soft": True}
    expected = SobelEdges(**options)(STRIPES)
    replaced = SobelEdgesd("label", **options)({"label": STRIPES, "image": 1})
    assert torch.equal(replaced["label"], expected)
    assert replaced["image"] == 1
    beside = SobelEdgesd("label", **options, new_key_prefix="edges_of_")({"label": STRIPES})
    assert torch.equal(beside["edges_of_label"], expected)
    assert beside["label"] is STRIPES


@pytest.mark.parametrize(("num_classes", "expected"), [(3, "expected 0 to 2"), (None, "expected 0 to 1")])
def test_values_that_are_no_classes_are_refused(num_classes, expected):
    with pytest.raises(ValueError, match=expected):
        SobelEdges(num_classes=num_classes)(STRIPES)
    with pytest.raises(ValueError, match="values from -1"):
        SobelEdges(num_classes=num_classes)(-STRIPES.clamp(max=1).int())
    with pytest.raises(ValueError, match="must have one channel"):
        SobelEdges(num_classes=4)(STRIPES.expand(2, -1))
    with pytest.raises(ValueError, match="at least 2"):
        SobelEdges(num_classes=1)
