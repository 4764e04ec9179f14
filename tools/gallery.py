"""Writes the pages of docs/gallery: the gate's reports of tiny models, one that passes and one that is rejected.

python tools/gallery.py
"""

from __future__ import annotations

from pathlib import Path

import torch
from bless_graphs import tiny
from torch import nn

import naflex_export as nx
from naflex_export.accuracy.report.formats import write

GALLERY = Path(__file__).parent.parent / "docs" / "gallery"


def candidates() -> dict[str, tuple[nn.Module, nn.Module]]:
    """Return pairs of a candidate and the model that it should be, by the page's name."""
    right = tiny(depth=2)
    wrong = tiny(depth=2, pos_embed_ar_preserving=True)
    wrong.load_state_dict(right.state_dict())
    return {"passed": (nx.vectorize(right), right), "rejected": (nx.vectorize(wrong), right)}


def main() -> None:
    """Judge both, and write their pages."""
    torch.set_num_threads(1)
    for name, (candidate, model) in candidates().items():
        report = nx.gate(candidate, reference=model, buckets=[nx.Bucket(64, (1, 4, 8))], locate=True)
        write(report, GALLERY / f"{name}.html")
        print(f"{name}: {'passes' if report.passed else 'rejected'}")


if __name__ == "__main__":
    main()
