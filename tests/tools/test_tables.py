"""The tables and the drawing of the results, and what says whether a goal was reached."""

from __future__ import annotations

from pathlib import Path

import bench_encoder
import markdown_text
import plot_embed
import pytest
import write_tables
from goals import GOALS, Results, Row, is_gpu, verdict
from record import RESULTS, newest, read

GPU = "NVIDIA H100 80GB HBM3"


def embed(**given: str) -> Row:
    """Return a row of the embedding, as bench_embed.py writes it."""
    row = {"date": "2026-11-24", "commit": "abc", "device": "Some CPU", "threads": "2", "torch": "2.14", "timm": "1.0"}
    row |= {"dtype": "float32", "source": "16x16", "sizes": "4..31", "batch": "32", "tokens": "800"}
    row |= {"pass": "forward+backward", "candidate": "ours, compiled", "ms": "120.0", "spread": "0.02"}
    row |= {"ratio_to_floor": "1.20", "peak_mib": "110.0", "memory_ratio": "1.10", "error": "1.0e-06"}
    return row | given


def encoder(**given: str) -> Row:
    """Return a row of the encoder, as bench_encoder.py writes it."""
    row = dict.fromkeys(bench_encoder.FIELDS, "")
    row |= {"date": "2026-11-24", "commit": "abc", "device": "Some CPU", "threads": "2", "torch": "2.14"}
    row |= {"model": "naflexvit_base_patch16_siglip", "dtype": "float32", "grids": "naflex", "batch": "8"}
    row |= {"tokens": "256", "technique": "ours torch.compile", "ms": "500.00", "spread": "0.010"}
    row |= {"images_per_s": "16.00", "speedup": "1.250", "peak_mib": "90.0", "embed_share": "0.0110"}
    row |= {"position_share": "0.0020", "error": "1.0e-06", "matrix_share": "0.7500"}
    return row | given


def packed(**given: str) -> Row:
    """Return a row of packed beside padded exports, as bench_packed.py writes it."""
    row = {"date": "2026-11-27", "commit": "abc", "device": "Some CPU", "threads": "2", "model": "tiny", "images": "8"}
    row |= {"tokens": "256", "padding": "0.198", "layout": "padded", "ms": "100.0", "speedup": "1.000"}
    row |= {"peak_mib": "200.0", "error": "1.0e-06"}
    return row | given


def tower(**given: str) -> Row:
    """Return a row of a vision tower, as bench_towers.py writes it."""
    row = {"date": "2026-11-27", "commit": "abc", "device": "Some CPU", "threads": "2", "tower": "qwen3_vl"}
    row |= {"images": "4", "tokens": "256", "step": "forward", "candidate": "own", "ms": "100.0", "speedup": "1.000"}
    return row | given


def words(results: Results) -> dict[str, str]:
    """Return what the goals say that were measured."""
    found = {goal.what: verdict(goal, results) for goal in GOALS}
    return {what: f"{said.value} {said.word}" for what, said in found.items() if said.measured}


def test_the_committed_page_is_of_the_rows() -> None:
    written = write_tables.PAGE.read_text()
    assert written == write_tables.page(write_tables.load(RESULTS)), "run python tools/write_tables.py"


def test_the_committed_section_of_the_readme_is_of_the_rows() -> None:
    said = write_tables.summary(write_tables.load(RESULTS))
    assert f"{write_tables.BEGIN}\n{said}\n{write_tables.END}" in write_tables.SHORT.read_text(), (
        "run python tools/write_tables.py"
    )


def test_the_committed_drawing_is_of_the_rows() -> None:
    rows = plot_embed.chosen(newest(read(RESULTS / "bench_embed.csv"), write_tables.KEYS["bench_embed"]))
    assert plot_embed.stamp(rows) in write_tables.PLOT.read_text(), "run python tools/plot_embed.py"


def test_nothing_measured_is_said_to_be_not_measured() -> None:
    page = write_tables.page(Results())
    assert all(f"- {goal.what}" in page for goal in GOALS)
    assert page.count("\nNot measured.\n") == 6
    said = write_tables.summary(Results())
    assert "The embedding has not been measured." in said and "The whole encoder has not been measured." in said
    assert "Nothing has been measured on a GPU" in said


