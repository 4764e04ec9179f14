"""transformers' C-RADIO, whose grids are sides alone, and whose images have class and register tokens of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from tower_tiny import GRIDS, far, gradients, outputs_of, pack_for, radio, radio_takes_packs

import naflex_export as nx
from naflex_export.graph.trace import trace
from naflex_export.grid import Grid
from naflex_export.models import adapter_of, packing
from naflex_export.models.model_sources import ModelSource

pytestmark = pytest.mark.skipif(not radio_takes_packs(), reason="this release's RadioModel takes no packs")

NO_PHOTOS = "ignore:the model is a vision tower, whose patches its own processor makes of photos"
MODELS: dict[str, dict[str, Any]] = {
    "class and register tokens": {},
    "gated": {"use_swiglu_ffn": True, "qkv_bias": False, "layerscale_value": 0.1},
    "class tokens alone": {"num_registers": 0, "summary_idxs": [1]},
}
MANY = (GRIDS, (Grid(1, 1),), (Grid(2, 3), Grid(2, 3)), (Grid(1, 64), Grid(37, 1), Grid(13, 11)))


@pytest.mark.parametrize("name", MODELS)
def test_outputs_and_gradients_are_the_models_own(name: str) -> None:
    model: Any = radio(**MODELS[name])
    fast: Any = nx.vectorize(model)
    for grids in MANY:
        _, inputs = pack_for(model, grids)
        wanted, given = model(*inputs[:2]), fast(*inputs)
        assert type(given) is type(wanted) and given.keys() == wanted.keys()
        assert max(far(given[one], wanted[one]) for one in wanted) < 1e-5
        assert torch.equal(fast(*inputs[:2]).summary, given.summary)
    _, inputs = pack_for(model)
    theirs, ours = gradients(model, inputs), gradients(fast, inputs)
    scale = max(float(one.abs().max()) for one in theirs.values() if one is not None)
    for part, wanted_gradient in theirs.items():
        gradient = ours[part]
        assert (gradient is None) == (wanted_gradient is None), part
        if gradient is not None and wanted_gradient is not None:
            assert float((gradient - wanted_gradient).abs().max()) < 1e-5 * scale, part


def test_a_release_whose_model_takes_no_packs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = radio()
    monkeypatch.setattr(type(model), "forward", lambda self, pixel_values: None)
    with pytest.raises(nx.UnsupportedModelError, match=r"takes no packs: expected one with image_grid_hw.*naflexvit"):
        nx.vectorize(model)


def test_images_of_one_size_are_taken_as_before() -> None:
    model: Any = radio()
    photos = torch.randn(2, 3, 8, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(nx.vectorize(model)(photos).last_hidden_state, model(photos).last_hidden_state)


def test_attention_gathered_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = radio()
    fast, (_, inputs) = nx.vectorize(model), pack_for(model)
    wanted = outputs_of(fast, inputs)
    monkeypatch.setattr(packing, "_by_image", packing._gathered)
    given = outputs_of(fast, inputs)
    assert max(far(given[one], wanted[one]) for one in wanted) < 1e-5


def test_one_graph_serves_packs_that_were_never_traced() -> None:
    model = radio()
    program = trace(adapter_of(model), [nx.Bucket(40, (1, 3, 8))], outputs=("features", "tokens"))
    run = program.exported.module()
    for grids in (GRIDS, (Grid(1, 1),), (Grid(1, 40), Grid(40, 1))):
        _, inputs = pack_for(model, grids)
        wanted = outputs_of(model, inputs)
        assert max(far(given, wanted[name]) for name, given in zip(wanted, run(*inputs), strict=True)) < 1e-5


@pytest.mark.full
@pytest.mark.filterwarnings(NO_PHOTOS)
def test_an_export_of_a_saved_folder_serves_packs_that_were_never_traced(tmp_path: Path) -> None:
    radio().save_pretrained(tmp_path / "saved")
    model = ModelSource(f"hf:{tmp_path / 'saved'}", "pretrained").load()
    artifact = nx.export(model, "onnx", tmp_path / "a", [nx.Bucket(40, (1, 3, 8))])
    assert artifact.report.passed and [spec.name for spec in artifact.manifest.inputs][1] == "image_grid_hw"
    run = nx.load(tmp_path / "a")
    for grids in (GRIDS, (Grid(1, 1),), (Grid(5, 8),) * 2):
        _, inputs = pack_for(model, grids)
        given, wanted = run(*inputs[:2]), outputs_of(model, inputs)
        assert isinstance(given, dict) and list(given) == ["features", "tokens"]
        assert max(far(given[one], wanted[one]) for one in wanted) < 1e-5


def test_a_call_is_checked_on_a_cpu() -> None:
    fast: Any = nx.vectorize(radio())
    _, (patches, grids, positions) = pack_for(fast)
    wrong = {
        "image_grid_hw has images of .* patches together, and pixel_values has": grids[:-1],
        r"image_grid_hw of image 0 is \[0, 5\], which is empty": torch.cat([torch.tensor([[0, 5]]), grids[1:]]),
        r"image_grid_hw has shape \[5, 3\]: expected \[images, 2\], height and": grids[:, [0, 0, 1]],
        "image_grid_hw is float32: expected int64": grids.float(),
    }
    for message, given in wrong.items():
        with pytest.raises(nx.InputError, match=message):
            fast(patches, given)
    with pytest.raises(nx.InputError, match="positions are 35 values"):
        fast(patches, grids, positions[:-1])


@pytest.mark.filterwarnings(NO_PHOTOS)
def test_the_gate_rejects_a_pack_whose_images_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = radio()
    fast, options = nx.vectorize(model), {"buckets": [nx.Bucket(24, (1, 3, 4))], "effort": "quick"}
    assert nx.gate(fast, model, outputs=("features", "tokens"), **options).passed
    whole = torch.nn.functional.scaled_dot_product_attention

    def seeing(qkv: Any, heads: int, layout: Any, **named: Any) -> Any:
        parts = [rows.view(len(rows), heads, -1).transpose(0, 1) for rows in qkv]
        return whole(*parts, scale=named["scale"]).transpose(0, 1).flatten(1)

    monkeypatch.setattr("naflex_export.models.radio.attend", seeing)
    assert not nx.gate(fast, model, outputs=("features", "tokens"), **options).passed
