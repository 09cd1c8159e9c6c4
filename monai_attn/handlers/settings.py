# SPDX-License-Identifier: Apache-2.0
"""Describe and compare the settings of transforms, losses and networks."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Set
from functools import partial
from types import CodeType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import nn

__all__ = ["describe", "differences", "digest"]

_PLAIN = (bool, int, float, complex, str, bytes, type(None), slice, range, enum.Enum, torch.dtype, np.generic, np.dtype)
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # of batch norm, which are weights


def describe(part: Any, name: str = "") -> dict[str, str]:
    """Describe an object by its class and public attributes, recursively.

    The object is a transform, inferer, loss, network, plain value or container; ``name`` is a prefix. Devices and
    parameter values of networks are left out.

    Example:
        >>> from monai.transforms import Flip
        >>> describe(Flip(0), "flip")
        {'flip': 'monai.transforms.spatial.array.Flip', 'flip.spatial_axis': '0'}
    """
    return dict(_describe(part, name, ()))


def _describe(part: Any, name: str, above: tuple[Any, ...]) -> Iterator[tuple[str, str]]:
    """Yield the settings of an object, unless it is one of those ``above`` that hold it."""
    if isinstance(part, torch.device) or any(part is other for other in above):
        return
    if isinstance(part, _PLAIN):
        yield name, str(part)
        return
    if isinstance(part, (torch.Tensor, np.ndarray)):
        values = np.ascontiguousarray(part.detach().cpu() if isinstance(part, torch.Tensor) else part)
        yield name, f"{values.dtype}{list(values.shape)} {hashlib.sha256(values.tobytes()).hexdigest()[:12]}"
        return
    if not isinstance(part, (Mapping, list, tuple)):
        kind = part if hasattr(part, "__qualname__") else type(part)  # a function or a class says who it is
        yield name, f"{kind.__module__}.{kind.__qualname__}"
    for key, value in _parts(part):
        yield from _describe(value, f"{name}.{key}" if name else str(key), (*above, part))


def _parts(part: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(part, Mapping):
        return part.items()
    if isinstance(part, (list, tuple)):
        return enumerate(part)
    if isinstance(part, Set):
        return enumerate(sorted(part, key=repr))
    if isinstance(part, CodeType):  # without lines and addresses
        return enumerate([np.frombuffer(part.co_code, np.uint8), part.co_names, part.co_consts])
    if isinstance(part, partial):
        return enumerate([part.func, part.args, part.keywords])
    if isinstance(part, FunctionType) and "<" in part.__qualname__:  # a lambda, or one made by another function
        closure = [cell.cell_contents for cell in part.__closure__ or ()]
        return enumerate([part.__code__, part.__defaults__, part.__kwdefaults__, closure])
    if hasattr(part, "__qualname__"):
        return ()
    own = {key: value for key, value in getattr(part, "__dict__", {}).items() if not key.startswith("_")}
    if isinstance(part, nn.Module):
        shapes = {key: list(value.shape) for key, value in part.named_parameters(recurse=False)}
        buffers = {key: value for key, value in part.named_buffers(recurse=False) if key not in _STATISTICS}
        # TorchScript keeps a `forward` that was called once
        own = {key: value for key, value in own.items() if key not in ("training", "forward")}
        return [*own.items(), *shapes.items(), *buffers.items(), *part.named_children()]
    return own.items()


def digest(settings: Mapping[str, str]) -> str:
    """Return a hash of settings.

    Example:
        >>> digest({"lr": "0.1"}) == digest({"lr": "0.2"})
        False
    """
    return hashlib.sha256("\n".join(f"{name} {settings[name]}" for name in sorted(settings)).encode()).hexdigest()


def differences(then: Mapping[str, str], now: Mapping[str, str], shown: int = 3) -> str:
    """Return the differences between settings as text, possibly empty.

    Example:
        >>> differences({"lr": "0.1"}, {"lr": "0.2"})
        'lr 0.1, now 0.2'
    """
    keys = [key for key in {**then, **now} if then.get(key) != now.get(key)]
    text = "; ".join(f"{key} {then.get(key, '(none)')}, now {now.get(key, '(none)')}" for key in keys[:shown])
    return f"{text} …" if len(keys) > shown else text
