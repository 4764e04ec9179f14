"""A pytest plugin: `accuracy_gate(artifact, model)` in a user's own test fails where the gate does.

Ask for it in a `conftest.py`: `pytest_plugins = ["naflex_export.pytest_plugin"]`. It does not load by itself: that
would import torch into every test run of the environment.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from torch import nn

    from naflex_export.accuracy.results import GateReport


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker that the fixture's tests carry."""
    config.addinivalue_line("markers", "accuracy_gate: judges an exported artifact; slow, so that -m can leave it out")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that asks for the fixture."""
    for item in items:
        if "accuracy_gate" in getattr(item, "fixturenames", ()):
            item.add_marker("accuracy_gate")


@pytest.fixture
def accuracy_gate() -> Callable[..., GateReport]:
    """Return a function that judges an artifact, or any callable, and fails the test where the gate fails.

    `accuracy_gate(artifact, model, **options)` takes an artifact's folder or what `nx.gate` takes as a candidate, the
    original model, and the options of `nx.gate`; it returns the report. A folder is verified, and judged by what can
    stand in for it where this machine cannot run it; give `require_run=True` to refuse that.
    """

    def judge(candidate: Any, reference: nn.Module, **options: Any) -> GateReport:
        from naflex_export.accuracy.efforts import CaseSelection
        from naflex_export.accuracy.gate import gate
        from naflex_export.accuracy.judge_artifact import JudgeRequest, judge_artifact
        from naflex_export.errors import GateFailure

        if isinstance(candidate, str | Path):
            cases = CaseSelection(
                options.pop("seed", 0), options.pop("effort", "standard"), tuple(options.pop("cases", ()))
            )
            report = judge_artifact(Path(candidate), reference, JudgeRequest(cases=cases, **options))
        else:
            report = gate(candidate, reference, **options)
        try:
            report.raise_for_failure()
        except GateFailure as failure:
            pytest.fail(str(failure), pytrace=False)
        return report

    return judge
