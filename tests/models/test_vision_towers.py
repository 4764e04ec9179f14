"""Vision towers of multimodal models: their own outputs and gradients, and what is not known is refused."""

from __future__ import annotations

import importlib
import pickle
import random
import re
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

pytest.importorskip("transformers")

from tower_tiny import (
    GRIDS,
    KIN,
    OWN_GRAPHS,
    TOWERS,
    cosmos3_edge,
    exported_far_from_eager,
    far,
    gradients,
    hunyuan_vl,
    kimi_k25,
    outputs_of,
    pack_for,
    qwen3_vl,
)

import naflex_export as nx
from naflex_export.accuracy.comparison import Comparison
from naflex_export.bench.techniques import Bench
from naflex_export.cli import dry_run
from naflex_export.cli.export import export_command
from naflex_export.export_request import ExportRequest
from naflex_export.graph.trace import trace
from naflex_export.grid import Grid
from naflex_export.models import adapter_of, towers_in, whole_model
from naflex_export.models.kept_parts import kept_of
from naflex_export.models.model_sources import ModelSource, randomize
from naflex_export.precision import FLOAT32, Precision

NO_PHOTOS = "ignore:the model is a vision tower, whose patches its own processor makes of photos"


@pytest.fixture(params=TOWERS)
def tower(request: pytest.FixtureRequest) -> nn.Module:
    return TOWERS[request.param]()


@pytest.fixture(params=[*TOWERS, *KIN])
def any_tower(request: pytest.FixtureRequest) -> nn.Module:
    return {**TOWERS, **KIN}[request.param]()


def largest_gradient(found: dict[str, Tensor | None]) -> float:
    return max(float(gradient.abs().max()) for gradient in found.values() if gradient is not None)


def test_outputs_and_gradients_are_the_towers_own(tower: nn.Module) -> None:
    fast = nx.vectorize(tower)
    assert fast.state_dict().keys() == tower.state_dict().keys() and isinstance(fast, type(tower))
    for grids in (GRIDS, (Grid(1, 1),), (Grid(2, 3), Grid(2, 3))):
        _, inputs = pack_for(tower, grids)
        wanted, given = outputs_of(tower, inputs), outputs_of(fast, inputs)
        assert given.keys() == wanted.keys()
        assert max(far(given[name], wanted[name]) for name in wanted) < 1e-5
        assert torch.equal(fast(*inputs)[0], fast(*inputs[:2])[0])  # positions say nothing that is not known
    _, inputs = pack_for(tower)
    theirs, ours = gradients(tower, inputs), gradients(fast, inputs)
    scale = largest_gradient(theirs)
    for name, wanted_gradient in theirs.items():
        gradient = ours[name]
        assert (gradient is None) == (wanted_gradient is None)
        if gradient is not None and wanted_gradient is not None:
            assert float((gradient - wanted_gradient).abs().max()) < 1e-5 * scale, name


@pytest.mark.parametrize("name", KIN)
def test_the_same_tower_under_another_name_is_served_by_the_same_file(name: str) -> None:
    tower = KIN[name]()
    fast = nx.vectorize(tower)
    _, inputs = pack_for(tower)
    wanted, given = outputs_of(tower, inputs), outputs_of(fast, inputs)
    assert max(far(given[output], wanted[output]) for output in wanted) < 1e-5
    assert type(fast(*inputs)) is type(tower(*inputs[:2]))
    theirs, ours = gradients(tower, inputs), gradients(fast, inputs)
    assert max(far_gradient(ours[part], theirs[part]) for part in theirs) < 1e-5 * largest_gradient(theirs)
    again = pickle.loads(pickle.dumps(fast))
    assert type(again) is type(fast) and torch.equal(again(*inputs)[0], fast(*inputs)[0])
    with pytest.raises(nx.UnsupportedModelError, match=f"Mine is a subclass of {type(tower).__name__}"):
        tower.__class__ = type("Mine", (type(tower),), {})
        nx.vectorize(tower)


