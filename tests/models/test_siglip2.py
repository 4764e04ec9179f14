"""transformers' SigLIP 2, from `vectorize` to artifacts and the command line."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

pytest.importorskip("transformers")

from transformers import (
    BertConfig,
    Siglip2Config,
    Siglip2ImageProcessor,
    Siglip2Model,
    Siglip2VisionConfig,
    Siglip2VisionModel,
)
from transformers.models.siglip2.modeling_siglip2 import Siglip2VisionEmbeddings

import naflex_export as nx
from naflex_export.accuracy.reference import SoundInterpolate
from naflex_export.artifact import Manifest
from naflex_export.cases import load_photos, noise_batch, photo_batches
from naflex_export.cli import export_command, gate_command
from naflex_export.grid import Grid
from naflex_export.layouts import TRANSFORMERS
from naflex_export.models import family_of
from naflex_export.models.siglip2 import VectorizedSiglip2VisionEmbeddings
from naflex_export.program import trace
from naflex_export.sources import ModelSource, randomize
from naflex_export.targets.runner import Runner

VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 4,
    "num_patches": 25,
}
TEXT = {**VISION, "num_hidden_layers": 1, "vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2}
TEXT.pop("patch_size")
TEXT.pop("num_patches")
BUCKET = nx.Bucket(30, (1, 3, 8))
MIXED = [Grid(3, 7), Grid(1, 26), Grid(5, 5), Grid(1, 1), Grid(13, 2), Grid(2, 2), Grid(4, 6)]
COLUMNS = [Grid(26, 1), Grid(3, 1), Grid(5, 1), Grid(1, 1)]
UNSEEN = {
    "one-image": ([Grid(4, 6)], 30),
    "one-image-no-padding": ([Grid(5, 6)], 30),
    "one-token": ([Grid(1, 1)] * 2, 1),
    "one-image-one-token": ([Grid(1, 1)], 1),
    "two-tokens": ([Grid(1, 2)] * 2, 2),
    "eight-images": ([Grid(height, 2) for height in range(1, 9)], 17),
}

DATA_DEPENDENT = ("aten.item", "_local_scalar", "nonzero", "unique", "_assert_async", "_assert_scalar", "upsample")

Inputs = tuple[Tensor, Tensor, Tensor]


def vision(seed: int = 1, **options: Any) -> Siglip2VisionModel:
    model = Siglip2VisionModel(Siglip2VisionConfig(**{**VISION, **options}))
    randomize(model, seed)
    return model.eval()


def two_towers() -> Siglip2Model:
    model = Siglip2Model(Siglip2Config(vision_config=VISION, text_config=TEXT))
    randomize(model, 1)
    return model.eval()


def batch_of(grids: list[Grid], tokens: int) -> Inputs:
    return TRANSFORMERS.arrange(noise_batch("siglip2", grids, tokens, 48))


class GraphCounter:
    """A backend that compiles nothing and counts what it is given."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, example: list[Tensor]) -> torch.fx.GraphModule:
        self.graphs += 1
        return graph


def assert_close(found: Tensor, expected: Tensor, share: float = 1e-5) -> None:
    assert found.shape == expected.shape and found.dtype == expected.dtype
    assert (found - expected).abs().max() <= share * expected.abs().max()


def resized_one_by_one(grid_HWC: Tensor, shapes: Tensor, tokens: int) -> Tensor:
    """Return position embeddings by `F.interpolate`, image by image, in memory where torch's CPU kernel is right."""
    rows = []
    for height, width in shapes.tolist():
        image = grid_HWC.float().unsqueeze(0).permute(0, 3, 1, 2).clone(memory_format=torch.channels_last)
        resized = nn.functional.interpolate(image, (height, width), mode="bilinear", antialias=True)
        resized = resized[0].permute(1, 2, 0).reshape(height * width, -1)
        rows.append(torch.cat([resized, resized[:1].expand(tokens - height * width, -1)]))
    return torch.stack(rows).to(grid_HWC.dtype)


