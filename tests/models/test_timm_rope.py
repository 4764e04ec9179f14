"""RoPE of timm's NaFlexVit, vectorized, against eager."""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers.pos_embed_sincos import RotaryEmbedding, RotaryEmbeddingCat, RotaryEmbeddingDinoV3
from timm.models.naflexvit import NaFlexVit
from timm_tiny import (
    BATCH,
    GRIDS,
    OTHER,
    assert_same_gradients,
    call,
    cases,
    export_onnx,
    naflexvit,
    run_onnx,
    share,
    tokens,
)
from torch import Tensor, nn

import naflex_export as nx
from naflex_export.batch import Batch, noise_batch
from naflex_export.grid import Grid
from naflex_export.models import adapter_of, timm_known
from naflex_export.models.timm_rope import rope_positions

Options = dict[str, Any]

AXIAL: dict[str, Options] = {
    "axial": {"rope_type": "axial"},
    "axial-xy-offset": {"rope_type": "axial", "rope_grid_indexing": "xy", "rope_grid_offset": 1.0},
    "axial-ref5x7": {"rope_type": "axial", "rope_ref_feat_shape": (5, 7)},
    "axial-ref5x7-xy": {"rope_type": "axial", "rope_ref_feat_shape": (5, 7), "rope_grid_indexing": "xy"},
    "axial-half": {"rope_type": "axial", "rope_rotate_half": True, "pos_embed": "factorized"},
}
MIXED: dict[str, Options] = {
    "mixed": {"rope_type": "mixed", "rope_temperature": 10.0, "depth": 2},  # angles of its own in each block
    "mixed-xy": {"rope_type": "mixed", "rope_grid_indexing": "xy", "class_token": True, "reg_tokens": 2},
}
DINO: dict[str, Options] = {
    "dinov3": {"rope_type": "dinov3", "rope_rotate_half": True, "rope_temperature": 100.0, "pos_embed": "none"},
    "dinov3-xy-offset": {"rope_type": "dinov3", "rope_grid_indexing": "xy", "rope_grid_offset": 0.3, "reg_tokens": 1},
}
MROPE: dict[str, Options] = {"mrope": {"rope_type": "mrope", "rope_mrope_section": (2, 3, 3)}}
ROPES = {**AXIAL, **MIXED, **DINO, **MROPE}
EACH = {name: ROPES[name] for name in ("axial-ref5x7-xy", "mixed-xy", "dinov3", "mrope")}
AUGMENTED: Options = {"rope_shift_coords": 0.7, "rope_jitter_coords": 1.5, "rope_rescale_coords": 2.0}
AUGMENTATIONS: dict[str, Options] = {
    "shift": {"rope_shift_coords": 0.7},
    "jitter": {"rope_jitter_coords": 1.5},
    "rescale": {"rope_rescale_coords": 2.0},
    "shift-rescale": {"rope_shift_coords": 0.7, "rope_rescale_coords": 2.0},
    "all": AUGMENTED,
}


