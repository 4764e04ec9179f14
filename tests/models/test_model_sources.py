"""Models by name or factory, and weights from a seed or a file."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import tiny
import torch
from safetensors.torch import save_file
from timm.models import NaFlexVit, save_for_hf
from torch.utils._python_dispatch import TorchDispatchMode

import naflex_export as nx
from naflex_export.models.model_args import parse_model_args
from naflex_export.models.model_sources import ModelSource, randomize, weights_sha256


def saved(path: Path, **wrapped: Any) -> Path:
    state = tiny.classifier().state_dict()
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({**wrapped, "state_dict": state} if wrapped else state, path)
    return path


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.pt"])
def test_a_local_checkpoint_is_loaded(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path / name)
    loaded = ModelSource("tiny:classifier", str(path)).load()
    assert weights_sha256(loaded) == weights_sha256(tiny.classifier())
    assert not loaded.training
    described = ModelSource("tiny:classifier", str(path)).describe()
    assert described["weights"] == str(path) and len(described["checkpoint_sha256"]) == 64


def test_a_training_checkpoint_is_unwrapped(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pth", epoch=3)
    assert weights_sha256(ModelSource("tiny:classifier", str(path)).load()) == weights_sha256(tiny.classifier())


class Payload:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a checkpoint ran code",))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "does not exist: expected 'pretrained', 'random' or a file"),
        (lambda p: truncate(saved(p.with_suffix(".safetensors"))), "cannot be read: .*Is it whole"),
        (lambda p: truncate(saved(p.with_suffix(".pth"))), "cannot be read: .*Is it whole"),
        (lambda p: write(p.with_suffix(".pth"), b""), r"\(0 bytes\) cannot be read"),
        (lambda p: write(p.with_suffix(".npz"), b""), "ends in '.npz': expected one of .safetensors"),
        (lambda p: write(p.with_suffix(".pth"), pickle.dumps(Payload(), protocol=2)), "cannot be read: .*tensors only"),
        (lambda p: store(p.with_suffix(".pth"), [1, 2]), "holds no state dict"),
        (lambda p: store(p.with_suffix(".pth"), {"head.weight": torch.ones(1)}), r"\d+ keys missing \(.* and \d+ more"),
        (lambda p: store(p.with_suffix(".pth"), grown()), r"1 keys unexpected \(extra\); is it"),
        (lambda p: store(p.with_suffix(".pth"), reshaped()), r"head.bias is \[11\], expected \[10\]"),
    ],
    ids=["missing", "cut-st", "cut-pth", "empty", "suffix", "code", "list", "keys", "extra", "shape"],
)
def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path: Path, make: Any, message: str) -> None:
    path = make(tmp_path / "w") or tmp_path / "nowhere.pth"
    with pytest.raises(nx.RequestError, match=message):
        ModelSource("tiny:classifier", str(path)).load()


def truncate(path: Path) -> Path:
    return write(path, path.read_bytes()[:-1000])


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def store(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def grown() -> dict[str, torch.Tensor]:
    return {**tiny.classifier().state_dict(), "extra": torch.ones(1)}


def reshaped() -> dict[str, torch.Tensor]:
    return {**tiny.classifier().state_dict(), "head.bias": torch.ones(11)}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("naflexvit_base_patch16_siglp", "does not exist; the closest are naflexvit_base_patch16_siglip"),
        ("resnet18", "cannot be built as a NaFlexVit|expected a NaFlexVit"),
        ("tiny:nothing", "cannot be imported"),
        ("no_such_module:make", "cannot be imported"),
        ("tiny:not_a_model", "returned a int: expected a torch module"),
    ],
)
def test_an_unknown_model_is_refused(model: str, message: str) -> None:
    with pytest.raises(nx.RequestError, match=message):
        ModelSource(model, "random").load()


def test_a_model_without_pretrained_weights_is_refused_not_randomized() -> None:
    with pytest.raises(nx.RequestError, match="pretrained weights .* cannot be had: .*--weights random for a dry run"):
        ModelSource("naflexvit_base_patch16_map.untrained").load()


def test_random_weights_are_seeded_and_all_show_in_the_output() -> None:
    one, again, other = (ModelSource("tiny:classifier", "random", seed).load() for seed in (0, 0, 1))
    assert isinstance(one, NaFlexVit)
    assert weights_sha256(one) == weights_sha256(again) != weights_sha256(other)
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = one(images)
        for name, parameter in one.named_parameters():
            kept = parameter.clone()
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
            moved = (one(images) - before).norm() / before.norm()
            assert moved > 1e-3, name
            parameter.copy_(kept)


def test_the_hash_is_of_values_not_of_their_dtype() -> None:
    """A bfloat16 model is judged by its float32 copy: they must be known for the same."""
    half = tiny.classifier().bfloat16()
    before = weights_sha256(half)
    assert weights_sha256(half.float()) == before != weights_sha256(tiny.classifier())


def test_randomize_reaches_every_parameter() -> None:
    model = tiny.classifier()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    randomize(model, seed=77)
    assert all(not torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


# --- what timm takes ---------------------------------------------------------------------------------------------


TINY = {"embed_dim": 48, "depth": 1, "num_heads": 3, "num_classes": 7}


@pytest.fixture
def timm_folder(tmp_path: Path) -> tuple[Path, NaFlexVit]:
    """A folder as timm saves it, of a classic name built as a NaFlexVit, and the model that it holds."""
    model = timm.create_model("vit_tiny_patch16_224", use_naflex=True, **TINY)
    randomize(model, seed=3)
    save_for_hf(model, tmp_path / "saved", model_args=TINY, safe_serialization=True)
    return tmp_path / "saved", model


@pytest.mark.parametrize("prefix", ["local-dir:", "LOCAL-DIR:"])
def test_a_folder_of_timms_is_loaded(timm_folder: tuple[Path, NaFlexVit], prefix: str) -> None:
    folder, model = timm_folder
    source = ModelSource(f"{prefix}{folder}")
    loaded = source.load()
    assert isinstance(loaded, NaFlexVit) and weights_sha256(loaded) == weights_sha256(model)
    assert source.describe()["model"] == f"local-dir:{folder}"
    other = ModelSource(f"{prefix}{folder}", "random").load()
    assert other.num_classes == 7 and weights_sha256(other) != weights_sha256(model)


def test_a_folder_of_timms_is_read_as_tensors_only(timm_folder: tuple[Path, NaFlexVit]) -> None:
    folder, _ = timm_folder
    (folder / "model.safetensors").unlink()
    write(folder / "pytorch_model.bin", pickle.dumps(Payload(), protocol=2))
    with pytest.raises(nx.RequestError, match="cannot be read: .*tensors only"):
        ModelSource(f"local-dir:{folder}").load()
    (folder / "config.json").unlink()
    with pytest.raises(nx.RequestError, match="is no folder of timm's: expected one with a config.json"):
        ModelSource(f"local-dir:{folder}").check()


@pytest.mark.parametrize("prefix", ["hf-hub:", "hf_hub:"])
def test_a_hub_id_goes_to_timm(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def config_of(name: str, cache_dir: None = None) -> Any:
        asked.append(name)
        raise OSError("the hub is out of reach")

    monkeypatch.setattr("naflex_export.models.from_timm.load_model_config_from_hf", config_of)
    with pytest.raises(nx.RequestError, match="model 'hf-hub:owner/name' cannot be had: the hub is out of reach"):
        ModelSource(f"{prefix}owner/name").load()
    assert asked == ["owner/name"]
    with pytest.raises(nx.RequestError, match="A hub id is hf-hub:owner/name for timm, hf:owner/name for transformers"):
        ModelSource("owner/name", "random").load()


class Draws(TorchDispatchMode):
    """Counts how often a tensor that is there is filled with random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        self.count += function in {aten.uniform_.default, aten.normal_.default, aten.erfinv_.default}
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["naflexvit_base_patch16_siglip", "vit_tiny_patch16_224"])
def test_timm_draws_no_weights_that_are_replaced(name: str) -> None:
    """Those of a base model take seconds. What replaces them is what it ever was."""
    sizes = {"depth": 1, "embed_dim": 32, "num_heads": 2}
    flex = {} if name.startswith("naflexvit") else {"use_naflex": True}
    plain = timm.create_model(name, **sizes, **flex)
    randomize(plain, seed=5)
    with Draws() as draws:
        model = ModelSource(name, "random", seed=5, model_args=sizes).load()
    assert draws.count == 0
    assert {key: value.tolist() for key, value in model.state_dict().items()} == {
        key: value.tolist() for key, value in plain.state_dict().items()
    }


