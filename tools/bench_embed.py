"""Time NaFlexEmbeds with and without its per-image loop, in one process, side by side.

The experiment of pytorch-image-models#2514: `NaFlexEmbeds(embed_dim=768, proj_type="linear")` on random grids, forward
and forward+backward. The floor is the same module without a position embedding: what the projection costs.
Runs of all candidates are interleaved, so that whatever else the machine does meets them alike; a row holds the median,
the spread (half the distance between the quartiles, as a share of the median), the ratio to the floor and the error
against timm's loop.

    python tools/bench_embed.py                       # a few minutes on two cores
    python tools/bench_embed.py --batches 32 256 512 --device cuda
    python tools/bench_embed.py --write-docs          # docs/performance.md from the CSV
"""

from __future__ import annotations

import argparse
import csv
import datetime
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from timm.models.naflexvit import NaFlexEmbeds
from torch import Tensor, nn

from naflex_export.cases import MAX_ASPECT, naflex_grid, noise_batch
from naflex_export.grid import Grid
from naflex_export.models.timm_naflex import VectorizedNaFlexEmbeds

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "tools" / "results" / "bench_embed.csv"
DOCS = ROOT / "docs" / "performance.md"
FIELDS = (
    *("date", "commit", "device", "threads", "torch", "timm", "dtype", "source", "sizes", "batch", "tokens"),
    *("pass", "candidate", "ms", "spread", "ratio_to_floor", "error"),
)
SETTING = ("source", "sizes", "batch", "pass")
WIDTH, PATCH = 768, 16


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--sources", type=int, nargs="+", default=[16, 32, 128])
    parser.add_argument("--sizes", nargs="+", default=["4..31", "naflex256"], help="4..31, or naflex and a token count")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--write-docs", action="store_true", help="only write docs/performance.md from the CSV")
    options = parser.parse_args()
    if options.write_docs:
        write_docs()
        return
    for source in options.sources:
        for sizes in options.sizes:
            for batch in options.batches:
                rows = measure(options, source, sizes, batch)
                append(rows)
                for row in rows:
                    print(*(row[name] for name in FIELDS[7:]), sep="\t", flush=True)


def measure(options: argparse.Namespace, source: int, sizes: str, batch: int) -> list[dict[str, object]]:
    """Return a row for each candidate and pass, for one source grid, kind of sizes and batch size."""
    torch.manual_seed(0)
    grids = draw_grids(sizes, batch)
    inputs = noise_batch("bench", grids, max(grid.tokens for grid in grids), PATCH * PATCH * 3)
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    patches, coord = inputs.patches.to(device, dtype), inputs.patch_coord.to(device)
    made = {name: module.to(device, dtype) for name, module in candidates(source).items()}
    calls: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, object]]] = {**made}
    calls["ours, compiled"] = torch.compile(made["ours"], fullgraph=True, dynamic=True)

    with torch.no_grad():
        expected, _ = made["timm's loop"](patches, coord)
        errors = {name: share(call(patches, coord)[0], expected) for name, call in calls.items()}

    def forward(call: Callable[..., tuple[Tensor, object]]) -> None:
        with torch.no_grad():
            call(patches, coord)

    def forward_backward(call: Callable[..., tuple[Tensor, object]]) -> None:
        call(patches, coord)[0].sum().backward()

    rows: list[dict[str, object]] = []
    for label, run in (("forward", forward), ("forward+backward", forward_backward)):
        times = interleave(
            {name: lambda call=call, run=run: run(call) for name, call in calls.items()}, options.repeats
        )
        floor = statistics.median(times["floor"])
        for name, taken in times.items():
            median = statistics.median(taken)
            low, _, high = statistics.quantiles(taken, n=4)
            rows.append(
                {
                    **about(device),
                    "dtype": options.dtype,
                    "source": f"{source}x{source}{'' if source < 128 else ' no antialias'}",
                    "sizes": sizes,
                    "batch": batch,
                    "tokens": patches.shape[1],
                    "pass": label,
                    "candidate": name,
                    "ms": f"{1000 * median:.1f}",
                    "spread": f"{(high - low) / 2 / median:.2f}",
                    "ratio_to_floor": f"{median / floor:.2f}",
                    "error": "" if name == "floor" else f"{errors[name]:.1e}",
                }
            )
    return rows


