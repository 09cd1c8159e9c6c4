# SPDX-License-Identifier: Apache-2.0
"""Check shapes and affines, resample images, and crop slices."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import nibabel
import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.data.utils import AFFINE_TOL, to_affine_nd
from monai.transforms import MapTransform, Randomizable, Spacingd
from monai.transforms.traits import MultiSampleTrait
from monai.utils import ImageMetaKey, MetaKeys, TraceKeys, convert_to_dst_type, convert_to_tensor

from monai_attn.data.formats import describe_affine
from monai_attn.data.reader import PALETTE
from monai_attn.errors import DataError

__all__ = ["CHANNEL_FILES", "RandSlicesd", "SafeSpacingd", "check_affine", "check_pair", "check_shape", "files_of"]
__all__ += ["fit_channels", "warn_if_larger"]

CHANNEL_FILES = "channel_files"
"""Metadata of an image that was loaded from a file for each channel: their paths."""

_SHEAR, _TOLERANCE = 1e-3, 0.5  # cosine of the angle between two axes of the grid, voxel
_FINEST, _COARSEST = 0.02, (10, 10, 30)  # mm; 30 between thick slices
_MUCH_LARGER = 1.5  # times
_LARGEST = 1e9  # mm³, at 1 mm 4 GB
_LOGGER = logging.getLogger(__name__)


def files_of(image: NdarrayOrTensor, default: str) -> list[str]:
    """Return the files of an image, or ``[default]``."""
    meta: dict[str, Any] = getattr(image, "meta", {})
    return list(meta.get(CHANNEL_FILES, ())) or [str(meta.get(ImageMetaKey.FILENAME_OR_OBJ, default))]


def fit_channels(image: Any, channels: int | None = None) -> Any:
    """Return a picture (C, x, y) with ``channels``, if its colors stay.

    Indices become colors. For 1 or 3 channels, alpha is dropped, and gray becomes RGB or the reverse.
    """
    palette = getattr(image, "meta", {}).get(PALETTE)
    if image.ndim != 3 or len(image) == channels != 1:
        return image
    if palette is not None:
        colors = torch.as_tensor(palette)[convert_to_tensor(image, track_meta=False)[0].long()]
        image = convert_to_dst_type(colors.movedim(-1, 0), image)[0]
        image.meta = {key: value for key, value in image.meta.items() if key != PALETTE}
    if len(image) in (2, 4) and channels in (1, 3):
        image = image[:-1]
    if channels == 3 and len(image) == 1:
        image = image[[0, 0, 0]]
    return image[:1] if channels == 1 and len(image) == 3 and (image == image[:1]).all() else image


def check_shape(image: NdarrayOrTensor, name: str, spatial_dims: int, channels: int | None) -> None:
    """Raise unless an image (C, *spatial) has the expected shape.

    Raises:
        DataError: with the dimensions and channels found and expected.
    """
    found, dims = int(image.shape[0]), image.ndim - 1
    expected = f"expected {spatial_dims}D" + ("" if channels is None else f", {_count(channels, 'channel')}")
    size = " x ".join(str(length) for length in image.shape[1:])
    if dims != spatial_dims:
        fix = {2: "give a picture or single slices", 3: "give a volume"}.get(spatial_dims, "give another image")
        raise DataError(name, f"it is {dims}D, {_count(found, 'channel')} (size {size}), {expected}", fix)
    if channels is not None and found != channels:
        is_series = spatial_dims == 3 and channels == 1
        described = f"4D ({found} volumes)" if is_series else f"{dims}D, {_count(found, 'channel')}"
        fix = "give one of them" if channels == 1 else f"give all {channels} channels of the case"
        fix = f"save it in gray, or train with --in_channels {found}" if (dims, channels, found) == (2, 1, 3) else fix
        raise DataError(name, f"it is {described}, {expected}", fix)
    if math.prod(image.shape[1:]) <= 1:
        raise DataError(name, f"its size is {size}: no more than one voxel", "give the whole image")
    if image.dtype.is_complex if isinstance(image, torch.Tensor) else np.iscomplexobj(image):
        raise DataError(name, "its voxels are complex numbers", "give the magnitude, or what you need of them")


def check_affine(image: NdarrayOrTensor, name: str, orientation: str | None = None) -> NdarrayOrTensor:
    """Raise unless a volume (C, *spatial) has a valid affine.

    Images without metadata and 2D images are returned as they are. ``orientation``, such as ``"RAS"``, is assumed where
    a NIfTI file gives none; the image then gets a new affine.

    Raises:
        DataError: if the affine is singular, its voxels or extent are those of no patient, or the orientation is
            unknown and none to be assumed.
    """
    if not isinstance(image, MetaTensor) or image.ndim != 4:
        return image
    affine = image.affine.numpy()
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) <= 1e-6 * lengths.prod():
        raise DataError(name, f"its affine {affine.round(4).tolist()} is singular", "correct the header")
    if not any(int(image.meta.get(f"{form}_code", 1)) for form in ("qform", "sform")):
        return _assume(image, name, orientation, lengths)
    sizes = np.array(image.shape[1:])
    spacing = np.sort(np.where(sizes > 1, lengths, 1))
    if (spacing < _FINEST).any() or (spacing > _COARSEST).any() or (sizes * lengths).prod() > _LARGEST:
        voxel, extent = (" x ".join(f"{length:.4g}" for length in part) for part in (lengths, sizes * lengths))
        problem = f"its voxels are {voxel} mm, and it is {extent} mm: no patient has such an image"
        raise DataError(name, problem, "correct the spacing in its header, and the unit")
    axes = affine[:3, :3] / lengths
    if np.abs(axes.T @ axes - np.eye(3)).max() > _SHEAR:
        _LOGGER.warning("%s: its axes are not at right angles; used as they are: %s", name, describe_affine(affine))
    return image


def warn_if_larger(image: NdarrayOrTensor, name: str, field_of_view: Sequence[float]) -> None:
    """Warn if a volume (C, *spatial) with an affine is much larger than those of the training, in mm (RAS)."""
    if isinstance(image, MetaTensor) and image.ndim == 4:
        extent = np.abs(image.affine.numpy()[:3, :3]) @ image.shape[1:]
        times = float((extent / field_of_view).max())
        if times > _MUCH_LARGER:
            sizes = [" x ".join(f"{length:.0f}" for length in lengths) for lengths in (extent, field_of_view)]
            message = "%s: it is %s mm, up to %.1f times the size of the training images (%s mm); crop it"
            _LOGGER.warning(message, name, sizes[0], times, sizes[1])


def check_pair(image: NdarrayOrTensor, label: NdarrayOrTensor, image_name: str, name: str) -> None:
    """Raise unless a label matches the grid of its image.

    Without metadata, and in 2D, only the shapes are compared.

    Raises:
        DataError: if the shapes differ, or any voxel is more than half a voxel away.
    """
    difference = _grid_difference(image, label)
    if difference:
        fix = "pair the right files, or resample the label to its image by nearest neighbor"
        raise DataError(name, f"it does not lie on {image_name}: {difference}", fix)


def _grid_difference(image: NdarrayOrTensor, label: NdarrayOrTensor) -> str | None:
    shapes = [tuple(volume.shape[1:]) for volume in (label, image)]
    if shapes[0] != shapes[1]:
        return f"its shape {shapes[0]} is not the shape {shapes[1]}"
    if not (isinstance(image, MetaTensor) and isinstance(label, MetaTensor)) or image.ndim != 4:
        return None
    grids = [volume.affine.numpy() for volume in (label, image)]
    corners = np.array([[*corner, 1] for corner in itertools.product(*((0, size - 1) for size in shapes[0]))]).T
    shift = np.linalg.norm((np.linalg.solve(grids[1], grids[0] @ corners) - corners)[:3], axis=0).max()
    if shift <= _TOLERANCE:
        return None
    lengths = [np.linalg.norm(grid[:3, :3], axis=0) for grid in grids]
    if not np.allclose(lengths[0], lengths[1], rtol=1e-2):
        what = "spacing"
    elif not np.allclose(grids[0][:3, :3] / lengths[0], grids[1][:3, :3] / lengths[1], atol=1e-2):
        what = "direction"
    else:
        what = "origin"
    described = [describe_affine(grid) for grid in grids]
    return f"its {what} differs, by up to {shift:.1f} voxels: {described[0]}, but {described[1]}"


def _assume(image: MetaTensor, name: str, orientation: str | None, spacing: np.ndarray) -> MetaTensor:
    """Return an image whose affine has the axes of ``orientation``."""
    if orientation is None:
        problem = "its orientation is unknown (qform_code and sform_code are 0): left and right are anybody's guess"
        fix = 'correct the header, or, if you know the axes, set assume_orientation to them, such as "RAS"'
        raise DataError(name, problem, fix)
    affine = np.diag([0.0, 0, 0, 1])
    rows, signs = nibabel.orientations.axcodes2ornt(orientation).T
    affine[rows.astype(int), range(3)] = signs * spacing
    _LOGGER.warning("%s: its orientation is unknown; assumed: %s", name, describe_affine(affine))
    grid = {MetaKeys.AFFINE: torch.as_tensor(affine), MetaKeys.ORIGINAL_AFFINE: affine}
    return MetaTensor(image.as_tensor(), meta={**image.meta, **grid})


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


class SafeSpacingd(Spacingd):
    """Resample images of dictionaries with other entries.

    Since MONAI 1.6.0 ``Spacingd`` takes any entry with a key that begins with ``"<key>_"`` for metadata, and fails on
    the path that MONAI Label adds; here such entries are hidden. The inverse works axis by axis, six times as fast.

    Example:
        >>> spacing = SafeSpacingd(keys="image", pixdim=1.0)
        >>> spacing({"image": torch.ones(1, 4, 4, 4), "image_path": "a.nii"})["image_path"]
        'a.nii'
    """

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, torch.Tensor]:
        """Resample images (C, *spatial), and keep all other entries."""
        hidden = {name: value for name, value in data.items() if name not in self.keys and not isinstance(value, dict)}
        visible = {name: value for name, value in data.items() if name not in hidden}
        return {**super().__call__(visible, lazy=lazy), **hidden}

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Resample images (C, *spatial) back to their grids."""
        return {**data, **{key: self._back(data[key]) for key in self.key_iterator(dict(data))}}

    def _back(self, image: MetaTensor) -> torch.Tensor:
        resample = self.spacing_transform.sp_resample
        done = resample.get_most_recent_transform(image)
        info, size = done[TraceKeys.EXTRA_INFO], done[TraceKeys.ORIG_SIZE]
        # a voxel of the result lies at this voxel of the image
        affines = image.affine, info["src_affine"].to(image.affine)
        steps = torch.linalg.solve(*(to_affine_nd(len(size), affine) for affine in affines)).to(image.device)
        factors, first = steps.diagonal()[:-1], steps[:-1, -1]
        parallel = torch.allclose(steps[:-1, :-1], torch.diag(factors), atol=1e-6)
        if not parallel or (info["mode"], info["padding_mode"]) != ("bilinear", "border"):
            return self.spacing_transform.inverse(image)
        resample.pop_transform(image)
        voxels = image.as_tensor().detach().to(getattr(torch, info["dtype"]))
        for axis in range(len(size), 0, -1):  # the last is the slowest, and contiguous
            last, voxel = voxels.shape[axis] - 1, torch.arange(size[axis - 1]).to(first)
            places = (first[axis - 1] + factors[axis - 1] * voxel).clamp_(0, last)
            if len(places) == last + 1 and torch.allclose(places, voxel, atol=AFFINE_TOL):
                continue
            low = places.long()
            planes = voxels.unbind(axis)
            voxels = voxels.new_empty(*voxels.shape[:axis], len(low), *voxels.shape[axis + 1 :])
            for plane, lower, weight in zip(voxels.unbind(axis), low.tolist(), (places - low).tolist()):
                torch.lerp(planes[lower], planes[min(lower + 1, last)], weight, out=plane)  # all three in the cache
        meta = {**image.meta, MetaKeys.AFFINE: to_affine_nd(len(image.affine) - 1, info["src_affine"])}
        return MetaTensor(voxels.float(), meta=meta, applied_operations=image.applied_operations)


