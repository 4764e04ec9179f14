"""Draw what the embedding costs against batch size and against tokens, from tools/results/bench_embed.csv.

Needs matplotlib: pip install '.[bench]'. Writes docs/embed_cost.svg, in which the rows it was drawn from are hashed.

    python tools/plot_embed.py
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from goals import Row
from record import RESULTS, ROOT, newest, read
from write_tables import KEYS, PLOT, machine, newest_machine, unique

PASS = "forward+backward"
BATCH, SIZES = "32", "4..31"
"""What is kept while the other varies: the batch size while tokens do, the kind of sizes while the batch size does."""

COLORS = ("#0b6e4f", "#6fbf73", "#d4a017", "#4357ad", "#7a7a7a", "#8e44ad", "#17becf", "#222222")
"""Of the candidates, in their order; ours comes first."""


def main() -> None:
    """Draw the newest rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=RESULTS / "bench_embed.csv")
    parser.add_argument("--out", type=Path, default=PLOT, help=".svg or .png")
    options = parser.parse_args()
    draw(chosen(newest(read(options.rows), KEYS["bench_embed"])), options.out)
    print(f"wrote {options.out.relative_to(ROOT) if options.out.is_relative_to(ROOT) else options.out}")


def chosen(rows: Sequence[Row]) -> list[Row]:
    """Return the rows to draw: forward and backward in float32, of the CPU measured last, where all sizes are."""
    return newest_machine([row for row in rows if row["pass"] == PASS])


def stamp(rows: Sequence[Row]) -> str:
    """Return a hash of what the rows say of cost, so that a drawing can be told to be of them."""
    said = sorted("|".join(row[name] for name in (*KEYS["bench_embed"], "tokens", "ratio_to_floor")) for row in rows)
    return f"rows {hashlib.sha256(chr(10).join(said).encode()).hexdigest()[:16]}"


def draw(rows: Sequence[Row], out: Path) -> None:
    """Draw a column for each source grid: above against the batch size, below against the tokens an image is padded to.

    Raises:
        ValueError: there is nothing to draw.
    """
    if not rows:
        raise ValueError("no float32 row of forward+backward: run tools/bench_embed.py first")
    import matplotlib as mpl
    from matplotlib.figure import Figure

    sources = unique(rows, "source")
    names = ordered(unique([row for row in rows if row["candidate"] != "floor"], "candidate"))
    with mpl.rc_context({"svg.hashsalt": "embed", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}):
        figure = Figure(figsize=(3.4 * len(sources) + 0.6, 6.2), layout="constrained")
        panels = figure.subplots(2, len(sources), sharey=True, squeeze=False)
        panels[0][0].set_yscale("log")
        panels[0][0].set_ylim(0.9, 1.2 * max(float(row["ratio_to_floor"]) for row in rows))
        for column, source in enumerate(sources):
            of = [row for row in rows if row["source"] == source]
            by_batch = [row for row in of if row["sizes"] == SIZES]
            by_tokens = [row for row in of if row["batch"] == BATCH and row["sizes"].startswith("naflex")]
            plot(panels[0][column], by_batch, names, "batch", "images in a batch, sizes 4 to 31")
            plot(panels[1][column], by_tokens, names, "sizes", f"tokens, {BATCH} images of NaFlex's size rule")
            panels[0][column].set_title(f"source {source}", fontsize=10, loc="left")
        for panel in panels[:, 0]:
            panel.set_ylabel("time, multiple of the floor")
        handles = {}
        for panel in panels.flat:
            lines, labels = panel.get_legend_handles_labels()
            handles |= dict(zip(labels, lines, strict=True))
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, frameon=False)
        figure.suptitle(f"{PASS}, float32, {machine(rows[0])}", fontsize=10, x=0.01, ha="left")
        metadata: dict[str, Any] = {"Description": stamp(rows)}
        if out.suffix == ".svg":
            metadata["Date"] = None  # the same rows make the same file
        figure.savefig(out, metadata=metadata, dpi=110)


def plot(panel: Any, rows: Sequence[Row], names: Sequence[str], column: str, label: str) -> None:
    """Draw a line for each candidate, on logarithmic axes; say so where there is nothing to draw."""
    place: Callable[[Row], int] = lambda row: int(row[column].removeprefix("naflex"))  # noqa: E731
    ticks = sorted({place(row) for row in rows})
    for number, name in enumerate(names):
        points = sorted((place(row), float(row["ratio_to_floor"])) for row in rows if row["candidate"] == name)
        if points:
            panel.plot(
                *zip(*points, strict=True),
                marker="o",
                markersize=4,
                linewidth=2.2 if name.startswith("ours") else 1.3,
                color=COLORS[number % len(COLORS)],
                label=name,
            )
    panel.set_xlabel(label)
    panel.grid(which="major", color="#dddddd", linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)
    panel.axhline(1, color="#999999", linewidth=0.8)
    _, top = panel.get_ylim()
    levels = [level for level in (1, 1.5, 2, 3, 5, 10, 20, 50, 100) if level < top]
    panel.set_yticks(levels, levels)
    panel.minorticks_off()
    if ticks:
        panel.set_xscale("log", base=2)
        panel.set_xticks(ticks, ticks)
        panel.minorticks_off()
    else:
        panel.set_xticks([])
        panel.text(0.5, 0.5, "not measured", transform=panel.transAxes, ha="center", color="#777777")


def ordered(names: Sequence[str]) -> list[str]:
    """Return the candidates, ours first, compiled ahead of eager."""
    return sorted(names, key=lambda name: (not name.startswith("ours"), "compiled" not in name))


if __name__ == "__main__":
    main()
