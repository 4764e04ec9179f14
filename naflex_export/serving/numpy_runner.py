"""`load_numpy`: an ONNX artifact as a callable of numpy arrays, on a machine that has no torch.

What is checked, and what is said of it, is what `load` and a `Runner` check and say.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from naflex_export.errors import ArtifactError, BackendError, NaflexExportError, RequestError
from naflex_export.serving.card import card
from naflex_export.serving.closing import Closable
from naflex_export.serving.device_name import check_device_name
from naflex_export.serving.graph_signature import check_graph
from naflex_export.serving.known_formats import input_format_of
from naflex_export.serving.manifest import Manifest
from naflex_export.serving.onnx_session import new_session, require_onnxruntime, specs_of
from naflex_export.serving.opened import FULL, VerifiedFolder, opened
from naflex_export.serving.signature import ARRAYS, check_inputs, in_order
from naflex_export.serving.zero_shot import Scoring

if TYPE_CHECKING:
    from naflex_export.serving.text import TextEncoder

Array = NDArray[Any]

FILE = "model.onnx"


@dataclass(frozen=True)
class Place:
    """A device, as `torch.device` has it."""

    type: str
    index: int | None = None

    def __str__(self) -> str:
        return self.type if self.index is None else f"{self.type}:{self.index}"


def load_numpy(
    path: Path | str,
    device: str | None = None,
    check_inputs: bool = True,
    verify: str = FULL,
    threads: int | None = None,
) -> NumpyRunner:
    """Return an ONNX artifact as a callable of numpy arrays, after checking its files. Nothing of torch is imported.

    Args:
        path: the artifact's folder; of one patch size, where it holds several.
        device: "cpu", or "cuda" and an index; by default a GPU where there is one and ONNX Runtime is built for it.
        check_inputs: look at the values of coordinates and masks before each call.
        verify: as for `load`.
        threads: that one call may take; by default `OMP_NUM_THREADS`, or as many as there are cores to run on.

    Raises:
        ArtifactError: the folder is no artifact, or not what its manifest says.
        BackendError: the artifact is of another target or of bfloat16, which numpy has not, or ONNX Runtime is missing.
        RequestError: an argument is not possible.
    """
    place, count = _place(device), _threads(threads)

    def use(folder: VerifiedFolder) -> NumpyRunner:
        manifest = folder.manifest
        if manifest.target != "onnx":
            raise BackendError(
                f"the artifact is of target {manifest.target!r}, which torch runs: take nx.load, or an 'onnx' artifact"
            )
        if manifest.by_patch_size:
            names = ", ".join(repr(str(folder.shown / name)) for name in manifest.by_patch_size.values())
            raise RequestError(f"{str(folder.shown)!r} holds several patch sizes: load one of {names}")
        if manifest.dtype == "bfloat16":
            raise BackendError("the artifact is in bfloat16, which numpy has not: take nx.load, or another dtype")
        if manifest.precision.quantized == "fp8" and place.type == "cpu":
            raise BackendError("the artifact is in FP8, which ONNX Runtime's CPU provider does not multiply: take int8")
        require_onnxruntime()
        if FILE not in manifest.files:
            raise ArtifactError(f"the artifact lists no {FILE}, which target 'onnx' runs: export again")
        try:
            return NumpyRunner(folder, place, count, check_inputs)
        except NaflexExportError:
            raise
        except MemoryError as error:
            raise BackendError(f"the artifact does not fit into memory: {error}") from error
        except Exception as error:  # of any class of the backend's
            said = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
            raise ArtifactError(
                f"{FILE} of {str(folder.shown)!r} cannot be loaded ({type(error).__name__}: {said}): export again"
            ) from error

    return opened(Path(path), use, verify)


class NumpyRunner(Closable):
    """Runs an ONNX artifact on numpy arrays. Several threads may call it at once.

    `close()`, or the end of a `with` block, gives back what it holds.

    Args:
        folder: the artifact's, verified.
        device: where it runs.
        threads: that one call may take.
        check_inputs: as the attribute.

    Attributes:
        manifest: what the artifact says of itself.
        input_format: how its model takes a batch.
        check_inputs: look at the values of coordinates, grids and masks before each call, and put zeros where patches
            are padding.
    """

    def __init__(self, folder: VerifiedFolder, device: Place, threads: int, check_inputs: bool = True) -> None:
        self.manifest: Manifest = folder.manifest
        inputs = self.manifest.inputs
        self.input_format = input_format_of([spec.name for spec in inputs], inputs[0].shape)
        self.check_inputs = check_inputs
        self._session = new_session(folder.path / FILE, device, threads)
        check_graph(self.manifest, specs_of(self._session.get_inputs()), specs_of(self._session.get_outputs()))
        self._folder = folder  # its path leads there for as long as its handle is kept
        self._place, self._threads = device, threads
        self._text: TextEncoder | None = None

    def __call__(self, *inputs: Array | Mapping[str, Array], **named: Array) -> Array | dict[str, Array]:
        """Return what the eager model returns: an array for one output, a dict by name for several.

        Args:
            inputs: arrays of the manifest's `inputs`, in that order, or one mapping by name, as of a `Preprocessor`.
                Their shapes and dtypes are those that a `Runner` takes as tensors.
            named: the same arrays, by name.

        Raises:
            InputError: a type, rank, dtype, shape, grid, batch or token count is not what the artifact accepts.
            ClosedError: it was closed.
        """
        self.refuse_closed()
        inputs, named = self.input_format.completed(inputs, named)
        arrays: Any = in_order(self.manifest.inputs, inputs, named)
        self.check(*arrays)
        names = [spec.name for spec in self.manifest.inputs]
        given = dict(zip(names, arrays, strict=True))
        if self.check_inputs and self.input_format.valid:
            valid = given[self.input_format.valid].astype(bool)
            if not valid.all():
                given[names[0]] = np.where(valid[..., None], given[names[0]], given[names[0]].dtype.type(0))
        outputs = [spec.name for spec in self.manifest.outputs]
        made = self._session.run(outputs, {name: np.ascontiguousarray(array) for name, array in given.items()})
        return made[0] if len(made) == 1 else dict(zip(outputs, made, strict=True))

    def __repr__(self) -> str:
        """Return what the artifact is, what it takes and gives, and what the gate said of it."""
        return card(self.manifest, self.kind, self._place)

    @property
    def text(self) -> TextEncoder:
        """The text tower: `run.text(["a photo of a cat"])` gives vectors [texts, C]. It is opened when first used.

        Raises:
            RequestError: the artifact has none.
            ArtifactError, BackendError: its tokenizer or graph cannot be loaded.
            ClosedError: the NumpyRunner was closed.
        """
        self.refuse_closed()
        if self._text is None:
            self._text = _text_of(self._folder, self._place, self._threads)
        return self._text

    def check(self, *inputs: Array) -> None:
        """Check inputs as a call does, without running anything.

        Raises:
            InputError: they are not what the artifact accepts.
        """
        self.input_format.check_sizes(check_inputs(self.manifest.inputs, inputs, ARRAYS), self.manifest.buckets)
        if self.check_inputs:
            self.input_format.check(inputs, max(bucket.tokens for bucket in self.manifest.buckets))


def open_numpy_text(folder: VerifiedFolder, device: str | None = None, threads: int | None = None) -> TextEncoder:
    """Return the text tower of an ONNX artifact whose files have been verified; vectors are arrays.

    Args:
        folder: the artifact's.
        device: as for `load_numpy`.
        threads: as for `load_numpy`.

    Raises:
        RequestError: the artifact has none.
        ArtifactError, BackendError: its tokenizer or graph cannot be loaded.
    """
    require_onnxruntime()
    return _text_of(folder, _place(device), _threads(threads))


def _text_of(folder: VerifiedFolder, place: Place, threads: int) -> TextEncoder:
    from naflex_export.serving.text import TextEncoder, text_folder

    inner = text_folder(folder)
    runner = NumpyRunner(inner, place, threads)

    def run(arrays: list[Array]) -> Any:
        made = runner(*arrays)
        return made["features"] if isinstance(made, dict) else made

    return TextEncoder(inner, run, np.concatenate, Scoring.of(folder.manifest.text or {}))


def _place(device: str | None) -> Place:
    if device is None:
        return Place("cuda" if _has_gpu() else "cpu")
    return Place(*check_device_name(str(device)))


def _has_gpu() -> bool:
    """Return whether the NVIDIA driver has a device, and ONNX Runtime a provider for it; torch is not asked."""
    if not any(Path("/dev").glob("nvidia[0-9]*")) or importlib.util.find_spec("onnxruntime") is None:
        return False
    import onnxruntime

    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def _threads(asked: int | None) -> int:
    if asked is not None:
        if type(asked) is not int or asked < 1:
            raise RequestError(f"threads={asked!r}: expected an integer of at least 1")
        return asked
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdecimal() and int(given) >= 1:
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
