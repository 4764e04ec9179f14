"""Fixtures shared by the tests."""

from __future__ import annotations

import functools
import gc
import importlib
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
import tiny
import torch
from torch import nn
from torch.onnx._internal.exporter import _registration

import naflex_export as nx
from naflex_export.accuracy import efforts, gate
from naflex_export.accuracy.diagnosis import Diagnosis
from naflex_export.batch import Batch, noise_batch
from naflex_export.graph.build_settings import BuildSettings
from naflex_export.graph.onnx_translate import translate
from naflex_export.graph.program import Program
from naflex_export.graph.trace import trace
from naflex_export.grid import Grid
from naflex_export.models import adapter_of
from naflex_export.packs.opened import Pack
from naflex_export.packs.write import write_pack
from naflex_export.targets.onnx import OPSET

MIXED = (Grid(3, 7), Grid(1, 24), Grid(24, 1), Grid(4, 4), Grid(1, 1), Grid(5, 4))


torch.set_num_threads(1)  # one test process for each core

for name in ("COLUMNS", "LINES"):  # rich's console keeps for good what is set as it is made, and no test can change it
    os.environ.pop(name, None)
importlib.import_module("naflex_export.cli.console")

for number in (signal.SIGINT, signal.SIGHUP):  # a job in the background or under nohup ignores them, and so would
    if signal.getsignal(number) == signal.SIG_IGN:  # the processes of tests, which a handler is not handed down to
        signal.signal(number, lambda *_: None)


EFFORTS, FAULT_OF = dict(efforts.EFFORTS), gate.fault_of


@pytest.fixture(autouse=True, scope="session")
def _cases_alone() -> Iterator[None]:
    """Let the gate judge on its cases, without samples of all sizes: a hundred calls, and hundreds of gates.

    Nor does it look for the fault of what failed. What is about either asks for it with the fixture `survey` or
    `diagnosed`.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name, effort in EFFORTS.items():
            once = tuple(kind for kind in effort.once if kind not in (efforts.SPREAD, efforts.LARGER))
            patch.setitem(efforts.EFFORTS, name, replace(effort, sampled=(), once=once))
        patch.setattr(gate, "fault_of", lambda *given: Diagnosis())
        yield


@pytest.fixture(autouse=True, scope="session")
def _translations_read_once() -> Iterator[None]:
    """Read the source of ONNX's translations of torch's operators once a process: torch does so in each export."""
    apis = _registration.onnxscript_apis
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(apis, "get_torchlib_ops", functools.cache(apis.get_torchlib_ops))
        yield


@pytest.fixture(autouse=True, scope="session")
def _garbage_collected_seldom() -> Iterator[None]:
    """Leave what was imported out of garbage collections, and collect seldom: a tenth of a trace goes into them."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


@pytest.fixture
def survey(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the gate survey all sizes, as it does outside of these tests."""
    for name, effort in EFFORTS.items():
        monkeypatch.setitem(efforts.EFFORTS, name, effort)


@pytest.fixture
def diagnosed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the gate look for the typical fault of what failed, as it does outside of these tests."""
    monkeypatch.setattr(gate, "fault_of", FAULT_OF)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    """Forget compiled graphs between tests: their guards would count against later ones."""
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="session")
def siglip() -> nn.Module:
    return tiny.siglip()


@pytest.fixture(scope="session")
def classifier() -> nn.Module:
    return tiny.classifier()


@pytest.fixture(scope="session")
def siglip_program(siglip: nn.Module) -> Program:
    return trace(adapter_of(siglip), [nx.Bucket(64)], outputs=("features", "tokens"))


@pytest.fixture(scope="session")
def _siglip_onnx(siglip_program: Program) -> bytes:
    return ir.to_proto(translate(siglip_program, BuildSettings(), OPSET)).SerializeToString()


@pytest.fixture
def siglip_onnx(_siglip_onnx: bytes) -> ir.Model:
    """A graph of its own for each test, to make wrong."""
    return ir.from_proto(onnx.ModelProto.FromString(_siglip_onnx))


@pytest.fixture(scope="session")
def shallow_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ONNX artifact of `tiny.shallow`, exported once a process: whatever changes a file of it takes a copy."""
    folder = tmp_path_factory.mktemp("shallow") / "a"
    return nx.export(tiny.shallow(), "onnx", folder, [nx.Bucket(16, (1, 2, 4))], effort="quick").path


@pytest.fixture(scope="session")
def mixed() -> Batch:
    """A batch of mixed grids with padding, for 4-pixel patches."""
    return noise_batch("mixed", MIXED, tokens=26, token_width=48)


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """A small golden pack of the tiny SigLIP."""
    path = tmp_path_factory.mktemp("packs") / "pack"
    write_pack(tiny.siglip(), path, small=True, name="tiny")
    return Pack.open(path)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Say at once why a test failed on a borrowed GPU, whose time may end before pytest's own summary."""
    if report.failed and "NAFLEX_GPU_TESTS_ON" in os.environ and "PYTEST_XDIST_WORKER" not in os.environ:
        print(f"\n{report.nodeid}, {report.when}: {report.longreprtext[-3000:]}", file=sys.__stderr__, flush=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what each artifact of the trained model reads."""
    reports = terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
    lines = [line for report in reports for name, line in report.user_properties if name == "accuracy"]
    if lines:
        terminalreporter.section("accuracy of each artifact on handwritten digits")
        for line in lines:
            terminalreporter.line(line)
