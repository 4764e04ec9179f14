"""How speed and memory are measured, and where results go."""

from __future__ import annotations

import platform
import re
import time
from functools import partial
from pathlib import Path

import pytest
import record
import torch
from bench_embed import candidates, draw_grids
from torch import nn

from naflex_export.batch import Batch, noise_batch
from naflex_export.bench.timing import Timing, device_name, interleave, peak_allocated, peak_memory
from naflex_export.errors import RequestError

MIB = 2**20


def test_rounds_are_interleaved_and_take_turns_in_going_first() -> None:
    log: list[str] = []
    calls = {name: lambda name=name: log.append(name) for name in "abc"}
    steps: list[str] = []
    timings = interleave(calls, rounds=3, warmup=1, announce=steps.append)
    assert ["".join(log[i : i + 3]) for i in range(0, 12, 3)] == ["abc", "bca", "cab", "abc"]
    assert {name: len(timing.seconds) for name, timing in timings.items()} == dict.fromkeys("abc", 3)
    assert steps == ["warming up", "round 1 of 3", "round 2 of 3", "round 3 of 3"]


def test_times_are_wall_clock() -> None:
    (timing,) = interleave({"sleep": lambda: time.sleep(0.01)}, rounds=2, warmup=0).values()
    assert 10 <= timing.ms < 200


def test_calls_wait_for_what_the_last_one_left_running() -> None:
    starts: list[float] = []
    ends: list[float] = []

    def call() -> None:
        starts.append(time.perf_counter())
        time.sleep(0.001)
        ends.append(time.perf_counter())

    interleave({"one": call, "other": call}, rounds=2, warmup=0, settle=0.02)
    assert len(starts) == 4
    assert all(start - end >= 0.02 for end, start in zip(ends, starts[1:], strict=False))


def test_medians_spreads_and_ratios() -> None:
    one, other = Timing((0.1, 0.2, 0.3, 0.4, 9.9)), Timing((0.05, 0.1, 0.1, 0.2, 4.95))
    assert one.ms == pytest.approx(300)
    assert one.spread == pytest.approx((5.15 - 0.15) / 2 / 0.3)
    assert one.ratio_to(other) == pytest.approx(2)  # round by round: 2, 2, 3, 2, 2
    assert Timing((0.1,)).spread == 0


@pytest.mark.parametrize(("rounds", "warmup", "calls"), [(0, 1, 1), (1, -1, 1), (1, 1, 0)])
def test_nothing_to_measure_is_refused(rounds: int, warmup: int, calls: int) -> None:
    with pytest.raises(RequestError, match="expected at least 1 round"):
        interleave({str(number): lambda: None for number in range(calls)}, rounds, warmup=warmup)


@pytest.mark.full
@pytest.mark.skipif(platform.system() != "Linux", reason="the high-water mark is Linux's")
def test_peak_memory_is_what_a_call_held_at_a_time() -> None:
    def hold(mebibytes: int) -> torch.Tensor:
        return torch.ones(mebibytes * 2**18)

    def one_after_the_other() -> None:
        hold(40)
        hold(40)

    for _ in range(2):  # what the first left behind is not taken from the second
        assert peak_memory(lambda: (hold(40), hold(40))) == pytest.approx(80 * MIB, abs=2 * MIB)
        assert peak_memory(one_after_the_other) == pytest.approx(40 * MIB, abs=2 * MIB)
    assert peak_memory(lambda: None) == pytest.approx(0, abs=MIB)


def test_allocated_memory_is_exact_and_the_same_in_every_run() -> None:
    def hold(kibibytes: int) -> torch.Tensor:
        return torch.ones(kibibytes * 2**8)

    def one_after_the_other() -> None:
        hold(40)
        hold(60)

    hold(1)
    for _ in range(2):
        assert peak_allocated(lambda: (hold(40), hold(60))) == 100 * 2**10
        assert peak_allocated(one_after_the_other) == 60 * 2**10
    assert peak_allocated(lambda: None) == 0


@pytest.mark.parametrize(("source", "batch"), [(16, 8), (32, 8), (128, 8)])
def test_the_embedding_asks_for_little_memory_beyond_its_projection(source: int, batch: int) -> None:
    """Forward and backward: at most 15 % beyond the floor and the gradient of its own parameter."""
    inputs = noise_batch("memory", draw_grids("4..31", batch), 496, 16 * 16 * 3)
    modules = candidates(source)
    peaks = {}
    for name in ("floor", "ours", "timm's loop"):
        run = partial(forward_backward, modules[name], inputs)
        run()
        peaks[name] = peak_allocated(run)
    own = source * source * 768 * 4
    assert peaks["ours"] <= 1.15 * peaks["floor"] + own
    assert peaks["timm's loop"] > 2 * peaks["floor"] + own


def forward_backward(module: nn.Module, inputs: Batch) -> None:
    module(inputs.patches, inputs.patch_coord)[0].sum().backward()
    module.zero_grad()


def test_memory_that_nothing_can_tell_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert peak_memory(lambda: None) is None
    assert record.mib(None) == "" and record.mib(3 * MIB) == "3.0"


def test_a_row_says_when_from_what_and_on_what() -> None:
    row = record.about("cpu", ("torch", "no-such-package"))
    assert list(row) == [*record.ABOUT, "torch", "no-such-package"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", row["date"])
    assert re.fullmatch(r"[0-9a-f]{10}\+?|unknown", row["commit"])
    assert row["device"] == device_name("cpu") and row["threads"] == str(torch.get_num_threads())
    assert row["torch"] and not row["no-such-package"]


def test_rows_are_added_under_one_header(tmp_path: Path) -> None:
    path = tmp_path / "results" / "rows.csv"
    assert record.read(path) == []
    record.append(path, ("name", "ms"), [{"name": "a", "ms": 1}, {"name": "b", "ms": 2}])
    record.append(path, ("name", "ms"), [{"name": "a", "ms": 3}])
    assert path.read_text() == "name,ms\na,1\nb,2\na,3\n"
    assert record.newest(record.read(path), ("name",)) == [{"name": "a", "ms": "3"}, {"name": "b", "ms": "2"}]


def test_rows_of_other_columns_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    record.append(path, ("name", "ms"), [{"name": "a", "ms": 1}])
    with pytest.raises(RequestError, match="has the columns name, ms: expected name, ms, spread; give another file"):
        record.append(path, ("name", "ms", "spread"), [])
    with pytest.raises(ValueError, match="not in fieldnames"):
        record.append(path, ("name", "ms"), [{"name": "a", "ms": 1, "spread": 0}])
    assert path.read_text() == "name,ms\na,1\n"
