"""Write `docs/architectures.md` from the rows of `sweep_timm.py`: python tools/sweep_page.py."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from markdown_text import table
from sweep_timm import (
    BUCKET,
    DEPTH,
    ERRORS,
    GRIDS,
    OTHER_GRIDS,
    RESULTS,
    ROOT,
    VERSIONS,
    Row,
    architectures,
    badness,
    read_rows,
)

from naflex_export.accuracy.metrics import LIMITS

PAGE = ROOT / "docs" / "architectures.md"


def main() -> None:
    """Write the page; it names the architectures without a row."""
    rows = read_rows(RESULTS)
    known = {row["architecture"] for row in rows}
    PAGE.write_text(summary(rows, [name for name in architectures() if name not in known]), encoding="utf-8")


def summary(rows: Sequence[Row], missing: Sequence[str] = ()) -> str:
    """Return the page for the docs: counts by kind and family, the worst error of each stage, and every failure.

    Args:
        rows: of the CSV.
        missing: architectures without a row, which the page names.
    """
    built = [row for row in rows if row["pos_embed"]]
    passed = [row for row in built if not row["failure"]]
    lines = [
        "# Architectures of timm",
        "",
        "Written from `tools/results/sweep_timm.csv` by `python tools/sweep_page.py`; do not edit.",
        "",
        f"Rows for {len(built)} architectures that timm builds as a `NaFlexVit`: **{len(passed)} pass every stage, "
        f"{len(built) - len(passed)} fail one**. {len(rows) - len(built)} more of timm's same modules did not build as "
        "one; the failures below say why.",
        "",
        f"Each has its true width, patch size and options, {DEPTH} blocks, and random weights in which every parameter "
        f"matters. It is compared with timm's eager model on mixed grids with padding, up to {BUCKET.tokens} tokens: "
        f"{', '.join(map(str, dict.fromkeys((*GRIDS, *OTHER_GRIDS))))}. An error is the largest difference as a share "
        f"of eager's largest value, in float32 on a CPU, and fails above {LIMITS['float32'].max_share:g}. `compile` is "
        '`nx.compile` with `backend="eager"`, one full graph for both batches; `onnx` is ONNX Runtime at shapes that '
        "were never traced; engines of TensorRT are built and not run. "
        "Full depth, other dtypes and GPUs are not judged here.",
        "",
        "Rows by date, commit of the package and versions:",
        "",
        table(
            ("date", "commit", *VERSIONS, "rows"),
            [(*key, str(count)) for key, count in _counts(rows, ("date", "commit", *VERSIONS))],
        ),
    ]
    if missing:
        more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
        lines += [
            "",
            f"**The sweep is not finished**: {len(missing)} have no row yet: {', '.join(missing[:10])}{more}.",
        ]
    lines += [
        "",
        "## Worst error of each stage",
        "",
        table(("stage", "judged", "median", "worst", "of"), _worst(built)),
    ]
    engines = [int(row["trt_engine_bytes"]) for row in built if row["trt_engine_bytes"]]
    if engines:
        sizes = f"{min(engines) / 2**20:.0f} to {max(engines) / 2**20:.0f} MiB"
        lines += ["", f"TensorRT built {len(engines)} engines, of {sizes}."]
    kind = ("pos_embed", "pos_resize", "matrices", "rope", "pooling")
    names = ("position embedding", "resized", "matrices", "RoPE", "pooling")
    lines += ["", "## Kinds", "", _groups(built, kind, (*names, "prefix tokens"), "prefix_tokens")]
    named = [{**row, "family": family_name(row["architecture"])} for row in built]
    lines += ["", "## Families", "", _groups(named, ("module", "family"), ("timm module", "names", "widths"), "width")]
    lines += ["", "## Failures", ""]
    failed = [row for row in rows if row["failure"]]
    lines += [f"- `{row['architecture']}`: {row['failure']}" for row in failed] or ["None."]
    return "\n".join(lines) + "\n"


def family_name(architecture: str) -> str:
    """Return a name without size, patch, registers and pooling: `vit siglip` for `vit_base_patch16_siglip_gap_224`."""
    before, patch, after = re.sub(r"_patch\d+", ":", architecture).partition(":")
    if patch:
        before = re.sub(r"_[^_]+$", "", before.removesuffix("_plus"))
    words = [word for word in after.split("_") if word and not re.fullmatch(r"reg\d|[\dx]+|gap|map|plus", word)]
    return " ".join([before, *words[:1]])


def _worst(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    lines = []
    for column in ERRORS:
        judged = sorted((row for row in rows if row[column]), key=lambda row: badness(float(row[column])))
        if judged:
            middle, last = judged[len(judged) // 2], judged[-1]
            name = column.replace("_", ", ")
            lines.append((name, str(len(judged)), middle[column], last[column], f"`{last['architecture']}`"))
    return lines


def _groups(rows: Sequence[Row], columns: Sequence[str], titles: Sequence[str], listed: str) -> str:
    """Return a table with a line for each combination of columns, and the values that one more column takes there."""
    lines = []
    for key, count in _counts(rows, columns):
        group = [row for row in rows if tuple(row[column] for column in columns) == key]
        values = ", ".join(map(str, sorted({int(row[listed]) for row in group})))
        worst = [_worst_of(group, stage) for stage in ("vectorize", "compile", "onnx")]
        passed = sum(not row["failure"] for row in group)
        engines = sum(bool(row["trt_engine_bytes"]) for row in group)
        lines.append((*key, values, str(count), str(passed), *worst, str(engines)))
    return table((*titles, "count", "passed", "vectorize", "compile", "onnx", "engines"), lines)


def _worst_of(rows: Sequence[Row], stage: str) -> str:
    columns = [column for column in ERRORS if column.startswith(stage)]
    found = [row[column] for row in rows for column in columns if row[column]]
    return max(found, key=lambda text: badness(float(text)), default="")


def _counts(rows: Sequence[Row], columns: Sequence[str]) -> list[tuple[tuple[str, ...], int]]:
    return sorted(Counter(tuple(row[column] for column in columns) for row in rows).items())


if __name__ == "__main__":
    main()
