"""Wrong candidates for the gate to reject: each a tiny classifier with one fault, and the sentence that says which.

A maker takes the dtype that the candidate claims and returns a callable of the model's three inputs, so that a fault in
low precision comes with that precision's own rounding. `docs/mutants.md` says which check of the gate caught which;
`tools/judge_mutants.py` writes it.
"""

from __future__ import annotations

from mutants import answers, dependence, encoder, fed, position, rounding, tokens
from mutants.mutant import DTYPES, REGISTERED
from mutants.references import WRONG_REFERENCES

__all__ = ["DTYPES", "MUTANTS", "WRONG_REFERENCES"]

KINDS = (fed, position, encoder, rounding, answers, dependence, tokens)
"""In the order in which docs/mutants.md has them."""

MUTANTS = {name: one for kind in KINDS for name, one in REGISTERED.items() if one.make.__module__ == kind.__name__}
"""Those of each kind, as they stand in its file, by name."""
