"""Export vision towers by the stock exporters and by this package, and compare each with eager on packs of images.

    python tools/ragged.py                # measure, with the releases that are installed, and write docs/ragged.md
    python tools/ragged.py --page         # write the page from the rows there are
    python tools/ragged.py --family glm4v --exporter transformers

A row is added to `results/ragged.csv` for each tower, exporter and pack. Towers are tiny and their weights random. All
are traced on the same two images of unequal size; an exporter that refuses these is given two equal ones.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch
from markdown_text import section, span, table
from torch import Tensor, nn

from naflex_export.batch import noise_batch
from naflex_export.grid import Bucket, Grid
from naflex_export.models import adapter_of

PAGE = record.ROOT / "docs" / "ragged.md"
ROWS = record.RESULTS / "ragged.csv"
PACKAGES = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime-gpu")
FIELDS = (*record.ABOUT, *PACKAGES, "family", "exporter", "traced_on", "pack", "error", "refused")
MARKS = ("<!-- rows: written by tools/ragged.py -->", "<!-- /rows -->")

PACKS = {
    "the traced pack": (Grid(3, 5), Grid(4, 2)),
    "equal images": (Grid(4, 6), Grid(4, 6), Grid(4, 6)),
    "unequal images": (Grid(7, 2), Grid(1, 1), Grid(5, 6)),
}
"""In tokens; all but the first are of sizes that were never traced."""

EQUAL = (Grid(3, 4), Grid(3, 4))
"""What is traced by an exporter that refuses unequal images."""

OTHERS = ("qwen2_vl", "qwen3_5", "radio")
"""Families that are shown besides those of `TOWERS` in `tests/tower_tiny.py`."""

WRONG = 1e-4
"""Relative error from which an export is called wrong: float32 explains a hundredth of it."""

Run = Callable[[Mapping[str, Tensor]], Sequence[Tensor]]


class Outputs(nn.Module):
    """A tower whose forward returns its outputs as a tuple, for exporters that take no other class."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, patches: Tensor, grid_thw: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs that the adapter names."""
        return tuple(adapter_of(self.tower).unpack(self.tower(patches, grid_thw)).values())


def by_transformers(tower: nn.Module, inputs: dict[str, Tensor], folder: Path) -> Run:
    """The exporter of transformers, which computes what depends on the grids ahead of each call, by its own helpers."""
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter
    from transformers.exporters.utils import precompute_export_inputs

    exported: Any = OnnxExporter().export(tower, dict(inputs), config=OnnxConfig(dynamic=True))

    def run(given: Mapping[str, Tensor]) -> Sequence[Tensor]:
        ahead = dict(given)
        precompute_export_inputs(tower, ahead)
        made = exported(**{name: value for name, value in ahead.items() if value is not None})
        return list(adapter_of(tower).unpack(made).values())

    return run


