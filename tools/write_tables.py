"""Write docs/performance.md and the marked section of docs/measured.md from the rows in tools/results.

Each table holds the newest row of each kind. What has no row is said to be not measured.

    python tools/write_tables.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from goals import GOALS, Results, Row, is_gpu, verdict
from markdown_text import NOTHING, figure, listed, percent, plural, ratio, section, span, table
from record import PACKAGES, RESULTS, ROOT, newest, read

from naflex_export.models import DEFAULT_MODEL

KEYS = {
    "bench_embed": ("device", "threads", "dtype", "source", "sizes", "batch", "pass", "candidate"),
    "bench_encoder": ("device", "threads", "dtype", "model", "grids", "batch", "tokens", "technique"),
    "patch_resample": ("device", "threads", "dtype", "case", "layout", "pass", "candidate"),
    "gpu_suite": ("device", "step"),
    "bench_load": ("device", "threads", "what", "checkout"),
    "bench_packed": ("device", "threads", "model", "images", "tokens", "padding", "layout"),
    "bench_towers": ("device", "threads", "tower", "images", "tokens", "step", "candidate"),
}
"""What tells the kinds of rows of each file apart."""

PAGE, SHORT, PLOT = (ROOT / "docs" / name for name in ("performance.md", "measured.md", "embed_cost.svg"))
BEGIN, END = "<!-- performance: written by tools/write_tables.py -->", "<!-- /performance -->"

HOW = """
In each table all candidates ran in one process, once in every round, so that whatever else the machine did met them
alike. Times are medians, ratios are medians of each round's, and *spread* is half the distance between the quartiles,
as a share of the median. Memory is the most that a call held beyond what was held before it; of the embedding,
what tensors took of it.
"""
EMBED = """
`NaFlexEmbeds(embed_dim=768, proj_type='linear')`: time as a ratio to the floor, which is the same module without a
position embedding. In brackets the largest difference from timm's loop, as a share of the largest value. Measured by
`python tools/bench_embed.py`.
"""
ENCODER = """
Padded NaFlex batches, another one in each round, by `python tools/bench_encoder.py`; on a CPU, a pause before each call
lets the worker threads of the last one's runtime go to sleep. *speed* is eager's time over a technique's;
*embedding* the share of the time that all ahead of the first block takes, and *position* what the position embedding
adds to it, both run by themselves with the same technique; *matrix rate* the share reached of what a large matmul in
that dtype reaches on the machine, where padding counts as work and the position embedding does not; *error* the
relative L2 distance of the features from those of eager in float32.

