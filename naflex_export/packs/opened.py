"""`Pack`: a golden pack on disk, every file of it as its manifest says."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from naflex_export.errors import RequestError

SCHEMA = 1
Array = NDArray[Any]


@dataclass(frozen=True)
class Pack:
    """A golden pack: its folder, and its manifest."""

    path: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, path: Path) -> Pack:
        """Return the pack in a folder, after checking the size and hash of every file.

        Raises:
            RequestError: a file is missing, is there besides, or has changed; the message names it.
        """
        try:
            manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
            files = manifest["files"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RequestError(
                f"{str(path / 'manifest.json')!r} cannot be read ({type(error).__name__}): expected the folder of a "
                "pack, as naflex-gate pack writes it"
            ) from error
        if manifest.get("schema") != SCHEMA:
            raise RequestError(
                f"pack {str(path)!r} has schema {manifest.get('schema')!r}, expected {SCHEMA}: write it again"
            )
        for name, said in files.items():
            file = path / name
            content = file.read_bytes() if file.is_file() else None
            if content is None or hashlib.sha256(content).hexdigest() != said["sha256"]:
                what = "is missing" if content is None else f"is damaged ({len(content)} of {said['bytes']} bytes)"
                raise RequestError(f"{name} of pack {str(path)!r} {what}: write or fetch the pack again")
        return cls(path, manifest)

    @property
    def cases(self) -> list[str]:
        """Names of the cases, in order."""
        return list(self.manifest["cases"])

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
        return np.asarray(np.load(self.path / name, allow_pickle=False))
