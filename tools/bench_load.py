"""Measure what loading an artifact, or the help of a command, costs a new process: processor time, modules, memory.

With `--beside` another checkout of this package does the same in turn, so that a busy machine meets both alike. The
artifact has to be one that both can load: export it with the older.

    git worktree add ../older 2aecad6
    python tools/bench_load.py ARTIFACT --beside ../older

Rows go to tools/results/bench_load.csv.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

from record import ABOUT, RESULTS, ROOT, about, append, commit_of

FIELDS = (*ABOUT, "torch", "timm", "what", "checkout", "rounds", "cpu_s", "spread_s", "modules", "peak_mib")

MEASURE = """
import resource, sys
{code}
used = resource.getrusage(resource.RUSAGE_SELF)
children = resource.getrusage(resource.RUSAGE_CHILDREN)
seconds = used.ru_utime + used.ru_stime + children.ru_utime + children.ru_stime
status = open("/proc/self/status").read().split()
print(seconds, len(sys.modules), int(status[status.index("VmHWM:") + 1]) / 1024)
"""

LOAD = """
import torch
import naflex_export as nx
run = nx.load({artifact!r})
patches, coord, valid = run.manifest.inputs
tokens = run.manifest.buckets[0].tokens
coordinates = torch.zeros(1, tokens, 2, dtype=torch.int64)
coordinates[0, :, 1] = torch.arange(tokens)
run(torch.zeros(1, tokens, int(patches.shape[2])), coordinates, torch.ones(1, tokens, dtype=torch.bool))
"""

HELP = """
import contextlib, io
from importlib import import_module
for module in ({modules}):
    try:
        command = import_module(module).export_command
        break
    except (ImportError, AttributeError):
        continue
with contextlib.redirect_stdout(io.StringIO()):
    command(["--help"], standalone_mode=False)
"""


def main(arguments: list[str] | None = None) -> None:
    """Measure what the command line asks for, print it and add it to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path, help="an ONNX artifact whose smallest batch is 1")
    parser.add_argument("--beside", type=Path, help="another checkout")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "bench_load.csv")
    options = parser.parse_args(arguments)
    trees = [ROOT, *([options.beside.resolve()] if options.beside else [])]
    tasks = {
        "load and call an ONNX artifact": LOAD.format(artifact=str(options.artifact.resolve())),
        "naflex-export --help": HELP.format(modules="'naflex_export.cli.export', 'naflex_export.cli'"),
    }
    for what, code in tasks.items():
        found: dict[Path, list[tuple[float, ...]]] = {tree: [] for tree in trees}
        for number in range(options.rounds + 1):
            for tree in trees if number % 2 else trees[::-1]:
                measured = run(tree, code)
                if number:  # the first of each fills the system's cache of files
                    found[tree].append(measured)
        rows = [row(options, what, tree, measures) for tree, measures in found.items()]
        append(options.out, FIELDS, rows)
        for line in rows:
            print(*(line[name] for name in FIELDS[6:]), sep="\t", flush=True)


def run(tree: Path, code: str) -> tuple[float, ...]:
    """Return processor seconds, modules and the peak of memory in MiB of a new process that runs the code."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE.format(code=code)],
        env={**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"},
        cwd=tree,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{tree}: {done.stderr.strip().splitlines()[-1]}")
    return tuple(map(float, done.stdout.split()[-3:]))


def row(options: argparse.Namespace, what: str, tree: Path, measures: list[tuple[float, ...]]) -> dict[str, str]:
    """Return the row of a task in a checkout."""
    seconds, modules, peaks = zip(*measures, strict=True)
    return {
        **about("cpu"),
        "commit": commit_of(tree),
        "what": what,
        "checkout": "this" if tree == ROOT else "beside",
        "rounds": str(options.rounds),
        "cpu_s": f"{statistics.median(seconds):.2f}",
        "spread_s": f"{max(seconds) - min(seconds):.2f}",
        "modules": f"{statistics.median(modules):.0f}",
        "peak_mib": f"{statistics.median(peaks):.0f}",
    }


if __name__ == "__main__":
    main()