Not in the tables: on an Intel Xeon, measured without that pause and before `Attention` read heads in rows, ONNX Runtime
ran 8 images at 0.88 of eager's speed. It has not been measured there since.
"""
PACKED = """
An exported encoder on packed tokens and on padded batches, in ONNX Runtime, float32, by `python tools/bench_packed.py`;
*speed* is of packed over padded, memory the most that a process's first calls held beyond its opened session.
"""
TOWERS = """
What vision towers of transformers do ahead of their first block (patches projected, position embedding, rotary angles),
float32, by `python tools/bench_towers.py`: published widths, random weights, images of unequal grids. *speed* is over
the model's own; *floor* that of the bare projection.
"""
PATCH = """
The kernel of the report that this project starts from, by `python tools/bench_patch_resample.py`; *error* is the
largest difference from timm's formula in float64, as a share of the largest value.
"""
LOAD = """
In a new process, by `python tools/bench_load.py`: beside an older commit in turn, the median of processor time, the
children's included.
"""


KINDS = {"naflex": "grids of NaFlex's size rule", "different": "all grids different"}


def main() -> None:
    """Write both files."""
    results = load(RESULTS)
    PAGE.write_text(page(results), encoding="utf-8")
    text = SHORT.read_text(encoding="utf-8")
    SHORT.write_text(section(text, BEGIN, END, summary(results)), encoding="utf-8")
    measured = sum(verdict(goal, results).measured for goal in GOALS)
    print(f"wrote docs/{PAGE.name} and docs/{SHORT.name}; {measured} of {len(GOALS)} goals have been measured")


def load(folder: Path) -> Results:
    """Return the newest rows of each kind from a folder of results."""
    rows = [newest(read(folder / f"{name}.csv"), key) for name, key in KEYS.items()]
    return Results(*rows)


def page(results: Results) -> str:
    """Return docs/performance.md."""
    found = [(goal, verdict(goal, results)) for goal in GOALS]
    missing = [goal.what for goal, what in found if not what.measured]
    parts = [
        "# Performance",
        "Written by `tools/write_tables.py` from the CSV files in `tools/results`; do not edit.",
        HOW.strip(),
        "## Goals",
        table(
            ["", "aim", "reached", ""],
            [[goal.what, goal.bound, what.value, what.word] for goal, what in found if what.measured],
        ),
        "## Not measured",
        "\n".join(f"- {what}" for what in missing) if missing else "Nothing that was aimed at.",
        "`tools/gpu_suite.sh` is one command that measures all that a GPU is needed for.",
        "## The embedding",
        EMBED.strip(),
        *([f"[![Cost against batch size and tokens]({PLOT.name})]({PLOT.name})"] if PLOT.exists() else []),
        *machines(results.embed, embed_tables),
        "## A whole encoder",
        ENCODER.strip(),
        *machines(results.encoder, encoder_tables),
        "## Packed exports",
        PACKED.strip(),
        packed_table(results.packed),
        "## Vision towers ahead of their blocks",
        TOWERS.strip(),
        towers_table(results.towers),
        "## A patch projection at another size",
        PATCH.strip(),
        *machines(results.patch, patch_tables),
        "## Loading",
        LOAD.strip(),
        load_table(results.load),
    ]
    on_gpu = [row for row in results.suite if is_gpu(row["device"])]
    if on_gpu:
        columns = ("device", "driver", "python", "torch", "triton", "step", "seconds", "code", "date", "commit")
        steps = [[row.get(name) or NOTHING for name in columns] for row in on_gpu]
        parts += ["## The GPU suite", table(list(columns), steps)]
    return "\n\n".join(parts) + "\n"


def summary(results: Results) -> str:
    """Return the short section: on the CPU and the GPU measured last, and what has not been measured."""
    parts = []
    embed = [
        row
        for row in newest_machine(results.embed)
        if (row["sizes"], row["pass"]) == ("4..31", "forward+backward") and row["batch"] in ("32", "256")
    ]
    if embed:
        names = [name for name in unique(embed, "candidate") if name != "floor"]
        parts += [
            "The embedding alone, forward and backward, images of 4 to 31 patches a side, float32, on "
            f"{machine(embed[0])}, as a multiple of the bare projection:",
            table(
                ["source grid", "images", *names],
                [
                    [*setting, *(cell(rows, name, lambda row: row["ratio_to_floor"]) for name in names)]
                    for setting, rows in grouped(embed, ("source", "batch")).items()
                ],
            ),
            "(-: not measured. timm's loop copies the whole gradient for each image, so a large batch costs more.)",
            f"[![Cost against batch size and tokens]({PLOT.name})]({PLOT.name})",
        ]
    encoder = [row for row in newest_machine(results.encoder) if row["grids"] == "naflex"]
    if encoder:
        largest = max(encoder, key=lambda row: (int(row["batch"]), int(row["tokens"])))
        rows = [row for row in encoder if all(row[name] == largest[name] for name in ("model", "batch", "tokens"))]
        parts += [
            f"The encoder `{largest['model']}`, {plural(int(largest['batch']), 'image')} of {largest['tokens']} "
            f"tokens, float32, on {machine(largest)}:",
            table(
                ["technique", "ms", "speed", "memory, MiB", "error"],
                [
                    [row["technique"], figure(row["ms"]), ratio(row["speedup"]), figure(row["peak_mib"]), row["error"]]
                    for row in rows
                    if row["ms"]
                ],
            ),
        ]
    names = {"The embedding": embed, "The whole encoder": encoder}
    parts += [f"{name} has not been measured." for name, rows in names.items() if not rows]
    parts += on_gpu(results) or ["Nothing has been measured on a GPU; `tools/gpu_suite.sh` is the command that would."]
    parts.append("All rows, and what was aimed at, are in [performance.md](performance.md).")
    return "\n\n".join(parts)


def on_gpu(results: Results) -> list[str]:
    """Return the part of it that is of the GPU measured last: its largest batches, forward and backward."""
    parts = []
    embed = last_gpu([row for row in results.embed if (row["sizes"], row["pass"]) == ("4..31", "forward+backward")])
    if embed:
        largest = max(embed, key=lambda row: int(row["batch"]))["batch"]
        embed = [row for row in embed if row["batch"] == largest]
        names = [name for name in unique(embed, "candidate") if name != "floor"]
        parts += [
            f"On an {embed[0]['device']}, {largest} images at once, without TF32:",
            table(
                ["source grid", "dtype", *names],
                [
                    [*setting, *(cell(rows, name, lambda row: row["ratio_to_floor"]) for name in names)]
                    for setting, rows in grouped(embed, ("source", "dtype")).items()
                ],
            ),
            "(matmul: what an exported graph computes.)",
        ]
    encoder = last_gpu([row for row in results.encoder if row["model"] == DEFAULT_MODEL])
    packed_is_there = any("packed" in row["technique"] for row in encoder)
    for (grids, batch, tokens, dtype), rows in grouped(encoder, ("grids", "batch", "tokens", "dtype")).items():
        parts += [
            f"The encoder `{DEFAULT_MODEL}` there, {plural(int(batch), 'image')} of {tokens} tokens, {dtype}, "
            f"{KINDS[grids]}:",
            table(
                ["technique", "ms", "images/s", "speed", "matrix rate"],
                [
                    [
                        row["technique"],
                        *(figure(row[name]) for name in ("ms", "images_per_s")),
                        ratio(row["speedup"]),
                        percent(row["matrix_share"]),
                    ]
                    for row in rows
                    if row["ms"]
                ],
            ),
        ]
    if packed_is_there:
        parts.append(
            "(matrix rate: of the GPU's own on a square product, counting padding as work. Packed tokens skip it.)"
        )
    return parts


def last_gpu(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of the GPU that was measured last."""
    kind = [row for row in rows if is_gpu(row["device"])]
    last = max(kind, key=lambda row: row["date"], default=None)
    return [row for row in kind if last and row["device"] == last["device"]]


