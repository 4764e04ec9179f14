"""transformers' SigLIP 2, vectorized, compiled and traced."""

from __future__ import annotations

import copy
import functools
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")

from siglip2_tiny import BUCKET, COLUMNS, MIXED, UNSEEN, assert_close, batch_of, two_towers, vision
from transformers import Siglip2Model, Siglip2VisionModel
from transformers.models.siglip2.modeling_siglip2 import Siglip2VisionEmbeddings

import naflex_export as nx
from naflex_export.accuracy.reference import SoundInterpolate
from naflex_export.graph.trace import trace
from naflex_export.grid import Grid
from naflex_export.models import adapter_of
from naflex_export.models.siglip2 import VectorizedSiglip2VisionEmbeddings
from naflex_export.serving.input_formats import TRANSFORMERS

DATA_DEPENDENT = ("aten.item", "_local_scalar", "nonzero", "unique", "_assert_async", "_assert_scalar", "upsample")


class GraphCounter:
    """A backend that compiles nothing and counts what it is given."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, example: list[Tensor]) -> torch.fx.GraphModule:
        self.graphs += 1
        return graph


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


def test_a_grid_without_cells_harms_no_other_image_of_a_graph(model: Siglip2VisionModel) -> None:
    """A graph looks at no grid. Dividing by a width of zero would end the process on some backends, raise on others."""
    values, mask, shapes = batch_of(MIXED, 26)
    graph = trace(adapter_of(model), [BUCKET]).exported.module()
    others = [0, 1, *range(3, len(MIXED))]
    for wrong in ([2, 0], [0, 3], [0, 0]):
        with torch.no_grad():
            (expected,) = graph(values, mask, shapes)
            shapes = shapes.clone()
            shapes[2] = torch.tensor(wrong)
            (found,) = graph(values, mask, shapes)
            assert_close(found[others], expected[others])
            with pytest.raises(nx.InputError, match="expected a height and a width of at least 1"):
                nx.vectorize(model)(values, mask, shapes)
        shapes[2] = torch.tensor(MIXED[2])


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


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.full)])
def test_a_compiled_model_takes_inputs_by_name(model: Siglip2VisionModel, backend: str) -> None:
    """Whatever the backend is, which never sees the names."""
    fast, inputs = nx.compile(model, backend=backend), batch_of(MIXED, 26)
    named = dict(zip(TRANSFORMERS.names, inputs, strict=True))
    with torch.no_grad():
        expected = model(*inputs).pooler_output
        assert_close(fast(**named).pooler_output, expected)
        assert_close(fast(named).pooler_output, expected)


@pytest.mark.full
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
    program = trace(adapter_of(model), [BUCKET], outputs=("features", "tokens"))
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
    assert [spec.name for spec in trace(adapter_of(model), [BUCKET], outputs=("tokens",)).outputs] == ["tokens"]
    with pytest.raises(nx.RequestError, match="no pooling head"):
        trace(adapter_of(model), [BUCKET])


@pytest.mark.parametrize("made", [nx.vectorize, functools.partial(nx.compile, backend="eager")], ids=["v", "c"])
def test_shapes_that_eager_refuses_are_refused_on_a_cpu(made: Callable[..., Any], model: Siglip2VisionModel) -> None:
    fast = made(model)
    pixels, mask, shapes = batch_of([Grid(2, 3), Grid(1, 3)], 6)
    for shape, message in (([0, 3], "is \\[0, 3\\]: expected a height"), ([4, 3], "4x3 = 12 patches, more than the 6")):
        wrong = torch.tensor([shapes[0].tolist(), shape])
        with pytest.raises((RuntimeError, ValueError)):
            model(pixels, mask, wrong)
        with pytest.raises(nx.InputError, match=message):
            fast(pixels, mask, wrong)


def test_arguments_of_a_text_tower_are_refused() -> None:
    fast, inputs = nx.compile(two_towers(), [BUCKET], backend="eager"), batch_of(MIXED, 26)
    with pytest.raises(nx.InputError, match="'input_ids' is nothing that the model reads: expected pixel_values"):
        fast(*inputs, input_ids=torch.ones(7, 3, dtype=torch.int64))


def test_a_hook_and_a_subclass_are_part_of_the_call(model: Siglip2VisionModel) -> None:
    class Doubled(Siglip2VisionModel):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            given = super().forward(*args, **kwargs)
            given.pooler_output = 2 * given.pooler_output
            return given

    twin, inputs = vision(), batch_of(MIXED, 26)
    twin.__class__ = Doubled
    (features,) = trace(adapter_of(twin), [BUCKET]).exported.module()(*inputs)
    with torch.no_grad():
        assert_close(features, 2 * model(*inputs).pooler_output)
    twin.register_forward_hook(lambda module, args, given: given.pooler_output)
    with pytest.raises(nx.BuildError, match="returns a Tensor: expected a BaseModelOutputWithPooling"):
        trace(adapter_of(twin), [BUCKET])


def test_image_features_of_a_subclass_are_not_lost() -> None:
    class Normalized(Siglip2Model):
        def get_image_features(self, *args: Any, **kwargs: Any) -> Any:
            return super().get_image_features(*args, **kwargs)

    model = two_towers()
    model.__class__ = Normalized
    with pytest.raises(nx.UnsupportedModelError, match=r"get_image_features of .*Normalized is not transformers' own"):
        trace(adapter_of(model), [BUCKET])


def test_wrong_shapes_are_input_errors_in_a_graph_of_the_users_own_too(model: Siglip2VisionModel) -> None:
    """Where nobody looks at them ahead of the call: the operator reads them on a CPU, and must not end in torch's."""
    fast = nx.vectorize(model)
    compiled = torch.compile(fast, backend="eager")
    inputs = torch.randn(2, 12, fast.config.num_channels * fast.config.patch_size**2), torch.ones(2, 12).int()
    with torch.no_grad():
        for wrong in ([-3, -4], [-1, 4], [2**40, 1]):
            with pytest.raises(nx.InputError, match=r"image 1 has a grid of .*: expected a height and"):
                compiled(*inputs, torch.tensor([[3, 4], wrong]))
        with pytest.raises(nx.InputError, match=r"spatial_shapes of image 1 is \[2.5, 4.0\]: expected whole numbers"):
            fast(*inputs, torch.tensor([[3, 4], [2.5, 4]]))
        expected = fast(*inputs, torch.tensor([[3, 4], [2, 4]])).pooler_output
        assert torch.equal(fast(*inputs, torch.tensor([[3.0, 4.0], [2.0, 4.0]])).pooler_output, expected)