def test_corners_are_aligned_where_the_release_aligns_them() -> None:
    """Release 5.17 of transformers aligns the corners of PaddleOCR-VL's positions; later releases do not."""
    tower: Any = TOWERS["paddleocr_vl"]()
    _, inputs = pack_for(tower)
    before = outputs_of(tower, inputs)["tokens"]
    embeddings = tower.vision_model.embeddings
    embeddings.interpolation_align_corners = not embeddings.interpolation_align_corners
    wanted = outputs_of(tower, inputs)["tokens"]
    assert far(wanted, before) > 1e-2
    assert far(outputs_of(nx.vectorize(tower), inputs)["tokens"], wanted) < 1e-5


@pytest.mark.full
@pytest.mark.parametrize("images", [1, 2, 5, 16])
def test_packs_of_many_images_with_sides_to_64(any_tower: nn.Module, images: int) -> None:
    tower = any_tower
    fast, merge = nx.vectorize(tower), adapter_of(tower).input_format.merge
    draw = random.Random(images)
    longest = 64 // merge
    sides = [*(1, longest), *(draw.randint(1, longest) for _ in range(2 * images - 2))]
    draw.shuffle(sides)
    _, inputs = pack_for(tower, tuple(Grid(*sides[at : at + 2]) for at in range(0, 2 * images, 2)), f"many {images}")
    wanted, given = outputs_of(tower, inputs), outputs_of(fast, inputs)
    assert max(far(given[name], wanted[name]) for name in wanted) < 1e-5
    theirs, ours = gradients(tower, inputs), gradients(fast, inputs)
    scale = largest_gradient(theirs)
    apart = [far_gradient(ours[name], theirs[name]) for name in theirs]
    assert max(apart) < 1e-5 * scale


def far_gradient(given: Tensor | None, wanted: Tensor | None) -> float:
    assert (given is None) == (wanted is None)
    return 0.0 if given is None or wanted is None else float((given - wanted).abs().max())


NATIVE = {
    "aot": OWN_GRAPHS,
    "compile": ("qwen3_vl", "qwen2_5_vl", "hunyuan_vl"),
}
"""Towers that are compiled to native code: each graph that is one of its own; for both targets inductor makes the
kernels, so that the second has those of several outputs, of windows, and of rows with ends.

The others are rows of `tools/sweep_towers.py`, which exports every tower to every target."""


@pytest.mark.full
@pytest.mark.filterwarnings(NO_PHOTOS)
@pytest.mark.parametrize(
    ("name", "target"),
    [*((name, "onnx") for name in (*TOWERS, *KIN)), *((name, target) for target in NATIVE for name in NATIVE[target])],
)
def test_exports_serve_sizes_that_were_never_traced(name: str, target: str, tmp_path: Path) -> None:
    assert exported_far_from_eager({**TOWERS, **KIN}[name](), target, tmp_path / "a") < 1e-5


def test_a_subclass_and_a_new_module_are_refused_by_name(tower: nn.Module) -> None:
    kind = type(tower)
    tower.add_module("gate_proj", nn.Linear(2, 2))
    with pytest.raises(nx.UnsupportedModelError, match="has a module 'gate_proj'"):
        nx.vectorize(tower)
    del tower.gate_proj
    tower.__class__ = type("Mine", (kind,), {})
    with pytest.raises(nx.UnsupportedModelError, match=f"Mine is a subclass of {kind.__name__}"):
        nx.vectorize(tower)


def test_every_output_of_a_tower_can_be_asked_for(any_tower: nn.Module, tmp_path: Path) -> None:
    """What is checked ahead of the model knows of all that a family gives."""
    outputs = adapter_of(any_tower).default_outputs
    assert ExportRequest("onnx", tmp_path / "a", (nx.Bucket(40),), FLOAT32, outputs=outputs).outputs == outputs
    for wrong in ("deepstack", "deepstack_x", "token"):
        with pytest.raises(nx.RequestError, match=f"{wrong}.*: expected 'features', 'tokens' or both, and of a vision"):
            ExportRequest("onnx", tmp_path / "a", (nx.Bucket(40),), FLOAT32, outputs=(*outputs, wrong))


