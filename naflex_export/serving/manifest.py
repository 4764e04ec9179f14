"""The artifact: a folder with one raw file per backend, a manifest, and a gate's verdict.

`manifest.json` is written last, with size and sha256 of every other file; the folder is built under a temporary name
and renamed into place. So a folder that has a manifest is whole, and a killed export leaves the old artifact or none.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from naflex_export.errors import ArtifactError
from naflex_export.grid import Bucket
from naflex_export.precision import Precision
from naflex_export.serving.signature import TensorSpec

MANIFEST = "manifest.json"
SCHEMA = 3
"""Version of the manifest's fields."""

ENCODER = "encoder"
"""The kind of an artifact that one file runs."""

PATCH_SIZES = "patch sizes"
"""The kind of a folder that holds an artifact for each patch size; see docs/architecture.md."""

KINDS = (ENCODER, PATCH_SIZES)

_KIND_OF_OLD_SCHEMA = {1: ENCODER, 2: PATCH_SIZES}
"""Before schema 3 there was no kind, and the schema said what it says; all other fields are the same."""


@dataclass(frozen=True)
class Manifest:
    """What an artifact says of itself.

    Attributes:
        target: "compile", "aot", "onnx" or "trt".
        dtype: of the weights and the floating inputs and outputs.
        inputs, outputs: the call's signature.
        buckets: what the artifact serves.
        model: family, architecture, configuration and where the weights came from, with their hash.
        preprocessing: what turns a photo into patches.
        versions: of the packages that made the artifact.
        build: what the target has to say, such as the opset or an engine's library and compute capability.
        gate: the gate's verdict and figures; empty until it has judged.
        files: size in bytes and sha256 of every other file, by path inside the folder.
        kind: what the folder holds, one of `KINDS`.
        schema: version of these fields.
    """

    target: str
    dtype: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    buckets: tuple[Bucket, ...]
    model: dict[str, Any]
    preprocessing: dict[str, Any]
    versions: dict[str, str]
    build: dict[str, Any]
    gate: dict[str, Any] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    kind: str = ENCODER
    schema: int = SCHEMA

    def write(self, folder: Path) -> Manifest:
        """Write `manifest.json` into the folder, listing every file there, and return it as written."""
        files = {
            path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path != folder / MANIFEST
        }
        written = Manifest(**{**vars(self), "files": files})
        text = json.dumps(asdict(written), indent=2) + "\n"
        partial = folder / (MANIFEST + ".partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(folder / MANIFEST)
        return written

    @property
    def precision(self) -> Precision:
        """What the artifact computes in."""
        return Precision(self.dtype)

    @property
    def entry_points(self) -> dict[int, str]:
        """Folders of whole artifacts inside this one, by patch size; empty for an artifact of one size."""
        if self.kind != PATCH_SIZES:
            return {}
        return {int(size): name for size, name in self.build["entry_points"].items()}

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Return the manifest of an artifact's folder.

        Raises:
            ArtifactError: there is none, or it is not one this release can read.
        """
        path = folder / MANIFEST
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ArtifactError(f"{str(folder)!r} is no artifact: it has no {MANIFEST}") from error
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{str(path)!r} cannot be read ({error}): export again") from error
        schema = fields.get("schema") if isinstance(fields, dict) else None
        if schema in _KIND_OF_OLD_SCHEMA:
            fields |= {"kind": _KIND_OF_OLD_SCHEMA[schema], "schema": SCHEMA}
        elif schema != SCHEMA:
            raise ArtifactError(f"{str(path)!r} has schema {schema!r}: this release reads 1 to {SCHEMA}")
        if fields.get("kind") not in KINDS:
            raise ArtifactError(
                f"{str(path)!r} is of kind {fields.get('kind')!r}: this release knows {' and '.join(map(repr, KINDS))}"
            )
        try:
            fields["inputs"] = _specs(fields["inputs"])
            fields["outputs"] = _specs(fields["outputs"])
            fields["buckets"] = tuple(Bucket(b["tokens"], tuple(b["batch"])) for b in fields["buckets"])
            manifest = cls(**fields)
            for name in manifest.entry_points.values():
                manifest.files[f"{name}/{MANIFEST}"]  # listed, so `verify` sees that it is there and inside
            return manifest
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{str(path)!r} is damaged ({error}): export again") from error

    def verify(self, folder: Path) -> None:
        """Check that the folder holds the files that the manifest lists, byte for byte, before anything loads them.

        Raises:
            ArtifactError: a file is missing, differs in size or hash, leads out of the folder, or is not listed.
        """
        for name, expected in self.files.items():
            path = folder / name
            if path.is_symlink() or not path.resolve().is_relative_to(folder.resolve()):
                raise ArtifactError(f"{name!r} leads out of {str(folder)!r}: refusing to load it")
            if not path.is_file():
                raise ArtifactError(f"{name!r} is missing from {str(folder)!r}: copy the whole folder again")
            size = path.stat().st_size
            if size != expected["bytes"]:
                raise ArtifactError(
                    f"{name!r} has {size} bytes, the manifest says {expected['bytes']}: copy the folder again"
                )
            if sha256_of(path) != expected["sha256"]:
                raise ArtifactError(f"{name!r} is not the file the manifest lists: its sha256 differs")
        found = {
            path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()
        }
        strangers = sorted(found - set(self.files) - {MANIFEST})
        if strangers:
            raise ArtifactError(f"{strangers[0]!r} in {str(folder)!r} is not in the manifest: remove it")


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _specs(fields: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(spec["name"], spec["dtype"], tuple(spec["shape"])) for spec in fields)