@pytest.fixture(scope="module")
def model() -> Siglip2VisionModel:
    return vision()


@pytest.fixture
def folder(model: Siglip2VisionModel, tmp_path: Path) -> Path:
    """A saved model with an image processor that is not the default one."""
    model.save_pretrained(tmp_path / "siglip2")
    Siglip2ImageProcessor(image_mean=[0.1, 0.2, 0.3], patch_size=4).save_pretrained(tmp_path / "siglip2")
    return tmp_path / "siglip2"


# --- vectorize ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("tokens", [26, 40])
def test_equals_eager_in_every_token(tokens: int, attention: str) -> None:
    """Also in padding tokens, which hold the first token's position embedding."""
    model = vision(attn_implementation=attention)
    inputs = batch_of(MIXED, tokens)
    with torch.no_grad():
        expected, found = model(*inputs), nx.vectorize(model)(*inputs)
    assert_close(found.last_hidden_state, expected.last_hidden_state)
    assert_close(found.pooler_output, expected.pooler_output)


@pytest.mark.parametrize("side", [2, 5, 16])
@pytest.mark.parametrize("grids", [MIXED, COLUMNS], ids=["mixed", "columns"])
def test_position_embeddings_equal_the_loop(side: int, grids: list[Grid]) -> None:
    grid_HWC = torch.randn(side, side, 8, generator=torch.Generator().manual_seed(side))
    shapes = torch.tensor(grids)
    found = VectorizedSiglip2VisionEmbeddings.resize_positional_embeddings(grid_HWC, shapes, 30)
    assert_close(found, resized_one_by_one(grid_HWC, shapes, 30), 1e-6)