@pytest.mark.filterwarnings(NO_PHOTOS)
def test_what_cannot_be_asked_of_a_tower_is_refused(tower: nn.Module, tmp_path: Path) -> None:
    known = re.escape(", ".join(map(repr, adapter_of(tower).default_outputs)))
    with pytest.raises(nx.RequestError, match=f"outputs=.'features',.: expected some of {known}"):
        adapter_of(tower).encoder(("features",))
    with pytest.raises(nx.RequestError, match="'int8' is for padded .* takes packs only: ask for float16 or bfloat16$"):
        nx.export(tower, "onnx", tmp_path / "a", dtype="int8")
    with pytest.raises(nx.RequestError, match="preprocessing was given, and the model is a vision tower"):
        nx.export(tower, "onnx", tmp_path / "a", preprocessing={"mean": 1})
    with pytest.raises(nx.RequestError, match="takes packs only, and what is timed here are padded batches"):
        Bench(tower, FLOAT32, torch.device("cpu"))


def test_a_call_is_checked_on_a_cpu(tower: nn.Module) -> None:
    fast: Any = nx.vectorize(tower)
    _, (patches, grids, positions, *rows) = pack_for(tower)
    side = adapter_of(tower).input_format.merge

    def with_first(*values: int) -> Tensor:
        return torch.cat([torch.tensor([values]), grids[1:]])

    wrong = {
        "patches together, and": grids[:-1],
        r"which is empty: expected a height": with_first(1, 0, 5 * side),
        r"is \[1, -\d+, -\d+\], which is empty": with_first(1, -3 * side, -5 * side),
        r"of 2 frames: expected 1; of a video": with_first(2, 3 * side, 5 * side),
        "far more patches together": with_first(1, 2**40 * side, 2**40 * side),
        "grid_thw is float32: expected int64": grids.float(),
        r"grid_thw has shape \[5, 2\]: expected \[images, 3\]": grids[:, 1:],
        r"grid_thw has shape \[0, 3\]: expected": grids[:0],
    }
    if side > 1:
        wrong["expected multiples of 2"] = with_first(1, 3 * side + 1, 5 * side)
    for message, given in wrong.items():
        with pytest.raises(nx.InputError, match=message):
            fast(patches, given)
    for bad in (positions[:-1], positions.flip(0)):
        with pytest.raises(nx.InputError, match="expected 0, 1, 2 and so on, 36 of them for the largest image"):
            fast(patches, grids, bad)
    for count in rows:
        with pytest.raises(nx.InputError, match="of them for the rows of tokens of all images"):
            fast(patches, grids, rows=count[:-1])


