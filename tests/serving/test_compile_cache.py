"""Compiled code in an artifact is used on a machine of the same kind, and said to be left alone on another."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from artifacts import edit

import naflex_export as nx
from naflex_export.graph.build_settings import BuildSettings
from naflex_export.serving.compile_cache import FOLDER, CompileCache, made_for

CPU = torch.device("cpu")

RUN = """
import os, sys, torch
torch.set_num_threads(int(sys.argv[2]))
import naflex_export as nx
from naflex_export.batch import noise_batch
from naflex_export.grid import Grid
from torch._dynamo.utils import counters

run = nx.load(sys.argv[1])
for count in (1, 2, 3):
    batch = noise_batch("cached", [Grid(3, 4)] * count, 16, 48)
    run(batch.patches, batch.patch_coord, batch.patch_valid)
found = counters["inductor"]
print(found["fxgraph_cache_hit"], found["fxgraph_cache_miss"], repr(run.cache.why_unused))
"""


def folder_with_cache(folder: Path) -> dict[str, object]:
    (folder / FOLDER / "ab").mkdir(parents=True)
    (folder / FOLDER / "ab" / "kernel.so").write_bytes(b"code")
    return {f"{FOLDER}/ab/kernel.so": {}, "model.pt2": {}}


def test_it_is_used_where_all_is_the_same_and_goes_with_its_runner(tmp_path: Path) -> None:
    files = folder_with_cache(tmp_path)
    before = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    cache = CompileCache(tmp_path, files, made_for(CPU), CPU)
    assert cache.why_unused == ""
    with cache.compiling():
        own = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
        assert (own / "ab" / "kernel.so").read_bytes() == b"code" and tmp_path not in own.parents
        assert not (own / "model.pt2").exists()
    assert os.environ.get("TORCHINDUCTOR_CACHE_DIR") == before
    del cache
    assert not own.exists()


@pytest.mark.parametrize("name", sorted(made_for(CPU)))
def test_it_is_left_alone_where_anything_differs(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files, said = folder_with_cache(tmp_path), {**made_for(CPU), name: "another"}
    cache = CompileCache(tmp_path, files, said, CPU)
    assert cache.why_unused == f"it was made for {name} 'another', and here it is {made_for(CPU)[name]!r}"
    assert f"the artifact's compile cache is not used ({cache.why_unused}): the first calls compile" in caplog.text
    before = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    with cache.compiling():
        assert os.environ.get("TORCHINDUCTOR_CACHE_DIR") == before


def test_an_artifact_without_one_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert CompileCache(tmp_path, {}, None, CPU).why_unused == "the artifact has none" and not caplog.text


def test_other_targets_have_none(tmp_path: Path) -> None:
    with pytest.raises(nx.RequestError, match="target 'onnx' has no compile cache"):
        nx.export(tiny.shallow(), "onnx", tmp_path / "a", settings=BuildSettings(compile_cache=True))


@pytest.mark.full
def test_the_graph_is_found_in_another_process(tmp_path: Path) -> None:
    settings = BuildSettings(compile_cache=True)
    artifact = nx.export(
        tiny.shallow(), "compile", tmp_path / "a", [nx.Bucket(16, (1, 2, 4))], effort="quick", settings=settings
    )
    cached = [name for name in artifact.manifest.files if name.startswith("cache/")]
    assert any(name.endswith(".so") for name in cached) and not any(name.endswith((".cpp", ".py")) for name in cached)

    def loaded(path: Path, threads: int = torch.get_num_threads()) -> tuple[str, str]:
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "own")}
        done = subprocess.run(
            [sys.executable, "-c", RUN, str(path), str(threads)],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        )
        return done.stdout.strip(), done.stderr

    assert loaded(artifact.path)[0] == "1 0 ''"
    assert nx.load(artifact.path).manifest == artifact.manifest  # nothing was written into it
    edit(artifact.path, lambda fields: fields["build"]["cache"].update(torch="0.1"))
    found, said = loaded(artifact.path)
    assert found.startswith("0 1 ") and "made for torch '0.1'" in said
