"""A 16-bit graph on a CPU: it rounds as torch does, it overflows where 16 bits do, and it keeps its modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir
import planted
import pytest
import tiny
import torch
from torch import Tensor, nn
from tower_tiny import KIN, OWN_GRAPHS, TOWERS

import naflex_export as nx
from naflex_export.batch import Batch, noise_batch
from naflex_export.graph.build_settings import BuildSettings
from naflex_export.graph.onnx_rounding import round_each_result
from naflex_export.graph.onnx_translate import FILE, write_onnx
from naflex_export.graph.trace import trace
from naflex_export.grid import Grid
from naflex_export.models import FAMILIES as REGISTRY
from naflex_export.models import adapter_of, packed_of
from naflex_export.models.adapter import ModelAdapter
from naflex_export.precision import Precision
from naflex_export.serving.onnx_runner import open_session

GRIDS = [Grid(2, 3), Grid(3, 4), Grid(1, 16), Grid(4, 4)]
LOW = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}
FAMILIES: dict[str, Any] = {
    "siglip": tiny.siglip,
    "classifier": tiny.classifier,
    "rope": lambda: tiny.naflexvit("naflexvit_base_patch16_gap", rope_type="axial", pos_embed="none"),
    "siglip2": tiny.siglip2,
    **{name: {**TOWERS, **KIN}[name] for name in OWN_GRAPHS},
}
PACKED = ("siglip", "classifier", "siglip2")
"""Families that take packs as well as padded batches."""


def as_given(adapter: ModelAdapter, packed: bool) -> ModelAdapter:
    """Return an adapter of the inputs that a graph takes."""
    return packed_of(adapter) if packed else adapter


def written(model: nn.Module, dtype: str, folder: Path, packed: bool = False) -> ir.Model:
    adapter = as_given(adapter_of(model), packed)
    program = trace(adapter, [nx.Bucket(16)], Precision(dtype), adapter.default_outputs)
    write_onnx(program, folder, BuildSettings(), opset=20)
    return ir.load(folder / FILE)


@pytest.fixture(scope="module")
def siglip_graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the files of a tiny SigLIP's graph, by dtype."""
    folders = {dtype: tmp_path_factory.mktemp(dtype) for dtype in LOW}
    for dtype, folder in folders.items():
        written(tiny.siglip(), dtype, folder)
    return {dtype: folder / FILE for dtype, folder in folders.items()}


def run(
    model: ir.Model, batch: Batch, of: nn.Module, folder: Path, *, dtype: str = "float32", packed: bool = False
) -> Tensor:
    path = folder / "run.onnx"
    ir.save(model, path)
    session = open_session(path, torch.device("cpu"))
    inputs = as_given(adapter_of(of), packed).input_format.arrange(batch)
    arrays = [x.to(getattr(torch, dtype)) if x.is_floating_point() else x for x in inputs]
    names = [value.name for value in model.graph.inputs]
    given = {name: array.numpy() for name, array in zip(names, arrays, strict=True)}
    return torch.from_numpy(session.run(None, given)[0]).float()


def eager(model: nn.Module, batch: Batch, dtype: torch.dtype) -> Tensor:
    adapter = adapter_of(model)
    inputs = [x.to(dtype) if x.is_floating_point() else x for x in adapter.input_format.arrange(batch)]
    with torch.no_grad():
        return adapter.encoder(adapter.default_outputs)(*inputs)[0].float()


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("family", "packed"),
    [
        ("siglip", False),
        *(pytest.param(name, False, marks=pytest.mark.full) for name in FAMILIES if name != "siglip"),
        *(pytest.param(name, True, marks=pytest.mark.full) for name in PACKED),
    ],
)
@pytest.mark.parametrize("dtype", LOW)
def test_it_rounds_as_eager_in_that_dtype(
    family: str, packed: bool, dtype: str, siglip_graphs: dict[str, Path], tmp_path: Path
) -> None:
    """To within a factor of 1.5 in relative L2, over 16 images; in float32 alone it would be far nearer."""
    if family not in ("siglip", "classifier", "rope"):
        pytest.importorskip("transformers")
    model = FAMILIES[family]()
    is_written = family == "siglip" and not packed
    graph = ir.load(siglip_graphs[dtype]) if is_written else written(model, dtype, tmp_path, packed)
    assert round_each_result(graph, LOW[dtype]) > 20
    batch = noise_batch("rounding", GRIDS * 4, 16, adapter_of(model).token_width)
    expected = eager(model, batch, torch.float32)
    ours = distance(run(graph, batch, model, tmp_path, packed=packed), expected)
    theirs = distance(eager(FAMILIES[family]().to(getattr(torch, dtype)), batch, getattr(torch, dtype)), expected)
    assert theirs / 1.5 <= ours <= theirs * 1.5


