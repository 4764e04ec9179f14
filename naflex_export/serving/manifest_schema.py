"""What a manifest may hold: the type, range and form of each field, looked at before anything is made of it.

The parts that a model's family, a target and the gate fill in (`model`, `preprocessing`, `build`, `gate`) may hold more
than is named here; what is named has the type and range that the rest of the package counts on.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from naflex_export.errors import ArtifactError, RequestError
from naflex_export.grid import Bucket, check_buckets
from naflex_export.precision import AUTO, DTYPES, QUANTIZED, Precision
from naflex_export.serving.known_formats import input_format_of
from naflex_export.serving.text_format import TextFormat
from naflex_export.serving.zero_shot import SIGMOID, SOFTMAX

ENCODER = "encoder"
"""The kind of an artifact that one file runs."""

PATCH_SIZES = "patch sizes"
"""The kind of a folder that holds an artifact for each patch size; see docs/architecture.md."""

TEXT = "text encoder"
"""The kind of the folder of a text tower, inside an artifact whose `model.text` names it."""

KINDS = (ENCODER, PATCH_SIZES, TEXT)

FIELDS = (
    *("target", "dtype", "inputs", "outputs", "buckets", "model", "preprocessing", "versions", "build", "gate"),
    *("files", "kind", "schema"),
)
"""Of a manifest, in order; `sha256` follows them."""

DEVICES = ("cpu", "cuda")
"""What native code may have been built for."""

MOST_FILES = 10_000
MOST_SIZE = 2**31 - 1
"""Of a dimension: no backend takes more."""

_TENSOR_DTYPES = (*DTYPES, "float64", "int64", "int32", "int16", "int8", "uint8", "bool")
_DTYPE_OF = {
    "patch_coord": "int64",
    "patch_valid": "bool",
    "pixel_attention_mask": "int32",
    "spatial_shapes": "int64",
    "grids": "int64",
    "offsets": "int64",
    "positions": "int64",
    "grid_thw": "int64",
    "image_grid_hw": "int64",
    "input_ids": "int64",
    "attention_mask": "int64",
}
"""Of inputs whose dtype is not the artifact's: native code would read past them in another."""

_NAME = re.compile(r"[A-Za-z_][\w.]{0,99}", re.ASCII)
_OPEN = re.compile(r"([1-9]\d{0,3}\*)?[A-Za-z_][\w.]{0,99}( \+ 1)?", re.ASCII)
_EXPRESSION = re.compile(r"[\w+*/(), -]{1,200}", re.ASCII)
_FOLDER = re.compile(r"[A-Za-z0-9][\w-]{0,63}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")


def check_fields(fields: Mapping[str, Any]) -> None:
    """Check the fields of a manifest whose schema and kind are known.

    Args:
        fields: as they were read, without `sha256`.

    Raises:
        ValueError: one is missing, unknown, or not of the type, range or form that it must have.
    """
    _require(set(fields) == set(FIELDS), "its fields", sorted(fields), f"{', '.join(FIELDS)}")
    for name in ("target", "dtype"):
        _text(name, fields[name])
    _require(fields["dtype"] in DTYPES, "dtype", fields["dtype"], f"one of {', '.join(DTYPES)}")
    for name in ("model", "preprocessing", "versions", "build", "gate", "files"):
        _mapping(name, fields[name])
    _check_tensors(fields)
    _check_buckets(fields["buckets"])
    _check_model(fields["model"], fields)
    _check_preprocessing(fields["preprocessing"])
    for package, version in fields["versions"].items():
        _text(f"versions.{package}", version)
    if fields["gate"]:
        _require(isinstance(fields["gate"].get("passed"), bool), "gate.passed", fields["gate"].get("passed"), "a bool")
    _check_files(fields["files"])
    _check_build(fields["build"], fields)


def _check_tensors(fields: Mapping[str, Any]) -> None:
    for where in ("inputs", "outputs"):
        specs = _list(where, fields[where])
        for index, spec in enumerate(specs):
            name = f"{where}[{index}]"
            _require(
                isinstance(spec, dict) and set(spec) == {"name", "dtype", "shape"}, name, spec, "name, dtype, shape"
            )
            _require(bool(_NAME.fullmatch(_text(f"{name}.name", spec["name"]))), f"{name}.name", spec["name"], "a name")
            _require(spec["dtype"] in _TENSOR_DTYPES, f"{name}.dtype", spec["dtype"], "a tensor's dtype")
            for dim in _list(f"{name}.shape", spec["shape"]):
                _check_dim(f"{name}.shape", dim, _OPEN if where == "inputs" else _EXPRESSION)
        names = [spec["name"] for spec in specs]
        _require(len(set(names)) == len(names), where, names, "each name once")
    _check_format(fields)


