"""The first deviation: where it is known by construction, it is named; where there is none, none is."""

from __future__ import annotations

import copy
import functools
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import tiny
import torch
from torch import Tensor, nn

import naflex_export as nx
from naflex_export.accuracy.locate import FLOAT32_FLOOR
from naflex_export.accuracy.parts import merged
from naflex_export.accuracy.report.formats import as_junit, as_markdown
from naflex_export.accuracy.results import Location
from naflex_export.graph.build_settings import BuildSettings
from naflex_export.graph.intermediates import Tapped
from naflex_export.graph.onnx_translate import FILE, write_onnx
from naflex_export.graph.program import Program
from naflex_export.graph.trace import trace
from naflex_export.models import adapter_of
from naflex_export.models.mixed_precision import cast_model
from naflex_export.precision import Precision
from naflex_export.serving import one_graph
from naflex_export.serving.aot_runner import AotRunner
from naflex_export.serving.compile_runner import CompileRunner
from naflex_export.serving.manifest import Manifest
from naflex_export.serving.onnx_runner import OnnxRunner
from naflex_export.serving.patch_sizes import PatchSizesRunner
from naflex_export.serving.runner import Runner
from naflex_export.serving.tensorrt_runner import TensorRTRunner
from naflex_export.targets import compile as compiled
from naflex_export.targets import onnx as target
from naflex_export.targets import tensorrt

BUCKET = [nx.Bucket(24, (1, 4, 8))]
CPU = torch.device("cpu")
BLOCK = ("norm1", "attn", "ls1", "norm2", "mlp", "ls2")
MODULES = [
    "embeds.proj",
    "embeds",
    *(name for block in ("blocks.0", "blocks.1") for name in (*(f"{block}.{part}" for part in BLOCK), block)),
    "fc_norm",
    "head",
    "output features",
]
DTYPES = ("float32", "float16", "bfloat16")
WRITTEN = ("float32", "float16", pytest.param("bfloat16", marks=pytest.mark.full))
"""Dtypes of which a graph is written here: in 16 bits both are rounded alike."""


def manifest_of(program: Program, target: str) -> Manifest:
    model = {"source": {}, "architecture": "tiny", "weights_sha256": ""}
    return Manifest(
        target, program.precision.dtype, program.inputs, program.outputs, program.buckets, model, {}, {}, {}
    )


def live(model: nn.Module, dtype: str) -> nn.Module:
    return nx.vectorize(copy.deepcopy(model)).to(getattr(torch, dtype))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("locate")


@pytest.fixture(scope="module")
def program() -> Callable[[str], Program]:
    return functools.cache(lambda dtype: trace(adapter_of(tiny.classifier()), BUCKET, Precision(dtype)))


@pytest.fixture(scope="module")
def onnx_runner(folder: Path, program: Callable[[str], Program]) -> Callable[[str], Runner]:
    """Return what makes a Runner of the tiny classifier's ONNX in a dtype; in bfloat16, of the rounded graph."""

    @functools.cache
    def made(dtype: str) -> Runner:
        (folder / dtype).mkdir()
        write_onnx(program(dtype), folder / dtype, BuildSettings(), target.OPSET)
        path, manifest = folder / dtype / FILE, manifest_of(program(dtype), "onnx")
        return target.RoundedRunner(path, manifest) if dtype == "bfloat16" else OnnxRunner(path, manifest, CPU)

    return made


@pytest.fixture(scope="module")
def traced(folder: Path, program: Callable[[str], Program]) -> Callable[[], Runner]:
    """Return what makes a Runner of the tiny classifier's traced graph."""
    (folder / "compile").mkdir()
    compiled.build(program("float32"), folder / "compile", BuildSettings())
    manifest = manifest_of(program("float32"), "compile")
    return lambda: CompileRunner(folder / "compile" / "model.pt2", manifest, CPU)


def location_of(candidate: Any, reference: nn.Module, **options: Any) -> Location:
    options = {"buckets": BUCKET, "cases": ["mixed-24-seed0"], **options}
    found = nx.gate(candidate, reference, **options).location
    assert found is not None
    return found