def test_eager_is_sound_where_torch_is_not(model: Siglip2VisionModel) -> None:
    """An image of one column is compared with eager under `SoundInterpolate`, which leaves all others bit for bit."""
    columns, mixed = batch_of(COLUMNS, 26), batch_of(MIXED, 26)
    with torch.no_grad():
        with SoundInterpolate():
            expected, same = model(*columns).last_hidden_state, model(*mixed).last_hidden_state
        assert torch.equal(model(*mixed).last_hidden_state, same)
        assert_close(nx.vectorize(model)(*columns).last_hidden_state, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_once_as_eager_does(dtype: torch.dtype) -> None:
    """Both resample in float32 and round at the end, so they differ by a rounding step at most, and rarely."""
    weight = torch.randn(5, 5, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    shapes = torch.tensor(MIXED)
    expected = Siglip2VisionEmbeddings.resize_positional_embeddings(weight, shapes, 30)
    found = VectorizedSiglip2VisionEmbeddings.resize_positional_embeddings(weight, shapes, 30)
    assert found.dtype == dtype
    assert (found - expected).abs().max() <= torch.finfo(dtype).eps * expected.abs().max()
    assert (found != expected).float().mean() < 0.01


def test_autocast_leaves_position_embeddings_alone(model: Siglip2VisionModel) -> None:
    """They are what eager makes of them without autocast; from transformers 5.24 on, eager rounds under it."""
    _, _, shapes = batch_of(MIXED, 26)
    table = model.embeddings.position_embedding.weight.detach().view(5, 5, -1)
    expected = model.embeddings.resize_positional_embeddings(table, shapes, 26)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = nx.vectorize(model).embeddings.resize_positional_embeddings(table, shapes, 26)
    assert_close(found, expected, 1e-6)


def test_gradients_equal_eager(model: Siglip2VisionModel) -> None:
    """Of the position embedding: each padding token adds to its first token's, in eager too."""
    inputs = batch_of(MIXED, 30)
    weight = model.embeddings.position_embedding.weight
    found, expected = (
        torch.autograd.grad(m(*inputs).last_hidden_state.square().sum(), weight)[0]
        for m in (nx.vectorize(model), model)
    )
    assert_close(found, expected)


def test_shares_every_tensor_and_leaves_the_original(model: Siglip2VisionModel) -> None:
    fast = nx.vectorize(model)
    assert type(fast) is Siglip2VisionModel
    assert type(fast.embeddings) is VectorizedSiglip2VisionEmbeddings
    assert type(model.embeddings) is Siglip2VisionEmbeddings
    own, shared = model.state_dict(keep_vars=True), fast.state_dict(keep_vars=True)
    assert list(own) == list(shared) and all(own[name] is shared[name] for name in own)
    assert nx.vectorize(fast) is fast
    with pytest.raises(nx.RequestError, match="vectorized"):
        nx.gate(fast, reference=fast)


def test_shapes_may_be_of_another_integer_dtype(model: Siglip2VisionModel) -> None:
    values, mask, shapes = batch_of(MIXED, 26)
    fast = nx.vectorize(model)
    with torch.no_grad():
        expected = fast(values, mask, shapes).pooler_output
        assert torch.equal(fast(values, mask.long(), shapes.int()).pooler_output, expected)


def test_both_towers_of_a_full_model() -> None:
    model, inputs = two_towers(), batch_of(MIXED, 26)
    fast = nx.vectorize(model)
    named = dict(zip(TRANSFORMERS.names, inputs, strict=True))
    text = torch.tensor([[3, 4, 5, 2], [6, 7, 2, 2]])
    own, shared = model.state_dict(keep_vars=True), fast.state_dict(keep_vars=True)
    assert list(own) == list(shared) and all(own[name] is shared[name] for name in own)
    whole = torch.compile(fast, fullgraph=True, backend="eager")
    with torch.no_grad():
        expected = model.get_image_features(**named).pooler_output
        assert_close(fast.get_image_features(**named).pooler_output, expected)
        assert_close(whole(input_ids=text, **named).logits_per_image, model(input_ids=text, **named).logits_per_image)


def test_unknown_embeddings_and_models_are_refused(model: Siglip2VisionModel) -> None:
    class Other(Siglip2VisionEmbeddings):
        pass

    changed = copy.deepcopy(model)
    changed.embeddings.__class__ = Other
    with pytest.raises(nx.UnsupportedModelError, match=r"a .*Other, not transformers' Siglip2VisionEmbeddings"):
        nx.vectorize(changed)
    with pytest.raises(nx.UnsupportedModelError, match=r"Linear is no model .* Siglip2VisionModel or Siglip2Model"):
        nx.vectorize(nn.Linear(2, 2))


def test_the_package_does_not_import_transformers() -> None:
    """It is an extra: neither importing the package nor converting a timm model may need it."""
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "import timm, naflex_export as nx\n"
        "model = timm.create_model('naflexvit_base_patch16_gap', embed_dim=32, depth=1, num_heads=2)\n"
        "nx.vectorize(model)\n"
        "try: nx.vectorize(model.head)\n"
        "except nx.UnsupportedModelError: print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "refused\n", done.stderr


# --- torch.compile and the traced program ------------------------------------------------------------------------


def test_one_graph_for_any_shape_and_one_for_a_single_image(model: Siglip2VisionModel) -> None:
    counter = GraphCounter()
    fast = nx.compile(model, [BUCKET], backend=counter)
    with torch.no_grad():
        fast.warmup()
        for grids, tokens in [(MIXED, 26), (MIXED[:3], 40), *UNSEEN.values()]:
            inputs = batch_of(grids, tokens)
            expected, found = model(*inputs), fast(*inputs)
            assert_close(found.pooler_output, expected.pooler_output)
            assert_close(found.last_hidden_state, expected.last_hidden_state)
    assert counter.graphs == 2


def test_inductor_takes_inputs_by_name(model: Siglip2VisionModel) -> None:
    fast, inputs = nx.compile(model), batch_of(MIXED, 26)
    named = dict(zip(TRANSFORMERS.names, inputs, strict=True))
    with torch.no_grad():
        expected = model(*inputs).pooler_output
        assert_close(fast(**named).pooler_output, expected)
        assert_close(fast(named).pooler_output, expected)


def test_compiles_the_image_tower_of_a_full_model() -> None:
    model, inputs = two_towers(), batch_of(MIXED, 26)
    fast = nx.compile(model, [BUCKET], backend="eager").warmup()
    assert list(fast.state_dict()) == list(model.state_dict())
    with torch.no_grad():
        assert_close(fast(*inputs).pooler_output, model.get_image_features(*inputs).pooler_output)


def test_the_original_needs_a_graph_for_each_batch_size(model: Siglip2VisionModel) -> None:
    """The graph count above can fail: transformers' own loop is unrolled, or breaks the graph."""
    counter = GraphCounter()
    unrolled = torch.compile(model, dynamic=True, backend=counter)
    with torch.no_grad():
        for size in (2, 3, 4, 5):
            unrolled(*batch_of(MIXED[:size], 26))
    assert counter.graphs >= 4


def test_the_program_is_open_and_waits_for_nothing(model: Siglip2VisionModel) -> None:
    program = trace(model, [BUCKET], outputs=("features", "tokens"))
    assert [str(spec) for spec in program.inputs] == [
        "pixel_values: float32 [batch, tokens, 48]",
        "pixel_attention_mask: int32 [batch, tokens]",
        "spatial_shapes: int64 [batch, 2]",
    ]
    assert [str(spec) for spec in program.outputs] == [
        "features: float32 [batch, 32]",
        "tokens: float32 [batch, tokens, 32]",
    ]
    targets = [str(node.target) for node in program.exported.graph.nodes]
    assert not [name for name in targets if any(word in name for word in DATA_DEPENDENT)]


def test_a_model_without_a_head_has_tokens_only() -> None:
    model = vision(vision_use_head=False)
    assert [spec.name for spec in trace(model, [BUCKET], outputs=("tokens",)).outputs] == ["tokens"]
    with pytest.raises(nx.RequestError, match="no pooling head"):
        trace(model, [BUCKET])


# --- artifacts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target", ["onnx", *(pytest.param(name, marks=pytest.mark.full) for name in ("compile", "aot"))]
)
def test_artifact_equals_eager_at_shapes_never_used_for_export(
    model: Siglip2VisionModel, tmp_path: Path, target: str
) -> None:
    artifact = nx.export(model, target, tmp_path / "a", [BUCKET], outputs=("features", "tokens"))
    assert artifact.report.passed and artifact.report.not_run == ""
    assert {result.case.split("-seed")[0] for result in artifact.report.results} >= {
        "photos-30-0",
        "one-column-30",
        "padding-30",
    }
    run = nx.load(tmp_path / "a")
    for grids, tokens in UNSEEN.values():
        inputs = batch_of(grids, tokens)
        with torch.no_grad(), SoundInterpolate():
            expected = model(*inputs)
        found = run(*inputs)
        assert isinstance(found, dict)
        assert_close(found["features"], expected.pooler_output)
        assert_close(found["tokens"], expected.last_hidden_state)
    assert nx.gate(run, reference=model, seed=5).passed


def test_onnx_has_open_dimensions_and_no_resize(tmp_path: Path) -> None:
    nx.export(two_towers(), "onnx", tmp_path / "a", [BUCKET], outputs=("features", "tokens"))
    graph = onnx.load(tmp_path / "a" / "model.onnx").graph
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in [*graph.input, *graph.output]
    }
    assert shapes == {
        "pixel_values": ["batch", "tokens", 48],
        "pixel_attention_mask": ["batch", "tokens"],
        "spatial_shapes": ["batch", 2],
        "features": ["batch", 32],
        "tokens": ["batch", "tokens", 32],
    }
    assert not {node.op_type for node in graph.node} & {"Resize", "Loop", "If", "Scan", "NonZero", "GridSample"}
    assert not [tensor.name for tensor in graph.initializer if "text" in tensor.name]


