# SPDX-License-Identifier: Apache-2.0
"""Edge maps of segmentation labels, the target of EG-CNN.

Hatamizadeh, Terzopoulos, Myronenko: "Edge-Gated CNNs for Volumetric Semantic Segmentation of Medical Images", 2020,
https://arxiv.org/abs/2002.04207, Sec. 2.1: a Sobel filter turns the masks of the ground truth into edges.

There is no authors' code, and the paper gives neither a threshold nor a rule for several classes. Here any magnitude is
an edge, and the edges of all classes, each filtered as a mask, are united.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import get_track_meta
from monai.transforms import MapTransform, Transform
from monai.utils import TransformBackends, convert_to_dst_type, convert_to_tensor

from monai_attn.transforms.sobel import sobel_edges

__all__ = ["EDGE_TOLERANCE", "SobelEdges", "SobelEdgesd", "edge_targets", "foreground_masks"]

EDGE_TOLERANCE = 1e-4
"""Smaller magnitudes are rounding: the smallest one of a mask is 1/32."""


def foreground_masks(label: torch.Tensor, num_classes: int, *, include_background: bool = False) -> torch.Tensor:
    """Return a bool mask for each class of labels.

    The label (B, 1, *spatial) gives masks (B, num_classes - 1, *spatial), or num_classes ones with the background.

    Example:
        >>> foreground_masks(torch.tensor([[[0, 2, 1]]]), 3).int()
        tensor([[[0, 0, 1], [0, 1, 0]]], dtype=torch.int32)
    """
    classes = torch.arange(0 if include_background else 1, num_classes, device=label.device)
    return label == classes.reshape(-1, *[1] * (label.ndim - 2))


def edge_targets(
    masks: torch.Tensor,
    *,
    per_class: bool = False,
    threshold: float = 0.0,
    soft: bool = False,
) -> torch.Tensor:
    """Return edges of masks, float32 (B, 1 or C, *spatial).

    Args:
        masks: masks (B, C, *spatial), bool or numbers from 0 to 1, with 1 to 3 spatial axes.
        per_class: whether every mask has edges of its own; otherwise they are united.
        threshold: magnitudes above it are edges: at 0 the two voxels on either side of a face, at 0.25 a band about 1.8
            voxels wide.
        soft: whether to return the (largest) magnitude instead of 0 and 1.

    Example:
        >>> edge_targets(torch.tensor([[[False, False, False, True, True]]]))
        tensor([[[0., 0., 1., 1., 0.]]])
    """
    edges = sobel_edges(masks)
    if not per_class:
        edges = edges.amax(dim=1, keepdim=True)
    return edges if soft else (edges > max(threshold, EDGE_TOLERANCE)).float()


class SobelEdges(Transform):
    """Compute edge maps of labels with a Sobel filter.

    :class:`monai_attn.losses.EGCNNLoss` computes the same map by itself. The result is float32; MONAI's
    ``SobelGradients`` casts to the type of the label, which gives zeros for uint8.

    Args:
        num_classes: number of classes, with the background, of class indices (1, *spatial); ``None`` for foreground
            masks (C, *spatial).
        per_class, threshold, soft: see :func:`edge_targets`.

    Raises:
        ValueError: if ``num_classes`` is below 2.

    Example:
        >>> label = torch.tensor([[0, 0, 0, 2, 2, 1, 1]], dtype=torch.uint8)
        >>> SobelEdges(num_classes=3)(label)
        metatensor([[0., 0., 1., 1., 1., 1., 0.]])
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012 (MONAI's spelling)

    def __init__(
        self,
        *,
        num_classes: int | None = None,
        per_class: bool = False,
        threshold: float = 0.0,
        soft: bool = False,
    ) -> None:
        if num_classes is not None and num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, the background and one structure, got {num_classes}.")
        self.num_classes = num_classes
        self.per_class = per_class
        self.threshold = threshold
        self.soft = soft

    def __call__(self, label: NdarrayOrTensor) -> torch.Tensor:
        """Return the edges of a label (1 or C, *spatial).

        Raises:
            ValueError: if the label has several channels of class indices, or other values.
        """
        source = convert_to_tensor(label, track_meta=get_track_meta())
        masks = self._masks(convert_to_tensor(label, track_meta=False))
        edges = edge_targets(masks[None], per_class=self.per_class, threshold=self.threshold, soft=self.soft)
        return convert_to_dst_type(edges[0], source, dtype=torch.float32)[0]

    def _masks(self, label: torch.Tensor) -> torch.Tensor:
        highest = (self.num_classes or 2) - 1
        if self.num_classes is not None and label.shape[0] != 1:
            raise ValueError(
                f"a label of class indices must have one channel, got shape {tuple(label.shape)}; "
                "leave out num_classes for masks."
            )
        if label.min() < 0 or label.max() > highest:
            raise ValueError(
                f"the label has values from {label.min()} to {label.max()}, expected 0 to {highest}; "
                "give num_classes for class indices, or map the values."
            )
        return label > 0.5 if self.num_classes is None else foreground_masks(label[None], self.num_classes)[0]


class SobelEdgesd(MapTransform):
    """Dictionary form of :class:`SobelEdges`.

    ``new_key_prefix`` is a prefix for the keys of the edges; by default they replace the labels.

    Example:
        >>> data = {"label": torch.zeros(1, 8, 8)}
        >>> sorted(SobelEdgesd("label", num_classes=3, new_key_prefix="edges_of_")(data))
        ['edges_of_label', 'label']
    """

    backend = SobelEdges.backend

    def __init__(
        self,
        keys: KeysCollection,
        *,
        num_classes: int | None = None,
        per_class: bool = False,
        threshold: float = 0.0,
        soft: bool = False,
        new_key_prefix: str = "",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.edges = SobelEdges(num_classes=num_classes, per_class=per_class, threshold=threshold, soft=soft)
        self.new_key_prefix = new_key_prefix

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Compute the edges of labels (1 or C, *spatial)."""
        output = dict(data)
        for key in self.key_iterator(output):
            output[f"{self.new_key_prefix}{key}"] = self.edges(output[key])
        return output
