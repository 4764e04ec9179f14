"""The goldens in graphs/, what must hold of every graph under any version, and what their README draws."""

from __future__ import annotations

import re
from pathlib import Path

import bless_graphs
import pytest
import torch
from bless_graphs import GOLDENS, GRAPHS, compare, difference, texts_of
from graph_text import program_text
from torch import nn

import naflex_export as nx
from naflex_export.batch import noise_batch
from naflex_export.graph import trace as program
from naflex_export.graph.checks import FORBIDDEN_OPS
from naflex_export.graph.trace import EXAMPLE, EXAMPLE_TOKENS
from naflex_export.grid import Grid

README = (GRAPHS / "README.md").read_text()
FILES = [(model, f"{model}.{stage}.txt") for model in GOLDENS for stage in ("program", "onnx")]

SELDOM = (
    *("embed-aspect-preserving", "embed-factorized", "embed-learned-corners", "embed-learned-large"),
    *("embed-learned-sampled", "rope-axial", "rope-dinov3", "rope-mrope"),
)
"""Further graphs of an embedding or a RoPE: of each one is traced here, the others are in the full suite."""

EACH = pytest.mark.parametrize(
    ("model", "name"),
    [pytest.param(*one, marks=[pytest.mark.full] if one[0] in SELDOM else [], id=one[1]) for one in FILES],
)


def head(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("#")]


@EACH
def test_a_graph_is_its_golden(model: str, name: str) -> None:
    """Under the golden's own versions; the message is the difference and how to accept it."""
    text = texts_of(model)[name]
    golden = (GRAPHS / name).read_text()
    if head(golden) != head(text):
        pytest.skip(f"written with {head(golden)[0]}")
    found = compare(name, text)
    assert not found, f"{found}\n\nif this is what you meant: python tools/bless_graphs.py --write"


