# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from monai_attn.errors import DataError
from monai_attn.weights import load_exported
from monai_attn.weights.files import read_tensors


@pytest.fixture
def exported(tmp_path):
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Dropout())
    torch.jit.save(torch.jit.script(network), tmp_path / "model.ts")
    return tmp_path / "model.ts"


def test_an_exported_network_is_ready_for_inference(exported):
    network = load_exported(exported)
    image = torch.rand(1, 1, 8, 8)
    assert not network.training
    assert torch.equal(network(image), network(image))


def test_a_state_dict_is_no_exported_network(tmp_path):
    torch.save({"weight": torch.rand(2)}, tmp_path / "model.pt")
    with pytest.raises(DataError, match="ckpt_export"):
        load_exported(tmp_path / "model.pt")


def test_an_exported_network_is_no_state_dict_and_the_message_says_what_to_do(exported):
    with pytest.raises(DataError, match=r"add configs/inference_exported\.json"):
        read_tensors(exported)


@pytest.mark.parametrize("damage", [lambda whole: b"", lambda whole: whole[: len(whole) // 2]])
def test_a_file_that_is_not_whole_is_refused(exported, damage):
    exported.write_bytes(damage(exported.read_bytes()))
    with pytest.raises(DataError, match="copy or download it again"):
        load_exported(exported)


def test_a_file_that_is_missing_is_refused(tmp_path):
    with pytest.raises(DataError, match="there is no such file"):
        load_exported(tmp_path / "none.ts")
