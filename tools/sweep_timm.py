"""Check every architecture that timm builds as a NaFlexVit, a CSV row each; `sweep_page.py` writes a page from them.

    python tools/sweep_timm.py                    # go on where the CSV ends
    python tools/sweep_timm.py NAME ...           # these only
    python tools/sweep_timm.py --again NAME       # redo a row, and go on
    python tools/sweep_timm.py --only NAME        # print one row as JSON, in this process

Each architecture has its true width, patch size and options, random weights, and 2 blocks. Its stages:

- create, eager: timm builds it as a NaFlexVit, and its outputs can tell right from wrong.
- vectorize: `nx.vectorize` against eager, the features and the valid tokens of mixed grids with padding.
- compile: `nx.compile` with backend "eager", one full graph with open sizes, for two batches without a recompile.
- trace, onnx: the ONNX graph in ONNX Runtime on a CPU, for two batches of sizes that the trace never saw. Its
  resampling matrices are stored or computed, as the rule for exports says.
- trt: TensorRT parses the ONNX graph of the trt target and builds an engine, which is not run: that takes a GPU.

Errors are the largest difference from eager as a share of eager's largest value. Every architecture runs in a process
of its own, so that a crash or a timeout costs one row, which then says so.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import onnxruntime
import timm
import torch
from timm.layers import AttentionRope
from timm.models import NaFlexVit
from torch import Tensor, nn

import naflex_export as nx
from naflex_export.accuracy.metrics import LIMITS, measure, why_uninformative
from naflex_export.batch import Batch, noise_batch
from naflex_export.errors import BuildError
from naflex_export.graph.build_settings import BuildSettings
from naflex_export.graph.onnx_translate import FILE, write_onnx
from naflex_export.graph.program import Program
from naflex_export.graph.trace import trace
from naflex_export.grid import Grid
from naflex_export.models import adapter_of
from naflex_export.models.model_sources import randomize
from naflex_export.models.timm_naflex import resampling_of
from naflex_export.targets import onnx, tensorrt

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "tools" / "results" / "sweep_timm.csv"

DEPTH = 2
BUCKET = nx.Bucket(tokens=36, batch=(1, 4, 8))
OUTPUTS = ("features", "tokens")
# A row, a column, squares, odd sizes, two images of one grid: none of 11 tokens or 3 images, as the trace has.
GRIDS = (Grid(3, 7), Grid(1, 36), Grid(36, 1), Grid(6, 6), Grid(1, 1), Grid(3, 7), Grid(5, 5))
OTHER_GRIDS = (Grid(4, 7), Grid(13, 1), Grid(1, 29), Grid(2, 3))

VERSIONS = ("torch", "timm", "onnx", "onnxruntime", "tensorrt")
ERRORS = (
    "vectorize_features",
    "vectorize_tokens",
    "compile_features",
    "onnx_features",
    "onnx_tokens",
)
COLUMNS = (
    *("architecture", "module", "date", "commit", *VERSIONS),
    *("width", "depth", "patch", "pos_embed", "pos_grid", "pos_resize", "rope", "pooling", "prefix_tokens", "matrices"),
    *(*ERRORS, "onnx_nodes", "trt_engine_bytes", "seconds", "failure"),
)
Row = dict[str, str]
OnStage = Callable[[str, Row], None]


def architectures() -> list[str]:
    """Return the names of every architecture of the timm modules that build NaFlexVits, refused ones too."""
    names = timm.list_models()
    modules = {name: timm.model_entrypoint(name).__module__ for name in names}
    building = set()
    for name, module in modules.items():
        if module not in building and _builds(name):
            building.add(module)
    return [name for name in names if modules[name] in building]


def _builds(name: str) -> bool:
    with contextlib.suppress(Exception), torch.device("meta"):  # timm's modules refuse options each in its own way
        return isinstance(timm.create_model(name, depth=DEPTH, **_options(name)), NaFlexVit)
    return False  # or it built as something else


def _options(name: str) -> dict[str, Any]:
    return {} if name.startswith("naflexvit") else {"use_naflex": True}


def create(name: str, **overrides: Any) -> tuple[NaFlexVit, int]:
    """Return an architecture cut to `DEPTH` blocks, every parameter seeded and in eval mode, and its true depth.

    timm configures key-value heads block by block: the first block's are kept, and the fewest that any block has.
    """
    with torch.device("meta"):
        whole = timm.create_model(name, **_options(name), **overrides)
    if not isinstance(whole, NaFlexVit):
        raise TypeError(f"timm builds {name!r} as a {type(whole).__name__}")
    heads = [module.num_kv_heads for module in whole.modules() if isinstance(module, AttentionRope)]
    cut = {"depth": DEPTH, **({"num_kv_heads": (heads[0], min(heads))[:DEPTH]} if heads else {})}
    model = timm.create_model(name, **_options(name), **overrides, **cut)
    randomize(model, seed=1)
    return model.eval(), len(whole.blocks)


def check(name: str, on_stage: OnStage = lambda stage, row: None, **overrides: Any) -> Row:
    """Return the row of one architecture; what fails in it is in its `failure`.

    Args:
        name: timm's name.
        on_stage: called with the name of each stage before it starts, and the row so far.
        overrides: of timm's configuration, for tests.
    """
    began = time.monotonic()
    row, failures = new_row(name), []

    @contextlib.contextmanager
    def stage(title: str) -> Iterator[None]:
        on_stage(title, {**row, "failure": " | ".join(failures)})
        try:
            yield
        except Exception as error:  # whatever it is, it belongs in the row
            failures.append(f"{title}: {_one_line(error)}")

    model, inputs, expected = None, [], []
    with stage("create"):
        model, depth = create(name, **overrides)
        row |= {"depth": str(depth), **kind_of(model)}
    if model is not None:
        with stage("eager"):
            width = adapter_of(model).token_width
            inputs = [noise_batch("sweep", GRIDS, 36, width), noise_batch("sweep-other", OTHER_GRIDS, 29, width)]
            expected = [eager(model, batch) for batch in inputs]
    if expected:
        with stage("vectorize"):
            _record(row, "vectorize", _vectorized(model, inputs), expected, inputs)
        with stage("compile"):
            _record(row, "compile", _compiled(model, inputs), expected, inputs)
        program = None
        with stage("trace"):
            program = trace(adapter_of(model), [BUCKET], outputs=OUTPUTS)
            row["matrices"] = "stored" if program.stores_matrices else "computed" if row["pos_grid"] else ""
        del model
        with tempfile.TemporaryDirectory() as folder:
            if program is not None:
                with stage("onnx"):
                    found = _onnx(program, Path(folder), inputs, row)
                    _record(row, "onnx", found, expected, inputs)
                with stage("trt"):
                    row["trt_engine_bytes"] = str(_engine_bytes(program, Path(folder)))
    row |= {"seconds": f"{time.monotonic() - began:.1f}", "failure": " | ".join(failures)}
    return row


def new_row(name: str) -> Row:
    """Return a row with what is known before anything runs, its other columns empty."""
    library = tensorrt.tensorrt()
    return {
        **dict.fromkeys(COLUMNS, ""),
        "architecture": name,
        "module": timm.model_entrypoint(name).__module__.rsplit(".", 1)[-1],
        "date": time.strftime("%Y-%m-%d"),
        "commit": os.environ.get("NAFLEX_SWEEP_COMMIT") or package_commit(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "onnx": metadata.version("onnx"),
        "onnxruntime": onnxruntime.__version__,
        "tensorrt": f"{library.__name__} {library.__version__}",
    }


def package_commit() -> str:
    """Return the last commit that changed the package, with `+` where files differ from it; empty outside git."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    commit = git("log", "-1", "--format=%h", "--", "naflex_export")
    return commit + "+" if git("status", "--porcelain", "--", "naflex_export") else commit


