"""Which files a checkpoint consists of, told by their names: nothing is read but an index, and torch is not needed."""

from __future__ import annotations

import json
import re
from pathlib import Path

from naflex_export.errors import RequestError
from naflex_export.models import TRANSFORMERS_PREFIX

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar", ".pth.tar")
"""What a checkpoint's name may end with. What is in it is told by its first bytes."""

PREFERRED = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth", "open_clip_model.safetensors")
"""Of several files of a folder, the ones that hold its model, as timm and transformers name them."""

_SHARD = re.compile(r"(?P<name>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.safetensors|\.bin)")


NO_FILE = ("pretrained", "random")
"""Weights that are no checkpoint of the user's."""


def check_weights(weights: str, model: str) -> None:
    """Check the checkpoint that weights name, where they name one.

    Args:
        weights: "pretrained", "random", or the path of a checkpoint.
        model: the name of the model; one of transformers takes safetensors only.

    Raises:
        RequestError: it is not there, or not of a kind that is read.
    """
    if weights not in NO_FILE:
        check_checkpoint(Path(weights), safe_only=model.startswith(TRANSFORMERS_PREFIX))


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
