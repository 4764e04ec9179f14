"""`load`: artifact in, callable out."""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from naflex_export.errors import ArtifactError, BackendError, NaflexExportError, RequestError
from naflex_export.serving.device import check_device
from naflex_export.serving.engine_settings import EngineSettings
from naflex_export.serving.opened import FULL, VerifiedFolder, opened
from naflex_export.serving.patch_sizes import PatchSizesRunner
from naflex_export.serving.runner import Runner
from naflex_export.serving.trust import check_trusted
from naflex_export.serving.zero_shot import Scoring

if TYPE_CHECKING:
    from naflex_export.serving.text import TextEncoder

_RUNNERS = {"compile": "compile_runner", "aot": "aot_runner", "onnx": "onnx_runner", "trt": "tensorrt_runner"}
"""The module of this package that runs each target's artifacts, imported only when it is asked for."""


def load(
    path: Path | str,
    device: torch.device | str | None = None,
    check_inputs: bool = True,
    trusted: bool = True,
    verify: str = FULL,
    *,
    engine: EngineSettings | None = None,
) -> Runner:
    """Return a Runner for an artifact, after checking size and sha256 of each of its files.

    An artifact of several patch sizes gives `PatchSizesRunner`: a Runner that picks by the width of the patches, and
    `run[16]` for one size. The folder of one size can be loaded by itself.

    What a `compile`, `aot` or `trt` artifact holds runs as code in this process: load such a one only from where you
    would install software. The hashes show damage and mix-ups, and not who made a file: docs/security.md.

    Args:
        path: the artifact's folder.
        device: where to run; by default a GPU where there is one, or the device that the artifact was built for.
        check_inputs: look at the values of coordinates and masks before each call.
        trusted: you know who made it. With False an artifact of a target that runs code is refused; `onnx` is data.
        verify: "full" reads every file ahead of loading it; "size" trusts the content of files of the right size, on a
            disk that you trust.
        engine: how a TensorRT engine is run, where there is a choice.

    Raises:
        ArtifactError: the folder is no artifact, not what its manifest says, or not trusted and holds code.
        BackendError: a package or device that it needs is missing.
        RequestError: the device is none that artifacts run on, or `verify` is neither.
    """
    at = None if device is None else check_device(device)

    def use(folder: VerifiedFolder) -> Runner:
        check_trusted(folder.manifest, trusted)
        if not folder.manifest.by_patch_size:
            runner = open_verified(folder, at, engine)
            runner.check_inputs = check_inputs
            return runner
        runners = {}
        for size, inner in folder.by_patch_size().items():
            runners[size] = open_verified(inner, at, engine)
            runners[size].check_inputs = check_inputs
        return PatchSizesRunner(folder.manifest, runners)

    return opened(Path(path), use, verify)


def open_verified(
    folder: VerifiedFolder, device: torch.device | None = None, engine: EngineSettings | None = None
) -> Runner:
    """Return a Runner for an artifact of one patch size, whose files have been verified.

    Args:
        folder: the artifact's.
        device: where to run; None as for `load`.
        engine: as for `load`.

    Raises:
        ArtifactError: it is of a target that this release does not know, or its file cannot be loaded.
        BackendError: a package or device that running needs is missing.
        RequestError: the engine settings are for an artifact of another target.
    """
    manifest = folder.manifest
    if manifest.target not in _RUNNERS:
        raise ArtifactError(f"the artifact is of target {manifest.target!r}: this release runs {', '.join(_RUNNERS)}")
    if engine is not None and manifest.target != "trt":
        raise RequestError(
            f"engine settings are of target 'trt', and the artifact is of {manifest.target!r}: leave them out"
        )
    options = {} if engine is None else {"settings": engine}
    backend = importlib.import_module(f"naflex_export.serving.{_RUNNERS[manifest.target]}")
    backend.require_run()
    if backend.FILE not in manifest.files:
        raise ArtifactError(
            f"the artifact lists no {backend.FILE}, which target {manifest.target!r} runs: export again"
        )
    with load_errors(folder, backend.FILE):
        runner: Runner = backend.open(folder.path, manifest, device, **options)
    runner.folder_handle = folder.handle  # its path leads there for as long as the handle is kept
    if manifest.text is not None:
        runner.opens_text = functools.partial(open_text, folder, device, engine)
    return runner


def open_text(
    folder: VerifiedFolder, device: torch.device | None = None, engine: EngineSettings | None = None
) -> TextEncoder:
    """Return the text tower of an artifact whose files have been verified; vectors are torch tensors.

    Args:
        folder: the artifact's.
        device: where to run; None as for `load`.
        engine: as for `load`.

    Raises:
        RequestError: the artifact has none.
        ArtifactError, BackendError: its tokenizer or graph cannot be loaded.
    """
    from naflex_export.serving.text import TextEncoder, text_folder

    inner = text_folder(folder)
    runner = open_verified(inner, device, engine)

    def run(arrays: list[Any]) -> Any:
        made = runner(*map(torch.from_numpy, arrays))
        return made["features"] if isinstance(made, dict) else made

    return TextEncoder(inner, run, torch.cat, Scoring.of(folder.manifest.text or {}))


@contextlib.contextmanager
def load_errors(folder: VerifiedFolder, what: str) -> Iterator[None]:
    """Have whatever a backend raises of a file that it cannot load be an error of this package.

    Args:
        folder: the artifact's.
        what: is loaded in the block, in words.

    Raises:
        ArtifactError: it cannot be loaded.
        BackendError: there is not enough memory for it.
    """
    try:
        yield
    except NaflexExportError:
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise BackendError(f"the artifact does not fit into memory: {_first_line(error)}") from error
    except Exception as error:  # of any class of torch's or the backend's
        raise ArtifactError(
            f"{what} of {str(folder.shown)!r} cannot be loaded ({type(error).__name__}: {_first_line(error)}): "
            "export again"
        ) from error


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
