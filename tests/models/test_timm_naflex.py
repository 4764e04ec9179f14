"""Every position embedding, pooling and mask of timm's NaFlexVit, vectorized, against eager."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import position_embedding
from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg
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
from torch import Tensor

import naflex_export as nx
from naflex_export.batch import noise_batch
from naflex_export.graph.trace import trace
from naflex_export.grid import Grid
from naflex_export.models import adapter_of, timm_known
from naflex_export.models.timm_naflex import resampling_of

Options = dict[str, Any]


def learned(mode: str, antialias: bool, corners: bool, **more: Any) -> Options:
    return {
        "pos_embed_interp_mode": mode,
        "pos_embed_antialias": antialias,
        "pos_embed_align_corners": corners,
        **more,
    }


def named(mode: str, antialias: bool, corners: bool) -> str:
    return f"learned-{mode}-{'aa' if antialias else 'noaa'}{'-ac' * corners}"


MODES = ("bilinear", "bicubic")
INTERPOLATED: dict[str, Options] = {
    named(*kind): learned(*kind) for kind in itertools.product(MODES, (True, False), (False, True))
}
ASPECT: dict[str, Options] = {
    "learned-par": {"pos_embed_ar_preserving": True},
    "learned-par-g3x7": {"pos_embed_ar_preserving": True, "pos_embed_grid_size": (3, 7)},
    "learned-bilinear-noaa-ac-par": learned("bilinear", False, True, pos_embed_ar_preserving=True),
}
LARGE: dict[str, Options] = {
    "learned-bicubic-aa-g40x36": learned("bicubic", True, False, pos_embed_grid_size=(40, 36)),
    "learned-bicubic-noaa-g40x36": learned("bicubic", False, False, pos_embed_grid_size=(40, 36)),
    "learned-bicubic-noaa-ac-g40x36": learned("bicubic", False, True, pos_embed_grid_size=(40, 36)),
    "radio-ac": learned("bilinear", False, True, pos_embed_grid_size=(128, 128), pos_embed_ar_preserving=True),
    "radio": learned("bilinear", False, False, pos_embed_grid_size=(128, 128), pos_embed_ar_preserving=True),
}
FACTORIZED: dict[str, Options] = {
    "factorized": {"pos_embed": "factorized"},
    "factorized-par": {"pos_embed": "factorized", "pos_embed_ar_preserving": True},
    "factorized-g128x40": {"pos_embed": "factorized", "pos_embed_grid_size": (128, 40)},
}
SAMPLED: dict[str, Options] = {
    f"{name}-sampled": {**options, "pos_embed_use_grid_sample": True}
    for name, options in {
        **{named(mode, True, corners): learned(mode, True, corners) for mode in MODES for corners in (False, True)},
        **ASPECT,
        "learned-bicubic-g40x36": learned("bicubic", True, False, pos_embed_grid_size=(40, 36)),
        "radio": LARGE["radio"],
        **FACTORIZED,
    }.items()
}
POSITIONS = {**INTERPOLATED, **ASPECT, **LARGE, **FACTORIZED, **SAMPLED}
ALL: dict[str, Options] = {
    **POSITIONS,
    "none": {"pos_embed": "none"},
    "prefix": {"class_token": True, "reg_tokens": 3},
    "key-only-mask": {"use_key_only_attn_mask": True, "class_token": True},
    "normed": {"embed_norm_layer": "layernorm", "pre_norm": True},
}
POOLS: dict[str, Options] = {
    **{
        f"pool-{pool or 'none'}{'-prefix' * prefix}": {
            "global_pool": pool,
            "pool_include_prefix": prefix,
            "class_token": True,
            "reg_tokens": 1,
        }
        for pool in ("avg", "avgmax", "max", "token", "map", "")
        for prefix in (False, True)
    },
    "pool-max-bare": {"global_pool": "max"},
}
COMPILED = {
    "pool-avgmax-prefix": "learned-bicubic-aa",
    "pool-max": "learned-par-g3x7",
    "pool-token": "learned-bicubic-noaa-g40x36",
    "pool-map-prefix": "radio-ac",
    "pool-none": "factorized-par",
    "pool-max-bare": "none",
}
"""Poolings, and what each is compiled with: neither reads the other, so that one graph shows both."""
SHORT = ("learned-bicubic-aa-ac-sampled", "factorized-sampled", "prefix", "key-only-mask", "normed")
"""One of each further kind, where all of them would take minutes."""


def both(pairs: dict[str, str]) -> dict[str, Options]:
    """Return the options of each pooling with those of what stands beside it."""
    return {f"{pool}-{other}": {**POOLS[pool], **ALL[other]} for pool, other in pairs.items()}


def side(options: Options) -> int:
    return max(options.get("pos_embed_grid_size", (5, 6)))


def eager_bound(options: Options) -> float:
    """Return how far eager's own float32 lies from the exact resize, as a share of the embedding's scale.

    torch computes the position that a target reads in float32, and near sample S a float32 step is S * 1.2e-7: the
    longer the source, the further off. `grid_sample` rounds a few times more on the way, through [-1, 1].
    """
    step = 3e-7 if options.get("pos_embed_use_grid_sample") else 1.5e-7
    return max(1e-6, step * side(options))


def model_bound(options: Options) -> float:
    """Return the bound of outputs and gradients: 1e-5 of scale, unless eager's position embedding is further off."""
    return max(1e-5, eager_bound(options))


