# SPDX-License-Identifier: Apache-2.0
"""Every bundle, made small, in MONAI Label's own app and server; `make test-label` runs these tests."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from email.parser import BytesParser
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
import pytest
import torch
from monai.data import ITKReader, MetaTensor
from monai.transforms import LoadImage, Orientation
from PIL import Image

from monai_attn.data import case_name, cases

from ..conftest import BUNDLES as ROOTS
from .conftest import give_weights, held_out, in_ras, one_file, save_volume

requests = pytest.importorskip("requests", reason="needs MONAI Label, see `make test-label`")

pytestmark = pytest.mark.monailabel
if find_spec("monailabel") is None:
    pytest.skip("MONAI Label is not installed; `make test-label` makes an environment with it", allow_module_level=True)

ROOT = Path(__file__).parents[2]
BUNDLES = [root.name for root in ROOTS]
# seconds that a start, a request and a training may take on a machine that does other things too
START, ANSWER, TRAINING = 300, 300, 600

every_bundle = pytest.mark.parametrize("name", BUNDLES)


class Server(NamedTuple):
    url: str
    log: Path
    bundles: dict[str, Any]

    def ask(self, method: str, path: str, expected: int = 200, **request: Any) -> requests.Response:
        answer = requests.request(method, self.url + path, timeout=ANSWER, **request)
        assert answer.status_code == expected, f"{path}: {answer.status_code} {answer.text}\n{self.log_end}"
        return answer

    @property
    def log_end(self) -> str:
        return "\n".join(self.log.read_text().splitlines()[-40:])

    def segment(self, name: str, image: Path, folder: Path) -> Path:
        with image.open("rb") as file:
            answer = self.ask("POST", f"/infer/{name}", params={"output": "image"}, files={"file": (image.name, file)})
        return save(answer, folder / f"{case_name(image)}_mask")

    def put(self, case: dict[str, Any], folder: Path) -> str:
        """Put an image and its label into the studies; returns the image's name there."""
        image, label = one_file(case["image"], folder), Path(case["label"])
        name = case_name(image)
        with image.open("rb") as file:
            self.ask("PUT", "/datastore/", params={"image": name}, files={"file": (image.name, file)})
        with label.open("rb") as file:
            where = {"image": name, "tag": "final"}
            self.ask("PUT", "/datastore/label", params=where, files={"label": (label.name, file)})
        return name

    def train(self, name: str, **options: Any) -> dict[str, Any]:
        self.ask("POST", f"/train/{name}", json={"device": "cpu", **options})
        return wait(lambda: self.ask("GET", "/train/").json(), lambda s: s["status"] not in ("SUBMITTED", "RUNNING"))


def wait(look: Callable[[], Any], is_there: Callable[[Any], bool], seconds: float = TRAINING) -> Any:
    end = time.monotonic() + seconds
    while not is_there(found := look()):
        assert time.monotonic() < end, f"it took more than {seconds} s; the last that was seen: {found}"
        time.sleep(0.5)
    return found


def save(answer: requests.Response, path: Path) -> Path:
    """Write an image that the server sent, with the ending that it gave it."""
    (ending,) = re.findall(r'filename="[^."]*(\.[^"]+)"', answer.headers["content-disposition"])
    file = path.with_name(path.name + ending)
    file.write_bytes(answer.content)
    return file