def test_every_family_is_rounded() -> None:
    """Those of the registry or one that has the same graph, and both forms of those that have two.

    A family that is added is missed here.
    """
    pytest.importorskip("transformers")
    made = {name: adapter_of(make()) for name, make in FAMILIES.items()}
    same = [make() for name, make in KIN.items() if name not in OWN_GRAPHS]
    covered = {type(model).__name__ for model in [*same, *(adapter.model for adapter in made.values())]}
    assert {entry.models.split(" ")[-1] for entry in REGISTRY[2:]} <= covered
    assert {"NaFlexVit", "Siglip2VisionModel"} <= covered
    two_forms = {name for name, adapter in made.items() if not adapter.input_format.is_packed}
    assert two_forms - set(PACKED) == {"rope"}  # whose packs are those of NaFlexVit with angles by token


HIDDEN = (
    *(planted.scores, planted.attention_output, planted.mlp),
    *(planted.pooled_mlp, planted.norm_in_block, planted.last_norm),
)


@pytest.mark.parametrize(
    "plant", [*HIDDEN, *(pytest.param(one, marks=pytest.mark.full) for one in planted.IN_SIGLIP if one not in HIDDEN)]
)
def test_an_overflow_anywhere_shows_when_rounded(
    plant: planted.Plant, siglip_graphs: dict[str, Path], tmp_path: Path
) -> None:
    """ONNX Runtime's float32 lets half of them pass, and stops where it casts to float16 by itself."""
    model, graph = planted.with_overflow(plant), ir.load(siglip_graphs["float16"])
    put_in(graph, model)
    batch = noise_batch("overflow", GRIDS, 16, 48)
    expected = eager(model, batch, torch.float32)
    plain = run(graph, batch, model, tmp_path, dtype="float16")
    assert plant not in HIDDEN or distance(plain, expected) < 0.1  # large and small weights have fewer digits
    round_each_result(graph, ir.DataType.FLOAT16)
    assert not torch.isfinite(run(graph, batch, model, tmp_path)).all()


def turned(weight: Tensor) -> Tensor:
    """Return a layer's weight as a product takes it."""
    return weight.detach().flatten(1).mT if weight.ndim > 1 else weight.detach()


def put_in(graph: ir.Model, model: nn.Module) -> None:
    """Put a model's weights into the graph of a tiny SigLIP, which has them as they are, or turned."""
    before, after = dict(tiny.siglip().named_parameters()), dict(model.named_parameters())
    for value in graph.graph.initializers.values():
        held = None if value.const_value is None else torch.from_numpy(value.const_value.numpy().copy())
        if held is None or not held.is_floating_point() or held.numel() < 32:
            continue
        for name, weight in before.items():
            for turn in (Tensor.detach, turned):
                found = turn(weight).half().to(held.dtype)
                if found.numel() == held.numel() and torch.equal(found.reshape(held.shape), held):
                    made = turn(after[name]).half().to(held.dtype).reshape(held.shape).contiguous()
                    value.const_value = ir.Tensor(made.numpy(), name=value.name)


def test_onnx_runtime_alone_hides_it(siglip_graphs: dict[str, Path], tmp_path: Path) -> None:
    """What the float16 graph gives on a CPU is nearer to float32 than any float16 is."""
    model, graph = tiny.siglip(), ir.load(siglip_graphs["float16"])
    batch = noise_batch("rounding", GRIDS * 4, 16, 48)
    expected = eager(model, batch, torch.float32)
    plain = distance(run(graph, batch, model, tmp_path, dtype="float16"), expected)
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
