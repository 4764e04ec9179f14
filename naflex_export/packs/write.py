"""`write_pack`: a folder of inputs and right answers that needs none of this package, the same bytes each time."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from naflex_export.accuracy.comparison import float32_reference
from naflex_export.accuracy.faults import FAULTS, TypicalFault, features_of
from naflex_export.accuracy.metrics import LIMITS, measure
from naflex_export.accuracy.photos import load_photos
from naflex_export.batch import Batch, collate, noise_batch
from naflex_export.embed.preprocess import Array
from naflex_export.embed.preprocessing import Preprocessing
from naflex_export.errors import RequestError
from naflex_export.graph.intermediates import Once, listening, tap_names
from naflex_export.grid import Grid
from naflex_export.models import adapter_of
from naflex_export.models.adapter import ModelAdapter
from naflex_export.models.model_sources import weights_sha256
from naflex_export.packs.opened import SCHEMA, check_place
from naflex_export.packs.photo_faults import PHOTO_FAULTS, TOKENS, PhotoFault
from naflex_export.packs.readme import readme_of

TURNED = "chelsea.jpg"
"""The photo that is laid on its side, too."""

Photos = dict[str, dict[str, bytes]]
"""The photos of each case of photos, by their names."""

NO_STAGES = ("DropPath", "Dropout", "Identity", "ModuleList", "Sequential")
"""Classes of modules that give what they get, or what the last module in them gives."""

SMALL, FULL = 10 * 2**20, 200 * 2**20
"""The most bytes that a small pack and a full one may have."""


@dataclass(frozen=True)
class PackCase:
    """A case of a pack: the grids of its images, the tokens that they are padded to, and whether stages are kept."""

    grids: tuple[Grid, ...]
    tokens: int
    stages: bool = False


SMALL_CASES = {
    "stages": PackCase((Grid(3, 5), Grid(2, 4)), 16, stages=True),
    "mixed": PackCase((Grid(5, 7), Grid(7, 5), Grid(1, 40), Grid(40, 1), Grid(2, 18), Grid(1, 1)), 40),
    "square": PackCase((Grid(16, 16),), 256),
    "large": PackCase((Grid(7, 23), Grid(23, 7)), 170),
}
"""Grids that hurt: smaller and larger than the learned one in either direction, strips, and padding."""

FULL_CASES = {
    **SMALL_CASES,
    "square-stages": PackCase((Grid(16, 16), Grid(11, 23)), 256, stages=True),
    "row": PackCase((Grid(1, 256),), 256),
    "column": PackCase((Grid(255, 1),), 256),
    "drowned": PackCase((Grid(2, 2), Grid(3, 1), Grid(1, 2), Grid(1, 1)), 256),
    "batch": PackCase(tuple(Grid(1 + row % 5, 1 + row % 7) for row in range(32)), 35),
}


def write_pack(model: nn.Module, out: Path, small: bool = False, name: str = "") -> dict[str, Any]:
    """Write a golden pack of a model, and return its manifest.

    Args:
        model: the original, in any dtype; a float32 copy of it is what is right.
        out: a folder that does not exist yet.
        small: leave out all but what finds the typical faults: under 10 MiB, else under 200.
        name: of the model, as a reader of the pack would look for it.

    Raises:
        RequestError: the folder exists or cannot be written, the model pools nothing, or the pack would be too large.
    """
    check_place(out)
    adapter = float32_reference(adapter_of(model))
    if "features" not in adapter.default_outputs:
        raise RequestError("the model pools nothing, and a pack is of features: expected a model with a pooled output")
    try:
        out.mkdir(parents=True)
        return _write(adapter, out, small, name)
    except OSError as error:
        shutil.rmtree(out, ignore_errors=True)
        raise RequestError(f"--out {str(out)!r} cannot be written ({error.strerror}): give another folder") from error
    except BaseException:
        shutil.rmtree(out)
        raise


def _write(adapter: ModelAdapter, out: Path, small: bool, name: str) -> dict[str, Any]:
    cases: dict[str, Any] = {}
    reference: dict[str, Tensor] = {}
    low = {dtype: adapter.of(_cast(adapter.model, dtype)) for dtype in (torch.float16, torch.bfloat16)}
    floors: dict[str, dict[str, float]] = {str(dtype).removeprefix("torch."): {} for dtype in low}
    photos = _photos()
    made = list(_batches(adapter, photos, small))
    for batch, stages in made:
        case = out / "cases" / batch.name
        names = adapter.input_format.names
        for input_name, tensor in zip(names, adapter.input_format.arrange(batch), strict=True):
            _save(case / "inputs" / f"{input_name}.npy", tensor)
        kept = Once()
        with listening(adapter.tower, _stage_names(adapter.tower, small) if stages else [], kept.take):
            reference[batch.name] = features_of(adapter, batch)
        _save(case / "expected" / "features.npy", reference[batch.name])
        for stage, value in kept.values.items():
            _save(case / "expected" / "stages" / f"{stage}.npy", value)
        for dtype, other in low.items():
            error = measure(features_of(other, batch), reference[batch.name]).relative_l2
            floors[str(dtype).removeprefix("torch.")][batch.name] = error
        grids = [list(grid) for grid in batch.grids]
        cases[batch.name] = {"grids": grids, "tokens": batch.patch_valid.shape[1], "stages": list(kept.values)}
    for name_of_case, found in photos.items():
        cases[name_of_case]["photos"] = [f"photos/{file}" for file in found]
        for file, content in found.items():
            (out / "photos").mkdir(exist_ok=True)
            (out / "photos" / file).write_bytes(content)
    shutil.copyfile(_folder_of_photos() / "LICENSE", out / "photos" / "LICENSE")
    known = _fingerprints(adapter, [batch for batch, _ in made], photos, reference, out)
    manifest: dict[str, Any] = {
        "schema": SCHEMA,
        "model": {**adapter.describe(), "name": name, "weights_sha256": weights_sha256(adapter.model)},
        "preprocessing": adapter.preprocessing(),
        "inputs": list(adapter.input_format.names),
        "cases": cases,
        "limits": {dtype: asdict(limits) for dtype, limits in LIMITS.items()},
        "why": {
            "float32": "ten times what right float32 implementations with other orders of sums measure",
            "float16": "a cap; a right one is at most twice as far off as eager is, which noise_floors say",
            "bfloat16": "a cap; a right one is at most twice as far off as eager is, which noise_floors say",
        },
        "noise_floors": floors,
        "fingerprints": {fault: _told(fault) for fault in known},
        "versions": _versions(adapter.package),
    }
    (out / "README.md").write_text(readme_of(manifest), encoding="utf-8")
    files = {path.relative_to(out).as_posix(): path for path in sorted(out.rglob("*")) if path.is_file()}
    manifest["files"] = {
        path: {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        for path, file in files.items()
    }
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    if size > (most := SMALL if small else FULL):
        raise RequestError(
            f"the pack would have {size / 2**20:.0f} MiB, and at most {most / 2**20:.0f} are meant: the model's width "
            "asks for more; without --small there is room for 200"
        )
    return manifest


def _stage_names(tower: nn.Module, small: bool) -> list[str]:
    """Return the modules that are stages: those that compute something; in a small pack, of each block the whole."""
    modules = dict(tower.named_modules())

    def is_in_a_block(name: str) -> bool:
        parts = name.split(".")
        holders = (".".join(parts[:count]) for count in range(1, len(parts) - 1))
        return any(isinstance(modules[holder], nn.ModuleList | nn.Sequential) for holder in holders)

    names = [name for name in tap_names(tower) if type(modules[name]).__name__ not in NO_STAGES]
    return [name for name in names if not (small and is_in_a_block(name))]


def _told(fault: str) -> dict[str, str]:
    found = FAULTS.get(fault) or PHOTO_FAULTS[fault]
    return {"says": found.says, "remedy": found.remedy}


def _batches(adapter: ModelAdapter, photos: Photos, small: bool) -> Iterator[tuple[Batch, bool]]:
    """Yield each batch of a pack and whether its stages are kept."""
    transform = adapter.transform(TOKENS)
    for case, files in photos.items():
        upright = (ImageOps.exif_transpose(Image.open(io.BytesIO(content))) for content in files.values())
        yield collate(case, [transform(image.convert("RGB")) for image in upright], TOKENS), False
    for name, planned in (SMALL_CASES if small else FULL_CASES).items():
        yield noise_batch(name, planned.grids, planned.tokens, adapter.token_width), planned.stages


def _folder_of_photos() -> Path:
    from importlib import resources

    return Path(str(resources.files("naflex_export.accuracy.photos")))


def _photos() -> Photos:
    """Return the photos of each case of photos: those of the package as they are, and one that lies on its side."""
    images = load_photos().images
    return {
        "photos": {name: (_folder_of_photos() / name).read_bytes() for name in images},
        "turned-photo": {"turned.jpg": _turned(images[TURNED])},
    }


def _turned(picture: Image.Image) -> bytes:
    """Return a JPEG that lies on its side, as its EXIF data say."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a right angle
    stream = io.BytesIO()
    picture.transpose(Image.Transpose.ROTATE_90).save(stream, "JPEG", quality=95, subsampling=0, exif=exif)
    return stream.getvalue()


