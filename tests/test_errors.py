"""The errors of docs/errors.md, met for real: each names its place on the page and says what the page quotes of it."""

from __future__ import annotations

import functools
import importlib.util
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from artifacts import fill_pooling
from safetensors.torch import save_file
from test_docs import ROOT
from torch import nn

import naflex_export as nx
from naflex_export.batch import noise_batch
from naflex_export.embed.parquet import require_pyarrow
from naflex_export.grid import Grid
from naflex_export.models.model_sources import ModelSource
from naflex_export.serving import tensorrt_library
from naflex_export.serving.device import resolve_device

NAME = "naflexvit_base_patch16_siglip"
SMALL = {"embed_dim": 32, "depth": 1, "num_heads": 2}


def model_of(name: str, **arguments: int) -> Callable[[Path, pytest.MonkeyPatch, nn.Module], object]:
    return lambda there, patch, model: ModelSource(name, model_args=arguments).load()


def with_checkpoint(there: Path, patch: pytest.MonkeyPatch, model: nn.Module) -> None:
    save_file({"other.weight": torch.zeros(2)}, there / "last.safetensors")
    ModelSource(NAME, str(there / "last.safetensors"), model_args=SMALL).load()


def failed_gate(there: Path, patch: pytest.MonkeyPatch, model: nn.Module) -> None:
    def wrong(patches: torch.Tensor, patch_coord: torch.Tensor, patch_valid: torch.Tensor) -> torch.Tensor:
        return 1.01 * model({"patches": patches, "patch_coord": patch_coord, "patch_valid": patch_valid})

    nx.gate(wrong, reference=model, buckets=[nx.Bucket(16)]).raise_for_failure()


def without_tensorrt(there: Path, patch: pytest.MonkeyPatch, model: nn.Module) -> None:
    for library in ("tensorrt", "tensorrt_rtx"):
        patch.setitem(sys.modules, library, None)
    tensorrt_library.tensorrt.cache_clear()  # another test may have found it
    nx.export(model, "trt", there / "out")


def without_pyarrow(there: Path, patch: pytest.MonkeyPatch, model: nn.Module) -> None:
    patch.setitem(sys.modules, "pyarrow", None)
    require_pyarrow()


def without_cuda(there: Path, patch: pytest.MonkeyPatch, model: nn.Module) -> None:
    patch.setattr("torch.cuda.is_available", lambda: False)
    resolve_device(torch.device("cuda"))


def without_compiler(there: Path, patch: pytest.MonkeyPatch, model: nn.Module) -> None:
    patch.setenv("PATH", str(there))
    nx.export(model, "aot", there / "out")


def in_use(there: Path, patch: pytest.MonkeyPatch, model: nn.Module) -> None:
    (there / "web").mkdir()
    (there / "web" / "index.html").touch()
    nx.export(model, "onnx", "web")


def too_large(there: Path, patch: pytest.MonkeyPatch, model: nn.Module) -> None:
    batch = noise_batch("large", [Grid(32, 32)], 1024, 48)
    nx.load(there / "a")(batch.patches, batch.patch_coord, batch.patch_valid)


def too_many(there: Path, patch: pytest.MonkeyPatch, model: nn.Module) -> None:
    batch = noise_batch("many", [Grid(2, 2)] * 999, 4, 48)
    nx.load(there / "a")(batch.patches, batch.patch_coord, batch.patch_valid)


def damaged(change: Callable[[Path], object]) -> Callable[[Path, pytest.MonkeyPatch, nn.Module], None]:
    def load(there: Path, patch: pytest.MonkeyPatch, model: nn.Module) -> None:
        change(there / "a")
        nx.load(there / "a")

    return load


def edited(artifact: Path) -> None:
    text = (artifact / "manifest.json").read_text(encoding="utf-8")
    (artifact / "manifest.json").write_text(text.replace('"float32"', '"float16"', 1), encoding="utf-8")