def test_a_call_gives_a_tuple_where_it_is_asked_for(tower: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fast: Any = nx.vectorize(tower)
    _, inputs = pack_for(tower)
    wanted, given = tower(*inputs[:2], return_dict=False), fast(*inputs, return_dict=False)
    assert type(given) is tuple and torch.equal(given[0], fast(*inputs)[0])
    tensors = [(found, one) for found, one in zip(given, wanted, strict=False) if isinstance(one, Tensor)]
    assert len(given) >= len(wanted)  # of Cosmos3-Edge release 5.17 names one output only
    assert max(far(*both) for both in tensors) < 1e-5
    adapter = adapter_of(fast)
    of_tuple, of_names = adapter.unpack(given), adapter.unpack(fast(*inputs))
    assert of_tuple.keys() == of_names.keys() and all(torch.equal(of_tuple[one], of_names[one]) for one in of_names)
    monkeypatch.setattr(fast.config, "return_dict", False)
    assert type(fast(*inputs)) is tuple
    assert torch.equal(adapter.encoder(("tokens",))(*inputs)[0], of_names["tokens"])


def test_what_a_tower_would_not_heed_is_said(tower: nn.Module) -> None:
    fast: Any = nx.vectorize(tower)
    _, inputs = pack_for(tower)
    for name in ("position_ids", "cu_seqlens", "interp_indices", "window_index"):
        with pytest.raises(nx.InputError, match=f"{name} was given to a vectorized tower, which finds it by grid_thw"):
            fast(*inputs, **{name: inputs[1]})
    for name in ("output_hidden_states", "output_attentions"):
        with pytest.warns(UserWarning, match=f"{name} was asked for, and a vectorized tower records none"):
            fast(*inputs, **{name: True})
    fast(*inputs, return_dict=True, output_attentions=False, position_ids=None)
    for grids in (inputs[1].tolist(), inputs[1].numpy()):
        with pytest.raises(nx.InputError, match=f"grid_thw is a {type(grids).__name__}: expected a tensor"):
            fast(inputs[0], grids)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a level of no block": (
        lambda: qwen3_vl(deepstack_visual_indexes=[0, 7]),
        r"levels at blocks \[0, 7\] of 2: ex",
    ),
    "a level twice": (lambda: qwen3_vl(deepstack_visual_indexes=[1, 1]), r"levels at blocks \[1, 1\] of 2: expected d"),
    "a level from the end": (lambda: qwen3_vl(deepstack_visual_indexes=[-1]), r"levels at blocks \[-1\] of 2: expecte"),
    "heads that do not divide": (
        lambda: qwen3_vl(num_heads=3),
        "width of 32 by 3 heads: expected a number of heads th",
    ),
    "heads of odd halves": (lambda: qwen3_vl(num_heads=16), "heads of 2 channels, and its rotary angles are 4: expec"),
    "heads of one": (lambda: qwen3_vl(num_heads=32), "has heads of 1 channels, and its rotary angles are 0: expected"),
    "positions of no square": (lambda: qwen3_vl(num_position_embeddings=26), "has 26 positions, which make no square"),
    "the same": (
        lambda: cosmos3_edge(num_patches=26),
        "has 26 positions, which make no square: expected a square numb",
    ),
    "an oblong": (
        lambda: kimi_k25(pos_emb_width=6),
        r"resizes \[5, 6\] positions by 'bicubic' with align_corners=False",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_config_that_no_tower_can_have_is_refused_by_name(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(nx.UnsupportedModelError, match=message):
        nx.vectorize(make())


TEXT = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "vocab_size": 50,
    "pad_token_id": 0,
}
"""Of a language model around a tower."""

FLOAT16 = {
    "qwen3_vl": (
        "embedding,pooling",
        {"patch_embed", "pos_embed", "merger", "deepstack_merger_list.0", "deepstack_merger_list.1"},
    ),
    "glm4v": ("pooling", {"merger", "downsample", "post_layernorm"}),
    "kimi_k25": ("pooling", {"final_layernorm"}),
    "hunyuan_vl": ("embedding", {"embeddings"}),
    "cosmos3_edge": ("pooling", {"post_layernorm"}),
}


@pytest.mark.parametrize("name", FLOAT16)
def test_what_is_ahead_of_the_blocks_and_behind_them_is_known(name: str) -> None:
    keep, expected = FLOAT16[name]
    assert set(kept_of(adapter_of(TOWERS[name]()), Precision.of("float16", keep, ())).modules) == expected


def traced_far_from_eager(tower: nn.Module, precision: Precision, matrices: str | None = None) -> tuple[float, float]:
    """Return how far a traced tower is from eager in float32 on a pack never traced, and eager in its precision."""
    adapter = adapter_of(tower)
    outputs = adapter.default_outputs
    program = trace(adapter, [nx.Bucket(24, (1, 3, 4))], precision, outputs, matrices=matrices)
    assert program.stores_matrices == (matrices == "stored")
    run = program.exported.module()
    judge = Comparison(lambda *given: dict(zip(outputs, run(*given), strict=True)), adapter, outputs, precision)
    batch, _ = pack_for(tower, (Grid(1, 24), Grid(24, 1)))
    wanted, given, floor = judge.reference_of(batch), judge.candidate_of(batch), judge.baseline_of(batch)
    apart = [
        max(far(found[name].float(), wanted[name]) for name in found) if found else 0.0 for found in (given, floor)
    ]
    return apart[0], apart[1]


@pytest.mark.full
@pytest.mark.parametrize("keep", ["norm,residual", "embedding", "softmax"])
def test_parts_of_a_tower_stay_in_float32(tower: nn.Module, keep: str) -> None:
    found, floor = traced_far_from_eager(tower, Precision.of("float16", keep, ()))
    assert 0 < found < 2 * floor < 1e-2


STORED = ("glm4v", "paddleocr_vl", "cosmos3_edge", "qwen3_vl", "kimi_k25", "hunyuan_vl")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.full if name != "glm4v" else ()) for name in STORED]
)
def test_a_towers_graph_may_hold_its_matrices(name: str) -> None:
    found, _ = traced_far_from_eager(TOWERS[name](), FLOAT32, "stored")
    assert found < 1e-5