def test_arguments_are_given_to_timm_and_noted() -> None:
    arguments = parse_model_args(
        ["num_classes=30", "in_chans=4", "pos_embed_grid_size=5,6", "global_pool=avg", "depth=1"]
    )
    assert arguments["pos_embed_grid_size"] == (5, 6) and arguments["global_pool"] == "avg"
    source = ModelSource(
        "naflexvit_base_patch16_gap", "random", model_args={**arguments, "embed_dim": 24, "num_heads": 2}
    )
    model = source.load()
    assert (model.num_classes, model.in_chans, len(model.blocks)) == (30, 4, 1)
    assert model.embeds.pos_embed.shape == (1, 5, 6, 24)
    noted = json.loads(json.dumps({"source": source.describe()}))
    again = ModelSource.noted(SimpleNamespace(model=noted))  # type: ignore[arg-type]
    assert again == source and weights_sha256(again.load()) == weights_sha256(model)
    assert ModelSource.noted(SimpleNamespace(model=noted), "tiny:classifier").model_args == {}  # type: ignore[arg-type]


def test_a_size_in_pixels_is_an_argument_too() -> None:
    arguments = {"img_size": 384, "depth": 1, "embed_dim": 24, "num_heads": 2}
    assert ModelSource("vit_base_patch16_224", "random", model_args=arguments).load().embeds.pos_embed.shape[1] == 24


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["num_classes"], "'num_classes' is malformed: expected name=value"),
        (["a-b=3"], "'a-b=3' is malformed"),
        (["depth=1", "depth=2"], "depth is given twice"),
        (["depth={1,2}"], "cannot be noted in a manifest"),
    ],
)
def test_malformed_arguments_are_refused(texts: list[str], message: str) -> None:
    with pytest.raises(nx.RequestError, match=message):
        parse_model_args(texts)


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        ("naflexvit_base_patch16_gap", {"no_such": 1}, r"cannot be built as a NaFlexVit: .*no_such"),
        ("naflexvit_base_patch16_gap", {"pos_embed": "nope"}, r"cannot be built with --model-args pos_embed=nope"),
        ("naflexvit_base_patch16_gap", {"checkpoint_path": "w.pth"}, "--weights says which weights to load"),
        (
            "naflexvit_base_patch16_gap",
            {"features_only": True, "depth": 1},
            "cannot be built with --model-args features",
        ),
        ("tiny:classifier", {"no_such": 1}, "factory 'tiny:classifier' cannot be called with --model-args no_such=1"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(model: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(nx.RequestError, match=message):
        ModelSource(model, "random", model_args=arguments).load()


def test_a_factory_is_given_its_arguments() -> None:
    assert ModelSource("tiny:naflexvit", model_args={"depth": 3}).load().embeds is not None
    assert len(ModelSource("tiny:naflexvit", model_args={"depth": 3}).load().blocks) == 3


def test_a_pretrained_model_is_not_left_half_random(monkeypatch: pytest.MonkeyPatch) -> None:
    """With other classes timm makes a new head, and does not say that it is random."""
    tiny_args = {"embed_dim": 48, "depth": 1, "num_heads": 3}
    state = timm.create_model("vit_tiny_patch16_224", use_naflex=True, **tiny_args).state_dict()
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *args, **options: dict(state))
    loaded = ModelSource("vit_tiny_patch16_224", model_args=tiny_args).load()
    assert torch.equal(loaded.head.weight, state["head.weight"])
    assert ModelSource("vit_tiny_patch16_224", model_args={**tiny_args, "num_classes": 0}).load().num_classes == 0
    with pytest.raises(nx.RequestError, match=r"2 keys missing \(head.bias, head.weight\); which would be left random"):
        ModelSource("vit_tiny_patch16_224", model_args={**tiny_args, "num_classes": 30}).load()
