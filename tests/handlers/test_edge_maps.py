# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from monai.engines import SupervisedEvaluator
from monai.inferers import SimpleInferer, SlidingWindowInferer
from monai.networks.nets import SegResNet

from monai_attn.handlers import EdgeMaps
from monai_attn.nets import EGCNN


@pytest.fixture
def network():
    torch.manual_seed(0)
    return EGCNN(SegResNet(2, 8, 1, 3, blocks_down=(1, 1, 1), blocks_up=(1, 1)))


def output_with_edges(network, image, inferer):
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=[{"image": image, "label": image}],
        network=network,
        inferer=inferer,
        val_handlers=[EdgeMaps(network, inferer)],
        decollate=False,
    )
    evaluator.run()
    return evaluator.state.output


@pytest.mark.parametrize("inferer", [SimpleInferer(), SlidingWindowInferer(16, overlap=0.5, mode="gaussian")])
def test_edges_stand_beside_the_prediction_and_carry_the_images_metadata(network, inferer):
    image = MetaTensor(torch.randn(2, 1, 24, 20), meta={"filename_or_obj": ["a", "b"]})
    output = output_with_edges(network, image, inferer)
    edges = output["edges"]
    assert edges.shape == (2, 1, 24, 20)
    assert edges.dtype == torch.float32
    assert not edges.requires_grad
    assert edges.meta["filename_or_obj"] == ["a", "b"]
    assert output["pred"].shape == (2, 3, 24, 20)
    network.eval()
    with torch.no_grad():
        expected = inferer(image.as_tensor(), network.edges)
    assert torch.equal(edges.as_tensor(), expected)
    assert 0 < float(edges.min()) < float(edges.max()) < 1


def test_an_image_without_metadata_gives_edges_without(network):
    edges = output_with_edges(network, torch.randn(1, 1, 16, 16), SimpleInferer())["edges"]
    assert type(edges) is torch.Tensor


def test_a_network_without_edges_is_refused():
    with pytest.raises(TypeError, match="SegResNet"):
        EdgeMaps(SegResNet(2), SimpleInferer())
