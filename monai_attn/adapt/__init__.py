# SPDX-License-Identifier: Apache-2.0
"""What it takes to put attention into somebody else's network."""

from __future__ import annotations

from monai_attn.adapt.autofocus import autofocus
from monai_attn.adapt.norms import with_group_norm
from monai_attn.adapt.places import Places, places_of
from monai_attn.adapt.recalibrate import recalibrate
from monai_attn.adapt.streams import NamedStream, Stream, stream_of

__all__ = ["NamedStream", "Places", "Stream", "autofocus", "places_of", "recalibrate", "stream_of", "with_group_norm"]
