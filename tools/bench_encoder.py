"""Time a whole encoder by every technique, on padded NaFlex batches, in one process, side by side.

Techniques: eager, timm's or transformers', and the same under torch.compile; ours under torch.compile, as an
AOTInductor package and in ONNX Runtime, each on padded batches and on packs, and as a TensorRT engine; on a GPU also
ours with CUDA graphs. Grids follow NaFlex's size rule, or all differ. Rounds are interleaved and each has a batch of
its own. Artifacts are exported, and judged by the gate, in the same run. What cannot run here gets a row that says
why, and no figures.

    python tools/bench_encoder.py                                        # base, 256 tokens, batches of 1 and 8, float32
    python tools/bench_encoder.py --device cuda --dtype bfloat16 --batches 256

Rows go to tools/results/bench_encoder.csv; `tools/write_tables.py` writes the docs from it.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from record import ABOUT, PACKAGES, RESULTS, about, append, text
from torch import nn

import naflex_export as nx
from naflex_export.bench.techniques import (
    COLUMNS,
    WARMUP,
    Bench,
    Figures,
    Technique,
    count_flops,
    first_line,
    matrix_rate,
)
from naflex_export.grid import GRID_RULES
from naflex_export.models.model_sources import DEFAULT_MODEL, ModelSource
from naflex_export.precision import DTYPES, Precision

FIELDS = (
    *(*ABOUT, *PACKAGES, "model", "dtype", "grids", *COLUMNS),
    *("matrix_tflops", "matrix_share"),
)
PACKED = "ours packed, torch.compile"
LIVE = ("timm eager", "timm torch.compile", "ours torch.compile", "ours CUDA graphs", PACKED)
EXPORTED = {
    "ours AOTInductor": ("aot", False),
    "ours ONNX Runtime": ("onnx", False),
    "ours TensorRT": ("trt", False),
    "ours packed AOTInductor": ("aot", True),
    "ours packed ONNX Runtime": ("onnx", True),
}
"""The target of each artifact, and whether it takes packs."""

TECHNIQUES = (*LIVE, *EXPORTED)


def main(arguments: list[str] | None = None) -> None:
    """Measure what the command line asks for, print it and add it to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="as for naflex-export; its weights are random")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", type=torch.device)
    parser.add_argument("--dtype", default="float32", choices=list(DTYPES))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--tokens", type=int, nargs="+", default=[256])
    parser.add_argument("--grids", nargs="+", default=list(GRID_RULES), choices=GRID_RULES)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--techniques", nargs="+", default=list(TECHNIQUES), choices=TECHNIQUES, metavar="NAME")
    parser.add_argument("--out", type=Path, default=RESULTS / "bench_encoder.csv")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    logging.getLogger("torch").setLevel(logging.ERROR)

    dtype = Precision(options.dtype).torch_dtype
    model = ModelSource(options.model, "random").load()
    rate = matrix_rate(options.device, dtype)
    print(f"matmul of {options.dtype}: {rate / 1e12:.2f} TFLOP/s", flush=True)
    common = {**about(options.device, PACKAGES), "model": options.model, "dtype": options.dtype}
    common["matrix_tflops"] = text(rate, 3, 1e-12)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(model, Precision(options.dtype), options.device)
        ready, missing = techniques(options, model, bench, Path(folder))
        for tokens in options.tokens:
            for images in options.batches:
                flops = count_flops(model, images, tokens)
                for rule in options.grids:
                    batches = bench.batches(rule, images, tokens, 0, options.rounds + WARMUP)
                    found = bench.measure(ready, batches, options.rounds, progress) if ready else []
                    found += [Figures(name, images, tokens, failure=why) for name, why in missing.items()]
                    rows = [
                        {**common, "grids": rule, **figures.row(), "matrix_share": matrix_share(figures, flops, rate)}
                        for figures in found
                    ]
                    append(options.out, FIELDS, rows)
                    for row in rows:
                        print(*(row[name] for name in ("grids", *COLUMNS, "matrix_share")), sep="\t", flush=True)


def techniques(
    options: argparse.Namespace, model: nn.Module, bench: Bench, folder: Path
) -> tuple[list[Technique], dict[str, str]]:
    """Return the techniques asked for that can run here, and for each of the others why it cannot."""
    live = {
        "timm eager": bench.eager,
        "timm torch.compile": bench.eager_compiled,
        "ours torch.compile": bench.ours_compiled,
        "ours CUDA graphs": lambda name: bench.ours_compiled(name, mode="reduce-overhead"),
        PACKED: bench.ours_packed,
    }
    ready, missing = [], {}
    for name in options.techniques:
        progress(name)
        if name == "ours CUDA graphs" and options.device.type != "cuda":
            missing[name] = "CUDA graphs need a GPU"
        else:
            try:
                if name in live:
                    ready.append(live[name](name.replace("timm", bench.adapter.package)))
                else:
                    ready.append(bench.runner(exported(options, model, name, folder), name))
            except Exception as error:  # whatever a backend raises, the others can be measured
                missing[name] = first_line(error)
    return ready, missing


def exported(options: argparse.Namespace, model: nn.Module, name: str, folder: Path) -> nx.Runner:
    """Return an artifact of the model, passed by the gate and loaded on the device.

    Args:
        options: of the command line.
        model: to be exported.
        name: of `EXPORTED`.
        folder: to write the artifact's own to.
    """
    (target, packed), out = EXPORTED[name], folder / name.replace(" ", "-")
    largest = max(options.batches)
    buckets = [nx.Bucket(tokens, (1, largest, largest)) for tokens in options.tokens]
    on_device = model.to(options.device)  # native code is built for the device the model is on
    nx.export(on_device, target, out, buckets, options.dtype, effort="quick", packed=packed)
    return nx.load(out, options.device, check_inputs=False)


def matrix_share(figures: Figures, flops: int, rate: float) -> str:
    """Return the share of the device's measured matrix rate that a technique reached, as a column."""
    return "" if figures.timing is None else text(flops / (figures.timing.ms / 1000) / rate, 4)


def progress(step: str) -> None:
    """Say on standard error what is being done."""
    print(step, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
