"""An artifact of any target as a function of numpy arrays: torch is imported only where the target needs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from naflex_export.errors import RequestError
from naflex_export.serving.manifest import Manifest
from naflex_export.serving.numpy_runner import load_numpy, open_numpy_text
from naflex_export.serving.opened import VerifiedFolder, opened
from naflex_export.serving.text import TextEncoder, text_folder
from naflex_export.serving.trust import check_trusted
from naflex_export.serving.zero_shot import Scoring

Array = NDArray[Any]
Run = Callable[[dict[str, Array]], Array]
"""From an artifact's inputs by name to one of its outputs, in float32."""

NUMPY_HAS = ("float32", "float16")
"""Of the dtypes that artifacts are in."""


def open_run(
    path: Path,
    manifest: Manifest,
    *,
    device: str | None = None,
    output: str = "features",
    trusted: bool = True,
    verify: str = "full",
) -> Run:
    """Return what runs an artifact on arrays.

    Args:
        path: the artifact's folder, of one patch size.
        manifest: its own.
        device: as for `load`.
        output: which of its outputs.
        trusted: as for `load`.
        verify: as for `load`.

    Raises:
        RequestError: the artifact has no such output.
        ArtifactError, BackendError: as `load`.
    """
    names = [spec.name for spec in manifest.outputs]
    if output not in names:
        raise RequestError(
            f"the artifact gives {', '.join(names)}, and no {output!r}: export again with --outputs {output}"
        )
    if manifest.target == "onnx" and manifest.dtype in NUMPY_HAS:
        run = load_numpy(path, device, verify=verify)

        def of_arrays(inputs: dict[str, Array]) -> Array:
            made = run(inputs)
            return np.asarray(made[output] if isinstance(made, dict) else made, np.float32)

        return of_arrays
    return _of_tensors(path, device, output, trusted, verify)


@dataclass(frozen=True)
class TextRun:
    """An artifact's text tower on texts.

    Attributes:
        encode: returns the vectors [texts, C] of a list of texts, in float32.
        scoring: how they go with vectors of images.
        tokens: returns what the tower is given for a list of texts.
    """

    encode: Callable[[Sequence[str]], Array]
    scoring: Scoring
    tokens: Callable[[Sequence[str]], list[Array]]


def open_text_run(path: Path, *, device: str | None = None, trusted: bool = True, verify: str = "full") -> TextRun:
    """Return what runs an artifact's text tower; its image tower is not opened.

    Args:
        path: the artifact's folder.
        device: as for `load`.
        trusted: as for `load`.
        verify: as for `load`.

    Raises:
        RequestError: the artifact has no text tower.
        ArtifactError, BackendError: as `load`; or the package `tokenizers` is missing.
    """

    def use(folder: VerifiedFolder) -> TextEncoder:
        manifest = text_folder(folder).manifest
        if manifest.target == "onnx" and manifest.dtype in NUMPY_HAS:
            return open_numpy_text(folder, device)
        from naflex_export.serving.device import check_device
        from naflex_export.serving.load import open_text

        check_trusted(manifest, trusted)

        return open_text(folder, None if device is None else check_device(device))

    encoder = opened(path, use, verify)

    def encode(texts: Sequence[str]) -> Array:
        made = encoder(texts)
        return np.asarray(made if isinstance(made, np.ndarray) else made.float().cpu().numpy(), np.float32)

    return TextRun(encode, encoder.scoring, encoder.tokens)


def _of_tensors(path: Path, device: str | None, output: str, trusted: bool, verify: str) -> Run:
    import torch

    from naflex_export.serving.load import load

    run = load(path, device, trusted=trusted, verify=verify)
    dtype = run.manifest.precision.torch_dtype

    def of_arrays(inputs: dict[str, Array]) -> Array:
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        first = run.manifest.inputs[0].name
        tensors[first] = tensors[first].to(dtype)
        made = run(tensors)
        chosen = made[output] if isinstance(made, dict) else made
        array: Array = chosen.float().cpu().numpy()
        return array

    return of_arrays
