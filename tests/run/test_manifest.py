# SPDX-License-Identifier: Apache-2.0
import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from ignite.engine import Engine, Events

from monai_attn.errors import ConfigError, DataError
from monai_attn.run import RunManifest, manifest


def test_the_data_are_fingerprinted_by_their_list_or_their_names_and_sizes(tmp_path):
    (tmp_path / "a.nii").write_text("1")
    listed = manifest.fingerprint(str(tmp_path))
    (tmp_path / "a.nii").write_text("12")
    assert manifest.fingerprint(str(tmp_path)) != listed
    (tmp_path / "dataset.json").write_text("{}")
    with_list = manifest.fingerprint(str(tmp_path))
    (tmp_path / "a.nii").write_text("123")
    assert manifest.fingerprint(str(tmp_path)) == with_list


def test_a_file_is_known_by_its_content_wherever_it_lies(tmp_path):
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).write_bytes(content)
    hashes = [manifest.file_hash(str(tmp_path / name)) for name in "abc"]
    assert hashes[0] == hashes[1] == hashlib.sha256(b"1").hexdigest()
    assert hashes[2] != hashes[0]
    with pytest.raises(DataError, match="no such file"):
        manifest.file_hash(str(tmp_path / "none"))


@pytest.mark.parametrize(("ending", "place"), [("nii", 0), ("nii", 100_000), ("nii", 199_999), ("nii.gz", 199_999)])
def test_an_image_is_known_by_its_content(tmp_path, ending, place):
    first, second = tmp_path / f"a.{ending}", tmp_path / f"b.{ending}"
    content = bytearray(200_000)
    first.write_bytes(content)
    second.write_bytes(content)
    assert manifest.image_hash([str(first)]) == manifest.image_hash([str(second)])
    for changed in (content[:place] + b"x" + content[place + 1 :], content[:-1]):
        second.write_bytes(changed)
        assert manifest.image_hash([str(first)]) != manifest.image_hash([str(second)])


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_revision_is_the_commit_of_the_checkout_and_of_no_other_repository(monkeypatch, tmp_path):
    def git(folder, *arguments):
        return subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True)

    head = git(Path(__file__).parent, "rev-parse", "HEAD")
    if head.returncode == 0:
        assert re.fullmatch(rf"{head.stdout.strip()}(-dirty)?", manifest._git_revision())
    package = tmp_path / "site-packages" / "monai_attn" / "__init__.py"
    package.parent.mkdir(parents=True)
    package.write_text("")
    monkeypatch.setattr(manifest.monai_attn, "__file__", str(package))
    assert manifest._git_revision() is None
    git(tmp_path, "init", "-q")
    git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "x")
    assert manifest._git_revision() is None


def test_what_is_refused_at_the_start_leaves_the_manifest_of_an_earlier_run(tmp_path):
    def run(error: Exception) -> str:
        def fail() -> None:
            raise error

        engine = Engine(lambda *_: None)
        RunManifest("train", str(tmp_path), seed=0).attach(engine)
        engine.add_event_handler(Events.STARTED, fail)
        with pytest.raises(type(error)):
            engine.run([1])
        return json.loads((tmp_path / "train_run.json").read_text())["state"]

    refusal = ConfigError("--resume", "it has other settings", "leave them out")
    assert run(refusal) == "failed"  # there was none
    (tmp_path / "train_run.json").write_text('{"state": "finished"}')
    assert run(refusal) == "finished"
    assert run(RuntimeError("out of memory")) == "failed"
