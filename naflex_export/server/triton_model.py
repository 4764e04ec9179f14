"""An artifact as a model of Triton's Python backend: `1/model.py` of a model repository names `TritonPythonModel`.

Triton gives it the requests of a dynamic batch, each with images of its own: photos as bytes, or patches with their
coordinates. Every image is checked, so that what is wrong with one is the answer to its own request and to no other.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from naflex_export.embed.arrays import image_of
from naflex_export.embed.batcher import Batcher
from naflex_export.embed.preprocess import Patches
from naflex_export.errors import InputError, PhotoError
from naflex_export.server.vectors import Served, Vector, open_served, vectors_or_faults

PHOTO, OUTPUT, ARTIFACT = "image", "features", "artifact"

DEVICE = "device"
"""The parameter of config.pbtxt that says where to run; empty for the device of the model's instance."""


class TritonPythonModel:
    """What Triton's Python backend calls, by these names."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the artifact beside the model.

        Args:
            args: as Triton gives them.
        """
        parameters = json.loads(args["model_config"]).get("parameters", {})
        asked = parameters.get(DEVICE, {}).get("string_value", "")
        on_gpu = args["model_instance_kind"] == "GPU"
        device = asked or (f"cuda:{args['model_instance_device_id']}" if on_gpu else "cpu")
        folder = Path(args["model_repository"]) / args["model_version"] / ARTIFACT
        self.served: Served = open_served(folder, device)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Return the response of each request: `features` of its images, or an error of its own.

        Args:
            requests: of one dynamic batch.
        """
        import triton_python_backend_utils as backend

        asked = [_images_or_fault(request, self.served, backend) for request in requests]
        images = [image for found in asked if not isinstance(found, str) for image in found]
        vectors = iter(vectors_of(self.served, images))
        responses = []
        for found in asked:
            given = [found] if isinstance(found, str) else [next(vectors) for _ in found]
            fault = next((one for one in given if isinstance(one, str)), None)
            if fault is not None:
                responses.append(backend.InferenceResponse(error=backend.TritonError(fault)))
                continue
            output = backend.Tensor(OUTPUT, np.stack(given).astype(np.float32))
            responses.append(backend.InferenceResponse([output]))
        return responses


def vectors_of(served: Served, images: Sequence[Patches]) -> list[Vector | str]:
    """Return the vector of each image, or why it has none, from batches of their buckets.

    Args:
        served: the artifact.
        images: patches and grid of each, of at most as many tokens as the largest bucket takes.
    """
    buckets = served.manifest.buckets
    batcher: Batcher[int] = Batcher(buckets, min(bucket.batch[2] for bucket in buckets))
    for number, (_, grid) in enumerate(images):
        batcher.put(number, grid.tokens)
    found: dict[int, Vector | str] = {}
    while (batch := batcher.take(at_once=True)) is not None:
        vectors = vectors_or_faults(served.embed, [images[number] for number in batch.items], batch.bucket)
        found |= zip(batch.items, vectors, strict=True)
    return [found[number] for number in range(len(images))]


def _images_or_fault(request: Any, served: Served, backend: Any) -> list[Patches] | str:
    """Return patches and grid of each image of a request, or what is wrong with it."""
    given: dict[str, Any] = {}
    for name in (PHOTO, *(spec.name for spec in served.manifest.inputs)):
        tensor = backend.get_input_tensor_by_name(request, name)
        if tensor is not None:
            given[name] = tensor.as_numpy()
    try:
        if PHOTO not in given:
            return _given_as_patches(given, served)
        if len(given) > 1:
            return f"the request has {', '.join(given)}: expected {PHOTO}, or the others"
        photos = given[PHOTO].reshape(-1)
        return [_of_photo(photo, f"image {number}", served) for number, photo in enumerate(photos)]
    except (InputError, PhotoError) as error:
        return str(error)


def _given_as_patches(given: dict[str, Any], served: Served) -> list[Patches]:
    missing = [spec.name for spec in served.manifest.inputs if spec.name not in given]
    if missing:
        raise InputError(f"input {missing[0]} is missing: expected {PHOTO}, or all of the model's inputs")
    width = int(served.manifest.inputs[0].shape[-1])
    images = len(next(iter(given.values())))
    made = [image_of({name: value[n] for name, value in given.items()}, width, f"image {n}") for n in range(images)]
    most = served.manifest.buckets[-1].tokens
    for number, (_, grid) in enumerate(made):
        if grid.tokens > most:
            raise InputError(f"image {number} has {grid.tokens} tokens: expected at most {most}")
    return made


def _of_photo(photo: Any, name: str, served: Served) -> Patches:
    if not isinstance(photo, bytes):
        raise InputError(f"{name} is a {type(photo).__name__}: expected the bytes of an image file")
    try:
        return served.preprocessor.one(photo)
    except PhotoError as error:
        raise PhotoError(f"{name}: {error}") from error
