"""What the speed of this package is aimed at, and how rows of results say whether it was reached."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

Row = dict[str, str]

OURS = "ours, compiled"
SAMPLED = "timm's grid_sample"


@dataclass(frozen=True)
class Results:
    """The newest rows of each kind, of each file of results."""

    embed: list[Row] = field(default_factory=list)
    encoder: list[Row] = field(default_factory=list)
    patch: list[Row] = field(default_factory=list)
    suite: list[Row] = field(default_factory=list)
    load: list[Row] = field(default_factory=list)
    packed: list[Row] = field(default_factory=list)
    towers: list[Row] = field(default_factory=list)

    def devices(self) -> list[str]:
        """Return what was measured on, in the order of the rows."""
        return list(dict.fromkeys(row["device"] for rows in vars(self).values() for row in rows))

    def on(self, device: str) -> Results:
        """Return the rows of one device."""
        return Results(*([row for row in rows if row["device"] == device] for rows in vars(self).values()))


@dataclass(frozen=True)
class Goal:
    """Something aimed at.

    Attributes:
        what: in words.
        bound: in words.
        values: what rows of one device say of it; none where it was not measured. All of them must hold.
        limit: the most that they may be, or the least.
        most: whether the limit is the most.
        unit: after the figure; "%" for shares of 1.
        gpu: whether it is about a GPU.
    """

    what: str
    bound: str
    values: Callable[[Results], list[float]]
    limit: float
    most: bool = True
    unit: str = "x"
    gpu: bool = False


@dataclass(frozen=True)
class Verdict:
    """Whether a goal was reached: the worst value of each device in words, empty where there is none, and the word."""

    measured: bool
    value: str = ""
    word: str = ""


def verdict(goal: Goal, results: Results) -> Verdict:
    """Return whether a goal was reached: on every device where it was measured."""
    found = {device: goal.values(results.on(device)) for device in results.devices()}
    found = {device: values for device, values in found.items() if values}
    if not found:
        return Verdict(measured=False)
    worst = {device: max(values) if goal.most else min(values) for device, values in found.items()}
    holds = all(value <= goal.limit if goal.most else value >= goal.limit for value in worst.values())
    said = [f"{_figure(goal, value, len(found[device]))} on {device}" for device, value in worst.items()]
    return Verdict(True, "; ".join(said), "met" if holds else "**missed**")


def _figure(goal: Goal, worst: float, count: int) -> str:
    """Return the worst of some values in words."""
    figure = f"{worst:.1%}" if goal.unit == "%" else f"{worst:.2f}{goal.unit}"
    return figure + (f" (worst of {count})" if count > 1 else "")


def is_gpu(device: str) -> bool:
    """Whether a device's name, as torch gives it, is a GPU's."""
    return bool(re.search(r"NVIDIA|GeForce|Tesla|Quadro|Radeon|Instinct|\bA100\b|\bH[12]00\b", device))


def embed_rows(results: Results, gpu: bool, **wanted: str) -> list[Row]:
    """Return rows of the embedding, forward and backward on sizes 4..31, float32 unless another dtype is wanted."""
    wanted = {"sizes": "4..31", "pass": "forward+backward", "dtype": "float32", **wanted}
    of_kind = [row for row in results.embed if is_gpu(row["device"]) == gpu]
    return [row for row in of_kind if all(row[name] == value for name, value in wanted.items())]


def ratios(gpu: bool, **wanted: str) -> Callable[[Results], list[float]]:
    """Return what gives the times of ours as ratios to the floor."""
    return lambda results: [
        float(row["ratio_to_floor"]) for row in embed_rows(results, gpu, **wanted) if row["candidate"] == OURS
    ]


def against_grid_sample(gpu: bool, batches: Sequence[str], dtypes: Sequence[str]) -> Callable[[Results], list[float]]:
    """Return what gives the times of ours as ratios to those of timm's grid_sample, in the same setting."""

    def values(results: Results) -> list[float]:
        found = []
        for batch in batches:
            for dtype in dtypes:
                rows = embed_rows(results, gpu, batch=batch, dtype=dtype)
                by_setting = {(row["source"], row["candidate"]): float(row["ms"]) for row in rows}
                found += [
                    taken / by_setting[source, SAMPLED]
                    for (source, candidate), taken in by_setting.items()
                    if candidate == OURS and (source, SAMPLED) in by_setting
                ]
        return found

    return values


def time_per_token(source: str) -> Callable[[Results], list[float]]:
    """Return what gives by how much the time of a token varies from batches of 8 to 128."""

    def values(results: Results) -> list[float]:
        rows = [row for row in embed_rows(results, gpu=False, source=source) if row["candidate"] == OURS]
        each = {
            int(row["batch"]): float(row["ms"]) / (int(row["batch"]) * int(row["tokens"]))
            for row in rows
            if 8 <= int(row["batch"]) <= 128
        }
        return [max(each.values()) / min(each.values()) - 1] if {8, 128} <= set(each) else []

    return values