def positions(model: NaFlexVit) -> Tensor:
    """Return what the embeds add to the patches of `BATCH`, [B, N, C]."""
    bare = copy.deepcopy(model.embeds)
    torch.nn.init.zeros_(bare.proj.weight)
    torch.nn.init.zeros_(bare.proj.bias)
    with torch.no_grad():
        return bare(BATCH.patches, BATCH.patch_coord)[0][:, model.num_prefix_tokens :]


def exact_positions(model: NaFlexVit, options: Options) -> Tensor:
    """Return what timm means to add, in float64 and from `F.interpolate`, one image at a time; zeros for padding."""
    embeds = model.embeds
    if embeds.pos_embed_type == "factorized":  # both tables are resized linearly, so their sum may be
        grid_HWC = embeds.pos_embed_y[0].unsqueeze(1) + embeds.pos_embed_x[0].unsqueeze(0)
    else:
        grid_HWC = embeds.pos_embed[0]
    rows = []
    for grid in GRIDS:
        as_it_is = tuple(grid) == tuple(grid_HWC.shape[:2]) and options.get("pos_embed", "learned") == "learned"
        square = embeds.pos_embed_ar_preserving and not (as_it_is and not embeds.pos_embed_use_grid_sample)
        rows.append(position_embedding(grid_HWC.detach().double(), [grid], 32, resampling_of(embeds), square))
    return torch.cat(rows)


@cases(POSITIONS)
def test_positions_are_exact(options: Options) -> None:
    """To 1e-6 of scale, for any source: our own rounding does not grow with it."""
    eager = naflexvit(**options)
    found, expected = positions(nx.vectorize(eager))[BATCH.patch_valid], exact_positions(eager, options)
    assert share(found, expected[BATCH.patch_valid]) <= 1e-6


@cases(POSITIONS)
def test_positions_equal_eager_padding_included(options: Options) -> None:
    eager = naflexvit(**options)
    found, expected = positions(nx.vectorize(eager)), positions(eager)
    assert share(found, expected) <= eager_bound(options)
    sampled = bool(options.get("pos_embed_use_grid_sample"))
    assert bool(expected[~BATCH.patch_valid].any()) == sampled  # grid_sample reads the first cell for padding
    assert share(positions(naflexvit(**{**options, "pos_embed_grid_size": (4, 4)})), expected) > 1e-2


@cases(ASPECT)
def test_aspect_is_kept_for_every_grid(options: Options) -> None:
    """Of which many share one side with the source, and a single one both."""
    eager = naflexvit(**options)
    every = [Grid(height, width) for height in range(1, 9) for width in range(1, 9)]
    batch = noise_batch("every", every, tokens=64, token_width=48)
    with torch.no_grad():
        found, expected = (model.embeds(batch.patches, batch.patch_coord)[0] for model in (nx.vectorize(eager), eager))
    assert share(found, expected) <= eager_bound(options)


