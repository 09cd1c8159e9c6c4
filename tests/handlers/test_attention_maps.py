# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import nibabel
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.inferers import SimpleInferer, SlidingWindowInferer
from monai.networks.nets import SegResNet
from monai.transforms import AsDiscreted, Compose, LoadImaged, Orientationd, Spacingd
from torch import nn

from monai_attn.blocks import Gate
from monai_attn.errors import ConfigError
from monai_attn.handlers import AttentionMaps
from monai_attn.inferers import SliceBatchInferer
from monai_attn.nets import EGCNN, AFNet, SCSEUNet
from monai_attn.transforms import SafeSaveImaged
from monai_attn.visualize import GateMaps, save_attention

CPU = torch.device("cpu")


def output_with_maps(network, image, inferer):
    evaluator = SupervisedEvaluator(
        device=CPU,
        val_data_loader=[{"image": image, "label": image}],
        network=network,
        inferer=inferer,
        val_handlers=[handler := AttentionMaps(network, inferer, "unused")],
        decollate=False,
    )
    handler.max_cases = 0  # pictures have their own tests
    evaluator.run()
    return evaluator.state.output


def named(*shape):
    return MetaTensor(torch.randn(*shape), meta={"filename_or_obj": [f"{index}" for index in range(shape[0])]})


@pytest.mark.parametrize("inferer", [SimpleInferer(), SlidingWindowInferer(16, overlap=0.5, mode="gaussian")])
def test_maps_stand_beside_the_prediction_and_carry_the_images_metadata(inferer):
    network = EGCNN(SegResNet(2, 8, 1, 3, blocks_down=(1, 1, 1), blocks_up=(1, 1))).eval()
    image = named(2, 1, 24, 20)
    output = output_with_maps(network, image, inferer)
    assert output["pred"].shape == (2, 3, 24, 20)
    edges = output["attention_edges"]
    assert edges.dtype == torch.float32
    assert not edges.requires_grad
    assert edges.meta["filename_or_obj"] == ["0", "1"]
    with torch.no_grad():
        assert torch.equal(edges.as_tensor(), inferer(image.as_tensor(), network.edges))
    alpha = output["attention_gates.0"]
    assert alpha.shape == (2, 1, 24, 20)
    assert 0.5 <= float(alpha.min()) < float(alpha.max()) < 1


def test_a_slice_has_the_map_that_it_has_alone():
    network = SCSEUNet(2, 1, 2, features=4, depth=1).eval()
    volume = named(1, 1, 10, 12, 5)
    found = output_with_maps(network, volume, SliceBatchInferer(spatial_dim=2, batch_size=2))
    maps = GateMaps(network)
    with torch.no_grad():
        alone = maps.split(maps(volume.as_tensor()[..., 3]), volume.as_tensor()[..., 3])
    assert list(alone) == ["encoder_se.0.spatial", "decoder_se.0.spatial"]
    for name, expected in alone.items():
        torch.testing.assert_close(found[f"attention_{name}"].as_tensor()[..., 3], expected)


@pytest.fixture
def autofocus():
    torch.manual_seed(0)
    return AFNet(3, 1, 2, n_autofocus=2, channels=(4, 4, 4, 4, 4, 4, 6, 6), dilations=(1, 2, 4)).eval()


def test_a_voxels_scale_is_the_dilation_of_the_largest_weight(autofocus):
    image = named(2, 1, 14, 12, 11)
    expected = []
    layers = [autofocus.trunk.blocks[-1].first, autofocus.trunk.blocks[-1].second]
    hooks = [
        layer.register_forward_pre_hook(
            lambda layer, args: expected.append(torch.tensor(layer.dilations)[layer.attend(args[0]).argmax(dim=1)])
        )
        for layer in layers
    ]
    with torch.no_grad():
        autofocus(image.as_tensor())
    for hook in hooks:
        hook.remove()
    output = output_with_maps(autofocus, image, SimpleInferer())
    assert len(torch.stack(expected).unique()) > 1
    for place, dilations in zip(("first", "second"), expected):
        scales = output[f"attention_trunk.blocks.2.{place}"]
        assert scales.shape == (2, 1, 14, 12, 11)
        # at a tie to rounding, two ways of computing may choose differently
        assert (scales.as_tensor()[:, 0] == dilations).float().mean() > 0.999


