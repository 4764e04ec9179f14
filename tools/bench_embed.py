"""Time NaFlexEmbeds with and without its per-image loop, in one process, side by side.

The experiment of pytorch-image-models#2514: `NaFlexEmbeds(embed_dim=768, proj_type="linear")` on random grids, forward
and forward+backward, where a dense gradient flows back as it does in training. The floor is the same module without a
position embedding: what the projection costs. All candidates run once in every round, so that whatever else the machine
does meets them alike. A row holds the median, the spread, the peak of the memory that tensors took, the ratios to the
floor's, and the error against timm's loop.

    python tools/bench_embed.py                                  # half an hour on two cores
    python tools/bench_embed.py --batches 256 512 --device cuda

Rows go to tools/results/bench_embed.csv; `tools/write_tables.py` writes the docs from it, `tools/plot_embed.py` draws.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast
from unittest import mock

import torch
from record import ABOUT, RESULTS, about, append, mib
from timm.models.naflexvit import NaFlexEmbeds
from torch import Tensor, nn

from naflex_export.accuracy.case_grids import MAX_ASPECT, naflex_grid
from naflex_export.batch import noise_batch
from naflex_export.bench.timing import Timing, interleave, peak_allocated
from naflex_export.grid import Grid
from naflex_export.models.timm_naflex import VectorizedNaFlexEmbeds, resampling_of
from naflex_export.resample import add as add_resampled
from naflex_export.resample.coordinates import grids_of, inside
from naflex_export.resample.weights import axis_weights

FIELDS = (
    *(*ABOUT, "torch", "timm", "dtype", "source", "sizes", "batch", "tokens", "pass", "candidate"),
    *("ms", "spread", "ratio_to_floor", "peak_mib", "memory_ratio", "error"),
)
WIDTH, PATCH = 768, 16
FLOOR, LOOP, BAG = "floor", "timm's loop", "embedding_bag"
FEW_BAGS = 32
"""Most images that embedding_bag is timed on: it takes many times as long as all others together."""

Module = Callable[[Tensor, Tensor], tuple[Tensor, object]]


def main(arguments: list[str] | None = None) -> None:
    """Measure what the command line asks for, print it and add it to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", type=torch.device)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--sources", type=int, nargs="+", default=[16, 32, 128])
    parser.add_argument("--sizes", nargs="+", default=["4..31", "naflex256", "naflex576", "naflex1024"])
    parser.add_argument("--candidates", nargs="+", help="of those of the table, with the floor")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--loop-rounds", type=int, help="rounds of timm's loop, beside the floor alone; by default all")
    parser.add_argument(
        "--loop-sources", type=int, nargs="+", help="sources with which the loop is timed; all by default"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "bench_embed.csv")
    options = parser.parse_args(arguments)
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # torch's profiler, by which memory is read, talks on standard error
    for source in options.sources:
        calls = compared(options, source)
        for sizes in options.sizes:
            for batch in options.batches:
                rows = measure(options, source, sizes, batch, calls)
                append(options.out, FIELDS, rows)
                for row in rows:
                    print(*(row[name] for name in FIELDS[7:]), sep="\t", flush=True)


def compared(options: argparse.Namespace, source: int) -> dict[str, Module]:
    """Return what is asked for of all that can be timed for a source grid, by name, the floor first."""
    torch._dynamo.reset()  # what was compiled for another source would count against the limit of recompiles
    modules = {
        name: module.to(options.device, getattr(torch, options.dtype)) for name, module in candidates(source).items()
    }
    calls: dict[str, Module] = {**modules, "ours, compiled": compiled(modules["ours"])}
    if options.device.type == "cuda":
        calls["matmul"] = with_matmul(modules["ours"])
        calls["matmul, compiled"] = with_matmul(compiled(modules["ours"]))
    asked = (FLOOR, LOOP, *(options.candidates or calls))
    return {name: call for name, call in calls.items() if name in asked}


def compiled(module: nn.Module) -> Module:
    """Return a module under torch.compile, as one graph for any sizes."""
    return cast(Module, torch.compile(module, fullgraph=True, dynamic=True))