def extra_memory(results: Results) -> list[float]:
    """Return what ours holds beyond the floor and its own parameter's gradient, as shares of the floor's peak.

    The gradient of the position embedding is what training asks for, whoever computes it; the floor has none.
    """
    rows = [row for row in embed_rows(results, gpu=False) if row["candidate"] == OURS and row.get("memory_ratio")]
    return [
        float(row["memory_ratio"]) - 1 - gradient_mib(row) * float(row["memory_ratio"]) / float(row["peak_mib"])
        for row in rows
    ]


def gradient_mib(row: Row) -> float:
    """Return the size of the position embedding's gradient, 768 channels in float32, in MiB."""
    height, width = map(int, row["source"].split()[0].split("x"))
    return height * width * 768 * 4 / 2**20


def encoder_rows(results: Results, gpu: bool, **wanted: str) -> list[Row]:
    """Return rows of the base encoder at 256 tokens that have a time."""
    return [
        row
        for row in results.encoder
        if is_gpu(row["device"]) == gpu
        and row["ms"]
        and row["model"] == "naflexvit_base_patch16_siglip"
        and row["tokens"] == "256"
        and all(row[name] == value for name, value in wanted.items())
    ]


ENCODER, BIG = "base encoder, 256 tokens, 256 images, bfloat16, on a GPU", {"batch": "256", "dtype": "bfloat16"}
COMPILED, THEIRS = "ours torch.compile", "timm torch.compile"


def encoder_values(column: str, gpu: bool, **wanted: str) -> Callable[[Results], list[float]]:
    """Return what gives a column of the encoder's rows, where it is not empty."""
    return lambda results: [float(row[column]) for row in encoder_rows(results, gpu, **wanted) if row[column]]


def against_their_compile(results: Results) -> list[float]:
    """Return the times of timm's own torch.compile as ratios to ours, on a GPU."""
    times = {
        (row["grids"], row["batch"], row["dtype"], row["technique"]): float(row["ms"])
        for row in encoder_rows(results, gpu=True)
    }
    return [
        times[*setting, THEIRS] / taken
        for (*setting, technique), taken in times.items()
        if technique == COMPILED and (*setting, THEIRS) in times
    ]


NOT_HERE = "3"
"""The code of a step of the GPU suite whose backend was not installed."""


def suite_tests(results: Results) -> list[float]:
    """Return the exit codes of the GPU suite's tests: by target, or of a run of before they were, of all at once."""
    rows = [row for row in results.suite if is_gpu(row["device"]) and row["code"] != NOT_HERE]
    ran = {row["step"]: float(row["code"]) for row in rows}
    by_target = [code for step, code in ran.items() if step.startswith("tests ")]
    return by_target or [code for step, code in ran.items() if step == "tests"]


def share_of_older(what: str) -> Callable[[Results], list[float]]:
    """Return what gives processor time as a share of what an older commit took, in the same run."""

    def values(results: Results) -> list[float]:
        by_checkout = {row["checkout"]: float(row["cpu_s"]) for row in results.load if row["what"] == what}
        return [by_checkout["this"] / by_checkout["beside"]] if {"this", "beside"} <= set(by_checkout) else []

    return values


def packed_exports(column: str, least: float, most: float) -> Callable[[Results], list[float]]:
    """Return what gives a column of packed exports as a ratio to the padded one's, for batches with a share of padding.

    Args:
        column: "speedup", which is one already, or another.
        least: share of padding.
        most: share of padding.
    """

    def values(results: Results) -> list[float]:
        rows = [row for row in results.packed if least <= float(row["padding"]) <= most]
        padded = {_setting(row): float(row[column]) for row in rows if row["layout"] == "padded"}
        return [float(row[column]) / padded[_setting(row)] for row in rows if row["layout"] == "packed"]

    return values


def _setting(row: Row) -> tuple[str, ...]:
    return tuple(row[name] for name in ("model", "images", "tokens", "padding"))


def towers_over_own(gpu: bool) -> Callable[[Results], list[float]]:
    """Return what gives the speed of ours ahead of a tower's first block over the model's own."""
    return lambda results: [
        float(row["speedup"]) for row in results.towers if row["candidate"] == "ours" and is_gpu(row["device"]) == gpu
    ]


EMBEDDING, SOURCES = "embedding, forward+backward, sizes 4..31", ("16x16", "32x32", "128x128 no antialias")