def kind_of(model: NaFlexVit) -> Row:
    """Return the columns that say what kind of NaFlexVit a model is."""
    about = adapter_of(model).describe()
    how, has_grid = resampling_of(model.embeds), about["pos_embed"] != "none"
    flags = {"antialias": how.antialias, "align_corners": how.align_corners}
    flags |= {"keep_aspect": about["pos_embed_ar_preserving"], "grid_sample": about["pos_embed_use_grid_sample"]}
    grid = about["pos_embed_grid"] if has_grid else []
    resize = [how.mode, *(flag for flag, is_set in flags.items() if is_set)]
    return {
        "width": str(about["width"]),
        "patch": "x".join(map(str, model.embeds.patch_size)),
        "pos_embed": about["pos_embed"],
        "pos_grid": "x".join(map(str, grid)),
        "pos_resize": " ".join(resize) if has_grid else "",
        "rope": about["rope"].removeprefix("RotaryEmbedding").lower() or "none",
        "pooling": about["global_pool"] or "none",
        "prefix_tokens": str(about["num_prefix_tokens"]),
    }


def eager(model: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
    """Return the outputs of timm's own model.

    Raises:
        ValueError: they would pass whatever is compared with them.
    """
    adapter = adapter_of(model)
    with torch.no_grad():
        outputs = adapter.encoder(OUTPUTS)(*adapter.input_format.arrange(batch))
    for name, output in zip(OUTPUTS, outputs, strict=True):
        fault = why_uninformative(output, _valid(output, batch))
        if fault:
            raise ValueError(f"{name} of the eager model prove nothing: {fault}")
    return outputs


def _vectorized(model: nn.Module, inputs: Sequence[Batch]) -> list[tuple[Tensor, ...]]:
    adapter = adapter_of(nx.vectorize(model))
    encoder = adapter.encoder(OUTPUTS)
    with torch.no_grad():
        return [encoder(*adapter.input_format.arrange(batch)) for batch in inputs]


def _compiled(model: nn.Module, inputs: Sequence[Batch]) -> list[tuple[Tensor, ...]]:
    torch._dynamo.reset()
    compiled = nx.compile(model, [BUCKET], backend="eager")
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        return [(compiled(*adapter_of(model).input_format.arrange(batch)),) for batch in inputs]


def _onnx(program: Program, folder: Path, inputs: Sequence[Batch], row: Row) -> list[tuple[Tensor, ...]]:
    written = write_onnx(program, folder, BuildSettings(), onnx.OPSET)
    row["onnx_nodes"] = str(written["nodes"])
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, torch.get_num_threads()
    session = onnxruntime.InferenceSession(folder / FILE, options, providers=["CPUExecutionProvider"])
    names = [spec.name for spec in program.inputs]
    return [
        tuple(
            torch.from_numpy(array)
            for array in session.run(list(OUTPUTS), {name: getattr(batch, name).numpy() for name in names})
        )
        for batch in inputs
    ]


def _engine_bytes(program: Program, folder: Path) -> int:
    for file in folder.iterdir():
        file.unlink()
    write_onnx(program, folder, BuildSettings(), tensorrt.OPSET)
    return len(tensorrt.build_engine(folder / FILE, tensorrt.profiles_of(program)))


def _record(
    row: Row,
    stage: str,
    found: Sequence[tuple[Tensor, ...]],
    expected: Sequence[tuple[Tensor, ...]],
    inputs: Sequence[Batch],
) -> None:
    """Note the worst error of each output over the batches.

    Raises:
        BuildError: one is larger than float32 rounding explains.
    """
    too_large = []
    for index, output in enumerate(OUTPUTS[: len(found[0])]):
        worst = max(
            (
                measure(given[index], wanted[index], _valid(wanted[index], batch)).max_share
                for given, wanted, batch in zip(found, expected, inputs, strict=True)
            ),
            key=badness,
        )
        row[f"{stage}_{output}"] = f"{worst:.2e}"
        if not worst <= LIMITS["float32"].max_share:
            too_large.append(f"{output} differ by {worst:.2g} of their scale")
    if too_large:
        raise BuildError(f"{', '.join(too_large)}: more than {LIMITS['float32'].max_share:g}")


def badness(share: float) -> tuple[bool, float]:
    """Return what errors are ordered by: not a number is worse than any."""
    return math.isnan(share), share


def _valid(output: Tensor, batch: Batch) -> Tensor | None:
    """Return which tokens of an output to compare, prefix tokens among them; None for features."""
    if output.ndim == 2:
        return None
    prefix = output.shape[1] - batch.patch_valid.shape[1]
    return nn.functional.pad(batch.patch_valid, (prefix, 0), value=True)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300].rstrip(": ")


