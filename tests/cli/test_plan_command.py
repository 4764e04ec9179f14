"""`naflex-plan`, as a user types it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from naflex_export.cli.plan import plan_command


def plan(*arguments: object) -> Result:
    return CliRunner().invoke(plan_command, [str(argument) for argument in arguments])


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 12 small and 12 large photos, among them one of another format, and what is left out."""
    folder = tmp_path_factory.mktemp("plan") / "photos"
    (folder / "deep").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    for number in range(12):
        Image.new("RGB", (64, 48)).save(folder / f"small{number}.png")
        Image.new("L", (640, 480)).save(folder / "deep" / f"large{number}.jpg")
    for hidden in (folder / ".thumb.jpg", folder / ".hidden" / "a.jpg"):
        hidden.write_bytes(b"no photo")
    return folder


def test_it_shows_the_histogram_the_padding_and_the_buckets_to_take(photos: Path) -> None:
    done = plan(photos, "--no-upscale")
    assert done.exit_code == 0, done.output
    assert done.stderr == "" and "\x1b" not in done.output
    assert max(map(len, done.stdout.splitlines())) <= 80
    said = flat(done.stdout)
    assert "24 photos, a budget of 256 tokens of 16x16 pixels, never enlarged" in said
    assert f"1-16 12 {'#' * 40} 17-32 0 33-48 0" in said and f"241-256 12 {'#' * 40}" in said
    assert "1 48.4% 100.0% 256 2 1.5% 52.3% 12 256 3 0.0% 51.6% 12 252 256" in said
    assert "One bucket pads 48.4% of the tokens; 2 buckets save 47.7% of all:" in said
    assert said.endswith("--no-upscale --bucket 12:1,8,32 \\ --bucket 256:1,8,32")


def test_programs_get_the_plan_alone_on_standard_output(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    done = plan(photos, tmp_path, "--no-upscale", "--json")
    assert done.exit_code == 0 and "2 buckets save 47.7% of all" in flat(done.stderr)
    found = json.loads(done.stdout)
    assert found["photos"] == 24 and found["tokens"] == {"12": 12, "252": 12}
    assert list(found["unreadable"]) == [str(tmp_path / "broken.jpg")]
    [taken] = [one for one in found["plans"] if one["taken"]]
    assert taken["buckets"] == ["12:1,8,32", "256:1,8,32"]
    assert (round(taken["padding"], 3), round(taken["cost"], 3)) == (0.015, 0.523)


def test_it_says_when_buckets_gain_nothing(photos: Path) -> None:
    done = plan(photos, "--batch", "1,4,16")
    assert done.exit_code == 0, done.output
    said = flat(done.stdout)
    assert "enlarged to fill it" in said and "more buckets gain nothing here" in said
    assert said.endswith("--bucket 256:1,4,16")
    assert "more buckets would save none of it" in flat(plan(photos, "--tokens", 1).stdout)


def test_fewer_buckets_and_other_patches_can_be_asked_for(photos: Path) -> None:
    said = flat(plan(photos, "--no-upscale", "--most", 2, "--patch-size", 32).stdout)
    assert "2 buckets save" in said and said.endswith("--no-upscale --bucket 4:1,8,32 \\ --bucket 256:1,8,32")


def test_lists_and_single_photos_are_read(photos: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text(f"{photos / 'small0.png'}\n\n{photos / 'deep' / 'large0.jpg'}\ngone.jpg\n")
    done = plan(listed, photos / "small1.png")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("3 photos") and done.stderr == (
        f"skipped {tmp_path / 'gone.jpg'}: No such file or directory\n"
    )


def test_files_that_are_no_photos_are_named_and_counted(photos: Path, tmp_path: Path) -> None:
    whole = (photos / "small0.png").read_bytes()
    for number in range(6):
        (tmp_path / f"{number}.png").write_bytes(b"no photo")
    (tmp_path / "claims.png").write_bytes(whole[:16] + b"\x00\x0f\xff\xff" * 2 + whole[24:])
    (tmp_path / "good.png").write_bytes(whole)
    done = plan(tmp_path)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("1 photo, ")
    assert f"skipped {tmp_path / '0.png'}: not an image" in done.stderr
    assert "skipped 2 more: 7 files are no photos" in done.stderr


@pytest.mark.parametrize("name", ["plot.svg", "plot.png"])
def test_it_draws(photos: Path, tmp_path: Path, name: str) -> None:
    pytest.importorskip("matplotlib")
    done = plan(photos, "--no-upscale", "--plot", tmp_path / name)
    assert done.exit_code == 0, done.output
    drawn = (tmp_path / name).read_bytes()
    assert all(word in drawn for word in (b"padding, % of tokens", b">12<")) if "svg" in name else b"PNG" in drawn


def test_what_cannot_be_planned_is_refused(photos: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    refused = {
        (empty,): "no photo among the 0 files of",
        (tmp_path / "gone",): "does not exist: expected a folder of photos, a list or a photo",
        (tmp_path / "bytes.txt",): "is no text in UTF-8: expected a list of photos",
        (photos, "--tokens", 0): "tokens=0: expected an integer of at least 1",
        (photos, "--patch-size", 0): "patch_size=0: expected integers of at least 1",
        (photos, "--batch", "8"): "bucket '256:8' is malformed",
        (photos, "--plot", tmp_path / "a.gif"): "expected a file that ends in .svg, .png, .pdf",
        (photos, "--plot", tmp_path / "gone" / "a.svg"): "cannot be written: expected a file in a folder that is there",
    }
    for arguments, message in refused.items():
        done = plan(*arguments)
        assert (done.exit_code, done.stdout) == (2, ""), done.output
        assert message in flat(done.stderr)


def test_a_plot_without_matplotlib_is_refused_before_photos_are_read(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = plan(photos, "--plot", "a.svg")
    assert done.exit_code == 3 and "pip install 'naflex_export[bench]'" in flat(done.stderr)
