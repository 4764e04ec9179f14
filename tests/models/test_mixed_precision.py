"""What is kept in float32: which modules a name means, what they compute in, and what that saves."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import nn
from tower_tiny import KIN, TOWERS

import naflex_export as nx
from naflex_export.accuracy.judge_artifact import judge_artifact
from naflex_export.accuracy.reference import SoundInterpolate
from naflex_export.batch import Batch, noise_batch
from naflex_export.graph.checks import check_program
from naflex_export.graph.intermediates import listening
from naflex_export.graph.trace import trace
from naflex_export.grid import Grid
from naflex_export.models import adapter_of, packed_of
from naflex_export.models.kept_parts import kept_of
from naflex_export.models.mixed_precision import cast_encoder, cast_model, keeping_softmax
from naflex_export.precision import PRESETS, Kept, Precision
from naflex_export.serving.manifest import Manifest

BUCKET = [nx.Bucket(32, (1, 4, 8))]
HALF = torch.float16


def kept(model: nn.Module, names: str) -> Kept:
    return kept_of(adapter_of(model), Precision.of("float16", names))


def run(model: nn.Module, names: str, batch: Batch, dtype: str = "float16") -> torch.Tensor:
    """Return the features of eager in a mixed precision."""
    precision = Precision.of(dtype, names)
    adapter = adapter_of(copy.deepcopy(model))
    held = cast_model(adapter, precision)
    encoder = cast_encoder(adapter.encoder(("features",)), precision)
    inputs = [x.to(precision.torch_dtype) if x.is_floating_point() else x for x in adapter.input_format.arrange(batch)]
    with torch.no_grad(), keeping_softmax(held), SoundInterpolate():
        return encoder(*inputs)[0]


def eager(model: nn.Module, batch: Batch) -> torch.Tensor:
    adapter = adapter_of(model)
    with torch.no_grad(), SoundInterpolate():
        return adapter.encoder(("features",))(*adapter.input_format.arrange(batch))[0]


def test_presets_choose_modules_by_rule() -> None:
    siglip, classifier = tiny.siglip(), tiny.classifier()
    norms = {f"blocks.{block}.norm{norm}" for block in (0, 1) for norm in (1, 2)}
    assert kept(siglip, "norm").modules == norms | {"norm", "attn_pool.norm"}
    assert kept(siglip, "pooling").modules == {"norm", "attn_pool"}
    assert kept(classifier, "pooling").modules == {"fc_norm", "head"}
    assert kept(siglip, "embedding").modules == {"embeds"}
    assert kept(siglip, "residual") == Kept(residual=True)
    scales = {f"blocks.{block}.ls{scale}" for block in (0, 1) for scale in (1, 2)}
    assert kept(classifier, "residual") == Kept(frozenset(scales), residual=True)
    assert kept(siglip, "softmax") == Kept(softmax=True)
    assert kept(siglip, "blocks.1,norm").modules == {
        "blocks.1",
        "blocks.0.norm1",
        "blocks.0.norm2",
        "norm",
        "attn_pool.norm",
    }
    held = kept(siglip, "blocks.1")
    assert held.holds("blocks.1.mlp.fc1") and not held.holds("blocks.10") and not held.holds("blocks.0")


def test_presets_of_transformers() -> None:
    pytest.importorskip("transformers")
    model = tiny.siglip2()
    assert kept(model, "embedding").modules == {"embeddings"}
    assert kept(model, "pooling").modules == {"post_layernorm", "head"}
    assert {"encoder.layers.1.layer_norm2", "head.layernorm"} < kept(model, "norm").modules


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ("blocks.1.atn", r"'blocks\.1\.atn' is no module of this model: .* such as blocks\.1\.attn, "),
        ("normm", r"'normm' is no module of this model: expected residual, norm, .* such as norm"),
        ("blocks.0.drop_path1", r"'blocks\.0\.drop_path1' \(Identity without weights\) changes nothing"),
        ("blocks.1.mlp,blocks.1", r"'blocks\.1\.mlp' changes nothing: the other names keep all of it"),
        ("norm,blocks.1.norm1", r"'blocks\.1\.norm1' changes nothing: the other names keep all of it"),
        ("softmax,blocks,pooling", r"'softmax' changes nothing: the other names keep all of it"),
        ("Norms,blocks.0", r"'Norms' is no module of this model: .* such as norm, fc_norm"),
        ("fc_Norm", r"'fc_Norm' is no module of this model: .* such as fc_norm"),
        ("mlp.FC2", r"'mlp\.FC2' is no module .* such as blocks\.0\.mlp\.fc2, blocks\.1\.mlp\.fc2"),
        ("model.blocks.1", r"'model\.blocks\.1' is no module .* such as blocks\.1$"),
        ("blocks.*.mlp", r"no module of this model, and a pattern stands for none: .* blocks\.0\.mlp, blocks\.1\.mlp"),
    ],
)
def test_names_that_mean_nothing_are_refused_before_any_work(names: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(nx.RequestError, match=says):
        nx.export(tiny.siglip(), "onnx", tmp_path / "a", dtype="float16", keep_float32=names)
    assert not list(tmp_path.iterdir())


def test_presets_are_known_in_any_case_and_lists_may_hold_texts() -> None:
    siglip = tiny.siglip()
    assert kept(siglip, "Residual, NORM") == kept(siglip, "residual,norm")
    assert Precision.of("float16", ["Residual,norm", "blocks.1"]).keep_float32 == ("residual", "norm", "blocks.1")
    assert Precision.of("float16", "AUTO").is_auto


@pytest.mark.parametrize("given", [3, {"norm": True}, ["norm", None], b"norm", [["norm"]]])
def test_what_is_no_text_is_refused(given: Any) -> None:
    for name in ("keep_float32", "keep_unquantized"):
        with pytest.raises(nx.RequestError, match=rf"{name}=.*: expected a text of names with commas between them, or"):
            Precision.of("int8", **{name: given})


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize(
    "make",
    [
        tiny.siglip,
        tiny.siglip2,
        *(pytest.param(make, marks=pytest.mark.full, id=name) for name, make in {**TOWERS, **KIN}.items()),
    ],
)
def test_every_name_that_is_taken_can_be_kept(make: Callable[[], nn.Module], packed: bool) -> None:
    """Of lists of blocks too, which have no call of their own; what cannot be kept alone is refused, and says why."""
    pytest.importorskip("transformers")
    model = make()
    own = adapter_of(model)
    adapter = (packed_of(own) if packed else own).vectorized()
    batch = noise_batch("kept", [Grid(2, 3), Grid(3, 4)], 12, own.token_width)
    with torch.no_grad(), SoundInterpolate():
        expected = own.encoder(own.default_outputs)(*own.input_format.arrange(batch))[0]
    taken = refused = 0
    for name in (*PRESETS, *(name for name, _ in adapter.tower.named_modules() if name)):
        precision = Precision("float16", (name,))
        try:
            kept_of(adapter, precision)
        except nx.RequestError as error:
            refused += 1
            assert "changes nothing" in str(error) or "head.attention reads its weights without a call" in str(error)
            continue
        copied = adapter.of(copy.deepcopy(adapter.model))
        held, taken = cast_model(copied, precision), taken + 1
        inputs = [one.half() if one.is_floating_point() else one for one in adapter.input_format.arrange(batch)]
        with torch.no_grad(), keeping_softmax(held), SoundInterpolate():
            found = cast_encoder(copied.encoder(own.default_outputs), precision)(*inputs)[0]
        assert found.dtype is HALF and (found.float() - expected).norm() < 5e-3 * expected.norm(), name
    assert taken > 20 and refused


def test_a_preset_of_nothing_is_refused() -> None:
    model = tiny.naflexvit(norm_layer=nn.Identity, final_norm=False, global_pool="avg", fc_norm=False)
    with pytest.raises(nx.RequestError, match=r"'norm' \(every normalization\) changes nothing"):
        kept(model, "norm")


def test_only_what_is_kept_is_float32(mixed: Batch) -> None:
    model = tiny.classifier()
    adapter = adapter_of(copy.deepcopy(model))
    cast_model(adapter, Precision.of("float16", "residual,norm,blocks.1.attn"))
    parts = ("blocks.0", "blocks.1", "blocks.1.attn", "blocks.0.norm1", "blocks.0.attn", "fc_norm")
    heard: dict[str, torch.dtype] = {}
    with listening(adapter.tower, parts, lambda name, value: heard.update({name: value.dtype})), torch.no_grad():
        adapter.model(mixed.patches.half(), mixed.patch_coord, mixed.patch_valid)
    weights = {name: parameter.dtype for name, parameter in adapter.model.named_parameters()}
    assert weights["blocks.1.attn.qkv.weight"] is weights["blocks.0.norm1.weight"] is torch.float32
    assert weights["blocks.0.attn.qkv.weight"] is weights["head.weight"] is HALF
    assert [heard[name] for name in parts] == [torch.float32] * 3 + [HALF] * 3
    assert all(parameter.dtype is torch.float32 for parameter in model.parameters())


def test_weights_that_float16_cannot_hold_are_kept_whole(mixed: Batch) -> None:
    """They must not pass through float16 on their way."""
    model = tiny.siglip()
    with torch.no_grad():
        model.blocks[1].mlp.fc2.bias[0] = 70_000.0
    adapter = adapter_of(copy.deepcopy(model))
    cast_model(adapter, Precision.of("float16", "blocks.1.mlp"))
    assert torch.equal(adapter.model.blocks[1].mlp.fc2.bias, model.blocks[1].mlp.fc2.bias)
    found = run(model, "residual,norm,blocks.1.mlp", mixed).float()
    assert (found - eager(model, mixed)).norm() < 5e-3 * eager(model, mixed).norm()
    assert not torch.isfinite(run(model, "residual,norm", mixed)).all()


def test_a_residual_beyond_float16_survives(mixed: Batch) -> None:
    model = tiny.with_large_residual()
    assert not torch.isfinite(run(model, "norm", mixed)).all()
    found = run(model, "residual,norm", mixed)
    assert found.dtype is HALF and (found.float() - eager(model, mixed)).norm() < 5e-3 * eager(model, mixed).norm()


def test_scores_are_float32_where_softmax_is_kept() -> None:
    query, key, value = torch.randn(3, 1, 2, 5, 16, generator=torch.Generator().manual_seed(0)).half()
    query[..., 0], key[..., 0] = 600.0, 600.0  # scores near 90,000, where float32 has steps of 0.008
    mask = torch.zeros(1, 1, 5, 5, dtype=HALF).masked_fill(torch.arange(5) > 3, torch.finfo(HALF).min)
    expected = nn.functional.scaled_dot_product_attention(*(x.double() for x in (query, key, value, mask)))
    with keeping_softmax(Kept(softmax=True)):
        found = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        halves = nn.functional.softmax(query, dim=-1)
        shown = nn.functional.scaled_dot_product_attention(
            query=query, key=key, value=value, attn_mask=torch.arange(5) < 4
        )
    assert found.dtype is shown.dtype is halves.dtype is HALF
    assert float((found.double() - expected).norm()) < 5e-3 * float(expected.norm()) and torch.equal(found, shown)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (tiny.classifier, "residual,norm,softmax,blocks.1.mlp"),
        *(
            pytest.param(make, names, marks=pytest.mark.full)
            for make in (tiny.siglip, tiny.classifier, tiny.siglip2)
            for names in ("residual,norm", "softmax", "embedding,pooling", "residual,norm,softmax,pooling,embedding")
        ),
    ],
)
def test_a_traced_graph_is_in_both_and_its_check_knows(make: Callable[[], nn.Module], names: str, mixed: Batch) -> None:
    model = make()
    adapter = adapter_of(model)
    program = trace(adapter, BUCKET, Precision.of("float16", names))
    inputs = [x.half() if x.is_floating_point() else x for x in adapter.input_format.arrange(mixed)]
    with torch.no_grad():
        found = program.exported.module()(*inputs)[0]
    assert found.dtype is HALF and all(spec.dtype == "float16" for spec in program.outputs)
    expected = run(model, names, mixed).float()
    reference = eager(model, mixed)
    assert (found.float() - reference).norm() < 1.5 * (expected - reference).norm() + 1e-4 * reference.norm()
    open_dims = adapter.input_format.open_dims
    assert check_program(program, open_dims) == []
    less = check_program(replace(program, kept=Kept()), open_dims)
    assert less and all("in float32" in problem for problem in less)
    more = check_program(
        replace(program, kept=replace(program.kept, modules=frozenset([*program.kept.modules, *ATTENTION]))), open_dims
    )
    assert more and all("in float16" in problem for problem in more)


ATTENTION = ("blocks.0.attn", "encoder.layers.0.self_attn")


@pytest.mark.full
def test_an_export_fails_where_eager_in_float16_is_not_finite(tmp_path: Path) -> None:
    """Whatever the target: it is eager that the gate has looked at by then."""
    with pytest.raises(nx.GateFailure, match="eager itself is not finite"):
        nx.export(tiny.with_large_residual(), "onnx", tmp_path / "a", BUCKET, dtype="float16", effort="quick")


@pytest.mark.parametrize(
    "target", ["onnx", *(pytest.param(one, marks=pytest.mark.full) for one in ("compile", "aot", "trt"))]
)
def test_an_export_that_float16_fails_passes_with_what_is_kept(target: str, tmp_path: Path) -> None:
    """The manifest says what was kept, and whoever judges the artifact again knows."""
    if target == "trt":
        pytest.importorskip("tensorrt_rtx")
    model = tiny.with_large_residual()
    options = {"buckets": BUCKET, "dtype": "float16", "effort": "quick"}
    artifact = nx.export(model, target, tmp_path / "a", keep_float32=["residual", "norm"], **options)
    assert Manifest.read(artifact.path).precision == Precision("float16", ("residual", "norm"))
    assert artifact.report.passed and artifact.report.keep_float32 == ("residual", "norm")
    assert artifact.report.to_json()["keep_float32"] == ["residual", "norm"]
    again = judge_artifact(artifact.path, model)
    assert again.passed and again.baselines[0].baseline < 5e-3
