"""Figures in sentences that come from rows of tools/results are those of the newest rows, as those in tables are."""

from __future__ import annotations

import pytest
from goals import Row
from record import RESULTS, ROOT, newest, read

MODEL = "naflexvit_base_patch16_siglip"


def only(file: str, **wanted: str) -> Row:
    """Return the newest row of a file in which columns have these values."""
    found = [row for row in read(RESULTS / f"{file}.csv") if all(row[name] == value for name, value in wanted.items())]
    return newest(found, tuple(wanted))[-1]


def of_packs() -> list[str]:
    fifth, little = (only("bench_packed", padding=padding, layout="packed") for padding in ("0.198", "0.031"))
    padded = only("bench_packed", padding="0.198", layout="padded")
    assert round(float(little["speedup"]), 1) == 1.0  # "as much"
    assert round(float(fifth["peak_mib"]) / float(padded["peak_mib"]), 2) == 0.76  # "three quarters"
    share = 1 / float(fifth["speedup"])
    return [
        f"the packed base encoder takes {share:.2f} of the padded one's time where a fifth of a batch is padding, "
        f"as much where {float(little['padding']):.0%} is, and three quarters of its memory".replace("%", " %")
    ]


def of_buckets() -> list[str]:
    one, four = (only("bench_buckets", k=k, artifact="base-onnx") for k in ("1", "4"))
    return [
        f"one bucket of 256 tokens pads {float(one['padding']):.0%} of the tokens of {one['images']} images, four "
        f"planned ones {float(four['padding']):.0%}, and embed them in {1 / float(four['cpu_speedup']):.2f} of the "
        f"processor time ({float(four['cpu_speedup']):.2f} times".replace("%", " %")
    ]


def of_requests() -> list[str]:
    """Return the most of all rows, for the machine is others' too."""
    rows = sorted(read(RESULTS / "bench_serve.csv"), key=lambda row: float(row["over_ms"]))
    small, block = ([row for row in rows if row["artifact"] == name][-1] for name in ("small-onnx", "one-block-onnx"))
    assert {row["way"] for row in rows if row["artifact"] == "small-onnx"} == {"body", "form", "json", "openai"}
    return [
        f"a request took up to {float(small['over_ms']):.1f} ms more of processor time with a vector of "
        f"64 values, as body, form, base64 or in OpenAI's form, and {float(block['over_ms']):.1f} ms with one of 768 "
        f"values and a model of which the loop took {float(block['loop_cpu_ms']):.0f} ms"
    ]


def of_architectures() -> list[str]:
    rows = [row for row in read(RESULTS / "sweep_timm.csv") if not row["failure"]]
    stages = ("vectorize_features", "vectorize_tokens", "compile_features", "onnx_features", "onnx_tokens")
    worst = max(float(row[stage]) for row in rows for stage in stages if row[stage])
    commits = dict.fromkeys(
        row["commit"] for name in ("bench_embed", "bench_encoder") for row in read(RESULTS / f"{name}.csv")
        if row["device"] == "NVIDIA H200"
    )  # fmt: skip
    return [
        f"All {len(rows)} architectures that timm 1.0.31 builds as NaFlexVit",
        f"with errors up to {worst:.1e} of the outputs' scale".replace("e-0", "e-"),
        f"The figures above are of an H200 and of commits {' and '.join(commits)}.",
    ]


def of_photos() -> list[str]:
    """Return what docs/scale.md says a photo costs, and what many do by that."""

    def prepared(size: str, flavour: str = "pil") -> float:
        return float(only("bench_deploy", what="preprocess a photo", detail=f"{size} JPEG, {flavour}")["value"])

    encoder = {"model": MODEL, "tokens": "256", "grids": "naflex"}
    on_cpu = only(
        "bench_encoder", **encoder, technique="ours ONNX Runtime", device="AMD EPYC", batch="8", dtype="float32"
    )
    on_gpu = only("bench_encoder", **encoder, technique="ours AOTInductor", device="NVIDIA H200")
    small, middle, large = (prepared(size) for size in ("500x375", "1024x683", "12 megapixels"))
    cpu = float(on_cpu["ms"]) * int(on_cpu["threads"]) / int(on_cpu["batch"])
    gpu = float(on_gpu["ms"]) / int(on_gpu["batch"])
    hours, billion = 3600 * 1000, 10**9
    rate = round(1000 / gpu, -3)
    both = cpu + middle
    return [
        f"| decode and prepare, 500x375 | {small:.1f} CPU ms |",
        f"| decode and prepare, 1024x683 | {middle:.1f} CPU ms |",
        f"with `--fast-jpeg` | {large:.0f}; {prepared('12 megapixels', 'pil, fast_jpeg'):.0f} CPU ms |",
        f"| encode, ONNX Runtime, float32 | {cpu / 1000:.2f} CPU s |",
        f"| encode, AOTInductor, bfloat16, batches of 256 | {gpu:.2f} ms |",
        f"an H200 encodes {rate:,.0f} photos/s, for which {rate * small / 1000:.0f} cores decode photos of 500x375, "
        f"and {rate * middle / 1000:.0f} those of 1024x683.",
        f"| 1,000 | {gpu:.1f} s | {middle:.0f} core s | {both / 60:.0f} core min |",
        f"| 1 million | {gpu * 1e3 / 60:.1f} min | {middle * 1e6 / hours:.1f} core h | "
        f"{both * 1e6 / hours:.0f} core h |",
        f"| 100 million | {gpu * 1e8 / hours:.1f} h | {middle * 1e8 / hours:.0f} core h | "
        f"{round(both * 1e8 / hours, -2):,.0f} core h |",
        f"| 1 billion | {gpu * billion / hours:.0f} h | {round(middle * billion / hours, -1):,.0f} core h | "
        f"{round(both * billion / hours, -3):,.0f} core h |",
        f"10^9 x {gpu:.2f} ms = {gpu * billion / hours:.0f} hours; 10^9 x {middle:.1f} ms = "
        f"{middle * billion / hours:,.0f} hours; 10^9 x {both / 1000:.3f} s = "
        f"{round(both * billion / hours, -3):,.0f} hours.",
    ]


@pytest.mark.parametrize(
    ("page", "sentences"),
    [
        ("packed", of_packs),
        ("serving", of_buckets),
        ("serving", of_requests),
        ("measured", of_architectures),
        ("scale", of_photos),
    ],
)
def test_a_sentence_has_the_figures_of_the_rows(page: str, sentences: object) -> None:
    text = " ".join((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8").split())
    missing = [sentence for sentence in sentences() if sentence not in text]  # type: ignore[operator]
    assert not missing, f"docs/{page}.md does not say:\n" + "\n".join(missing)
