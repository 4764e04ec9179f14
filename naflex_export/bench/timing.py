"""How speed and memory are measured, everywhere in this package: interleaved rounds, and a call's own peak."""

from __future__ import annotations

import ctypes
import gc
import itertools
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from naflex_export.errors import RequestError

Call = Callable[[], Any]


@dataclass(frozen=True)
class Timing:
    """How long a call took in each round.

    Attributes:
        seconds: one number a round, in their order.
    """

    seconds: tuple[float, ...]

    @property
    def ms(self) -> float:
        """The median, in milliseconds."""
        return 1000 * statistics.median(self.seconds)

    @property
    def quartiles_ms(self) -> tuple[float, float, float]:
        """The lower quartile, the median and the upper quartile, in milliseconds; all the same for a single round."""
        if len(self.seconds) < 2:
            return self.ms, self.ms, self.ms
        low, median, high = statistics.quantiles(self.seconds, n=4)
        return 1000 * low, 1000 * median, 1000 * high

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, as a share of the median; 0 for a single round."""
        low, median, high = self.quartiles_ms
        return (high - low) / 2 / median

    def ratio_to(self, other: Timing) -> float:
        """Return how many times as long as another call this one took: the median of the ratios of each round.

        The two of a round ran within moments, so that a machine that slows down for a while slows both.
        """
        return statistics.median(mine / its for mine, its in zip(self.seconds, other.seconds, strict=True))


def interleave(
    calls: Mapping[str, Call],
    rounds: int = 7,
    device: torch.device | str = "cpu",
    *,
    warmup: int = 1,
    settle: float = 0.0,
    prepare: Callable[[int], None] = lambda number: None,
    announce: Callable[[str], None] = lambda step: None,
) -> dict[str, Timing]:
    """Return the time of each call, all of them once in each round, so that a busy machine meets them alike.

    Each round starts one call later than the last: no call always runs in the wake of the same other one.

    Args:
        calls: by name; each runs to its end on the device, for the device is waited for.
        rounds: that count, at least 1.
        device: where the calls run.
        warmup: rounds that run first and do not count.
        settle: seconds to wait before each call. Where runtimes with worker threads of their own take turns, those of
            the last one spin for a while before they sleep, and take cores from the next.
        prepare: called with the number of each round, those of the warmup among them, before anything is timed.
        announce: called with a line for each round.

    Raises:
        RequestError: there is no round, or no call.
    """
    if rounds < 1 or warmup < 0 or not calls:
        raise RequestError(
            f"rounds={rounds}, warmup={warmup} and {len(calls)} calls: expected at least 1 round, a warmup of at "
            "least 0 and 1 call"
        )
    device = torch.device(device)
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(warmup + rounds):
        counts = number >= warmup
        announce(f"round {number - warmup + 1} of {rounds}" if counts else "warming up")
        prepare(number)
        first = number % len(names)
        for name in [*names[first:], *names[:first]]:
            synchronize(device)
            time.sleep(settle)
            started = time.perf_counter()
            calls[name]()
            synchronize(device)
            if counts:
                seconds[name].append(time.perf_counter() - started)
    return {name: Timing(tuple(taken)) for name, taken in seconds.items()}


def peak_memory(call: Call, device: torch.device | str = "cpu", *, foreign: bool = False) -> int | None:
    """Return the most bytes that a call held at a time beyond what was held before it; None where nothing can tell.

    Call it once before, so that what it does only once, such as compiling, is not counted. What the call returns is
    counted.

    On a CPU it is the kernel's own high-water mark of the process's resident memory, so whoever allocates is seen:
    torch, BLAS or another runtime. Free memory goes back to the system first. What a runtime keeps for itself between
    calls is not seen again. The mark is good to about 1 MiB. None where the system is not Linux with glibc.

    On a GPU it is the most that torch's allocator held. A `foreign` call allocates by itself: its memory is how much
    less of the device is free after it, which is its peak only if it keeps what it took, as ONNX Runtime and TensorRT
    do.

    Args:
        call: to be measured.
        device: where it runs.
        foreign: whether it allocates by itself, without torch.
    """
    device = torch.device(device)
    gc.collect()
    if device.type == "cuda":
        return _peak_on_gpu(call, device, foreign)
    if not _trim():
        return None
    before = _resident("VmRSS")
    try:
        Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM to what is resident now
        kept = call()
        peak = _resident("VmHWM")
    except OSError:  # a system that does not let a process reset its mark
        return None
    del kept
    return max(0, peak - before)


def peak_allocated(call: Call, device: torch.device | str = "cpu") -> int:
    """Return the most bytes of tensors that a call held at a time beyond what was held before it.

    What torch's allocator was asked for, on a CPU as on a GPU: no pages that the C library keeps, and nothing of a
    runtime that allocates by itself, so that it is the same in every run. For calls that are torch's alone.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return _peak_on_gpu(call, device, foreign=False)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profile:
        kept = call()
    del kept
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]")
    return max(itertools.accumulate((size for _, size in changes), initial=0))


def _peak_on_gpu(call: Call, device: torch.device, foreign: bool) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    allocated, (free, _) = torch.cuda.memory_allocated(device), torch.cuda.mem_get_info(device)
    kept = call()
    torch.cuda.synchronize(device)
    if foreign:
        return max(0, free - torch.cuda.mem_get_info(device)[0])
    peak = torch.cuda.max_memory_allocated(device)
    del kept
    return peak - allocated


def _trim() -> bool:
    """Give free memory back to the system; return whether this is a system that takes it."""
    if platform.system() != "Linux":
        return False
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except AttributeError:  # a libc other than glibc
        return False
    return True


def _resident(field: str) -> int:
    """Return a field of the process's memory, in bytes: VmRSS now, VmHWM at most since the mark was reset."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def synchronize(device: torch.device | str = "cpu") -> None:
    """Wait until a GPU has done all that it was given; a CPU already has."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def device_name(device: torch.device | str = "cpu") -> str:
    """Return the name of the GPU, or of the processor as Linux gives it."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
