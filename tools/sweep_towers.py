"""Export every tiny vision tower to every target; adds a row each to `tools/results/sweep_towers.csv`.

A row holds how far the artifact is from the tower itself on packs of sizes that its trace never had, as a share of
the largest value; the tests take 1e-5 as the most, and run some of these only. The towers are those of
`tests/tower_tiny.py`, with two blocks; with a core for itself, native code takes a tower about 20 seconds.

    python tools/sweep_towers.py [--target aot] [TOWER ...]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from record import ABOUT, RESULTS, ROOT, about, append

sys.path.insert(0, str(ROOT / "tests"))

from tower_tiny import KIN, TOWERS, exported_far_from_eager

ROWS = RESULTS / "sweep_towers.csv"
PACKAGES = ("torch", "transformers", "onnx")
TARGETS = ("onnx", "aot", "compile")
FIELDS = (*ABOUT, *PACKAGES, "tower", "target", "largest_error", "cpu_s")


def _cpu_seconds() -> float:
    """Return those of this process and of the compilers that it has waited for."""
    return sum(os.times()[:4])


def main() -> None:
    known = {**TOWERS, **KIN}
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("towers", nargs="*", metavar="TOWER", help="these only, of " + ", ".join(known))
    parser.add_argument("--target", action="append", choices=TARGETS, help="this only; may be given several times")
    options = parser.parse_args()
    if unknown := set(options.towers) - set(known):
        parser.error(f"no tower is named {', '.join(sorted(unknown))}: expected some of {', '.join(known)}")
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "the model is a vision tower")
    for name in options.towers or known:
        for target in options.target or TARGETS:
            began = _cpu_seconds()
            with tempfile.TemporaryDirectory() as folder:
                apart = exported_far_from_eager(known[name](), target, Path(folder) / "a")
            row = {"tower": name, "target": target, "largest_error": f"{apart:.1e}"}
            row |= {"cpu_s": f"{_cpu_seconds() - began:.0f}", **about("cpu", PACKAGES)}
            append(ROWS, FIELDS, [row])
            print(f"{name} {target}: {apart:.1e}", flush=True)


if __name__ == "__main__":
    main()
