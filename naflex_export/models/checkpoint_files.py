"""Checkpoints as files: one, or the shards that a folder or an index names, read as tensors and plain values only."""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import pathlib
import pickle
import re
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from naflex_export.errors import RequestError
from naflex_export.serving.archive import expansion
from naflex_export.serving.manifest import sha256_of

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar", ".pth.tar")
"""What a checkpoint's name may end with. What is in it is told by its first bytes."""

PREFERRED = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth", "open_clip_model.safetensors")
"""Of several files of a folder, the ones that hold its model, as timm and transformers name them."""

_SHARD = re.compile(r"(?P<name>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.safetensors|\.bin)")
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


def check_checkpoint(path: Path, safe_only: bool) -> None:
    """Check that a checkpoint is there and of a kind that is read.

    Args:
        path: a file, or a folder that holds a checkpoint, in shards or whole.
        safe_only: take safetensors only.

    Raises:
        RequestError: it is not.
    """
    if not path.exists():
        raise RequestError(
            f"checkpoint {str(path)!r} does not exist: expected 'pretrained', 'random' or a file or folder"
        )
    suffixes = SUFFIXES[:1] if safe_only else SUFFIXES
    for file in files_of(path):
        if not file.is_file():
            raise RequestError(f"checkpoint {str(file)!r} is no regular file: expected a file of tensors")
        if file.suffix not in suffixes:
            raise RequestError(
                f"checkpoint {str(file)!r} ends in {file.suffix!r}: expected one of {', '.join(suffixes)}"
            )


def files_of(path: Path) -> list[Path]:
    """Return the files that a checkpoint consists of: itself, or what a folder or an index of shards names.

    Raises:
        RequestError: it cannot be said which files of a folder are the checkpoint, or a shard is missing.
    """
    if path.name.endswith(".index.json"):
        return _shards_of_index(path)
    if not path.is_dir():
        return [path]
    if (path / ".metadata").is_file() and any(path.glob("*.distcp")):
        raise RequestError(
            f"checkpoint folder {str(path)!r} is one of torch.distributed.checkpoint: expected tensors in one file; "
            f"make it with python -m torch.distributed.checkpoint.format_utils dcp_to_torch {path} FILE.pth"
        )
    for name in PREFERRED:
        if (path / name).is_file():
            return [path / name]
        if (path / f"{name}.index.json").is_file():
            return _shards_of_index(path / f"{name}.index.json")
    found = sorted(file for file in path.iterdir() if file.is_file() and file.suffix in SUFFIXES)
    shards = _complete_shards(path, found)
    if shards or len(found) == 1:
        return shards or found
    if not found:
        raise RequestError(f"checkpoint folder {str(path)!r} holds no checkpoint: expected {PREFERRED[0]}, or shards")
    names = ", ".join(file.name for file in found[:5])
    raise RequestError(f"checkpoint folder {str(path)!r} holds several ({names}): name the file that is meant")


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


def _shards_of_index(index: Path) -> list[Path]:
    try:
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(named.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RequestError(f"index {str(index)!r} cannot be read ({error}): expected a weight_map of shards") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise RequestError(f"index {str(index)!r} names {name!r}: expected files of its own folder")
        if not (index.parent / name).is_file():
            raise RequestError(
                f"index {str(index)!r} names {name!r}, which is missing: expected all {len(names)} shards"
            )
    return [index.parent / name for name in names]


def _complete_shards(folder: Path, found: list[Path]) -> list[Path]:
    """Return the shards of one checkpoint whose folder holds no index; nothing where there are none."""
    parsed = [(match, file) for file in found if (match := _SHARD.fullmatch(file.name))]
    sets = {(match["name"], match["count"], match["suffix"]) for match, _ in parsed}
    if len(sets) != 1 or len(parsed) != len(found):
        return []
    ((_, count, _),) = sets
    if len(parsed) != int(count):
        raise RequestError(
            f"checkpoint folder {str(folder)!r} holds {len(parsed)} shards of {int(count)}: is it whole?"
        )
    return [file for _, file in parsed]
