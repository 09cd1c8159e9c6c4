# SPDX-License-Identifier: Apache-2.0

import argmax
import measure
import numpy as np
import pytest
import torch
from PIL import Image

from monai_attn.data import cases
from monai_attn.losses import BalancedBCELoss, ClassBalancedLoss, EdgeConsistencyLoss, EGCNNLoss
from monai_attn.weights.checkpoint import read_state_dict

from ..bundles.conftest import MARKS, NAMES
from ..conftest import read_csv

fault = pytest.mark.fault


@fault(20)
def test_a_loss_that_is_no_number(lab):
    folder = lab.folder / "models"
    lab.train(ckpt_dir=str(folder), output_dir=folder).finished()
    before = {path.name: path.read_bytes() for path in folder.glob("*.pt")}
    sgd = {"_target_": "torch.optim.SGD", "params": "$@network.parameters()", "lr": "@lr"}
    broken = {"optimizer": sgd, "lr": 1e18, "epochs": 6, "val_interval": 1}
    attempt = lab.train(ckpt_dir=str(folder), output_dir=folder, **broken)
    assert attempt.code == 2
    said = ("their loss is nan", "phantom_", "lower the learning rate")
    assert [words for words in said if words not in attempt.screen] == []
    assert (folder / "model.pt").read_bytes() == before["model.pt"]
    assert all(value.isfinite().all() for value in read_state_dict(folder / "model.pt")[1].values())


@fault(54)
@pytest.mark.parametrize("name", [pytest.param(name, marks=MARKS[name]) for name in NAMES])
def test_a_batch_without_anything_to_find(train_bundle, lab, name):
    bundle = train_bundle(name)
    lab.bundle, lab.network = bundle, {}
    data = lab.dataset()
    case = cases(data)[0]
    if case["label"].endswith(".png"):
        with Image.open(case["label"]) as picture:
            Image.new(picture.mode, picture.size).save(case["label"])
    else:
        lab.respell(case["label"], np.zeros_like)
    attempt = lab.train(data, **{"train#dataset#data": [case] * 2})
    attempt.finished().warned(case["label"], "the label is empty")
    curves = read_csv(attempt.output / "curves.csv")
    losses = [float(row["value"]) for row in curves if row["name"] == "loss"]
    assert losses
    assert np.isfinite(losses).all()
    weights = read_state_dict(attempt.output / "model_final.pt")[1]
    assert all(value.isfinite().all() for value in weights.values())


@fault(55)
def test_false_edges_where_there_are_none():
    label = torch.zeros(1, 1, 16, 16, 16)
    wrong, right = torch.full_like(label, 5.0).requires_grad_(), torch.full_like(label, -5.0)
    assert BalancedBCELoss(empty_weight=0.0)(wrong, label) == 0  # the paper's equation
    losses = [BalancedBCELoss()(logits, label) for logits in (wrong, right)]
    assert losses[0] > 100 * losses[1]
    losses[0].backward()
    assert (wrong.grad > 0).all()


@fault(56)
def test_the_logarithm_of_0():
    logits = torch.tensor([[[200.0, -200.0, 1e4, -1e4]]], requires_grad=True)
    for edges in (torch.zeros(1, 1, 4), torch.ones(1, 1, 4), torch.tensor([[[0.0, 1.0, 0.0, 1.0]]])):
        loss = BalancedBCELoss()(logits, edges)
        loss.backward()
        assert loss.isfinite()
        assert logits.grad.isfinite().all()


@fault(57)
@pytest.mark.parametrize(
    "loss", [ClassBalancedLoss(), EGCNNLoss(), EdgeConsistencyLoss()], ids=lambda x: type(x).__name__
)
def test_sums_over_more_voxels_than_half_precision_can_count(loss):
    label = (torch.arange(64).reshape(64, 1, 1) < 60).expand(1, 1, 64, 64, 64).float()
    scores = torch.stack([1 - label[:, 0], label[:, 0]], 1) * 8 - 4
    assert scores.half().sigmoid().sum().isfinite().logical_not()  # what half precision makes of it
    outputs = [[scores.to(kind), 8 * label.to(kind) - 4] for kind in (torch.float16, torch.float32)]
    results = []
    for pair in outputs:
        torch.manual_seed(0)  # one of them is noisy
        results.append(loss(pair if isinstance(loss, EGCNNLoss) else pair[0], label))
    assert results[0].dtype == torch.float32
    assert results[0].isfinite()
    assert torch.allclose(results[0], results[1], rtol=1e-3)


@pytest.mark.slow
@fault(66)
def test_many_classes_of_a_large_volume():
    way = (256, 27, "ours", "window", 0.0)
    peak, _ = measure.in_fresh_process(argmax.maps_and_content, *way, environment=measure.GIVE_BACK)
    assert peak <= 1.5  # maps of all probabilities on the image's grid