@pytest.mark.filterwarnings(NO_PHOTOS)
def test_matrices_of_sides_in_patches_are_counted(tmp_path: Path) -> None:
    tower = TOWERS["glm4v"]()
    with pytest.raises(nx.RequestError, match="matrices 'stored' of every side up to 4096 patches take 160 MiB"):
        nx.export(tower, "onnx", tmp_path / "a", [2048], matrices="stored")
    with pytest.raises(nx.RequestError, match="matrices 'stored' has no use here"):
        nx.export(KIN["qwen2_vl"](), "onnx", tmp_path / "a", [24], matrices="stored")


@pytest.mark.full
def test_one_compiled_graph_serves_every_pack(tower: nn.Module) -> None:
    fast = nx.compile(tower, backend="eager")
    for grids in (GRIDS, GRIDS[2:], (Grid(2, 2), Grid(7, 3))):
        _, inputs = pack_for(tower, grids)
        wanted = outputs_of(tower, inputs)
        given = adapter_of(tower).unpack(fast(*inputs[:2]))
        assert max(far(given[name], wanted[name]) for name in wanted) < 1e-5


def test_the_ends_of_rows_are_marked_whatever_the_resize() -> None:
    tower = hunyuan_vl(interpolate_mode="bicubic")
    _, inputs = pack_for(tower)
    wanted, given = outputs_of(tower, inputs)["tokens"], nx.vectorize(tower)(*inputs).pooler_output[0]
    assert far(given, wanted) < 1e-5
    assert len(wanted) == sum(grid.tokens + grid.height + 2 for grid in GRIDS)
    with pytest.raises(nx.UnsupportedModelError, match="resizes its positions by 'nearest': expected 'bilinear' or"):
        nx.vectorize(hunyuan_vl(interpolate_mode="nearest"))


def test_a_whole_model_may_hold_the_tower_of_another(tower: nn.Module) -> None:
    around = nn.ModuleDict({"model": nn.ModuleDict({"visual": tower})})
    assert whole_model(around) == f"ModuleDict's vision tower model.visual, a {type(tower).__name__}"
    assert whole_model(tower) == "" == whole_model(nn.ModuleDict({"one": tower, "other": TOWERS["glm4v"]()}))


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen2_vl", "qwen2_5_omni"])
def test_a_tower_is_loaded_from_a_folder_of_its_own(name: str, tmp_path: Path) -> None:
    """Some towers are no names of transformers itself, but of the module beside their config."""
    tower = {**TOWERS, **KIN}[name]()
    tower.save_pretrained(tmp_path / "saved")
    loaded = ModelSource(f"hf:{tmp_path / 'saved'}", "pretrained").load()
    assert type(loaded) is type(tower)
    assert all(torch.equal(given, tower.state_dict()[key]) for key, given in loaded.state_dict().items())


