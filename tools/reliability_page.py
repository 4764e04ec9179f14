"""Write the tables of docs/reliability.md from tools/results.

python tools/reliability_page.py            # print them
python tools/reliability_page.py --write
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

import fuzz_artifacts
import fuzz_requests
import kill_exports
import record
import steady_runner
from markdown_text import section, span, table

PAGE = record.ROOT / "docs" / "reliability.md"
MARKS = {
    name: (f"<!-- {name}: written by tools/reliability_page.py -->", f"<!-- /{name} -->")
    for name in ("fuzz", "requests", "steady", "kill")
}


def fuzz_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Return how often each damage came to each outcome, over all rows."""
    if not rows:
        return "Not measured yet."
    outcomes = fuzz_artifacts.OUTCOMES
    damages = dict.fromkeys(row["damage"] for row in sorted(rows, key=lambda row: row["damage"]))
    lines = [
        [damage, *(str(_sum(rows, outcome, damage)) for outcome in outcomes)] for damage in [*damages, "all"] if damage
    ]
    cases = sum(_sum(rows, outcome, "all") for outcome in outcomes)
    subjects = ", ".join(sorted({row["subject"] for row in rows} - {"any"}))
    days = span(sorted({row["date"] for row in rows}))
    head = ["what was damaged", *(outcome.replace("_", " ") for outcome in outcomes)]
    return f"{cases} cases, of {subjects}, {days}:\n\n{table(head, lines)}"


def _sum(rows: Sequence[Mapping[str, str]], outcome: str, damage: str) -> int:
    return sum(int(row[outcome]) for row in rows if damage in ("all", row["damage"]))


def requests_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Return how often requests came to each outcome, a line for each target and release of torch."""
    if not rows:
        return "Not measured yet."
    outcomes = fuzz_requests.OUTCOMES
    kinds = dict.fromkeys((row["target"], row["torch"]) for row in rows)
    lines = []
    for target, torch in sorted(kinds):
        found = [row for row in rows if (row["target"], row["torch"]) == (target, torch)]
        counts = (sum(int(row[name]) for row in found) for name in ("count", *outcomes))
        lines.append([target, torch.partition("+")[0], *map(str, counts)])
    return table(["target", "torch", "requests", *(name.replace("_", " ") for name in outcomes)], lines)


def steady_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Return memory and time of a call after the first and the last tenth of the calls, a line for each target."""
    if not rows:
        return "Not measured yet."
    lines = []
    for target in sorted({row["target"] for row in rows}):
        found = [row for row in rows if row["target"] == target]
        ends = (found[0], found[-1])
        columns = [row[name] for name in ("memory_mib", "median_ms") for row in ends]
        lines.append([target, found[-1]["torch"].partition("+")[0], found[-1]["calls"], *columns])
    head = ["target", "torch", "calls", "MiB, first tenth", "MiB, last tenth", "ms a call, first", "ms a call, last"]
    return table(head, lines)


def kill_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Return the counts of killed exports, a line for each run."""
    if not rows:
        return "Not measured yet."
    head = ["day", *(name.replace("_", " ") for name in kill_exports.COUNTS)]
    return table(head, [[row["date"], *(row[name] for name in kill_exports.COUNTS)] for row in rows])


def page(text: str) -> str:
    """Return the page with its tables written anew."""
    text = section(text, *MARKS["fuzz"], fuzz_table(record.read(fuzz_artifacts.RESULTS)))
    text = section(text, *MARKS["requests"], requests_table(record.read(fuzz_requests.RESULTS)))
    text = section(text, *MARKS["steady"], steady_table(record.read(steady_runner.RESULTS)))
    return section(text, *MARKS["kill"], kill_table(record.read(kill_exports.RESULTS)))


def main() -> None:
    """Print the page, or write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    made = page(PAGE.read_text(encoding="utf-8"))
    if parser.parse_args().write:
        PAGE.write_text(made, encoding="utf-8")
    else:
        print(made)


if __name__ == "__main__":
    main()
