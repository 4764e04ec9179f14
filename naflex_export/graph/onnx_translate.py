"""A program as an ONNX graph, translated by torch, rewritten, checked and written."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from naflex_export.errors import BuildError
from naflex_export.graph import checks as graph_checks
from naflex_export.graph import onnx_passes as passes
from naflex_export.graph.build_settings import BuildSettings
from naflex_export.graph.calibration import largest_inputs
from naflex_export.graph.onnx_attention import read_heads_in_rows
from naflex_export.graph.onnx_quantization import quantize_layers
from naflex_export.graph.program import Program
from naflex_export.serving.onnx_runner import FILE

WEIGHTS = "model.onnx.data"


def write_onnx(
    program: Program,
    folder: Path,
    settings: BuildSettings,
    opset: int,
    refusals: graph_checks.Refusals = lambda model: [],
) -> dict[str, Any]:
    """Write `model.onnx`, checked, and return what the manifest says of it.

    Args:
        program: what to write.
        folder: where to.
        settings: of the build.
        opset: the version of ONNX's operators.
        refusals: returns what the target will not take of the graph.

    Raises:
        BuildError: the exporter refused, or the graph fails a check.
    """
    model = translate(program, settings, opset, refusals)
    said = _quantize(model, program, settings)
    weights = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    external = weights > settings.external_data_bytes
    settings.announce("writing the weights" + (" to a file of their own" if external else ""))
    nodes = model.graph.num_nodes()
    passes.drop_value_info(model)
    ir.save(model, folder / FILE, external_data=WEIGHTS if external else None)
    return {"opset": opset, "nodes": nodes, "external_data": external, **said}


def _quantize(model: ir.Model, program: Program, settings: BuildSettings) -> dict[str, Any]:
    """Quantize the layers of a graph that a program says, in place, and return what the manifest says of that."""
    if not program.quantized:
        return {}
    assert settings.calibration is not None  # an exporter has made it, from photos
    count, photos = len(program.quantized), settings.calibration.photos
    settings.announce(f"calibrating {count} layers on {photos} photos")
    passes.drop_value_info(model)  # ModelOpt takes it for true after changes of its own
    largest = largest_inputs(model, program.quantized, settings.calibration)
    quantize_layers(model, program.quantized, largest, program.precision.quantized)
    return {"calibration": settings.calibration.describe()}


def translate(
    program: Program, settings: BuildSettings, opset: int, refusals: graph_checks.Refusals = lambda model: []
) -> ir.Model:
    """Return the program as an ONNX graph with named dimensions, checked; the arguments are those of `write_onnx`.

    Args:
        program: what to translate.
        settings: of the build.
        opset: the version of ONNX's operators.
        refusals: returns what the target will not take of the graph.

    Raises:
        BuildError: the exporter refused, or the graph fails a check.
    """
    settings.announce(f"translating to ONNX opset {opset}")
    with _quiet(settings.verbose):
        try:
            exported = torch.onnx.export(program.exported, dynamo=True, opset_version=opset, verbose=False)
        except Exception as error:  # whatever the exporter raises, it is about this model's graph
            raise BuildError(f"torch.onnx.export refused the model: {error}") from error
    assert exported is not None  # it is None only where the old exporter writes a file itself
    model = exported.model
    passes.rename_dims(model, program.dim_names)
    passes.rename_outputs(model, [spec.name for spec in program.outputs])
    read_heads_in_rows(model)
    passes.expand_for_tile(model)
    passes.strip_traces(model)
    graph_checks.require(graph_checks.check_onnx(model, program, opset, refusals))
    return model


@contextlib.contextmanager
def _quiet(verbose: bool) -> Iterator[None]:
    """Hold back what the exporter prints and warns of, unless asked for."""
    if verbose:
        yield
        return
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
