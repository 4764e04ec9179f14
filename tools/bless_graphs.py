"""Write the goldens in graphs/: the exported graphs of tiny seeded models, as text.

    python tools/bless_graphs.py           # show what would change
    python tools/bless_graphs.py --write   # and write it

A golden is compared only under the versions in its header, since every release of torch or of the exporter may word a
graph differently. That no graph loops, branches or resizes is checked under any version.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import importlib.util
import re
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import timm
import torch
from graph_text import onnx_text, program_text
from torch import Tensor, nn

from naflex_export.graph.build_settings import BuildSettings
from naflex_export.graph.onnx_translate import translate
from naflex_export.graph.program import Program
from naflex_export.graph.trace import capture, example_inputs, trace
from naflex_export.grid import Bucket
from naflex_export.models import adapter_of, packed_of
from naflex_export.models.model_sources import randomize
from naflex_export.precision import FLOAT32, Precision
from naflex_export.resample.stored import StoredMatrices
from naflex_export.targets.onnx import OPSET

ROOT = Path(__file__).parent.parent
GRAPHS = ROOT / "graphs"
BUCKET = Bucket(64, (1, 4, 8))


def main(arguments: Sequence[str] | None = None) -> None:
    """Show the difference from the goldens, and write it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="accept what is shown")
    write = parser.parse_args(arguments).write
    for model in GOLDENS:
        for name, text in texts_of(model).items():
            difference = compare(name, text)
            print(difference or f"{name}: unchanged")
            if difference and write:
                (GRAPHS / name).write_text(text)
    for path in stale():
        print(f"{path.name}: of no model here" + (", deleted" if write else "; --write deletes it"))
        if write:
            path.unlink()


def tiny(depth: int = 0, **options: Any) -> nn.Module:
    """Return a NaFlexVit of width 8 with 2-pixel patches and a source grid of 4x4."""
    base = {"patch_size": 2, "embed_dim": 8, "num_heads": 2, "mlp_ratio": 2.0, "pos_embed_grid_size": (4, 4)}
    model = timm.create_model("naflexvit_base_patch16_map", reg_tokens=0, depth=depth, **{**base, **options})
    model.reset_classifier(0)
    randomize(model, seed=0)
    return model.eval()


def siglip2() -> nn.Module:
    """Return transformers' SigLIP 2 image tower of the same sizes, with one layer."""
    from transformers import Siglip2VisionConfig, Siglip2VisionModel

    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = Siglip2VisionModel(Siglip2VisionConfig(**sizes, patch_size=2, num_patches=16))
    randomize(model, seed=0)
    return model.eval()


class Embedding(nn.Module):
    """The embedding of a NaFlexVit, alone: patches and their coordinates to tokens."""

    def __init__(self, embeds: nn.Module) -> None:
        super().__init__()
        self.embeds = embeds

    def forward(self, patches: Tensor, patch_coord: Tensor) -> tuple[Tensor]:
        """Return tokens [B, N, C]."""
        tokens, _ = self.embeds(patches, patch_coord=patch_coord)
        return (tokens,)


def embedding(matrices: str = "computed", **options: Any) -> Program:
    """Return the graph of a vectorized embedding, alone.

    Args:
        matrices: as of `trace`; stored ones are of every side up to the bucket's tokens.
        options: of the model.
    """
    model = tiny(**options)
    adapter = adapter_of(model)
    stored = StoredMatrices.of(adapter.position_axes, BUCKET.tokens) if matrices == "stored" else None
    example = dict(zip(adapter.input_format.names, example_inputs(adapter, torch.float32), strict=True))
    del example["patch_valid"]
    return capture(
        Embedding(adapter.vectorized().model.embeds).eval(),
        example,
        open_dims=adapter.input_format.open_dims[:2],
        buckets=[BUCKET],
        precision=FLOAT32,
        outputs=["tokens"],
        stored=stored,
    )


def block(**options: Any) -> Program:
    """Return the graph of an encoder of one block with RoPE alone, and its tokens."""
    return trace(adapter_of(tiny(depth=1, pos_embed="none", **options)), [BUCKET], outputs=["tokens"])