class RandSlicesd(Randomizable, MapTransform, MultiSampleTrait):
    """Crop random slices of a volume, preferably with foreground.

    Use it after the cached, deterministic transforms. Slices are copies that only keep the name of the volume's file.
    As in MONAI's ``RandCropByPosNegLabeld``, a volume gives ``num_samples`` items of the batch.

    Args:
        keys, allow_missing_keys: see MONAI's ``MapTransform``; volumes (C, *spatial) of one spatial shape.
        label_key: key of the label; voxels above 0 are foreground.
        spatial_dim: slicing axis; in RAS orientation 0 sagittal, 1 coronal, 2 axial.
        num_samples: number of slices for each volume.
        pos, neg: ``pos / (pos + neg)`` is the probability of a slice with foreground, if the volume has both kinds.

    Raises:
        ValueError: if ``num_samples`` is below 1, ``spatial_dim`` is no axis, or ``pos`` and ``neg`` are no weights.

    Example:
        >>> volume = {"image": torch.rand(1, 8, 9, 10), "label": torch.ones(1, 8, 9, 10)}
        >>> slices = RandSlicesd(["image", "label"], "label", spatial_dim=1, num_samples=4)(volume)
        >>> len(slices), slices[0]["image"].shape
        (4, torch.Size([1, 8, 10]))
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_key: str,
        *,
        spatial_dim: int = 0,
        num_samples: int = 1,
        pos: float = 1.0,
        neg: float = 1.0,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        if num_samples < 1 or spatial_dim not in (0, 1, 2):
            raise ValueError(f"expected num_samples >= 1 and spatial_dim 0, 1 or 2, got {num_samples}, {spatial_dim}.")
        if pos < 0 or neg < 0 or pos + neg == 0:
            raise ValueError(f"pos and neg must be non-negative and not both 0, got pos={pos}, neg={neg}.")
        self.label_key = label_key
        self.axis = spatial_dim + 1
        self.num_samples = num_samples
        self.pos_ratio = pos / (pos + neg)
        self.indices: list[int] = []

    def randomize(self, label: torch.Tensor) -> None:
        """Draw slices by their label (C, *spatial)."""
        other_axes = [axis for axis in range(label.ndim) if axis != self.axis]
        has_foreground = label.amax(dim=other_axes) > 0
        with_foreground, without = has_foreground.nonzero().flatten(), (~has_foreground).nonzero().flatten()
        self.indices = []
        for _ in range(self.num_samples):
            wanted, other = with_foreground, without
            if self.R.random() >= self.pos_ratio:
                wanted, other = other, wanted
            candidates = wanted if len(wanted) else other
            self.indices.append(int(candidates[self.R.randint(len(candidates))]))

    def __call__(self, data: Mapping[Hashable, Any]) -> list[dict[Hashable, Any]]:
        """Return ``num_samples`` cases of slices (C, *spatial without the axis)."""
        keys = list(self.key_iterator(data))
        self.randomize(convert_to_tensor(data[self.label_key], track_meta=False))
        return [{**data, **{key: self._select(data[key], index) for key in keys}} for index in self.indices]

    def _select(self, volume: Any, index: int) -> torch.Tensor:
        """Return a slice, with the name of its file only."""
        image = convert_to_tensor(volume, track_meta=False).select(self.axis, index).clone()
        name = getattr(volume, "meta", {}).get(ImageMetaKey.FILENAME_OR_OBJ)
        return image if name is None else MetaTensor(image, meta={ImageMetaKey.FILENAME_OR_OBJ: name})
