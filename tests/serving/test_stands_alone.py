"""A loaded artifact runs where nothing that builds one is installed."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import artifacts
import pytest
import tiny
import torch
from blocked import BLOCKED, run_blocked

import naflex_export as nx
from naflex_export.batch import noise_batch
from naflex_export.grid import Grid

LOAD_AND_CALL = """
import torch
import naflex_export as nx

given = torch.load(f"{folder}/given.pt")
given["found"] = nx.load(f"{folder}/a")(*given["inputs"])
torch.save(given, f"{folder}/found.pt")
found = {name.partition(".")[0] for name in sys.modules}
assert not found & set(BLOCKED), found & set(BLOCKED)
"""


TARGETS = ["onnx", *(pytest.param(name, marks=pytest.mark.full) for name in ("compile", "aot"))]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory, shallow_artifact: Path) -> Callable[[str], Path]:
    """The folder of a target, made once: an artifact, the inputs of a call, and what eager gives for them."""

    @functools.cache
    def made(target: str) -> Path:
        model, batch = tiny.shallow(), noise_batch("alone", [Grid(3, 4), Grid(2, 2)], 16, 48)
        inputs = batch.patches, batch.patch_coord, batch.patch_valid
        with torch.no_grad():
            wanted = model(*inputs)
        folder = tmp_path_factory.mktemp(f"alone-{target}")
        if target == "onnx":
            shutil.copytree(shallow_artifact, folder / "a")
        else:
            nx.export(model, target, folder / "a", [nx.Bucket(16, (1, 2, 4))], effort="quick")
        torch.save({"inputs": inputs, "wanted": wanted}, folder / "given.pt")
        return folder

    return made


@pytest.mark.parametrize("target", TARGETS)
def test_an_artifact_runs_without_what_built_it(folder_of: Callable[[str], Path], target: str, tmp_path: Path) -> None:
    # native code loads without a compiler too; a traced graph is compiled where it is loaded
    environment = {"PATH": str(tmp_path)} if target != "compile" else {}
    done = run_blocked(LOAD_AND_CALL, folder_of(target), **environment)
    assert done.returncode == 0, done.stderr
    found = torch.load(folder_of(target) / "found.pt")
    assert (found["found"] - found["wanted"]).abs().max() <= 1e-5 * found["wanted"].abs().max()


def test_what_is_blocked_is_missed(folder_of: Callable[[str], Path]) -> None:
    """The test above can fail: what an ONNX artifact does need is refused in the same way."""
    done = run_blocked(LOAD_AND_CALL, folder_of("onnx"), (*BLOCKED, "onnxruntime"))
    assert done.returncode != 0 and "onnxruntime" in done.stderr


@pytest.mark.parametrize("target", TARGETS)
def test_a_manifest_that_promises_more_than_the_file_is_refused(
    folder_of: Callable[[str], Path], target: str, tmp_path: Path
) -> None:
    """With its hash made right. Native code does not look at sizes, and would read past what it was compiled for."""
    shutil.copytree(folder_of(target) / "a", tmp_path / "a")
    (tokens,) = [bucket.tokens for bucket in nx.load(tmp_path / "a").manifest.buckets]
    if target != "compile":  # a traced graph's outputs have no names
        artifacts.edit(tmp_path / "a", lambda fields: fields["outputs"][0].update(name="tokens"))
        with pytest.raises(nx.ArtifactError, match="export again"):
            nx.load(tmp_path / "a")
        artifacts.edit(tmp_path / "a", lambda fields: fields["outputs"][0].update(name="features"))
        nx.load(tmp_path / "a")
    if target != "onnx":  # ONNX Runtime's graph takes any number
        artifacts.edit(tmp_path / "a", lambda fields: fields["buckets"][0].update(tokens=4 * tokens))
        with pytest.raises(nx.ArtifactError, match=r"was compiled for other .* buckets|graph takes up to 16 of tokens"):
            nx.load(tmp_path / "a")
