"""Photos on a disk become shards: each photo there once, whatever was killed on the way."""

from __future__ import annotations

import errno
import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_preprocess as shared
from artifacts import fill_pooling, pooled
from click.testing import CliRunner, Result
from PIL import Image

import naflex_export as nx
from naflex_export.cli.embed import embed_command
from naflex_export.embed.embed_files import embed_files
from naflex_export.embed.embed_request import EmbedRequest
from naflex_export.embed.sources import source_of

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

COUNT, SHARD = 45, 8
BAD = (3, 17, 44)
BAD_AT = 22
"""Where one of them is in order: those of the folder within it come last."""


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill_pooling(tmp_path_factory.mktemp("files") / "a", buckets=(nx.Bucket(6), nx.Bucket(16, (1, 4, 4))))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of photos, three of them broken, with what else lies in folders."""
    made = tmp_path_factory.mktemp("photos")
    (made / "deep" / ".hidden").mkdir(parents=True)
    for index in range(COUNT):
        path = made / ("deep" if index % 2 else ".") / f"{index:02d}.png"
        shared.drawn(3 + 5 * (index % 4), 4 + 3 * (index % 5)).save(path)
        if index in BAD:
            path.write_bytes(b"<html>" if index != 17 else path.read_bytes()[:60])
    (made / "notes.txt").write_text("no photo")
    (made / ".hidden.png").write_bytes(b"no photo")
    (made / "deep" / ".hidden" / "x.png").write_bytes(b"no photo")
    return made


def rows_in(out: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(out.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def check(out: Path, artifact: Path, photos: list[Any], names: list[str]) -> None:
    """Check that each photo is there once, in order, with its own vector or an error."""
    rows, pre = rows_in(out), nx.Preprocessor.of(artifact)
    assert [row["path"] for row in rows] == names
    for row, photo in zip(rows, photos, strict=True):
        try:
            patches, grid = pre.one(photo)
        except nx.PhotoError as error:
            assert row["vector"] is None and row["grid"] is None and row["error"] == str(error)
            continue
        wanted = pooled(pre.collate([(patches, grid)]))[0]
        assert row["error"] is None and row["grid"] == list(grid)
        assert np.abs(np.array(row["vector"]) - wanted).max() <= 1e-5 * np.abs(wanted).max()


def files_of(folder: Path) -> list[str]:
    return list(source_of([folder]).names)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(embed_command, [str(argument) for argument in arguments])


def test_a_folder_becomes_shards(artifact: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    done = run(artifact, folder, "--out", out, "--shard", SHARD)
    assert done.exit_code == 0, done.output
    names = files_of(folder)
    assert len(names) == COUNT and names == sorted(names, key=lambda name: ("deep" in name, name))
    check(out, artifact, names, names)
    assert sorted(path.name for path in out.iterdir()) == [
        "_made_from.json",
        "_run.json",
        *(f"part-{number:08d}.parquet" for number in range(6)),
    ]
    assert pq.read_table(out)["path"].to_pylist() == names  # as a whole, in order
    kind = pq.read_schema(out / "part-00000000.parquet").field("vector").type
    assert kind == pa.list_(pa.float32(), 32)
    columns = pq.ParquetFile(out / "part-00000000.parquet").metadata.row_group(0)
    assert columns.column(2).path_in_schema.startswith("vector.") and not columns.column(2).has_dictionary_page
    assert f"{COUNT - 3} vectors of {COUNT} photos in {out}" in done.output and done.output.count("failed ") == 3
    (line,) = [line for line in done.output.splitlines() if line.startswith("failed") and names[BAD_AT] in line]
    assert line.count(names[BAD_AT]) == 1 and "cannot be read" in line
    strict = run(artifact, folder, "--out", out, "--shard", SHARD, "--strict")
    assert strict.exit_code == 2 and "3 of 45 photos failed, and --strict was given" in strict.output
    assert f"; {COUNT} were there before" in strict.output


def contents(folder: Path) -> list[bytes]:
    return [Path(name).read_bytes() for name in files_of(folder)]


def as_list(folder: Path, to: Path) -> tuple[Path, list[str]]:
    names = files_of(folder)
    (to / "list.txt").write_text("\n".join([*names[:5], "", *names[5:], "gone.png"]))
    return to / "list.txt", [*names, str(to / "gone.png")]


def as_tars(folder: Path, to: Path) -> tuple[Path, list[str]]:
    """Return a folder of two tars, with what WebDataset keeps beside photos."""
    (to / "tars").mkdir()
    names = []
    for part, chosen in enumerate((range(20), range(20, COUNT))):
        path = to / "tars" / f"{part}.tar"
        with tarfile.open(path, "w") as archive:
            for index in chosen:
                for suffix, content in (("png", contents(folder)[index]), ("json", b"{}")):
                    member = tarfile.TarInfo(f"{index:04d}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
                names.append(f"{path}/{index:04d}.png")
    return to / "tars", names


def as_parquet(folder: Path, to: Path) -> tuple[Path, list[str]]:
    rows = [{"bytes": content, "path": "same"} for content in contents(folder)]
    path = to / "photos.parquet"
    pq.write_table(pa.table({"label": list(range(COUNT)), "image": rows}), path, row_group_size=7)
    return path, [f"{path}#{row}" for row in range(COUNT)]


@pytest.mark.parametrize("make", [as_list, as_tars, as_parquet], ids=["list", "tars", "parquet"])
def test_lists_tars_and_parquet_are_read_too(make: Any, artifact: Path, folder: Path, tmp_path: Path) -> None:
    given, names = make(folder, tmp_path)
    done = run(artifact, given, "--out", tmp_path / "out", "--shard", SHARD)
    assert done.exit_code == 0, done.output
    photos = names if make is as_list else contents(folder)
    check(tmp_path / "out", artifact, photos, names)


KILL = """
import os, signal, sys
from pathlib import Path
from naflex_export.embed.embed_files import embed_files
from naflex_export.embed.embed_request import EmbedRequest

