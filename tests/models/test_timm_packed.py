"""NaFlexVit on packed tokens: the padded model's outputs and gradients, whatever its pooling and positions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor, nn

import naflex_export as nx
from naflex_export import models
from naflex_export.accuracy.comparison import Comparison
from naflex_export.batch import Batch, noise_batch
from naflex_export.graph.trace import trace
from naflex_export.grid import Grid
from naflex_export.models import adapter_of, packed_of, packing
from naflex_export.models.adapter import ModelAdapter
from naflex_export.models.packing import Packing, attend
from naflex_export.precision import FLOAT32, Precision
from naflex_export.serving.input_formats import TIMM
from naflex_export.serving.packed_format import PACKED
from naflex_export.serving.packing import padded_rows

GRIDS = (Grid(3, 5), Grid(1, 1), Grid(4, 2), Grid(1, 9), Grid(8, 8))
BATCH = noise_batch("timm packed", GRIDS, 70, 48)
GAP = "naflexvit_base_patch16_gap"
MRGB: dict[str, Any] = {"reg_tokens": 2, "class_token": True}

CROPPED = {"pos_embed_grid_size": (128, 128), "pos_embed_antialias": False, "pos_embed_interp_mode": "bilinear"}

MODELS: dict[str, dict[str, Any]] = {
    "attention pooling": {},
    "average, register tokens": {"name": GAP},
    "average with prefix": {"name": GAP, **MRGB, "pool_include_prefix": True},
    "maximum": {"name": GAP, "global_pool": "max"},
    "both": {"name": GAP, "global_pool": "avgmax"},
    "class token": {"name": GAP, **MRGB, "global_pool": "token"},
    "no pooling": {"name": GAP, "global_pool": ""},
    "factorized": {"pos_embed": "factorized"},
    "factorized, aspect": {"pos_embed": "factorized", "pos_embed_ar_preserving": True},
    "aspect": {"pos_embed_ar_preserving": True},
    "aspect, not square": {"pos_embed_ar_preserving": True, "pos_embed_grid_size": (4, 2)},
    "grid_sample": {"pos_embed_use_grid_sample": True},
    "few cells": {"pos_embed_grid_size": (40, 40), "pos_embed_antialias": False, "pos_embed_interp_mode": "bilinear"},
    "C-RADIO": {"name": GAP, **MRGB, "global_pool": "token", "pos_embed_ar_preserving": True, **CROPPED},
    "axial RoPE": {"rope_type": "axial", "rope_ref_feat_shape": (4, 4)},
    "mixed RoPE": {"name": GAP, "rope_type": "mixed"},
    "DINOv3 RoPE": {"name": GAP, **MRGB, "rope_type": "dinov3", "rope_rotate_half": True, "pos_embed": "none"},
    "MRoPE": {"rope_type": "mrope", "rope_mrope_section": (0, 4, 4)},
    "grouped queries": {"rope_type": "axial", "qkv_fused": False, "num_kv_heads": 1},
    "EVA": {"attn_type": "eva", "swiglu_mlp": True},
    "gated, norms inside": {"name": GAP, "attn_gated": True, "scale_attn_inner_norm": True},
    "normalized queries": {"qk_norm": True, "pre_norm": True, "init_values": 0.1},
}


def made(name: str) -> nn.Module:
    return tiny.naflexvit(**MODELS[name])


def expected_of(model: Any, batch: Batch) -> Tensor:
    """Return the padded model's features, or the rows of its valid tokens where it pools nothing."""
    features = model(*TIMM.arrange(batch))
    if features.ndim == 2:
        return features
    prefix = model.num_prefix_tokens
    return torch.cat([features[:, :prefix].flatten(0, 1), features[:, prefix:][batch.patch_valid]])


@pytest.mark.parametrize("name", MODELS)
def test_features_and_gradients_are_those_of_the_padded_model(name: str) -> None:
    model = made(name)
    packed = nx.vectorize(model, packed=True)
    wanted, given = expected_of(model, BATCH), packed(nx.pack(TIMM.arrange(BATCH)))
    torch.testing.assert_close(given, wanted, atol=1e-5 * float(wanted.detach().abs().max()), rtol=0)
    weight = torch.randn(given.shape, generator=torch.Generator().manual_seed(0))
    parameters = dict(model.named_parameters())
    theirs = torch.autograd.grad((wanted * weight).sum(), list(parameters.values()), allow_unused=True)
    ours = torch.autograd.grad((given * weight).sum(), list(packed.parameters()), allow_unused=True)
    scale = max(float(gradient.abs().max()) for gradient in theirs if gradient is not None)
    for parameter, one, other in zip(parameters, ours, theirs, strict=True):
        assert (one is None) == (other is None), parameter
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, atol=1e-5 * scale, rtol=0, msg=parameter)