def test_goals_are_met_missed_or_not_measured() -> None:
    assert words(Results()) == {}
    rows = [embed(), embed(source="32x32", ratio_to_floor="1.81"), embed(candidate="ours", ratio_to_floor="9")]
    said = words(Results(embed=[*rows, embed(candidate="timm's grid_sample", ms="100.0")]))
    assert list(said.values()) == [
        "1.20x on Some CPU met",
        "1.81x on Some CPU **missed**",
        "1.20x on Some CPU **missed**",
        "9.3% (worst of 2) on Some CPU met",
    ]


def test_a_goal_is_met_where_every_device_meets_it() -> None:
    rows = [embed(), embed(device="Another CPU", ratio_to_floor="1.51")]
    assert next(iter(words(Results(embed=rows)).values())) == "1.20x on Some CPU; 1.51x on Another CPU **missed**"
    rows[1]["ratio_to_floor"] = "1.50"
    assert next(iter(words(Results(embed=rows)).values())) == "1.20x on Some CPU; 1.50x on Another CPU met"


def test_time_of_a_token_is_compared_over_batches() -> None:
    rows = [embed(batch=batch, ms=ms) for batch, ms in (("8", "8"), ("32", "36"), ("128", "128"), ("512", "999"))]
    (varies,) = (text for what, text in words(Results(embed=rows)).items() if "how the time of a token varies" in what)
    assert varies == "12.5% on Some CPU met"
    assert not any("varies" in what for what in words(Results(embed=rows[1:])))


def test_packed_exports_are_compared_with_padded_ones_of_the_same_batches() -> None:
    rows = [packed(), packed(layout="packed", ms="80.0", speedup="1.250", peak_mib="150.0")]
    rows += [row | {"padding": "0.031"} for row in (packed(), packed(layout="packed", speedup="0.960", peak_mib="210"))]
    said = words(Results(packed=rows))
    assert list(said.values()) == [
        "1.25x on Some CPU met",
        "0.96x on Some CPU **missed**",
        "105.0% (worst of 2) on Some CPU **missed**",
    ]
    page = write_tables.page(Results(packed=rows))
    assert "| `tiny` | 8 | 256 | 19.8% | 100 | 80.0 | 1.25x | 200 | 150 | 1.0e-06 | Some CPU, 2 threads | abc |" in page


def test_towers_are_compared_with_each_models_own() -> None:
    rows = [tower(), tower(candidate="ours", ms="80.0", speedup="1.250"), tower(candidate="bare", speedup="2.000")]
    assert list(words(Results(towers=rows)).values()) == ["1.25x on Some CPU met"]
    on_gpu = words(Results(towers=[row | {"device": GPU} for row in rows]))
    assert [what for what in on_gpu if "on a GPU" in what] == list(on_gpu)
    page = write_tables.page(Results(towers=rows))
    assert "| qwen3_vl | 4 | 256 | forward | 100 | 80.0 | 1.25x | 2.00x | Some CPU, 2 threads | abc |" in page


def test_goals_of_a_gpu_take_rows_of_a_gpu_only() -> None:
    big = {"batch": "256", "dtype": "bfloat16"}
    rows = [
        encoder(**big, device=device, grids=grids, technique=technique, ms=ms, speedup=speedup)
        for device in (GPU, "Some CPU")
        for grids, technique, ms, speedup in (
            ("naflex", "ours torch.compile", "10", "2.5"),
            ("naflex", "timm torch.compile", "9", "2.8"),
            ("different", "ours torch.compile", "10", "3.5"),
            ("naflex", "ours TensorRT", "5", "5.0"),
        )
    ]
    said = words(Results(encoder=rows, suite=[{"device": GPU, "step": "tests", "code": "1"}]))
    found = {what.split("on a GPU")[-1].strip(", :"): text for what, text in said.items()}
    assert found == {
        "all grids different: ours compiled over timm eager": f"3.50x on {GPU} **missed**",
        "NaFlex's size rule: ours compiled over timm eager": f"2.50x on {GPU} met",
        "ours over timm's own torch.compile": f"0.90x on {GPU} **missed**",
        "ours compiled: all ahead of the first block, as a share of the time": f"1.1% (worst of 2) on {GPU} met",
        "ours compiled: share of the GPU's measured matrix rate": f"75.0% (worst of 2) on {GPU} met",
        "TensorRT over timm eager": f"5.00x on {GPU} met",
        "no host synchronisation in the compiled forward, replay as a CUDA graph, each backend judged": (
            f"1.00 is the exit code on {GPU} **missed**"
        ),
    }
    assert not words(Results(encoder=rows[4:]))
    assert is_gpu("Tesla T4") and not is_gpu("AMD EPYC") and not is_gpu("Intel(R) Xeon(R) Processor")


