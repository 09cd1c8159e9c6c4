# SPDX-License-Identifier: Apache-2.0
"""Edge targets and consistency loss against MONAI's Sobel filter and a dense convolution."""

from collections.abc import Callable, Iterator

import measure
import torch
import torch.nn.functional as F
from measure import DEVICE, Case
from monai.data import set_track_meta
from monai.transforms import SobelGradients

from monai_attn.losses import EdgeConsistencyLoss
from monai_attn.transforms import edge_targets, foreground_masks, sobel_edges

BATCH, CLASSES = 2, 4


def monai_edges(masks: torch.Tensor) -> torch.Tensor:
    """MONAI's filter, one sample at a time."""
    sobel = SobelGradients(padding_mode="replicate")
    return torch.stack([sobel(sample).unflatten(0, (3, -1)).norm(dim=0) for sample in masks.float()])


def dense_edges(x: torch.Tensor) -> torch.Tensor:
    """One convolution with the three 3x3x3 kernels."""
    difference, smooth = torch.tensor([-1.0, 0.0, 1.0]) / 2, torch.tensor([1.0, 2.0, 1.0]) / 4
    axes = [[difference if axis == other else smooth for other in range(3)] for axis in range(3)]
    kernels = torch.stack([torch.einsum("i,j,k->ijk", *taps) for taps in axes])[:, None].to(x.device)
    padded = F.pad(x.float().flatten(0, 1)[:, None], [1] * 6, mode="replicate")
    return torch.sqrt(F.conv3d(padded, kernels).square().sum(1).reshape(x.shape) + 1e-12) - 1e-6


def plain_consistency(logits: torch.Tensor, label: torch.Tensor, noise: bool) -> torch.Tensor:
    """The loss by its definition, with the dense convolution."""
    if noise:
        uniform = torch.rand_like(logits).clamp(min=torch.finfo(logits.dtype).tiny)
        logits = logits - torch.log(-torch.log(uniform))
    truth = dense_edges(foreground_masks(label, CLASSES))
    predicted = dense_edges(torch.softmax(logits, dim=1)[:, 1:])
    voxels = (truth > 1e-4).float()
    axes = (2, 3, 4)
    return (((predicted - truth).abs() * voxels).sum(axes) / voxels.sum(axes)).mean()


def make(what: str, side: int) -> Case:
    set_track_meta(False)
    torch.manual_seed(0)
    coarse = torch.rand(BATCH, 1, *[-(-side // 8)] * 3, device=DEVICE)
    label = (F.interpolate(coarse, size=[side] * 3, mode="trilinear") * CLASSES).to(torch.uint8)
    masks = foreground_masks(label, CLASSES)
    logits = torch.randn(BATCH, CLASSES, *[side] * 3, device=DEVICE, requires_grad=True)

    def learn(loss: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        torch.manual_seed(0)
        return torch.autograd.grad(loss(logits), logits)[0]

    if what == "targets":
        return Case(lambda: edge_targets(masks), lambda: (monai_edges(masks).amax(1, keepdim=True) > 1e-4).float(), 0)
    if what == "magnitude":
        x = masks.float()
        return Case(lambda: sobel_edges(x), lambda: monai_edges(x))
    noise = what == "noisy loss"
    ours, peer = EdgeConsistencyLoss(noise=noise), plain_consistency
    return Case(lambda: learn(lambda x: ours(x, label)), lambda: learn(lambda x: peer(x, label, noise)), 1e-4)


def rows(side: int = 64, rounds: int = 15) -> Iterator[measure.Row]:
    monai, dense = "SobelGradients, each sample", "dense 3x3x3 convolution"
    for what, name, peer, goal in (
        ("targets", "edge targets of masks", monai, ">= 4 x speed"),
        ("magnitude", "magnitude of the Sobel gradient", monai, ">= 4 x speed"),
        ("loss", "consistency loss without noise, with gradient", dense, ">= 3.5 x speed"),
        ("noisy loss", "consistency loss, with gradient", dense, ">= 3.5 x speed"),
    ):
        yield measure.time_row(f"{name}, {side}^3", peer, goal, make, what, side, rounds=rounds)


if __name__ == "__main__":
    measure.main(rows)