WHOLE = {
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
    "qwen3_5": "Qwen3_5ForConditionalGeneration",
    "qwen3_omni_moe": "Qwen3OmniMoeThinkerForConditionalGeneration",
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen2_5_omni": "Qwen2_5OmniThinkerForConditionalGeneration",
    "glm4v": "Glm4vForConditionalGeneration",
    "kimi_k25": "Kimi_K25ForConditionalGeneration",
    "paddleocr_vl": "PaddleOCRVLForConditionalGeneration",
    "cosmos3_edge": "Cosmos3EdgeForConditionalGeneration",
    "hunyuan_vl": "HunYuanVLForConditionalGeneration",
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_config_of_a_whole_model_has_its_tower(name: str) -> None:
    kind = getattr(importlib.import_module(f"transformers.models.{name}.modeling_{name}"), WHOLE[name])
    config = kind.config_class()
    for part in (config.get_text_config(), config.vision_config):
        for count in ("num_hidden_layers", "depth"):
            if hasattr(part, count):
                setattr(part, count, 1)
    if name == "hunyuan_vl":
        config.text_config.head_dim = 128  # which its defaults leave out
    with torch.device("meta"):
        model = kind._from_config(config)
    (tower,) = towers_in(model).values()
    assert type(tower) is type({**TOWERS, **KIN}[name]()) and whole_model(model).startswith(WHOLE[name])


def test_a_whole_model_gives_what_it_gave_with_its_tower_swapped() -> None:
    from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLConfig
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLForConditionalGeneration

    tower = qwen3_vl()
    model: Any = Qwen3VLForConditionalGeneration(Qwen3VLConfig(vision_config=tower.config.to_dict(), text_config=TEXT))
    randomize(model, seed=1)
    _, (patches, grids, _) = pack_for(tower, (Grid(2, 3), Grid(1, 1)))
    fast: Any = nx.vectorize(model.eval())
    assert fast.state_dict().keys() == model.state_dict().keys()
    with torch.no_grad():
        wanted, given = (one.model.get_image_features(patches, grids) for one in (model, fast))
    for levels in zip(given.pooler_output, wanted.pooler_output, strict=True):
        assert far(*levels) < 1e-5
    for level, expected in zip(given.deepstack_features, wanted.deepstack_features, strict=True):
        assert max(far(*images) for images in zip(level, expected, strict=True)) < 1e-5


def test_glm_4_6v_holds_the_tower_of_4v() -> None:
    from transformers.models.glm46v.configuration_glm46v import Glm46VConfig
    from transformers.models.glm46v.modeling_glm46v import Glm46VModel

    with torch.device("meta"):
        model = Glm46VModel(Glm46VConfig(text_config={"model_type": "glm4v_text", "num_hidden_layers": 1}))
    assert whole_model(model) == "Glm46VModel's vision tower visual, a Glm4vVisionModel"


def test_the_time_of_a_token_counts_tokens(tower: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = cycle((0.0, 29.0))  # what a pack of `EXAMPLE` has, whatever the values of a patch
    monkeypatch.setattr(dry_run, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    assert dry_run._seconds_of_eager(adapter_of(tower)) == 1


@pytest.mark.full
@pytest.mark.filterwarnings(NO_PHOTOS)
def test_the_command_line_takes_the_tower_of_a_whole_model(tmp_path: Path) -> None:
    from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLConfig

    config = Qwen3VLConfig(vision_config=TOWERS["qwen3_vl"]().config.to_dict(), text_config=TEXT)
    config.architectures = ["Qwen3VLForConditionalGeneration"]
    config.save_pretrained(tmp_path / "model")
    arguments = [f"hf:{tmp_path / 'model'}", "--weights", "random", "--target", "onnx", "--quick"]
    done = CliRunner().invoke(export_command, [*arguments, "--bucket", "36:1,2,4", "--out", str(tmp_path / "a")])
    assert done.exit_code == 0, done.output
    outputs = [spec.name for spec in nx.load(tmp_path / "a").manifest.outputs]
    assert outputs == ["tokens", "deepstack_0", "deepstack_1"]
    assert "next: naflex-gate" in done.stdout and "naflex-bench" not in done.stdout
