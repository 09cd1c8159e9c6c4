# SPDX-License-Identifier: Apache-2.0
"""What scanners add to anatomy: blur, bias field, noise and speckle. Images are (1, *spatial)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.transforms import GaussianSmooth, RandBiasField
from monai.utils import convert_to_tensor

__all__ = ["bias_field", "blur", "noise", "place", "speckle", "tomogram"]


def blur(image: np.ndarray | torch.Tensor, sigma: float | tuple[float, ...], border: str = "replicate") -> torch.Tensor:
    """Mix the tissues at their borders as voxels of finite size do.

    Args:
        image: image (1, *spatial).
        sigma: standard deviation of the filter in voxels.
        border: what lies beyond the image: ``"replicate"``, its outermost voxels, or ``"constant"``, zeros.

    Returns:
        the blurred image as float32.
    """
    tensor = torch.as_tensor(image, dtype=torch.float32)
    margin = [3, 3] * (tensor.ndim - 1)  # MONAI's filter itself takes zeros
    padded = F.pad(tensor[None], margin, mode=border)[0]
    blurred = torch.as_tensor(GaussianSmooth(sigma=sigma)(padded))
    inner = (slice(None), *[slice(3, -3)] * (tensor.ndim - 1))
    return blurred[inner]


def bias_field(image: torch.Tensor, rng: np.random.RandomState, strength: float = 0.1) -> torch.Tensor:
    """Brighten and darken smoothly, as the coils of MRI do; strength as ``coeff_range`` of MONAI's RandBiasField."""
    transform = RandBiasField(prob=1.0, coeff_range=(0.0, strength))
    transform.set_random_state(state=rng)
    return torch.as_tensor(transform(image))


def noise(image: torch.Tensor, rng: np.random.RandomState, sigma: float) -> torch.Tensor:
    """Add normal noise of the standard deviation ``sigma``."""
    return image + sigma * torch.as_tensor(rng.randn(*image.shape), dtype=torch.float32)


def place(volume: np.ndarray | torch.Tensor, spacing: tuple[float, ...]) -> MetaTensor:
    """Give a volume (channels, *spatial) its voxel size in mm."""
    affine = torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64))
    return MetaTensor(convert_to_tensor(volume, track_meta=False), affine=affine)


def speckle(image: torch.Tensor, rng: np.random.RandomState, looks: float = 4.0) -> torch.Tensor:
    """Multiply with the grain of coherent light; ``looks`` is the number of averaged scans, the more the smoother."""
    grain = rng.gamma(looks, 1 / looks, size=tuple(image.shape))
    return image * torch.as_tensor(grain, dtype=torch.float32)


def tomogram(tissue: np.ndarray, rng: np.random.RandomState, grain: tuple[float, float] = (12, 18)) -> torch.Tensor:
    """What computed tomography makes of tissue: blurred, with grain that neighbouring voxels share.

    Args:
        tissue: brightness (*spatial) in HU.
        rng: random state.
        grain: smallest and largest standard deviation of the noise in HU.

    Returns:
        image (1, *spatial) of whole HU from -1024 as int16.
    """
    image = blur(tissue[None], sigma=0.5)
    pattern = blur(rng.randn(1, *tissue.shape), sigma=0.5, border="constant")
    image = image + rng.uniform(*grain) * pattern / pattern.std()
    return image.clamp(min=-1024).round().to(torch.int16)
