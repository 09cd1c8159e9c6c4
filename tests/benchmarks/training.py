# SPDX-License-Identifier: Apache-2.0
"""Time of a training iteration of the quick-start bundle against the usual configuration of MONAI's model zoo.

Both train the same network on the same made-up volumes. What comes once in an epoch (validation, checkpoint, picture of
the curves) is left out of both. With our sampling of slices the usual configuration ends with bitwise the same weights,
which is asserted; it is timed with its own sampling.
"""

import logging
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import measure
import torch
from measure import DEVICE, FLOOR, Case
from monai.bundle import ConfigWorkflow
from monai.utils import set_determinism

from monai_attn.data.phantom import make_phantom

BUNDLE = Path(__file__).parents[2] / "bundles" / "hippocampus_mri_scse_segmentation"
BATCH, SLICES = 8, 4

ONCE_IN_AN_EPOCH = {
    "LrScheduleHandler",
    "ValidationHandler",
    "monai_attn.handlers.TrainingCheckpoint",
    "monai_attn.handlers.CurveSaver",
}
LOSS = "$monai.handlers.from_engine(['loss'], first=True)"
USUAL = {
    "train#handlers": [
        {"_target_": "monai_attn.handlers.EpochSeed", "seed": "@seed"},
        {"_target_": "StatsHandler", "tag_name": "train_loss", "output_transform": LOSS},
        {
            "_target_": "TensorBoardStatsHandler",
            "log_dir": "@output_dir",
            "tag_name": "train_loss",
            "output_transform": LOSS,
        },
    ],
    "train#dataset#copy_cache": True,
    "train#trainer#decollate": True,
    "train#trainer#postprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "Activationsd", "keys": "pred", "softmax": True},
            {
                "_target_": "AsDiscreted",
                "keys": ["pred", "label"],
                "argmax": [True, False],
                "to_onehot": "@out_channels",
            },
        ],
    },
    "train#trainer#key_train_metric": {
        "train_dice": {
            "_target_": "MeanDice",
            "include_background": False,
            "output_transform": "$monai.handlers.from_engine(['pred', 'label'])",
        }
    },
}
# crops of one slice that look for the foreground whenever a volume comes, some of each volume
USUAL_CROPS = {
    "train#random_transforms#0": {
        "_target_": "Compose",
        "transforms": [
            {
                "_target_": "RandCropByPosNegLabeld",
                "keys": ["image", "label"],
                "label_key": "label",
                "spatial_size": "$[1, *(size for size in @padded_size if size > 0)]",
                "pos": 2,
                "neg": 1,
                "num_samples": "@slices_per_volume",
            },
            {"_target_": "SqueezeDimd", "keys": ["image", "label"], "dim": 1},
        ],
    },
    "train#sampler#num_samples": "$len(@train#dataset)",
    "train#dataloader#batch_size": "$@batch_size // @slices_per_volume",
}


def trainer(data: Path, output: Path, features: int, overrides: dict[str, Any]) -> Any:
    workflow = ConfigWorkflow(
        config_file=str(BUNDLE / "configs" / "train.json"),
        workflow_type="train",
        bundle_root=str(output),
        dataset_dir=str(data),
        device=str(DEVICE),
        epochs=1,
        batch_size=BATCH,
        slices_per_volume=SLICES,
        **{"network_def#features": features, **overrides},
    )
    handlers = workflow.parser["train#handlers"]
    workflow.parser["train#handlers"] = [each for each in handlers if each["_target_"] not in ONCE_IN_AN_EPOCH]
    workflow.initialize()
    return workflow.parser.get_parsed_content("train#trainer")


def epoch(engine: Any, network: dict[str, Any], optimizer: dict[str, Any]) -> list[torch.Tensor]:
    """Train for an epoch from given states; the weights after it."""
    set_determinism(0)
    engine.network.load_state_dict(network)
    engine.optimizer.load_state_dict(deepcopy(optimizer))
    engine.run()
    return [value.clone() for value in engine.network.state_dict().values()]


def bare(engine: Any, batches: list[dict[str, Any]]) -> None:
    """The least that an epoch must do: networks, loss and optimizer, on batches that are there already."""
    engine.network.train()
    for batch in batches:
        engine.optimizer.zero_grad(set_to_none=True)
        engine.loss_function(engine.network(batch["image"].to(DEVICE)), batch["label"].to(DEVICE)).backward()
        engine.optimizer.step()


def make(what: str, features: int, cases: int) -> Case:
    """To prove ``"same"``, both sample slices as we do; for the ``"time"``, the usual one has its own crops."""
    logging.disable(logging.INFO)
    folder = Path(tempfile.mkdtemp())
    weakref.finalize(bare, shutil.rmtree, folder)
    data = make_phantom(BUNDLE.name, folder / "data", cases=cases, seed=0)
    overlays = {"ours": {}, "peer": {**USUAL, **(USUAL_CROPS if what == "time" else {})}}
    engines = {name: trainer(data, folder / name, features, overlay) for name, overlay in overlays.items()}
    start = deepcopy((engines["ours"].network.state_dict(), engines["ours"].optimizer.state_dict()))
    ways: dict[str, Callable] = {name: lambda engine=engine: epoch(engine, *start) for name, engine in engines.items()}
    if what == "same":
        return Case(ways, tolerance=0)
    batches = [{key: batch[key].as_tensor() for key in ("image", "label")} for batch in engines["ours"].data_loader]
    ways[FLOOR] = lambda: bare(engines["ours"], batches)
    return Case(ways, unlike=("peer", FLOOR))


def rows(features: int = 4, cases: int = 30, rounds: int = 3) -> Iterator[measure.Row]:
    measure.times(make, "same", features, cases, rounds=0)  # only asserts it
    times = measure.times(make, "time", features, cases, rounds=rounds)
    yield measure.time_row(
        "training iteration, scSE, hippocampus", "the zoo's usual configuration", times, "<= 0.65 x time"
    )


if __name__ == "__main__":
    measure.main(rows)