@cases({**ALL, **POOLS})
def test_outputs_equal_eager(options: Options) -> None:
    eager = naflexvit(**options)
    fast = nx.vectorize(eager)
    with torch.no_grad():
        found, expected = call(fast, BATCH), call(eager, BATCH)
        if expected.ndim == 3:  # no pooling: padding holds what attention made of nothing
            keep = torch.nn.functional.pad(BATCH.patch_valid, (eager.num_prefix_tokens, 0), value=True)
            found, expected = found[keep], expected[keep]
        assert share(found, expected) <= model_bound(options)
        assert share(tokens(fast, BATCH), tokens(eager, BATCH)) <= model_bound(options)


@pytest.mark.parametrize("normed", [True, False], ids=["fc-norm", "final-norm"])
@cases(POOLS)
def test_the_graphs_own_pooling_equals_timms(options: Options, normed: bool) -> None:
    """What is traced pools by expressions of its own, followed by all that timm has after a pooling."""
    eager = naflexvit(fc_norm=normed, **options)
    encoder = adapter_of(eager).vectorized().encoder(("features",))
    with torch.no_grad():
        (found,) = call(encoder, BATCH)
        expected = call(eager, BATCH)
        if expected.ndim == 3:
            keep = torch.nn.functional.pad(BATCH.patch_valid, (eager.num_prefix_tokens, 0), value=True)
            found, expected = found[keep], expected[keep]
    assert share(found, expected) <= 1e-5


@cases({"learned": {}, "none": {"pos_embed": "none"}, "factorized": {"pos_embed": "factorized"}})
@pytest.mark.parametrize("rope", ["none", "axial", "mixed", "dinov3"])
def test_coordinates_are_ignored_by_models_that_have_no_use_for_them(options: Options, rope: str) -> None:
    eager = naflexvit(rope_type=rope, **options)
    turned = dataclasses.replace(BATCH, patch_coord=BATCH.patch_coord.flip(-1))
    with torch.no_grad():
        moved = share(call(eager, turned), call(eager, BATCH))
    assert adapter_of(eager).ignored_inputs == (() if moved > 1e-4 else ("patch_coord",))
    assert (moved > 1e-4) == bool(rope != "none" or options != {"pos_embed": "none"})


@cases(ALL)
def test_gradients_equal_eager(options: Options) -> None:
    eager = naflexvit(qkv_bias=False, **options)  # a bias on the keys cancels in the softmax: its gradient is noise
    eager.train()
    assert_same_gradients(eager, nx.vectorize(copy.deepcopy(eager)), model_bound(options))


@cases({**ALL, **POOLS, **both(COMPILED)}, short=(*both(COMPILED), *SHORT))
def test_compiles_as_one_graph(options: Options) -> None:
    eager = naflexvit(**{"depth": 1, **options})
    compiled = nx.compile(eager, backend="eager")
    with torch.no_grad():
        for batch in (BATCH, OTHER):
            found, expected = call(compiled, batch), call(nx.vectorize(eager), batch)
            assert share(found, expected) <= 1e-6


EXPORTED = {
    "pool-avgmax": "learned-bicubic-noaa-g40x36",
    "pool-avgmax-prefix": "learned-bicubic-aa-g40x36",
    "pool-max": "radio-ac",
    "pool-max-prefix": "learned-par-g3x7",
    "pool-token": "factorized-par",
    "pool-map-prefix": "learned-bicubic-aa-ac-sampled",
    "pool-none": "factorized-sampled",
    "pool-max-bare": "normed",
    "pool-avg": "key-only-mask",
}
"""Poolings, and what each is exported with: neither reads the other, so that one graph shows both."""


