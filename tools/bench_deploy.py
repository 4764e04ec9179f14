"""Measure the way from photos to vectors: preprocessing, cold starts, `naflex-embed` beside a bare run, and memory.

Processor seconds of one thread, children included, so that a busy machine does not show. Artifacts are a base model's
with random weights:

    naflex-export --target onnx --weights random --bucket 256:1,8,8 --out onnx
    naflex-export --target compile --compile-cache --weights random --bucket 256:1,2,2 --out compile
    python tools/bench_deploy.py photos
    python tools/bench_deploy.py starts onnx compile
    python tools/bench_deploy.py embed onnx
    python tools/bench_deploy.py ray onnx
    python tools/bench_deploy.py memory
    python tools/bench_deploy.py page

Rows go to tools/results/bench_deploy.csv, and the newest of each kind, by `page`, into docs/deploy.md.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from markdown_text import listed, section, table
from PIL import Image
from record import ABOUT, RESULTS, ROOT, about, append, newest, read

FIELDS = (*ABOUT, "torch", "timm", "what", "detail", "value", "spread", "unit", "limit")

PAGE = ROOT / "docs" / "deploy.md"
BEGIN, END = "<!-- figures: written by tools/bench_deploy.py page -->", "<!-- /figures -->"

SIZES = {"500x375": ((500, 375), 4), "1024x683": ((1024, 683), 10), "12 megapixels": ((4000, 3000), 165)}
"""Of JPEGs: width and height, and the most ms that one may take."""

USED = """
import resource, sys
def used():
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
"""

STARTS = {
    "nx.load": """
import naflex_export as nx, torch
pre, run = nx.Preprocessor.of(artifact), nx.load(artifact)
run({name: torch.from_numpy(array) for name, array in pre([photo]).items()})
""",
    "nx.load_numpy": """
