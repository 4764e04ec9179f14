"""Checkpoints as files: one, or the shards that a folder or an index names, read as tensors and plain values only."""

from __future__ import annotations

import argparse
import collections
import hashlib
import pathlib
import pickle
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from naflex_export.errors import RequestError
from naflex_export.models.checkpoint_paths import files_of
from naflex_export.serving.archive import expansion
from naflex_export.serving.manifest import sha256_of

_UNREADABLE = (
    SafetensorError,
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    TypeError,
    KeyError,
)


def checkpoint_sha256(path: Path) -> str:
    """Return the hash of a checkpoint's file; of several, a hash of their names and hashes."""
    files = files_of(path)
    if len(files) == 1:
        return sha256_of(files[0])
    return hashlib.sha256("".join(f"{file.name} {sha256_of(file)}\n" for file in files).encode()).hexdigest()


def read_checkpoint(path: Path) -> Any:
    """Return what a checkpoint holds, all shards together; nothing in it is run.

    Raises:
        RequestError: it cannot be read.
    """
    files = files_of(path)
    if len(files) == 1:
        return _read_file(files[0])
    merged: dict[str, Any] = {}
    for file in files:
        held = _read_file(file)
        twice = sorted(set(merged) & set(held)) if isinstance(held, dict) else ["all of it"]
        if twice:
            raise RequestError(f"shard {str(file)!r} holds {twice[0]!r}, which another shard holds too: is it whole?")
        merged |= held
    return merged


def _read_file(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            start = file.read(64)
        if start.startswith(b"version https://git-lfs"):
            raise RequestError(f"checkpoint {str(path)!r} is a Git LFS pointer, not the file itself: run git lfs pull")
        if path.suffix == ".safetensors" or start[8:9] == b"{":
            return load_file(path)
        if reason := expansion(path):
            raise ValueError(reason)
        with torch.serialization.safe_globals(_safe_globals()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise RequestError(
            f"checkpoint {str(path)!r} ({path.stat().st_size} bytes) cannot be read: {_reason(error, path)}. "
            "Is it whole, and tensors only?"
        ) from error


def _reason(error: BaseException, path: Path) -> str:
    """Return a reader's first line, and where weights_only stops at a class, which classes those are."""
    said = (str(error).strip() or type(error).__name__).splitlines()[0][:300].rstrip(".")
    if isinstance(error, pickle.UnpicklingError) and "eights" in said:
        try:
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        except _UNREADABLE:
            return said
        if names:
            return (
                f"it holds objects of {', '.join(names[:5])}, which are not read since they could run code; save its "
                f"tensors alone, torch.save(model.state_dict(), FILE), where the file is trusted"
            )
    return said


def _safe_globals() -> list[Any]:
    """Return the plain values that training scripts keep beside weights: none runs code when it is made."""
    numbers = [getattr(np.dtypes, name) for name in dir(np.dtypes) if name.endswith("DType")]
    multiarray: Any = np._core.multiarray  # type: ignore[attr-defined]
    made = [(multiarray.scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    made += [(multiarray._reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]
    paths = [pathlib.PurePosixPath, pathlib.PureWindowsPath]
    foreign = [(pathlib.PurePosixPath, "pathlib.PosixPath"), (pathlib.PureWindowsPath, "pathlib.WindowsPath")]
    foreign += [(kind, f"pathlib._local.{kind.__name__.removeprefix('Pure')}") for kind in paths]
    plain = [argparse.Namespace, types.SimpleNamespace, collections.defaultdict, collections.Counter, slice, complex]
    return [*plain, np.dtype, np.ndarray, *numbers, *made, *paths, *foreign, dict, list, set, frozenset, tuple]
