# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedTrainer
from monai.inferers import SlidingWindowInferer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from monai_attn.errors import ConfigError
from monai_attn.handlers import AttentionMapHandler, attention
from monai_attn.inferers import SliceBatchInferer
from monai_attn.nets import SCSEUNet
from monai_attn.visualize import capture_attention, figures


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


def train(net, handlers, epochs=2):
    """Two epochs on random slices, with dropout and batch normalisation."""
    torch.manual_seed(1)
    slices = [{"image": torch.randn(1, 8, 8), "label": torch.randint(0, 2, (1, 8, 8)).float()} for _ in range(6)]
    SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=DataLoader(Dataset(slices), batch_size=2, shuffle=True),
        network=net,
        optimizer=torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9),
        loss_function=lambda logits, label: torch.nn.functional.cross_entropy(logits, label[:, 0].long()),
        train_handlers=handlers,
        decollate=False,
    ).run()
    return net.state_dict(), torch.get_rng_state()


def test_a_training_is_bitwise_the_same_with_and_without(volumes, tmp_path):
    net = network()
    handler = AttentionMapHandler(
        net, volumes, str(tmp_path), inferer=SliceBatchInferer(2), log_dir=str(tmp_path / "log")
    )
    with_it, state_with = train(net, [handler])
    without, state_without = train(network(), [])
    assert len(list(tmp_path.glob("epoch_*.npz"))) == 2
    assert all(torch.equal(with_it[name], without[name]) for name in without)
    assert torch.equal(state_with, state_without)
    assert net.training


@pytest.mark.parametrize("inferer", [SliceBatchInferer(2), SliceBatchInferer(2, batch_size=2)])
def test_files_hold_the_maps_of_the_slice_with_the_most_of_the_label(volumes, tmp_path, inferer):
    net = network()
    train(net, [AttentionMapHandler(net, volumes, str(tmp_path), inferer=inferer)])
    saved = dict(np.load(tmp_path / "epoch_0002.npz"))
    gates = ["encoder_se.0.spatial", "decoder_se.0.spatial"]
    assert list(saved) == [
        name for case in "ab" for name in (f"image/{case}", f"view/{case}", *(f"map/{case}/{gate}" for gate in gates))
    ]
    shown = volumes[0]["image"].as_tensor()[..., 4]
    assert np.array_equal(saved["image/a"], shown.half().numpy())
    net.eval()
    with torch.no_grad(), capture_attention(net) as maps:
        net(shown[None])
    for gate in gates:
        assert saved[f"map/a/{gate}"].dtype == np.float16
        assert np.allclose(saved[f"map/a/{gate}"], maps[f"{gate}.gate"][0], atol=1e-3)
    assert (tmp_path / "epoch_0002.npz").stat().st_size < 20_000


def test_a_network_in_3d_sees_the_whole_volume(volumes, tmp_path):
    net = SCSEUNet(3, 1, 2, features=2, depth=1)
    inferer = SlidingWindowInferer(8, overlap=0.25)
    handler = AttentionMapHandler(net, volumes, str(tmp_path), inferer=inferer, cases=1, spatial_dim=0)
    engine = Engine(lambda *_: None)
    handler.attach(engine)
    engine.run([0])
    saved = dict(np.load(tmp_path / "epoch_0001.npz"))
    assert saved["image/a"].shape == saved["map/a/encoder_se.0.spatial"].shape == (1, 12, 6)


def test_the_first_epoch_and_those_of_the_interval_are_saved_and_later_ones_of_another_training_removed(
    volumes, tmp_path
):
    net = network()
    for name in ("epoch_0001.npz", "epoch_0099.npz", "epoch_0099.txt"):
        (tmp_path / name).write_text("of another training")
    handler = AttentionMapHandler(net, volumes, str(tmp_path), inferer=SliceBatchInferer(2), interval=3)
    engine = Engine(lambda *_: None)
    handler.attach(engine)
    engine.run([0], max_epochs=7)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("epoch_0001.npz", "epoch_0003.npz", "epoch_0006.npz"),
        "epoch_0099.txt",
    ]


def test_only_the_first_process_saves(volumes, tmp_path, monkeypatch):
    monkeypatch.setattr(attention.idist, "get_rank", lambda: 1)
    engine = Engine(lambda *_: None)
    AttentionMapHandler(network(), volumes, str(tmp_path / "out")).attach(engine)
    engine.run([0])
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_has_a_picture_of_every_case_and_epoch(volumes, tmp_path):
    net = network()
    log = str(tmp_path / "log")
    train(net, [AttentionMapHandler(net, volumes, str(tmp_path), inferer=SliceBatchInferer(2), log_dir=log)])
    events = EventAccumulator(log).Reload()
    assert sorted(events.Tags()["images"]) == ["attention/a", "attention/b"]
    assert [event.step for event in events.Images("attention/a")] == [1, 2]


def test_the_figure_of_the_paper_is_drawn_from_the_files(volumes, tmp_path):
    net = network()
    train(net, [AttentionMapHandler(net, volumes, str(tmp_path), inferer=SliceBatchInferer(2))], epochs=9)
    figure = figures.excitation_by_epoch(tmp_path)
    titles = [axis.get_title() for axis in figure.axes]
    epochs = [f"epoch {number}" for number in (1, 2, 4, 5, 6, 8, 9)]
    assert titles[:16] == ["encoder_se.0.spatial", *epochs, "decoder_se.0.spatial", *epochs]
    drawn = np.asarray(figure.axes[7].images[-1].get_array())
    assert np.array_equal(drawn, np.load(tmp_path / "epoch_0009.npz")["map/a/encoder_se.0.spatial"][0].T)
    assert [text.get_text() for text in figure.axes[0].texts] == ["R", "L", "P", "A"]
    paths = [figures.save(figures.excitation_by_epoch(tmp_path), tmp_path / f"{i}.png") for i in (1, 2)]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with pytest.raises(ValueError, match="not \\['nowhere'\\]; give one of these"):
        figures.excitation_by_epoch(tmp_path, gates=["nowhere"])
    with pytest.raises(FileNotFoundError, match="AttentionMapHandler writes them"):
        figures.excitation_by_epoch(tmp_path / "nowhere")


@pytest.mark.parametrize("wrong", [{"cases": 0}, {"interval": 0}])
def test_numbers_below_one_are_refused(volumes, tmp_path, wrong):
    with pytest.raises(ConfigError, match="expected 1 or more"):
        AttentionMapHandler(network(), volumes, str(tmp_path), **wrong)
