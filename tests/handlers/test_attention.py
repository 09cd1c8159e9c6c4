# SPDX-License-Identifier: Apache-2.0
import nibabel
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.inferers import SimpleInferer, SlidingWindowInferer
from monai.transforms import AsDiscreted, Compose, Invertd, LoadImaged, Orientationd, Spacingd
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from monai_attn.blocks import Gate
from monai_attn.errors import ConfigError
from monai_attn.handlers import AttentionMapHandler, AttentionMaps, attention
from monai_attn.inferers import SliceBatchInferer
from monai_attn.nets import AFNet, SCSEUNet
from monai_attn.run import FinishedCases
from monai_attn.transforms import SafeSaveImaged
from monai_attn.visualize import GateMaps, capture_attention

LOAD = LoadImaged("image", ensure_channel_first=True)


@pytest.fixture(autouse=True)
def no_pictures_are_drawn(monkeypatch):
    """They have their own tests, and take most of the time."""
    monkeypatch.setattr(attention.figures, "save", lambda figure, path: path.with_suffix(".drawn").touch())


def segment(network, path, out, preprocessing=None, inferer=None, **options):
    """Segment a file with its attention maps; returns what the evaluator has for it, and what was drawn."""
    preprocessing = preprocessing or Compose([LOAD])
    inferer, drawn = inferer or SimpleInferer(), []
    handler = AttentionMaps(network.eval(), inferer, preprocessing, str(out), **options)
    handler.draw = lambda *case: drawn.append(AttentionMaps.draw(handler, *case)) or drawn[-1]
    saver = SafeSaveImaged("pred", out, output_ext=options.get("output_ext", ".nii.gz"))
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset([{"image": str(path)}], preprocessing)),
        network=network,
        inferer=inferer,
        postprocessing=Compose([AsDiscreted("pred", argmax=True), Invertd("pred", preprocessing, "image"), saver]),
        val_handlers=[handler],
    )
    evaluator.run()
    return evaluator.state.output[0], drawn[0]


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
    nibabel.save(nibabel.Nifti1Image(voxels, affine), tmp_path / "scan.nii.gz")
    turn, resample = Orientationd("image", axcodes="RAS", labels=None), Spacingd("image", pixdim=(1.0, 1.0, 1.0))
    inferer = SlidingWindowInferer((8, 8, 8), overlap=0.25)
    segment(Follows(), tmp_path / "scan.nii.gz", tmp_path / "out", Compose([LOAD, turn, resample]), inferer)
    saved = nibabel.load(tmp_path / "out" / "scan_attention_gate.nii.gz")
    assert np.allclose(saved.affine, affine)
    assert saved.get_data_dtype() == np.float32
    found = np.asarray(saved.dataobj)
    assert found.shape == voxels.shape
    assert found[6:8, 2:6, 4:6].min() > 0.6
    assert found[np.isclose(voxels, 0)].mean() < 0.05
    assert np.unravel_index(found.argmax(), found.shape)[0] in (6, 7)


def test_a_slice_has_the_map_that_it_has_alone_and_the_picture_every_map_by_its_name(tmp_path):
    voxels = np.random.default_rng(0).random((10, 11, 6), np.float32)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / "scan.nii.gz")
    network, out = SCSEUNet(2, 1, 2, features=4, depth=1), tmp_path / "out"
    output, figure = segment(network, tmp_path / "scan.nii.gz", out, inferer=SliceBatchInferer(2, batch_size=4))
    assert set(output) == {"image", "label", "pred"}  # a server would have to save more
    names = ["encoder_se.0.spatial", "decoder_se.0.spatial"]
    titles = ["image", "prediction", "encoder 1, spatial", "decoder 1, spatial"]
    assert [axis.get_title() for axis in figure.axes[:4]] == titles
    maps, alone = GateMaps(network), torch.tensor(voxels[None, None, ..., 3])
    with torch.no_grad():
        expected = maps.split(maps(alone), alone)
    for name in names:
        saved = nibabel.load(out / f"scan_attention_{name}.nii.gz").get_fdata()
        assert np.allclose(saved[..., 3], expected[name][0, 0], atol=1e-6)
    assert {path.name for path in out.iterdir() if "attention" not in path.name} == {"scan_seg.nii.gz"}
    assert (out / "scan_attention.drawn").exists()


def test_in_pictures_maps_of_scales_are_grey_values_and_255_stands_for_one(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 12), np.uint8)).save(tmp_path / "scan.png")
    network = AFNet(2, 1, 2, n_autofocus=1, channels=(4, 4, 6, 6), dilations=(1, 3))
    _, figure = segment(network, tmp_path / "scan.png", tmp_path / "out", output_ext=".png")
    scales = np.asarray(Image.open(tmp_path / "out" / "scan_attention_trunk.blocks.0.second.png"))
    assert scales.shape == (8, 12)
    assert set(scales.flat) <= {1, 3}
    assert figure.axes[2].get_title() == "block 1, layer 2, mm"
    segment(Follows(), tmp_path / "scan.png", tmp_path / "out", output_ext=".png")
    assert np.asarray(Image.open(tmp_path / "out" / "scan_attention_gate.png")).max() == 255


