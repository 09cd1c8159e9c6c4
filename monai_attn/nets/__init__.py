# SPDX-License-Identifier: Apache-2.0
"""Networks of the papers, and their baselines."""

from __future__ import annotations

from monai_attn.nets.afnet import AFNet
from monai_attn.nets.baselines import ASPP, ASPPNet, DeepMedic
from monai_attn.nets.egcnn import EGCNN, AllOutputs
from monai_attn.nets.focusnet import FocusNet
from monai_attn.nets.scse import ReLayNet, SCSEFCDenseNet, SCSESDNet, SCSEUNet, SqueezeExciteFCN

__all__ = [
    "ASPP", "EGCNN", "AFNet", "ASPPNet", "AllOutputs", "DeepMedic", "FocusNet", "ReLayNet", "SCSEFCDenseNet",
    "SCSESDNet", "SCSEUNet", "SqueezeExciteFCN",
]  # fmt: skip