def by_torch(tower: nn.Module, inputs: dict[str, Tensor], folder: Path) -> Run:
    """torch.onnx.export by dynamo, with the patches and the images left open."""
    import onnxruntime

    patches = next(iter(inputs.values()))
    axis = 1 if patches.shape[0] == 1 else 0
    opened = ({axis: torch.export.Dim.DYNAMIC}, {0: torch.export.Dim.DYNAMIC})
    path = folder / "model.onnx"
    torch.onnx.export(Outputs(tower), tuple(inputs.values()), path, dynamo=True, dynamic_shapes=opened, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(given: Mapping[str, Tensor]) -> Sequence[Tensor]:
        names = [value.name for value in session.get_inputs()]
        made = session.run(None, {name: value.numpy() for name, value in zip(names, given.values(), strict=True)})
        return [torch.from_numpy(np.asarray(one)) for one in made]

    return run


def by_ours(tower: nn.Module, inputs: dict[str, Tensor], folder: Path) -> Run:
    """nx.export, whose gate judges it too."""
    import naflex_export as nx

    outputs = adapter_of(tower).default_outputs
    nx.export(tower, "onnx", folder / "a", [Bucket(48, (1, 3, 8))], outputs=outputs, effort="quick")
    runner = nx.load(folder / "a")

    def run(given: Mapping[str, Tensor]) -> Sequence[Tensor]:
        made: Any = runner(*given.values())
        return list(made.values()) if isinstance(made, dict) else [made]

    return run


EXPORTERS = {"transformers": by_transformers, "torch.onnx": by_torch, "naflex_export": by_ours}
NAMES = {
    "transformers": "transformers' OnnxExporter",
    "torch.onnx": "torch.onnx.export",
    "naflex_export": "nx.export",
}
"""What the page calls them."""


def inputs_of(tower: nn.Module, grids: Sequence[Grid], name: str) -> dict[str, Tensor]:
    """Return what a tower takes of noise in images of these grids, by name."""
    adapter = adapter_of(tower)
    batch = noise_batch(name, grids, max(grid.tokens for grid in grids), adapter.token_width)
    made = adapter.input_format.arrange(batch)
    return dict(zip(adapter.input_format.names[:2], made[:2], strict=True))


def measured(tower: nn.Module, exporter: str) -> list[dict[str, str]]:
    """Return a row for each pack.

    Args:
        tower: untouched.
        exporter: one of `EXPORTERS`.
    """
    refused = ""
    for traced_on, grids in (("unequal", PACKS["the traced pack"]), ("equal", EQUAL)):
        with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                with contextlib.redirect_stdout(io.StringIO()):  # torch's exporter prints its progress
                    run = EXPORTERS[exporter](tower, inputs_of(tower, grids, "traced"), Path(name))
            except Exception as error:  # whatever an exporter raises is what the row says
                refused = refused or _said(error)
                continue
            return [_row(tower, exporter, run, traced_on, pack) for pack in PACKS]
    return [{"exporter": exporter, "traced_on": "", "pack": pack, "error": "", "refused": refused} for pack in PACKS]


def _row(tower: nn.Module, exporter: str, run: Run, traced_on: str, pack: str) -> dict[str, str]:
    inputs = inputs_of(tower, PACKS[pack], pack)
    with torch.no_grad():
        wanted = list(adapter_of(tower).unpack(tower(*inputs.values())).values())
    found = {"exporter": exporter, "traced_on": traced_on, "pack": pack, "error": "", "refused": ""}
    try:
        given = run(inputs)
        apart = [_relative(one, other) for one, other in zip(given, wanted, strict=True)]
    except Exception as error:  # it fails on the pack, loudly
        return found | {"refused": _said(error)}
    return found | {"error": f"{max(apart):.1e}"}


def _relative(given: Any, wanted: Tensor) -> float:
    made = torch.as_tensor(given).detach().cpu().double()
    if made.shape != wanted.shape:
        raise ValueError(f"the shape is {list(made.shape)}: expected {list(wanted.shape)}")
    return float((made - wanted.double()).norm() / wanted.double().norm())


def _said(error: Exception) -> str:
    """Return the kind of an error, the first of those that led to one another, and what its message begins with."""
    while error.__cause__ is not None:
        error = error.__cause__  # type: ignore[assignment]
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:160]


def rows_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Return the newest rows of each tower and exporter, a line for both, and below it why some exporters refused."""
    if not rows:
        return "Not measured yet."
    newest = {(row["family"], row["exporter"], row["transformers"], row["pack"]): row for row in rows}
    kinds = dict.fromkeys((family, exporter, release) for family, exporter, release, _ in newest)
    lines, reasons = [], []
    for family, exporter, release in sorted(kinds, key=lambda kind: (kind[0], list(EXPORTERS).index(kind[1]), kind[2])):
        found = [newest[family, exporter, release, pack] for pack in PACKS]
        lines.append([family, NAMES[exporter], release, found[0]["traced_on"] or "-", *map(_cell, found)])
        said = dict.fromkeys(row["refused"] for row in found if row["refused"])
        reasons += [f"- {family}, {NAMES[exporter]}, {release}: `{text}`" for text in said]
    head = ["tower", "exporter", "transformers", "traced on", *PACKS]
    versions = {package: ", ".join(sorted({row[package] for row in newest.values()})) for package in PACKAGES}
    releases = "; ".join(f"{package} {found}" for package, found in versions.items() if package != "transformers")
    days = span(sorted({row["date"] for row in newest.values()}))
    why = "\n".join(["", "What they say where they refuse:", "", *reasons]) if reasons else ""
    return f"{releases}; {days}.\n\n{table(head, lines)}\n{why}"


def _cell(row: Mapping[str, str]) -> str:
    if row["refused"]:
        return "refused" if not row["traced_on"] else "fails"
    return f"**wrong, {row['error']}**" if float(row["error"]) > WRONG else f"right, {row['error']}"


def page(text: str) -> str:
    """Return the page with its rows written anew."""
    return section(text, *MARKS, rows_table(record.read(ROWS)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Add rows, and write the page."""
    sys.path.insert(0, str(record.ROOT / "tests"))
    from tower_tiny import KIN, TOWERS

    towers = {**TOWERS, **KIN}

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", action="store_true", help="measure nothing")
    parser.add_argument("--family", action="append", choices=list(towers))
    parser.add_argument("--exporter", action="append", choices=list(EXPORTERS))
    asked = parser.parse_args(arguments)
    for family in [] if asked.page else asked.family or (*TOWERS, *OTHERS):
        for exporter in asked.exporter or EXPORTERS:
            made = measured(towers[family](), exporter)
            record.append(ROWS, FIELDS, [{**record.about("cpu", PACKAGES), "family": family, **row} for row in made])
            print(family, exporter, *(row["error"] or row["refused"] for row in made), sep=" | ")
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
