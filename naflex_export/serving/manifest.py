"""The artifact: a folder with one raw file per backend, a manifest, and a gate's verdict.

`manifest.json` is written last, with size and sha256 of every other file and the sha256 of its own content; the folder
is built under a temporary name and put into place whole. So a folder that has a manifest is whole, and a killed export
leaves the old artifact or none.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from naflex_export.errors import ArtifactError, RequestError
from naflex_export.grid import Bucket
from naflex_export.precision import Precision
from naflex_export.serving.manifest_schema import ENCODER, KINDS, PATCH_SIZES, TEXT, check_fields
from naflex_export.serving.signature import TensorSpec

MANIFEST = "manifest.json"
SCHEMA = 4
"""Version of the manifest's fields."""

MOST_BYTES = 16 * 2**20
"""Of a manifest: more is not read."""

_OF_A_PACK = "noise_floors"
"""What the manifest of a golden pack says and an artifact's does not; both are called the same."""

_KIND_OF_OLD_SCHEMA = {1: ENCODER, 2: PATCH_SIZES}
"""Before schema 3 there was no kind, and the schema said what it says; all other fields are the same."""

_WITHOUT_SHA256 = (1, 2, 3)
"""Schemas whose manifests do not say the sha256 of their own content."""


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
        written = Manifest(**{**vars(self), "files": files, "schema": SCHEMA})
        text = json.dumps(sealed(asdict(written)), indent=2) + "\n"
        partial = folder / (MANIFEST + ".partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(folder / MANIFEST)
        return written

    @property
    def precision(self) -> Precision:
        """What the artifact computes in."""
        quantized = self.build.get("quantized", {})
        kept = tuple(self.build.get("keep_float32", ()))
        return Precision(self.dtype, kept, quantized.get("to", ""), tuple(quantized.get("keep_unquantized", ())))

    @property
    def packed(self) -> bool:
        """Whether the images of a batch follow each other with no padding between them."""
        return any("images" in spec.shape for spec in self.inputs)

    @property
    def by_patch_size(self) -> dict[int, str]:
        """Folders of whole artifacts inside this one, by patch size; empty for an artifact of one size."""
        if self.kind != PATCH_SIZES:
            return {}
        return {int(size): name for size, name in self.build["entry_points"].items()}

    @property
    def model_name(self) -> str:
        """What the model is called where it came from; of one from a folder, or from Python, its architecture."""
        name = str(self.model.get("source", {}).get("model", ""))
        own = str(self.model["architecture"] or self.model["family"])
        return own if not name or _is_place(name.partition(":")[2]) else name

    @property
    def told_preprocessing(self) -> dict[str, Any]:
        """What turns photos, or texts, into inputs, without the names of folders on the disk where that was found."""
        return {name: value for name, value in self.preprocessing.items() if not _is_place(value)}

    @property
    def text(self) -> dict[str, Any] | None:
        """What is said of the text tower beside this one: its folder, and how vectors are scored; None without one."""
        found: dict[str, Any] | None = self.model.get("text")
        return found

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Return the manifest of an artifact's folder.

        Raises:
            ArtifactError: there is none, or it is not one this release can read.
        """
        path = folder / MANIFEST
        text = _read(path, folder)
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ArtifactError(f"{str(path)!r} cannot be read ({error}): export again") from error
        if isinstance(fields, dict) and _OF_A_PACK in fields:
            raise ArtifactError(
                f"{str(folder)!r} is a golden pack: expected an artifact, as naflex-export writes it; "
                f"naflex-gate judge {folder} ANSWERS judges a port by a pack"
            )
        schema = fields.get("schema") if isinstance(fields, dict) else None
        if type(schema) is not int or not 1 <= schema <= SCHEMA:
            raise ArtifactError(f"{str(path)!r} has schema {str(schema)[:100]!s}: this release reads 1 to {SCHEMA}")
        fields |= {"kind": _KIND_OF_OLD_SCHEMA.get(schema, fields.get("kind")), "schema": SCHEMA}
        if fields["kind"] not in KINDS:
            raise ArtifactError(
                f"{str(path)!r} is of kind {str(fields['kind'])[:100]!r}: this release knows "
                f"{' and '.join(map(repr, KINDS))}"
            )
        own = fields.pop("sha256", None)
        try:
            if schema not in _WITHOUT_SHA256 and own != _content_sha256(fields):
                raise ValueError("it was changed after the export: its content is not what its own sha256 says")
            check_fields(fields)
        except (ValueError, RecursionError) as error:  # lone surrogates are no text either
            raise ArtifactError(
                f"{str(path)!r} is damaged ({error}): export again (docs/errors.md#an-artifact-is-damaged)"
            ) from error
        fields["inputs"] = _specs(fields["inputs"])
        fields["outputs"] = _specs(fields["outputs"])
        fields["buckets"] = tuple(Bucket(b["tokens"], tuple(b["batch"])) for b in fields["buckets"])
        return cls(**fields)

    def verify(self, folder: Path, sizes_only: bool = False) -> None:
        """Check that the folder holds the files that the manifest lists, byte for byte, before anything loads them.

        Args:
            folder: the artifact's.
            sizes_only: trust the content of files of the right size.

        Raises:
            ArtifactError: a file is missing, differs in size or hash, leads out of the folder, or is not listed.
        """
        try:
            self._verify(folder, sizes_only)
        except OSError as error:
            raise ArtifactError(f"{str(folder)!r} cannot be read ({error.strerror}): copy the folder again") from error

    def _verify(self, folder: Path, sizes_only: bool) -> None:
        for name, expected in self.files.items():
            path = folder / name
            if path.is_symlink() or not path.resolve().is_relative_to(folder.resolve()):
                raise ArtifactError(f"{name!r} leads out of {str(folder)!r}: refusing to load it")
            if not path.is_file():
                raise ArtifactError(
                    f"{name!r} is missing from {str(folder)!r}: copy the whole folder again "
                    "(docs/errors.md#an-artifact-is-damaged)"
                )
            size = path.stat().st_size
            if size != expected["bytes"]:
                raise ArtifactError(
                    f"{name!r} has {size} bytes, the manifest says {expected['bytes']}: copy the folder again "
                    "(docs/errors.md#an-artifact-is-damaged)"
                )
            if not sizes_only and sha256_of(path) != expected["sha256"]:
                raise ArtifactError(
                    f"{name!r} is not the file the manifest lists: its sha256 differs "
                    "(docs/errors.md#an-artifact-is-damaged)"
                )
        strangers = self.strangers(folder)
        if strangers:
            raise ArtifactError(
                f"{strangers[0]!r} in {str(folder)!r} is not in the manifest: remove it "
                "(docs/errors.md#an-artifact-is-damaged)"
            )

    def strangers(self, folder: Path) -> list[str]:
        """Return what lies in a folder and is not listed: files, links, all that is no folder, by path inside."""
        found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not _is_folder(path)}
        return sorted(found - set(self.files) - {MANIFEST})


def refuse_text_tower(manifest: Manifest) -> None:
    """Check that a folder is an artifact by itself.

    Raises:
        RequestError: it is the text tower in one, which is judged and used with its image tower.
    """
    if manifest.kind == TEXT:
        raise RequestError("the folder is the text tower of an artifact: give the folder that it lies in")


def sealed(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest's fields with the sha256 of them all, which shows whether one was changed since."""
    # as it will be read: JSON has texts for keys, and lists for tuples
    plain = json.loads(json.dumps({name: value for name, value in fields.items() if name != "sha256"}))
    return {**plain, "sha256": _content_sha256(plain)}


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _content_sha256(fields: Mapping[str, Any]) -> str:
    """Return the sha256 of fields as JSON in one form, whatever spaces and order a file has them in."""
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def why_none(path: Path) -> str:
    """Return why a folder without a manifest is no artifact, and which lie beside it.

    Args:
        path: of the folder, which need not be there.
    """
    if path.exists():
        return f"{str(path)!r} is no artifact: it has no {MANIFEST}"
    there = sorted(str(found.parent) for found in path.parent.glob(f"*/{MANIFEST}"))[:3] if path.parent.is_dir() else []
    hint = f"; beside it there {'is' if len(there) == 1 else 'are'} {', '.join(there)}" if there else ""
    return f"there is no folder {str(path)!r}: expected an artifact, as naflex-export writes it{hint}"


def _is_place(value: object) -> bool:
    """Whether a value names a place on a disk from its root: of no use elsewhere, and nobody else's business."""
    return isinstance(value, str) and (value.startswith(("/", "\\", "~")) or value[1:3] in (":\\", ":/"))


def _read(path: Path, folder: Path) -> str:
    """Return the text of a manifest: of a plain file and of a size that manifests have, and of nothing else."""
    try:
        # without O_NONBLOCK a pipe would wait for a writer
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ArtifactError(why_none(folder)) from error
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{str(path)!r} cannot be read ({error}): export again") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ArtifactError(f"{str(path)!r} cannot be read (it is no plain file): export again")
    with os.fdopen(handle, "rb") as file:
        try:
            content = file.read(MOST_BYTES + 1)
            if len(content) > MOST_BYTES:
                raise ValueError(f"it is larger than {MOST_BYTES} bytes, which no manifest is")
            return content.decode()
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{str(path)!r} cannot be read ({error}): export again") from error


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _specs(fields: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(spec["name"], spec["dtype"], tuple(spec["shape"])) for spec in fields)