@pytest.fixture
def volumes():
    """Two volumes whose labels are largest in slice 4."""
    cases = []
    for name in ("a", "b"):
        image = MetaTensor(torch.randn(1, 10, 12, 6), affine=torch.eye(4), meta={"filename_or_obj": f"{name}.nii.gz"})
        label = torch.zeros(1, 10, 12, 6)
        label[..., 4] = 1
        cases.append({"image": image, "label": label})
    return cases


def network():
    torch.manual_seed(0)
    return SCSEUNet(2, 1, 2, features=4, depth=1, dropout=0.2)


def train(net, *handlers):
    """Two epochs on random slices, with dropout and batch normalization."""
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)

    def step(_engine, batch):
        optimizer.zero_grad()
        net(torch.randn(2, 1, 8, 8) + batch).square().mean().backward()
        optimizer.step()

    engine = Engine(step)
    for handler in handlers:
        handler.attach(engine)
    engine.run([0, 1, 2], max_epochs=2)
    return net.state_dict(), torch.get_rng_state()


def test_a_training_is_bitwise_the_same_with_and_without(volumes, tmp_path):
    net, log = network(), str(tmp_path / "log")
    handler = AttentionMapHandler(net, volumes[:1], str(tmp_path), inferer=SliceBatchInferer(2), log_dir=log)
    with_it, state_with = train(net, handler)
    without, state_without = train(network())
    assert len(list(tmp_path.glob("epoch_*.npz"))) == 2
    assert all(torch.equal(with_it[name], without[name]) for name in without)
    assert torch.equal(state_with, state_without)
    assert net.training
    events = EventAccumulator(log).Reload()
    assert events.Tags()["images"] == ["attention/a"]
    assert [event.step for event in events.Images("attention/a")] == [1, 2]


def save_epochs(handler, epochs=1):
    engine = Engine(lambda *_: None)
    handler.attach(engine)
    engine.run([0], max_epochs=epochs)


@pytest.mark.parametrize("options", [{"inferer": SliceBatchInferer(2)}, {"inferer": SliceBatchInferer(2, 2)}, {}])
def test_files_hold_the_maps_of_the_slice_with_the_most_of_the_label(volumes, tmp_path, options):
    net = network()
    cases = volumes if options else [{name: layer[..., 4] for name, layer in case.items()} for case in volumes]
    save_epochs(AttentionMapHandler(net, cases, str(tmp_path), **options))
    saved = dict(np.load(tmp_path / "epoch_0001.npz"))
    gates = ["encoder_se.0.spatial", "decoder_se.0.spatial"]
    maps = {case: [f"map/{case}/{gate}" for gate in gates] for case in "ab"}
    assert list(saved) == ["image/a", "view/a", *maps["a"], "image/b", "view/b", *maps["b"]]
    shown = volumes[0]["image"].as_tensor()[..., 4]
    assert np.array_equal(saved["image/a"], shown.half().numpy())
    net.eval()
    with torch.no_grad(), capture_attention(net) as captured:
        net(shown[None])
    for gate in gates:
        assert saved[f"map/a/{gate}"].dtype == np.float16
        assert np.allclose(saved[f"map/a/{gate}"], captured[f"{gate}.gate"][0], atol=1e-3)
    assert (tmp_path / "epoch_0001.npz").stat().st_size < 20_000


def test_a_network_in_3d_sees_the_whole_volume(volumes, tmp_path):
    net, inferer = SCSEUNet(3, 1, 2, features=2, depth=1), SlidingWindowInferer(8, overlap=0.25)
    save_epochs(AttentionMapHandler(net, volumes, str(tmp_path), inferer=inferer, cases=1, spatial_dim=0))
    saved = dict(np.load(tmp_path / "epoch_0001.npz"))
    assert saved["image/a"].shape == saved["map/a/encoder_se.0.spatial"].shape == (1, 12, 6)


def test_the_first_process_saves_epochs_of_the_interval_and_removes_older_files(volumes, tmp_path, monkeypatch):
    for name in ("epoch_0001.npz", "epoch_0099.npz", "epoch_0099.txt"):
        (tmp_path / name).write_text("of another training")
    handler = AttentionMapHandler(network(), volumes, str(tmp_path), inferer=SliceBatchInferer(2), interval=3)
    save_epochs(handler, epochs=7)
    files = ["epoch_0001.npz", "epoch_0003.npz", "epoch_0006.npz", "epoch_0099.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == files
    for wrong in ({"cases": 0}, {"interval": 0}):
        with pytest.raises(ConfigError, match="expected 1 or more"):
            AttentionMapHandler(network(), volumes, str(tmp_path), **wrong)
    monkeypatch.setattr(attention.idist, "get_rank", lambda: 1)  # only the first process saves
    save_epochs(AttentionMapHandler(network(), volumes, str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_the_files_of_the_maps_are_results_of_a_case_too(tmp_path):
    """They keep the folders of the images, and are looked for in a repeated run."""
    handler = AttentionMaps(Follows().eval(), SimpleInferer(), Compose([LOAD]), str(tmp_path))
    savers = FinishedCases(Compose([SafeSaveImaged("pred", tmp_path)]), handlers=[handler]).savers
    assert [saver.output_postfix for saver in savers] == ["seg", "attention_gate"]
