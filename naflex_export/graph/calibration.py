"""The largest magnitude that photos give the input of each layer: what scales are made of, by NVIDIA's ModelOpt."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import re
import tempfile
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from naflex_export.errors import BackendError, BuildError
from naflex_export.graph.onnx_quantization import layers_in

PACKAGE = "nvidia-modelopt"
METHOD = "max"
"""Of ModelOpt's methods: the largest value seen. Its other one, entropy, cuts off the rare large values that a
transformer counts on."""

NEEDED = ("modelopt", "onnx_graphsurgeon", "onnxslim", "onnxconverter_common", "polygraphy", "cppimport", "lief")
"""What ModelOpt imports of the packages that its own extra for ONNX installs."""

Feed = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Calibration:
    """What layers are calibrated on.

    Attributes:
        feeds: batches of photos, as the graph takes them, by input name.
        photos: how many photos that is.
    """

    feeds: Sequence[Feed]
    photos: int

    def describe(self) -> dict[str, Any]:
        """Return what a manifest says of it."""
        return {"method": METHOD, "photos": self.photos, "by": f"{PACKAGE} {metadata.version(PACKAGE)}"}


def require_modelopt() -> None:
    """Check that ModelOpt is there.

    Raises:
        BackendError: it is not.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise BackendError(
            f"dtype int8 and fp8 are calibrated by {PACKAGE}, and package {missing[0]!r} is missing: pip install "
            "'naflex_export[quant]'"
        )


def largest_inputs(model: ir.Model, names: Collection[str], calibration: Calibration) -> dict[str, float]:
    """Return the largest magnitude of the input of each product of these modules, by the input's name.

    Args:
        model: the graph; it stays as it is.
        names: of the modules.
        calibration: what to run it on.

    Raises:
        BackendError: ModelOpt is missing.
        BuildError: it refuses the graph, or says nothing of a product.
    """
    require_modelopt()
    layers = layers_in(model, names)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ir.save(model, folder / "model.onnx", external_data="model.onnx.data")
        try:
            _quantized_by_modelopt(folder, [layer.node.name or "" for layer in layers], calibration)
        except Exception as error:  # ModelOpt and ONNX Runtime raise classes of their own for every cause
            raise BuildError(f"{PACKAGE} refused to calibrate the graph: {type(error).__name__}: {error}") from error
        scales = _scales_of(ir.load(folder / "quantized.onnx"))
    wanted = [layer.given.name or "" for layer in layers]
    if missing := [name for name in wanted if name not in scales]:
        raise BuildError(f"{PACKAGE} {metadata.version(PACKAGE)} calibrated no scale of {missing[0]!r}")
    return {name: scales[name] for name in wanted}


def _quantized_by_modelopt(folder: Path, nodes: Sequence[str], calibration: Calibration) -> None:
    """Let ModelOpt write a graph whose pairs on the inputs of these nodes have the scales that are wanted."""
    with _quiet():
        from modelopt.onnx.quantization import quantize

        quantize(
            str(folder / "model.onnx"),
            quantize_mode="int8",  # its FP8 is made of this; the largest magnitude is the same
            calibration_data_reader=_Reader(calibration.feeds),
            calibration_method=METHOD,
            calibration_eps=["cpu"],
            op_types_to_quantize=["MatMul"],
            nodes_to_quantize=[f"{re.escape(node)}$" for node in nodes],
            high_precision_dtype="fp32",  # which means that it changes no dtype of ours
            use_external_data_format=True,
            enable_gemv_detection_for_trt=False,  # layers of blocks have a row for each token
            output_path=str(folder / "quantized.onnx"),
            log_level="ERROR",
            passes=[],
        )


def _scales_of(model: ir.Model) -> dict[str, float]:
    """Return what the largest int8 stands for in each pair on a value that is no weight, by the value's name."""
    found = {}
    for node in model.graph:
        if node.op_type != "QuantizeLinear":
            continue
        given, scale = node.inputs[0], node.inputs[1]
        value = None if scale is None else ir.convenience.get_const_tensor(scale)
        if given is not None and not given.is_initializer() and value is not None:
            found[given.name or ""] = 127 * float(np.asarray(value.numpy(), np.float32).reshape(-1)[0])
    return found


class _Reader:
    """Feeds, one after the other, as ONNX Runtime's calibration asks for them."""

    def __init__(self, feeds: Sequence[Feed]) -> None:
        self.feeds = feeds
        self.rewind()

    def rewind(self) -> None:
        self._left = iter(self.feeds)

    def get_next(self) -> Feed | None:
        return next(self._left, None)

    def get_first(self) -> Feed:
        return self.feeds[0]

    def __iter__(self) -> Iterator[Feed]:
        return self._left

    def __next__(self) -> Feed:
        return next(self._left)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what ModelOpt and what it is made of print and warn of; errors are raised."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
