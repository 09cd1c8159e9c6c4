# SPDX-License-Identifier: Apache-2.0
"""The tables of FocusNet (Kaul 2019, https://arxiv.org/abs/1902.03091)."""

from __future__ import annotations

from monai_attn.reproduce.table import Row, Table

__all__ = ["TABLES"]

_MEASURES = {
    "Jaccard": "val_jaccard",
    "Dice": "val_dice",
    "accuracy": "val_accuracy",
    "sensitivity": "val_sensitivity",
    "specificity": "val_specificity",
}
# networks of 1.2e6 parameters each; the running statistics of Keras' momentum come too late in a short training
_NARROW_FOCUSNET = {
    "channels": [8, 16, 32, 64, 128],
    "network_def#se_reduction": 4,
    "network_def#norm": ["batch", {"momentum": 0.1, "eps": 0.001}],
}
_SMALL = {"image_size": [96, 96], "epochs": 8, "val_interval": 8, "images_per_epoch": 400}


def _rows(unet: dict[str, str], residual: dict[str, str], focusnet: dict[str, str]) -> tuple[Row, ...]:
    return (
        Row("U-Net", {"network_def": "@unet"}, {"channels": [22, 44, 88, 176, 352]}, unet),
        Row("Res-U-Net", {"network_def": "@residual_unet"}, {"channels": [14, 28, 56, 112, 224]}, residual, "U-Net"),
        Row("FocusNet", {}, _NARROW_FOCUSNET, focusnet, "U-Net"),
    )


TABLES = (
    Table(
        "focusnet", "1", "Lungs in axial CT slices", "213 CT slices with masks of the lungs",
        "lung_ct_focusnet_segmentation",
        _rows(
            {"Jaccard": "0.9858", "accuracy": "0.9828"},
            {"Jaccard": "0.9850", "accuracy": "0.9849"},
            {"Jaccard": "0.9965", "accuracy": "0.9932", "sensitivity": "0.9757", "specificity": "0.998"},
        ),
        measures=_MEASURES, small=_SMALL,
        note="The paper's Jaccard index of 0.9965 cannot be one, as it is above the sensitivity; its own other numbers "
        "give 0.969. Its three recurrent U-Nets (RU-Net, R2U-Net) are in no library that this one stands on.",
    ),
    Table(
        "focusnet", "2", "Skin lesions", "ISIC 2017, 2,000 images to train",
        "skin_lesion_focusnet_segmentation",
        _rows(
            {},
            {},
            {
                "Jaccard": "0.7562",
                "Dice": "0.8315",
                "accuracy": "0.921",
                "sensitivity": "0.7673",
                "specificity": "0.990",
            },
        ),
        measures=_MEASURES, small=_SMALL,
        note="The paper's values of the other rows are not known to us.",
    ),
)  # fmt: skip