def _check_format(fields: Mapping[str, Any]) -> None:
    """Check that inputs have the dimensions of their format: what is open there is open here, and only that."""
    specs = fields["inputs"]
    try:
        known = input_format_of([spec["name"] for spec in specs], specs[0]["shape"])
    except ArtifactError as error:
        raise ValueError(str(error)) from error
    for spec, dims in zip(specs, known.dims, strict=True):
        name, shape = f"the shape of {spec['name']}", spec["shape"]
        _require(len(shape) == len(dims), name, shape, f"{len(dims)} dimensions")
        for found, dim in zip(shape, dims, strict=True):
            is_right = found == dim if dim in known.opened else isinstance(found, int) or found == dim == "values"
            is_open = isinstance(found, str)
            _require(is_right and not (is_open and dim == "values" and fields["kind"] == ENCODER), name, shape, dim)
            _require(dim != "axes" or found == 2, name, shape, "2 axes")
        expected = _DTYPE_OF.get(spec["name"], spec["dtype"])
        _require(spec["dtype"] == expected, f"the dtype of {spec['name']}", spec["dtype"], expected)
    is_text = isinstance(known, TextFormat)
    _require(is_text == (fields["kind"] == TEXT), "kind", fields["kind"], f"that of inputs {', '.join(known.names)}")
    if not is_text:
        _require(
            specs[0]["dtype"] == fields["dtype"], f"the dtype of {specs[0]['name']}", specs[0]["dtype"], fields["dtype"]
        )


def _check_dim(name: str, dim: object, form: re.Pattern[str]) -> None:
    if isinstance(dim, str):
        _require(bool(form.fullmatch(dim)), name, dim, "a number, or the name of a dimension")
    else:
        _count(name, dim, MOST_SIZE)


def _check_buckets(buckets: object) -> None:
    made = []
    for index, bucket in enumerate(_list("buckets", buckets)):
        name = f"buckets[{index}]"
        _require(isinstance(bucket, dict) and set(bucket) == {"tokens", "batch"}, name, bucket, "tokens and batch")
        try:
            made.append(Bucket(bucket["tokens"], bucket["batch"]))
        except RequestError as error:
            raise ValueError(str(error)) from error
    try:
        ordered = check_buckets(made)
    except RequestError as error:
        raise ValueError(str(error)) from error
    _require(list(ordered) == made, "buckets", [str(bucket) for bucket in made], "the order of their tokens")


