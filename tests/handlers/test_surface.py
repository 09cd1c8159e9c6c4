# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch
from ignite.engine import Engine
from ignite.exceptions import NotComputableError
from monai.data import MetaTensor
from monai.handlers import from_engine

from monai_attn.handlers import SpacedHausdorffDistance, SpacedSurfaceDistance

PAIR = from_engine(["pred", "label"])
PLANE = 8


def slab(position, spacing=(1.0, 2.0, 4.0)):
    """A label map with a slab of class 1, one voxel thick, at a position along the last axis."""
    labels = torch.zeros(1, PLANE, PLANE, PLANE)
    labels[..., position] = 1
    return MetaTensor(labels, affine=torch.diag(torch.tensor([*spacing, 1.0])))


def measured(metric, *cases):
    engine = Engine(lambda engine, batch: batch)
    metric.attach(engine, "distance")
    engine.run([[{"pred": pred, "label": label}] for pred, label in cases])
    return engine.state.metrics["distance"], engine.state.metric_details["distance"]


@pytest.mark.parametrize("metric", [SpacedHausdorffDistance, SpacedSurfaceDistance])
def test_parallel_planes_are_as_far_as_their_spacing_says(metric):
    mean, details = measured(
        metric(num_classes=2, output_transform=PAIR),
        (slab(2), slab(4)),
        (slab(2, (1.0, 1.0, 1.5)), slab(3, (1.0, 1.0, 1.5))),
    )
    assert details.flatten().tolist() == [8.0, 1.5]
    assert mean == pytest.approx(4.75)


def test_the_percentile_leaves_a_single_far_voxel_out():
    label, prediction = slab(2), slab(2)
    prediction[0, 0, 0, 7] = 1
    assert measured(SpacedHausdorffDistance(num_classes=2, output_transform=PAIR), (prediction, label))[0] == 20.0
    assert measured(SpacedHausdorffDistance(95, num_classes=2, output_transform=PAIR), (prediction, label))[0] == 0.0


def test_masks_are_measured_each():
    masks = MetaTensor(torch.cat([slab(1), slab(5)]), affine=slab(1).affine)
    moved = MetaTensor(torch.cat([slab(1), slab(6)]), affine=slab(1).affine)
    metric = SpacedSurfaceDistance(include_background=True, output_transform=PAIR)
    assert measured(metric, (moved, masks))[1].tolist() == [[0.0, 4.0]]


def test_pictures_are_measured_in_two_dimensions():
    label = MetaTensor(torch.eye(6)[None], affine=torch.eye(4))
    metric = SpacedHausdorffDistance(num_classes=2, output_transform=PAIR)
    assert measured(metric, (label, label))[0] == 0.0


@pytest.mark.filterwarnings("ignore:the (prediction|ground truth) of class")
def test_a_missed_structure_is_infinitely_far_and_an_absent_one_is_left_out():
    empty = MetaTensor(torch.zeros_like(slab(1)), affine=slab(1).affine)
    metric = SpacedSurfaceDistance(num_classes=2, output_transform=PAIR)
    mean, details = measured(metric, (empty, slab(1)), (empty, empty))
    assert math.isinf(details[0])
    assert math.isnan(details[1])
    assert math.isinf(mean)


def test_other_outputs_are_refused():
    with pytest.raises(NotComputableError, match="pair"):
        SpacedSurfaceDistance().update([slab(1)])