def candidates(source: int) -> dict[str, nn.Module]:
    """Return the modules to time; all but the floor have the same weights."""

    def embeds(**options: object) -> NaFlexEmbeds:
        return NaFlexEmbeds(
            patch_size=PATCH,
            embed_dim=WIDTH,
            proj_type="linear",
            class_token=False,
            pos_embed_grid_size=(source, source),
            pos_embed_antialias=source < 128,  # as C-RADIO has it
            **options,
        )

    loop, sampled, ours, floor = embeds(), embeds(pos_embed_use_grid_sample=True), embeds(), embeds(pos_embed="none")
    with torch.no_grad():
        loop.pos_embed.normal_()
    for module in (sampled, ours):
        module.load_state_dict(loop.state_dict())
    floor.proj.load_state_dict(loop.proj.state_dict())
    ours.__class__ = VectorizedNaFlexEmbeds
    return {"floor": floor, "timm's loop": loop, "timm's grid_sample": sampled, "ours": ours}


def draw_grids(sizes: str, batch: int) -> list[Grid]:
    """Return random grids: sides 4 to 31, as the report drew them, or NaFlex's size rule at a token count."""
    draw = random.Random(0)
    if sizes == "4..31":
        return [Grid(draw.randint(4, 31), draw.randint(4, 31)) for _ in range(batch)]
    tokens = int(sizes.removeprefix("naflex"))
    return [naflex_grid(MAX_ASPECT ** draw.uniform(-1, 1), tokens) for _ in range(batch)]


def interleave(calls: dict[str, Callable[[], None]], repeats: int) -> dict[str, list[float]]:
    """Return the seconds of each call, all of them once in each round; one round first that does not count."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            synchronize()
            started = time.perf_counter()
            call()
            synchronize()
            if repeat:
                times[name].append(time.perf_counter() - started)
    return times


def synchronize() -> None:
    """Wait for a GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def share(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference as a share of the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())


def about(device: torch.device) -> dict[str, object]:
    """Return when, from what and on what a row was measured."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "timm": timm.__version__,
    }


def cpu_name() -> str:
    """Return the processor's name, as Linux gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "CPU")


def append(rows: list[dict[str, object]]) -> None:
    """Add rows to the CSV."""
    new = not RESULTS.exists()
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        if new:
            writer.writeheader()
        writer.writerows(rows)


def write_docs() -> None:
    """Write docs/performance.md from the CSV: the newest row of each kind."""
    if not RESULTS.exists():
        sys.exit(f"{RESULTS.relative_to(ROOT)} does not exist: run the benchmark first")
    newest: dict[tuple[str, ...], dict[str, str]] = {}
    with RESULTS.open(newline="") as file:
        for row in csv.DictReader(file):
            key = ("device", "dtype", "source", "sizes", "batch", "pass", "candidate")
            newest[tuple(row[name] for name in key)] = row
    lines = [
        "# Performance",
        "",
        "Written by `tools/bench_embed.py --write-docs` from `tools/results/bench_embed.csv`; do not edit.",
        "",
        "The embedding alone, `NaFlexEmbeds(embed_dim=768, proj_type='linear')`: time as a ratio to the floor, which",
        "is the same module without a position embedding. In brackets the largest difference from timm's loop, as a",
        "share of the largest value.",
        "",
    ]
    groups: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in newest.values():
        about_row = tuple(row[name] for name in ("device", "threads", "dtype", "torch", "timm", "commit", "date"))
        groups.setdefault(about_row, []).append(row)
    for (device, threads, dtype, torch_version, timm_version, commit, date), rows in groups.items():
        names = list(dict.fromkeys(row["candidate"] for row in rows if row["candidate"] != "floor"))
        lines += [
            f"## {device}, {threads} threads, {dtype}",
            "",
            f"torch {torch_version}, timm {timm_version}, commit {commit}, {date}.",
            "",
            f"| source grid | sizes | batch | pass | floor, ms | {' | '.join(names)} |",
            f"|---|---|--:|---|--:|{'--:|' * len(names)}",
        ]
        for setting in dict.fromkeys(setting_of(row) for row in rows):
            of = {row["candidate"]: row for row in rows if setting_of(row) == setting}
            cells = [f"{of[name]['ratio_to_floor']} ({of[name]['error']})" for name in names]
            lines.append(f"| {' | '.join(setting)} | {of['floor']['ms']} | {' | '.join(cells)} |")
        lines.append("")
    lines += ["What has no row here has not been measured; no row is from a GPU unless its heading says so.", ""]
    DOCS.write_text("\n".join(lines))


def setting_of(row: dict[str, str]) -> tuple[str, ...]:
    """Return what one line of the table is about."""
    return tuple(row[name] for name in SETTING)


if __name__ == "__main__":
    main()
