"""The manifest of an artifact that is built and yet to be judged: all but its files and the verdict."""

from __future__ import annotations

import contextlib
import dataclasses
import platform
from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import Any

from naflex_export.export_request import ExportRequest
from naflex_export.graph.program import Program
from naflex_export.models.adapter import ModelAdapter
from naflex_export.models.encoder_adapter import EncoderAdapter
from naflex_export.models.model_sources import weights_sha256
from naflex_export.models.rounding import stored_precision
from naflex_export.precision import Precision
from naflex_export.serving.manifest import Manifest
from naflex_export.serving.manifest_schema import PATCH_SIZES


def drafted(
    request: ExportRequest,
    adapter: ModelAdapter,
    program: Program,
    build: Mapping[str, Any],
    *,
    preprocessing: Mapping[str, Any],
    packages: Iterable[str],
    text: Mapping[str, Any] | None = None,
) -> Manifest:
    """Return the manifest of an artifact of one patch size.

    Args:
        request: what was asked for.
        adapter: of the model.
        program: what it was built from.
        build: what the target has to say of the build.
        preprocessing: how its photos become patches.
        packages: that the target builds and runs with, for their versions.
        text: what is said of a text tower beside it; None where there is none.
    """
    own_size = {} if adapter.patch_size is None else {"patch_size": adapter.patch_size}
    return Manifest(
        target=request.target,
        dtype=program.precision.dtype,
        inputs=program.inputs,
        outputs=program.outputs,
        buckets=program.buckets,
        model=said_of_model(adapter, request.source)
        | own_size
        | ({"inputs": "packed"} if request.packed or adapter.input_format.is_packed else {})
        | ({} if text is None else {"text": text}),
        preprocessing=dict(preprocessing),
        versions=_versions(("naflex_export", adapter.package, *packages)),
        build={name: said for name, said in build.items() if name != "calibration"}
        | kept_in_float32(program.precision)
        | _quantized(program, build.get("calibration", {}))
        | ({"matrices": "stored"} if program.stores_matrices else {}),
    )


def drafted_together(by_patch_size: Mapping[int, Manifest], entry_points: Mapping[int, str]) -> Manifest:
    """Return the manifest of the folder that holds an artifact for each patch size: what they have in common.

    Args:
        by_patch_size: the manifest of each.
        entry_points: the folder of each, inside that one.
    """
    first = next(iter(by_patch_size.values()))
    patches, *others = first.inputs
    return dataclasses.replace(
        first,
        inputs=(dataclasses.replace(patches, shape=(*patches.shape[:-1], "values")), *others),
        model={key: value for key, value in first.model.items() if key != "patch_size"},
        preprocessing={**first.preprocessing, "patch_size": [[size, size] for size in by_patch_size]},
        build={
            "entry_points": {str(size): name for size, name in entry_points.items()},
            **kept_in_float32(first.precision),
            **({"quantized": first.build["quantized"]} if "quantized" in first.build else {}),
        },
        kind=PATCH_SIZES,
    )


def said_of_model(adapter: EncoderAdapter, source: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a manifest says of a model, whichever tower of it was exported.

    Args:
        adapter: of the tower.
        source: where the model came from, as `ModelSource` describes it.
    """
    return {
        "family": adapter.name,
        **adapter.describe(),
        "source": source,
        "weights_sha256": weights_sha256(adapter.model),
        "weights_precision": stored_precision(adapter.model),
    }


def kept_in_float32(precision: Precision) -> dict[str, Any]:
    """Return what a manifest says of a build whose precision is mixed; nothing of another."""
    return {"keep_float32": list(precision.keep_float32)} if precision.keep_float32 else {}


def _quantized(program: Program, calibration: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a manifest says of a build with quantized layers; nothing of another."""
    if not program.quantized:
        return {}
    kept = program.precision.keep_unquantized
    said = {"to": program.precision.quantized, **calibration, "layers": list(program.quantized)}
    return {"quantized": said | ({"keep_unquantized": list(kept)} if kept else {})}


def _versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of Python and of those of the packages that are installed."""
    versions = {"python": platform.python_version()}
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions
