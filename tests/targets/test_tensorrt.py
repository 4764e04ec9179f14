"""The TensorRT target: real engines, and every way the parser and builder call a failure a success."""

from __future__ import annotations

import sys
from pathlib import Path

import onnx
import onnx.parser
import pytest
import tiny
import torch
from torch import nn

import naflex_export as nx
from naflex_export.accuracy.cases import cases_of
from naflex_export.accuracy.efforts import CaseSelection
from naflex_export.exporter import export
from naflex_export.graph.build_settings import BuildSettings
from naflex_export.graph.onnx_translate import write_onnx
from naflex_export.graph.trace import trace
from naflex_export.models import adapter_of
from naflex_export.serving.load import load
from naflex_export.targets import tensorrt as target
from naflex_export.targets.tensorrt import Profile, build_engine, profiles_of

pytest.importorskip("tensorrt_rtx")
BUCKETS = [nx.Bucket(64, (1, 2, 8)), nx.Bucket(16, (1, 16, 64))]
HEADER = '<ir_version: 10, opset_import: ["" : {opset}]>\n'


def write(path: Path, text: str, opset: int = 20) -> Path:
    onnx.save(onnx.parser.parse_model(HEADER.format(opset=opset) + text), path)
    return path


def cases_in(buckets: list[nx.Bucket]) -> list[str]:
    """Return the names of the cases that an artifact of these buckets is judged on."""
    return [name for bucket in buckets for name in cases_of(bucket, CaseSelection(), num_photos=3)]


@pytest.fixture(scope="module")
def siglip() -> nn.Module:
    """One block is enough for what a target makes of a graph."""
    return tiny.shallow()


def profile(**shapes: tuple[int, ...]) -> list[Profile]:
    return [Profile({name: (shape, shape, shape) for name, shape in shapes.items()})]


@pytest.mark.parametrize(
    "dtype", ["float16", *(pytest.param(dtype, marks=pytest.mark.full) for dtype in ("float32", "bfloat16"))]
)
def test_builds_an_engine_and_says_that_it_was_not_run(siglip: nn.Module, tmp_path: Path, dtype: str) -> None:
    artifact = export(siglip, "trt", tmp_path / "a", BUCKETS, dtype)
    manifest = artifact.manifest
    assert manifest.files["model.plan"]["bytes"] > 100_000
    assert manifest.build["profiles"] == 2 and manifest.build["opset"] == 20
    assert len(artifact.report.results) == len(cases_in(BUCKETS)) and artifact.report.dtype == dtype
    if not torch.cuda.is_available():
        assert manifest.gate["not_run"] == "model.plan was built and not run: there is no CUDA device"
        assert manifest.gate["judged"].startswith("model.onnx")
        with pytest.raises(nx.BackendError, match="torch finds no CUDA device"):
            load(tmp_path / "a")
        with pytest.raises(nx.BackendError, match="built and not run here.*--require-run"):
            export(siglip, "trt", tmp_path / "b", BUCKETS, dtype, require_run=True)
        assert not (tmp_path / "b").exists()


def test_one_profile_per_bucket_with_one_token_at_least(siglip: nn.Module) -> None:
    small, large = profiles_of(trace(adapter_of(siglip), BUCKETS))
    assert small.shapes["patches"] == ((1, 1, 48), (16, 16, 48), (64, 16, 48))
    assert large.shapes["patch_coord"] == ((1, 1, 2), (2, 64, 2), (8, 64, 2))


@pytest.mark.parametrize("content", [b"", b"\0" * 64], ids=["empty", "zeros"])
def test_a_file_without_layers_is_an_error(tmp_path: Path, content: bytes) -> None:
    """The parser returns True for both."""
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(nx.BuildError, match="read no layer from model.onnx|refused the ONNX graph"):
        build_engine(path, [])


def test_a_dropped_input_is_an_error(tmp_path: Path) -> None:
    """`nonpad_kv_seqlen` is dropped with a warning: padding would be attended to."""
    text = (
        "g (float16[b, 1, t, 16] q, int64[b] length) => (float16[b, 1, t, 16] y) "
        "{ y = Attention (q, q, q, , , , length) }"
    )
    path = write(tmp_path / "model.onnx", text, opset=24)
    with pytest.raises(nx.BuildError, match="dropped what reads input 'length'"):
        build_engine(path, profile(q=(2, 1, 8, 16), length=(2,)))


@pytest.mark.parametrize("body", ["{ y = Relu(x) }", "{ w = Exp(z) y = Relu(x) }"], ids=["unread", "dead-end"])
def test_an_input_without_effect_is_an_error(tmp_path: Path, body: str) -> None:
    path = write(tmp_path / "model.onnx", f"g (float[b, 4] x, float[b, 4] z) => (float[b, 4] y) {body}")
    with pytest.raises(nx.BuildError, match="dropped what reads input 'z'"):
        build_engine(path, profile(x=(2, 4), z=(2, 4)))


def test_a_warning_of_an_unused_input_is_an_error() -> None:
    """The builder's own words, should a release drop an input where the network does not show it."""
    for text in ("Unused Input: z", "[RemoveDeadLayers] Input Tensor z is unused or used only at compile-time"):
        with pytest.raises(nx.BuildError, match="ignores an input"):
            target._check_log([("warning", text)], "build")
    target._check_log([("warning", "Make sure input z has Int64 binding.")], "build")


def test_parser_errors_name_the_node_and_its_module(tmp_path: Path) -> None:
    """Antialiased Resize, as timm's own graph would hold it."""
    text = (
        "g (float[1, 2, 8, 8] x) => (float[1, 2, 3, 4] y) "
        '{ s = Constant<value_ints=[1, 2, 3, 4]>() y = Resize<antialias=1, mode="linear">(x, , , s) }'
    )
    model = onnx.parser.parse_model(HEADER.format(opset=20) + text)
    model.graph.node[1].name = "node_resize"
    note = model.graph.node[1].metadata_props.add()
    note.key, note.value = "pkg.torch.onnx.name_scopes", "['', 'model', 'model.embeds', 'resize']"
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(nx.BuildError, match="Resize node 'node_resize' from module 'embeds': .*ntialias"):
        build_engine(tmp_path / "model.onnx", [])


def test_a_profile_out_of_order_is_an_error(tmp_path: Path) -> None:
    """`set_shape` takes min > max without a word."""
    path = write(tmp_path / "model.onnx", "g (float[b, 4] x) => (float[b, 4] y) { y = Relu(x) }")
    wrong = Profile({"x": ((8, 4), (4, 4), (2, 4))})
    with pytest.raises(nx.BuildError, match="'x' is min .* expected min <= opt <= max"):
        build_engine(path, [wrong])
    assert build_engine(path, [Profile({"x": ((1, 4), (2, 4), (4, 4))})])


def test_builder_errors_are_errors(siglip: nn.Module, tmp_path: Path) -> None:
    """The float32 `Attention` nodes of opset 23 parse, and no kernel takes them."""
    program = trace(adapter_of(siglip), BUCKETS)
    write_onnx(program, tmp_path, BuildSettings(), opset=23)
    with pytest.raises(
        nx.BuildError, match=r"reported an error \(in build\):\n.*Attention operation was not supported"
    ):
        build_engine(tmp_path / "model.onnx", profiles_of(program))


def test_a_missing_profile_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "model.onnx", "g (float[b, 4] x) => (float[b, 4] y) { y = Relu(x) }")
    with pytest.raises(nx.BuildError, match=r"reported an error \(in build\)"):
        build_engine(path, [])


def test_a_missing_library_is_exit_code_3(monkeypatch: pytest.MonkeyPatch, siglip: nn.Module, tmp_path: Path) -> None:
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    target.tensorrt.cache_clear()
    try:
        with pytest.raises(nx.BackendError, match="neither library imports .*pip install tensorrt-rtx") as caught:
            export(siglip, "trt", tmp_path / "a")
        assert caught.value.exit_code == 3
    finally:
        target.tensorrt.cache_clear()


def test_float32_means_float32() -> None:
    """TF32 is on by default in the builder; the target turns it off."""
    import tensorrt_rtx as trt

    config = target._create_builder(target.tensorrt()).create_builder_config()
    assert config.get_flag(trt.BuilderFlag.TF32)
    assert not target._create_config(target._create_builder(target.tensorrt())).get_flag(trt.BuilderFlag.TF32)