def cut_off(artifact: Path) -> None:
    content = (artifact / "model.onnx").read_bytes()
    (artifact / "model.onnx").write_bytes(content[: len(content) // 2])


def turned(artifact: Path) -> None:
    content = (artifact / "model.onnx").read_bytes()
    (artifact / "model.onnx").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


MET = {
    "no-weights": ("pretrained-weights-cannot-be-had", model_of(NAME, **SMALL)),
    "no-hub": ("pretrained-weights-cannot-be-had", model_of("hf:google/siglip2-base-patch16-naflex")),
    "unknown-model": ("a-model-does-not-exist", model_of("naflexvit_bse_patch16_siglip")),
    "resnet": ("not-a-naflexvit", model_of("resnet50")),
    "other-checkpoint": ("a-checkpoint-does-not-fit", with_checkpoint),
    "gate-failed": ("the-gate-failed", failed_gate),
    "no-tensorrt": ("a-backend-package-or-gpu-is-missing", without_tensorrt),
    "no-pyarrow": ("a-backend-package-or-gpu-is-missing", without_pyarrow),
    "no-cuda": ("a-backend-package-or-gpu-is-missing", without_cuda),
    "no-compiler": ("no-c-compiler", without_compiler),
    "folder-in-use": ("the-folder-is-no-artifact", in_use),
    "too-many-tokens": ("no-bucket-takes-a-batch", too_large),
    "too-many-images": ("no-bucket-takes-a-batch", too_many),
    "manifest-edited": ("an-artifact-is-damaged", damaged(edited)),
    "file-cut-off": ("an-artifact-is-damaged", damaged(cut_off)),
    "file-changed": ("an-artifact-is-damaged", damaged(turned)),
    "file-missing": ("an-artifact-is-damaged", damaged(lambda artifact: (artifact / "model.onnx").unlink())),
    "file-added": ("an-artifact-is-damaged", damaged(lambda artifact: (artifact / "notes.txt").touch())),
    "folder-added": ("an-artifact-is-damaged", damaged(lambda artifact: shutil.copytree(artifact, artifact / "b"))),
}
"""By name: the place on the page, and what is done to meet the error."""


if importlib.util.find_spec("transformers") is None:  # of an extra
    del MET["no-hub"]


def sections() -> dict[str, str]:
    """Return what the page says, by anchor."""
    parts = re.split(r"^## (.+)$", (ROOT / "docs" / "errors.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    anchors = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in parts[::2]]
    return dict(zip(anchors, parts[1::2], strict=True))


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory, siglip: nn.Module) -> Callable[[str], str]:
    """Returns what is said in a case, by its name, each in a folder of its own from which no hub can be reached."""

    @functools.cache
    def told(name: str) -> str:
        there = tmp_path_factory.mktemp(name)
        fill_pooling(there / "a")
        with pytest.MonkeyPatch.context() as patch, pytest.raises(nx.NaflexExportError) as met:
            patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
            patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(there / "cache"))
            patch.chdir(there)
            MET[name][1](there, patch, siglip)
        return str(met.value)

    return told


@pytest.mark.parametrize("name", MET)
def test_an_error_leads_to_its_place_on_the_page(name: str, said: Callable[[str], str]) -> None:
    anchor, _ = MET[name]
    assert f"docs/errors.md#{anchor}" in said(name)


def test_the_page_quotes_what_is_said_and_each_of_its_places_is_met(said: Callable[[str], str]) -> None:
    for anchor, section in sections().items():
        messages = [said(name) for name, (its, _) in MET.items() if its == anchor]
        quotes = [line.removeprefix("> ") for line in section.splitlines() if line.startswith("> ")]
        assert messages and quotes, anchor
        for quote in quotes:
            parts = [part.strip() for part in re.split(r"'[^']*'|\.\.\.|\d+(?::[\d,]+)?", quote)]  # between its values
            assert any(all(part in message for part in parts if len(part) > 3) for message in messages), quote
