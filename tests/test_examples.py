"""The examples run, and give what the package gives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from artifacts import edit, fill_pooling
from embed import test_preprocess as shared
from PIL import Image

import naflex_export as nx

EXAMPLES = Path(nx.__file__).parents[1] / "examples"

COLOURS = {"red": (250, 0, 0), "dark red": (200, 0, 0), "blue": (0, 0, 250), "navy": (0, 0, 200)}


def run(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    code = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    return subprocess.run(code, capture_output=True, text=True, check=True)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill_pooling(tmp_path_factory.mktemp("examples") / "a", buckets=(nx.Bucket(16),))


@pytest.mark.parametrize("upscale", [True, False])
def test_the_client_needs_nothing_of_the_package(upscale: bool, artifact: Path, tmp_path: Path) -> None:
    edit(artifact, lambda fields: fields["preprocessing"].update(upscale=upscale))
    exif = Image.Exif()
    exif[0x0112] = 6
    shared.drawn(23, 41).save(tmp_path / "photo.jpg", exif=exif)
    found = np.array(run("client.py", artifact, tmp_path / "photo.jpg").stdout.split(), np.float32)
    (expected,) = nx.Embedder(artifact)([tmp_path / "photo.jpg"])
    assert not isinstance(expected, nx.PhotoError)
    assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()
    text = (EXAMPLES / "client.py").read_text()
    assert "naflex_export" not in text and len(text.partition('"""\n\n')[2].split("\n")) <= 45


def test_a_search_finds_what_is_alike_and_names_what_is_no_photo(artifact: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, colour in COLOURS.items():
        Image.new("RGB", (16, 16), colour).save(folder / f"{name}.png")
    (folder / "notes.txt").write_text("no photo")
    done = run("search.py", artifact, folder, folder / "navy.png")
    assert [line.split(" ", 1)[1] for line in done.stdout.splitlines()][:2] == ["navy.png", "blue.png"]
    assert done.stderr.startswith("left out notes.txt: ")
