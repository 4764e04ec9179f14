"""Stored matrices: the same weights as those computed, for every side up to a limit, and the rule of where they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import timm_tiny
import tiny
import torch
from torch import nn

import naflex_export as nx
from naflex_export.accuracy.reference import SoundInterpolate
from naflex_export.batch import Batch, noise_batch
from naflex_export.graph.trace import stores_matrices, trace
from naflex_export.grid import Bucket, Grid
from naflex_export.models import adapter_of
from naflex_export.precision import FLOAT32, Precision
from naflex_export.resample.stored import (
    MOST_BYTES,
    StoredMatrices,
    are_stored,
    bytes_of,
    num_rows,
    reading,
    stored_matrices,
    table_of,
)
from naflex_export.resample.weights import Resampling, grid_weights, resampling_matrix

GRIDS = (Grid(3, 7), Grid(1, 24), Grid(24, 1), Grid(4, 4), Grid(1, 1), Grid(5, 4))
CUBIC = Resampling()


def coordinates(grids: tuple[Grid, ...], tokens: int) -> torch.Tensor:
    return noise_batch("stored", grids, tokens, 4).patch_coord


def test_a_table_is_the_matrices_below_each_other() -> None:
    table = table_of(5, CUBIC, 9)
    assert table.dtype is torch.float32 and table.shape == (num_rows(9), 5)
    for length in (1, 2, 9):
        rows = table[num_rows(length - 1) : num_rows(length)]
        assert torch.equal(rows, resampling_matrix(5, length, CUBIC))


@pytest.mark.parametrize("source", [(16, 16), (5, 6)])
@pytest.mark.parametrize("kind", [CUBIC, Resampling("bilinear", False, True)], ids=["cubic", "corners"])
@pytest.mark.parametrize("aspect", [False, True], ids=["grid", "aspect"])
def test_the_weights_are_those_computed(source: tuple[int, int], kind: Resampling, aspect: bool) -> None:
    """To what computing them in float32 costs: 3e-7."""
    coord = coordinates(GRIDS, 24)
    lengths = (coord.amax(dim=1) + 1).amax(dim=1, keepdim=True).expand(-1, 2) if aspect else None
    stored = StoredMatrices.of([(length, kind) for length in source], 24)
    found = stored.weights(source, coord, lengths, kind)
    computed = grid_weights(source, coord, lengths, kind, fill_padding=True)
    for one, other in zip(found, computed, strict=True):
        assert (one - other).abs().max() < 3e-7


def test_what_is_beyond_the_limit_reads_no_other_memory() -> None:
    stored = StoredMatrices.of([(4, CUBIC)], 8)
    rows, columns = stored.weights((4, 4), torch.tensor([[[90, 3], [0, 0]]]), None, CUBIC)
    assert torch.isfinite(rows).all() and torch.isfinite(columns).all()


FAMILIES: dict[str, dict[str, Any]] = {
    "learned": {},
    "corners": {"pos_embed_interp_mode": "bilinear", "pos_embed_antialias": False, "pos_embed_align_corners": True},
    "sampled": {"pos_embed_use_grid_sample": True},
    "aspect-preserving": {"pos_embed_ar_preserving": True},
    "factorized": {"pos_embed": "factorized"},
    "large-antialiased": {"pos_embed_grid_size": (40, 40)},
}


def assert_equal_to_eager(model: nn.Module, batch: Batch) -> None:
    adapter = adapter_of(model)
    program = trace(adapter, [Bucket(32, (1, 4, 8))], matrices="stored")
    assert program.stores_matrices
    inputs = adapter.input_format.arrange(batch)
    with torch.no_grad(), SoundInterpolate():
        expected = adapter.encoder(("features",))(*inputs)[0]
        found = program.exported.module()(*inputs)[0]
    assert timm_tiny.share(found, expected) < 1e-5


@timm_tiny.cases(FAMILIES, short=["learned"])
def test_a_graph_with_them_is_eager_to_float32_rounding(options: dict[str, Any]) -> None:
    assert_equal_to_eager(timm_tiny.naflexvit(**options), timm_tiny.BATCH)


@pytest.mark.full
def test_so_is_transformers(mixed: Batch) -> None:
    pytest.importorskip("transformers")
    assert_equal_to_eager(tiny.siglip2(), mixed)


def test_a_compiled_model_never_asks_for_them() -> None:
    """Dynamo of torch 2.11 breaks where it would."""
    with reading(StoredMatrices.of((), 24)):
        assert stored_matrices() is not None
        assert torch.compile(lambda: stored_matrices() is None, backend="eager", fullgraph=True)()


def test_the_rule_goes_by_their_share_of_the_weights() -> None:
    axes = [(16, CUBIC), (16, CUBIC)]
    size = bytes_of(axes, 256)
    assert size == 2_105_344  # one table for both axes
    assert bytes_of([(16, CUBIC), (12, CUBIC)], 256) == size + 1_579_008
    assert are_stored(None, axes, 256, weights=int(size / 0.03) + 1)
    assert not are_stored(None, axes, 256, weights=int(size / 0.03) - 40)
    assert are_stored("stored", axes, 256, weights=1) and not are_stored("computed", axes, 256, weights=2**40)
    assert not are_stored(None, (), 256, weights=2**40)


def test_a_base_model_stores_them_up_to_256_tokens_and_not_at_1024() -> None:
    with torch.device("meta"):
        model = timm.create_model("naflexvit_base_patch16_siglip")
    adapter = adapter_of(model)
    for tokens, stored in ((256, True), (576, True), (1024, False)):
        assert stores_matrices(adapter, [Bucket(tokens)], FLOAT32, None) is stored
    assert not stores_matrices(adapter, [Bucket(576)], Precision("float16"), None)


def test_matrices_that_cannot_be_stored_are_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(nx.RequestError, match="matrices 'stored' of every side up to 2048 patches take 128 MiB"):
        nx.export(tiny.siglip(), "onnx", tmp_path / "a", buckets=[2048], matrices="stored")
    with pytest.raises(nx.RequestError, match="matrices 'kept' is not known: expected stored or computed"):
        nx.export(tiny.siglip(), "onnx", tmp_path / "a", matrices="kept")
    rotary = tiny.naflexvit("naflexvit_base_patch16_gap", rope_type="axial", pos_embed="none")
    large = tiny.naflexvit(pos_embed_grid_size=(40, 40), pos_embed_antialias=False)
    for model in (rotary, large):
        assert adapter_of(model).position_axes == ()
        with pytest.raises(nx.RequestError, match="matrices 'stored' has no use here"):
            nx.export(model, "onnx", tmp_path / "a", matrices="stored")
    assert not list(tmp_path.iterdir()) and bytes_of([(16, CUBIC)], 1024) <= MOST_BYTES


@pytest.mark.full
@pytest.mark.parametrize("target", ["onnx", "compile", "aot", "trt"])
def test_every_target_takes_them(target: str, tmp_path: Path) -> None:
    if target == "trt":
        pytest.importorskip("tensorrt_rtx")
    artifact = nx.export(tiny.siglip(), target, tmp_path / "a", buckets=[24], dtype="float16", matrices="stored")
    assert artifact.report.passed and artifact.manifest.build["matrices"] == "stored"