def in_own_process(name: str, timeout: float, work: Callable[..., Row] = check) -> Row:
    """Return the row of one architecture, checked in a fresh process; if that dies, the row says at which stage."""
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_row, args=(name, sender, work), daemon=True)
    began = time.monotonic()
    process.start()
    sender.close()
    stage, row = "start", new_row(name)
    try:
        while stage != "done":
            if not receiver.poll(max(0.0, began + timeout - time.monotonic())):
                raise TimeoutError(f"not done after {timeout:g} s")
            stage, row = receiver.recv()
    except (EOFError, TimeoutError) as error:
        if isinstance(error, TimeoutError):
            process.kill()
        process.join()
        reason = str(error) or f"the process ended with exit code {process.exitcode}"
        row["failure"] = " | ".join(filter(None, [row["failure"], f"{stage}: {reason}"]))
        row["seconds"] = f"{time.monotonic() - began:.1f}"
    process.join()
    return row


def _send_row(name: str, sender: Connection, work: Callable[..., Row]) -> None:
    warnings.simplefilter("ignore")
    with contextlib.suppress(BrokenPipeError):  # the sweep was stopped: nobody waits for this row
        row = work(name, on_stage=lambda stage, row: sender.send((stage, row)))
        sender.send(("done", row))


def read_rows(path: Path) -> list[Row]:
    """Return the complete rows of a CSV file; one cut short is left out."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if set(row) == set(COLUMNS) and None not in row.values()]


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Replace a CSV file by these rows, at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    with fresh.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    fresh.replace(path)


def sweep(names: Sequence[str], path: Path, one: Callable[[str], Row], jobs: int = 1) -> list[str]:
    """Append a row for each architecture that the CSV has none of, and return the names that were run."""
    rows = read_rows(path)
    write_rows(path, rows)
    known = {row["architecture"] for row in rows}
    todo = [name for name in names if name not in known]
    lock = threading.Lock()

    def run(name: str) -> None:
        row = one(name)
        with lock, path.open("a", newline="") as file:
            csv.DictWriter(file, COLUMNS, lineterminator="\n").writerow(row)
            known.add(name)
            print(f"{len(known)} {name}: {row['failure'] or 'passed'}, {row['seconds']} s", flush=True)

    pool = ThreadPoolExecutor(jobs)
    try:
        for future in [pool.submit(run, name) for name in todo]:
            future.result()
    finally:
        pool.shutdown(cancel_futures=True)
    return todo


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", metavar="NAME", nargs="*", help="architectures to check; all of them by default")
    parser.add_argument("--only", metavar="NAME", help="print one row as JSON, without touching the CSV")
    parser.add_argument("--again", metavar="NAME", action="append", default=[], help="redo a row; may be repeated")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--timeout", type=float, default=300, help="seconds for one architecture")
    parser.add_argument("--csv", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    every = architectures()
    unknown = [name for name in (*given.names, *given.again, given.only) if name and name not in every]
    if unknown:
        parser.error(f"{', '.join(unknown)}: not among the {len(every)} architectures of timm's NaFlexVit modules")
    if given.only:
        json.dump(check(given.only), sys.stdout, indent=1)
        return
    os.environ["NAFLEX_SWEEP_COMMIT"] = package_commit()  # of the code that runs, whatever is committed meanwhile
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOAD)
    write_rows(given.csv, [row for row in read_rows(given.csv) if row["architecture"] not in given.again])
    sweep(given.names or every, given.csv, lambda name: in_own_process(name, given.timeout), given.jobs)


PRELOAD = ["timm", "onnxruntime", "onnxscript", "torch._dynamo", "torch.onnx", "naflex_export.targets.tensorrt"]
"""What the server imports that the processes of the sweep are forked from."""


if __name__ == "__main__":
    main()
