"""Compare transformers' own SigLIP 2 with its vectorized twin: the resize, the embedding's cost, graphs and ONNX.

    python tools/bench_siglip2.py [--rounds 15] [--width 768] [--images 8 --tokens 256]
    python tools/bench_siglip2.py --table

Since 5.24 transformers resizes without a loop and exports SigLIP 2 by itself; before, it looped. Whichever release is
imported is measured, so a PYTHONPATH with another one gives the row of that. Rows go to `tools/results/siglip2.csv`,
and `--table` writes the newest of each release into docs/measured.md.

- error of the resize: against `F.interpolate` in float64, in float32 and under bfloat16 autocast, largest difference as
  a share of the largest value.
- embedding: forward and backward of `Siglip2VisionEmbeddings`, as a multiple of the bare projection's time.
- host reads: nodes of the exported program that read a value back, such as `item`, or assert on it.
- ONNX: ONNX Runtime at a batch that was never traced, against eager, of `OnnxExporter` and of ours.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from markdown_text import plural, section, table
from record import RESULTS, ROOT, about, append, newest, read
from torch import Tensor, nn
from transformers import Siglip2VisionConfig, Siglip2VisionModel
from transformers.models.siglip2.modeling_siglip2 import Siglip2VisionEmbeddings

import naflex_export as nx
from naflex_export.batch import noise_batch
from naflex_export.bench.timing import interleave
from naflex_export.bench.workloads import drawn_grids
from naflex_export.graph.build_settings import BuildSettings
from naflex_export.graph.onnx_translate import FILE, write_onnx
from naflex_export.graph.trace import trace
from naflex_export.grid import Grid
from naflex_export.models import adapter_of
from naflex_export.models.model_sources import randomize
from naflex_export.models.siglip2 import VectorizedSiglip2VisionEmbeddings
from naflex_export.serving.input_formats import TRANSFORMERS

ROWS = RESULTS / "siglip2.csv"
MEASURES = ("resize_float32", "resize_autocast", "embedding", "host_reads", "onnx")
FIELDS = (
    "date", "commit", "device", "threads", "torch", "transformers", "images", "tokens", "width", "side",
    *(f"{name}_{measure}" for measure in MEASURES for name in ("theirs", "ours")),
)  # fmt: skip
GRIDS = (Grid(3, 7), Grid(1, 26), Grid(5, 5), Grid(13, 2), Grid(2, 2), Grid(4, 6), Grid(10, 12), Grid(16, 16))
TRACED = (Grid(3, 7), Grid(1, 26), Grid(5, 5), Grid(13, 2))
UNSEEN = (Grid(2, 9), Grid(4, 5))
BEGIN, END = "<!-- siglip2: written by tools/bench_siglip2.py -->", "<!-- /siglip2 -->"


def main() -> None:
    """Measure, or write the table of docs/measured.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table:
        page = ROOT / "docs" / "measured.md"
        page.write_text(section(page.read_text(encoding="utf-8"), BEGIN, END, written(read(ROWS))), "utf-8")
        return
    row = about("cpu", ("torch", "transformers"))
    row |= {"images": options.images, "tokens": options.tokens, "width": options.width, "side": 16}
    row |= named("resize_float32", resize_errors(options.width, contextlib.nullcontext()))
    row |= named("resize_autocast", resize_errors(options.width, torch.autocast("cpu", torch.bfloat16)))
    row |= named("embedding", embedding_costs(options.width, options.images, options.tokens, options.rounds))
    row |= named("host_reads", host_reads())
    row |= named("onnx", onnx_errors())
    append(ROWS, FIELDS, [row])
    print(*(f"{key}: {value}" for key, value in row.items()), sep="\n")


def named(measure: str, pair: Sequence[str]) -> dict[str, str]:
    """Return the two columns of a measure, for theirs and ours."""
    return {f"theirs_{measure}": pair[0], f"ours_{measure}": pair[1]}


def resize_errors(width: int, context: contextlib.AbstractContextManager[object]) -> tuple[str, str]:
    """Return how far both are from `F.interpolate` in float64, run inside a context such as autocast's."""
    grid_HWC = torch.randn(16, 16, width, generator=torch.Generator().manual_seed(0))
    source = grid_HWC.double().permute(2, 0, 1)[None].contiguous(memory_format=torch.channels_last)
    shapes, tokens = torch.tensor(GRIDS), max(grid.tokens for grid in GRIDS)
    exact = [
        nn.functional.interpolate(source, tuple(grid), mode="bilinear", antialias=True)[0]
        .permute(1, 2, 0)
        .flatten(0, 1)
        for grid in GRIDS
    ]
    largest = max(float(one.abs().max()) for one in exact)
    found = []
    for kind in (Siglip2VisionEmbeddings, VectorizedSiglip2VisionEmbeddings):
        with context:
            made = resized(kind, grid_HWC, shapes, tokens)
        errors = [float((row[: len(one)].double() - one).abs().max()) for row, one in zip(made, exact, strict=True)]
        found.append(f"{max(errors) / largest:.1e}")
    return found[0], found[1]


def resized(kind: type[Siglip2VisionEmbeddings], grid_HWC: Tensor, shapes: Tensor, tokens: int) -> Tensor:
    """Return the position embeddings that a class of embeddings makes; it is a static method in every release."""
    return kind.resize_positional_embeddings(grid_HWC, shapes, tokens)


