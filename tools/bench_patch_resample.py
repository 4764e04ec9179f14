"""Time resampling a patch projection's kernel: the case of pytorch-image-models#2514, and its like.

A kernel of (768, 3, 32, 32) is resampled to 16x16, forward, and forward with backward. All candidates run in one
process, taking turns, and each is compared with timm's formula in float64.

    python tools/bench_patch_resample.py [--device cuda] [--rounds 30] [--out tools/results/patch_resample.csv]
"""

from __future__ import annotations

import argparse
import csv
import datetime
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers.patch_embed import PatchEmbedInterpolator, _compute_resize_matrix, resample_patch_embed
from torch import Tensor

import naflex_export
from naflex_export.patch_resample import resample_kernel, resample_weight

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


def milliseconds(run: Callable[[], Any], device: torch.device) -> float:
    """Return how long one call takes, until the device is done."""
    synchronize(device)
    started = time.perf_counter()
    run()
    synchronize(device)
    return 1e3 * (time.perf_counter() - started)


def synchronize(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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
        times: dict[str, list[float]] = {candidate: [] for candidate in runs}
        for turn in range(-2, rounds):  # two turns to warm up
            for candidate, run in runs.items():
                elapsed = milliseconds(run, device)
                if turn >= 0:
                    times[candidate].append(elapsed)
        ours = statistics.median(times["ours"])
        for candidate, found in times.items():
            first, median, third = statistics.quantiles(found, n=4)
            error = (chosen[candidate](given).cpu().double() - expected).abs().max() / expected.abs().max()
            rows.append(
                {
                    "layout": layout,
                    "pass": name,
                    "candidate": candidate,
                    "median_ms": f"{median:.2f}",
                    "q1_ms": f"{first:.2f}",
                    "q3_ms": f"{third:.2f}",
                    "ratio_to_ours": f"{median / ours:.1f}",
                    "max_error": f"{float(error):.1e}",
                }
            )
    return rows


def device_name(device: torch.device) -> str:
    """Return the name of the GPU or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"CPU: {names[0] if names else platform.machine()}"


def commit() -> str:
    """Return the commit the code is at, with a plus where it has changed since."""
    asked = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--abbrev=10", "--exclude=*"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def main() -> None:
    """Measure, print, and write the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--device", default="cpu", type=torch.device)
    options.add_argument("--rounds", default=30, type=int)
    options.add_argument("--out", default=Path(__file__).parent / "results" / "patch_resample.csv", type=Path)
    chosen = options.parse_args()
    common = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit(),
        "device": device_name(chosen.device),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "naflex_export": naflex_export.__version__,
        "case": f"({FEATURES} {CHANNELS} {BASE} {BASE}) to {TARGET}x{TARGET}",
        "dtype": "float32",
        "rounds": chosen.rounds,
    }
    rows = [common | row for layout in ("conv", "linear") for row in measure(layout, chosen.device, chosen.rounds)]
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    with chosen.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(
            "{layout:7}{pass:18}{candidate:16}{median_ms:>9} ms  {ratio_to_ours:>6}x  error {max_error}".format(**row)
        )


if __name__ == "__main__":
    main()