def test_tests_on_a_gpu_pass_where_those_of_each_target_do_that_ran() -> None:
    whole = {"device": GPU, "step": "tests", "code": "1"}
    targets = [{"device": GPU, "step": f"tests {name}", "code": code} for name, code in (("aot", "0"), ("trt", "3"))]
    out_of_time = {"device": GPU, "step": "tests compile", "code": "124"}

    def said(*rows: Row) -> list[str]:
        return list(words(Results(suite=list(rows))).values())

    assert said(whole, *targets) == [f"0.00 is the exit code on {GPU} met"]
    assert said(*targets, out_of_time) == [f"124.00 is the exit code (worst of 2) on {GPU} **missed**"]
    assert said(targets[1]) == []


def test_a_page_has_each_row_and_each_reason() -> None:
    missing = encoder(technique="ours TensorRT", failure="no CUDA device", **dict.fromkeys(("ms", "spread"), ""))
    results = Results(
        embed=[embed(candidate="floor", ratio_to_floor="1.00", memory_ratio="1.00", error=""), embed()],
        encoder=[encoder(), missing],
    )
    page = write_tables.page(results)
    assert "### Some CPU, 2 threads, float32" in page
    assert "| 16x16 | 4..31 | 32 | forward+backward | 120.0 | 1.20 (1.0e-06) |" in page
    assert "| 16x16 | 4..31 | 32 | forward+backward | 110.0 | 1.10 |" in page
    assert "| ours torch.compile | 500 | 16.00 | 1.25x | 90.0 | 1.1% | 0.2% | 75.0% | 1.0e-06 |" in page
    assert "- ours TensorRT was not run: no CUDA device" in page
    said = write_tables.summary(results)
    assert "| 16x16 | 32 | 1.20 |" in said
    assert "| ours torch.compile | 500 | 1.25x | 90.0 | 1.0e-06 |" in said


def test_the_readme_shows_one_model() -> None:
    other = encoder(model="another", ms="123.0")
    said = write_tables.summary(Results(encoder=[encoder(), other]))
    assert "| 500 |" in said and "123" not in said
    page = write_tables.page(Results(encoder=[encoder(), other]))
    assert "| 500 |" in page and "| 123 |" in page


def test_rows_without_memory_have_no_table_of_it() -> None:
    old = {name: value for name, value in embed().items() if name not in ("peak_mib", "memory_ratio")}
    assert "Peak memory" not in write_tables.page(Results(embed=[old]))


def test_a_section_is_replaced_between_its_marks() -> None:
    assert markdown_text.section("a\n<b>\nold\n<e>\nz", "<b>", "<e>", "new\\1") == "a\n<b>\nnew\\1\n<e>\nz"
    with pytest.raises(ValueError, match="expected one section from <b> to <e>"):
        markdown_text.section("a\n<b>\nz", "<b>", "<e>", "new")


def test_columns_of_figures_are_to_the_right() -> None:
    text = markdown_text.table(["name", "ms", "error"], [["a", "1.5", "1.2 (1e-06)"], ["b", "-", ""]])
    assert text.splitlines() == [
        "| name | ms | error |",
        "| --- | --: | --: |",
        "| a | 1.5 | 1.2 (1e-06) |",
        "| b | - |  |",
    ]
    assert (markdown_text.figure("123.4"), markdown_text.figure("12.34"), markdown_text.figure("")) == (
        "123",
        "12.3",
        "",
    )


def test_a_drawing_has_a_line_for_each_candidate(tmp_path: Path) -> None:
    rows = [embed(batch=batch, candidate=name) for batch in ("8", "32") for name in ("floor", "ours", "timm's loop")]
    rows += [embed(sizes="naflex576", candidate="ours"), embed(dtype="bfloat16", candidate="ours in bfloat16")]
    drawn = plot_embed.chosen(rows)
    plot_embed.draw(drawn, tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    assert plot_embed.stamp(drawn) in text
    assert "timm's loop" in text and "source 16x16" in text and "bfloat16" not in text
    assert plot_embed.stamp(drawn) != plot_embed.stamp([*drawn[:-1], {**drawn[-1], "ratio_to_floor": "9.99"}])
    with pytest.raises(ValueError, match="run tools/bench_embed.py first"):
        plot_embed.draw([], tmp_path / "b.svg")