GOALS = (
    *(
        Goal(
            f"{EMBEDDING}, 32 images, {source}, float32, on a CPU: ratio to the floor",
            f"at most {limit}x",
            ratios(False, batch="32", source=source),
            limit,
        )
        for source, limit in zip(SOURCES, (1.5, 1.8, 1.8), strict=True)
    ),
    Goal(
        f"{EMBEDDING}, 32 images, every source, float32, on a CPU: ratio to timm's grid_sample",
        "below 1x",
        against_grid_sample(False, ("32",), ("float32",)),
        1.0,
    ),
    *(
        Goal(
            f"{EMBEDDING}, {source}, float32, on a CPU: how the time of a token varies from batches of 8 to 128",
            "at most 15 %",
            time_per_token(source),
            0.15,
            unit="%",
        )
        for source in SOURCES
    ),
    Goal(
        f"{EMBEDDING}, every source and batch, on a CPU: peak memory beyond the floor's and its own gradient's",
        "at most 15 %",
        extra_memory,
        0.15,
        unit="%",
    ),
    Goal(
        "base encoder, 256 tokens, float32, every batch, on a CPU: ONNX Runtime over timm eager",
        "at least 1x",
        encoder_values("speedup", False, technique="ours ONNX Runtime", dtype="float32"),
        1.0,
        most=False,
    ),
    Goal(
        "loading and calling an ONNX artifact: processor time as a share of what it took with all that builds imported",
        "at most 50 %",
        share_of_older("load and call an ONNX artifact"),
        0.5,
        unit="%",
    ),
    *(
        Goal(
            f"packed export over padded, ONNX Runtime, on a CPU, {share} of padding",
            f"at least {limit}x",
            packed_exports("speedup", least, most),
            limit,
            most=False,
        )
        for share, least, most, limit in (("20 %", 0.18, 0.22, 1.15), ("3 %", 0.02, 0.04, 0.97))
    ),
    Goal(
        "packed export, ONNX Runtime, on a CPU: peak memory as a share of the padded one's, every share of padding",
        "at most 100 %",
        packed_exports("peak_mib", 0.0, 1.0),
        1.0,
        unit="%",
    ),
    Goal(
        "vision towers, ahead of the first block, forward and backward, on a CPU: ours over each model's own",
        "at least 1x",
        towers_over_own(False),
        1.0,
        most=False,
    ),
    Goal(
        "vision towers, ahead of the first block, forward and backward, on a GPU: ours over each model's own",
        "at least 1x",
        towers_over_own(True),
        1.0,
        most=False,
        gpu=True,
    ),
    *(
        Goal(
            f"{EMBEDDING}, {batch} images, every source, {dtype}{tf32}, on a GPU: ratio to the floor",
            f"at most {limit}x",
            ratios(True, batch=batch, dtype=dtype),
            limit,
            gpu=True,
        )
        for dtype, tf32, limit in (("float32", " without TF32", 1.15), ("bfloat16", "", 1.5))
        for batch in ("256", "512")
    ),
    Goal(
        f"{EMBEDDING}, 256 and 512 images, every source and dtype, on a GPU: ratio to timm's grid_sample",
        "below 1x",
        against_grid_sample(True, ("256", "512"), ("float32", "bfloat16")),
        1.0,
        gpu=True,
    ),
    *(
        Goal(
            f"{ENCODER}, {kind}: ours compiled over timm eager",
            f"at least {limit:.0f}x",
            encoder_values("speedup", True, technique=COMPILED, grids=grids, **BIG),
            limit,
            most=False,
            gpu=True,
        )
        for kind, grids, limit in (("all grids different", "different", 4.0), ("NaFlex's size rule", "naflex", 2.0))
    ),
    Goal(
        "base encoder, 256 tokens, every batch, dtype and kind of grids, on a GPU: ours over timm's own torch.compile",
        "at least 1x",
        against_their_compile,
        1.0,
        most=False,
        gpu=True,
    ),
    Goal(
        f"{ENCODER}, ours compiled: all ahead of the first block, as a share of the time",
        "at most 3 %",
        encoder_values("embed_share", True, technique=COMPILED, **BIG),
        0.03,
        unit="%",
        gpu=True,
    ),
    Goal(
        f"{ENCODER}, ours compiled: share of the GPU's measured matrix rate",
        "none",
        encoder_values("matrix_share", True, technique=COMPILED, **BIG),
        0.0,
        most=False,
        unit="%",
        gpu=True,
    ),
    *(
        Goal(f"{ENCODER}, {name} over timm eager", "none", values, 0.0, most=False, gpu=True)
        for name, values in (
            (name, encoder_values("speedup", True, technique=f"ours {name}", **BIG))
            for name in (
                *("CUDA graphs", "AOTInductor", "packed AOTInductor"),
                *("ONNX Runtime", "packed ONNX Runtime", "TensorRT"),
            )
        )
    ),
    Goal(
        "tests on a GPU: no host synchronisation in the compiled forward, replay as a CUDA graph, each backend judged",
        "all pass",
        suite_tests,
        0.0,
        unit=" is the exit code",
        gpu=True,
    ),
)
