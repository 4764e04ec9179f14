"""Towers inside other models: swapped in a sharing copy, and exported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import tiny
import torch
from timm.models import NaFlexVit
from timm_tiny import BATCH
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import naflex_export as nx
from naflex_export.models import adapter_of, towers_in
from naflex_export.models.model_sources import randomize, weights_sha256
from naflex_export.models.timm_naflex import VectorizedNaFlexEmbeds
from naflex_export.models.towers import remarks_on

INPUTS = (BATCH.patches, BATCH.patch_coord, BATCH.patch_valid)
BUCKET = nx.Bucket(32, (1, 3, 8))


class Around(nn.Module):
    """A user's module with a tower inside, which it also refers to from a list, and a part of it by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.body = tiny.shallow_classifier()
        self.patch = self.body.embeds
        self.parts = [self.body]
        self.top = nn.Linear(10, 2)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.top(self.parts[0](*inputs))


class Twice(nn.Module):
    """A model with two towers of its own and one of them under a second name."""

    def __init__(self) -> None:
        super().__init__()
        self.student, self.teacher = tiny.classifier(), tiny.naflexvit("naflexvit_base_patch16_gap", num_classes=10)
        self.again = self.student

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.student(*inputs) - 0.5 * self.teacher(*inputs) + self.again(*inputs)


def features_only() -> nn.Module:
    options = {"embed_dim": 32, "num_heads": 2, "patch_size": 4}
    model = timm.create_model("naflexvit_base_patch16_gap", features_only=True, depth=4, **options)
    model.output_fmt = "NLC"
    return model


def of_features(model: nn.Module) -> Tensor:
    names = ("patches", "patch_coord", "patch_valid")
    return torch.stack(model(dict(zip(names, INPUTS, strict=True))))


def call(model: nn.Module) -> Tensor:
    return model(*INPUTS)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], Tensor], list[str]]] = {
    "users-own": (Around, call, ["body"]),
    "two-towers": (Twice, call, ["student", "teacher"]),
    "features-only": (features_only, of_features, ["model"]),
    "sequential": (lambda: nn.ModuleDict({"a": tiny.siglip()}), lambda model: model["a"](*INPUTS), ["a"]),
    "averaged": (lambda: AveragedModel(tiny.classifier()), call, ["module"]),
    "compiled": (lambda: torch.compile(tiny.siglip(), backend="eager"), call, ["_orig_mod"]),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_tower_is_swapped_in_a_sharing_copy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, run, paths = MODELS[name]
    model = make().eval()
    randomize(model, seed=2)
    assert list(towers_in(model)) == paths
    fast = nx.vectorize(model)
    assert type(fast) is type(model) and fast is not model
    with torch.no_grad():
        expected = run(model)
        monkeypatch.setattr(nn.functional, "interpolate", None)  # what timm's loop calls
        found = run(fast)
        with pytest.raises(TypeError):
            run(model)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    own = model.state_dict()
    assert list(fast.state_dict()) == list(own)
    assert all(tensor.data_ptr() == own[key].data_ptr() for key, tensor in fast.state_dict().items())
    assert not any(adapter_of(tower).is_vectorized for tower in towers_in(model).values())
    assert nx.vectorize(fast) is fast


def test_a_model_refers_to_its_swapped_tower_wherever_it_did() -> None:
    fast = nx.vectorize(Around())
    assert fast.parts[0] is fast.body and fast.patch is fast.body.embeds
    assert isinstance(fast.patch, VectorizedNaFlexEmbeds)
    twice = nx.vectorize(Twice())
    assert twice.again is twice.student


def test_a_tower_inside_is_exported_and_said(tmp_path: Path) -> None:
    model = Around().eval()
    with pytest.warns(UserWarning, match="the model is a Around: what is exported and judged is its tower `body`"):
        artifact = nx.export(model, "onnx", tmp_path / "a", [BUCKET], effort="quick")
    with torch.no_grad():
        expected = model.body(*INPUTS)
    assert (nx.load(tmp_path / "a")(*INPUTS) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert artifact.manifest.model["weights_sha256"] == weights_sha256(model.body)
    assert nx.gate(nx.load(tmp_path / "a"), reference=model, effort="quick").passed


def test_a_tower_that_pools_nothing_gives_tokens(tmp_path: Path) -> None:
    model = features_only().eval()
    randomize(model, seed=2)
    assert adapter_of(model).default_outputs == ("tokens",)
    assert "tokens, no features" in remarks_on(model)[1]
    with pytest.warns(UserWarning, match="its tower `model`"):
        artifact = nx.export(model, "onnx", tmp_path / "a", [BUCKET], effort="quick")
    assert [spec.name for spec in artifact.manifest.outputs] == ["tokens"]
    assert nx.gate(nx.load(tmp_path / "a").__call__, model, buckets=[BUCKET], effort="quick").passed


def test_of_several_towers_one_has_to_be_given() -> None:
    with pytest.raises(nx.UnsupportedModelError, match=r"holds 2 towers \(student, teacher\): .*such as model.student"):
        adapter_of(Twice())


def test_a_model_with_no_tower_is_refused() -> None:
    with pytest.raises(nx.UnsupportedModelError, match="is no model this release knows, and holds none"):
        nx.vectorize(nn.Sequential(nn.Linear(2, 2)))


def test_what_is_around_a_tower_is_not_compiled_away() -> None:
    with pytest.raises(
        nx.UnsupportedModelError, match=r"torch.compile\(nx.vectorize\(model\)\).*nx.compile\(model.body\)"
    ):
        nx.compile(Around())


def test_what_cannot_be_copied_says_what_to_do() -> None:
    class Stubborn(Around):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("no copies")

    with pytest.raises(nx.UnsupportedModelError, match=r"no copies\): .* model.body = nx.vectorize\(model.body\)"):
        nx.vectorize(Stubborn())


def test_a_tower_of_an_unknown_option_is_refused_by_name_inside_too() -> None:
    model = Around()
    model.body.embeds.pos_embed_rotation = True
    with pytest.raises(nx.UnsupportedModelError, match="pos_embed_rotation"):
        nx.vectorize(model)


def test_gradients_reach_the_shared_parameters() -> None:
    model = Around().eval()
    fast, weight = nx.vectorize(model), model.body.embeds.pos_embed
    found, expected = (torch.autograd.grad(m(*INPUTS).square().sum(), weight)[0] for m in (fast, model))
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_a_wrapper_of_transformers_is_one_too() -> None:
    transformers = pytest.importorskip("transformers")
    options = {"depth": 1, "embed_dim": 32, "num_heads": 2, "patch_size": 4}
    config = transformers.TimmWrapperConfig(architecture="naflexvit_base_patch16_gap", model_args=options)
    model = transformers.TimmWrapperModel(config).eval()
    assert list(towers_in(model)) == ["timm_model"] and isinstance(model.timm_model, NaFlexVit)
    assert isinstance(nx.vectorize(model).timm_model.embeds, VectorizedNaFlexEmbeds)
