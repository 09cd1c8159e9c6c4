# SPDX-License-Identifier: Apache-2.0
"""Networks with squeeze & excitation (scSE)."""

from __future__ import annotations

from monai_attn.nets.scse.fcn import SqueezeExciteFCN
from monai_attn.nets.scse.presets import ReLayNet, SCSEFCDenseNet, SCSESDNet, SCSEUNet

__all__ = ["ReLayNet", "SCSEFCDenseNet", "SCSESDNet", "SCSEUNet", "SqueezeExciteFCN"]