@pytest.mark.full
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("target", ["onnx", "compile"])
def test_half_precision_artifacts_pass(model: Siglip2VisionModel, tmp_path: Path, target: str, dtype: str) -> None:
    artifact = nx.export(model, target, tmp_path / "a", [BUCKET], dtype)
    assert [spec.dtype for spec in artifact.manifest.inputs] == [dtype, "int32", "int64"]
    assert artifact.report.passed


@pytest.mark.full
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_tensorrt_builds_an_engine(model: Siglip2VisionModel, tmp_path: Path, dtype: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    artifact = nx.export(model, "trt", tmp_path / "a", [BUCKET], dtype, outputs=("features", "tokens"))
    assert artifact.manifest.files["model.plan"]["bytes"] > 100_000
    assert artifact.report.passed


def swapped(values: Tensor, mask: Tensor, shapes: Tensor) -> Inputs:
    return values, mask, shapes.flip(1)


def unmasked(values: Tensor, mask: Tensor, shapes: Tensor) -> Inputs:
    return values, torch.ones_like(mask), shapes


def shifted(values: Tensor, mask: Tensor, shapes: Tensor) -> Inputs:
    return values.roll(1, dims=1), mask, shapes


@pytest.mark.parametrize("fault", [swapped, unmasked, shifted])
def test_the_gate_rejects_wrong_inputs(model: Siglip2VisionModel, fault: Callable[..., Inputs]) -> None:
    fast = nx.vectorize(model)
    assert nx.gate(fast, reference=model, buckets=[BUCKET]).passed
    assert not nx.gate(lambda *inputs: fast(*fault(*inputs)), reference=model, buckets=[BUCKET]).passed


@pytest.mark.parametrize("change", [{"antialias": False}, {"mode": "bicubic"}], ids=["no-antialias", "bicubic"])
def test_the_gate_rejects_another_resize(
    model: Siglip2VisionModel, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    how = nx.models.siglip2.Resampling(**{"mode": "bilinear", **change})
    monkeypatch.setattr("naflex_export.models.siglip2.BILINEAR", how)
    report = nx.gate(nx.vectorize(model), reference=model, buckets=[BUCKET])
    with pytest.raises(nx.GateFailure, match="photos-30-0"):
        report.raise_for_failure()


def test_export_publishes_nothing_that_fails(
    model: Siglip2VisionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = nx.models.siglip2.Resampling("bilinear", antialias=False)
    monkeypatch.setattr("naflex_export.models.siglip2.BILINEAR", how)
    with pytest.raises(nx.GateFailure, match="first deviation: embeddings, relative L2"):
        nx.export(model, "onnx", tmp_path / "a", [BUCKET])
    assert not (tmp_path / "a").exists()


# --- a Runner's checks -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checked_path(model: Siglip2VisionModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checked") / "a"
    nx.export(model, "onnx", path, [nx.Bucket(12, (1, 2, 2))])
    return path


@pytest.fixture(scope="module")
def checked(checked_path: Path) -> Runner:
    return nx.load(checked_path, device="cpu")


def with_gap(values: Tensor, mask: Tensor, shapes: Tensor) -> Inputs:
    return values, mask.flip(1), shapes


def with_twos(values: Tensor, mask: Tensor, shapes: Tensor) -> Inputs:
    return values, mask * 2, shapes


def with_shape(*shape: int) -> Callable[..., Inputs]:
    return lambda values, mask, shapes: (values, mask, torch.tensor([shapes[0].tolist(), shape]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_gap, "pixel_attention_mask of image 1 has gaps"),
        (with_twos, "pixel_attention_mask holds values other than 0 and 1"),
        (with_shape(2, 3), "spatial_shapes of image 1 is 2x3 = 6 patches, .* marks 4: expected the same number"),
        (with_shape(0, 3), r"spatial_shapes of image 1 is \[0, 3\]: expected a height and a width of at least 1"),
        (with_shape(-2, -2), r"spatial_shapes of image 1 is \[-2, -2\]"),
        (with_shape(4, 4), "image 1 has a grid of 4x4 = 16 patches, more than the 12 tokens"),
        (with_shape(2**62 + 1, 4), "image 1 has a grid of .*, more than the 12 tokens"),
        (lambda v, m, s: (v, m.long(), s), r"pixel_attention_mask is int64: .* \.to\(torch.int32\)"),
        (lambda v, m, s: (v, m.bool(), s), "pixel_attention_mask is bool: expected int32"),
        (lambda v, m, s: (v.half(), m, s), "pixel_values is float16: expected float32"),
        (lambda v, m, s: (v, m, s.float()), "spatial_shapes is float32: expected int64"),
        (lambda v, m, s: (v[0], m, s), "pixel_values has shape .*: expected 3 axes"),
        (lambda v, m, s: (v, m[:, 1:], s), "pixel_attention_mask has shape .*: expected tokens=12"),
        (lambda v, m, s: (v, m, s[:1]), "spatial_shapes has shape .*: expected batch=2"),
        (lambda v, m, s: (v, m, torch.cat([s, s], dim=1)), "spatial_shapes has shape .*: expected 2,"),
        (lambda v, m, s: (v, m), "got 2 inputs: expected 3, pixel_values, pixel_attention_mask, spatial_shapes"),
        (lambda v, m, s: batch_of([Grid(3, 5)], 15), "15 tokens are more than any bucket takes"),
        (lambda v, m, s: batch_of([Grid(3, 4)] * 3, 12), "a batch of 3 with 12 tokens fits no bucket"),
    ],
)
def test_wrong_inputs_are_refused(checked: Runner, change: Callable[..., Any], message: str) -> None:
    right = batch_of([Grid(3, 4), Grid(2, 2)], 12)
    checked(*right)
    with pytest.raises(nx.InputError, match=message):
        checked(*change(*right))


def test_artifacts_load_without_transformers(checked_path: Path) -> None:
    """What serves an artifact needs neither the model's library nor its code."""
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "import torch, naflex_export as nx\n"
        f"run = nx.load({str(checked_path)!r}, device='cpu')\n"
        "ones = torch.ones(1, 4, dtype=torch.int32)\n"
        "print(list(run(torch.ones(1, 4, 48), ones, torch.tensor([[2, 2]])).shape))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "[1, 32]\n", done.stderr


# --- where models come from --------------------------------------------------------------------------------------


def test_loads_a_saved_folder(model: Siglip2VisionModel, folder: Path, tmp_path: Path) -> None:
    loaded = ModelSource(f"hf:{folder}").load()
    assert type(loaded) is Siglip2VisionModel and not loaded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    both = two_towers()
    both.half().save_pretrained(tmp_path / "both")
    loaded = ModelSource(f"hf:{tmp_path / 'both'}").load()
    assert type(loaded) is Siglip2Model
    assert {tensor.dtype for tensor in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.logit_scale, both.logit_scale.float())


def test_random_weights_need_a_config_only(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    one, same, other = (ModelSource(f"hf:{folder}", "random", seed).load().state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(nx.RequestError, match=r"weights of 'hf:.*' cannot be had as safetensors"):
        ModelSource(f"hf:{folder}").load()


def test_weights_of_a_file(folder: Path, tmp_path: Path) -> None:
    state = vision(seed=7).state_dict()
    save_file(state, tmp_path / "other.safetensors")
    loaded = ModelSource(f"hf:{folder}", str(tmp_path / "other.safetensors")).load().state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_a_checkpoint_that_lacks_a_weight_is_refused(folder: Path) -> None:
    """The library itself would leave the weight random and only warn."""
    state = load_file(folder / "model.safetensors")
    del state["head.probe"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(nx.RequestError, match=r"do not fit its config.json: 1 keys missing \(head.probe\)"):
        ModelSource(f"hf:{folder}").load()


def test_pickled_weights_are_refused(model: Siglip2VisionModel, folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(nx.RequestError, match="cannot be had as safetensors"):
        ModelSource(f"hf:{folder}").load()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    with pytest.raises(nx.RequestError, match=r"ends in '.pth': expected one of .safetensors"):
        ModelSource(f"hf:{folder}", str(tmp_path / "weights.pth")).check()


def test_what_is_no_model_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(nx.RequestError, match="is no transformers model: expected a folder with a config"):
        ModelSource(f"hf:{tmp_path}", "random").load()
    with pytest.raises(nx.RequestError, match="does not exist: expected a folder, or a hub id"):
        ModelSource(f"hf:{tmp_path / 'nowhere'}", "random").load()
    (folder / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(nx.RequestError, match=r"cannot be built: .*JSON"):
        ModelSource(f"hf:{folder}", "random").load()
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    config.save_pretrained(folder)
    with pytest.raises(nx.UnsupportedModelError, match="BertModel is no model this release knows"):
        ModelSource(f"hf:{folder}").load()


def test_a_missing_library_names_the_remedy(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    result = CliRunner().invoke(export_command, [f"hf:{folder}", "--target", "onnx", "--weights", "random"])
    assert result.exit_code == 3
    with pytest.raises(nx.BackendError, match=r"pip install naflex_export\[hf\]"):
        ModelSource(f"hf:{folder}", "random").check()


def test_a_broken_library_names_its_reason(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Such as a transformers that refuses the huggingface_hub it finds."""
    broken = ModuleType("transformers")
    broken.__spec__ = ModuleSpec("transformers", None)
    monkeypatch.setitem(sys.modules, "transformers", broken)
    with pytest.raises(nx.BackendError, match=r"transformers does not import .*AutoConfig"):
        ModelSource(f"hf:{folder}", "random").load()


def test_the_command_line_exports_and_judges_a_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    arguments = ["hf:siglip2", "--target", "onnx", "--weights", "random", "--bucket", "36:1,3,8", "--tokens"]
    result = CliRunner().invoke(export_command, arguments)
    assert result.exit_code == 0, result.output
    artifact = folder.parent / "artifacts" / "siglip2-onnx"
    manifest = Manifest.read(artifact)
    assert manifest.model["source"] == {"model": f"hf:{folder.resolve()}", "weights": "random", "seed": 0}
    assert manifest.preprocessing["image_mean"] == [0.1, 0.2, 0.3]
    assert {"transformers", "torch"} <= set(manifest.versions)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(gate_command, [str(artifact)])
    assert result.exit_code == 0, result.output


# --- photos ------------------------------------------------------------------------------------------------------


def test_photos_are_prepared_by_the_models_own_processor(folder: Path) -> None:
    loaded = ModelSource(f"hf:{folder}").load()
    family = family_of(loaded)
    photos = load_photos()
    (batch,) = photo_batches(photos, family.transform(loaded, 30), BUCKET)
    processor = Siglip2ImageProcessor.from_pretrained(folder)
    expected = processor(images=list(photos.images.values()), max_num_patches=30, return_tensors="pt")
    for name, tensor in zip(TRANSFORMERS.names, TRANSFORMERS.arrange(batch), strict=True):
        assert torch.equal(tensor, expected[name]) and tensor.dtype == expected[name].dtype
    default = next(iter(photo_batches(photos, family.transform(vision(), 30), BUCKET)))
    assert not torch.allclose(default.patches, batch.patches)


def test_a_damaged_processor_is_not_replaced(folder: Path) -> None:
    loaded = ModelSource(f"hf:{folder}").load()
    (folder / "preprocessor_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(nx.RequestError, match=r"the image processor of .* cannot be had"):
        family_of(loaded).preprocessing(loaded)
    (folder / "preprocessor_config.json").unlink()
    settings = family_of(loaded).preprocessing(loaded)
    assert settings["settings_from"] == "defaults" and settings["image_mean"] == [0.5, 0.5, 0.5]
    json.dumps(settings)