def _check_model(model: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
    _require(bool(_SHA256.fullmatch(_text("model.weights_sha256", model.get("weights_sha256")))),
             "model.weights_sha256", model.get("weights_sha256"), "64 hexadecimal digits")  # fmt: skip
    for name in ("family", "architecture"):
        _text(f"model.{name}", model.get(name))
    source = _mapping("model.source", model.get("source"))
    for name in ("model", "weights"):
        if name in source:
            _text(f"model.source.{name}", source[name])
    if "seed" in source:
        seed = source["seed"]
        is_seed = isinstance(seed, int) and not isinstance(seed, bool) and -(2**63) <= seed < 2**63
        _require(is_seed, "model.source.seed", seed, "an integer of 64 bits")
    if "patch_interpolator" in source:
        given = source["patch_interpolator"]
        _require(isinstance(given, bool), "model.source.patch_interpolator", given, "a bool")
    if "patch_size" in model:
        _count("model.patch_size", model["patch_size"], 2**15)
    if fields["kind"] == TEXT:
        _count("model.vocabulary", model.get("vocabulary"), MOST_SIZE)
    if "text" in model:
        _check_text(_mapping("model.text", model["text"]), fields)


def _check_text(text: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
    """Check what an artifact says of its text tower, and of how its vectors go with those of images."""
    folder = _text("model.text.folder", text.get("folder"))
    is_listed = bool(_FOLDER.fullmatch(folder)) and f"{folder}/manifest.json" in fields["files"]
    _require(is_listed, "model.text.folder", folder, "a folder whose manifest is among `files`")
    for name in ("logit_scale", "logit_bias"):
        value = text.get(name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1000
        _require(is_number, f"model.text.{name}", value, "a number")
    _require(text.get("probability") in (SIGMOID, SOFTMAX), "model.text.probability", text.get("probability"),
             f"{SIGMOID} or {SOFTMAX}")  # fmt: skip
    _require(isinstance(text.get("normalized"), bool), "model.text.normalized", text.get("normalized"), "a bool")
    _require(fields["kind"] == ENCODER, "kind", fields["kind"], f"{ENCODER!r}, beside a text tower")


def _check_preprocessing(preprocessing: Mapping[str, Any]) -> None:
    for name in ("mean", "std", "image_mean", "image_std"):
        values = preprocessing.get(name, [])
        if values is None:
            continue
        for value in _list(f"preprocessing.{name}", values, least=0):
            is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            _require(is_number, f"preprocessing.{name}", value, "a finite number")
            _require("std" not in name or value > 0, f"preprocessing.{name}", value, "a number above 0")
    sizes = preprocessing.get("patch_size", [])
    for size in sizes if isinstance(sizes, list) else [sizes]:
        for side in size if isinstance(size, list) else [size]:
            _count("preprocessing.patch_size", side, 2**15)


def _check_build(build: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
    if "device" in build:
        _require(build["device"] in DEVICES, "build.device", build["device"], f"one of {', '.join(DEVICES)}")
    _require(
        fields["target"] != "aot" or fields["kind"] == PATCH_SIZES or "device" in build,
        "build",
        dict(build),
        "a device",
    )
    _check_precision(build, fields["dtype"])
    if fields["target"] == "trt" and fields["kind"] != PATCH_SIZES:
        for name in ("library", "library_version"):
            if name in build:
                _text(f"build.{name}", build[name])
    if fields["kind"] != PATCH_SIZES:
        return
    points = _mapping("build.entry_points", build.get("entry_points"))
    _require(0 < len(points) <= 100, "build.entry_points", dict(points), "1 to 100 patch sizes")
    for size, folder in points.items():
        name = f"build.entry_points.{size}"
        _require(bool(re.fullmatch(r"[1-9]\d{0,4}", size, re.ASCII)), "build.entry_points", size, "a size in pixels")
        _require(bool(_FOLDER.fullmatch(_text(name, folder))), name, folder, "the name of a folder inside")
        _require(f"{folder}/manifest.json" in fields["files"], name, folder, "a folder whose manifest is among `files`")
    _require(len(set(points.values())) == len(points), "build.entry_points", dict(points), "a folder for each size")


def _check_precision(build: Mapping[str, Any], dtype: str) -> None:
    """Check what a build says of parts that compute in other dtypes than the rest."""
    kept = _names_in("build.keep_float32", build["keep_float32"]) if "keep_float32" in build else ()
    _require(AUTO not in kept, "build.keep_float32", list(kept), "the names that were found")
    quantized = _mapping("build.quantized", build["quantized"]) if "quantized" in build else {}
    unquantized: tuple[str, ...] = ()
    if quantized:
        _require(quantized.get("to") in QUANTIZED, "build.quantized.to", quantized.get("to"), " or ".join(QUANTIZED))
        _names_in("build.quantized.layers", quantized.get("layers"))
        if "keep_unquantized" in quantized:
            unquantized = _names_in("build.quantized.keep_unquantized", quantized["keep_unquantized"])
    try:
        Precision(dtype, kept, quantized.get("to", ""), unquantized)
    except RequestError as error:
        raise ValueError(str(error)) from error


def _names_in(name: str, value: object) -> tuple[str, ...]:
    return tuple(_text(name, one) for one in _list(name, value))


def _check_files(files: Mapping[str, Any]) -> None:
    _require(len(files) <= MOST_FILES, "files", len(files), f"at most {MOST_FILES}")
    for name, file in files.items():
        parts = name.split("/")
        is_inside = all(part not in ("", ".", "..") and len(part.encode("utf-8", "replace")) <= 255 for part in parts)
        is_plain = len(name) <= 1000 and not re.search(r"[\x00-\x1f\\:\ud800-\udfff]", name)
        if not is_inside or not is_plain or name == "manifest.json":
            raise ValueError(f"the file {_short(name)} leads out of the folder, or is none that an artifact has")
        _require(isinstance(file, dict) and set(file) == {"bytes", "sha256"}, f"files.{name}", file, "bytes and sha256")
        size = file["bytes"]
        _require(
            isinstance(size, int) and not isinstance(size, bool) and 0 <= size < 2**50,
            f"the bytes of {name}",
            size,
            "a size",
        )
        digest = _text(f"the sha256 of {name}", file["sha256"])
        _require(bool(_SHA256.fullmatch(digest)), f"the sha256 of {name}", digest, "64 hexadecimal digits")


def _require(is_right: bool, name: str, found: object, expected: str) -> None:
    if not is_right:
        raise ValueError(f"{name} is {_short(found)}: expected {expected}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def _text(name: str, value: object) -> str:
    _require(isinstance(value, str) and len(value) <= 10_000, name, value, "a text")
    return str(value)


def _mapping(name: str, value: object) -> Mapping[str, Any]:
    _require(isinstance(value, dict), name, value, "an object")
    return value  # type: ignore[return-value]


def _list(name: str, value: object, least: int = 1) -> Sequence[Any]:
    _require(isinstance(value, list) and least <= len(value) <= 1000, name, value, f"a list of {least} to 1000")
    return value  # type: ignore[return-value]


def _count(name: str, value: object, most: int) -> None:
    is_count = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most
    _require(is_count, name, value, f"an integer from 1 to {most}")
