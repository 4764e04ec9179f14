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
    rows = Table(
        title=named(size),
        title_justify="left",
        box=SIMPLE,
        padding=(0, 1, 0, 0),
    )
    rows.add_column("", no_wrap=True)
    for heading in ("ms", "", "images/s", "speed", "error", "MiB", "position"):
        rows.add_column(heading, justify="right", no_wrap=True)
    for figures in found:
        timing = figures.timing
        if timing is None:
            rows.add_row(figures.technique, "not measured")
            continue
        rows.add_row(
            escape(figures.technique),
            f"{timing.ms:.1f}",
            f"± {timing.spread:.0%}" if len(timing.seconds) > 1 else "",
            text(figures.images_per_second, 1),
            f"{text(figures.speedup, 2)}x",
            f"{figures.error:.1e}",
            mib(figures.peak_bytes),
            "" if figures.position_share is None else f"{figures.position_share:.1%}",
        )
    out.print(rows)
    for figures in found:
        if figures.failure:
            out.print(f"[yellow]not measured:[/] {figures.technique}: {escape(figures.failure)}", soft_wrap=True)


def named(size: tuple[int, int]) -> str:
    """Return the images and tokens of a batch in words."""
    images, tokens = size
    return f"{images} {'image' if images == 1 else 'images'} of {tokens} tokens"
