# SPDX-License-Identifier: Apache-2.0
import math
from functools import partial

import pytest
import torch
from ignite.engine import Engine, Events
from ignite.exceptions import NotComputableError
from monai.data import MetaTensor
from monai.handlers import from_engine

from monai_attn.handlers import (
    CaseMetricsSaver,
    ISICSegmentation,
    MeanDiceOrNaN,
    SpacedHausdorffDistance,
    SpacedSurfaceDistance,
)
from monai_attn.metrics import ISICSegmentationMetric

from ..conftest import read_csv


def tables(folder, paths, structures, values):
    """The raw table of some cases, and the summary by its structures."""
    engine = Engine(lambda engine, batch: None)
    CaseMetricsSaver(str(folder), structures).attach(engine)
    details = {"metrics": {"dice": 0.5}, "metric_details": {"dice": torch.tensor(values)}}
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: engine.state.__dict__.update(details))
    engine.run([[{"image": MetaTensor(torch.zeros(1), meta={"filename_or_obj": path})} for path in paths]])
    summary = {row["class"]: row for row in read_csv(folder / "dice_summary.csv")}
    return read_csv(folder / "dice_raw.csv"), summary


def test_the_tables_name_cases_and_structures(tmp_path):
    values = [[0.2, 0.4], [0.6, math.nan]]
    rows, summary = tables(tmp_path, ["/secret/a.nii.gz", "/secret/b.nii.gz"], ["left", "right"], values)
    assert [row["filename"] for row in rows] == ["a", "b"]
    assert [float(rows[0][name]) for name in ("left", "right", "mean")] == pytest.approx([0.2, 0.4, 0.3])
    assert (rows[1]["right"], float(rows[1]["mean"])) == ("nan", pytest.approx(0.6))
    assert set(summary) == {"left", "right", "mean"}
    assert [float(summary["right"][name]) for name in ("mean", "notnans", "nans")] == [pytest.approx(0.4), 1, 1]
    assert [float(summary["left"][name]) for name in ("mean", "notnans", "nans")] == [pytest.approx(0.4), 2, 0]


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (("/data/a/t1.nii.gz", "/data/b/t1.nii.gz"), ["a_t1", "b_t1"]),
        (("/data/=HYPERLINK(evil).nii", '/data/a,"b".nii'), ["'=HYPERLINK(evil)", 'a,"b"']),  # never formulas
    ],
)
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_every_case_has_a_line_of_its_own_name_and_no_number_at_all_is_nan(tmp_path, paths, names):
    rows, summary = tables(tmp_path, paths, ["left"], [[math.nan], [math.nan]])
    assert [(row["filename"], row["left"]) for row in rows] == [(name, "nan") for name in names]
    assert [summary["left"]["mean"], float(summary["left"]["notnans"]), float(summary["left"]["nans"])] == ["nan", 0, 2]


def mean_dice(truths):
    """The mean Dice of a perfect segmentation."""
    evaluator = Engine(lambda engine, batch: (batch, batch))
    evaluator.state.metric_details = {}
    MeanDiceOrNaN(include_background=False).attach(evaluator, "dice")
    evaluator.run([torch.stack([1 - truth, truth], dim=1) for truth in truths])
    return evaluator.state.metrics["dice"], evaluator.state.metric_details["dice"]


def test_a_structure_that_no_case_has_gives_nan_and_never_zero():
    empty, full = torch.zeros(1, 4, 4), torch.ones(1, 4, 4)
    assert math.isnan(mean_dice([empty, empty])[0])
    mean, details = mean_dice([empty, full])
    assert mean == 1
    assert details.isnan().flatten().tolist() == [True, False]


def test_the_isic_handler_gives_five_numbers_and_those_of_each_image():
    generator = torch.Generator().manual_seed(0)
    masks = [(torch.rand(2, 3, 1, 8, 9, generator=generator) > 0.5).byte() for _ in range(2)]
    metric = ISICSegmentationMetric()
    for prediction, truth in masks:
        metric(prediction, truth)

    evaluator = Engine(lambda engine, batch: tuple(batch))
    ISICSegmentation().attach(evaluator, "val_jaccard")
    for _ in range(2):  # a second epoch starts anew
        evaluator.run(masks)
    names = [f"val_{name}" for name in metric.names]
    assert [evaluator.state.metrics[name] for name in names] == metric.aggregate().tolist()
    details = torch.cat([evaluator.state.metric_details[name] for name in names], dim=1)
    assert torch.equal(details, metric.get_buffer())


def test_the_isic_handler_has_five_names_whatever_its_own():
    evaluator = Engine(lambda engine, batch: tuple(batch))
    ISICSegmentation().attach(evaluator, "val_isic")
    evaluator.run([(torch.ones(1, 1, 4, 4), torch.eye(4)[None, None])])
    metrics = evaluator.state.metrics
    assert metrics["val_isic"] == metrics["val_isic_jaccard"] == metrics["val_isic_accuracy"] == 0.25
    assert (metrics["val_isic_sensitivity"], metrics["val_isic_specificity"]) == (1, 0)


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
    metric = SpacedHausdorffDistance(percentile=95, num_classes=2, output_transform=PAIR)
    assert measured(metric, (prediction, label))[0] == 0.0


def test_masks_are_measured_each_and_pictures_in_two_dimensions():
    masks = MetaTensor(torch.cat([slab(1), slab(5)]), affine=slab(1).affine)
    moved = MetaTensor(torch.cat([slab(1), slab(6)]), affine=slab(1).affine)
    metric = SpacedSurfaceDistance(include_background=True, output_transform=PAIR)
    assert measured(metric, (moved, masks))[1].tolist() == [[0.0, 4.0]]
    label = MetaTensor(torch.eye(6)[None], affine=torch.eye(4))
    metric = SpacedHausdorffDistance(num_classes=2, output_transform=PAIR)
    assert measured(metric, (label, label))[0] == 0.0
    with pytest.raises(NotComputableError, match="pair"):
        metric.update([slab(1)])


@pytest.mark.fault(92)
@pytest.mark.filterwarnings("ignore:the (prediction|ground truth) of class", "ignore:All-NaN:RuntimeWarning")
@pytest.mark.parametrize(
    "metric",
    [
        partial(SpacedHausdorffDistance, percentile=95),
        SpacedHausdorffDistance,
        SpacedSurfaceDistance,
        partial(SpacedSurfaceDistance, symmetric=False),
    ],
)
def test_a_missed_structure_is_infinitely_far_and_an_absent_one_is_left_out(metric, caplog):
    empty = MetaTensor(torch.zeros_like(slab(1)), affine=slab(1).affine)
    metric = partial(metric, num_classes=2, output_transform=PAIR)
    mean, details = measured(metric(), (empty, slab(1)), (slab(1), empty), (empty, empty), (slab(1), slab(1)))
    assert details.flatten().tolist() == pytest.approx([math.inf, math.inf, math.nan, 0], nan_ok=True)
    assert math.isinf(mean)
    assert caplog.text.count("distance inf") == 2
    assert math.isnan(measured(metric(), (empty, empty))[0])
