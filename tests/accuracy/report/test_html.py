"""The report's page: whole, safe, readable, and true to the figures."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder

import pytest
import reports

from naflex_export.accuracy.case_grids import naflex_grids
from naflex_export.accuracy.report import style
from naflex_export.accuracy.report.formats import write
from naflex_export.accuracy.report.html import as_html
from naflex_export.accuracy.report.svg import ColourScale, LogAxis
from naflex_export.accuracy.results import GateReport, Location, Tap

REPORTS = [reports.passing, reports.failing, reports.not_finite, reports.empty]
MANY = ["1x256", "255x1", "2x3", *map(str, naflex_grids(256))]


class Page(HTMLParser):
    """A page's elements; fails where one is not closed in its place."""

    VOID = ("meta",)

    def __init__(self, page: str) -> None:
        super().__init__()
        self._builder, self._open = TreeBuilder(), list[str]()
        self.feed(page)
        self.close()
        assert self._open == []
        self.root = self._builder.close()

    @property
    def text(self) -> str:
        """What a reader sees, in one line."""
        (main,) = self.root.iter("main")
        return " ".join(" ".join(main.itertext()).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._builder.start(tag, {name: value or "" for name, value in attrs})
        if tag in self.VOID:
            self._builder.end(tag)
        else:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        self._builder.end(tag)

    def handle_data(self, data: str) -> None:
        if self._open:
            self._builder.data(data)


def drawings(page: str, name: str = "") -> list[Element]:
    """Return the drawings whose label begins with a name."""
    found = [svg for svg in Page(page).root.iter("svg") if svg.get("role") == "img"]
    return [svg for svg in found if svg.get("aria-label", "").startswith(name)]


def places(svg: Element) -> dict[str, tuple[float, float]]:
    """Return where each grid's cell is, x in percent and y in pixels."""
    cells = [cell for cell in svg.iter("g") if cell.get("data-grid")]
    found = {}
    for cell in cells:
        (rectangle,) = cell.findall("rect")
        found[cell.attrib["data-grid"]] = (percent(rectangle, "x"), float(rectangle.attrib["y"]))
    return found


def percent(element: Element, attribute: str) -> float:
    return float(element.attrib[attribute].removesuffix("%"))


@pytest.mark.parametrize("make", REPORTS)
def test_the_page_is_well_formed_and_stands_alone(make: Callable[[], GateReport]) -> None:
    page = as_html(make())
    elements = list(Page(page).root.iter())
    assert page.startswith("<!doctype html>\n<html") and 'charset="utf-8"' in page
    assert {element.tag for element in elements}.isdisjoint({"script", "link", "img", "iframe", "object", "a"})
    assert {name for element in elements for name in element.attrib}.isdisjoint({"src", "href", "onload"})
    assert not re.search(r"https?:|url\(|@import", page)


def test_text_is_only_text() -> None:
    hostile = '</svg><script>alert("1")</script>&amp;\'\x1b[31m'
    bent = replace(
        reports.failing(), problems=(f"{hostile}: raised",), judged=hostile, skipped_photos={hostile: hostile}
    )
    bent = replace(
        bent,
        results=tuple(replace(result, case=hostile, output=hostile) for result in bent.results),
        location=Location(hostile, (Tap(hostile, 1.0, 0.1, 1, 1, 65504.0),), hostile),
        distributions=tuple(replace(found, output=hostile) for found in bent.distributions),
        artifact=replace(reports.SUBJECT, model=hostile),
    )
    page = as_html(bent)
    parsed = Page(page)
    assert list(parsed.root.iter("script")) == [] and "\x1b" not in page
    assert parsed.text.count('</svg><script>alert("1")</script>&amp;\'\N{REPLACEMENT CHARACTER}[31m') > 10
    assert len(drawings(page, "Relative L2 error of each module")) == 1


def test_the_verdict_comes_first_and_says_why() -> None:
    passed, failed = Page(as_html(reports.passing())).text, Page(as_html(reports.failing())).text
    assert passed.index("Accuracy gate: passed") < passed.index("Worst of all cases")
    assert "2 of 2 cases are within the limits of float32; 1 of 1 invariances hold." in passed
    assert "What failed" not in passed and "FAIL" not in passed
    order = ["Accuracy gate: FAILED", "Judged instead", "First deviation", "What failed", "Error by grid", "Cases"]
    assert sorted(order, key=failed.index) == order
    for line in reports.failing().failures:
        assert line in failed
    assert "naflex-gate ARTIFACT --case photos-24-0 --case mixed-24-seed0" in failed
    assert "naflexvit_base_patch16_siglip" in failed and "torch 2.14.0" in failed and "notes.txt" in failed
    assert "Keep blocks.1.attn in float32." in failed and "float16 holds up to 65504" in failed


@pytest.mark.parametrize("grids", [["3x7"], ["3x7", "7x3", "1x24", "24x1"], MANY], ids=["one", "few", "many"])
def test_every_grid_has_its_cell_and_h_is_not_w(grids: list[str]) -> None:
    (svg,) = drawings(as_html(reports.with_grids(grids)), "Heat map")
    found = places(svg)
    assert set(found) == set(grids)
    for one, (x, y) in found.items():
        for other, (other_x, other_y) in found.items():
            (h, w), (other_h, other_w) = map(int, one.split("x")), map(int, other.split("x"))
            assert (x < other_x) == (w < other_w), f"{one} and {other}: wider is further right"
            assert (y < other_y) == (h > other_h), f"{one} and {other}: taller is further up"
    labels = [text for text in svg.iter("text") if "tick" in text.get("class", "")]
    rows = {text.text: float(text.attrib["y"]) for text in labels if "end" in text.attrib["class"]}
    columns = {text.text: percent(text, "x") for text in labels if "middle" in text.attrib["class"]}
    for grid, (x, y) in found.items():
        height, width = grid.split("x")
        assert height not in rows or 0 < rows[height] - y < 30
        assert width not in columns or 0 < columns[width] - x < 12
    assert max(x for x, _ in found.values()) < 100


def test_cells_do_not_cover_each_other() -> None:
    (svg,) = drawings(as_html(reports.with_grids(MANY)), "Heat map")
    assert len(set(places(svg).values())) == len(set(MANY))
    cells = [cell.find("rect") for cell in svg.iter("g") if cell.get("data-grid")]
    (width,) = {percent(cell, "width") for cell in cells if cell is not None}
    (height,) = {float(cell.attrib["height"]) for cell in cells if cell is not None}
    xs, ys = (sorted({place[axis] for place in places(svg).values()}) for axis in (0, 1))
    assert min(after - before for before, after in pairwise(xs)) > width
    assert min(after - before for before, after in pairwise(ys)) > height


def test_a_cell_says_what_was_measured() -> None:
    (svg,) = drawings(as_html(reports.failing()), "Heat map")
    cells = {cell.attrib["data-grid"]: cell for cell in svg.iter("g") if cell.get("data-grid")}
    assert cells["3x7"].findtext("title") == (
        "grid 3x7 (height x width), 1 image: relative L2 error 3e-1, largest difference 6e-1, 1 - cosine 4.5e-2"
    )
    assert [cells[grid].findtext("text") for grid in ("7x3", "3x7", "1x24")] == ["5e-4", "3e-1", "2"]
    assert "within" in cells["7x3"].attrib["class"] and "over" in cells["3x7"].attrib["class"]


def test_colours_change_at_the_limit_and_the_legend_says_where() -> None:
    scale = ColourScale.over([1e-7, 3e-2], 1e-4)
    assert [scale.step(error) for error in (0.0, 1e-7, 1e-4, 1.001e-4, 3e-2)] == [
        "within0",
        "within0",
        "within5",
        "over0",
        "over3",
    ]
    assert scale.step(math.nan) == scale.step(math.inf) == "notfinite"
    errors = [10.0**exponent for exponent in range(-7, 0)]
    steps = [scale.step(error) for error in errors]
    assert steps == sorted(steps, reverse=True, key=lambda step: (step.startswith("within"), -int(step[-1])))

    (legend,) = drawings(as_html(reports.failing()), "Colours")
    texts = [text.text for text in legend.iter("text")]
    assert "limit 1e-2" in texts and "1e-3" in texts
    (mark,) = (line for line in legend.iter("line") if line.get("class") == "limit")
    swatches = {rectangle.attrib["class"].split()[1]: rectangle for rectangle in legend.iter("rect")}
    assert percent(swatches["over0"], "x") == pytest.approx(percent(mark, "x1"), abs=0.01)
    last = swatches["within5"]
    assert percent(last, "x") + percent(last, "width") == pytest.approx(percent(mark, "x1"), abs=0.01)


def test_an_error_above_the_limit_is_told_without_colour_and_without_room() -> None:
    (svg,) = drawings(as_html(reports.with_grids(MANY, 0.5)), "Heat map")
    assert {cell.findtext("text") for cell in svg.iter("g")} == {"\N{MULTIPLICATION SIGN}"}


def test_every_module_is_drawn_in_order_and_the_first_deviation_marked() -> None:
    report = reports.failing()
    (svg,) = drawings(as_html(report), "Relative L2 error of each module")
    marks = [mark for mark in svg.iter("g") if mark.get("data-module")]
    modules = ["embeds", "blocks.0.attn", "blocks.0", "blocks.1.attn", "blocks.1"]
    assert [mark.attrib["data-module"] for mark in marks] == modules
    assert [mark.attrib["class"] for mark in marks] == ["holds"] * 3 + ["deviates"] * 2
    points = [mark.find("svg") for mark in marks]
    places = [(percent(point, "x"), float(point.attrib["y"])) for point in points if point is not None]
    xs, ys = [x for x, _ in places], [y for _, y in places]
    assert ys == sorted(ys) and xs == sorted(xs), "these errors grow; what is not a number lies beyond all"
    (first,) = (mark for mark in marks if any(text.text == "first deviation" for text in mark.iter("text")))
    assert first.attrib["data-module"] == "blocks.1.attn"
    floors = {percent(line, "x1") for line in svg.iter("line") if line.get("class") == "floor"}
    assert len(floors) == 1 and xs[2] < floors.pop() < xs[3]
    assert "not finite" in [text.text for text in svg.iter("text")]


def test_places_on_the_log_axis() -> None:
    axis = LogAxis.over([0.0, 2e-5, 3e-2, math.nan, math.inf])
    assert (axis.low, axis.high) == (-5, -1)
    assert [axis.at(value) for value in (0.0, 1e-5, 1e-3, 0.1, 7.0)] == pytest.approx([0, 0, 0.5, 1, 1])
    assert LogAxis.over([]) == LogAxis.over([0.1, 1.0]) and LogAxis.over([1e-3]).low == -3
    assert list(LogAxis(-12, 0).ticks(6)) == [-12, -10, -8, -6, -4, -2, 0]


@pytest.mark.parametrize(
    ("location", "said"),
    [
        (None, ""),
        (Location("mixed-24-seed0", unavailable="an engine shows no modules"), "Not known: an engine shows no modules"),
        (Location("mixed-24-seed0", reports.taps()[:3]), "None in 3 modules and outputs on mixed-24-seed0."),
    ],
    ids=["not-looked-for", "unavailable", "no-deviation"],
)
def test_a_report_with_no_deviation(location: Location | None, said: str) -> None:
    page = as_html(replace(reports.failing(), location=location))
    assert said in Page(page).text and ("First deviation" in page) == bool(said)
    assert ("Error by layer" in page) == bool(location and location.taps)
    assert ">first deviation<" not in page


def test_bars_are_as_long_as_their_counts() -> None:
    (svg,) = drawings(as_html(reports.failing()), "Distribution")
    bars = {bar.findtext("title"): bar.find("rect") for bar in svg.iter("g")}
    lengths = {str(title).split(" values ")[0]: percent(bar, "width") for title, bar in bars.items() if bar is not None}
    assert set(lengths) == {
        "candidate: 50 of 100",
        "baseline: 75 of 100",
        "baseline: 24 of 100",
        "baseline: 1 of 100",
    }
    assert lengths["candidate: 50 of 100"] / lengths["baseline: 75 of 100"] == pytest.approx(2 / 3, abs=1e-3)
    titles = [str(title) for title in bars]
    assert "candidate: 50 of 100 values have an error of 1e-4 to 1e-3" in titles
    texts = [text.text for text in svg.iter("text")]
    assert texts.index("1e-2 to 1e-1") < texts.index("1e-3 to 1e-2") < texts.index("1e-4 to 1e-3")
    assert "75.0%" in texts and "1.0%" in texts


def test_errors_of_any_size_have_a_place() -> None:
    errors = {"1x1": 1e-30, "1x2": 0.97, "1x3": 3e30, "1x4": 0.0}
    page = as_html(replace(reports.passing(), results=(reports.case("mixed-24-seed0", errors),)))
    (svg,), (legend,) = drawings(page, "Heat map"), drawings(page, "Colours")
    texts = [cell.findtext("text") for cell in svg.iter("g") if cell.get("data-grid")]
    assert texts == ["1e-30", "9.7e-1", "3e30", "0"]
    assert len([text for text in legend.iter("text") if "tick" in text.attrib["class"]]) <= 8


@pytest.mark.parametrize("make", REPORTS)
def test_no_coordinate_is_not_a_number(make: Callable[[], GateReport]) -> None:
    for svg in drawings(as_html(make())):
        for element in svg.iter():
            for name in ("x", "y", "x1", "x2", "y1", "y2", "width", "height", "dx"):
                assert math.isfinite(float(element.get(name, "0").removesuffix("%")))


def test_figures_that_are_no_numbers_are_named() -> None:
    page = as_html(reports.not_finite())
    (svg,) = drawings(page, "Heat map")
    cells = {cell.attrib["data-grid"]: cell for cell in svg.iter("g") if cell.get("data-grid")}
    assert [cells[grid].findtext("text") for grid in ("1x24", "24x1", "4x6")] == ["NaN", "inf", "2e-7"]
    assert "notfinite" in cells["1x24"].attrib["class"]
    text = Page(page).text
    assert "NaN" in text and "infinite" in text and "not finite" in text and "nan%" not in text


def test_a_report_of_nothing_says_so() -> None:
    text = Page(as_html(reports.empty())).text
    assert "Accuracy gate: FAILED" in text and "Nothing was compared." in text and "nothing was compared" in text
    assert "Error by grid" not in text and "naflex-gate ARTIFACT --case" not in text


def test_limits_and_all_figures_are_in_the_tables() -> None:
    text = Page(as_html(reports.failing())).text
    assert "limit float16 2e-2 1e-2 4.5e-4" in text
    assert "features 2e-1 7e-4 286x 2x, 0.01 FAIL" in text
    assert "padding's content 24 2e-1 FAIL" in text
    assert "blocks.0.attn 4e-4 2e-3 90 91 65504" in text


def test_several_outputs_each_have_their_drawing() -> None:
    one = reports.passing()
    both = replace(one, results=(*one.results, *(replace(result, output="tokens") for result in one.results)))
    page = as_html(both)
    labels = [svg.attrib["aria-label"] for svg in drawings(page, "Heat map")]
    assert [label.split(" of ")[1].split()[0] for label in labels] == ["features", "tokens"]
    assert "4 of 4 comparisons (an output of a case each) are within" in page


def test_long_lists_are_folded() -> None:
    cases = tuple(reports.case(f"mixed-24-seed{seed}", {"4x6": 0.5}) for seed in range(30))
    page = as_html(replace(reports.passing(), results=cases))
    assert "18 more" in page and "All 30 as a table" in page
    assert page.index("mixed-24-seed11 [features]") < page.index("<summary>18 more") < page.index("mixed-24-seed12 [f")


def luminance(colour: str) -> float:
    """Return the relative luminance of WCAG 2.2 of a colour such as #0b5a9d."""
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("colours", [style.LIGHT, style.DARK], ids=["light", "dark"])
def test_contrast_passes_wcag_aa(colours: dict[str, str]) -> None:
    texts = [("ink", "ground"), ("ink", "card"), ("ink", "tint"), ("muted", "ground"), ("muted", "card")]
    texts += [("bad", "ground"), ("good", "ground"), ("on-verdict", "good"), ("on-verdict", "bad"), ("bad", "tint")]
    texts += [(f"on-{kind}", f"{kind}{step}") for kind, steps in (("within", 6), ("over", 4)) for step in range(steps)]
    texts += [("ground", "ink")]
    for text, behind in texts:
        assert contrast(colours[text], colours[behind]) >= 4.5, f"{text} on {behind}"
    for mark in ("good", "bad", "edge", "muted"):
        assert contrast(colours[mark], colours["ground"]) >= 3, mark
    steps = [luminance(colours[name]) for name in colours if re.fullmatch(r"(within|over)\d", name)]
    assert steps == sorted(steps, reverse=colours is style.LIGHT), "lightness alone orders the errors"


def test_both_schemes_have_every_colour_that_is_used() -> None:
    used = set(re.findall(r"var\(--([a-z0-9-]+)\)", style.stylesheet()))
    assert used == set(style.LIGHT) == set(style.DARK)
    assert "@media screen and (prefers-color-scheme:dark)" in style.stylesheet()


def test_the_page_is_written_by_suffix(tmp_path: Path) -> None:
    write(reports.passing(), tmp_path / "gate.html")
    assert (tmp_path / "gate.html").read_text(encoding="utf-8") == as_html(reports.passing())
