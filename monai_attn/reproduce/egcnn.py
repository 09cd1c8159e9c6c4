# SPDX-License-Identifier: Apache-2.0
"""The tables of EG-CNN (Hatamizadeh 2020, https://arxiv.org/abs/2002.04207): of their values the averages are known."""

from __future__ import annotations

from typing import Any

from monai_attn.reproduce.table import Row, Table

__all__ = ["TABLES"]

_DICE = {"Dice": "val_mean_dice"}
_SMALL = {"batch_size": 2, "lr": 0.001, "epochs": 8, "val_interval": 8}
# MONAI's VNet has no argument for its width
_STREAMS: dict[str, tuple[str, dict[str, Any]]] = {
    "U-Net": ("@unet", {"unet#norm": ["group", {"num_groups": 4}], "unet#features": [8, 8, 16, 32, 64, 8]}),
    "V-Net": ("@vnet", {}),
    "Seg-Net": ("@segresnet", {"init_filters": 8}),
}


def _rows(dice: dict[str, tuple[str, str]], measure: str) -> tuple[Row, ...]:
    rows = []
    for name, (stream, small) in _STREAMS.items():
        plain, edges = ({measure: value} for value in dice[name])
        rows.append(Row(name, {"main_stream": stream, "network_def": "@main_stream"}, small, plain))
        rows.append(Row(f"{name} + EG-CNN", {"main_stream": stream}, small, edges, name))
    return tuple(rows)


TABLES = (
    Table(
        "egcnn", "1", "Brain tumours", "BraTS 2019, 4 images", "brats_mri_egcnn_segmentation",
        _rows({"U-Net": ("0.8305", "0.8406"), "V-Net": ("0.8281", "0.8386"), "Seg-Net": ("0.8300", "0.8570")}, "Dice"),
        measures=_DICE, structures=True, small=_SMALL,
        note="The paper's values of the single regions are not known to us.",
    ),
    Table(
        "egcnn", "2", "Kidneys and their tumours", "KiTS 2019", "kits_ct_egcnn_segmentation",
        _rows({"U-Net": ("0.8880", "0.8945"), "V-Net": ("0.8720", "0.8879"), "Seg-Net": ("0.8892", "0.9000")}, "Dice"),
        measures=_DICE, structures=True, small=_SMALL,
        note="The paper's values are its composite of kidney and tumour, the mean of both here.",
    ),
)  # fmt: skip
