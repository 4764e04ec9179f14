"""2,000 photos, 3 % of them broken in ten ways: each accounted for, with the vector of the library's own loop."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import ray_here
import test_decode as broken
import test_preprocess as shared
import tiny
import torch
from click.testing import CliRunner
from PIL import Image
from timm.data.naflex_dataset import NaFlexCollator

import naflex_export as nx
from naflex_export.cli.embed import embed_command
from naflex_export.models import adapter_of

pq = pytest.importorskip("pyarrow.parquet")

COUNT, TOKENS = 2000, 16


def broken_in_ten_ways(folder: Path) -> list[Path]:
    """Write files that are no photos, and return their paths and those of what is none."""
    photo = shared.drawn(60, 60)
    jpeg, png = broken.saved(photo, "JPEG"), broken.saved(photo, "PNG")
    contents = {
        "empty.jpg": b"",
        "page.jpg": b"<html>404</html>",
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "cut.png": png[: len(png) // 2],
        "changed.png": png[:40] + b"\xff" * 1000 + png[1040:],
        "bomb.png": broken.bomb(60_000),
        "large.png": broken.bomb(10_000),
        "float.tif": broken.saved(Image.new("F", (9, 9)), "TIFF"),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "folder.jpg").mkdir()
    return [*(folder / name for name in contents), folder / "folder.jpg", folder / "missing.jpg"]


@pytest.mark.full
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_all_are_accounted_for_with_the_same_vectors(tmp_path: Path) -> None:
    model = tiny.siglip()
    artifact = nx.export(model, "onnx", tmp_path / "a", [nx.Bucket(TOKENS, (1, 8, 8))], effort="quick").path
    good = []
    for index in range(120):
        good.append(tmp_path / f"{index}.{'png' if index % 2 else 'jpg'}")
        shared.drawn(20 + index % 37, 15 + 3 * (index % 29)).convert("L" if index % 7 == 3 else "RGB").save(good[-1])
    bad = broken_in_ten_ways(tmp_path)
    paths = [bad[index // 33 % 10] if index % 33 == 5 else good[index % 120] for index in range(COUNT)]
    is_bad = np.array([index % 33 == 5 for index in range(COUNT)])
    assert is_bad.sum() == 61 and {path for path, wrong in zip(paths, is_bad, strict=True) if wrong} == set(bad)

    transform, collate = adapter_of(model).transform(TOKENS), NaFlexCollator(max_seq_len=TOKENS)
    wanted = {}
    for path in good:
        inputs, _ = collate([(transform(Image.open(path).convert("RGB")), 0)])
        with torch.no_grad():
            wanted[path] = model(inputs["patches"], inputs["patch_coord"], inputs["patch_valid"])[0].numpy()
    size = max(np.abs(vector).max() for vector in wanted.values())

    (tmp_path / "list.txt").write_text("\n".join(map(str, paths)))
    arguments = [artifact, tmp_path / "list.txt", "--out", tmp_path / "out", "--shard", 300, "--workers", 2]
    done = CliRunner().invoke(embed_command, list(map(str, arguments)))
    assert done.exit_code == 0 and f"{COUNT - 61} vectors of {COUNT} photos" in done.output
    rows = pq.read_table(tmp_path / "out").to_pylist()
    if importlib.util.find_spec("ray") is not None:
        by_ray = [*arguments[:2], "--out", tmp_path / "ray", "--shard", 300, "--ray", "auto"]
        with ray_here.head() as env:
            ran = ray_here.run("from naflex_export.cli.embed import embed_command as run; run()", *by_ray, env=env)
        assert ran.returncode == 0, ran.stderr
        for row, other in zip(rows, pq.read_table(tmp_path / "ray").to_pylist(), strict=True):
            assert {**row, "vector": 0} == {**other, "vector": 0}
            if row["vector"] is not None:
                assert np.abs(np.subtract(other["vector"], row["vector"])).max() <= 1e-6 * size
    assert [row["path"] for row in rows] == list(map(str, paths))
    found = list(nx.Embedder(artifact)(paths))
    assert len(found) == COUNT
    for path, wrong, vector, row in zip(paths, is_bad, found, rows, strict=True):
        assert isinstance(vector, nx.PhotoError) == (row["error"] is not None) == wrong, path
        if isinstance(vector, nx.PhotoError):
            assert row["vector"] is None and row["error"] == str(vector)
        else:
            assert np.abs(vector - wanted[path]).max() <= 1e-6 * size
            assert np.abs(np.array(row["vector"]) - wanted[path]).max() <= 1e-6 * size
