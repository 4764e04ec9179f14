"""The pytest plugin, in a test run of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

USERS_TEST = """
    import sys
    sys.path.insert(0, {tests!r})
    import pytest, tiny

    def test_artifact(accuracy_gate):
        assert accuracy_gate({artifact!r}, tiny.shallow()).passed

    def test_wrong(accuracy_gate):
        model = tiny.shallow()
        accuracy_gate(lambda *inputs: 1.2 * model(*inputs), model)

    def test_unrelated():
        pass
"""


def test_a_users_test_fails_where_the_gate_does(pytester: pytest.Pytester, shallow_artifact: Path) -> None:
    pytester.makepyfile(USERS_TEST.format(tests=str(Path(__file__).parent), artifact=str(shallow_artifact)))
    result = pytester.runpytest_inprocess("-p", "naflex_export.pytest_plugin", "--strict-markers")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*the gate failed (docs*", "*mixed-256-seed0 [[]features[]]: max_share*"])
    left = pytester.runpytest_inprocess("-p", "naflex_export.pytest_plugin", "-m", "not accuracy_gate")
    left.assert_outcomes(passed=1, deselected=2)