done = 0
def tell(photos, failed):
    global done
    done += photos
    if done >= int(sys.argv[4]):  # several workers may step over it
        os.kill(os.getpid(), signal.SIGKILL)

artifact, photos, out = map(Path, sys.argv[1:4])
embed_files(EmbedRequest(artifact, (photos,), out, shard=8, workers=int(sys.argv[5])), tell)
"""


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.full)])
def test_a_run_that_was_killed_goes_on(workers: int, artifact: Path, folder: Path, tmp_path: Path) -> None:
    out, names = tmp_path / "out", files_of(folder)
    for after in (20, 9):
        arguments = [artifact, folder, out, after, workers]
        killed = subprocess.run([sys.executable, "-c", KILL, *map(str, arguments)], check=False, capture_output=True)
        assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    (out / ".part-00000005.parquet.999.tmp").write_bytes(b"half a shard")
    there = len(rows_in(out))
    assert 16 <= there < COUNT
    done = run(artifact, folder, "--out", out, "--shard", SHARD)
    assert done.exit_code == 0 and f"; {there} were there before" in done.output
    check(out, artifact, names, names)
    assert not list(out.glob(".*"))


@pytest.mark.full
def test_a_worker_that_was_killed_loses_nothing(artifact: Path, folder: Path, tmp_path: Path) -> None:
    told, killed = [0, 0], []

    def tell(photos: int, failed: int) -> None:
        told[0] += photos
        told[1] += failed
        if told[0] >= 10 and not killed:
            killed.append(multiprocessing.active_children()[0].pid)
            os.kill(killed[0], signal.SIGKILL)

    request = EmbedRequest(artifact, (folder,), tmp_path / "out", shard=SHARD, workers=2)
    found = embed_files(request, tell)
    names = files_of(folder)
    check(tmp_path / "out", artifact, names, names)
    assert (
        killed
        and told == [COUNT, 3]
        and [name for name, _ in found.failures] == [row["path"] for row in rows_in(tmp_path / "out") if row["error"]]
    )
    assert not multiprocessing.active_children()


@pytest.mark.full
def test_a_shard_that_ends_every_worker_ends_the_run(artifact: Path, folder: Path, tmp_path: Path) -> None:
    def tell(photos: int, failed: int) -> None:
        for child in multiprocessing.active_children():
            os.kill(int(child.pid or 0), signal.SIGKILL)

    request = EmbedRequest(artifact, (folder,), tmp_path / "out", shard=COUNT, workers=2)
    with pytest.raises(nx.BackendError, match="a worker ended 3 times over photos .* exit code -9"):
        embed_files(request, tell)


def test_what_cannot_be_is_refused(artifact: Path, folder: Path, tmp_path: Path) -> None:
    def said(*arguments: object) -> tuple[int, str]:
        done = run(*arguments)
        return done.exit_code, " ".join(done.output.split())

    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "x.tar").write_bytes(b"no tar" * 300)
    pq.write_table(pa.table({"a": [1]}), tmp_path / "numbers.parquet")
    for given, text in {
        tmp_path / "none": "it does not exist",
        tmp_path / "empty": "there is no photo in",
        tmp_path / "list.txt": "is no text in UTF-8",
        tmp_path / "x.tar": "cannot be read as a tar",
        tmp_path / "numbers.parquet": "has no column of bytes among a",
    }.items():
        code, output = said(artifact, given, "--out", out)
        assert code == 2 and text in output and not out.exists()
    assert said(tmp_path, folder, "--out", out)[0] == 2
    assert said(artifact, folder, "--out", folder)[1].endswith(
        "which is no shard: expected a new folder, or one that a run began"
    )
    (tmp_path / "file").write_text("")
    code, output = said(artifact, folder, "--out", tmp_path / "file")
    assert code == 2 and "cannot be written to" in output
    code, output = said(artifact, folder, "--out", out, "--contact-sheet", out / "page.html")
    assert code == 2 and "lies among the shards" in output


def test_a_run_that_is_stopped_says_what_is_kept(
    artifact: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pq, "write_table", stopped)
    done = run(artifact, folder, "--out", tmp_path / "out")
    assert done.exit_code == 130 and "interrupted; the shards that are done are kept" in done.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["_made_from.json", "_run.json"]


def test_a_run_without_a_shard_binds_no_other(artifact: Path, folder: Path, tmp_path: Path) -> None:
    out, kept = tmp_path / "out", tmp_path / "kept"
    kept.mkdir()
    for given in (("--device", "tpu"), ("--tokens", 99), ("--untrusted", "--device", "cuda:99")):
        for there in (out, kept):
            assert run(artifact, folder, "--out", there, *given).exit_code in (2, 3)
    assert not out.exists() and not list(kept.iterdir())
    killed = {"artifact": "0", "photos": "0", "count": 1, "shard": 1, "settings": {}}
    (kept / "_run.json").write_text(json.dumps(killed))
    assert run(artifact, folder, "--out", kept, "--shard", SHARD, "--tokens", 4).exit_code == 0
    assert json.loads((kept / "_run.json").read_text())["settings"]["tokens"] == 4


def test_another_run_into_the_same_folder_is_refused(artifact: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(artifact, folder, "--out", out, "--shard", SHARD).exit_code == 0
    for change, text in (
        (("--shard", 9), "vectors of --shard: 8 there, 9 now"),
        (("--shard", SHARD, "--tokens", 4), "vectors of settings: "),
        (("--shard", SHARD, "--exif", "ignore"), "vectors of settings: "),
    ):
        done = run(artifact, folder, "--out", out, *change)
        assert done.exit_code == 2 and text in " ".join(done.output.split())
    done = run(artifact, folder / "deep", "--out", out, "--shard", SHARD)
    assert done.exit_code == 2 and "vectors of other photos" in done.output
    other = fill_pooling(tmp_path / "b", buckets=(nx.Bucket(16),))
    done = run(other, folder, "--out", out, "--shard", SHARD)
    assert done.exit_code == 2 and "vectors of another artifact" in done.output
    (out / "_run.json").write_text("{")
    done = run(artifact, folder, "--out", out, "--shard", SHARD)
    assert done.exit_code == 2 and "_run.json" in done.output


def test_two_runs_at_once_are_told_apart(artifact: Path, folder: Path, tmp_path: Path) -> None:
    inner = []

    def tell(photos: int, failed: int) -> None:
        if not inner:
            inner.append(run(artifact, folder, "--out", tmp_path / "out", "--shard", SHARD))

    embed_files(EmbedRequest(artifact, (folder,), tmp_path / "out", shard=SHARD), tell)
    assert inner[0].exit_code == 2 and "another run writes to" in inner[0].output


def test_a_full_disk_is_said_and_nothing_is_lost(
    artifact: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, write = tmp_path / "out", pq.write_table

    def full(table: Any, path: Path, **options: Any) -> None:
        if "00000002" in path.name:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        write(table, path, **options)

    with monkeypatch.context() as patched:
        patched.setattr(pq, "write_table", full)
        done = run(artifact, folder, "--out", out, "--shard", SHARD)
    assert done.exit_code == 2 and "No space left on device" in done.output and "make room" in done.output
    assert len(rows_in(out)) == 2 * SHARD and not list(out.glob(".*"))
    assert run(artifact, folder, "--out", out, "--shard", SHARD).exit_code == 0
    check(out, artifact, files_of(folder), files_of(folder))


def test_a_contact_sheet_shows_photos_beside_their_neighbours(artifact: Path, tmp_path: Path) -> None:
    photos = tmp_path / "<photos>"
    photos.mkdir()
    for name, colour in {"red": (250, 0, 0), "dark red": (200, 0, 0), "blue": (0, 0, 250), "navy": (0, 0, 200)}.items():
        Image.new("RGB", (16, 16), colour).save(photos / f"{name}.png")
    (photos / "bad.png").write_bytes(b"no photo")
    sheet = tmp_path / "sheet.html"
    assert run(artifact, photos, "--out", tmp_path / "out", "--contact-sheet", sheet).exit_code == 0
    page = sheet.read_text()
    rows = page.split('<div class="row">')[1:]
    order = [[part.split(".png")[0] for part in row.split("<figcaption>")[1:]] for row in rows]
    assert [row[:2] for row in order] == [
        ["blue", "navy"],
        ["dark red", "red"],
        ["navy", "blue"],
        ["red", "dark red"],
    ]
    assert page.count("data:image/jpeg;base64,") == 16 and "<photos>" not in page
    assert json.loads((tmp_path / "out" / "_run.json").read_text())["count"] == 5


def test_vectors_inside_the_photos_folder_are_no_photos(tmp_path: Path) -> None:
    """As `naflex-embed DIR . --out vectors` leaves them, to be searched and gone on with."""
    (tmp_path / "vectors" / "more").mkdir(parents=True)
    for name in ("b.jpg", "vectors/_run.json", "vectors/part-00000000.parquet", "vectors/more/a.jpg", "a.jpg"):
        (tmp_path / name).touch()
    assert list(source_of([tmp_path]).names) == [str(tmp_path / "a.jpg"), str(tmp_path / "b.jpg")]


def test_a_contact_sheet_shows_no_photo_that_is_another_by_now(artifact: Path, tmp_path: Path) -> None:
    """A run that goes on, or is only asked for its page again, has vectors of photos as they were."""
    photos, sheet = tmp_path / "photos", tmp_path / "sheet.html"
    photos.mkdir()
    for name, colour in {"red": (250, 0, 0), "blue": (0, 0, 250), "navy": (0, 0, 200)}.items():
        Image.new("RGB", (16, 16), colour).save(photos / f"{name}.png")
    command = (artifact, photos, "--out", tmp_path / "out", "--contact-sheet", sheet)
    assert run(*command).exit_code == 0 and sheet.read_text().count("<img") == 9
    Image.new("RGB", (16, 16), "green").save(photos / "blue.png")
    done = run(*command)
    assert done.exit_code == 0 and "; 3 were there before" in done.output
    assert f"not shown {photos / 'blue.png'}: it has changed since it was embedded" in " ".join(done.stderr.split())
    assert sheet.read_text().count("<img") == 6 and sheet.read_text().count('<div class="gap">it has changed') == 3
    for shard in (tmp_path / "out").glob("*.parquet"):  # as an earlier release wrote it
        pq.write_table(pq.read_table(shard).drop_columns(["sha256"]), shard)
    assert run(*command).exit_code == 0 and sheet.read_text().count("<img") == 9
