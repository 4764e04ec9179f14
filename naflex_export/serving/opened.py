"""An artifact's folder, opened once: what is loaded is what was verified, whatever is published at its name meanwhile.

The folder is held by a handle, and everything is read through it. Another process may put a new artifact in its place
at any moment; a load goes on with the one that it verified, or, where that is being deleted already, begins again with
the new one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeVar

from naflex_export.errors import ArtifactError, NaflexExportError, RequestError
from naflex_export.serving.manifest import Manifest, why_none
from naflex_export.serving.manifest_schema import TEXT

T = TypeVar("T")

ATTEMPTS = 50
"""How often a load begins again where the artifact was replaced meanwhile."""

FULL, SIZE = "full", "size"
"""How files are verified: by size and sha256, or by size alone, which a load of gigabytes may want."""

REPLACED = ".naflex-replaced"
"""What the name of an old artifact ends in for as long as a new one takes its place, where they cannot be exchanged."""

_HANDLES = Path("/proc/self/fd")


class Loaded:
    """What holds on to a loaded artifact, and so is neither pickled nor copied."""

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Refuse to be pickled or copied.

        Raises:
            RequestError: always.
        """
        raise RequestError(
            f"a {type(self).__name__} holds on to an artifact's folder and to what was made of its files, and cannot "
            "be pickled or copied: load it again where it is needed, as in each worker process"
        )


class FolderHandle(Loaded):
    """A folder that stays the same one whatever is moved to its name; where the system has no such thing, its name.

    Attributes:
        name: where it was found.
        path: what leads to it for as long as this object is there.
    """

    def __init__(self, name: Path) -> None:
        self.name = self.path = name
        self._handle: int | None = None
        if hasattr(os, "O_DIRECTORY") and _HANDLES.is_dir():
            self._handle = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self.path = _HANDLES / str(self._handle)
        self._identity = self._now() if self._handle is None else _identity(os.fstat(self._handle))

    def was_replaced(self) -> bool:
        """Return whether another folder, or none, is now where this one was found."""
        return self._now() != self._identity

    def _now(self) -> tuple[int, int] | None:
        try:
            return _identity(self.name.stat())
        except OSError:
            return None

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            os.close(self._handle)  # type: ignore[arg-type]


@dataclass(frozen=True)
class VerifiedFolder:
    """An artifact's folder whose files are what its manifest says, and its manifest.

    Attributes:
        path: what leads to the folder that was verified, for as long as `handle` is kept.
        manifest: its own.
        handle: keeps hold of it.
        shown: where it was found, for messages.
    """

    path: Path
    manifest: Manifest
    handle: FolderHandle
    shown: Path

    def by_patch_size(self) -> dict[int, VerifiedFolder]:
        """Return the artifact of each patch size; none of one size.

        Raises:
            ArtifactError: one is of another patch size, target, dtype or model than the manifest on top says.
        """
        found = {}
        for size, name in self.manifest.by_patch_size.items():
            inner = VerifiedFolder(self.path / name, Manifest.read(self.path / name), self.handle, self.shown / name)
            _check_entry_point(size, inner, self.manifest)
            found[size] = inner
        return found

    def text(self) -> VerifiedFolder | None:
        """Return the folder of the artifact's text tower; None where it has none.

        Raises:
            ArtifactError: it is of another kind, target or dtype than the manifest on top says.
        """
        said = self.manifest.text
        if said is None:
            return None
        inner = self.path / said["folder"]
        found = VerifiedFolder(inner, Manifest.read(inner), self.handle, self.shown / said["folder"])
        own, top = found.manifest, self.manifest
        if (own.kind, own.target, own.dtype) != (TEXT, top.target, top.dtype):
            raise ArtifactError(
                f"{str(found.shown)!r} is damaged: it holds a {own.kind!r} of target {own.target!r} in {own.dtype}, "
                f"and the manifest above says that it is the text tower of {top.target!r} in {top.dtype}: export again"
            )
        return found


def opened(path: Path, use: Callable[[VerifiedFolder], T], verify: str = FULL) -> T:
    """Return what is made of an artifact's folder, once each of its files has been verified.

    Args:
        path: the artifact's folder.
        use: what to do with it; called again where the artifact was replaced before it was done.
        verify: "full" reads every file, "size" looks at their sizes.

    Raises:
        RequestError: `verify` is neither.
        ArtifactError: the folder is no artifact, or not what its manifest says; and what `use` raises.
    """
    if verify not in (FULL, SIZE):
        raise RequestError(f"verify={verify!r}: expected {FULL!r} or {SIZE!r}")
    error: Exception | None = None
    for _ in range(ATTEMPTS):
        try:
            handle = FolderHandle(path)
        except OSError as missing:
            if not path.with_name(path.name + REPLACED).exists():
                raise ArtifactError(why_none(path)) from missing
            error = missing
            time.sleep(0.02)
            continue
        try:
            manifest = Manifest.read(handle.path)
            manifest.verify(handle.path, sizes_only=verify == SIZE)
            made = use(VerifiedFolder(handle.path, manifest, handle, path))
        except NaflexExportError as failed:
            if not handle.was_replaced():
                failed.args = (str(failed).replace(str(handle.path), str(path)),)
                raise
            error = failed
            continue
        # ONNX Runtime finds weights in a file of their own by the folder's name
        if not handle.was_replaced() or not any(name.endswith(".data") for name in manifest.files):
            return made
    if isinstance(error, FileNotFoundError):
        raise ArtifactError(
            f"{str(path)!r} is no artifact, and an export that was killed left the old one at "
            f"'{path}{REPLACED}': rename it, or export again"
        ) from error
    raise ArtifactError(f"{str(path)!r} was replaced {ATTEMPTS} times while it was loaded: try again") from error


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _check_entry_point(size: int, inner: VerifiedFolder, top: Manifest) -> None:
    own, problem = inner.manifest, ""
    patches = own.inputs[0].shape[-1]
    expected_sizes = [[size, size], size]
    if own.kind == top.kind:
        problem = f"kind {own.kind!r}"
    elif own.model.get("patch_size") != size or own.preprocessing.get("patch_size", size) not in expected_sizes:
        problem = f"patch size {own.model.get('patch_size')}, prepared as {own.preprocessing.get('patch_size')}"
    elif not isinstance(patches, int) or patches % (size * size):
        problem = f"patches of {patches} values"
    else:
        for name in ("target", "dtype", "buckets"):
            if getattr(own, name) != getattr(top, name):
                problem = f"{name} {getattr(own, name)!s}"
        if own.model["weights_sha256"] != top.model["weights_sha256"]:
            problem = "another model's weights"
        if [(spec.name, spec.dtype) for spec in (*own.inputs, *own.outputs)] != [
            (spec.name, spec.dtype) for spec in (*top.inputs, *top.outputs)
        ]:
            problem = "other inputs or outputs"
    if problem:
        raise ArtifactError(
            f"{str(inner.shown)!r} is damaged: it holds {problem}, and the manifest above says that it is the entry "
            f"point of patch size {size}: export again"
        )