import naflex_export as nx
nx.load_numpy(artifact)(nx.Preprocessor.of(artifact)([photo]))
""",
}

FORBIDDEN = {"nx.load": ("timm", "torchvision", "torch._dynamo"), "nx.load_numpy": ("timm", "torchvision", "torch")}
"""Modules that are not to be imported by the first vector of an ONNX artifact."""


def picture(width: int, height: int) -> bytes:
    """Return a JPEG of one of the photos that ship with the package, at a size."""
    from naflex_export.accuracy.photos import load_photos

    stream = io.BytesIO()
    load_photos().images["coffee.jpg"].resize((width, height), Image.Resampling.BICUBIC).save(
        stream, "JPEG", quality=90
    )
    return stream.getvalue()


def photos(options: argparse.Namespace) -> Iterator[dict[str, str]]:
    """Yield rows of what preprocessing a photo takes."""
    from naflex_export.embed.preprocess import Preprocessor
    from naflex_export.embed.preprocessing import FUSED, PIL, SEPARATE, TORCHVISION, Preprocessing

    names = ("patches", "patch_coord", "patch_valid")
    for resizer, normalize in ((PIL, SEPARATE), (TORCHVISION, FUSED)):
        said = Preprocessing("timm", (16, 16), (0.5,) * 3, (0.5,) * 3, "bilinear", resizer, normalize=normalize)
        for fast in (False, True):
            pre = Preprocessor(said, names, "float32", 256, fast_jpeg=fast)
            for size, (pixels, limit) in SIZES.items():
                photo = picture(*pixels)
                taken = timed(lambda pre=pre, photo=photo: pre.one(photo), options.rounds * 5)
                detail = f"{size} JPEG, {resizer}{', fast_jpeg' if fast else ''}"
                yield row("preprocess a photo", detail, [1000 * value for value in taken], "CPU ms", f"{limit}")


def starts(options: argparse.Namespace) -> Iterator[dict[str, str]]:
    """Yield rows of the processor seconds of a new process up to its first vector."""
    onnx, *compiled = (path.resolve() for path in options.artifacts)
    tasks: list[tuple[str, str, Path, float | None, bool]]
    tasks = [("onnx", "nx.load", onnx, 3.2, True), ("onnx without torch", "nx.load_numpy", onnx, 2.2, True)]
    for path in compiled:
        tasks.append(("compile with its cache", "nx.load", path, 12, True))
        tasks.append(("compile without a cache", "nx.load", path, None, False))
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder) / "photo.jpg"
        photo.write_bytes(picture(500, 375))
        for what, load, artifact, limit, has_cache in tasks:
            rounds = options.rounds if limit else 1
            found = []
            for _ in range(rounds + 1 if limit else 1):
                found.append(start(load, without_cache(artifact, folder) if not has_cache else artifact, photo))
            yield row("first vector", what, found[-rounds:], "CPU s", "" if limit is None else f"{limit}")


def without_cache(artifact: Path, folder: str) -> Path:
    """Return a copy of an artifact whose manifest tells of no cache."""
    from naflex_export.serving.manifest import Manifest

    copy = Path(tempfile.mkdtemp(dir=folder)) / "a"
    shutil.copytree(artifact, copy, ignore=shutil.ignore_patterns("cache"))
    manifest = Manifest.read(artifact)
    Manifest(**{**vars(manifest), "build": {}}).write(copy)
    return copy


def start(load: str, artifact: Path, photo: Path) -> float:
    """Return the processor seconds of a process that embeds one photo and ends."""
    forbidden = FORBIDDEN[load] if artifact.name == "onnx" else ()
    code = (
        f"{USED}\nartifact, photo = {str(artifact)!r}, {str(photo)!r}\n{STARTS[load]}\n"
        f"assert not set({forbidden!r}) & set(sys.modules), set({forbidden!r}) & set(sys.modules)\nprint(used())"
    )
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": cache}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment
        )
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    return float(done.stdout.split()[-1])


def embed(options: argparse.Namespace) -> Iterator[dict[str, str]]:
    """Yield rows of a shard of `naflex-embed` beside the bare run on the same padded batches, in turn."""
    from naflex_export.embed.embed_request import EmbedRequest, make_shard
    from naflex_export.embed.preprocess import Preprocessor
    from naflex_export.embed.sources import source_of
    from naflex_export.serving.numpy_runner import load_numpy

    artifact, count = options.artifacts[0], options.photos
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "photos"
        folder.mkdir()
        for index in range(count):
            (folder / f"{index:04d}.jpg").write_bytes(picture(400 + 7 * (index % 30), 300 + 11 * (index % 20)))
        pre, run = Preprocessor.of(artifact), load_numpy(artifact, threads=1)
        size = run.manifest.buckets[0].batch[1]
        made = [pre.one(path) for path in sorted(folder.iterdir())]
        batches = [pre.collate(made[first : first + size]) for first in range(0, count, size)]
        embedder, source = EmbedRequest(artifact, (folder,), folder, threads=1).embedder(), source_of([folder])
        whole, bare = [], []
        for number in range(options.rounds):
            out = Path(name) / f"out{number}"
            out.mkdir()
            whole += timed(lambda out=out: make_shard(embedder, source, out, 0, lambda photos, failed: None), 1)
            bare += timed(lambda: [run(batch) for batch in batches], 1)
        shares = [one / other for one, other in zip(bare, whole, strict=True)]
        detail = f"{count} photos, batches of {size}, once the artifact is loaded"
        yield row("bare run over naflex-embed", detail, shares, "share of CPU s", "0.95")


def ray_actor(options: argparse.Namespace) -> Iterator[dict[str, str]]:
    """Yield a row of the function that Ray's actors run beside the loop of an Embedder, in turn in the same actor."""
    import pyarrow as pa

    from naflex_export.embed.ray_cluster import LOCAL, cluster
    from naflex_export.ray import Vectors

    class Timed(Vectors):
        def __call__(self, given: Any) -> Any:
            paths = given.column("path").to_pylist()
            loop = timed(lambda: list(self._embedder(paths)), 1)
            own = timed(lambda: super(Timed, self).__call__(given), 1)
            return pa.table({"loop": loop, "own": own})

    with tempfile.TemporaryDirectory() as name:
        for index in range(options.photos):
            (Path(name) / f"{index:04d}.jpg").write_bytes(picture(400 + 7 * (index % 30), 300 + 11 * (index % 20)))
        paths = [{"path": str(path)} for path in sorted(Path(name).iterdir())]
        with cluster(LOCAL) as ray:
            from ray.data import ActorPoolStrategy, from_items

            made = from_items(paths * (options.rounds + 1), override_num_blocks=options.rounds + 1).map_batches(
                Timed,
                fn_constructor_args=(str(options.artifacts[0].resolve()), "path", {"threads": 1}),
                batch_format="pyarrow",
                batch_size=None,
                compute=ActorPoolStrategy(size=1),
                num_cpus=1,
            )
            shares = [one["own"] / one["loop"] - 1 for one in made.take_all()][1:]
            detail = f"{options.photos} photos a call, Ray {ray.__version__}"
    yield row("Ray's function over the loop", detail, [100 * one for one in shares], "% of CPU s", "10")


