"""How what was measured of an artifact is shown on the console."""

from __future__ import annotations

import torch
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from naflex_export.bench.artifact import TimedArtifact
from naflex_export.bench.results_csv import mib, text
from naflex_export.bench.techniques import Figures
from naflex_export.bench.timing import device_name
from naflex_export.cli.console import out
from naflex_export.serving.manifest import Manifest

LEGEND = (
    "speed: eager's time over its time, the median of all rounds. error: relative L2 distance of the features from "
    "those of eager in float32. MiB: the most memory held beyond weights and inputs. position: what the position "
    "embedding takes of the time."
)


def print_timed(timed: TimedArtifact, manifest: Manifest) -> None:
    """Print what is timed, and where."""
    where = device_name(timed.runner.device)
    threads = torch.get_num_threads()
    used = f", {threads} thread{'s' if threads > 1 else ''}" if timed.runner.device.type == "cpu" else ""
    if timed.not_run:
        out.print(f"[bold yellow]not run:[/] {escape(timed.not_run)}; timed instead: {timed.name}", soft_wrap=True)
    out.print(
        f"[bold]{escape(timed.name)}[/], {escape(str(manifest.precision))}, on {escape(where)}{used}", soft_wrap=True
    )


def print_figures(found: list[Figures], size: tuple[int, int]) -> None:
    """Print the figures of all techniques on batches of one size, as a table."""
    out.print(figures_table(found, named(size), out.width))
    for figures in found:
        if figures.failure:
            out.print(f"[yellow]not measured:[/] {figures.technique}: {escape(figures.failure)}", soft_wrap=True)


def figures_table(found: list[Figures], title: str, width: int) -> Table:
    """Return the figures of all techniques as a table. No number is cut: where there is little room it has fewer.

    Args:
        found: a technique's each.
        title: of the table.
        width: columns that there are for it.
    """
    cells_of = [_cells(figures) for figures in found]
    shown = {heading: [cells[heading] for cells in cells_of] for heading in HEADINGS}
    names = [figures.technique for figures in found]
    for heading in LEFT_OUT:
        columns = [names, *([head, *cells] for head, cells in shown.items())]
        if 1 + sum(max(map(len, cells)) + 2 for cells in columns) <= width:
            break
        del shown[heading]
    rows = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    rows.add_column("", no_wrap=True)
    for heading in shown:
        rows.add_column(heading.strip("±"), justify="right", no_wrap=True)
    for index, name in enumerate(names):
        rows.add_row(escape(name), *(cells[index] for cells in shown.values()))
    return rows


HEADINGS = ("ms", "±", "images/s", "speed", "error", "MiB", "position")
LEFT_OUT = ("position", "MiB", "images/s", "±")
"""Columns that a narrow screen goes without, the first at first."""


def _cells(figures: Figures) -> dict[str, str]:
    """Return a technique's cells by the headings of their columns."""
    timing = figures.timing
    if timing is None:
        return {heading: "" for heading in HEADINGS} | {"ms": "-"}
    return {
        "ms": f"{timing.ms:.1f}",
        "±": f"± {timing.spread:.0%}" if len(timing.seconds) > 1 else "",
        "images/s": text(figures.images_per_second, 1),
        "speed": f"{text(figures.speedup, 2)}x",
        "error": f"{figures.error:.1e}",
        "MiB": mib(figures.peak_bytes),
        "position": "" if figures.position_share is None else f"{figures.position_share:.1%}",
    }


def named(size: tuple[int, int]) -> str:
    """Return the images and tokens of a batch in words."""
    images, tokens = size
    return f"{images} {'image' if images == 1 else 'images'} of {tokens} tokens"
