"""Checkpoints as training scripts and libraries leave them."""

from __future__ import annotations

import argparse
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import tiny
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

import naflex_export as nx
from naflex_export.models.checkpoints import load_checkpoint
from naflex_export.models.model_sources import ModelSource, randomize, weights_sha256

State = dict[str, Tensor]
OWN = "tiny:classifier"


def state(seed: int = 7) -> State:
    """Return a state of `tiny.classifier`, another for each seed."""
    model = tiny.classifier()
    randomize(model, seed)
    return model.state_dict()


def prefixed(prefix: str, seed: int = 7) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state(seed).items()}


def loaded_from(path: Path, content: Any = None, label: str = "") -> tuple[State, str, str]:
    """Return what a checkpoint gave the model, where it was, and what was said of it."""
    if content is not None:
        torch.save(content, path)
    model = tiny.classifier()
    taken = load_checkpoint(model, path, label)
    return model.state_dict(), taken.label, taken.note


def is_state(found: State, seed: int = 7) -> bool:
    return all(torch.equal(found[name], tensor) for name, tensor in state(seed).items())


@pytest.mark.parametrize("name", ["w.pth.tar", "w.ckpt", "w.bin", "w.pt"])
def test_files_of_any_training_script_are_read(tmp_path: Path, name: str) -> None:
    loaded, label, note = loaded_from(tmp_path / name, {"epoch": 3, "state_dict": state()})
    assert is_state(loaded) and label == "state_dict" and "no average" in note
    ModelSource(OWN, str(tmp_path / name)).check()


@pytest.mark.parametrize(
    ("wrapped", "label"),
    [
        (state, ""),
        (lambda: prefixed("module."), ""),
        (lambda: prefixed("_orig_mod."), ""),
        (lambda: prefixed("module._orig_mod."), ""),
        (lambda: prefixed("model."), "model"),
        (lambda: prefixed("net.backbone."), "net.backbone"),
        (lambda: {**prefixed("model."), "loss.weight": torch.ones(2)}, "model"),
        (lambda: {name.replace("blocks.0.", "blocks.0._orig_mod."): t for name, t in state().items()}, ""),
    ],
    ids=["plain", "module", "compiled", "both", "model", "two-words", "with-a-loss", "one-block-compiled"],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_prefixes_are_seen_through(tmp_path: Path, wrapped: Any, label: str, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save(wrapped(), path)
    else:
        save_file(wrapped(), path)
    loaded, found, note = loaded_from(path)
    assert is_state(loaded) and found == label
    assert ("left out: loss.weight" in note) == ("loss.weight" in wrapped())


def test_an_average_is_taken_and_said_and_either_can_be_asked_for(tmp_path: Path) -> None:
    path, content = tmp_path / "w.ckpt", {"state_dict": state(1), "state_dict_ema": prefixed("module.", 2)}
    loaded, label, note = loaded_from(path, content)
    assert is_state(loaded, 2) and label == "state_dict_ema"
    assert "an average (EMA)" in note and "it also holds 'state_dict', which --checkpoint-state chooses" in note
    loaded, label, note = loaded_from(path, label="state_dict")
    assert is_state(loaded, 1) and label == "state_dict" and "no average" in note
    with pytest.raises(nx.RequestError, match=r"holds no state 'ema': it holds 'state_dict', 'state_dict_ema'"):
        loaded_from(path, label="ema")
    source = ModelSource(OWN, str(path)).open().source
    assert source.describe()["checkpoint_state"] == "state_dict_ema"


def test_averages_of_torch_and_of_lightning_are_known(tmp_path: Path) -> None:
    model = tiny.classifier()
    averaged = AveragedModel(model)
    randomize(averaged.module, 7)
    loaded, _, note = loaded_from(tmp_path / "a.pth", averaged.state_dict())
    assert is_state(loaded) and "an average (EMA)" in note
    both = {"state_dict": {**prefixed("model.", 1), **prefixed("ema_model.module.", 2)}}
    loaded, label, _ = loaded_from(tmp_path / "b.ckpt", both)
    assert is_state(loaded, 2) and label == "state_dict.ema_model"


def test_two_states_as_good_are_left_to_the_user(tmp_path: Path) -> None:
    content = {"student": state(1), "teacher": state(2)}
    with pytest.raises(nx.RequestError, match=r"\('student', 'teacher'\): say which with --checkpoint-state"):
        loaded_from(tmp_path / "w.pth", content)
    loaded, label, _ = loaded_from(tmp_path / "w.pth", label="teacher")
    assert is_state(loaded, 2) and label == "teacher"


def test_plain_values_beside_the_weights_are_read(tmp_path: Path) -> None:
    args = argparse.Namespace(lr=np.float64(0.1), epochs=3, out=Path("runs/1"), sizes=np.array([1, 2]))
    content = {
        "state_dict": state(),
        "args": args,
        "best": np.float32(0.5),
        "seen": np.int64(3),
        "flag": np.bool_(True),
    }
    assert is_state(loaded_from(tmp_path / "w.pth.tar", content)[0])


class Trainer:
    """An object of a training script's own."""


def test_an_unknown_class_is_named_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(nx.RequestError, match=r"holds objects of .*Trainer.*torch.save\(model.state_dict\(\), FILE\)"):
        loaded_from(tmp_path / "w.pth", {"state_dict": state(), "trainer": Trainer()})


def shards(folder: Path, named: bool = True) -> Path:
    folder.mkdir()
    tensors = sorted(state().items())
    half = len(tensors) // 2
    parts = {"model-00001-of-00002.safetensors": tensors[:half], "model-00002-of-00002.safetensors": tensors[half:]}
    for file, part in parts.items():
        save_file(dict(part), folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, part in parts.items() for name, _ in part}}
    if named:
        (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def test_shards_are_put_together(tmp_path: Path) -> None:
    folder = shards(tmp_path / "a")
    assert is_state(loaded_from(folder)[0])
    assert is_state(loaded_from(folder / "model.safetensors.index.json")[0])
    assert is_state(loaded_from(shards(tmp_path / "b", named=False))[0])
    described = ModelSource(OWN, str(folder)).describe()
    assert len(described["checkpoint_sha256"]) == 64
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(nx.RequestError, match=r"'model-00002-of-00002.safetensors', which is missing"):
        ModelSource(OWN, str(folder)).check()
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(nx.RequestError, match="holds 1 shards of 2"):
        loaded_from(folder)


def test_an_index_stays_in_its_folder(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}), encoding="utf-8")
    with pytest.raises(nx.RequestError, match=r"names '../other.safetensors': expected files of its own folder"):
        loaded_from(index)


