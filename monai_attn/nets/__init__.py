# SPDX-License-Identifier: Apache-2.0
"""The papers' networks."""

from __future__ import annotations

from monai_attn.nets.afnet import AFNet, afn1, afn2, afn3, afn4, afn5, afn6
from monai_attn.nets.asppnet import ASPPNet
from monai_attn.nets.deepmedic import DeepMedic
from monai_attn.nets.egcnn import EGCNN, AllOutputs
from monai_attn.nets.fcdensenet import SCSEFCDenseNet
from monai_attn.nets.fcn import SqueezeExciteFCN
from monai_attn.nets.focusnet import FocusNet
from monai_attn.nets.relaynet import ReLayNet
from monai_attn.nets.sdnet import SCSESDNet
from monai_attn.nets.unet import SCSEUNet

__all__ = [
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
    "afn1",
    "afn2",
    "afn3",
    "afn4",
    "afn5",
    "afn6",
]
