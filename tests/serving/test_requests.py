"""Requests that people send by accident: each gets eager's answer or an InputError, and none spoils a later one."""

from __future__ import annotations

import functools
import threading
from collections import Counter
from collections.abc import Callable

import fuzz_requests
import pytest
import torch
from torch import nn

import naflex_export as nx

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")


@pytest.fixture(scope="module")
def served_by(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[nn.Module, nx.Runner]]:
    """The tiny model and the runner of its artifact, made once for each target."""
    return functools.cache(lambda target: fuzz_requests.artifact(target, tmp_path_factory.mktemp(target)))


@pytest.fixture(params=["onnx", "compile"])
def served(
    request: pytest.FixtureRequest, served_by: Callable[[str], tuple[nn.Module, nx.Runner]]
) -> tuple[nn.Module, nx.Runner]:
    return served_by(request.param)


def test_every_request_is_answered_as_eager_does_or_refused(served: tuple[nn.Module, nx.Runner]) -> None:
    """300 of those that tools/fuzz_requests.py sends by the ten thousand."""
    model, runner = served
    counts: Counter[str] = Counter()
    for number in range(300):
        kind, said = fuzz_requests.outcome(runner, model, 0, number)
        assert not said
        counts[kind] += 1
    assert counts["answered"] > 100 and counts["refused"] > 50


def test_the_fuzzer_sees_wrong_numbers_and_tracebacks(served: tuple[nn.Module, nx.Runner]) -> None:
    model, _ = served

    def fails(*inputs: torch.Tensor, **named: torch.Tensor) -> torch.Tensor:
        raise KeyError("x")

    def refuses(*inputs: torch.Tensor, **named: torch.Tensor) -> torch.Tensor:
        raise nx.InputError("no")

    def guesses(*inputs: torch.Tensor, **named: torch.Tensor) -> torch.Tensor:
        return torch.zeros(1)

    number = next(number for number in range(99) if not fuzz_requests.request_of(0, number)[0])
    kinds = [fuzz_requests.outcome(runner, model, 0, number)[0] for runner in (fails, refuses, guesses)]
    assert kinds == ["traceback", "refused_in_vain", "different"]


@pytest.mark.full
def test_threads_in_different_modes_share_a_runner(served: tuple[nn.Module, nx.Runner]) -> None:
    """Eight threads, each in a mode of its own, begin at once; compiling is for one at a time, and for all."""
    model, runner = served
    found: list[str] = []
    plain = [
        number for number in range(200) if set(fuzz_requests.request_of(1, number)[0]) <= {*fuzz_requests.HARMLESS}
    ]

    def work(first: int) -> None:
        found.extend(fuzz_requests.outcome(runner, model, 1, number)[1] for number in plain[first::8])

    threads = [threading.Thread(target=work, args=(first,)) for first in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(plain) and not any(found)


def test_value_checks_left_out_leave_kinds_of_tensors_refused(
    served_by: Callable[[str], tuple[nn.Module, nx.Runner]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, runner = served_by("onnx")
    monkeypatch.setattr(runner, "check_inputs", False)
    _, request = fuzz_requests.request_of(0, next(n for n in range(99) if not fuzz_requests.request_of(0, n)[0]))
    patches, coord, valid = (request[name] for name in fuzz_requests.NAMES)
    runner(patches.requires_grad_(), coord, valid)
    with pytest.raises(nx.InputError, match="patches is on the meta device: expected a plain tensor"):
        runner(patches.to("meta"), coord, valid)
