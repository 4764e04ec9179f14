"""Time resampling a patch projection's kernel: the case of pytorch-image-models#2514, and its like.

A kernel of (768, 3, 32, 32) is resampled to 16x16, forward, and forward with backward. All candidates run in one
process, taking turns, and each is compared with timm's formula in float64.

    python tools/bench_patch_resample.py [--device cuda] [--rounds 30] [--out tools/results/patch_resample.csv]
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from record import RESULTS, about, append
from timm.layers.patch_embed import PatchEmbedInterpolator, _compute_resize_matrix, resample_patch_embed
from torch import Tensor

import naflex_export
from naflex_export.bench.timing import interleave
from naflex_export.resample.patch_kernel import resample_kernel, resample_weight

FEATURES, CHANNELS, BASE, TARGET = 768, 3, 32, 16
Resample = Callable[[Tensor], Tensor]
COLUMNS = [
    "date", "commit", "device", "threads", "python", "torch", "timm", "naflex_export", "case", "dtype", "layout",
    "pass", "candidate", "median_ms", "q1_ms", "q3_ms", "rounds", "ratio_to_ours", "max_error",
]  # fmt: skip


def candidates(layout: str, device: torch.device) -> dict[str, Resample]:
    """Return what is timed, by name; each takes a kernel in the layout and gives the resampled one in it."""
    pinv = torch.linalg.pinv(resize_matrix(device, torch.float32))
    timms = PatchEmbedInterpolator((BASE, BASE), CHANNELS, FEATURES, device=device)
    target = (TARGET, TARGET)

    def one_plane(plane: Tensor) -> Tensor:
        return (plane.flatten() @ pinv).reshape(target)

    by_plane = torch.vmap(torch.vmap(one_plane))  # over features and channels
    if layout == "conv":
        return {
            "ours": lambda kernel: resample_kernel(kernel, target),
            "timm, cached": lambda kernel: timms.resample_conv_weight(kernel, target),
            "vmap, cached": by_plane,
            "pinv each time": lambda kernel: resample_patch_embed(kernel, list(target)),
        }
    return {
        "ours": lambda weight: resample_weight(weight, (BASE, BASE), target),
        "timm, cached": lambda weight: timms.resample_linear_weight(weight, target),
        "vmap, cached": lambda weight: flat(by_plane(planes(weight))),
        "pinv each time": lambda weight: flat(resample_patch_embed(planes(weight), list(target))),
    }


def resize_matrix(device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return timm's [target pixels, base pixels] matrix."""
    return _compute_resize_matrix((BASE, BASE), (TARGET, TARGET), "bicubic", True, device, dtype)


def planes(weight: Tensor) -> Tensor:
    """Return a linear weight [E, P*P*C] as a kernel [E, C, P, P]."""
    return weight.reshape(FEATURES, BASE, BASE, CHANNELS).permute(0, 3, 1, 2)


def flat(kernel: Tensor) -> Tensor:
    """Return a kernel [E, C, P, P] as a linear weight."""
    return kernel.permute(0, 2, 3, 1).reshape(FEATURES, -1)


def exact(given: Tensor, layout: str) -> Tensor:
    """Return the result of timm's formula in float64."""
    kernel = (given if layout == "conv" else planes(given)).cpu().double()
    result = kernel.flatten(2) @ torch.linalg.pinv(resize_matrix(torch.device("cpu"), torch.float64))
    result = result.unflatten(2, (TARGET, TARGET))
    return result if layout == "conv" else flat(result)


def measure(layout: str, device: torch.device, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each candidate and pass."""
    draw = torch.Generator().manual_seed(0)
    shape = (FEATURES, CHANNELS, BASE, BASE) if layout == "conv" else (FEATURES, BASE * BASE * CHANNELS)
    given = torch.randn(shape, generator=draw).to(device)
    chosen, expected = candidates(layout, device), exact(given, layout)
    upstream = torch.randn(expected.shape, generator=draw).to(device)

    def forward(resample: Resample) -> Callable[[], Any]:
        def run() -> None:
            with torch.no_grad():
                resample(given)

        return run

    def with_backward(resample: Resample) -> Callable[[], Any]:
        leaf = given.clone().requires_grad_()
        return lambda: torch.autograd.grad(resample(leaf), leaf, upstream)

    rows = []
    for name, make in (("forward", forward), ("forward+backward", with_backward)):
        runs = {candidate: make(resample) for candidate, resample in chosen.items()}
        timings = interleave(runs, rounds, device, warmup=2)
        for candidate, timing in timings.items():
            first, median, third = timing.quartiles_ms
            error = (chosen[candidate](given).cpu().double() - expected).abs().max() / expected.abs().max()
            rows.append(
                {
                    "layout": layout,
                    "pass": name,
                    "candidate": candidate,
                    "median_ms": f"{median:.2f}",
                    "q1_ms": f"{first:.2f}",
                    "q3_ms": f"{third:.2f}",
                    "ratio_to_ours": f"{timing.ratio_to(timings['ours']):.1f}",
                    "max_error": f"{float(error):.1e}",
                }
            )
    return rows


def main() -> None:
    """Measure, print, and add the rows to the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--device", default="cpu", type=torch.device)
    options.add_argument("--rounds", default=30, type=int)
    options.add_argument("--out", default=RESULTS / "patch_resample.csv", type=Path)
    chosen = options.parse_args()
    common = {
        **about(chosen.device),
        "python": platform.python_version(),
        "naflex_export": naflex_export.__version__,
        "case": f"({FEATURES} {CHANNELS} {BASE} {BASE}) to {TARGET}x{TARGET}",
        "dtype": "float32",
        "rounds": chosen.rounds,
    }
    rows = [common | row for layout in ("conv", "linear") for row in measure(layout, chosen.device, chosen.rounds)]
    append(chosen.out, COLUMNS, rows)
    for row in rows:
        print(
            "{layout:7}{pass:18}{candidate:16}{median_ms:>9} ms  {ratio_to_ours:>6}x  error {max_error}".format(**row)
        )


if __name__ == "__main__":
    main()