@pytest.mark.parametrize("name", ["attention pooling", "class token", "mixed RoPE"])
def test_a_packed_model_takes_padded_batches_as_before(name: str) -> None:
    model = made(name)
    with torch.no_grad():
        packed = nx.vectorize(model, packed=True)
        torch.testing.assert_close(packed(*TIMM.arrange(BATCH)), model(*TIMM.arrange(BATCH)), atol=1e-5, rtol=1e-5)


FEW = ("average with prefix", "mixed RoPE")


@pytest.mark.parametrize(
    "name", [name if name in FEW else pytest.param(name, marks=pytest.mark.full) for name in MODELS]
)
def test_the_graph_gives_what_the_padded_model_gives(name: str) -> None:
    """The gathered form, at sizes that were never traced: 1 image, 1 token, 5 images."""
    model = made(name)
    program = trace(packed_of(adapter_of(model)), [nx.Bucket(64, (1, 2, 6))], outputs=("features", "tokens"))
    graph = program.exported.module()
    for grids in (GRIDS, GRIDS[1:2], GRIDS[:1], (Grid(1, 1), Grid(1, 1))):
        batch = noise_batch("graph", grids, 64, 48)
        with torch.no_grad():
            features, tokens = graph(*PACKED.arrange(batch))
            wanted = model.forward_features(*TIMM.arrange(batch))["patches"]
            torch.testing.assert_close(features, expected_of(model, batch), atol=2e-5, rtol=1e-5)
        rows = padded_rows(tokens, batch.patch_valid, model.num_prefix_tokens)
        prefix = torch.ones(len(grids), model.num_prefix_tokens, dtype=torch.bool)
        valid = torch.cat([prefix, batch.patch_valid], dim=1)
        torch.testing.assert_close(rows[valid], wanted[valid], atol=1e-5, rtol=1e-5)


@pytest.mark.full
def test_compiled_forward_and_backward_are_those_of_the_padded_model() -> None:
    model = made("average, register tokens")
    fast = nx.compile(model, packed=True)
    for grids in (GRIDS, GRIDS[:2]):
        batch = noise_batch("compiled", grids, 70, 48)
        wanted, given = expected_of(model, batch), fast(nx.pack(TIMM.arrange(batch)))
        torch.testing.assert_close(given, wanted, atol=1e-5, rtol=1e-5)
        parameters = list(model.parameters())
        theirs = torch.autograd.grad(wanted.square().sum(), parameters)
        for one, other in zip(torch.autograd.grad(given.square().sum(), parameters), theirs, strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prefix", [0, 3])
def test_every_form_of_attention_gives_the_same(prefix: int) -> None:
    _, coord, grids, offsets, positions = PACKED.arrange(BATCH)
    layout = Packing.of(coord, grids, offsets, positions, prefix)
    rows = torch.randn(3, len(coord) + prefix * len(grids), 16, generator=torch.Generator().manual_seed(0)).unbind()
    by_image = attend(rows, 2, layout)
    torch.testing.assert_close(packing._gathered(rows, 2, layout, None, 0.0), by_image, atol=2e-6, rtol=0)
    torch.testing.assert_close(layout.rows(layout.padded(rows[0])), rows[0], atol=0, rtol=0)


def test_one_image_says_nothing_of_another() -> None:
    packed = nx.vectorize(made("class token"), packed=True)
    tensors = nx.pack(TIMM.arrange(BATCH))
    patches = tensors["patches"].requires_grad_()
    features = packed(tensors)
    for image in range(len(GRIDS)):
        (gradient,) = torch.autograd.grad(features[image].sum(), patches, retain_graph=True)
        first, last = tensors["offsets"][image : image + 2].tolist()
        touched = gradient.abs().sum(dim=1) > 0
        assert bool(touched[first:last].all()) and int(touched.sum()) == last - first


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_drop_rate": 0.5}, "drops patches in training"),
        ({"drop_path_rate": 0.5}, "drops whole paths in training, with 0.5"),
        ({"rope_type": "axial", "rope_shift_coords": 0.1}, "moves coordinates at random in training"),
    ],
    ids=["patches", "paths", "coordinates"],
)
def test_refuses_to_train_what_is_drawn_image_by_image(options: dict[str, Any], message: str) -> None:
    packed = nx.vectorize(tiny.naflexvit(**options), packed=True)
    tensors = nx.pack(TIMM.arrange(BATCH))
    packed(tensors)
    with pytest.raises(nx.UnsupportedModelError, match=message):
        packed.train()(tensors)