def _fingerprints(
    adapter: ModelAdapter, made: list[Batch], photos: Photos, reference: dict[str, Tensor], out: Path
) -> list[str]:
    """Write what each typical fault would have given, and return those that change anything."""
    known: dict[str, dict[str, Tensor]] = {}
    answers = {name: _of_fault(adapter, fault, made) for name, fault in FAULTS.items()}
    answers |= {name: _of_photo_fault(adapter, fault, photos) for name, fault in PHOTO_FAULTS.items()}
    for name, found in answers.items():
        whole = {**reference, **found}
        if any(_are_near(whole, other) for other in (reference, *known.values())):
            continue  # the model has no such thing, or the fault is another one in this model
        known[name] = whole
        for case, features in found.items():
            _save(out / "fingerprints" / name / f"{case}.npy", features)
    return list(known)


def _of_fault(adapter: ModelAdapter, fault: TypicalFault, made: list[Batch]) -> dict[str, Tensor]:
    return {batch.name: fault.run(adapter, batch) for batch in made}


def _of_photo_fault(adapter: ModelAdapter, fault: PhotoFault, photos: Photos) -> dict[str, Tensor]:
    """Return what a fault gives for the cases of photos; nothing where it cannot be had for the model."""
    said, found = Preprocessing.of(adapter.preprocessing()), dict[str, Tensor]()
    for case, files in photos.items():
        try:
            images = [_image(*fault.prepare(said, content)) for content in files.values()]
        except RequestError:  # such as an interpolation that the other resizer lacks
            return {}
        found[case] = features_of(adapter, collate(case, images, TOKENS))
    return found


def _image(patches: Array, grid: Grid) -> dict[str, Tensor]:
    place = torch.arange(grid.tokens)
    coord = torch.stack([place // grid.width, place % grid.width], dim=1)
    return {
        "patches": torch.from_numpy(patches),
        "patch_coord": coord,
        "patch_valid": torch.ones(grid.tokens, dtype=torch.bool),
    }


def _are_near(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    moved = (float((one[case] - features).norm() / features.norm()) for case, features in other.items())
    return max(moved) <= LIMITS["float32"].relative_l2


def _cast(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    from naflex_export.models.copies import whole_copy

    return whole_copy(model).to(dtype)


def _save(path: Path, tensor: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, tensor.detach().cpu().contiguous().numpy())


def _versions(package: str) -> dict[str, str]:
    names = ("torch", package, "numpy", "pillow", "torchvision", "naflex_export")
    return {"python": platform.python_version(), **{name: _version(name) for name in names}}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        from naflex_export.version import __version__

        return __version__ if name == "naflex_export" else ""
