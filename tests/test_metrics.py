# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from monai.metrics import ConfusionMatrixMetric

from monai_attn.metrics import ISICSegmentationMetric

NAMES = ISICSegmentationMetric.names


def masks(count=5, seed=0, size=(1, 24, 31)):
    rng = np.random.RandomState(seed)
    truth = [rng.rand(*size) < rng.uniform(0.05, 0.6) for _ in range(count)]
    prediction = [mask ^ (rng.rand(*size) < 0.2) for mask in truth]
    return [torch.as_tensor(np.stack(part).astype(np.uint8)) for part in (prediction, truth)]


def scores(prediction, truth):
    metric = ISICSegmentationMetric()
    metric(prediction, truth)
    return dict(zip(NAMES, metric.aggregate().tolist()))


def by_definition(prediction, truth):
    """The official scorer's arithmetic, of one image."""
    p, t = prediction.numpy().astype(bool), truth.numpy().astype(bool)
    tp, fp, fn, tn = ((p & t).sum(), (p & ~t).sum(), (~p & t).sum(), (~p & ~t).sum())
    return [tp / (tp + fp + fn), 2 * tp / (2 * tp + fp + fn), (tp + tn) / p.size, tp / (tp + fn), tn / (tn + fp)]


@pytest.mark.parametrize("size", [(1, 24, 31), (1, 6, 7, 8)])
def test_the_metrics_are_those_of_the_definition_averaged_over_images(size):
    prediction, truth = masks(size=size)
    expected = np.mean([by_definition(p, t) for p, t in zip(prediction, truth)], axis=0)
    assert list(scores(prediction, truth).values()) == pytest.approx(expected.tolist(), abs=1e-12)


def test_the_metrics_equal_those_of_monai_per_sample_and_differ_from_its_pooled_default():
    prediction, truth = masks()
    ours = scores(prediction, truth)
    names = ["threat score", "f1 score", "accuracy", "sensitivity", "specificity"]
    for per_sample in (True, False):
        metric = ConfusionMatrixMetric(metric_name=names, compute_sample=per_sample)
        metric(prediction, truth)
        difference = max(abs(float(a) - b) for a, b in zip(metric.aggregate(), ours.values()))
        assert difference < 1e-6 if per_sample else difference > 0.01


def test_a_picture_without_lesion_counts_as_the_official_scorer_has_it():
    truth = torch.zeros(2, 1, 4, 4)
    truth[0, 0, :2] = 1
    prediction = truth.clone()
    prediction[0, 0, 0] = 0
    # first image: 4 of 8 found; second image: nothing there, nothing found
    assert scores(prediction, truth)["jaccard"] == pytest.approx((0.5 + 1) / 2)


def test_images_of_different_sizes_add_up():
    metric = ISICSegmentationMetric()
    parts = [masks(1, seed, (1, 10 + seed, 20)) for seed in range(3)]
    for prediction, truth in parts:
        metric(list(prediction), list(truth))
    expected = np.mean([by_definition(p[0], t[0]) for p, t in parts], axis=0)
    assert metric.aggregate().tolist() == pytest.approx(expected.tolist(), abs=1e-12)
    assert metric.get_buffer().shape == (3, 5)
    metric.reset()
    with pytest.raises(ValueError, match="nothing"):
        metric.aggregate()


@pytest.mark.parametrize(
    ("prediction", "truth", "message"),
    [
        (torch.full((1, 1, 4, 4), 0.5), torch.zeros(1, 1, 4, 4), "0 and 1 only"),
        (torch.zeros(1, 1, 4, 4), torch.full((1, 1, 4, 4), 255), "must hold 0 and 1 only"),
        (torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4), "y_pred must be of shape"),
        (torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 5), "same shapes"),
        (torch.zeros(1, 1, 4, 4), None, "y, the true mask"),
    ],
)
def test_what_is_not_a_pair_of_masks_raises(prediction, truth, message):
    with pytest.raises(ValueError, match=message):
        ISICSegmentationMetric()(prediction, truth)


def test_a_published_jaccard_above_the_sensitivity_cannot_be_one():
    """The lung table of FocusNet: what its sensitivity, specificity and accuracy say that its Jaccard index is."""
    sensitivity, specificity, accuracy = 0.9757, 0.9981, 0.9932
    prevalence = (specificity - accuracy) / (specificity - sensitivity)
    tp, fp = prevalence * sensitivity, (1 - prevalence) * (1 - specificity)
    assert tp / (prevalence + fp) == pytest.approx(0.969, abs=5e-4)
    # the authors' metric sums over an axis of size one with smooth = 1: right pixels score 1, wrong ones 1/2
    assert (1 + accuracy) / 2 == pytest.approx(0.9965, abs=2e-4)
