"""Damage artifacts in many ways, load them, and count what came of it: tools/results/fuzz_artifacts.csv.

    python tools/fuzz_artifacts.py --cases 200               # printed only
    python tools/fuzz_artifacts.py --cases 10000 --write     # goes on where the rows of this seed end

Case number and seed say all of a case. An artifact is refused with an error of this package, or it loads; where the
hashes were not made right after the damage, it must then answer as before. Each batch of cases runs in a process of its
own, so that one that ends the process is counted too.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import record
import torch
from judge_mutants import tiny  # also where the tests' models are
from rich.console import Console

import naflex_export as nx
from naflex_export.batch import noise_batch
from naflex_export.grid import Grid
from naflex_export.serving.manifest import MANIFEST, sealed, sha256_of

RESULTS = record.RESULTS / "fuzz_artifacts.csv"
PACKAGES = ("torch", "onnxruntime-gpu")
KIND = ("seed", "subject", "damage")
OUTCOMES = ("refused", "same_answer", "loaded", "silent_difference", "traceback", "hang", "crash")
"""`loaded`: native code and traced graphs are loaded and not called, and what has its hashes made right may answer
anything; `silent_difference` is another answer where they were not."""
COLUMNS = ("first", "last", *KIND, *OUTCOMES)
SUBJECTS = ("onnx", "patch sizes", "compile", "aot")
WEIGHTS = (10, 4, 2, 2)
BATCH = 500
SECONDS = 120

HOSTILE: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2**31,
        2**63,
        10**30,
        1.5,
        -0.0,
        1e308,
        "",
        "x",
        "x" * 100_000,
        "../x",
        "/etc/passwd",
    ),
    *("meta", "cuda:99", "sys:exit", "a\0b", "\ud800", "batch", [], {}, [[]], [None], {"": None}, [1, 2, 3], "batch*"),
)


@dataclass(frozen=True)
class Subject:
    """An artifact to damage, and what it answers."""

    name: str
    folder: Path
    inputs: tuple[torch.Tensor, ...]
    answer: torch.Tensor | None

    @classmethod
    def make(cls, name: str, folder: Path) -> Subject:
        """Return an artifact of one of `SUBJECTS`, exported to a folder unless it is there.

        Args:
            name: of the subject.
            folder: where to.
        """
        if not folder.exists():
            target, sizes = ("onnx", (3, 4)) if name == "patch sizes" else (name, None)
            buckets = [nx.Bucket(16, (1, 2, 4))]
            nx.export(tiny.flexible(), target, folder, buckets, effort="quick", patch_sizes=sizes)
        batch = noise_batch("fuzz", [Grid(3, 4), Grid(2, 2)], 16, 48)
        inputs = batch.patches, batch.patch_coord, batch.patch_valid
        is_called = name in ("onnx", "patch sizes")
        return cls(name, folder, inputs, nx.load(folder, "cpu")(*inputs) if is_called else None)  # type: ignore[arg-type]


def relist(folder: Path) -> None:
    """Make the manifest's sizes and hashes those of the files that are there, of manifests inside first."""
    for path in sorted(folder.rglob(MANIFEST), key=lambda path: -len(path.parts)):
        fields = json.loads(path.read_text())
        for name in fields["files"]:
            if (file := path.parent / name).is_file():
                fields["files"][name] = {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
        path.write_text(json.dumps(sealed(fields)))


def spoil(content: bytes, draw: random.Random) -> bytes:
    """Return bytes of a file with some changed, cut off, put in or all replaced."""
    made = bytearray(content)
    kind = draw.randrange(6)
    if kind == 0:
        for _ in range(draw.choice((1, 1, 3, 30))):
            made[draw.randrange(len(made))] ^= 1 << draw.randrange(8)
    elif kind == 1:
        del made[draw.randrange(len(made)) :]
    elif kind == 2:
        start = draw.randrange(len(made))
        made[start : start + draw.randrange(1, 400)] = b""
    elif kind == 3:
        start, length = draw.randrange(len(made)), draw.randrange(1, 400)
        made[start : start + length] = bytes(len(made[start : start + length]))
    elif kind == 4:
        start = draw.randrange(len(made))
        made[start:start] = draw.randbytes(draw.randrange(1, 400))
    else:
        made = bytearray(draw.randbytes(draw.randrange(2000)))
    return bytes(made)


def change_manifest_bytes(folder: Path, draw: random.Random) -> None:
    """Spoil a manifest as text."""
    path = draw.choice(sorted(folder.rglob(MANIFEST)))
    path.write_bytes(spoil(path.read_bytes(), draw))


def change_field(folder: Path, draw: random.Random) -> None:
    """Put a hostile value somewhere in a manifest, or take something out of it, and make the hashes right."""
    path = draw.choice(sorted(folder.rglob(MANIFEST)))
    fields = json.loads(path.read_text())
    for _ in range(draw.choice((1, 1, 2))):
        _change_one(fields, draw)
    path.write_text(json.dumps(sealed(fields)))
    if path.parent != folder:
        top = json.loads((folder / MANIFEST).read_text())
        name = path.relative_to(folder).as_posix()
        top["files"][name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        (folder / MANIFEST).write_text(json.dumps(sealed(top)))


def _change_one(fields: dict[str, Any], draw: random.Random) -> None:
    where: Any = fields
    while True:
        key = draw.choice(list(where) if isinstance(where, dict) else range(len(where)))
        inner = where[key]
        if not isinstance(inner, dict | list) or not inner or draw.random() < 0.2:
            break
        where = inner
    change = draw.randrange(6)
    if change == 0:
        del where[key]
    elif change == 1 and isinstance(where, dict):
        where[draw.choice(("", "x", "../x", "x" * 300, str(key) + "2"))] = where.pop(key)
    elif change == 2 and isinstance(where, list):
        where.append(inner)
    elif change == 3 and isinstance(inner, int):
        where[key] = inner + draw.choice((-1, 1, 10**6, -(10**6)))
    else:
        where[key] = draw.choice(HOSTILE)


def change_deep(folder: Path, draw: random.Random) -> None:
    """Write a manifest that no parser likes."""
    depth = draw.choice((10_000, 500_000))
    text = draw.choice(
        ("[" * depth, '{"a":' * depth, "9" * 10_000, "\ufeff{}", "[1e999]", '{"schema": NaN}', "null", '"x"')
    )
    (folder / MANIFEST).write_text(text)


def _files(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST and path.stat().st_size
    )


def change_file(folder: Path, draw: random.Random) -> None:
    """Spoil a file, and leave its hash."""
    path = draw.choice(_files(folder))
    path.write_bytes(spoil(path.read_bytes(), draw))


def change_file_and_hash(folder: Path, draw: random.Random) -> None:
    """Spoil a file, and make its hash right."""
    change_file(folder, draw)
    relist(folder)


def change_member(folder: Path, draw: random.Random) -> None:
    """Spoil what is in an archive of torch, and make checksum and hash right; of other artifacts, spoil a file."""
    path = folder / "model.pt2"
    if not path.exists():
        change_file_and_hash(folder, draw)
        return
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    texts = [name for name in members if members[name] and not name.endswith(".so")]
    name = draw.choice(texts)
    kind = draw.randrange(3)
    if kind == 0:
        del members[name]
    elif kind == 1 and name.endswith(".json"):
        fields = json.loads(members[name])
        _change_one(fields, draw)
        members[name] = json.dumps(fields).encode("utf-8", "replace")
    else:
        members[name] = spoil(members[name], draw)
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    relist(folder)


def change_folder(folder: Path, draw: random.Random) -> None:
    """Put in, take out or replace what a folder holds."""
    path = draw.choice([*_files(folder), folder / MANIFEST])
    kind = draw.randrange(7)
    if kind == 0:
        (path.parent / draw.choice(("extra.so", "model.onnx.data", ".hidden"))).write_bytes(b"x")
        return
    path.unlink()
    if kind == 1:
        os.mkfifo(path)
    elif kind == 2:
        path.symlink_to(draw.choice(("/dev/zero", "/etc/passwd", "nowhere", str(path))))
    elif kind == 3:
        path.mkdir()
    elif kind == 4:
        path.touch()
    elif kind == 5:
        shutil.rmtree(folder)
        folder.write_text("a file")


DAMAGES: dict[str, tuple[Callable[[Path, random.Random], None], bool]] = {
    "manifest's text": (change_manifest_bytes, False),
    "manifest's fields, hashes right": (change_field, True),
    "manifest that is no manifest": (change_deep, False),
    "a file": (change_file, False),
    "a file, hashes right": (change_file_and_hash, True),
    "inside an archive, hashes right": (change_member, True),
    "the folder": (change_folder, False),
}
"""What is damaged, by what, and whether all hashes are right afterwards."""

SHARES = (4, 8, 1, 3, 6, 4, 3)


def judge(subject: Subject, folder: Path, is_right: bool) -> str:
    """Return the outcome of loading a damaged artifact, and of calling it.

    Args:
        subject: the artifact before.
        folder: the damaged one.
        is_right: its hashes were made right.
    """
    try:
        run = nx.load(folder, "cpu")
        if subject.answer is None:
            return "loaded"
        found = run(*subject.inputs)
    except nx.NaflexExportError:
        return "refused"
    except TimeoutError:
        return "hang"
    except BaseException as error:
        print(f"# {type(error).__name__}: {str(error)[:300]!r}", file=sys.stderr, flush=True)
        return "traceback"
    if isinstance(found, torch.Tensor) and torch.equal(found, subject.answer):
        return "same_answer"
    return "loaded" if is_right else "silent_difference"


def outcomes(subjects: list[Subject], seed: int, first: int, last: int) -> Iterator[tuple[int, str, str, str]]:
    """Yield number, subject, damage and outcome of each case.

    Args:
        subjects: to damage, drawn as `WEIGHTS` say.
        seed: of all cases.
        first: number of the first case.
        last: number of the last.
    """
    weights = [WEIGHTS[SUBJECTS.index(subject.name)] for subject in subjects]
    for number in range(first, last + 1):
        draw = random.Random(f"{seed} {number}")
        (subject,) = draw.choices(subjects, weights)
        (damage,) = draw.choices(list(DAMAGES), SHARES)
        change, is_right = DAMAGES[damage]
        with tempfile.TemporaryDirectory() as place:
            folder = Path(shutil.copytree(subject.folder, Path(place) / "a"))
            change(folder, draw)
            yield number, subject.name, damage, judge(subject, folder, is_right)


def work(place: Path, seed: int, first: int, last: int) -> None:
    """Print the outcomes of some cases, a line each, as they come.

    Args:
        place: of the subjects.
        seed: of all cases.
        first: number of the first case.
        last: number of the last.
    """

    def stop(*_: object) -> None:
        raise TimeoutError

    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, stop)
    subjects = [Subject.make(path.name, path) for path in sorted(place.iterdir())]
    signal.alarm(SECONDS)
    for found in outcomes(subjects, seed, first, last):
        print(json.dumps(found), flush=True)
        signal.alarm(SECONDS)


def batches(place: Path, seed: int, first: int, last: int) -> Iterator[Counter[tuple[str, str, str]]]:
    """Yield for each batch of cases how often each subject and damage came to each outcome.

    Args:
        place: of the subjects.
        seed: of all cases.
        first: number of the first case.
        last: number of the last.
    """
    for start in range(first, last + 1, BATCH):
        counts: Counter[tuple[str, str, str]] = Counter()
        end, number = min(start + BATCH - 1, last), start
        while number <= end:
            ask = [sys.executable, __file__, "--work", str(place), "--seed", str(seed), "--first", str(number)]
            done = subprocess.run([*ask, "--last", str(end)], stdout=subprocess.PIPE, text=True, check=False)
            for line in done.stdout.splitlines():
                if line.startswith("["):
                    number, subject, damage, outcome = json.loads(line)
                    counts[subject, damage, outcome] += 1
                    number += 1
            if done.returncode != 0:
                print(f"# case {number} ended its process with {done.returncode}", file=sys.stderr)
                counts["any", "any", "crash"] += 1
                number += 1
        yield counts


def main() -> None:
    """Fuzz, print the counts, and write them if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=200, help="in all, with those that rows are there of")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--subjects", nargs="+", default=SUBJECTS, choices=SUBJECTS)
    parser.add_argument("--write", action="store_true", help="add rows, from the case on where the last ones end")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--last", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work is not None:
        work(options.work, options.seed, options.first, options.last)
        return
    fields = (*record.about("cpu", PACKAGES), *COLUMNS)
    rows = [row for row in record.read(RESULTS) if row["seed"] == str(options.seed)] if options.write else []
    first = max((int(row["last"]) + 1 for row in rows), default=0)
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as place:
        for name in options.subjects:
            Subject.make(name, Path(place) / name)
        for counts in batches(Path(place), options.seed, first, options.cases - 1):
            last = min(first + BATCH, options.cases) - 1
            cases: dict[tuple[str, str], dict[str, int]] = {}
            for (subject, damage, outcome), count in counts.items():
                cases.setdefault((subject, damage), dict.fromkeys(OUTCOMES, 0))[outcome] += count
                total[outcome] += count
            if options.write:
                head = {**record.about("cpu", PACKAGES), "first": first, "last": last, "seed": options.seed}
                named = [{"subject": s, "damage": d, **found} for (s, d), found in sorted(cases.items())]
                record.append(RESULTS, fields, [{**head, **row} for row in named])
            first = last + 1
            Console().print(f"{first} cases: {dict(total)}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
