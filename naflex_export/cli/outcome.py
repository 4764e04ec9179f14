"""What came of each artifact of a run: one table where there are several, and JSON for programs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from naflex_export.cli.amounts import bytes_in_words

if TYPE_CHECKING:
    from rich.table import Table

    from naflex_export.accuracy.results import GateReport
    from naflex_export.export_request import ExportRequest
    from naflex_export.exporter import Artifact


@dataclass(frozen=True)
class Outcome:
    """One artifact of a run, published or rejected.

    Attributes:
        target: it was built for.
        dtype: of its weights.
        folder: where it is, or would have been.
        published: whether it is there.
        judged: what the gate ran; empty where it came to no verdict.
        relative_l2: the worst over all cases; None where there was no verdict.
        bytes: of all its files.
        seconds: that building and judging took.
        error: why it was rejected.
    """

    target: str
    dtype: str
    folder: str
    published: bool
    judged: str = ""
    relative_l2: float | None = None
    bytes: int = 0
    seconds: float = 0.0
    error: str = ""

    @classmethod
    def of(cls, artifact: Artifact, seconds: float) -> Outcome:
        """Return the outcome of an artifact that was published.

        Args:
            artifact: it.
            seconds: that it took.
        """
        manifest = artifact.manifest
        return cls(
            manifest.target,
            manifest.precision.name,
            str(artifact.path),
            True,
            artifact.report.judged,
            artifact.report.worst["relative_l2"],
            sum(file["bytes"] for file in manifest.files.values()),
            round(seconds, 1),
        )

    @classmethod
    def rejected(cls, request: ExportRequest, report: GateReport | None, seconds: float, error: str) -> Outcome:
        """Return the outcome of one that a check, a builder or the gate rejected.

        Args:
            request: what was asked for.
            report: the gate's, if it came to that.
            seconds: that it took.
            error: why.
        """
        judged = ("", None) if report is None else (report.judged, report.worst["relative_l2"])
        return cls(
            request.target, request.precision.name, str(request.out), False, *judged, 0, round(seconds, 1), error
        )


def as_json(outcomes: list[Outcome]) -> str:
    """Return a run as JSON: whether all is published, and what came of each artifact; of no number, null."""
    rows = [asdict(outcome) for outcome in outcomes]
    for row in rows:
        value = row["relative_l2"]
        row["relative_l2"] = value if value is not None and abs(value) <= 1e300 else None
    return json.dumps({"published": all(one.published for one in outcomes), "artifacts": rows}, indent=2)


def outcome_table(outcomes: list[Outcome]) -> Table:
    """Return a run as a table of at most 60 columns: a row for each artifact, folders below."""
    from rich.box import SIMPLE
    from rich.table import Table

    rows = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    rows.add_column("target")
    rows.add_column("dtype")
    for heading in ("rel L2", "size", "s", ""):
        rows.add_column(heading, justify="right", no_wrap=True)
    for one in outcomes:
        rows.add_row(
            one.target,
            one.dtype,
            "-" if one.relative_l2 is None else f"{one.relative_l2:.1e}",
            bytes_in_words(one.bytes) if one.bytes else "-",
            f"{one.seconds:.0f}",
            "[green]passed[/]" if one.published else "[bold red]REJECTED[/]",
        )
    return rows