def embeds(model: NaFlexVit, batch: Batch = BATCH, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the RoPE embeddings [blocks or 1, B, heads or 1, N, 2 * D] that the model's blocks are given."""
    count, length = batch.patch_valid.shape
    made = model._generate_rope_naflex(
        torch.zeros(count, model.num_prefix_tokens + length, model.embed_dim, dtype=dtype), batch.patch_coord
    )
    return (made.unsqueeze(0) if isinstance(made, Tensor) else torch.stack(list(made))).detach()


@cases(ROPES)
def test_embeddings_equal_eager_padding_included(options: Options) -> None:
    eager = naflexvit(**options)
    found, expected = embeds(nx.vectorize(eager)), embeds(eager)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-6
    padding = expected.movedim(3, 2)[:, ~BATCH.patch_valid]
    assert padding.numel() and not padding.any()


@pytest.mark.parametrize("indexing", ["ij", "xy"])
@pytest.mark.parametrize("offset", [0.0, 0.25])
@pytest.mark.parametrize("normalize", ["separate", "min", "max"])
def test_dinov3_grids_equal_eager(normalize: str, offset: float, indexing: str) -> None:
    eager = naflexvit(**DINO["dinov3"])
    eager.rope = RotaryEmbeddingDinoV3(16, normalize_coords=normalize, grid_offset=offset, grid_indexing=indexing)
    assert (embeds(nx.vectorize(eager)) - embeds(eager)).abs().max() <= 1e-6


@pytest.mark.parametrize("reference", [None, (6, 4)], ids=["", "ref6x4"])
@pytest.mark.parametrize("indexing", ["ij", "xy"])
@pytest.mark.parametrize("normalize", ["separate", "min", "max"])
@pytest.mark.parametrize("kind", ["index", "pixel", "centered"])
def test_grids_that_the_module_knows_but_no_configuration_asks_for(
    kind: str, normalize: str, indexing: str, reference: tuple[int, int] | None
) -> None:
    """A module put in a model's place by hand: every grid of `RotaryEmbeddingCat`.

    `linspace` counts from both ends, and with the 112 cycles of pixel frequencies a step of float32 shows.
    """
    eager = naflexvit(**AXIAL["axial"])
    eager.rope = RotaryEmbeddingCat(
        16,
        in_pixels=kind == "pixel",
        grid_type=kind,
        normalize_coords=normalize,
        grid_indexing=indexing,
        ref_feat_shape=reference,
    )
    bound = 2e-4 if kind == "pixel" else 1e-6
    assert (embeds(nx.vectorize(eager)) - embeds(eager)).abs().max() <= bound


def test_a_swapped_axis_would_be_seen() -> None:
    """The comparisons above can fail."""
    one, other = naflexvit(**AXIAL["axial"]), naflexvit(**AXIAL["axial"], rope_grid_indexing="xy")
    assert (embeds(nx.vectorize(one)) - embeds(other)).abs().max() > 0.1


@cases(ROPES)
def test_outputs_equal_eager(options: Options) -> None:
    eager = naflexvit(**options)
    fast = nx.vectorize(eager)
    bare = copy.deepcopy(eager)
    bare.rope = None
    with torch.no_grad():
        expected = call(eager, BATCH)
        assert share(call(fast, BATCH), expected) <= 1e-5
        assert share(tokens(fast, BATCH), tokens(eager, BATCH)) <= 1e-5
        assert share(call(bare, BATCH), expected) > 1e-2  # the angles matter


@cases(ROPES)
def test_gradients_equal_eager(options: Options) -> None:
    eager = naflexvit(qkv_bias=False, **options).train()
    assert_same_gradients(eager, nx.vectorize(copy.deepcopy(eager)), 1e-5)


@pytest.mark.parametrize("training", [pytest.param(False, marks=pytest.mark.full), True], ids=["eval", "train"])
@cases(ROPES, short=EACH)
def test_compiles_as_one_graph(options: Options, training: bool) -> None:
    eager = naflexvit(**options, **AUGMENTED).train(training)
    compiled = nx.compile(eager, backend="eager")
    for batch in (BATCH, OTHER):
        torch.manual_seed(3)
        found = call(compiled, batch)
        torch.manual_seed(3)
        assert share(found, call(nx.vectorize(eager), batch)) <= 1e-6


@cases(ROPES, short=["mixed-xy", "dinov3"])
def test_exports_to_onnx_and_runs_at_another_shape(options: Options, tmp_path: Path) -> None:
    eager = naflexvit(**{"depth": 1, **options})
    path = export_onnx(eager, tmp_path)
    for batch in (BATCH, OTHER):
        with torch.no_grad():
            assert share(run_onnx(path, batch)[0], call(eager, batch)) <= 1e-5


@cases(AUGMENTATIONS)
@pytest.mark.parametrize("rope", EACH)
def test_the_same_seed_augments_as_eager_does(rope: str, options: Options) -> None:
    """On a CPU. Images of one grid share a transform, which BATCH has two of."""
    eager = naflexvit(**EACH[rope], **options).train()
    results = []
    for model in (eager, nx.vectorize(eager)):
        torch.manual_seed(3)
        results.append(embeds(model))
    assert (results[1] - results[0]).abs().max() <= 1e-5  # a step of float32 in a position, times its frequency
    assert (results[0] - embeds(eager)).abs().max() > 0.1  # another draw is another transform


@pytest.mark.parametrize("rope", EACH)
def test_augmentation_is_off_in_eval_mode(rope: str) -> None:
    plain, augmented = naflexvit(**EACH[rope]), naflexvit(**EACH[rope], **AUGMENTED)
    augmented.rope.load_state_dict(plain.rope.state_dict())
    assert torch.equal(embeds(nx.vectorize(augmented)), embeds(nx.vectorize(plain)))


def test_one_grid_one_transform() -> None:
    rope = nx.vectorize(naflexvit(**MIXED["mixed"], **AUGMENTED).train()).rope
    grids = [Grid(3, 4), Grid(4, 3), Grid(3, 4), Grid(2, 6), Grid(4, 3)]
    position = rope_positions(rope, noise_batch("same", grids, tokens=12, token_width=1).patch_coord)
    corner = position[:, 0]  # both coordinates 0: where it lies now is the transform's own
    same = [[one == other for other in grids] for one in grids]
    assert (corner.unsqueeze(0) == corner.unsqueeze(1)).all(-1).tolist() == same


def test_augmentation_is_distributed_as_timms() -> None:
    """4,000 grids at once: shifts uniform within their bound, scales log-uniform, and no two of them correlated."""
    rope = naflexvit(**MIXED["mixed"], rope_shift_coords=0.5).train().rope
    coord = torch.tensor([[0, 0], [1, 1]]).repeat(4000, 1, 1)
    coord[:, 1, 0], coord[:, 1, 1] = torch.arange(1, 4001), torch.arange(4000, 0, -1)
    torch.manual_seed(4)
    shift = rope_positions(rope, coord)[:, 0]
    uniform(shift[:, 0], 0.5)
    uniform(shift[:, 1], 0.5)

    rope.shift_coords, rope.jitter_coords, rope.rescale_coords = None, 1.5, None
    jitter = (rope_positions(rope, coord)[:, 1] / coord[:, 1]).log()
    uniform(jitter[:, 0], math.log(1.5))
    uniform(jitter[:, 1], math.log(1.5))

    rope.jitter_coords, rope.rescale_coords = None, 2.0
    rescale = (rope_positions(rope, coord)[:, 1] / coord[:, 1]).log()
    uniform(rescale[:, 0], math.log(2.0))
    assert (rescale[:, 0] - rescale[:, 1]).abs().max() <= 1e-6
    for pair in (shift, jitter):
        assert abs(float(torch.corrcoef(pair.T)[0, 1])) < 0.06


def uniform(value: Tensor, bound: float) -> None:
    """Check that 4,000 values are uniform on +-bound: their range, mean and spread, each within four deviations."""
    value = value / bound
    assert value.abs().max() <= 1 + 1e-5
    assert value.abs().max() > 0.99
    assert abs(float(value.mean())) < 4 / math.sqrt(3 * 4000)
    assert abs(float(value.var()) - 1 / 3) < 4 * math.sqrt(4 / 45 / 4000)


@cases(EACH)
def test_patch_dropout_follows_the_original(options: Options) -> None:
    eager = naflexvit(patch_drop_rate=0.4, **options).train()
    results = []
    for model in (eager, nx.vectorize(eager)):
        torch.manual_seed(3)
        results.append(call(model, BATCH))
    assert share(results[1], results[0]) <= 1e-5
    assert share(call(eager, BATCH), results[0]) > 1e-2  # dropout is on


@cases(EACH)
def test_intermediates_equal_eager(options: Options) -> None:
    eager = naflexvit(**options)
    named = {"patches": BATCH.patches, "patch_coord": BATCH.patch_coord, "patch_valid": BATCH.patch_valid}
    results = []
    for model in (eager, nx.vectorize(eager)):
        with torch.no_grad():
            results.append(model.forward_intermediates(named, output_fmt="NLC", intermediates_only=True))
    assert len(results[0]) == 2
    for found, expected in zip(results[1], results[0], strict=True):
        assert share(found[BATCH.patch_valid], expected[BATCH.patch_valid]) <= 1e-5


@cases(EACH)
def test_checkpointing_equals_eager(options: Options) -> None:
    """A checkpoint runs a block again in the backward pass: its angles must still be there."""
    eager = naflexvit(qkv_bias=False, **options).train()
    eager.set_grad_checkpointing()
    assert_same_gradients(eager, nx.vectorize(copy.deepcopy(eager)), 1e-5)


@cases(EACH)
def test_whole_images_keep_to_timms_own_code(options: Options) -> None:
    eager = naflexvit(**options)
    images = torch.randn(2, 3, 20, 36, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert torch.equal(nx.vectorize(eager)(images), eager(images))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@cases(EACH)
def test_other_dtypes_round_once_as_eager_does(options: Options, dtype: torch.dtype) -> None:
    eager = naflexvit(**options).to(dtype)
    found, expected = embeds(nx.vectorize(eager), dtype=dtype), embeds(eager, dtype=dtype)
    assert found.dtype == expected.dtype == dtype
    assert (found - expected).abs().max() <= max(torch.finfo(dtype).eps, 1e-6)


@cases(ROPES)
def test_is_a_naflexvit_that_shares_everything(options: Options) -> None:
    eager = naflexvit(**options)
    classes = [type(module) for module in eager.modules()]
    fast = nx.vectorize(eager)
    assert isinstance(fast, NaFlexVit) and adapter_of(fast).is_vectorized and not adapter_of(eager).is_vectorized
    assert nx.vectorize(fast) is fast
    assert [type(module) for module in eager.modules()] == classes
    assert list(fast.state_dict()) == list(eager.state_dict())
    assert all(one is other for one, other in zip(eager.parameters(), fast.parameters(), strict=True))


@cases(EACH)
def test_copies_and_pickles_stay_vectorized(options: Options) -> None:
    fast = nx.vectorize(naflexvit(**options))
    for twin in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert type(twin) is type(fast)
        assert torch.equal(call(twin, BATCH), call(fast, BATCH))


def test_no_host_sync_in_the_angles() -> None:
    """Nothing depends on the data: one graph with fake tensors, which hold none, serves every batch."""
    fast = nx.vectorize(naflexvit(**MIXED["mixed"], **AUGMENTED).train())
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        made = list(fast._generate_rope_naflex(torch.empty(len(GRIDS), 32, 32), torch.empty(len(GRIDS), 32, 2).long()))
    assert [list(block.shape) for block in made] == [[len(GRIDS), 2, 32, 32]] * 2


def test_an_unknown_rope_is_refused() -> None:
    model = naflexvit(**AXIAL["axial"])
    model.rope = RotaryEmbedding(16)
    with pytest.raises(nx.UnsupportedModelError, match=r"rope is a RotaryEmbedding: expected .* RotaryEmbeddingCat"):
        nx.vectorize(model)


def test_a_subclass_of_a_rope_is_refused() -> None:
    class Other(RotaryEmbeddingCat):
        pass

    model = naflexvit(**AXIAL["axial"])
    model.rope.__class__ = Other
    with pytest.raises(nx.UnsupportedModelError, match=r"rope is a .*Other"):
        nx.vectorize(model)


@cases(EACH)
def test_an_unknown_option_of_a_rope_is_refused_by_name(options: Options) -> None:
    model = naflexvit(**options)
    model.rope.spin_coords = None
    name = type(model.rope).__name__
    with pytest.raises(nx.UnsupportedModelError, match=rf"`spin_coords` is not known to naflex_export \d.* {name} had"):
        nx.vectorize(model)


@cases(EACH)
def test_known_names_are_those_of_the_installed_timm(options: Options) -> None:
    rope = naflexvit(**options).rope
    assert timm_known._held_by(rope) == timm_known.ROPES[type(rope)]


def test_a_subclass_of_the_model_is_refused_with_rope() -> None:
    class Other(NaFlexVit):
        pass

    model: nn.Module = naflexvit(**AXIAL["axial"])
    model.__class__ = Other
    with pytest.raises(nx.UnsupportedModelError, match="Other is a subclass of NaFlexVit with RoPE"):
        nx.vectorize(model)
    plain: nn.Module = naflexvit()
    plain.__class__ = Other
    assert type(nx.vectorize(plain)) is Other