def embed_tables(rows: Sequence[Row]) -> list[str]:
    """Return the tables of one machine: times, then memory where it was measured."""
    names = [name for name in unique(rows, "candidate") if name != "floor"]
    settings = grouped(rows, ("source", "sizes", "batch", "pass"))
    head = ["source grid", "sizes", "batch", "pass"]

    def times(row: Row) -> str:
        return f"{row['ratio_to_floor']} ({row['error']})"

    parts = [
        table(
            [*head, "floor, ms", *names],
            [
                [*key, cell(found, "floor", lambda row: row["ms"]), *(cell(found, name, times) for name in names)]
                for key, found in settings.items()
            ],
        ),
        spread_of(rows),
    ]
    if any(row.get("memory_ratio") for row in rows):
        parts += [
            "Peak memory, as a ratio to the floor's:",
            table(
                [*head, "floor, MiB", *names],
                [
                    [
                        *key,
                        cell(found, "floor", lambda row: row["peak_mib"]),
                        *(cell(found, name, lambda row: row["memory_ratio"]) for name in names),
                    ]
                    for key, found in settings.items()
                ],
            ),
        ]
    return parts


def encoder_tables(rows: Sequence[Row]) -> list[str]:
    """Return a table for each model, kind of grids, batch and token count of one machine."""
    head = ["technique", "ms", "images/s", "speed", "MiB", "embedding", "position", "matrix rate", "error"]
    parts = []
    for (model, grids, batch, tokens), found in grouped(rows, ("model", "grids", "batch", "tokens")).items():
        parts.append(f"`{model}`, {plural(int(batch), 'image')} of {tokens} tokens, {KINDS[grids]}:")
        parts.append(table(head, [encoder_cells(row) for row in found if row["ms"]]))
        failed = [row for row in found if not row["ms"]]
        parts += [f"- {row['technique']} was not run: {row['failure']}" for row in failed]
    return [*parts, spread_of(rows)]


def encoder_cells(row: Row) -> list[str]:
    """Return a technique's figures."""
    figures = [
        figure(row["ms"]),
        row["images_per_s"],
        ratio(row["speedup"]),
        figure(row["peak_mib"]),
        *(percent(row[name]) for name in ("embed_share", "position_share", "matrix_share")),
        row["error"],
    ]
    return [row["technique"], *(text or NOTHING for text in figures)]


def patch_tables(rows: Sequence[Row]) -> list[str]:
    """Return the table of one machine."""
    columns = ("case", "layout", "pass", "candidate", "median_ms", "ratio_to_ours", "max_error")
    head = ["kernel", "layout", "pass", "candidate", "ms", "ratio to ours", "error"]
    return [table(head, [[row[name] for name in columns] for row in rows])]


