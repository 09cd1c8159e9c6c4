# SPDX-License-Identifier: Apache-2.0
import os
import pickle
import platform
import re
import resource
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._utils import _rebuild_tensor_v2

from monai_attn.weights.checkpoint import read_state_dict

fault = pytest.mark.fault


def refused(lab, checkpoint: Path, *words: str) -> None:
    attempt = lab.segment(lab.copy(), checkpoint=str(checkpoint))
    attempt.refused(checkpoint, *words)
    assert not re.search(r"weights_only\s*=\s*False", attempt.screen)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk without room")
@fault(36)
@pytest.mark.parametrize("name", ["checkpoint_latest.pt", "model.pt", "model_final.pt"])
def test_no_room_for_a_checkpoint(lab, name):
    folder = lab.folder / "models"
    lab.train(ckpt_dir=str(folder), output_dir=folder).finished()
    before = {path.name: path.read_bytes() for path in folder.glob("*.pt")}
    (folder / f".partial-{platform.node()}-{os.getpid()}-{name}").symlink_to("/dev/full")
    attempt = lab.train(ckpt_dir=str(folder), output_dir=folder, epochs=2, lr=0.001)
    assert attempt.code == 2
    assert f"{folder / name}" in attempt.screen
    assert "No space left on device" in attempt.screen
    assert (folder / name).read_bytes() == before[name]
    assert all(read_state_dict(path) for path in folder.glob("*.pt"))
    assert not list(folder.glob(".partial*"))


@pytest.mark.slow
@fault(36)
@pytest.mark.parametrize("name", ["model.pt"])
def test_a_process_that_is_killed_while_it_writes_a_checkpoint(lab, name):
    folder = lab.folder / "models"
    lab.train(ckpt_dir=str(folder), output_dir=folder).finished()
    before = (folder / name).read_bytes()
    options = {**lab.bundle.small("train"), **lab.network, "dataset_dir": str(lab.bundle.data), "device": "cpu"}
    options |= {"bundle_root": str(lab.bundle.root), "ckpt_dir": str(folder), "output_dir": str(folder)}
    code = f"""
import os, torch
from monai.bundle import run
def half(checkpoint, file):
    if file.name.endswith({name!r}):
        file.write(b"PK half of a file")
        file.flush()
        os.kill(os.getpid(), {int(signal.SIGKILL)})
    save(checkpoint, file)
save, torch.save = torch.save, half
run(config_file={lab.bundle.config("train")!r}, **{options!r})
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert (folder / name).read_bytes() == before
    lab.segment(lab.copy(), checkpoint=str(folder / name)).finished()


@fault(38)
def test_weights_that_are_not_there(lab):
    refused(lab, lab.folder / "model.pt", "there is no such file", "train first, or get the published weights")


@fault(39)
@fault(40)
def test_weights_that_are_cut_off_empty_changed_or_a_pointer(lab):
    content = bytearray(lab.bundle.weights.read_bytes())
    path = lab.folder / "model.pt"
    path.write_bytes(content[: len(content) // 2])
    refused(lab, path, "damaged or cut off", "copy or download it again")
    path.write_bytes(b"")
    refused(lab, path, "empty")
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    refused(lab, path, "a pointer of Git LFS", "git lfs pull")
    with zipfile.ZipFile(lab.bundle.weights) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    content[largest.header_offset + largest.file_size // 2 + 64] ^= 0x40
    path.write_bytes(content)
    refused(lab, path, "damaged")


@fault(41)
@pytest.mark.parametrize("form", ["module.", "state_dict", "network."])
def test_weights_in_other_forms(lab, form):
    weights = torch.load(lab.bundle.weights, weights_only=True)
    other = {f"{form}{name}": value for name, value in weights.items()} if form[-1] == "." else {form: weights}
    torch.save(other, lab.folder / "other.pt")
    path = lab.copy()
    attempt = lab.segment(path, checkpoint=str(lab.folder / "other.pt"))
    if form == "network.":  # a prefix that nobody writes
        attempt.refused(lab.folder / "other.pt")
    else:
        lab.reproduces(attempt, path)
        lab.segment(path, out_channels=5).refused(lab.bundle.weights, "3", "5")


class Lie:
    """Is read as a tensor of other dimensions than torch makes."""

    def __init__(self, value):
        self.value = value

    def __reduce__(self):
        ones = (1,) * 65
        return _rebuild_tensor_v2, (self.value._typed_storage(), 0, ones, ones, False, {})


class Evil:
    def __reduce__(self):
        return (os.system, (f"touch {self.target}",))


@fault(42)
def test_weights_that_run_code_or_hold_a_whole_network(lab):
    Evil.target = lab.folder / "touched"
    path = lab.folder / "model.pt"
    torch.save({"weight": Evil()}, path)
    refused(lab, path, "torch.load(weights_only=True)")
    path.write_bytes(pickle.dumps(Evil()))
    refused(lab, path)
    assert not Evil.target.exists()
    torch.save(torch.nn.Conv2d(1, 2, 3), path)
    refused(lab, path, "Conv2d", "state_dict")


@fault(97)
@pytest.mark.parametrize("kind", ["stride 0", "65 dimensions", "sparse", "another network", "optimizer"])
def test_weights_that_lie_about_their_size(lab, kind):
    weights = torch.load(lab.bundle.weights, weights_only=True)
    name, value = next(iter(weights.items()))
    huge = torch.zeros(1).expand(10**12)
    lies = {
        "stride 0": {**weights, name: huge},
        "65 dimensions": {**weights, name: Lie(value)},
        "sparse": {**weights, name: torch.sparse_coo_tensor(torch.empty(1, 0, dtype=torch.long), [], [10**12])},
        "another network": {**weights, name: torch.zeros(3, 5)},
        "optimizer": {"model": weights, "optimizer": {"state": [{"exp_avg": huge}]}},
    }
    path = lab.folder / "model.pt"
    torch.save(lies[kind], path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(lab, path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1e6  # kB


@fault(98)
def test_a_second_training_in_the_folder_of_a_living_one(lab):
    folder = lab.folder / "models"
    code = "from pathlib import Path; from monai_attn.files import alone_in\n"
    code += f"with alone_in(Path({str(folder)!r})): input(print(1, flush=True))"
    first = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        first.stdout.readline()
        log = lab.folder / "out" / "train.log"
        log.parent.mkdir()
        log.write_text("of the first")
        second = lab.train(ckpt_dir=str(folder), output_dir=log.parent)
        second.refused(folder, "another training is writing to it", "give another ckpt_dir")
        assert log.read_text() == "of the first"
        assert not list(log.parent.glob("*.json"))
        lab.train(ckpt_dir=str(lab.folder / "other"), output_dir=lab.folder / "other").finished()
    finally:
        first.kill()
        first.wait()
    lab.train(ckpt_dir=str(folder), output_dir=folder).finished()
    lab.train(ckpt_dir=str(folder), output_dir=folder).finished()  # the first one has given it back


@fault(65)
def test_a_training_with_the_same_seed(lab):
    attempts = [lab.train(seed=seed).finished() for seed in (3, 3, 4)]
    first, second, other = (read_state_dict(attempt.output / "model_final.pt")[1] for attempt in attempts)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    assert np.isfinite(torch.cat([value.flatten().float() for value in first.values()]).numpy()).all()
