# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

fault = pytest.mark.fault


@fault(60)
@pytest.mark.parametrize(
    ("overrides", "shown"),
    [
        ({"network_def#_target_": "monai_attn.nets.SCSEUnet"}, "monai_attn.nets.SCSEUnet"),
        ({"network_def#feature": 8}, "did you mean --network_def#features?"),
        ({"loss": "@lss"}, "did you mean 'loss'?"),
        ({"run_id": "trian"}, "trian"),
        ({"batch_size": "sixteen"}, "sixteen"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_an_entry_that_cannot_be(lab, overrides, shown):
    attempt = lab.train(**overrides)
    assert attempt.code in (1, 2)
    said = attempt.screen[attempt.screen.index("monai-attn:") :]
    assert shown in said
    assert len(said.splitlines()) <= 4
    assert not list(lab.folder.rglob("*.pt"))


@fault(61)
def test_an_entry_that_is_in_no_file(lab):
    lab.train(epoch=7).refused("--epoch", "no entry named 'epoch'", "did you mean --epochs?")


@fault(62)
def test_one_class_for_a_softmax(lab):
    lab.train(out_channels=1).refused("--out_channels 1", "count the background as a class too (2)")


@pytest.mark.skipif(torch.cuda.device_count() > 3, reason="this machine has such a device")
@fault(63)
def test_a_device_that_is_not_there(lab):
    lab.train(device="cuda:3").refused("--device cuda:3", "this machine has cpu")
    lab.segment(lab.copy(), device="cuda:3").refused("--device cuda:3", "this machine has cpu")