def test_refuses_layers_in_8_bits(tmp_path: Path) -> None:
    with pytest.raises(nx.RequestError, match="'fp8' is for padded .* packed inputs were asked .* without packed=True"):
        nx.export(tiny.naflexvit(), "onnx", tmp_path / "a", dtype="fp8", packed=True)


def test_refuses_attention_that_it_does_not_know() -> None:
    model = tiny.naflexvit()
    model.blocks[1].attn.__class__ = type("Mine", (type(model.blocks[1].attn),), {})
    with pytest.raises(nx.UnsupportedModelError, match=r"blocks\.1 attends by a Mine, which cannot be packed"):
        nx.vectorize(model, packed=True)


@pytest.mark.full
def test_photos_go_through_a_packed_artifact_as_through_a_padded_one(tmp_path: Path) -> None:
    """And through both kinds of runner: with torch and on arrays alone."""
    photos = [np.full((30 + 20 * k, 40, 3), 40 * k, np.uint8) for k in range(4)]
    model, buckets = tiny.siglip(), [nx.Bucket(16, (1, 2, 4))]
    packed, padded = (
        nx.export(model, "onnx", tmp_path / str(kind), buckets, effort="quick", packed=kind) for kind in (True, False)
    )
    vectors = [np.stack([*nx.Embedder(one.path)(photos)]) for one in (packed, padded)]
    assert np.abs(vectors[0] - vectors[1]).max() <= 1e-5 * np.abs(vectors[1]).max()
    given = nx.Preprocessor.of(packed.path)(photos)
    assert list(given) == list(PACKED.names)
    del given["positions"]
    again = nx.load(packed.path)({name: torch.from_numpy(value) for name, value in given.items()})
    assert np.abs(again.numpy() - vectors[0]).max() <= 1e-6 * np.abs(vectors[0]).max()
    with pytest.raises(nx.InputError, match="offsets end at"):
        nx.load_numpy(packed.path)({**given, **{name: given[name][:-1] for name in ("patches", "patch_coord")}})


def test_a_family_without_an_adapter_of_packs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "FAMILIES", (models.FAMILIES[0]._replace(packed=""),))
    with pytest.raises(nx.UnsupportedModelError, match="models of timm NaFlexVit cannot be packed by this release"):
        nx.vectorize(made(FEW[0]), packed=True)


def far_from_padded(adapter: ModelAdapter, precision: Precision, matrices: str | None = None) -> tuple[float, float]:
    """Return how far a packed graph is from the padded model in float32, and that model in the graph's precision."""
    program = trace(packed_of(adapter), [nx.Bucket(70, (1, 3, 8))], precision, matrices=matrices)
    assert program.stores_matrices == (matrices == "stored")
    run = program.exported.module()
    judge = Comparison(lambda *given: run(*given)[0], adapter, ("features",), precision, packed=True)
    batch = noise_batch("graph", GRIDS, 64, adapter.token_width)
    wanted = judge.reference_of(batch)["features"]
    given, floor = judge.candidate_of(batch), judge.baseline_of(batch)
    apart = [float((found["features"].float() - wanted).norm()) if found else 0.0 for found in (given, floor)]
    return apart[0] / float(wanted.norm()), apart[1] / float(wanted.norm())


@pytest.mark.parametrize("size", [8, pytest.param(32, marks=pytest.mark.full)])
def test_a_packed_graph_takes_patches_of_another_size(size: int) -> None:
    assert far_from_padded(adapter_of(tiny.flexible(), size), FLOAT32)[0] < 1e-5


@pytest.mark.parametrize("matrices", ["stored", pytest.param("computed", marks=pytest.mark.full)])
def test_parts_of_a_packed_graph_stay_in_float32(matrices: str) -> None:
    precision = Precision.of("float16", "norm,residual,pooling", ())
    found, floor = far_from_padded(adapter_of(tiny.naflexvit()), precision, matrices)
    assert 0 < found < 1.5 * floor < 1e-2


@pytest.mark.full
def test_a_packed_export_takes_all_of_these(tmp_path: Path) -> None:
    options: dict[str, Any] = {"packed": True, "patch_sizes": (8, 16), "keep_float32": "norm", "matrices": "stored"}
    made = nx.export(tiny.flexible(), "onnx", tmp_path / "a", [16], dtype="float16", effort="quick", **options)
    assert made.report.passed and all(one.manifest.packed for one in made.by_patch_size.values())
    build = made.by_patch_size[8].manifest.build
    assert build["keep_float32"] == ["norm"] and build["matrices"] == "stored"