@EACH
def test_no_graph_loops_branches_or_resizes(model: str, name: str) -> None:
    """Under any version."""
    text = texts_of(model)[name]
    operators = set(re.findall(r" = ([A-Za-z0-9_.]+)\(", text))
    assert len(operators) > 10
    assert not operators & set(FORBIDDEN_OPS)
    assert not [one for one in operators if re.search(r"upsample|grid_sampler|nonzero|\.item\b|while|cond", one)]
    assert not [one for one in operators if "." in one and not one.startswith("aten.")]
    dtype = "float16" if model == "encoder-mixed" else "float32"
    shape = r"tokens, 12" if model.endswith("packed") else r"batch, tokens, 12"
    assert re.search(rf"^input +\w+: {dtype}\[{shape}\]$", text, re.MULTILINE)
    assert not re.search(r"\bs\d+\b", text)  # torch's own names of open dimensions


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(one, marks=[pytest.mark.full] * (one == "siglip2"))
        for one in GOLDENS
        if one in ("encoder", "siglip2")
    ],
)
def test_a_graph_does_not_depend_on_the_example(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced with 5 images of 13 tokens in place of 3 of 11, it is the same to the letter."""
    monkeypatch.setattr(program, "EXAMPLE", (Grid(3, 4), Grid(1, 13), Grid(2, 2), Grid(7, 1), Grid(1, 1)))
    monkeypatch.setattr(program, "EXAMPLE_TOKENS", 13)
    again = program_text(GOLDENS[model]())
    assert again == "".join(texts_of(model)[f"{model}.program.txt"].splitlines(keepends=True)[2:])


def test_no_file_is_stale() -> None:
    missing = [name for _, name in FILES if not (GRAPHS / name).exists()]
    assert not missing, "python tools/bless_graphs.py --write"
    assert bless_graphs.stale() == [], "python tools/bless_graphs.py --write"


def test_a_changed_graph_is_a_readable_difference() -> None:
    golden = (GRAPHS / "embed-learned.onnx.txt").read_text()
    found = difference(golden, golden.replace("= ReduceMax(", "= ReduceMin("), "golden")
    assert [line for line in found.splitlines() if line.startswith("+") and "ReduceMin" in line]
    assert len(found.splitlines()) < 12


def test_values_that_only_got_another_number_are_no_difference_to_show() -> None:
    """One node more at the top: the exporter numbers every value after it anew."""
    golden = (GRAPHS / "embed-learned.onnx.txt").read_text()
    renamed = re.sub(r"\b(val|mul|getitem)(_)(\d+)\b", lambda name: f"{name[1]}_{int(name[3]) + 1}", golden)
    lines = renamed.splitlines(keepends=True)
    at = next(number for number, line in enumerate(lines) if "= ReduceMax(" in line)
    lines.insert(at, "identity: int64[batch, tokens, 2] = Identity(patch_coord)  # embeds\n")
    found = difference(golden, "".join(lines), "golden")
    changed = [line for line in found.splitlines() if line[0] in "+-" and not line.startswith(("+++", "---"))]
    assert changed == ["+identity: int64[batch, tokens, 2] = Identity(patch_coord)  # embeds"]
    assert difference(golden, renamed, "golden") == "golden: only the numbers in names of values differ"
    assert difference(golden, golden, "golden") == ""


def test_an_operand_that_is_another_value_shows() -> None:
    """Not a new number of the same value: rows where columns were read."""
    golden = (GRAPHS / "embed-learned.onnx.txt").read_text()
    line = next(line for line in golden.splitlines() if "(getitem_3, " in line)
    found = difference(golden, golden.replace(line, line.replace("getitem_3", "getitem_2")), "golden")
    assert f"-{line}" in found and "+" + line.replace("getitem_3", "getitem_2") in found


def test_blessing_shows_before_it_writes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bless_graphs, "GRAPHS", tmp_path)
    monkeypatch.setattr(bless_graphs, "GOLDENS", {"one": None})
    monkeypatch.setattr(bless_graphs, "texts_of", lambda model: {"one.onnx.txt": "# now\nx = Relu(y)\n"})
    (tmp_path / "one.onnx.txt").write_text("# now\nx = Abs(y)\n")
    (tmp_path / "gone.onnx.txt").write_text("# then\n")
    bless_graphs.main([])
    shown = capsys.readouterr().out
    assert "-x = Abs(y)\n+x = Relu(y)" in shown
    assert "gone.onnx.txt: of no model here; --write deletes it" in shown
    assert (tmp_path / "one.onnx.txt").read_text() == "# now\nx = Abs(y)\n"
    bless_graphs.main(["--write"])
    assert "gone.onnx.txt: of no model here, deleted" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["one.onnx.txt"]
    bless_graphs.main([])
    assert capsys.readouterr().out == "one.onnx.txt: unchanged\n"


def test_timms_model_is_the_graphs_that_are_drawn_and_the_vectorized_one_is_one() -> None:
    batch = noise_batch("explain", EXAMPLE, EXAMPLE_TOKENS, 12)

    def explained(model: nn.Module) -> torch._dynamo.backends.debugging.ExplainOutput:
        torch._dynamo.reset()
        with torch.no_grad():
            return torch._dynamo.explain(model)(batch.patches, batch.patch_coord, batch.patch_valid)

    model = bless_graphs.tiny(depth=1)
    timms, ours = explained(model), explained(nx.vectorize(model))
    assert (ours.graph_count, ours.graph_break_count) == (1, 0)
    assert timms.graph_count > 1
    drawn = re.search(r"torch (\S+) and timm \S+ break it into (\d+) graphs at (\d+) places", README)
    assert drawn is not None
    if drawn[1] == torch.__version__.split("+")[0]:
        assert [str(timms.graph_count), str(timms.graph_break_count)] == [drawn[2], drawn[3]]
        assert {"_apply_learned_naflex_pos_embed" in reason.reason for reason in timms.break_reasons} == {True}
        assert f"timm: {drawn[2]} graphs, {drawn[3]} breaks" in (GRAPHS / "breaks.svg").read_text()


def test_the_readme_names_every_golden() -> None:
    rows = re.findall(r"^\| (`.*?`) \|", README.split("## ")[0], re.MULTILINE)
    assert {*GOLDENS, "siglip2"} == {name for row in rows for name in re.findall(r"`(\S+?)`", row)}
