# SPDX-License-Identifier: Apache-2.0
"""Where a network's encoder and decoder features are.

A :class:`Stream` runs a network by its own children and shows the features on the way. Each class of MONAI has its own,
named in the table below by the class itself: a subclass may have another ``forward`` and is not taken for its parent.
For other networks there is :class:`NamedStream`, or a subclass of :class:`Stream` of a few lines.
"""

from __future__ import annotations

from collections.abc import Callable

from monai.networks.nets import (
    UNETR,
    AttentionUnet,
    BasicUNet,
    DynUNet,
    FlexibleUNet,
    SegResNet,
    SegResNetDS,
    SwinUNETR,
    UNet,
    VNet,
)
from torch import nn

from monai_attn.adapt.streams.base import Features, Stream
from monai_attn.adapt.streams.named import NamedStream
from monai_attn.adapt.streams.nested import AttentionUnetStream, UNetStream
from monai_attn.adapt.streams.plain import BasicUNetStream, DynUNetStream, FlexibleUNetStream, VNetStream
from monai_attn.adapt.streams.residual import SegResNetDSStream, SegResNetStream
from monai_attn.adapt.streams.transformer import SwinUNETRStream, UNETRStream

__all__ = ["Features", "NamedStream", "Stream", "stream_of"]

_STREAMS: dict[type[nn.Module], Callable[..., Stream]] = {
    AttentionUnet: AttentionUnetStream,
    BasicUNet: BasicUNetStream,
    DynUNet: DynUNetStream,
    FlexibleUNet: FlexibleUNetStream,
    SegResNet: SegResNetStream,
    SegResNetDS: SegResNetDSStream,
    SwinUNETR: SwinUNETRStream,
    UNet: UNetStream,
    UNETR: UNETRStream,
    VNet: VNetStream,
}


def stream_of(network: nn.Module) -> Stream:
    """The stream of a network of MONAI; a stream is given back as it is.

    Args:
        network: a network of one of MONAI's classes in the table, or a stream.

    Raises:
        TypeError: if the network's class is not in the table.

    Example:
        >>> from monai.networks.nets import SegResNet
        >>> stream_of(SegResNet(init_filters=8)).encoder_channels
        (8, 16, 32, 64)
    """
    if isinstance(network, Stream):
        return network
    if type(network) not in _STREAMS:
        raise TypeError(
            f"no stream is known for {type(network).__name__}, only for {', '.join(c.__name__ for c in _STREAMS)}; "
            "give a stream in place of the network: NamedStream(network, encoder=[...], decoder=[...], divisor=...), "
            "or an own subclass of monai_attn.adapt.Stream."
        )
    return _STREAMS[type(network)](network)