def test_windows_give_scales_too(autofocus):
    windows = SlidingWindowInferer((8, 8, 8), overlap=0.5)
    output = output_with_maps(autofocus, named(1, 1, 14, 12, 11), windows)
    assert set(output["attention_trunk.blocks.2.first"].unique().tolist()) <= {1, 2, 4}


def test_a_network_without_spatial_gates_is_refused():
    for network in (SegResNet(2), SCSEUNet(2, 1, 2, features=4, depth=1, se="cse")):
        with pytest.raises(ConfigError, match="no gate with a place in the image"):
            AttentionMaps(network, SimpleInferer(), "out")


def test_an_exported_network_is_refused_in_its_own_words():
    exported = torch.jit.script(SCSEUNet(2, 1, 2, features=4, depth=1).eval())
    with pytest.raises(ConfigError, match="an exported network does not show its gates"):
        AttentionMaps(exported, SimpleInferer(), "out")


class Follows(nn.Module):
    """A network whose map is the image: high where that is."""

    def __init__(self):
        super().__init__()
        self.gate = Gate()

    def forward(self, x):
        return torch.cat([-x, x], dim=1) * self.gate(20 * (x - 0.5))


@pytest.mark.parametrize("axes", [np.eye(3), [[0, 0, -1], [-1, 0, 0], [0, 1, 0]]], ids=["RAS", "turned"])
def test_a_map_lies_over_its_structure_in_the_file_however_that_is_stored(tmp_path, axes):
    """The image's bright block, 2 x 4 x 2 voxels of 1 x 2 x 3 mm, is what the gate opens for."""
    voxels = np.zeros((12, 14, 10), np.float32)
    voxels[6:8, 2:6, 4:6] = 1
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(axes) @ np.diag([1.0, 2.0, 3.0])
    affine[:3, 3] = (-5, 7, 11)
    path = tmp_path / "in" / "scan.nii.gz"
    path.parent.mkdir()
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    preprocessing = Compose(
        [
            LoadImaged("image", ensure_channel_first=True),
            Orientationd("image", axcodes="RAS", labels=None),
            Spacingd("image", pixdim=(1.0, 1.0, 1.0), mode="bilinear"),
        ]
    )
    network, inferer, out = Follows(), SlidingWindowInferer((8, 8, 8), overlap=0.25), tmp_path / "out"
    evaluator = SupervisedEvaluator(
        device=CPU,
        val_data_loader=DataLoader(Dataset([{"image": str(path)}], preprocessing)),
        network=network,
        inferer=inferer,
        postprocessing=Compose(
            [
                AsDiscreted("pred", argmax=True),
                save_attention(network, preprocessing, out),
            ]
        ),
        val_handlers=[handler := AttentionMaps(network, inferer, str(out))],
    )
    handler.max_cases = 0
    evaluator.run()
    saved = nibabel.load(out / "scan_attention_gate.nii.gz")
    assert np.allclose(saved.affine, affine)
    assert saved.get_data_dtype() == np.float32
    found = np.asarray(saved.dataobj)
    assert found.shape == voxels.shape
    assert found[6:8, 2:6, 4:6].min() > 0.6
    assert found[np.isclose(voxels, 0)].mean() < 0.05
    assert np.unravel_index(found.argmax(), found.shape)[0] in (6, 7)


def test_a_picture_shows_every_map_by_its_name(tmp_path):
    path = tmp_path / "scan.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.random.default_rng(0).random((10, 11, 6), np.float32), np.eye(4)), path)
    network, inferer = SCSEUNet(2, 1, 2, features=4, depth=1).eval(), SliceBatchInferer(2)
    preprocessing = Compose([LoadImaged("image", ensure_channel_first=True)])
    handler = AttentionMaps(network, inferer, str(tmp_path))
    drawn = []
    handler.figure = lambda *case: drawn.append(AttentionMaps.figure(handler, *case)) or drawn[-1]
    evaluator = SupervisedEvaluator(
        device=CPU,
        val_data_loader=DataLoader(Dataset([{"image": str(path)}], preprocessing)),
        network=network,
        inferer=inferer,
        postprocessing=Compose([AsDiscreted("pred", argmax=True), SafeSaveImaged("pred", tmp_path / "out")]),
        val_handlers=[handler],
    )
    evaluator.run()
    titles = [axis.get_title() for axis in drawn[0].axes[:4]]
    assert titles == ["image", "prediction", "encoder_se.0.spatial", "decoder_se.0.spatial"]
    assert (tmp_path / "out" / "scan_attention.png").is_file()
