# SPDX-License-Identifier: Apache-2.0
"""The tables of Autofocus (Qin 2018, https://arxiv.org/abs/1805.08403). Only the figures of Table 2 are known to us."""

from __future__ import annotations

from typing import Any

from monai_attn.reproduce.table import Row, Table

__all__ = ["TABLES"]

_BRATS, _PELVIS = (f"{name}_autofocus_segmentation" for name in ("brats_mri", "pelvic_ct"))
_METHODS: dict[str, dict[str, Any]] = {
    "Basic": {"n_autofocus": 0},
    "DeepMedic": {"network_def": "@deepmedic"},
    "ASPP-s": {"network_def": "@aspp", "aspp_fusion": "sum"},
    "ASPP-c": {"network_def": "@aspp", "aspp_fusion": "cat"},
    **{f"AFN-{layers}": {"n_autofocus": layers} for layers in range(1, 7)},
}
_TABLE_2 = {
    "Basic": (("0.8790", "0.0857"), ("0.7261", "0.2639"), ("0.7437", "0.2523")),
    "ASPP-s": (("0.8783", "0.0836"), ("0.7408", "0.2416"), ("0.7306", "0.2693")),
    "ASPP-c": (("0.8790", "0.0808"), ("0.7358", "0.2457"), ("0.7347", "0.2536")),
    "AFN-1": (("0.8803", "0.0829"), ("0.7393", "0.2504"), ("0.7317", "0.2698")),
    "AFN-2": (("0.8863", "0.0802"), ("0.7343", "0.2490"), ("0.7394", "0.2583")),
    "AFN-3": (("0.8842", "0.0928"), ("0.7379", "0.2600"), ("0.7421", "0.2757")),
    "AFN-4": (("0.8888", "0.0831"), ("0.7391", "0.2549"), ("0.7408", "0.2570")),
    "AFN-5": (("0.8919", "0.0787"), ("0.7432", "0.2480"), ("0.7448", "0.2656")),
    "AFN-6": (("0.8930", "0.0800"), ("0.7411", "0.2419"), ("0.7562", "0.2502")),
}
_REGIONS = ("whole", "core", "enhancing")
_DICE = {"Dice": "val_mean_dice"}
_NARROW = {"channels": [6, 6, 8, 8, 8, 8, 10, 10], "crop_size": [32, 32, 32], "loss_margin": 4, "batch_size": 2}
_SHORT = {"crops_per_volume": 80, "epochs": 3, "val_interval": 3}


def _rows(paper: dict[str, dict[str, str]]) -> tuple[Row, ...]:
    return tuple(
        Row(name, overrides, paper=paper.get(name, {}), baseline="" if name == "Basic" else "Basic")
        for name, overrides in _METHODS.items()
    )


TABLES = (
    Table(
        "autofocus", "1", "Organs in pelvic CT", "ADD and UW, private pelvic CT, 7 classes", _PELVIS, _rows({}),
        measures=_DICE, structures=True, small={**_NARROW, **_SHORT},
        note="The paper's values are not known to us.",
    ),
    Table(
        "autofocus", "2", "Brain tumours", "BRATS 2015, 54 cases to test, 3 runs", _BRATS,
        _rows({
            name: {region: f"{mean} ± {deviation}" for region, (mean, deviation) in zip(_REGIONS, values)}
            for name, values in _TABLE_2.items()
        }),
        measures=_DICE, structures=True, small={**_NARROW, **_SHORT},
        note="The paper's values of DeepMedic are not known to us.",
    ),
    Table(
        "autofocus", "3", "Parameters", "4 images, 5 classes", _BRATS, _rows({}),
        note="The paper's values are not known to us; ours are those of the authors' code, less its inert biases (410, "
        "of ASPP-c 530, of ASPP-s 890).",
    ),
    Table(
        "autofocus", "4", "Brain tumours, the challenge's test set", "BRATS 2015, 110 test cases, scored online",
        _BRATS, _rows({}), measures=_DICE, structures=True, small={**_NARROW, **_SHORT},
        note="The paper's values are not known to us. Its cases have no public labels: ours are those of the section "
        "that is given by --section.",
    ),
)  # fmt: skip
