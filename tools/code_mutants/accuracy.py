"""Faults of accuracy/: the gate."""

from __future__ import annotations

from code_mutants.mutant import CodeMutant

GATE = "tests/accuracy/test_gate.py::test_"
INVARIANCES = "tests/accuracy/test_invariances.py::test_"

ACCURACY = (
    CodeMutant(
        "invariances run after a case that could not be compared",
        "accuracy/gate.py",
        "and not tally.problems and not cases.only",
        "and not cases.only",
        (f"{INVARIANCES}invariances_are_asked_of_what_could_be_compared_alone",),
    ),
    CodeMutant(
        "shapes are compared by their number of values",
        "accuracy/tally.py",
        "if given.shape != expected.shape:",
        "if given.numel() != expected.numel():",
        (f"{GATE}as_many_values_in_another_shape_are_not_compared",),
    ),
    CodeMutant(
        "a quick gate asks invariances in the smallest bucket",
        "accuracy/gate.py",
        "settings.buckets[-1:]",
        "settings.buckets[:1]",
        (f"{GATE}quick_and_thorough_skip_and_add",),
    ),
    CodeMutant(
        "a root mean square is a mean",
        "accuracy/tally.py",
        "return math.sqrt(sum(value * value for value in values) / len(values))",
        "return sum(values) / len(values)",
        (f"{GATE}errors_over_all_cases_are_root_mean_squares",),
    ),
    CodeMutant(
        "the limit of masking a thousand times smaller",
        "accuracy/invariances.py",
        "MOVED = 1e-6",
        "MOVED = 1e-9",
        (f"{INVARIANCES}masking_a_token_must_move_more_than_rounding_does",),
    ),
)
