"""Write the goldens in graphs/: the exported graphs of tiny seeded models, as text.

    python tools/bless_graphs.py           # show what would change
    python tools/bless_graphs.py --write   # and write it

A golden is compared only under the versions in its header, since every release of torch or of the exporter may word a
graph differently. That no graph loops, branches or resizes is checked under any version.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import timm
import torch
from torch import nn

from naflex_export.graph_text import onnx_text, program_text
from naflex_export.grid import Bucket
from naflex_export.program import trace
from naflex_export.sources import randomize
from naflex_export.targets import BuildSettings
from naflex_export.targets.onnx import OPSET, translate

ROOT = Path(__file__).parent.parent
GRAPHS = ROOT / "graphs"
BUCKET = Bucket(64, (1, 4, 8))


def main() -> None:
    """Show the difference from the goldens, and write it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    write = parser.parse_args().write
    for name, text in golden_texts():
        difference = compare(name, text)
        print(difference or f"{name}: unchanged")
        if difference and write:
            (GRAPHS / name).write_text(text)


def tiny(depth: int = 0, **options: object) -> nn.Module:
    """Return a NaFlexVit of width 8 with 2-pixel patches and a source grid of 4x4."""
    base = {"patch_size": 2, "embed_dim": 8, "num_heads": 2, "mlp_ratio": 2.0, "pos_embed_grid_size": (4, 4)}
    model = timm.create_model("naflexvit_base_patch16_map", reg_tokens=0, depth=depth, **{**base, **options})
    model.reset_classifier(0)
    randomize(model, seed=0)
    return model.eval()


MODELS: dict[str, Callable[[], nn.Module]] = {
    "learned": tiny,
    "learned-sampled": lambda: tiny(pos_embed_use_grid_sample=True),
    "learned-large": lambda: tiny(pos_embed_grid_size=(40, 40), pos_embed_antialias=False),
    "aspect-preserving": lambda: tiny(pos_embed_ar_preserving=True),
    "factorized": lambda: tiny(pos_embed="factorized"),
    "rope-axial": lambda: tiny(depth=1, pos_embed="none", rope_type="axial"),
    "rope-mixed": lambda: tiny(depth=1, pos_embed="none", rope_type="mixed"),
    "rope-dinov3": lambda: tiny(depth=1, pos_embed="none", rope_type="dinov3", rope_rotate_half=True),
    "encoder": lambda: tiny(depth=1),
}
"""What each golden shows. A model of depth 0 is its embedding, the final norm and the attention pool."""


def golden_texts() -> list[tuple[str, str]]:
    """Return the file name and the text of each golden, made now."""
    texts = []
    for name, make in MODELS.items():
        program = trace(make(), [BUCKET])
        texts.append((f"{name}.program.txt", header() + program_text(program)))
        texts.append((f"{name}.onnx.txt", header(OPSET) + onnx_text(translate(program, BuildSettings(), OPSET))))
    return texts


def header(opset: int | None = None) -> str:
    """Return the lines that say what a golden was made with; it is compared only with graphs of the same header."""
    packages = ("torch", "timm") if opset is None else ("torch", "timm", "onnx", "onnxscript")
    versions = ", ".join(f"{package} {metadata.version(package)}" for package in packages)
    wanted = "" if opset is None else f", opset {opset}"
    return f"# {versions}{wanted}\n# python tools/bless_graphs.py --write\n"


def compare(name: str, text: str) -> str:
    """Return a readable difference between a golden and a text, empty where there is none."""
    path = GRAPHS / name
    golden = path.read_text() if path.exists() else ""
    lines = difflib.unified_diff(golden.splitlines(), text.splitlines(), f"graphs/{name}", "now", lineterm="", n=2)
    return "\n".join(lines)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
