"""`Pack`: a golden pack on disk, every file of it as its manifest says."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from naflex_export.errors import RequestError
from naflex_export.serving.publish import check_writable

SCHEMA = 1
Array = NDArray[Any]


def check_place(out: Path) -> None:
    """Check that a pack can be written to a folder, which must not be there.

    Raises:
        RequestError: it cannot.
    """
    if out.exists() or out.is_symlink():
        raise RequestError(f"--out {str(out)!r} exists: a pack is written to a folder that does not, remove it first")
    check_writable(out)


@dataclass(frozen=True)
class Pack:
    """A golden pack: its folder, and its manifest."""

    path: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, path: Path) -> Pack:
        """Return the pack in a folder, after checking the size and hash of every file that its manifest names.

        A file that the manifest does not name is never read.

        Raises:
            RequestError: the folder is no pack, or a file of it is missing or has changed; the message names it.
        """
        if not path.is_dir():
            raise RequestError(
                f"there is no folder {str(path)!r}: expected the folder of a pack, as naflex-gate pack writes it"
            )
        file = str(path / "manifest.json")
        try:
            manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise RequestError(
                f"{file!r} cannot be read ({type(error).__name__}): expected the folder of a pack, as naflex-gate pack "
                "writes it"
            ) from error
        schema = manifest.get("schema") if isinstance(manifest, dict) else None
        if isinstance(manifest, dict) and "target" in manifest:
            raise RequestError(
                f"{str(path)!r} is an artifact: expected the folder of a pack, as naflex-gate pack writes it; "
                f"naflex-gate {path} judges an artifact"
            )
        if schema != SCHEMA:
            raise RequestError(f"pack {str(path)!r} has schema {schema!r}, expected {SCHEMA}: write it again")
        try:
            missing = [*_not_said(manifest), *_not_listed(manifest)]
            said = {name: (int(one["bytes"]), str(one["sha256"])) for name, one in manifest["files"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RequestError(
                f"{file!r} is no manifest of a pack ({type(error).__name__}: {error}): write or fetch the pack again"
            ) from error
        if missing:
            raise RequestError(f"{file!r} names no {missing[0]}, which it needs: write or fetch the pack again")
        for name, (size, digest) in said.items():
            if what := _damage(path, name, size, digest):
                raise RequestError(f"{name} of pack {str(path)!r} {what}: write or fetch the pack again")
        return cls(path, manifest)

    @property
    def cases(self) -> list[str]:
        """Names of the cases, in order."""
        return list(self.manifest["cases"])

    def check_dtype(self, dtype: str) -> None:
        """Check that the pack says what an answer in a dtype may differ by.

        Raises:
            RequestError: it does not.
        """
        dtypes = ("float32", *self.manifest["noise_floors"])
        if dtype not in dtypes:
            raise RequestError(f"dtype {dtype!r} is unknown: expected one of {', '.join(dtypes)}")

    def inputs(self, case: str) -> dict[str, Array]:
        """Return the inputs of a case by their names, in order."""
        return {name: self._load(f"cases/{case}/inputs/{name}.npy") for name in self.manifest["inputs"]}

    def expected(self, case: str) -> Array:
        """Return the right features of a case."""
        return self._load(f"cases/{case}/expected/features.npy")

    def stages(self, case: str) -> dict[str, Array]:
        """Return what each module gives in a case, in order."""
        names = self.manifest["cases"][case]["stages"]
        return {name: self._load(f"cases/{case}/expected/stages/{name}.npy") for name in names}

    def fingerprint(self, fault: str, case: str) -> Array:
        """Return the features that a typical fault gives for a case; the right ones where it changes nothing."""
        name = f"fingerprints/{fault}/{case}.npy"
        return self._load(name) if name in self.manifest["files"] else self.expected(case)

    @property
    def photo_cases(self) -> list[str]:
        """Names of the cases that are made of photos, in order."""
        return [name for name, said in self.manifest["cases"].items() if "photos" in said]

    def photos(self, case: str = "photos") -> list[Path]:
        """Return the photos of a case that is made of them, in order."""
        return [self.path / name for name in self.manifest["cases"][case]["photos"]]

    def _load(self, name: str) -> Array:
        try:
            return np.asarray(np.load(self.path / name, allow_pickle=False))
        except (OSError, ValueError) as error:
            raise RequestError(f"{name} of pack {str(self.path)!r} is no .npy file: {error}") from error


def _not_said(manifest: dict[str, Any]) -> list[str]:
    """Return what a judge asks of a manifest that it does not say, beside files."""
    floors = {dtype: manifest["noise_floors"][dtype] for dtype in ("float16", "bfloat16")}
    unsaid = [f"noise floor of {case}" for found in floors.values() for case in manifest["cases"] if case not in found]
    unsaid += [] if "photos" in manifest["cases"]["photos"] else ["photos of the case photos"]
    faults = manifest["fingerprints"].items()
    return unsaid + [f"words for {name}" for name, said in faults if not {"says", "remedy"} <= set(said)]


def _not_listed(manifest: dict[str, Any]) -> list[str]:
    """Return the files that a judge reads and a manifest does not list, and so says no hash of."""
    needed = []
    for case, said in manifest["cases"].items():
        needed += [f"cases/{case}/inputs/{name}.npy" for name in manifest["inputs"]]
        needed += [f"cases/{case}/expected/features.npy"]
        needed += [f"cases/{case}/expected/stages/{name}.npy" for name in said["stages"]]
        needed += said.get("photos", [])
    return [name for name in needed if name not in manifest["files"]]


def _damage(path: Path, name: str, size: int, digest: str) -> str:
    """Return what is wrong with a file of a pack, in words; empty where nothing is."""
    file = path / name
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        return "lies outside of it"
    if not file.is_file():
        return "is missing"
    found = file.stat().st_size
    if found == size and hashlib.sha256(file.read_bytes()).hexdigest() == digest:
        return ""
    return f"is damaged ({found} of {size} bytes)"
