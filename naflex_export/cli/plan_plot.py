"""A drawing of token counts and of what buckets waste, by matplotlib."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from naflex_export.errors import BackendError, RequestError

if TYPE_CHECKING:
    from naflex_export.embed.plan import BucketPlan

FORMATS = (".svg", ".png", ".pdf")

BAR, LINE = "#4357ad", "#d4a017"


def check_plot(path: Path) -> None:
    """Check that a drawing can be made there.

    Raises:
        RequestError: its ending is of no format, or it cannot be written.
        BackendError: matplotlib is missing.
    """
    if path.suffix.lower() not in FORMATS:
        raise RequestError(f"--plot {str(path)!r}: expected a file that ends in {', '.join(FORMATS)}")
    if not path.parent.is_dir() or path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise RequestError(f"--plot {str(path)!r} cannot be written: expected a file in a folder that is there")
    if importlib.util.find_spec("matplotlib") is None:
        raise BackendError("--plot needs matplotlib: pip install 'naflex_export[bench]'")


def draw(counts: dict[int, int], plans: Sequence[BucketPlan], taken: BucketPlan, path: Path) -> None:
    """Draw how many photos have each number of tokens, with the buckets' ends, and padding against buckets.

    Args:
        counts: how many photos have each number of tokens.
        plans: of 1, 2 and more buckets.
        taken: the plan whose buckets are drawn.
        path: of the drawing.

    Raises:
        RequestError: it cannot be written.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style: Any = {"svg.hashsalt": "plan", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}
    with mpl.rc_context(style):
        figure = Figure(figsize=(8.0, 3.2), layout="constrained")
        histogram, padding = figure.subplots(1, 2, width_ratios=(2, 1))
        histogram.bar(list(counts), list(counts.values()), width=max(1, taken.buckets[-1].tokens / 200), color=BAR)
        for bucket in taken.buckets:
            histogram.axvline(bucket.tokens + 0.5, color=LINE)
            histogram.annotate(str(bucket.tokens), (bucket.tokens, 1), (-3, -3), ("data", "axes fraction"),
                               "offset points", rotation=90, ha="right", va="top")  # fmt: skip
        histogram.set(xlabel="tokens", ylabel="photos", xlim=(0, 1.03 * taken.buckets[-1].tokens))
        padding.plot([len(found.buckets) for found in plans], [100 * found.waste for found in plans], "o-", color=BAR)
        padding.set(xlabel="buckets", ylabel="padding, % of tokens", ylim=(0, None))
        padding.xaxis.get_major_locator().set_params(integer=True)
        metadata = {"Date": None} if path.suffix.lower() == ".svg" else {}
        try:
            figure.savefig(path, metadata=metadata)
        except OSError as error:
            raise RequestError(f"--plot {str(path)!r} cannot be written: {error.strerror}") from error
