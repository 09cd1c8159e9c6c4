# SPDX-License-Identifier: Apache-2.0
"""Time of a training epoch of the quick start against the usual configuration of MONAI's model zoo, usual.json.

Both train the same network on the same made-up volumes. What comes once in an epoch (validation, checkpoint, picture of
the curves) is left out of both. With our sampling of slices the usual configuration ends with bitwise the same weights,
which is asserted; it is timed with its own: crops of one slice that look for the foreground whenever a volume comes.
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

BUNDLE = Path(__file__).parents[2] / "bundles" / "hippocampus_mri_scse_segmentation"
ONCE = ("LrScheduleHandler", "ValidationHandler", "RunManifest", "TrainingCheckpoint", "CurveSaver")
SAMPLING = ("train#random_transforms#0", "train#sampler#num_samples", "train#dataloader#batch_size")


def trainer(data: Path, output: Path, features: int, overrides: dict[str, Any]) -> Any:
    workflow = ConfigWorkflow(
        config_file=str(BUNDLE / "configs" / "train.json"),
        workflow_type="train",
        bundle_root=str(output),
        dataset_dir=str(data),
        device=str(DEVICE),
        epochs=1,
        batch_size=8,
        initialize="$None",
        **{"network_def#features": features, **overrides},
    )
    handlers = workflow.parser["train#handlers"]
    workflow.parser["train#handlers"] = [each for each in handlers if not each["_target_"].endswith(ONCE)]
    workflow.initialize()
    return workflow.parser.get_parsed_content("train#trainer")


def make(what: str, features: int, cases: int) -> Case:
    """To prove ``"same"``, both sample slices as we do; for the ``"time"``, the usual one has its own crops."""
    logging.disable(logging.INFO)
    folder = Path(tempfile.mkdtemp())
    data = make_phantom(BUNDLE.name, folder / "data", cases=cases, seed=0)
    usual = json.loads(Path(__file__).with_name("usual.json").read_text(encoding="utf-8"))
    overlay = {key: value for key, value in usual.items() if what == "time" or key not in SAMPLING}
    engines = [trainer(data, folder / "ours", features, {}), trainer(data, folder / "usual", features, overlay)]
    network, optimizer = deepcopy((engines[0].network.state_dict(), engines[0].optimizer.state_dict()))

    def epoch(engine: Any) -> list[torch.Tensor]:
        """Train for an epoch from the start; the weights after it."""
        set_determinism(0)
        engine.network.load_state_dict(network)
        engine.optimizer.load_state_dict(deepcopy(optimizer))
        engine.run()
        return [value.clone() for value in engine.network.state_dict().values()]

    return Case(*(lambda engine=engine: epoch(engine) for engine in engines), tolerance=0 if what == "same" else None)


def rows(features: int = 4, cases: int = 30, rounds: int = 3) -> Iterator[measure.Row]:
    what, peer, goal = "training epoch, scSE, hippocampus", "the zoo's usual configuration", "<= 0.65 x time"
    measure.in_fresh_process(check, features, cases, environment=measure.KEEP_HEAP)
    yield measure.time_row(what, peer, goal, make, "time", features, cases, rounds=rounds)


def check(features: int, cases: int) -> None:
    make("same", features, cases).check()


if __name__ == "__main__":
    measure.main(rows)