def test_a_folder_of_several_checkpoints_is_not_guessed_at(tmp_path: Path) -> None:
    with pytest.raises(nx.RequestError, match=r"holds no checkpoint: expected model.safetensors"):
        loaded_from(tmp_path)
    for name in ("one.pth", "two.pth"):
        torch.save(state(), tmp_path / name)
    with pytest.raises(nx.RequestError, match=r"holds several \(one.pth, two.pth\)"):
        loaded_from(tmp_path)


def test_what_only_looks_like_a_checkpoint_is_named(tmp_path: Path) -> None:
    pointer = tmp_path / "w.safetensors"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", encoding="utf-8")
    with pytest.raises(nx.RequestError, match="is a Git LFS pointer"):
        loaded_from(pointer)
    torch.save({"zeros": torch.zeros(2_000_000)}, tmp_path / "a.pth")
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as plain,
        zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as b,
    ):
        for member in plain.infolist():
            b.writestr(member.filename, plain.read(member))
    with pytest.raises(nx.RequestError, match=r"bytes expand to 80\d+, which no file of weights does"):
        loaded_from(tmp_path / "b.pth")


def without(names: str) -> State:
    return {name: tensor for name, tensor in state().items() if not name.startswith(names)}


def varied(name: str, shape: tuple[int, ...]) -> State:
    return {**state(), name: torch.ones(shape)}


@pytest.mark.parametrize(
    ("content", "given"),
    [
        ({**varied("head.weight", (30, 32)), "head.bias": torch.ones(30)}, "num_classes=30"),
        (without("head."), "num_classes=0"),
        (varied("embeds.proj.weight", (32, 4 * 4 * 4)), "in_chans=4"),
        (varied("embeds.proj.weight", (32, 8 * 8 * 3)), "patch_size=8"),
        (varied("embeds.pos_embed", (1, 7, 9, 32)), "pos_embed_grid_size=7,9"),
        (without("blocks.1."), "depth=1"),
        (varied("embeds.reg_token", (1, 2, 32)), "reg_tokens=2"),
    ],
    ids=["classes", "no-head", "channels", "patches", "grid", "depth", "registers"],
)
def test_a_checkpoint_of_another_configuration_says_what_to_give(tmp_path: Path, content: State, given: str) -> None:
    with pytest.raises(
        nx.RequestError, match=f"does not fit the model: .*it is one of {given}: give --model-args {given}"
    ):
        loaded_from(tmp_path / "w.pth", content)


def test_a_classic_vits_checkpoint_is_converted_once(tmp_path: Path) -> None:
    """The conversion of timm adds to the class token in place."""
    source = ModelSource("vit_tiny_patch16_224", "random", model_args={"depth": 1, "embed_dim": 48, "img_size": 32})
    model = source.load()
    classic = timm.create_model("vit_tiny_patch16_224", depth=1, embed_dim=48, img_size=32)
    torch.save({"state_dict": {f"model.{n}": t for n, t in classic.state_dict().items()}}, tmp_path / "w.ckpt")
    taken = load_checkpoint(model, tmp_path / "w.ckpt")
    assert taken.label == "state_dict.model"
    expected = classic.cls_token + classic.pos_embed[:, :1]
    assert torch.equal(model.embeds.cls_token, expected)


def test_a_state_is_not_asked_for_where_there_is_no_checkpoint() -> None:
    with pytest.raises(nx.RequestError, match="state 'ema' cannot be taken of random weights"):
        ModelSource(OWN, "random", state="ema").load()


def test_the_hash_is_of_the_weights_taken(tmp_path: Path) -> None:
    torch.save({"model": state(1), "model_ema": state(2)}, tmp_path / "w.pth")
    one, two = (weights_sha256(ModelSource(OWN, str(tmp_path / "w.pth"), state=name).load()) for name in ("model", ""))
    assert one != two