@pytest.fixture(scope="module")
def server(bundle_on_phantom, tmp_path_factory) -> Iterator[Server]:
    """The stock server with the stock app for bundles, stopped in the end."""
    folder = tmp_path_factory.mktemp("label")
    command = [sys.executable, "-m", "monailabel.main"]
    apps = [*command, "apps", "--download", "--name", "monaibundle", "--output", str(folder / "apps")]
    subprocess.run(apps, check=True, capture_output=True, cwd=folder, timeout=START)
    model, bundles = folder / "apps" / "monaibundle" / "model", {}
    for name in BUNDLES:
        bundles[name] = bundle_on_phantom(name).small_copy(folder / "bundles" / name)
        give_weights(bundles[name])
        config = bundles[name].root / "configs" / "inference.json"  # the switch may be on, and changes nothing here
        config.write_text(config.read_text().replace('"save_attention": false', '"save_attention": true'))
        model.mkdir(exist_ok=True)
        (model / name).symlink_to(bundles[name].root)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "tmp").mkdir()
    paths = [str(Path(__file__).parent / "label_site"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {
        **{key: value for key, value in os.environ.items() if key != "MONAI_DATA_DIRECTORY"},
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "TMPDIR": str(folder / "tmp"),
        "MONAI_LABEL_SESSION_PATH": str(folder / "sessions"),
        # its watcher of the folder may fail on files that the server itself has just changed
        "MONAI_LABEL_DATASTORE_AUTO_RELOAD": "false",
    }
    command += ["start_server", "--app", str(folder / "apps" / "monaibundle"), "--studies", str(folder / "studies")]
    command += ["--conf", "models", ",".join(BUNDLES), "--conf", "zoo_source", "local", "--conf", "sam2", "false"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    served = Server(f"http://127.0.0.1:{port}", folder / "server.log", bundles)

    def answers() -> bool:
        assert process.poll() is None, served.log_end
        try:
            return requests.get(served.url + "/info/", timeout=ANSWER).ok
        except requests.ConnectionError:
            return False

    with served.log.open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder, env=environment)
        try:
            wait(answers, bool, START)
            yield served
            process.send_signal(signal.SIGINT)
            process.wait(START)
        finally:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def image_of(server, tmp_path_factory) -> Callable[[str], Path]:
    return cache(lambda name: one_file(held_out(server.bundles[name]), tmp_path_factory.mktemp("image")))


@pytest.fixture(scope="module")
def result_of(server, image_of, tmp_path_factory) -> Callable[..., Path]:
    """What the bundle itself makes of its case, with the weights that it has by then."""

    @cache
    def segment(name: str, when: str = "at first") -> Path:
        bundle, output = server.bundles[name], tmp_path_factory.mktemp("result")
        image = image_of(name)
        bundle.run("inference", input=str(image), output_dir=str(output), checkpoint=str(bundle.weights))
        return output / f"{case_name(image)}_seg{bundle.suffix}"

    return segment


def read(path: Path) -> np.ndarray:
    """The values of a mask; of one of 0 and 255, as some data sets have them, as 0 and 1."""
    if path.name.endswith(".nii.gz"):
        return np.asarray(nibabel.load(path).dataobj)
    values = np.asarray(Image.open(path))
    return values // 255 if values.max() == 255 else values


def turned(image: torch.Tensor, how: str) -> torch.Tensor:
    """An image stored along other axes, or, oblique, with the same voxels in other places."""
    if how != "oblique":
        return Orientation(axcodes=how, labels=None)(image)
    sine, cosine = np.sin(0.2), np.cos(0.2)
    rotation = torch.tensor([[cosine, -sine, 0, 9], [sine, cosine, 0, -5], [0, 0, 1, 3], [0, 0, 0, 1]])
    return MetaTensor(image, affine=rotation @ image.affine)


@every_bundle
def test_the_server_announces_a_bundle_with_its_labels(server, name):
    info = server.ask("GET", "/info/").json()
    model = info["models"][name]
    data = server.bundles[name].entries("metadata")["network_data_format"]
    labels = {label.lower(): int(value) for value, label in data["outputs"]["pred"]["channel_def"].items()}
    assert model["type"] == "segmentation"
    assert {**model["labels"], "background": 0} == labels
    assert model["dimension"] == len(data["inputs"]["image"]["spatial_shape"])
    assert name in info["trainers"]


@every_bundle
@pytest.mark.parametrize("how", ["RAS", "LPS", "PIR", "oblique"])
def test_a_mask_lies_on_its_image_however_that_is_stored(server, image_of, result_of, tmp_path, name, how):
    bundle = server.bundles[name]
    if bundle.suffix != ".nii.gz":
        pytest.skip("pictures have no orientation")
    image = turned(LoadImage(image_only=True, ensure_channel_first=True)(image_of(name)), how)
    save_volume(image, tmp_path / "image.nii.gz")
    mask = nibabel.load(server.segment(name, tmp_path / "image.nii.gz", tmp_path))
    assert mask.shape == tuple(image.shape[1:])
    assert np.allclose(mask.affine, image.affine, atol=1e-4)
    assert mask.get_data_dtype() == np.uint8
    expected = read(result_of(name))
    assert len(np.unique(expected)) > 1
    assert np.array_equal(in_ras(mask), expected)


@every_bundle
def test_the_mask_of_a_picture_is_a_picture_of_its_size(server, image_of, result_of, tmp_path, name):
    if server.bundles[name].suffix != ".png":
        pytest.skip("volumes have their own test")
    path = server.segment(name, image_of(name), tmp_path)
    assert path.suffix == ".png"
    mask, (width, height) = np.asarray(Image.open(path)), Image.open(image_of(name)).size
    assert (mask.dtype, mask.shape) == (np.uint8, (height, width))
    expected = read(result_of(name))
    assert len(np.unique(expected)) > 1
    assert np.array_equal(mask, expected)


@every_bundle
def test_a_viewer_gets_nrrd_and_the_names_of_labels(server, image_of, result_of, tmp_path, name):
    """As 3D Slicer asks: with all options that the server has announced, each a list's first element."""
    if server.bundles[name].suffix != ".nii.gz":
        pytest.skip("pictures are not for 3D Slicer")
    model = server.ask("GET", "/info/").json()["models"][name]
    options = {key: value[0] if isinstance(value, list) else value for key, value in model["config"].items()}
    options |= {"result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False}
    with image_of(name).open("rb") as file:
        request = {"data": {"params": str(options).replace("'", '"').replace("False", "false")}}
        answer = server.ask("POST", f"/infer/{name}", files={"file": (image_of(name).name, file)}, **request)
    head = f"Content-Type: {answer.headers['content-type']}\n\n".encode()
    answers = BytesParser().parsebytes(head + answer.content).get_payload()
    parts = {part.get_param("name", header="content-disposition"): part for part in answers}
    assert parts["params"].get_content_type() == "application/json"
    assert all(f'"{label}": {value}' in str(parts["params"].get_payload()) for label, value in model["labels"].items())
    (tmp_path / "mask.nrrd").write_bytes(parts["image"].get_payload(decode=True))
    reader = ITKReader()
    mask, meta = reader.get_data(reader.read(str(tmp_path / "mask.nrrd")))
    assert np.array_equal(mask, read(result_of(name)))
    assert np.allclose(meta["affine"], nibabel.load(image_of(name)).affine, atol=1e-4)


@every_bundle
def test_an_epoch_on_the_labels_of_the_studies_gives_weights_that_are_served_at_once(
    server, image_of, result_of, tmp_path, name
):
    bundle = server.bundles[name]
    before = bundle.weights.read_bytes()
    studies = [server.put(case, tmp_path) for case in cases(bundle.data)[:3]]
    status = server.train(name, max_epochs=1, val_split=0.34)
    for study in studies:  # those of the next bundle are other images
        server.ask("DELETE", "/datastore/label", params={"id": study, "tag": "final"})
        server.ask("DELETE", "/datastore/", params={"id": study})
    assert status["status"] == "DONE", "\n".join(status["details"])
    assert bundle.weights.read_bytes() != before
    mask = server.segment(name, image_of(name), tmp_path)
    assert np.array_equal(read(mask), read(result_of(name, "trained")))


def test_a_training_without_a_case_to_validate_on_is_served_too(server, tmp_path):
    bundle = server.bundles["hippocampus_mri_egcnn_segmentation"]
    study = server.put(cases(bundle.data)[0], tmp_path)  # of one case the server keeps none
    before = bundle.weights.read_bytes()
    status = server.train(bundle.root.name, max_epochs=1)
    server.ask("DELETE", "/datastore/label", params={"id": study, "tag": "final"})
    assert status["status"] == "DONE", "\n".join(status["details"])
    assert bundle.weights.read_bytes() != before


def test_one_training_runs_at_a_time_and_one_that_is_stopped_leaves_the_weights(server, image_of, tmp_path):
    name = "hippocampus_mri_scse_segmentation"
    bundle = server.bundles[name]
    for case in cases(bundle.data)[:3]:
        server.put(case, tmp_path)
    (bundle.output / "checkpoint_latest.pt").unlink(missing_ok=True)
    server.ask("POST", f"/train/{name}", json={"max_epochs": 1000, "val_split": 0.34, "device": "cpu"})
    wait((bundle.output / "checkpoint_latest.pt").is_file, bool)
    server.ask("POST", f"/train/{name}", expected=429, json={"max_epochs": 1, "device": "cpu"})
    assert server.ask("GET", "/train/").json()["status"] == "RUNNING"
    server.ask("DELETE", "/train/")
    wait(lambda: server.ask("GET", "/train/").json()["status"], lambda status: status == "STOPPED")
    assert server.segment(name, image_of(name), tmp_path).is_file()

    stopped = bundle.weights.read_bytes()
    assert server.train(name, max_epochs=1, val_split=0.34)["status"] == "DONE"
    assert (bundle.output / "previous_1" / "model.pt").read_bytes() == stopped
    assert bundle.weights.read_bytes() != stopped


def test_nothing_of_all_this_went_wrong_without_a_word(server):
    log = server.log.read_text()
    assert "Checkpoint keys don't match" not in log
    assert "Traceback" not in log


def test_an_image_that_cannot_be_used_is_an_error_of_its_request_only(server, image_of, tmp_path):
    name = "hippocampus_mri_scse_segmentation"
    (tmp_path / "cut.nii.gz").write_bytes(image_of(name).read_bytes()[:500])
    with (tmp_path / "cut.nii.gz").open("rb") as file:
        server.ask("POST", f"/infer/{name}", expected=500, files={"file": ("cut.nii.gz", file)})
    wait(lambda: "problem: it is damaged" in server.log.read_text(), bool, ANSWER)  # written behind the answer
    assert server.segment(name, image_of(name), tmp_path).is_file()
