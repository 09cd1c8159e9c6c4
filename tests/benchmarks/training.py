# SPDX-License-Identifier: Apache-2.0
"""Time of a training epoch against the usual configuration of MONAI's model zoo, usual.json.

Both train the same network on the same made-up images: a narrow one, but FocusNet in its own width, since AMX gains
little with few channels. What comes once in an epoch (validation, checkpoint, picture of the curves) is left out of
both. With our sampling of slices, and ours in float32, the usual configuration of the quick start ends with bitwise the
same weights, which is asserted; it is timed with its own: crops that look for the foreground whenever a volume comes,
and float32, where ours take bf16 if the CPU has AMX or AVX512-BF16.
"""

import json
import logging
import tempfile
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import measure
import torch
from measure import DEVICE, Case
from monai.bundle import ConfigWorkflow
from monai.utils import set_determinism

from monai_attn.data.phantom import make_phantom

BUNDLES = Path(__file__).parents[2] / "bundles"
SMALL: dict[str, dict[str, Any]] = {
    "hippocampus_mri_scse_segmentation": {"network_def#features": 4, "batch_size": 8},
    "brats_mri_autofocus_segmentation": {
        "channels": [4] * 8, "n_autofocus": 2, "crop_size": [40] * 3, "batch_size": 2,
    },
    "skin_lesion_focusnet_segmentation": {"image_size": [128, 128], "images_per_epoch": 8},
}  # fmt: skip
ONCE = ("LrScheduleHandler", "ValidationHandler", "RunManifest", "TrainingCheckpoint", "CurveSaver")


def trainer(bundle: str, data: Path, output: Path, overrides: dict[str, Any]) -> Any:
    workflow = ConfigWorkflow(
        config_file=str(BUNDLES / bundle / "configs" / "train.json"),
        workflow_type="train",
        bundle_root=str(output),
        dataset_dir=str(data),
        device=str(DEVICE),
        epochs=1,
        initialize="$None",
        **SMALL[bundle],
        **overrides,
    )
    handlers = workflow.parser["train#handlers"]
    workflow.parser["train#handlers"] = [each for each in handlers if not each["_target_"].endswith(ONCE)]
    workflow.initialize()
    return workflow.parser.get_parsed_content("train#trainer")


def make(what: str, bundle: str, cases: int) -> Case:
    """To prove ``"same"``, both are in float32 and sample as we do; for the ``"time"``, each goes its own way."""
    logging.disable(logging.INFO)
    folder = Path(tempfile.mkdtemp())
    data = make_phantom(bundle, folder / "data", cases=cases, seed=0)
    usual = json.loads(Path(__file__).with_name("usual.json").read_text(encoding="utf-8"))
    overlay = usual["every"] | (usual[bundle] if what == "time" else {})
    own = {} if what == "time" else {"bf16": False}
    engines = [trainer(bundle, data, folder / "ours", own), trainer(bundle, data, folder / "usual", overlay)]
    network, optimizer = deepcopy((engines[0].network.state_dict(), engines[0].optimizer.state_dict()))

    def epoch(engine: Any) -> list[torch.Tensor]:
        """Train for an epoch from the start; the weights after it."""
        set_determinism(0)
        engine.network.load_state_dict(network)
        engine.optimizer.load_state_dict(deepcopy(optimizer))
        engine.run()
        return [value.clone() for value in engine.network.state_dict().values()]

    return Case(*(lambda engine=engine: epoch(engine) for engine in engines), tolerance=0 if what == "same" else None)


def rows(cases: int = 30, rounds: int = 3) -> Iterator[measure.Row]:
    measure.in_fresh_process(check, cases, environment=measure.KEEP_HEAP)
    for bundle in SMALL:
        what, peer = f"training epoch, {bundle.rpartition('_')[0]}", "the zoo's usual configuration"
        yield measure.time_row(what, peer, "<= 0.65 x time", make, "time", bundle, cases, rounds=rounds)


def check(cases: int) -> None:
    make("same", next(iter(SMALL)), cases).check()


if __name__ == "__main__":
    measure.main(rows)
