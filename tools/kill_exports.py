"""Kill exports that replace an artifact while another process loads it: tools/results/kill_exports.csv.

    python tools/kill_exports.py                 # 50 kills, printed only
    python tools/kill_exports.py --write

Each export writes one of two artifacts, made beforehand, to the same name, again and again, and gets SIGKILL at a
random moment. Another process loads what is at that name in a loop, and calls it: it has to be the one or the other,
whole, each time. After the kills one more export has to leave the artifact and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import record
import torch
from judge_mutants import tiny  # also where the tests' models are
from rich.console import Console

import naflex_export as nx
from naflex_export.batch import noise_batch
from naflex_export.grid import Grid
from naflex_export.models.model_sources import randomize
from naflex_export.serving.publish import staged

RESULTS = record.RESULTS / "kill_exports.csv"
PACKAGES = ("torch", "onnxruntime-gpu")
COUNTS = ("kills", "publishes", "loads", "first", "second", "mixed", "absent", "errors", "left_over")
"""Of loads: the one artifact, the other, something between them, none there, any other error; and of folders left."""

LONGEST = 0.3
"""Seconds that an export may live."""


def make(folder: Path) -> None:
    """Export two artifacts of the same model with other weights, and what each answers.

    Args:
        folder: where to.
    """
    batch = noise_batch("kill", [Grid(3, 4), Grid(2, 2)], 16, 48)
    inputs = batch.patches, batch.patch_coord, batch.patch_valid
    for name, seed in (("first", 1), ("second", 2)):
        model = tiny.siglip()
        randomize(model, seed)
        nx.export(model, "onnx", folder / name, [nx.Bucket(16, (1, 2, 4))], effort="quick")
    note_answers(folder, inputs)


def note_answers(folder: Path, inputs: tuple[torch.Tensor, ...]) -> None:
    """Write beside two artifacts what each answers.

    Args:
        folder: where they are, as `first` and `second`.
        inputs: of the call.
    """
    answers = {}
    for name in ("first", "second"):
        run = nx.load(folder / name, "cpu")
        answers[run.manifest.model["weights_sha256"]] = (name, run(*inputs))
    assert len({float(answer.sum()) for _, answer in answers.values()}) == 2  # type: ignore[union-attr]
    torch.save({"inputs": inputs, "answers": answers}, folder / "answers.pt")


def replace(out: Path, folder: Path, draw: random.Random) -> None:
    """Put one of the two artifacts at a name, as an export does when its gate has passed.

    Args:
        out: where it is published.
        folder: of `make`.
        draw: says which.
    """
    with staged(out) as staging:
        shutil.copytree(folder / draw.choice(("first", "second")), staging, dirs_exist_ok=True)


def load_in_a_loop(out: Path, folder: Path) -> None:
    """Load and call what is at a name until standard input ends, and print how often it was what.

    Args:
        out: where it is published.
        folder: of `make`.
    """
    torch.set_num_threads(1)
    known = torch.load(folder / "answers.pt")
    counts: Counter[str] = Counter()
    print("ready", flush=True)
    while not select.select([sys.stdin], [], [], 0)[0]:  # it can be read at its end
        counts["loads"] += 1
        try:
            run = nx.load(out, "cpu")
        except nx.ArtifactError as error:
            counts["absent" if "is no artifact" in str(error) else "errors"] += 1
            print(f"# {error}", file=sys.stderr, flush=True)
            continue
        name, answer = known["answers"][run.manifest.model["weights_sha256"]]
        counts[name if torch.equal(run(*known["inputs"]), answer) else "mixed"] += 1
    print(json.dumps(counts), flush=True)


def kill(out: Path, folder: Path, kills: int, seed: int) -> dict[str, int]:
    """Return the counts of `COUNTS` of some killed exports.

    Args:
        out: where they publish.
        folder: of `make`.
        kills: how many.
        seed: of the moments.
    """
    draw = random.Random(seed)
    replace(out, folder, draw)
    ask = [sys.executable, __file__, "--load", str(out), "--made", str(folder)]
    publishes = out.parent / f"{out.name}.publishes"
    with subprocess.Popen(ask, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as loader:
        assert loader.stdin is not None and loader.stdout is not None
        loader.stdout.readline()
        _kill_some(out, folder, kills, seed)
        loader.stdin.close()
        counts = json.loads(loader.stdout.read())
    done = publishes.stat().st_size if publishes.exists() else 0
    publishes.unlink(missing_ok=True)
    replace(out, folder, draw)
    left = len([path for path in out.parent.iterdir() if path != out])
    return {**dict.fromkeys(COUNTS, 0), **counts, "kills": kills, "publishes": done, "left_over": left}


def _kill_some(out: Path, folder: Path, kills: int, seed: int) -> None:
    draw = random.Random(f"moments {seed}")
    publishes = out.parent / f"{out.name}.publishes"
    for number in range(kills):
        child = os.fork()
        if child == 0:
            own = random.Random(f"{seed} {number}")
            while True:  # until it is killed
                replace(out, folder, own)
                with publishes.open("a") as file:
                    file.write(".")
        time.sleep(draw.uniform(0, LONGEST))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def main() -> None:
    """Kill exports, print the counts, and write them if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="add a row")
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--made", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load is not None:
        load_in_a_loop(options.load, options.made)
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "made"
        make(folder)
        (Path(place) / "published").mkdir()
        counts = kill(Path(place) / "published" / "a", folder, options.kills, options.seed)
    Console().print(counts, highlight=False)
    if options.write:
        about = record.about("cpu", PACKAGES)
        record.append(RESULTS, (*about, "seed", *COUNTS), [{**about, "seed": options.seed, **counts}])


if __name__ == "__main__":
    main()
