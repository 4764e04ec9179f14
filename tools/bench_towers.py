"""Time what packed vision towers do ahead of their first block, ours beside each model's own, on the same packs.

That is patches projected, their position embedding and their rotary angles, in float32 without TF32. `bare` is the
projection alone. Towers have their published widths and one block, which is not run; weights are random.

    python tools/bench_towers.py [--device cuda] [--rounds 15] [--out tools/results/bench_towers.csv]
"""

from __future__ import annotations

import argparse
import random
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from record import ABOUT, RESULTS, about, append, text
from torch import Tensor, nn

from naflex_export.accuracy.case_grids import MAX_ASPECT, naflex_grid
from naflex_export.batch import noise_batch
from naflex_export.bench.timing import interleave
from naflex_export.models import adapter_of
from naflex_export.models.model_sources import randomize
from naflex_export.models.tower import TowerAdapter

PACKAGES = ("torch", "transformers")
FIELDS = (*ABOUT, *PACKAGES, "tower", "images", "tokens", "step", "candidate", "rounds", "ms", "spread", "speedup")
STEPS = ("forward", "forward+backward")

TOWERS = {
    "qwen3_vl": ("qwen3_vl.configuration_qwen3_vl.Qwen3VLVisionConfig", "depth"),
    "glm4v": ("glm4v.configuration_glm4v.Glm4vVisionConfig", "depth"),
    "kimi_k25": ("kimi_k25.configuration_kimi_k25.Kimi_K25VisionConfig", "num_hidden_layers"),
    "paddleocr_vl": ("paddleocr_vl.configuration_paddleocr_vl.PaddleOCRVisionConfig", "num_hidden_layers"),
    "cosmos3_edge": ("cosmos3_edge.configuration_cosmos3_edge.Cosmos3EdgeVisionConfig", "num_hidden_layers"),
    "hunyuan_vl": ("hunyuan_vl.configuration_hunyuan_vl.HunYuanVLVisionConfig", "num_hidden_layers"),
    "radio": ("radio.configuration_radio.RadioConfig", "num_hidden_layers"),
}
"""The configuration of each tower that has a learned grid, and what counts its blocks."""

CLASSES = {
    "qwen3_vl": "Qwen3VLVisionModel",
    "glm4v": "Glm4vVisionModel",
    "kimi_k25": "Kimi_K25VisionModel",
    "paddleocr_vl": "PaddleOCRVisionModel",
    "cosmos3_edge": "Cosmos3EdgeVisionModel",
    "hunyuan_vl": "HunYuanVLVisionTransformer",
    "radio": "RadioModel",
}


def tower_of(family: str, smoke: bool = False) -> nn.Module:
    """Return a tower of one block; a narrow one to see that the tool runs."""
    import importlib

    path, blocks = TOWERS[family]
    module, name = path.rsplit(".", 1)
    config: Any = getattr(importlib.import_module(f"transformers.models.{module}"), name)
    narrow = {"hidden_size": 32, "intermediate_size": 32} if smoke else {}
    heads = {"num_heads": 2} if smoke and blocks == "depth" else {"num_attention_heads": 2} if smoke else {}
    levels = {"deepstack_visual_indexes": [0]} if family == "qwen3_vl" else {}
    modeling = importlib.import_module(f"transformers.models.{module.replace('configuration', 'modeling')}")
    made: nn.Module = getattr(modeling, CLASSES[family])(config(**{blocks: 1}, **narrow, **heads, **levels))
    randomize(made, seed=0)
    return made.train()


class Bare(nn.Module):
    """The projection of a tower's patches alone: the first layer with a weight that reads them."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        kinds = (nn.Conv2d, nn.Conv3d, nn.Linear)
        self.projection = next(module for module in tower.modules() if isinstance(module, kinds))
        layer: Any = self.projection
        self.shape = (layer.in_channels, *layer.kernel_size) if hasattr(layer, "in_channels") else (layer.in_features,)

    def forward(self, patches: Tensor, *follow: Tensor) -> tuple[Tensor, ...]:
        """Return the projected patches [T, C]."""
        return (self.projection(patches.reshape(-1, *self.shape)).flatten(1),)


def measured(tower: nn.Module, device: torch.device, images: int, tokens: int, rounds: int) -> list[dict[str, str]]:
    """Return a row for each candidate and step.

    Args:
        tower: of one block.
        device: to run on.
        images: of each pack.
        tokens: about as many as each has.
        rounds: that count, each on a pack of its own.
    """
    adapter = adapter_of(tower.to(device))
    assert isinstance(adapter, TowerAdapter)
    draw = random.Random(0)
    packs = []
    for number in range(rounds + 3):
        grids = [naflex_grid(MAX_ASPECT ** draw.uniform(-1, 1), tokens) for _ in range(images)]
        batch = noise_batch(f"towers {number}", grids, tokens, adapter.token_width)
        packs.append([tensor.to(device) for tensor in adapter.input_format.arrange(batch)])
    candidates = {
        "own": adapter.embedding(),
        "ours": adapter.vectorized().embedding(),
        "bare": Bare(adapter.vectorized().model),  # as a matrix product: some convolutions take several times as long
    }
    current: list[list[Tensor]] = [packs[0]]

    def prepare(number: int) -> None:
        current[0] = packs[number % len(packs)]

    def call(module: nn.Module, with_backward: bool) -> None:
        with torch.set_grad_enabled(with_backward):
            made = module(*current[0])[0]
        if with_backward:
            made.backward(torch.ones_like(made))
            module.zero_grad(set_to_none=True)

    rows = []
    for step in STEPS:
        runs: dict[str, Callable[[], None]] = {
            name: lambda module=module, step=step: call(module, step == STEPS[1])  # type: ignore[misc]
            for name, module in candidates.items()
        }
        timings = interleave(runs, rounds, prepare=prepare)
        rows += [
            {
                **about(device, PACKAGES),
                "images": str(images),
                "tokens": str(tokens),
                "step": step,
                "candidate": name,
                "rounds": str(rounds),
                "ms": text(timings[name].ms, 2),
                "spread": text(timings[name].spread, 3),
                "speedup": text(timings["own"].ratio_to(timings[name]), 3),
            }
            for name in candidates
        ]
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and add the rows to the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--family", action="append", choices=list(TOWERS))
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--smoke", action="store_true", help="narrow towers, to see that the tool runs")
    parser.add_argument("--out", default=RESULTS / "bench_towers.csv", type=Path)
    asked = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    torch.backends.cudnn.allow_tf32 = False  # as for products: ours convolves nothing, and float32 is to mean the same
    for family in asked.family or TOWERS:
        try:
            tower = tower_of(family, asked.smoke)
        except (ImportError, AttributeError) as missing:
            print(f"{family}: not in this release of transformers: {missing}", flush=True)
            continue
        found = measured(tower, torch.device(asked.device), asked.images, asked.tokens, asked.rounds)
        rows = [{**row, "tower": family} for row in found]
        append(asked.out, FIELDS, rows)
        for row in rows:
            print({name: row[name] for name in ("tower", "step", "candidate", "ms", "speedup")}, flush=True)


if __name__ == "__main__":
    main()
