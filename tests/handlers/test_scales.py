# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from monai.engines import SupervisedEvaluator
from monai.inferers import SimpleInferer, SlidingWindowInferer
from monai.networks.nets import UNet

from monai_attn.handlers import ScaleMaps
from monai_attn.inferers import LayerwiseInferer
from monai_attn.nets import AFNet

CHANNELS = (4, 4, 4, 4, 4, 4, 6, 6)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return AFNet(3, 1, 2, n_autofocus=2, channels=CHANNELS, dilations=(1, 2, 4)).eval()


def scale_maps(network, image, inferer):
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=[{"image": image, "label": image}],
        network=network,
        inferer=inferer,
        val_handlers=[ScaleMaps(network)],
        decollate=False,
    )
    evaluator.run()
    return evaluator.state.output["scales"]


@pytest.mark.parametrize("inferer", [SimpleInferer(), LayerwiseInferer(slab=5), LayerwiseInferer(5, spatial_dim=2)])
def test_a_voxels_scale_is_the_dilation_of_the_largest_weight(network, inferer):
    image = MetaTensor(torch.randn(2, 1, 14, 12, 11), meta={"filename_or_obj": ["a", "b"]})
    expected = []
    layers = [network.trunk.blocks[-1].first, network.trunk.blocks[-1].second]
    hooks = [
        layer.register_forward_pre_hook(
            lambda layer, args: expected.append(torch.tensor(layer.dilations)[layer.attend(args[0]).argmax(dim=1)])
        )
        for layer in layers
    ]
    with torch.no_grad():
        network(image.as_tensor())
    for hook in hooks:
        hook.remove()
    scales = scale_maps(network, image, inferer)
    assert scales.dtype == torch.uint8
    assert scales.shape == (2, 2, 14, 12, 11)
    # at a tie to rounding, two ways of computing may choose differently
    assert (scales.as_tensor() == torch.stack(expected, dim=1)).float().mean() > 0.999
    assert len(scales.unique()) > 1


def test_overlapping_windows_do_not_make_up_a_map(network):
    with pytest.raises(ValueError, match="layer by layer"):
        scale_maps(network, torch.randn(1, 1, 14, 12, 11), SlidingWindowInferer((8, 8, 8), overlap=0.5))


def test_a_network_without_autofocus_layers_is_refused():
    with pytest.raises(ValueError, match="UNet has no autofocus layer"):
        ScaleMaps(UNet(2, 1, 2, (4, 8), (2,)))
