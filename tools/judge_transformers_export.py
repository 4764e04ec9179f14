"""Judge transformers' own ONNX export of SigLIP 2 by a golden pack of the model that it exports: rows by release.

    python tools/judge_transformers_export.py [--write]

Since 5.24 transformers has an `OnnxExporter`. Before, `torch.onnx.export` of the model is what there is: with open
dimensions it is refused or, traced by itself, it has the batch, and one resize for each image, baked in. Whichever
release is imported is judged, so an environment with another one gives the row of that. Rows go to
`tools/results/transformers_exports.csv`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
import torch
from record import RESULTS, about, append
from torch import Tensor, nn
from transformers import Siglip2VisionConfig, Siglip2VisionModel

from naflex_export.batch import noise_batch
from naflex_export.grid import Grid
from naflex_export.models.model_sources import randomize
from naflex_export.packs.answers import Answers, from_onnx
from naflex_export.packs.judge import Verdict, judge_answers
from naflex_export.packs.opened import Pack
from naflex_export.packs.write import write_pack
from naflex_export.serving.input_formats import TRANSFORMERS

ROWS = RESULTS / "transformers_exports.csv"
PACKAGES = ("torch", "transformers", "onnxruntime-gpu")
TRACED = (Grid(3, 7), Grid(1, 26), Grid(5, 5), Grid(13, 2))
OUTPUT = "pooler_output"


class Pooled(nn.Module):
    """The model with its pooled output alone, and its inputs in order, as `torch.onnx.export` takes them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor, pixel_attention_mask: Tensor, spatial_shapes: Tensor) -> Tensor:
        """Return the pooled output."""
        pooled: Tensor = self.model(pixel_values, pixel_attention_mask, spatial_shapes).pooler_output
        return pooled


def tiny() -> nn.Module:
    """Return a tiny vision tower, every parameter of which matters."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = Siglip2VisionModel(Siglip2VisionConfig(**sizes, patch_size=4, num_patches=25))
    randomize(model, seed=1)
    return model.eval()


def export(model: nn.Module, file: Path) -> str:
    """Write transformers' own export, and return what wrote it."""
    inputs = dict(zip(TRANSFORMERS.names, TRANSFORMERS.arrange(noise_batch("tiny", TRACED, 26, 48)), strict=True))
    try:
        from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter
    except ImportError:
        dimensions = {name: {0: "batch", **({1: "tokens"} if value.ndim > 1 else {})} for name, value in inputs.items()}
        dimensions["spatial_shapes"] = {0: "batch"}
        torch.onnx.export(
            Pooled(model),
            tuple(inputs.values()),
            file,
            input_names=list(inputs),
            output_names=[OUTPUT],
            dynamic_axes=dimensions,
            dynamo=False,
        )
        return "torch.onnx.export"
    program = OnnxExporter().export(model, inputs, config=OnnxConfig(dynamic=True)).program
    ir.save(program, file) if isinstance(program, ir.Model) else onnx.save(program, file)
    return "OnnxExporter"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hold back what exporters print and warn of."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def judged(folder: Path) -> tuple[str, Verdict]:
    """Return what exported the model, and the verdict on it; a model that cannot be exported has no answer."""
    model, file = tiny(), folder / "model.onnx"
    write_pack(model, folder / "pack", small=True)
    pack = Pack.open(folder / "pack")
    with quiet():
        try:
            by = export(model, file)
        except Exception as error:  # exporters raise errors of any class
            return "nothing", judge_answers(
                pack, Answers({}, "", problems=(f"not exported: {type(error).__name__}: {str(error)[:200]}",))
            )
        return by, judge_answers(pack, from_onnx(pack, file, {}, OUTPUT))


def main() -> None:
    """Judge the release that is imported, and print or write its row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="add the row to the CSV file")
    write = parser.parse_args().write
    with tempfile.TemporaryDirectory() as folder:
        by, verdict = judged(Path(folder))
    right = sum(not one.exceeded for one in verdict.cases)
    worst = max((one.measures.relative_l2 for one in verdict.cases), default=float("nan"))
    row = {
        **about("cpu", PACKAGES),
        "exported_by": by,
        "passed": str(verdict.passed).lower(),
        "cases_right": f"{right} of {len(verdict.cases) + len(verdict.unanswered)}",
        "relative_l2": f"{worst:.1e}",
        "fault": verdict.fault,
        "first_problem": verdict.failures[0][:160] if verdict.failures else "",
    }
    print(", ".join(f"{name} {value}" for name, value in row.items()))
    if write:
        append(ROWS, list(row), [row])


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
