# SPDX-License-Identifier: Apache-2.0
"""The tables of scSE (Roy 2018, https://arxiv.org/abs/1808.08127).

The numbers of Tables I, III, VI and VII are the paper's. Its ablations of the reduction, of ReLayNet and of the
aggregation are II, IV and V here, in the order of the text; which of them has which number was not to be verified.
"""

from __future__ import annotations

from monai_attn.reproduce.table import Row, Table

__all__ = ["TABLES"]

_BRAIN, _BODY, _OCT = (f"{name}_scse_segmentation" for name in ("brain_mri", "whole_body_ct", "retinal_oct"))
_MALC = "MALC, 15 brains to train, 15 to test, 27 structures"
_DICE = {"Dice": "val_mean_dice"}
_KINDS = {"none": None, "cSE": "cse", "sSE": "sse", "scSE": "scse"}
_NETWORKS = {"FC-DenseNet": "SCSEFCDenseNet", "SD-Net": "SCSESDNet", "U-Net": "SCSEUNet"}
# full resolution, 64 filters and training to convergence take days without a GPU
_SMALL = {
    "network_def#features": 16, "epochs": 8, "val_interval": 8, "slices_per_volume": 4, "lr_scheduler": "@cosine",
}  # fmt: skip

_PARAMETERS = {
    "FC-DenseNet": {"none": "3.1e6", "cSE": "+3.2e4", "sSE": "+0.01 %", "scSE": "+3.3e4"},
    "SD-Net": {"none": "1.8e6", "cSE": "+3.2e4", "scSE": "+3.3e4"},
    "U-Net": {"none": "2.1e6", "cSE": "+1.52 %", "scSE": "+3.3e4"},
}
_MALC_DICE = {
    "FC-DenseNet": {},
    "SD-Net": {"none": "0.771", "cSE": "0.790", "sSE": "0.860", "scSE": "0.867"},
    "U-Net": {"none": "0.763", "cSE": "0.825", "sSE": "0.837", "scSE": "0.851"},
}
_VISCERAL_DICE = {
    "U-Net": {"none": "0.857 ± 0.106", "cSE": "0.865 ± 0.086", "sSE": "0.872 ± 0.080", "scSE": "0.887 ± 0.028"},
}


def _name(network: str, kind: str) -> str:
    return network if kind == "none" else f"{network} + {kind}"


def _networks(dice: dict[str, dict[str, str]]) -> tuple[Row, ...]:
    return tuple(
        Row(
            _name(network, kind),
            {"network_def#_target_": f"monai_attn.nets.{target}", "se": se},
            paper={"Dice": dice[network][kind]} if kind in dice.get(network, {}) else {},
            baseline="" if se is None else network,
        )
        for network, target in _NETWORKS.items()
        for kind, se in _KINDS.items()
    )


def _sd_net(rows: dict[str, tuple[dict[str, object], str]]) -> tuple[Row, ...]:
    """The plain SD-Net, and changes to the one with scSE with the paper's Dice."""
    plain = Row("SD-Net", {"se": None}, paper={"Dice": "0.771"})
    return (
        plain,
        *(
            Row(name, change, paper={"Dice": dice} if dice else {}, baseline=plain.name)
            for name, (change, dice) in rows.items()
        ),
    )


TABLES = (
    Table(
        "scse", "I", "Parameters that squeeze & excitation adds", _MALC, _BRAIN,
        tuple(
            Row(
                _name(network, kind),
                {"network_def#_target_": f"monai_attn.nets.{target}", "se": se and [se, {"bias": False}]},
                paper={"parameters": _PARAMETERS[network].get(kind, "")},
                baseline="" if se is None else network,
            )
            for network, target in _NETWORKS.items()
            for kind, se in _KINDS.items()
        ),
        note="Without biases in the excitations, as the paper counts; it truncates, leaves out biases and norms of "
        "FC-DenseNet, and counts 8 blocks for SD-Net, which has 6.",
    ),
    Table(
        "scse", "II", "Reduction r of the channel excitation", _MALC, _BRAIN,
        _sd_net({
            f"SD-Net + scSE, r = {reduction}": ({"network_def#reduction": reduction}, dice)
            for reduction, dice in {2: "0.867", 4: "0.861", 8: "0.860", 16: "0.860"}.items()
        }),
        measures=_DICE, small=_SMALL,
    ),
    Table(
        "scse", "III", "Three networks with and without squeeze & excitation", _MALC, _BRAIN,
        _networks(_MALC_DICE), measures=_DICE, small=_SMALL,
    ),
    Table(
        "scse", "III-visceral", "Three networks with and without squeeze & excitation", "Visceral, whole-body CT",
        _BODY, _networks(_VISCERAL_DICE), measures=_DICE, small=_SMALL,
    ),
    Table(
        "scse", "IV", "ReLayNet with and without squeeze & excitation", "Duke DME, 55 B-scans to train, 55 to test",
        _OCT,
        tuple(
            Row(
                _name("ReLayNet", kind),
                {"se": se},
                paper={"none": {"Dice": "0.883"}, "scSE": {"Dice": "0.893"}}.get(kind, {}),
                baseline="" if se is None else "ReLayNet",
            )
            for kind, se in _KINDS.items()
        ),
        measures=_DICE, structures=True,
        small={"network_def#features": 16, "epochs": 12, "val_interval": 12, "lr_scheduler": "@cosine"},
    ),
    Table(
        "scse", "V", "How the two recalibrated maps become one, and what the skip connection carries", _MALC, _BRAIN,
        _sd_net({
            **{
                f"SD-Net + scSE, {aggregation}": ({"network_def#aggregation": aggregation}, dice)
                for aggregation, dice in {"max": "0.867", "add": "0.862", "mul": "0.858", "concat": "0.868"}.items()
            },
            "SD-Net + scSE, raw skip": ({"network_def#skip": "raw"}, "0.869"),
        }),
        measures=_DICE, small=_SMALL,
    ),
    Table(
        "scse", "VI", "Where the blocks stand", _MALC, _BRAIN,
        _sd_net({
            f"SD-Net + scSE, P{place}": ({"network_def#positions": f"P{place}"}, dice)
            for place, dice in enumerate(("0.858", "0.832", "0.821", "0.803", "0.867", "0.867"), 1)
        }),
        measures=_DICE, small=_SMALL,
    ),
    Table(
        "scse", "VII", "scSE against one more encoder and decoder", _MALC, _BRAIN,
        _sd_net({
            "SD-Net, 4 encoders and decoders": ({"se": None, "network_def#depth": 4}, ""),
            "SD-Net + scSE": ({"se": "scse"}, "0.867"),
        }),
        measures=_DICE, small=_SMALL,
        note="The paper: +33.2 % parameters for the encoder and decoder, +1.8 % for scSE.",
    ),
)  # fmt: skip