def packed_table(rows: Sequence[Row]) -> str:
    """Return the table of packed beside padded exports."""
    head = ["model", "images", "tokens", "padding", "padded, ms", "packed, ms", "speed", "padded, MiB", "packed, MiB"]
    lines = []
    setting = ("device", "threads", "model", "images", "tokens", "padding")
    for found in grouped(rows, setting).values():
        padded, packed = (next(row for row in found if row["layout"] == name) for name in ("padded", "packed"))
        times, memory = ([figure(row[name]) for row in (padded, packed)] for name in ("ms", "peak_mib"))
        shown = [f"`{packed['model']}`", packed["images"], packed["tokens"], percent(packed["padding"])]
        shown += [*times, ratio(packed["speedup"]), *memory]
        lines.append([*shown, packed["error"], machine(packed), packed["commit"]])
    return table([*head, "error", "on", "commit"], lines) if lines else "Not measured."


def towers_table(rows: Sequence[Row]) -> str:
    """Return the table of what vision towers do ahead of their first block."""
    lines = []
    setting = ("device", "threads", "tower", "images", "tokens", "step")
    for found in grouped(rows, setting).values():
        own, ours, bare = (next(row for row in found if row["candidate"] == name) for name in ("own", "ours", "bare"))
        shown = [ours["tower"], ours["images"], ours["tokens"], ours["step"], figure(own["ms"]), figure(ours["ms"])]
        lines.append([*shown, *(ratio(row["speedup"]) for row in (ours, bare)), machine(ours), ours["commit"]])
    head = ["tower", "images", "tokens", "step", "own, ms", "ours, ms", "speed", "floor", "on", "commit"]
    return table(head, lines) if lines else "Not measured."


def load_table(rows: Sequence[Row]) -> str:
    """Return the table of what loading costs."""
    head = ["", "commit", "CPU seconds", "spread, s", "modules", "peak, MiB", "on"]
    columns = ("what", "commit", "cpu_s", "spread_s", "modules", "peak_mib")
    return table(head, [[*(row[name] for name in columns), machine(row)] for row in rows]) if rows else "Not measured."


def machines(rows: Sequence[Row], tables: Callable[[Sequence[Row]], list[str]]) -> list[str]:
    """Return a section for each machine and dtype."""
    parts = []
    for (_, _, dtype), found in grouped(rows, ("device", "threads", "dtype")).items():
        dates, commits = unique(found, "date"), unique(found, "commit")
        parts.append(f"### {machine(found[0])}, {dtype}")
        parts.append(f"{versions(found)}; {listed('commit', commits)}; {span(dates)}.")
        parts += tables(found)
    return parts or ["Not measured."]


def grouped(rows: Sequence[Row], columns: Sequence[str]) -> dict[tuple[str, ...], list[Row]]:
    """Return the rows by what the columns say, in the order they first came."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in columns), []).append(row)
    return groups


def cell(rows: Iterable[Row], candidate: str, text: Callable[[Row], str]) -> str:
    """Return what there is to say of a candidate among the rows of a setting."""
    return next((text(row) for row in rows if row["candidate"] == candidate), "") or NOTHING


def newest_machine(rows: Sequence[Row]) -> list[Row]:
    """Return the float32 rows of the CPU that was measured last, with its number of threads."""
    kind = [row for row in rows if not is_gpu(row["device"]) and row["dtype"] == "float32"]
    last = max(kind, key=lambda row: row["date"], default=None)
    return [row for row in kind if last and machine(row) == machine(last)]


def machine(row: Row) -> str:
    """Return where a row was measured."""
    return row["device"] if is_gpu(row["device"]) else f"{row['device']}, {plural(int(row['threads']), 'thread')}"


def versions(rows: Sequence[Row]) -> str:
    """Return the versions of the packages that rows have a column for."""
    found = {package: unique(rows, package) for package in PACKAGES}
    return ", ".join(f"{package} {' and '.join(of)}" for package, of in found.items() if of)


def spread_of(rows: Sequence[Row]) -> str:
    """Return how much the times of a section varied."""
    spreads = sorted(float(row["spread"]) for row in rows if row["spread"])
    if not spreads:
        return "Spread was not measured."
    return f"Spread: {spreads[len(spreads) // 2]:.0%} for the usual row, {spreads[-1]:.0%} at most."


def unique(rows: Sequence[Row], column: str) -> list[str]:
    """Return what a column holds, each once, in order."""
    return list(dict.fromkeys(row[column] for row in rows if row.get(column)))


if __name__ == "__main__":
    main()
