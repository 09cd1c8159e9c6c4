# SPDX-License-Identifier: Apache-2.0
"""The papers' networks."""

from __future__ import annotations

from monai_attn.nets.afnet import AFNet
from monai_attn.nets.baselines import ASPP, ASPPNet, DeepMedic
from monai_attn.nets.egcnn import EGCNN, AllOutputs
from monai_attn.nets.fcdensenet import SCSEFCDenseNet
from monai_attn.nets.fcn import SqueezeExciteFCN
from monai_attn.nets.focusnet import FocusNet
from monai_attn.nets.relaynet import ReLayNet
from monai_attn.nets.sdnet import SCSESDNet
from monai_attn.nets.unet import SCSEUNet

__all__ = [
    "ASPP",
    "EGCNN",
    "AFNet",
    "ASPPNet",
    "AllOutputs",
    "DeepMedic",
    "FocusNet",
    "ReLayNet",
    "SCSEFCDenseNet",
    "SCSESDNet",
    "SCSEUNet",
    "SqueezeExciteFCN",
]
