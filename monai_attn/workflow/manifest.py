# SPDX-License-Identifier: Apache-2.0
"""What a run was made with: versions, revision and data."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from monai.utils import ensure_tuple

import monai_attn

__all__ = ["file_hash", "fingerprint", "git_revision", "image_hash", "versions"]

_END = 1 << 16
_PACKAGES = ("monai", "torch", "numpy", "nibabel", "itk", "pytorch-ignite")


def versions() -> dict[str, str]:
    """The versions of Python, of this package and of those that it stands on."""
    found = {"python": platform.python_version(), "monai_attn": monai_attn.__version__}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def git_revision() -> str | None:
    """The commit of the checkout that this package runs from, with ``-dirty`` behind it if files were changed."""
    package = Path(monai_attn.__file__)
    if not _git(package.parent, "ls-files", package.name):  # installed, perhaps within somebody else's repository
        return None
    return _git(package.parent, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        found = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip() or None


def fingerprint(source: str | Sequence[str] | None) -> dict[str, str] | None:
    """What the data were: a hash of the data list, or else of all names and sizes; of an image's first file if many."""
    path = Path(ensure_tuple(source)[0] if source else "")
    if not source or not path.exists():
        return None
    listing = path / "dataset.json"
    if listing.is_file():
        content = listing.read_bytes()
    else:
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        content = "\n".join(f"{file.relative_to(path.parent)} {file.stat().st_size}" for file in files).encode()
    return {"source": str(path), "sha256": hashlib.sha256(content).hexdigest()}


def file_hash(path: str) -> str | None:
    """The SHA-256 of a file's content; None if there is no such file."""
    if not Path(path).is_file():
        return None
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def image_hash(image: str) -> str:
    """What identifies an image, wherever it lies: a hash of its file, or of all files of its folder.

    Of gzip, which ends in a checksum of the content, both ends are enough, and take no time.
    """
    path = Path(image)
    digest = hashlib.sha256()
    for part in sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]:
        size = part.stat().st_size
        with open(part, "rb") as file:
            digest.update(f"{size} ".encode() + file.read(_END))
            file.seek(max(size - _END, 0) if part.suffix == ".gz" else 0)
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
