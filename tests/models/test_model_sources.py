"""Models by name or factory, and weights from a seed or a file."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import save_file
from timm.models import NaFlexVit

import naflex_export as nx
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