def embedding_costs(width: int, images: int, tokens: int, rounds: int) -> tuple[str, str]:
    """Return the time of forward and backward, as multiples of the bare projection's."""
    config = Siglip2VisionConfig(hidden_size=width, num_attention_heads=12, num_hidden_layers=1)
    theirs = Siglip2VisionEmbeddings(config)
    ours = Siglip2VisionEmbeddings(config)
    ours.__class__ = VectorizedSiglip2VisionEmbeddings
    values = theirs.patch_embedding.in_features
    batch = noise_batch("siglip2", drawn_grids("different", images, tokens, 0), tokens, values)
    pixels, _, shapes = TRANSFORMERS.arrange(batch)

    def both_ways(module: Callable[..., Tensor], *inputs: Tensor) -> Callable[[], object]:
        return lambda: module(*inputs).sum().backward()

    timed = interleave(
        {
            "bare": both_ways(theirs.patch_embedding, pixels),
            "theirs": both_ways(theirs, pixels, shapes),
            "ours": both_ways(ours, pixels, shapes),
        },
        rounds,
        warmup=2,
    )
    ratios = {name: torch.tensor(timed[name].seconds) / torch.tensor(timed["bare"].seconds) for name in timed}
    return f"{ratios['theirs'].median():.2f}", f"{ratios['ours'].median():.2f}"


def host_reads() -> tuple[str, str]:
    """Return what reads a value back in the exported programs; `none`, or counts, or why there is no program."""
    model = tiny()
    ours = trace(adapter_of(model), [nx.Bucket(30)]).exported
    try:
        from transformers.exporters.exporter_dynamo import DynamoConfig, DynamoExporter

        theirs = reads_of(DynamoExporter().export(model, inputs_of(TRACED), config=DynamoConfig(dynamic=True)).program)
    except Exception as error:  # a release before 5.24 has none, or its loop is refused
        theirs = f"not exported ({type(error).__name__})"
    return theirs, reads_of(ours)


def reads_of(program: torch.export.ExportedProgram) -> str:
    """Return the operators of a program that bring a value to the host, with their counts."""
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    found = [
        match[1] for target in targets if (match := re.search(r"aten\.(item|_local_scalar_dense|_is_all_true)", target))
    ]
    return ", ".join(f"{count} {name}" for name, count in sorted(Counter(found).items())) or "none"


def onnx_errors() -> tuple[str, str]:
    """Return the error of ONNX Runtime on a batch that was never traced, of both exports."""
    import onnxruntime

    model, unseen = tiny(), inputs_of(UNSEEN)
    with torch.no_grad():
        expected = model(**unseen).pooler_output
    with tempfile.TemporaryDirectory() as folder, quiet():
        write_onnx(trace(adapter_of(model), [nx.Bucket(30)]), Path(folder), BuildSettings(), 23)
        session = onnxruntime.InferenceSession(str(Path(folder) / FILE), providers=["CPUExecutionProvider"])
        ours = share(torch.from_numpy(session.run(None, {name: t.numpy() for name, t in unseen.items()})[0]), expected)
    try:
        from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

        with quiet():
            exported = OnnxExporter().export(model, inputs_of(TRACED), config=OnnxConfig(dynamic=True))
            theirs = share(exported(**unseen)["pooler_output"], expected)
    except Exception as error:  # a release before 5.24 has none, or its loop is refused
        theirs = f"not exported ({type(error).__name__})"
    return theirs, ours


def tiny() -> Siglip2VisionModel:
    """Return a tiny vision tower, every parameter of which matters."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = Siglip2VisionModel(Siglip2VisionConfig(**sizes, patch_size=4, num_patches=25))
    randomize(model, seed=1)
    return model.eval()


def inputs_of(grids: Iterable[Grid]) -> dict[str, Tensor]:
    """Return a padded batch of noise, by the names of transformers' inputs."""
    return dict(zip(TRANSFORMERS.names, TRANSFORMERS.arrange(noise_batch("tiny", tuple(grids), 26, 48)), strict=True))


def share(found: Tensor, expected: Tensor) -> str:
    """Return the largest difference as a share of the largest value."""
    return f"{float((found - expected).abs().max() / expected.abs().max()):.1e}"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hold back what exporters print."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def written(rows: Sequence[dict[str, str]]) -> str:
    """Return the table: a line for each measure, the newest row of each release side by side."""
    kept = sorted(
        newest(rows, ("transformers",)), key=lambda row: [int(part) for part in row["transformers"].split(".")]
    )
    said = {
        "resize_float32": "resize, error in float32",
        "resize_autocast": "resize, error under bfloat16 autocast",
        "embedding": "embedding, forward and backward, of the bare projection",
        "host_reads": "reads by the host in the exported program",
        "onnx": "error of ONNX Runtime at an untraced batch",
    }
    head = ["", *(f"transformers {row['transformers']}" for row in kept), "ours"]
    lines = [
        [
            text,
            *(row[f"theirs_{measure}"] for row in kept),
            " to ".join(dict.fromkeys(row[f"ours_{measure}"] for row in kept)),
        ]
        for measure, text in said.items()
    ]
    first = kept[-1]
    about_it = (
        f"A 16x16 grid of width {first['width']}, {first['images']} images of {first['tokens']} tokens, on "
        f"{first['device']}, {plural(int(first['threads']), 'thread')}, torch {first['torch']}; graphs of a tiny tower."
    )
    return f"{about_it}\n\n{table(head, lines)}"


if __name__ == "__main__":
    main()