GOLDENS: dict[str, Callable[[], Program]] = {
    "embed-learned": embedding,
    "embed-learned-corners": lambda: embedding(
        pos_embed_interp_mode="bilinear", pos_embed_antialias=False, pos_embed_align_corners=True
    ),
    "embed-learned-sampled": lambda: embedding(pos_embed_use_grid_sample=True),
    "embed-learned-large": lambda: embedding(
        pos_embed_grid_size=(40, 40), pos_embed_interp_mode="bilinear", pos_embed_antialias=False
    ),
    "embed-aspect-preserving": lambda: embedding(pos_embed_ar_preserving=True),
    "embed-learned-stored": lambda: embedding("stored"),
    "embed-factorized": lambda: embedding(pos_embed="factorized"),
    "rope-axial": lambda: block(rope_type="axial"),
    "rope-mixed": lambda: block(rope_type="mixed"),
    "rope-dinov3": lambda: block(rope_type="dinov3", rope_rotate_half=True),
    "rope-mrope": lambda: block(rope_type="mrope", embed_dim=16, rope_mrope_section=(0, 2, 2)),
    "encoder": lambda: trace(adapter_of(tiny(depth=1)), [BUCKET]),
    "encoder-mixed": lambda: trace(
        adapter_of(tiny(depth=1)), [BUCKET], Precision.of("float16", "residual,norm,softmax,blocks.0.mlp")
    ),
    "packed": lambda: trace(packed_of(adapter_of(tiny(depth=1))), [BUCKET]),
    "siglip2": lambda: trace(adapter_of(siglip2()), [BUCKET]),
}
"""What each golden shows."""

if importlib.util.find_spec("transformers") is None:
    del GOLDENS["siglip2"]


@functools.cache
def texts_of(model: str) -> dict[str, str]:
    """Return the text of each of a model's goldens by file name, made now."""
    program = GOLDENS[model]()
    library = "transformers" if model == "siglip2" else "timm"
    translated = translate(program, BuildSettings(), OPSET)
    return {
        f"{model}.program.txt": header(["torch", library]) + program_text(program),
        f"{model}.onnx.txt": header(["torch", library, "onnx", "onnxscript"], OPSET) + onnx_text(translated),
    }


def header(packages: Sequence[str], opset: int | None = None) -> str:
    """Return the lines that say what a golden was made with; it is compared only with graphs of the same header."""
    versions = ", ".join(f"{package} {metadata.version(package)}" for package in packages)
    wanted = "" if opset is None else f", opset {opset}"
    return f"# {versions}{wanted}\n# python tools/bless_graphs.py --write\n"


def stale() -> list[Path]:
    """Return the files in graphs/ that are no golden of a model here."""
    models = {*GOLDENS, "siglip2"}  # which is not there without transformers
    kept = {f"{model}.{stage}.txt" for model in models for stage in ("program", "onnx")}
    return sorted(path for path in GRAPHS.glob("*.txt") if path.name not in kept)


def compare(name: str, text: str) -> str:
    """Return a readable difference between a golden and a text, empty where there is none."""
    path = GRAPHS / name
    return difference(path.read_text() if path.exists() else "", text, f"graphs/{name}")


def difference(golden: str, text: str, title: str) -> str:
    """Return how a graph differs from its golden; a value that only got another number is not a difference to show.

    The exporter numbers values through, so one node more renames half of a graph. Lines are matched without the
    numbers, and a matched value is shown under its golden's name.
    """
    if golden == text:
        return ""
    before, after = golden.splitlines(), text.splitlines()
    names = _renamed(before, after)
    after = [_substitute(line, names) for line in after]
    lines = list(difflib.unified_diff(before, after, title, "now", lineterm="", n=2))
    return "\n".join(lines) or f"{title}: only the numbers in names of values differ"


def _renamed(before: list[str], after: list[str]) -> dict[str, str]:
    """Return the golden's name for each value that a new text calls something else."""
    matcher = difflib.SequenceMatcher(None, _unnumbered(before), _unnumbered(after), autojunk=False)
    names = {}
    for old, new, length in matcher.get_matching_blocks():
        for one, other in zip(before[old : old + length], after[new : new + length], strict=True):
            names.update(zip(_defined(other), _defined(one), strict=True))
    taken = set(names.values())
    for line in after:
        names.update({name: f"{name}'" for name in _defined(line) if name not in names and name in taken})
    return names


def _unnumbered(lines: list[str]) -> list[str]:
    names = {name: re.sub(r"_?\d+$", "", name) for line in lines for name in _defined(line)}
    return [_substitute(line, names) for line in lines]


def _defined(line: str) -> list[str]:
    """Return the values that a line makes."""
    made = re.match(r"(?:(?:input|weight) +)?([\w.]+(?:: [^=]*?)?(?:, [\w.]+: [^=]*?)*)(?: = |$)", line)
    return [] if made is None or line.startswith(("#", "output")) else re.findall(r"([\w.]+)(?=: |$)", made.group(1))


def _substitute(line: str, names: dict[str, str]) -> str:
    return re.sub(r"[\w.]+", lambda word: names.get(word.group(), word.group()), line)


if __name__ == "__main__":
    main()