def memory(options: argparse.Namespace) -> Iterator[dict[str, str]]:
    """Yield a row of how much the peak of memory grows from 2,000 photos to 20,000."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from artifacts import fill_pooling

    from naflex_export.embed.embedder import Embedder

    with tempfile.TemporaryDirectory() as folder:
        embedder = Embedder(fill_pooling(Path(folder) / "a"))
        photo, peaks = picture(160, 120), []
        stream = embedder(photo for _ in range(20_000))
        for index, _ in enumerate(stream, 1):
            if index in (2_000, 20_000):
                peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    detail = f"from {peaks[0]:.0f} MiB after 2,000 photos, an artifact that computes next to nothing"
    yield row("growth over 20,000 photos", detail, [peaks[1] - peaks[0]], "MiB", "")


def figures(rows: list[dict[str, str]]) -> str:
    """Return the newest row of each kind as a table, and what they were measured on."""
    found = newest(rows, ("what", "detail", "device", "threads"))
    columns = ("what", "detail", "value", "limit", "unit", "spread", "commit")
    lines = [[row[name] or "-" for name in columns] for row in found]
    machines = dict.fromkeys(f"{row['device']}, torch {row['torch']}, {row['date']}" for row in found)
    head = ["", "", "measured", "at most, or at least", "", "spread", "commit"]
    return f"{table(head, lines)}\n\nOne thread of {listed('machine', list(machines)).partition(' ')[2]}."


def timed(function: Callable[[], Any], rounds: int) -> list[float]:
    """Return the processor seconds that calls take, after one that is not counted where there are several."""
    found = []
    for _ in range(rounds + (rounds > 1)):
        began = time.process_time()
        function()
        found.append(time.process_time() - began)
    return found[-rounds:]


def row(what: str, detail: str, values: list[float], unit: str, limit: str) -> dict[str, str]:
    """Return a row of results: the median of values, and how far they spread.

    Args:
        what: was measured.
        detail: of it.
        values: of its rounds.
        unit: of them.
        limit: that they are to be within; empty where there is none.
    """
    return {
        **about("cpu"),
        "what": what,
        "detail": detail,
        "value": f"{statistics.median(values):.3g}",
        "spread": f"{max(values) - min(values):.2g}",
        "unit": unit,
        "limit": limit,
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure what the command line asks for, print it and add it to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["photos", "starts", "embed", "ray", "memory", "page"])
    parser.add_argument("artifacts", nargs="*", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--photos", type=int, default=64, help="to embed")
    parser.add_argument("--out", type=Path, default=RESULTS / "bench_deploy.csv")
    options = parser.parse_args(arguments)
    if options.part == "page":
        PAGE.write_text(section(PAGE.read_text(), BEGIN, END, figures(read(options.out))))
        return
    parts = {"photos": photos, "starts": starts, "embed": embed, "ray": ray_actor, "memory": memory}
    for line in parts[options.part](options):
        print(*(line[name] for name in FIELDS[6:]), sep="\t", flush=True)
        append(options.out, FIELDS, [line])


if __name__ == "__main__":
    main()