@cases(
    {name: {"depth": 1, **options} for name, options in both(EXPORTED).items()},
    short=[f"{pool}-{EXPORTED[pool]}" for pool in ("pool-max", "pool-map-prefix")],
)
def test_exports_to_onnx_and_runs_at_another_shape(options: Options, tmp_path: Path) -> None:
    eager = naflexvit(**options)
    path = export_onnx(eager, tmp_path, outputs=("features", "tokens"))
    for batch in (BATCH, OTHER):
        features, encoded = run_onnx(path, batch)
        with torch.no_grad():
            expected = call(eager, batch)
        keep = torch.nn.functional.pad(batch.patch_valid, (eager.num_prefix_tokens, 0), value=True)
        if expected.ndim == 3:
            features, expected = features[keep], expected[keep]
        assert share(features, expected) <= model_bound(options)
        own = encoded[:, eager.num_prefix_tokens :][batch.patch_valid]
        assert share(own, tokens(eager, batch)) <= model_bound(options)


def test_a_large_grid_without_antialias_has_no_weight_for_every_cell() -> None:
    """C-RADIO's 16,384 cells: no tensor of the graph that has tokens is wider than the encoder makes its own."""
    program = trace(adapter_of(naflexvit(**LARGE["radio"])), [nx.Bucket(tokens=32, batch=(1, 4, 8))])
    made = [node.meta["val"] for node in program.exported.graph.nodes if node.op == "call_function"]
    shapes = [value.shape for value in made if isinstance(value, Tensor) and value.ndim >= 3]
    widths = [shape[-1] for shape in shapes if isinstance(shape[-1], int)]
    assert 96 in widths  # queries, keys and values
    assert max(widths) <= 96


@cases({**ALL, **POOLS})
def test_vectorized_is_told_from_the_original(options: Options) -> None:
    eager = naflexvit(**options)
    classes = [type(module) for module in eager.modules()]
    fast = nx.vectorize(eager)
    assert adapter_of(fast).is_vectorized and not adapter_of(eager).is_vectorized
    assert nx.vectorize(fast) is fast
    assert type(fast) is NaFlexVit
    assert [type(module) for module in eager.modules()] == classes
    assert list(fast.state_dict()) == list(eager.state_dict())
    assert all(one is other for one, other in zip(eager.parameters(), fast.parameters(), strict=True))


def test_copies_and_pickles_stay_vectorized() -> None:
    fast = nx.vectorize(naflexvit(pos_embed="factorized"))
    for twin in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert adapter_of(twin).is_vectorized
        assert torch.equal(call(twin, BATCH), call(fast, BATCH))


@cases(
    {name: ALL[name] for name in ("learned-bicubic-aa", "learned-bicubic-aa-sampled", "factorized-sampled", "prefix")}
)
def test_patch_dropout_follows_the_original(options: Options) -> None:
    eager = naflexvit(patch_drop_rate=0.4, **options).train()
    results = []
    for model in (eager, nx.vectorize(eager)):
        torch.manual_seed(3)
        results.append(call(model, BATCH))
    assert share(results[1], results[0]) <= model_bound(options)
    assert share(call(eager, BATCH), results[0]) > 1e-2  # dropout is on


@cases({name: ALL[name] for name in ("learned-par", "factorized", "prefix", "key-only-mask")})
def test_intermediates_equal_eager(options: Options) -> None:
    eager = naflexvit(**options)
    named = {"patches": BATCH.patches, "patch_coord": BATCH.patch_coord, "patch_valid": BATCH.patch_valid}
    results = []
    for model in (eager, nx.vectorize(eager)):
        with torch.no_grad():
            final, layers = model.forward_intermediates(named, output_fmt="NLC", norm=True)
        results.append([final[:, model.num_prefix_tokens :], *layers])
    assert len(results[0]) == 3
    for found, expected in zip(results[1], results[0], strict=True):
        assert share(found[BATCH.patch_valid], expected[BATCH.patch_valid]) <= 1e-5


