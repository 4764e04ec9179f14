"""A 16-bit graph on a CPU: it rounds as torch does, it overflows where 16 bits do, and it keeps its modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import tiny
import torch
from torch import Tensor, nn

import naflex_export as nx
from naflex_export.batch import Batch, noise_batch
from naflex_export.graph.build_settings import BuildSettings
from naflex_export.graph.onnx_rounding import round_each_result
from naflex_export.graph.onnx_translate import FILE, write_onnx
from naflex_export.graph.trace import trace
from naflex_export.grid import Grid
from naflex_export.models import adapter_of
from naflex_export.precision import Precision
from naflex_export.serving.onnx_runner import open_session

GRIDS = [Grid(2, 3), Grid(3, 4), Grid(1, 16), Grid(4, 4)]
LOW = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}
FAMILIES: dict[str, Any] = {
    "siglip": tiny.siglip,
    "classifier": tiny.classifier,
    "rope": lambda: tiny.naflexvit("naflexvit_base_patch16_gap", rope_type="axial", pos_embed="none"),
    "siglip2": tiny.siglip2,
}


def written(model: nn.Module, dtype: str, folder: Path) -> ir.Model:
    program = trace(adapter_of(model), [nx.Bucket(16)], Precision(dtype))
    write_onnx(program, folder, BuildSettings(), opset=20)
    return ir.load(folder / FILE)


@pytest.fixture(scope="module")
def siglip_graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the files of a tiny SigLIP's graph, by dtype."""
    folders = {dtype: tmp_path_factory.mktemp(dtype) for dtype in LOW}
    for dtype, folder in folders.items():
        written(tiny.siglip(), dtype, folder)
    return {dtype: folder / FILE for dtype, folder in folders.items()}


def run(model: ir.Model, batch: Batch, of: nn.Module, folder: Path, dtype: str = "float32") -> Tensor:
    path = folder / "run.onnx"
    ir.save(model, path)
    session = open_session(path, torch.device("cpu"))
    inputs = adapter_of(of).input_format.arrange(batch)
    arrays = [x.to(getattr(torch, dtype)) if x.is_floating_point() else x for x in inputs]
    names = [value.name for value in model.graph.inputs]
    given = {name: array.numpy() for name, array in zip(names, arrays, strict=True)}
    return torch.from_numpy(session.run(None, given)[0]).float()


def eager(model: nn.Module, batch: Batch, dtype: torch.dtype) -> Tensor:
    adapter = adapter_of(model)
    inputs = [x.to(dtype) if x.is_floating_point() else x for x in adapter.input_format.arrange(batch)]
    with torch.no_grad():
        return adapter.encoder(("features",))(*inputs)[0].float()


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    "family", ["siglip", *(pytest.param(name, marks=pytest.mark.full) for name in FAMILIES if name != "siglip")]
)
@pytest.mark.parametrize("dtype", LOW)
def test_it_rounds_as_eager_in_that_dtype(
    family: str, dtype: str, siglip_graphs: dict[str, Path], tmp_path: Path
) -> None:
    """To within a factor of 1.5 in relative L2, over 16 images; in float32 alone it would be far nearer."""
    if family == "siglip2":
        pytest.importorskip("transformers")
    model = FAMILIES[family]()
    graph = ir.load(siglip_graphs[dtype]) if family == "siglip" else written(model, dtype, tmp_path)
    assert round_each_result(graph, LOW[dtype]) > 20
    batch = noise_batch("rounding", GRIDS * 4, 16, adapter_of(model).token_width)
    expected = eager(model, batch, torch.float32)
    ours = distance(run(graph, batch, model, tmp_path), expected)
    theirs = distance(eager(FAMILIES[family]().to(getattr(torch, dtype)), batch, getattr(torch, dtype)), expected)
    assert theirs / 1.5 <= ours <= theirs * 1.5


def test_onnx_runtime_alone_hides_it(siglip_graphs: dict[str, Path], tmp_path: Path) -> None:
    """What the float16 graph gives on a CPU is nearer to float32 than any float16 is."""
    model, graph = tiny.siglip(), ir.load(siglip_graphs["float16"])
    batch = noise_batch("rounding", GRIDS * 4, 16, 48)
    expected = eager(model, batch, torch.float32)
    plain = distance(run(graph, batch, model, tmp_path, "float16"), expected)
    round_each_result(graph, ir.DataType.FLOAT16)
    assert distance(run(graph, batch, model, tmp_path), expected) > 1.2 * plain


def test_it_overflows_where_float16_does(tmp_path: Path) -> None:
    """A residual stream beyond 65504: ONNX Runtime's float32 lets it pass."""
    model = tiny.siglip()
    with torch.no_grad():
        model.blocks[0].mlp.fc2.bias.fill_(70000.0).clamp_(max=65000.0)
        model.blocks[1].mlp.fc2.bias.fill_(65000.0)
    graph = written(model, "float16", tmp_path)
    batch = noise_batch("overflow", GRIDS, 16, 48)
    assert torch.isfinite(eager(model, batch, torch.float32)).all()
    round_each_result(graph, ir.DataType.FLOAT16)
    assert not torch.isfinite(run(graph, batch, model, tmp_path)).all()


@pytest.mark.parametrize("dtype", LOW)
def test_pairs_are_of_their_operators_module_and_nothing_else_is_narrow(
    dtype: str, siglip_graphs: dict[str, Path]
) -> None:
    graph = ir.load(siglip_graphs[dtype])
    names = [value.name for value in graph.graph.outputs]
    count = round_each_result(graph, LOW[dtype])
    downs = [node for node in graph.graph if node.name and node.name.endswith("/down")]
    assert len(downs) == count
    for node in graph.graph:
        narrow = [value for value in node.outputs if value.dtype == LOW[dtype]]
        assert not narrow or node in downs
    for down in downs:
        maker = down.inputs[0]
        assert maker is not None and maker.producer() is not None
        assert down.metadata_props == maker.producer().metadata_props  # type: ignore[union-attr]
        (reader,) = down.outputs[0].uses()
        assert reader.node.op_type == "Cast" and reader.node.attributes["to"].as_int() == ir.DataType.FLOAT
    assert [value.name for value in graph.graph.outputs] == names