def measure(
    options: argparse.Namespace, source: int, sizes: str, batch: int, calls: dict[str, Module]
) -> list[dict[str, object]]:
    """Return a row for each candidate and pass, for one source grid, kind of sizes and batch size."""
    grids = draw_grids(sizes, batch)
    device, dtype = options.device, getattr(torch, options.dtype)
    coord = noise_batch("bench", grids, max(grid.tokens for grid in grids), 1).patch_coord.to(device)
    draw = torch.Generator(device).manual_seed(0)  # on the device: a CPU would take seconds for it
    patches, flow = (
        torch.randn(*coord.shape[:2], width, generator=draw, device=device, dtype=dtype)
        for width in (PATCH * PATCH * 3, WIDTH)
    )
    calls = {name: call for name, call in calls.items() if name != BAG or batch <= FEW_BAGS}

    def forward(call: Module) -> None:
        with torch.no_grad():
            call(patches, coord)

    parameters = {
        parameter for call in calls.values() if isinstance(call, nn.Module) for parameter in call.parameters()
    }

    def forward_backward(call: Module) -> None:
        call(patches, coord)[0].backward(flow)
        for parameter in parameters:
            parameter.grad = None

    with torch.no_grad():
        expected, _ = calls[LOOP](patches, coord)
    errors = {LOOP: 0.0}
    for name in [name for name in calls if name != LOOP]:
        try:
            with torch.no_grad():
                errors[name] = share(calls[name](patches, coord)[0], expected)
            forward_backward(calls[name])
        except Exception as failure:  # a compiler or a full GPU: the others can be measured
            print(f"{name} cannot be run: {str(failure).strip().splitlines()[0]}", file=sys.stderr)
            errors.pop(name, None)
    calls = {name: call for name, call in calls.items() if name in errors}
    if not loop_is_timed(options, source):
        del calls[LOOP]

    rows: list[dict[str, object]] = []
    common = {
        **about(device),
        "dtype": options.dtype,
        "source": f"{source}x{source}{'' if source < 128 else ' no antialias'}",
        "sizes": sizes,
        "batch": batch,
        "tokens": patches.shape[1],
    }
    for label, run in (("forward", forward), ("forward+backward", forward_backward)):
        times, floors = timed({name: bound(run, call) for name, call in calls.items()}, options)
        peaks = {name: peak_allocated(bound(run, call), device) for name, call in calls.items()}
        rows += [
            {**common, "pass": label, "candidate": name, "error": "" if name == FLOOR else f"{errors[name]:.1e}"}
            | columns(times[name], floors[name], peaks[name], peaks[FLOOR])
            for name in calls
        ]
    return rows


def loop_is_timed(options: argparse.Namespace, source: int) -> bool:
    """Whether timm's loop is among what is asked for, for a source grid."""
    asked = not options.candidates or LOOP in options.candidates
    return asked and (options.loop_sources is None or source in options.loop_sources)


def timed(
    calls: dict[str, Callable[[], None]], options: argparse.Namespace
) -> tuple[dict[str, Timing], dict[str, Timing]]:
    """Return the time of each call, and the floor's in the same rounds.

    timm's loop takes seconds where the others take milliseconds: with fewer rounds of its own, it has the floor for
    company only.
    """
    apart = (LOOP,) if options.loop_rounds and LOOP in calls else ()
    together = {name: call for name, call in calls.items() if name not in apart}
    times = interleave(together, options.rounds, options.device)
    floors = dict.fromkeys(times, times[FLOOR])
    for name in apart:
        pair = interleave({FLOOR: calls[FLOOR], name: calls[name]}, options.loop_rounds, options.device, warmup=0)
        times[name], floors[name] = pair[name], pair[FLOOR]
    return times, floors


def with_matmul(module: Module) -> Module:
    """Return a module that resamples by the matmul of exported graphs, and not by the kernels for a GPU."""

    def call(patches: Tensor, coord: Tensor) -> tuple[Tensor, object]:
        with mock.patch.object(add_resampled, "KERNELS_ON_GPU", False):
            return module(patches, coord)

    return call