@pytest.mark.parametrize("drop", [0.0, 0.4], ids=["", "patch-dropout"])
@cases({name: ALL[name] for name in ("learned-par", "factorized-sampled", "prefix", "key-only-mask")})
def test_intermediates_in_a_dict_equal_eager(options: Options, drop: float) -> None:
    """In training, with the mask of the tokens that dropout keeps; the refusals are timm's."""
    eager = naflexvit(patch_drop_rate=drop, **options).train()
    named = {"patches": BATCH.patches, "patch_coord": BATCH.patch_coord, "patch_valid": BATCH.patch_valid}
    results = []
    for model in (eager, nx.vectorize(eager)):
        torch.manual_seed(3)
        with torch.no_grad():
            results.append(model.forward_intermediates(named, output_fmt="NLC", output_dict=True, norm=True))
        with pytest.raises(ValueError, match="NCHW"):
            model.forward_intermediates(named, output_fmt="NCHW", output_dict=True)
    expected, found = results
    assert found.keys() == expected.keys()
    valid = expected["patch_valid"]
    assert torch.equal(found["patch_valid"], valid)
    assert (valid.shape[1] < BATCH.patch_valid.shape[1]) == bool(drop)
    assert len(expected["image_intermediates"]) == 2
    for layer, other in zip(found["image_intermediates"], expected["image_intermediates"], strict=True):
        assert share(layer[valid], other[valid]) <= 1e-5
    assert share(expected["image_intermediates"][0][valid], expected["image_intermediates"][1][valid]) > 1e-2
    if drop:
        with pytest.raises(ValueError, match="patch dropout"):
            nx.vectorize(eager).forward_intermediates(named, output_fmt="NLC")


@pytest.mark.parametrize("pool", ["avg", "token", "map"])
def test_a_key_only_mask_pools_as_the_full_one_does(pool: str) -> None:
    """With patch dropout too: both masks are made of the tokens that are kept."""
    options = {"global_pool": pool, "class_token": pool == "token", "patch_drop_rate": 0.4}
    full, compact = (naflexvit(use_key_only_attn_mask=on, **options) for on in (False, True))
    unmasked = dataclasses.replace(BATCH, patch_valid=torch.ones_like(BATCH.patch_valid))
    for training in (False, True):
        results = []
        for model, batch in ((full, BATCH), (compact, BATCH), (compact, unmasked)):
            torch.manual_seed(3)
            with torch.no_grad():
                results.append(call(nx.vectorize(model.train(training)), batch))
        assert share(results[1], results[0]) <= 1e-5
        assert share(results[2], results[0]) > 1e-2


@cases({name: ALL[name] for name in ("learned-bicubic-aa", "learned-bicubic-aa-sampled", "factorized", "learned-par")})
def test_more_valid_tokens_than_the_coordinates_have_equals_eager(options: Options) -> None:
    """Coordinates left at zero, as timm's own tests have them: an image of 1 x 1 with many tokens."""
    eager = naflexvit(**options)
    batch = dataclasses.replace(BATCH, patch_coord=torch.zeros_like(BATCH.patch_coord))
    with torch.no_grad():
        expected = call(eager, batch)
        assert share(call(nx.vectorize(eager), batch), expected) <= 1e-5
        assert share(call(eager, BATCH), expected) > 1e-2