def first_of(candidate: Any, reference: nn.Module, **options: Any) -> str:
    first = location_of(candidate, reference, **options).first
    assert first is not None
    return first.module


def changed(module: str, factor: float = 1.3) -> nn.Module:
    """Return the tiny classifier with another weight in a module: what the candidates here were not made from."""
    model = tiny.classifier()
    with torch.no_grad():
        model.get_submodule(module).weight.mul_(factor)
    return model


def overflowing() -> nn.Module:
    """Return a classifier whose second MLP goes beyond float16 inside, and gives values of the usual size."""
    model = tiny.classifier()
    with torch.no_grad():
        model.blocks[1].mlp.fc1.weight.mul_(4e4)
        model.blocks[1].mlp.fc2.weight.mul_(1e-4)
    return model


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.full) for seed in (1, 2, 3))])
@pytest.mark.parametrize("dtype", WRITTEN)
def test_a_true_candidate_deviates_nowhere(
    dtype: str, seed: int, classifier: nn.Module, onnx_runner: Callable[[str], Runner]
) -> None:
    """Neither where there are many values to compare, nor where there are few and chance has its way."""
    for candidate in (live(classifier, dtype), onnx_runner(dtype)):
        for case in (f"mixed-24-seed{seed}", f"smallest-24-seed{seed}"):
            location = location_of(candidate, classifier, dtype=dtype, cases=[case], locate=True)
            assert location.first is None, location.line
            assert [tap.module for tap in location.taps] == MODULES and not location.advice
            largest = max(tap.relative_l2 for tap in location.taps)
            assert largest < FLOAT32_FLOOR / 10 if dtype == "float32" else largest > 1e-4


CHANGES = {
    "embeds.proj": "embeds.proj",
    "blocks.0.norm1": "blocks.0.norm1",
    "blocks.0.attn.qkv": "blocks.0.attn",
    "blocks.1.mlp.fc1": "blocks.1.mlp",
    "blocks.1.mlp.fc2": "blocks.1.mlp",
    "fc_norm": "fc_norm",
    "head": "head",
}


@pytest.mark.parametrize("dtype", WRITTEN)
@pytest.mark.parametrize("module", CHANGES)
def test_a_changed_weight_is_found_in_its_module(
    module: str, dtype: str, classifier: nn.Module, onnx_runner: Callable[[str], Runner]
) -> None:
    wrong = changed(module)
    assert first_of(live(classifier, dtype), wrong, dtype=dtype) == CHANGES[module]
    assert first_of(onnx_runner(dtype), wrong, dtype=dtype) == CHANGES[module]