def bound(run: Callable[[Module], None], call: Module) -> Callable[[], None]:
    """Return a run of a candidate that takes nothing."""
    return lambda: run(call)


def columns(time: Timing, floor: Timing, peak: int | None, floor_peak: int | None) -> dict[str, object]:
    """Return the columns of time and memory."""
    return {
        "ms": f"{time.ms:.1f}",
        "spread": f"{time.spread:.2f}",
        "ratio_to_floor": f"{time.ratio_to(floor):.2f}",
        "peak_mib": mib(peak),
        "memory_ratio": f"{peak / floor_peak:.2f}" if peak and floor_peak else "",
    }


def candidates(source: int) -> dict[str, nn.Module]:
    """Return the modules to time; all but the floor have the same weights."""

    def embeds(**options: object) -> NaFlexEmbeds:
        return NaFlexEmbeds(
            patch_size=PATCH,
            embed_dim=WIDTH,
            proj_type="linear",
            class_token=False,
            pos_embed_grid_size=(source, source),
            pos_embed_antialias=source < 128,  # as C-RADIO has it
            **options,
        )

    torch.manual_seed(0)
    loop, floor = embeds(), embeds(pos_embed="none")
    with torch.no_grad():
        loop.pos_embed.normal_()
    floor.proj.load_state_dict(loop.proj.state_dict())
    others = {"timm's grid_sample": embeds(pos_embed_use_grid_sample=True), "ours": embeds(), BAG: embeds()}
    others["ours"].__class__ = VectorizedNaFlexEmbeds
    others[BAG].__class__ = BagEmbeds
    for module in others.values():
        module.load_state_dict(loop.state_dict())
    return {FLOOR: floor, LOOP: loop, **others}


class BagEmbeds(NaFlexEmbeds):
    """The embedding as weighted sums of cells by `F.embedding_bag`, over as many cells as the widest filter reads.

    What a loop-free version for transformers proposes. The cells of an antialiased filter depend on the grid, so that
    every token reads as many as the smallest grid of the batch asks for.
    """

    def _apply_learned_naflex_pos_embed(self, x: Tensor, patch_coord: Tensor) -> None:
        resampling, grid_HWC = resampling_of(self), self.pos_embed[0]
        position, length = patch_coord.float(), grids_of(patch_coord).unsqueeze(1).float().expand(patch_coord.shape)
        axes = [axis_weights(position[..., i], length[..., i], grid_HWC.shape[i], resampling) for i in (0, 1)]
        taps = [axis.topk(int((axis != 0).sum(-1).max()), dim=-1) for axis in (axes[0].abs(), axes[1].abs())]
        rows, columns = (axis.gather(-1, tap.indices) for axis, tap in zip(axes, taps, strict=True))
        cells = taps[0].indices.unsqueeze(-1) * grid_HWC.shape[1] + taps[1].indices.unsqueeze(-2)
        weights = (rows * inside(patch_coord)).unsqueeze(-1) * columns.unsqueeze(-2)
        pos = nn.functional.embedding_bag(
            cells.flatten(2).flatten(0, 1),
            grid_HWC.flatten(0, 1).float(),
            per_sample_weights=weights.flatten(2).flatten(0, 1),
            mode="sum",
        )
        x.add_(pos.view(x.shape).to(x.dtype))


def draw_grids(sizes: str, batch: int) -> list[Grid]:
    """Return random grids: sides 4 to 31, as the report drew them, or NaFlex's size rule at a token count."""
    draw = random.Random(0)
    if sizes == "4..31":
        return [Grid(draw.randint(4, 31), draw.randint(4, 31)) for _ in range(batch)]
    tokens = int(sizes.removeprefix("naflex"))
    return [naflex_grid(MAX_ASPECT ** draw.uniform(-1, 1), tokens) for _ in range(batch)]


def share(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference as a share of the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())


if __name__ == "__main__":
    main()
