"""The gate's report as JUnit XML, which CI systems show as tests."""

from __future__ import annotations

from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from naflex_export.accuracy.report.markup import clean, tag
from naflex_export.accuracy.report.phrases import facts, location_line, verdict_line
from naflex_export.accuracy.results import GateReport


def as_junit(report: GateReport) -> str:
    """Return a test for each output of each case, each invariance and each baseline.

    What could not be compared is a failed test, as is a report of nothing at all; what was built and not run is a
    skipped one.
    """
    case, where = (report.location.case, report.location.line) if report.location else ("", "")
    tests = [
        _test(f"{result.case} [{result.output}]", ", ".join(result.exceeded), where if result.case == case else "")
        for result in report.results
    ]
    for problem in report.problems:
        name, _, what = problem.partition(": ")
        tests.append(_test(name, what or problem))
    tests += [_test(_invariance(found.name, found.bucket), found.failure) for found in report.invariances]
    behaviours = report.survey.behaviours if report.survey else ()
    tests += [_test(f"behaviour: {found.name}", found.failure) for found in behaviours]
    tests += [_test(f"baseline [{found.output}]", found.failure, where) for found in report.baselines]
    if not report.passed and not report.failures:
        tests.append(_test("cases", "nothing was compared"))
    if report.not_run:
        tests.append(_test("the artifact itself"))
        tests[-1].append(tag("skipped", message=f"not run: {report.not_run}"))
    suite = tag("testsuite", name="naflex_export gate", tests=len(tests), errors=0)
    suite.set("failures", str(sum(test.find("failure") is not None for test in tests)))
    suite.set("skipped", str(sum(test.find("skipped") is not None for test in tests)))
    suite.append(tag("properties", *(tag("property", name=name, value=value) for name, value in facts(report))))
    suite.extend(tests)
    suite.append(
        tag("system-out", "\n".join(filter(None, [verdict_line(report), location_line(report), report.diagnosis])))
    )
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _test(name: str, failure: str = "", where: str = "") -> Element:
    """Return a test, failed where something is failure; `where` says in which module."""
    test = tag("testcase", classname="naflex_export.gate", name=name)
    if failure:
        failure = "; ".join(filter(None, [failure, where]))
        test.append(tag("failure", failure, message=" ".join(clean(failure).split()), type="accuracy"))
    return test


def _invariance(name: str, bucket: str) -> str:
    return f"invariance: {name} [{bucket}]" if bucket else f"invariance: {name}"