def test_a_traced_graph_is_tapped(
    traced: Callable[[], Runner], classifier: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run as it was traced, for what is tested is which values it gives; the full-size tests compile it."""
    asked: list[Any] = []
    monkeypatch.setattr(one_graph, "compiled", lambda graph: asked.append(graph) or graph)
    runner = traced()
    for case in ("mixed-24-seed0", "smallest-24-seed0"):  # a single token runs with one of padding
        right = location_of(runner, classifier, cases=[case], locate=True)
        assert [tap.module for tap in right.taps] == MODULES and right.first is None
    assert first_of(runner, changed("blocks.1.mlp.fc2")) == "blocks.1.mlp"
    assert first_of(runner, changed("embeds.proj")) == "embeds.proj"  # to which the embedding is added in place
    assert len(asked) == 5 and asked[0] is not asked[1]


def test_a_compiled_model_is_tapped(classifier: nn.Module) -> None:
    fast = nx.compile(classifier, BUCKET, backend="eager")
    location = location_of(fast, changed("blocks.1.mlp.fc2"))
    assert [tap.module for tap in location.taps] == MODULES
    assert location.first is not None and location.first.module == "blocks.1.mlp"
    assert not any(module._forward_hooks for module in fast.modules())


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_embedding_without_antialias_is_found(dtype: str, classifier: nn.Module) -> None:
    wrong = tiny.naflexvit("naflexvit_base_patch16_gap", num_classes=10, pos_embed_antialias=False)
    location = location_of(live(wrong, dtype), classifier, dtype=dtype)
    assert location.first is not None and location.first.module == "embeds"
    assert "position embedding differs; check how it is resized (mode, antialias)" in location.line


def test_an_ignored_mask_is_found_in_the_first_attention(classifier: nn.Module) -> None:
    class Unmasked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nx.vectorize(classifier)

        def forward(self, patches: Tensor, coord: Tensor, valid: Tensor) -> Tensor:
            return self.inner(patches, coord, torch.ones_like(valid))

    location = location_of(Unmasked(), classifier, cases=["padding-24-seed0"])
    assert location.first is not None and location.first.module == "blocks.0.attn"
    assert "check its mask" in location.line


def test_an_overflow_in_float16_is_found_with_its_values() -> None:
    model = overflowing()
    location = location_of(live(model, "float16"), model, dtype="float16")
    first = location.first
    assert first is not None and first.module == "blocks.1.mlp" and first.relative_l2 != first.relative_l2
    assert first.reference_max_abs < 100 and first.inside_max_abs > first.dtype_max == 65504
    assert (
        "first deviation: blocks.1.mlp, relative L2 nan (floor 1.0e-02), on mixed-24-seed0; values up to "
        f"{first.inside_max_abs:.1e} of float16's 65504: keep this module in float32 "
        "(--keep-float32 blocks.1.mlp), or export in bfloat16"
    ) == location.line
    assert nx.gate(live(model, "bfloat16"), model, buckets=BUCKET, dtype="bfloat16").passed


def test_an_overflow_of_eager_alone_is_named() -> None:
    """As on ONNX Runtime's CPU provider, which computes float16 in float32: the gate fails for want of a yardstick."""

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nx.vectorize(overflowing())

        def forward(self, patches: Tensor, *rest: Tensor) -> Tensor:
            return self.inner(patches.float(), *rest)

    location = location_of(Wide(), overflowing(), dtype="float16")
    assert location.first is None and len(location.taps) == 19
    assert "eager float16 itself is not finite from blocks.1.mlp on, values up to 1." in location.line
    advice = "keep it in float32 (--keep-float32 blocks.1.mlp), or export in bfloat16"
    assert location.line.endswith(f"of float16's 65504: {advice}")


class Copied(nn.Module):
    """A candidate that shows right modules and outputs, and gives something else."""

    def __init__(self, shown: nn.Module) -> None:
        super().__init__()
        self.shown = shown

    def forward(self, *inputs: Tensor) -> Tensor:
        return 1.2 * self.shown(*inputs)

    def taps(self, inputs: tuple[Tensor, ...], modules: Any) -> Tapped:
        return Tapped({}, {"features": self.shown(*inputs)}, instead="another copy")


def test_a_failure_that_no_module_shows_is_said_to_be_one(classifier: nn.Module) -> None:
    location = location_of(Copied(classifier), classifier)
    assert [tap.module for tap in location.taps] == ["output features"] and location.first is None
    assert "the copy that shows its modules computes them right, and the candidate does not" in location.line
    assert "on mixed-24-seed0, in another copy" in location.line

    class Leaking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = classifier

        def forward(self, patches: Tensor, coord: Tensor, valid: Tensor) -> Tensor:
            leak = torch.where(valid.unsqueeze(-1), 0, patches).abs().amax(dim=(1, 2)).unsqueeze(1)
            return self.inner(patches, coord, valid) + 1e-3 * leak

    location = location_of(Leaking(), classifier, cases=())  # it breaks an invariance, and no measure
    assert location.case == "photos-24-0" and location.first is None
    assert "what failed is not in the values of any module" in location.line


def test_what_follows_the_last_module_is_found(classifier: nn.Module) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = classifier

        def forward(self, *inputs: Tensor) -> Tensor:
            return 1.2 * self.inner(*inputs)

    location = location_of(Scaled(), classifier)
    assert location.first is not None and location.first.module == "output features"
    assert "what follows the last module differs" in location.line


def test_the_worst_images_are_looked_at_or_all_where_it_takes_all(classifier: nn.Module) -> None:
    assert location_of(live(classifier, "float32"), changed("head")).images == 2

    class Crowded(nn.Module):
        """Right for up to three images."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = changed("blocks.1.mlp.fc2")
            self.right = nx.vectorize(classifier)

        def forward(self, *inputs: Tensor) -> Tensor:
            return (self.right if len(inputs[0]) < 4 else self.inner)(*inputs)

    location = location_of(Crowded(), classifier)
    assert location.images == 4 and location.first is not None and location.first.module == "blocks.1.mlp"


def test_the_worst_case_is_looked_at(classifier: nn.Module) -> None:
    class Tall(nn.Module):
        """Very wrong for images of a single column, a little for all others."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = nx.vectorize(classifier)

        def forward(self, patches: Tensor, coord: Tensor, valid: Tensor) -> Tensor:
            is_tall = coord[..., 1].amax() == 0 and coord[..., 0].amax() > 1
            return self.inner(patches, coord.flip(-1), valid) if is_tall else 1.001 * self.inner(patches, coord, valid)

    location = location_of(Tall(), classifier, cases=())
    assert location.case == "one-column-24-seed0"
    assert location.first is not None and location.first.module == "embeds"


def test_native_code_says_that_it_cannot_be_looked_into(
    program: Callable[[str], Program], classifier: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    native = changed("head")
    monkeypatch.setattr(native, "get_metadata", dict, raising=False)
    monkeypatch.setattr(torch._inductor, "aoti_load_package", lambda path: native)
    runner = AotRunner(Path("model.pt2"), manifest_of(program("float32"), "aot"), CPU)
    location = location_of(runner, classifier)
    assert not location.taps
    assert location.line.startswith("first deviation: not known: native code has no modules left to look at: export")


def test_an_engine_shows_its_onnx_and_says_so(onnx_runner: Callable[[str], Runner], folder: Path) -> None:
    """Loading an engine takes a GPU; what is shown in its place does not."""
    inputs = (torch.randn(2, 5, 48), torch.zeros(2, 5, 2, dtype=torch.int64), torch.ones(2, 5, dtype=torch.bool))
    for dtype, judged in (
        ("float16", "model.onnx, each result rounded to float16, on ONNX"),
        ("bfloat16", "model.onnx, each result rounded to bfloat16, on ONNX"),
    ):
        engine = object.__new__(TensorRTRunner)
        engine.folder, engine.manifest = folder / dtype, onnx_runner(dtype).manifest
        found = tensorrt.taps(engine, (inputs[0].to(getattr(torch, dtype)), *inputs[1:]), {"head": torch.Size([2, 10])})
        assert list(found.values) == ["head"] and found.instead.startswith(judged)


class Unknown(nn.Module):
    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.ones(len(inputs[0]), 10)


class Raising(Unknown):
    def taps(self, inputs: tuple[Tensor, ...], modules: Any) -> Tapped:
        raise ValueError("no room")


def test_what_cannot_be_looked_into_says_why(classifier: nn.Module) -> None:
    wrong = nx.vectorize(changed("head"))
    aside = Unknown()  # a compiled module, too, runs without its hooks
    aside.model = wrong
    for candidate, reason in (
        (wrong.forward, "a method shows nothing of its modules: give the gate a module"),
        (aside, "the candidate ran without its modules being heard: give the gate what was compiled"),
        (Unknown(), "the candidate, a Unknown, holds no timm NaFlexVit"),
        (Raising(), "looking for it raised ValueError: no room"),
    ):
        location = location_of(candidate, classifier)
        assert reason in location.line and not location.taps and location.first is None
    assert "no case could be compared" in location_of(tiny.constant(), tiny.constant()).line


def test_a_gate_that_passes_looks_only_where_asked_to(classifier: nn.Module) -> None:
    assert nx.gate(classifier, classifier, buckets=BUCKET).location is None
    report = nx.gate(classifier, classifier, buckets=BUCKET, locate=True)
    assert report.location is not None and report.location.case == "photos-24-0"
    assert report.location.line == "first deviation: none in 19 modules and outputs on photos-24-0"
    assert not any(module._forward_hooks for module in classifier.modules())


def test_reports_name_it(classifier: nn.Module) -> None:
    report = nx.gate(live(classifier, "float32"), changed("blocks.1.mlp.fc2"), buckets=BUCKET)
    assert report.location is not None
    line = report.location.line
    assert line.startswith("first deviation: blocks.1.mlp, relative L2 2.3e-01 (floor 3.0e-05), on ")
    assert line.endswith(": the graph computes something else there; check its weights")
    with pytest.raises(nx.GateFailure) as failure:
        report.raise_for_failure()
    assert str(failure.value).splitlines()[-1] == f"  {line}"
    found = line.removeprefix("first deviation: ").partition(", on ")[0]
    assert found.startswith("blocks.1.mlp") and found in as_markdown(report)
    suite = ElementTree.fromstring(as_junit(report))
    assert str(suite.findtext("system-out")).splitlines()[-1] == line
    messages = {case.get("name"): case[0].get("message", "") for case in suite.findall("testcase") if len(case)}
    assert [name for name, text in messages.items() if line in text] == [f"{report.location.case} [features]"]
    told = json.loads(json.dumps(report.to_json()))["location"]
    assert told["first"] == "blocks.1.mlp" and told["line"] == line and told["case"] == report.location.case
    assert {"module", "relative_l2", "floor", "max_abs", "reference_max_abs", "dtype_max"} < set(told["taps"][0])


def test_a_failed_baseline_carries_it_in_junit() -> None:
    model = overflowing()
    report = nx.gate(live(model, "float16"), model, buckets=BUCKET, dtype="float16")
    suite = ElementTree.fromstring(as_junit(report))
    failure = suite.find("testcase[@name='baseline [features]']/failure")
    assert failure is not None and "first deviation: blocks.1.mlp" in failure.get("message", "")


def test_several_patch_sizes_carry_the_one_that_failed(classifier: nn.Module) -> None:
    right = nx.gate(classifier, classifier, buckets=BUCKET, locate=True)
    wrong = nx.gate(live(classifier, "float32"), changed("head"), buckets=BUCKET)
    assert right.location is not None and wrong.location is not None
    both = merged({"patch8": right, "patch16": wrong}).location
    assert both == replace(wrong.location, case=f"patch16/{wrong.location.case}")
    passed = merged({"patch8": right, "patch16": right}).location
    assert passed is not None and passed.case == "patch8/photos-24-0"
    assert merged({"patch8": replace(right, location=None)}).location is None


def test_an_artifact_of_several_patch_sizes_is_looked_into(
    classifier: nn.Module, onnx_runner: Callable[[str], Runner]
) -> None:
    runner = PatchSizesRunner(onnx_runner("float32").manifest, {4: onnx_runner("float32")})
    right = nx.gate(runner, classifier, effort="quick", locate=True).location
    assert right is not None and right.first is None and right.case == "patch4/photos-24-0"
    inputs = (torch.randn(1, 3, 48), torch.zeros(1, 3, 2, dtype=torch.int64), torch.ones(1, 3, dtype=torch.bool))
    assert set(target.taps(runner[4], inputs, {"head": torch.Size([1, 10])}).values) == {"head"}


def test_transformers_modules_are_named_as_transformers_names_them() -> None:
    transformers = pytest.importorskip("transformers")
    from naflex_export.models.model_sources import randomize

    config = transformers.Siglip2VisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, patch_size=4, num_patches=25
    )
    model = transformers.Siglip2VisionModel(config).eval()
    randomize(model, 1)
    right = location_of(live(model, "float32"), model, locate=True)
    assert right.first is None and {"embeddings", "encoder.layers.0.self_attn", "head"} <= {
        t.module for t in right.taps
    }
    wrong = copy.deepcopy(model)
    with torch.no_grad():
        wrong.encoder.layers[1].mlp.fc1.weight.mul_(1.3)
    assert first_of(live(model, "float32"), wrong) == "encoder.layers.1.mlp"


def test_the_advice_on_an_overflow_passes() -> None:
    model = overflowing()
    advised = location_of(live(model, "float16"), model, dtype="float16").advice
    found = re.search(r"--keep-float32 (\S+)\)", advised)
    assert found is not None
    adapter, precision = adapter_of(copy.deepcopy(model)).vectorized(), Precision.of("float16", found[1])
    cast_model(adapter, precision)
    assert nx.gate(adapter.model, model, buckets=BUCKET, dtype="float16", keep_float32=found[1]).passed