@pytest.mark.parametrize("projection", ["conv", "linear", "linear-channels-first"])
@cases({name: ALL[name] for name in ("learned-bicubic-noaa-ac", "factorized-par", "learned-bicubic-aa-sampled")})
def test_whole_images_keep_to_timms_own_code(options: Options, projection: str) -> None:
    kind, _, channels_first = projection.partition("-")
    eager = naflexvit(embed_proj_type=kind, patchify_channels_last=not channels_first, **options)
    fast = nx.vectorize(eager)
    images = torch.randn(2, 3, 20, 36, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert torch.equal(fast(images), eager(images))


def test_patches_of_another_size_keep_to_timms_own_code() -> None:
    eager = naflexvit(enable_patch_interpolator=True)
    patches = torch.randn(*BATCH.patches.shape[:2], 6, 5, 3, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = eager(patches, BATCH.patch_coord, BATCH.patch_valid)
        assert share(nx.vectorize(eager)(patches, BATCH.patch_coord, BATCH.patch_valid), expected) <= 1e-5


def test_a_convolution_takes_no_patches_in_timm_either() -> None:
    eager = naflexvit(embed_proj_type="conv")
    for model in (eager, nx.vectorize(eager)):
        with pytest.raises(AssertionError, match="Convolutional input must be 4D"):
            call(model, BATCH)
    with pytest.raises(nx.UnsupportedModelError, match="embed_proj_type='conv' takes whole images, not patches"):
        trace(adapter_of(eager), [nx.Bucket()])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@cases({name: POSITIONS[name] for name in ("factorized", "factorized-sampled", "radio", "learned-bicubic-aa-sampled")})
def test_other_dtypes_are_one_rounding_from_eager(options: Options, dtype: torch.dtype) -> None:
    """The factorized tables are rounded before they are added in eager, after in ours: two steps."""
    eager = naflexvit(**options)
    narrow = copy.deepcopy(eager).to(dtype)
    with torch.no_grad():
        found, _ = nx.vectorize(narrow).embeds(BATCH.patches.to(dtype), BATCH.patch_coord)
        expected, _ = narrow.embeds(BATCH.patches.to(dtype), BATCH.patch_coord)
    assert found.dtype == dtype
    step = max(torch.finfo(dtype).eps, eager_bound(options))
    assert share(found.double(), expected.double()) <= 2 * step


def test_a_single_token_and_a_large_batch_of_it() -> None:
    eager = naflexvit(**LARGE["radio-ac"])
    batch = noise_batch("single", [Grid(1, 1)] * 3, tokens=1, token_width=48)
    with torch.no_grad():
        assert share(call(nx.vectorize(eager), batch), call(eager, batch)) <= 1e-5


def test_an_unknown_option_of_the_embeds_is_refused_by_name() -> None:
    model = naflexvit()
    model.embeds.pos_embed_foo = False
    with pytest.raises(
        nx.UnsupportedModelError, match=r"`pos_embed_foo` is not known to naflex_export \d.*NaFlexEmbeds"
    ):
        nx.vectorize(model)


def test_an_unknown_parameter_of_the_embeds_is_refused_by_name() -> None:
    model = naflexvit()
    model.embeds.pos_embed_z = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(nx.UnsupportedModelError, match="`pos_embed_z` is not known"):
        nx.vectorize(model)


def test_an_unknown_field_of_the_configuration_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    newer = dataclasses.make_dataclass("Newer", [("pos_embed_foo", bool, False)], bases=(NaFlexVitCfg,))
    monkeypatch.setattr(timm_known, "NaFlexVitCfg", newer)
    with pytest.raises(nx.UnsupportedModelError, match=r"`pos_embed_foo` is not known to naflex_export .*NaFlexVitCfg"):
        nx.vectorize(naflexvit())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("pos_embed_type", "sincos", "pos_embed='sincos' is not supported: expected 'learned', 'factorized' or 'none'"),
        ("pos_embed_interp_mode", "nearest", "pos_embed_interp_mode='nearest' is not supported: expected 'bilinear'"),
    ],
)
def test_an_unknown_value_is_refused_by_name(name: str, value: str, message: str) -> None:
    model = naflexvit()
    setattr(model.embeds, name, value)
    with pytest.raises(nx.UnsupportedModelError, match=message):
        nx.vectorize(model)


def test_factorized_tables_take_any_interpolation_mode() -> None:
    """As timm's do: their resize is linear whatever the mode says."""
    eager = naflexvit(pos_embed="factorized", pos_embed_interp_mode="nearest")
    assert share(positions(nx.vectorize(eager)), positions(eager)) <= 1e-6


def test_known_names_are_those_of_the_installed_timm() -> None:
    """A name of ours that timm does not have would let a new option of that name through."""
    assert {field.name for field in dataclasses.fields(NaFlexVitCfg)} == timm_known.CFG
    assert timm_known._held_by(naflexvit().embeds) == timm_known.EMBEDS
