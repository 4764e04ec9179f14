"""The drawings of a report's page, as plain SVG: error by grid, by layer and by size, and which sizes were covered.

Lengths along x are percentages of the drawing's width and lengths along y are pixels: a drawing takes the width that
there is, on a phone as on paper, and its text keeps its size. Colours are classes of the page's style sheet.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from naflex_export.accuracy.report.markup import tag
from naflex_export.accuracy.report.phrases import distance, number
from naflex_export.accuracy.results import (
    CellCount,
    Distribution,
    Location,
    PrecisionSearch,
    SearchStep,
    Summary,
    Tap,
)

WITHIN_STEPS, OVER_STEPS = 6, 4
"""Steps of colour up to the limit, and above it."""

FEW_COLUMNS, MANY_COLUMNS = 14, 28
"""Up to which a cell is wide enough for its figure on a small screen, and on a wide one."""

WIDTH = 920
"""Of the page's text, in pixels: the widest that a drawing can be."""


@dataclass(frozen=True)
class LogAxis:
    """A logarithmic axis over whole powers of ten, from `low` to `high`."""

    low: int
    high: int

    @classmethod
    def over(cls, values: Iterable[float]) -> LogAxis:
        """Return the axis that holds all values that have a place on one: those that are finite and above zero."""
        exponents = [math.log10(value) for value in values if _has_place(value)] or [-1.0, 0.0]
        low, high = math.floor(min(exponents)), math.ceil(max(exponents))
        return cls(low, max(high, low + 1))

    def at(self, value: float) -> float:
        """Return where a value lies, from 0 to 1; zero and what is below the axis lies at its start."""
        if value <= 0:
            return 0.0
        return min(1.0, max(0.0, (math.log10(value) - self.low) / (self.high - self.low)))

    def ticks(self, most: int = 6) -> range:
        """Return exponents to mark: all of them, or every second or third and so on where that makes too many."""
        return range(self.low, self.high + 1, max(1, math.ceil((self.high - self.low) / most)))


@dataclass(frozen=True)
class ColourScale:
    """Steps of colour for errors: one family of hues up to the limit, another above it."""

    axis: LogAxis
    limit: float

    @classmethod
    def over(cls, values: Iterable[float], limit: float) -> ColourScale:
        """Return the scale for some errors; it begins at least one power of ten below the limit."""
        exponents = [math.log10(value) for value in (limit, *values) if _has_place(value)]
        low = min(math.floor(min(exponents)), math.floor(math.log10(limit)) - 1)
        return cls(LogAxis(low, math.ceil(max(exponents))), limit)

    def step(self, value: float) -> str:
        """Return the class of a value's colour: `within0` is the smallest error, `over3` the largest."""
        if not math.isfinite(value):
            return "notfinite"
        at, limit = self.axis.at(value), self.axis.at(self.limit)
        if value <= self.limit:
            return f"within{min(WITHIN_STEPS - 1, int(WITHIN_STEPS * at / limit))}"
        return f"over{min(OVER_STEPS - 1, int(OVER_STEPS * (at - limit) / (1 - limit)))}"

    def steps(self) -> list[tuple[str, float, float]]:
        """Return the class of each step with where it begins and ends on the axis."""
        limit = self.axis.at(self.limit)
        within = [(f"within{n}", limit * n / WITHIN_STEPS, limit * (n + 1) / WITHIN_STEPS) for n in range(WITHIN_STEPS)]
        if limit == 1:
            return within
        width = (1 - limit) / OVER_STEPS
        return within + [(f"over{n}", limit + n * width, limit + (n + 1) * width) for n in range(OVER_STEPS)]


def heat_map(grids: Sequence[Summary], limit: float, output: str) -> Element:
    """Return relative L2 error by grid: a column for each width, a row for each height, the tallest on top.

    NaFlex's grids lie close to the curve h * w = tokens, from N x 1 to 1 x N. Rows and columns are only for the sizes
    that occur, in order and all of one size: on a linear or a logarithmic axis most cells would cover each other.

    Args:
        grids: the worst image of each grid, of one output.
        limit: of relative L2.
        output: its name.
    """
    scale = ColourScale.over([found.relative_l2 for found in grids], limit)
    sizes = {found.of: _sides(found.of) for found in grids}
    heights = sorted({height for height, _ in sizes.values()}, reverse=True)
    widths = sorted({width for _, width in sizes.values()})
    labelled = len(widths) <= MANY_COLUMNS
    row, top, left = 26 if labelled else 14 if len(heights) <= 50 else 11, 24, 9.0
    column = min((98 - left) / len(widths), 12.0)
    narrowest = 0 if labelled else round(8 * len(widths) / (1 - left / 100))
    widest = max(320, min(WIDTH, round(52 * 100 / column)))
    bottom, gap = top + row * len(heights), 0.2
    drawing = [
        tag("text", "\N{UPWARDS ARROW} height, in patches", x="0%", y=12, class_="axis"),
        tag("text", "width, in patches \N{RIGHTWARDS ARROW}", x=_share(left), y=bottom + 34, class_="axis"),
        *_row_labels(heights, top, row, left),
        *_column_labels(widths, left, column, (bottom + 15, max(narrowest, 340), widest)),
        *_jumps(heights, widths, (left, column), (top, row)),
    ]
    for found in grids:
        height, width = sizes[found.of]
        x, y = left + column * widths.index(width), top + row * heights.index(height)
        step = scale.step(found.relative_l2)
        cell = tag("g", class_=f"cell {step}", data_grid=found.of)
        cell.append(tag("title", _told(found)))
        cell.append(tag("rect", x=_share(x), y=y + 0.5, width=_share(column - gap), height=row - 1))
        if labelled:
            cell.append(_middle(_short(found.relative_l2), x + column / 2, y + row / 2 + 4, "figure"))
        elif not step.startswith("within"):
            cell.append(_middle("\N{MULTIPLICATION SIGN}", x + column / 2, y + row / 2 + 4, "cross"))
        drawing.append(cell)
    return _drawing(
        f"Heat map: relative L2 error of {output} by grid height and width",
        bottom + 40,
        drawing,
        f"min-width:{narrowest}px;max-width:{widest}px",
        "few" if len(widths) <= FEW_COLUMNS else "many",
    )


def colour_legend(grids: Sequence[Summary], limit: float) -> Element:
    """Return the heat map's colours with the errors that they stand for, the limit marked."""
    scale = ColourScale.over([found.relative_l2 for found in grids], limit)

    def at(share: float) -> float:
        return 4 + 92 * share

    drawing = [
        tag("rect", x=_share(at(start)), y=22, width=_share(92 * (end - start)), height=14, class_=f"swatch {step}")
        for step, start, end in scale.steps()
    ]
    place = at(scale.axis.at(limit))
    drawing.append(tag("line", x1=_share(place), x2=_share(place), y1=16, y2=40, class_="limit"))
    drawing.append(tag("text", f"limit {number(limit)}", x=_share(place), y=12, class_=_anchor(place)))
    drawing += [_middle(_power(power), at(scale.axis.at(10.0**power)), 52, "tick") for power in scale.axis.ticks()]
    return _drawing(f"Colours of the heat map, with the limit {number(limit)} marked", 58, drawing, "max-width:460px")


def layer_plot(location: Location) -> Element:
    """Return relative L2 error by module, in the order in which the reference runs them, with each one's floor."""
    taps = location.taps
    axis = LogAxis.over([value for tap in taps for value in (tap.relative_l2, tap.floor)])
    names = 7 * max(len(tap.module) for tap in taps) + 16  # pixels
    left, right, top, row = min(48.0, max(20.0, names / 3.6)), 90.0, 44, 18 if len(taps) <= 70 else 14
    height = top + row * len(taps)
    special = any(not math.isfinite(tap.relative_l2) for tap in taps)

    def at(value: float) -> float:
        return left + 1 + (right - left - 2) * axis.at(value) if math.isfinite(value) else 95.5

    drawing = [_middle("relative L2 error, log scale", (left + right) / 2, 12, "axis")]
    for power in axis.ticks():
        x = _share(at(10.0**power))
        drawing.append(tag("line", x1=x, x2=x, y1=top - 8, y2=height + 4, class_="gridline"))
        drawing += [_middle(_power(power), at(10.0**power), y, "tick") for y in (top - 14, height + 18)]
    if special:
        drawing += [_middle("not finite", 95.5, y, "tick") for y in (top - 14, height + 18)]
    lines, marks = [], []
    for number_, tap in enumerate(taps):
        y = top + row * number_ + row / 2
        is_first = tap is location.first
        if is_first:
            drawing.append(tag("rect", x="0%", y=y - row / 2, width="100%", height=row, class_="first"))
        lines.append(_line((at(tap.floor), y - row / 2), (at(tap.floor), y + row / 2), "floor"))
        if number_:
            before = taps[number_ - 1]
            lines.append(_line((at(before.floor), y - row / 2), (at(tap.floor), y - row / 2), "floor"))
            lines.append(_line((at(before.relative_l2), y - row), (at(tap.relative_l2), y), "trend"))
        marks.append(_tap_mark(tap, at(tap.relative_l2), y, left, is_first))
    drawing += [*lines, *marks]
    style = f"min-width:{100 * names / left:.0f}px;max-width:{names + 560}px"
    return _drawing(f"Relative L2 error of each module on {location.case}", height + 24, drawing, style, "tall")


def search_plot(found: PrecisionSearch) -> Element:
    """Return relative L2 error by estimated time, a mark for each trial of a search, numbered in their order."""
    steps = found.steps
    axis, dearest = LogAxis.over([step.relative_l2 for step in steps]), max(1.1, *(step.cost for step in steps))
    left, right, top, height = 12.0, 92.0, 44, 220

    def at(step: SearchStep) -> tuple[float, float]:
        x = left + (right - left) * (step.cost - 1) / (dearest - 1)
        share = axis.at(step.relative_l2) if math.isfinite(step.relative_l2) else 1.0
        return x, top + height * (1 - share) - (0 if math.isfinite(step.relative_l2) else 20)

    drawing = [tag("text", "\N{UPWARDS ARROW} relative L2 error, log scale", x="0%", y=12, class_="axis")]
    for power in axis.ticks():
        y = top + height * (1 - axis.at(10.0**power))
        drawing.append(_line((left, y), (right, y), "gridline"))
        drawing.append(tag("text", _power(power), x=_share(left - 1), y=y + 4, class_="end tick"))
    if not all(math.isfinite(step.relative_l2) for step in steps):
        drawing.append(tag("text", "not finite", x=_share(left - 1), y=top - 16, class_="end tick"))
    for share in (0.0, 0.5, 1.0):
        drawing.append(
            _middle(f"{1 + share * (dearest - 1):.2f}x", left + share * (right - left), top + height + 20, "tick")
        )
    drawing.append(_middle("estimated time \N{RIGHTWARDS ARROW}", (left + right) / 2, top + height + 38, "axis"))
    for index, step in enumerate(steps, 1):
        x, y = at(step)
        mark = tag("g", class_="holds" if step.passed else "deviates")
        mark.append(tag("title", f"{index}: {','.join(step.keep_float32) or 'nothing kept'}"))
        shape = tag("circle", cx=0, cy=y, r=5) if step.passed else tag("path", d=f"M0 {y - 6} 6 {y} 0 {y + 6} -6 {y}z")
        mark.append(tag("svg", shape, x=_share(x), y=0, overflow="visible"))
        strong = "middle strong" if step.keep_float32 == found.found else "middle"
        mark.append(tag("text", str(index), x=_share(x), y=y - 9, class_=strong))
        drawing.append(mark)
    title = "Relative L2 error and estimated time of each trial"
    return _drawing(title, top + height + 44, drawing, "min-width:320px;max-width:620px")


def coverage_maps(cells: Sequence[CellCount]) -> list[Element]:
    """Return a drawing for each pair of axes: a row and a column for their strata, a square for each cell there is."""
    return [
        _coverage_map([cell for cell in cells if cell.axes == axes]) for axes in dict.fromkeys(c.axes for c in cells)
    ]


def _coverage_map(cells: Sequence[CellCount]) -> Element:
    rows, columns = (list(dict.fromkeys(cell.strata[axis] for cell in cells)) for axis in (0, 1))
    left, row, top = 22.0, 20, 44
    column = min((100 - left) / len(columns), 10.0)
    (down, across), covered = cells[0].axes, sum(cell.batches > 0 for cell in cells)
    title = f"{down} by {across}: {covered} of {len(cells)} cells covered"
    drawing = [tag("text", title, x="0%", y=12, class_="axis strong")]
    drawing += [_middle(name, left + column * (place + 0.5), 34, "tick") for place, name in enumerate(columns)]
    for place, name in enumerate(rows):
        drawing.append(tag("text", name, x=_share(left), dx=-6, y=top + row * place + 14, class_="end tick"))
    for cell in cells:
        x, y = left + column * columns.index(cell.strata[1]), top + row * rows.index(cell.strata[0])
        drawn = tag("g", class_=f"cell {'within3' if cell.batches else 'uncovered'}")
        drawn.append(tag("title", f"{down} {cell.strata[0]}, {across} {cell.strata[1]}: {cell.batches} batches"))
        drawn.append(tag("rect", x=_share(x), y=y + 0.5, width=_share(column - 0.3), height=row - 1))
        if cell.batches:
            drawn.append(_middle(str(cell.batches), x + column / 2, y + 14, "figure"))
        drawing.append(drawn)
    style = f"min-width:{max(420, 70 * len(columns))}px;max-width:{WIDTH}px"
    return _drawing(f"Sizes covered, {title}", top + row * len(rows) + 8, drawing, style)


def distribution_plot(found: Sequence[Distribution]) -> Element:
    """Return the share of values with an error of each size: a row for each decade, a bar for each side."""
    rows = _decades_that_occur(found)
    most = max((count / max(1, sum(side.counts)) for side in found for count in side.counts), default=1.0) or 1.0
    left, bar, top = 29.0, 12, 6
    row = bar * len(found) + 9
    drawing = [tag("line", x1=_share(left), x2=_share(left), y1=0, y2=top + row * len(rows), class_="base")]
    for place, index in enumerate(rows):
        y = top + row * place
        middle = y + bar * len(found) / 2 + 4
        drawing.append(tag("text", _decade(found[0].decades, index), x=_share(left), dx=-8, y=middle, class_="end"))
        for number_, side in enumerate(found):
            drawing.append(_bar(side, index, most, (left, y + bar * number_, bar)))
    title = f"Distribution of the errors of single values of {found[0].output}"
    return _drawing(title, top + row * len(rows), drawing, "max-width:640px")


def _bar(side: Distribution, index: int, most: float, place: tuple[float, float, float]) -> Element:
    """Return one bar with its figure; a bar of any value at all is at least a hairline."""
    left, y, height = place
    count, total = side.counts[index], max(1, sum(side.counts))
    length = 54 * count / total / most
    bar = tag("g", class_=side.of)
    errors = _decade(side.decades, index)
    bar.append(tag("title", f"{side.of}: {count} of {total} values have an error of {errors}"))
    if count:
        bar.append(tag("rect", x=_share(left), y=y + 1, width=_share(max(length, 0.3)), height=height - 2))
        bar.append(tag("text", _portion(count, total), x=_share(left + max(length, 0.3)), dx=6, y=y + height - 2))
    return bar


def _tap_mark(tap: Tap, x: float, y: float, left: float, is_first: bool) -> Element:
    """Return a module's name and its mark: a dot within the floor, a diamond above it."""
    mark = tag("g", class_="deviates" if tap.deviates else "holds", data_module=tap.module)
    mark.append(
        tag(
            "title",
            f"{tap.module}: relative L2 error {number(tap.relative_l2)}, floor {number(tap.floor)}; largest value "
            f"{number(tap.max_abs)}, the reference's {number(tap.reference_max_abs)}",
        )
    )
    name = tag("text", tap.module, x=_share(left), dx=-10, y=y + 4, class_="end strong" if is_first else "end")
    mark.append(name)
    shape = "M0-5.5 5.5 0 0 5.5-5.5 0z" if tap.deviates else "M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0z"
    point = tag("svg", x=_share(x), y=y, overflow="visible", width=1, height=1)
    point.append(tag("path", d=shape))
    mark.append(point)
    if is_first:
        right_of_middle = x > left + (90 - left) / 2
        place = {"dx": -12, "class_": "end strong named"} if right_of_middle else {"dx": 12, "class_": "strong named"}
        mark.append(tag("text", "first deviation", x=_share(x), y=y + 4, **place))
    return mark


def _drawing(title: str, height: float, children: Iterable[Element], style: str, kind: str = "") -> Element:
    named = {"role": "img", "aria_label": title, "class_": kind}
    return tag("svg", *children, **named, width="100%", height=f"{height:g}", style=style)


def _row_labels(heights: Sequence[int], top: float, row: float, left: float) -> list[Element]:
    """Return a label for every row, or for every second where rows are lower than text."""
    step = 1 if row >= 13 else 2
    return [
        tag("text", str(size), x=_share(left), dx=-6, y=top + row * place + row / 2 + 4, class_="end tick")
        for place, size in enumerate(heights)
        if (len(heights) - 1 - place) % step == 0
    ]


def _column_labels(
    widths: Sequence[int], left: float, column: float, place: tuple[float, float, float]
) -> list[Element]:
    """Return labels for as many columns as there is room for; a small screen hides those that are called minor.

    Args:
        widths: of the columns' grids.
        left: where the first column begins, in percent.
        column: a column's width, in percent.
        place: y of the labels, and the drawing's width on a small and on a wide screen.
    """
    y, narrow, wide = place
    every = math.ceil(30 / (wide * column / 100))
    major = every * math.ceil(30 / (narrow * column / 100) / every)
    return [
        _middle(str(size), left + column * (len(widths) - back - 0.5), y, "tick" if back % major == 0 else "tick minor")
        for back, size in enumerate(reversed(widths))
        if back % every == 0
    ]


def _jumps(
    heights: Sequence[int], widths: Sequence[int], columns: tuple[float, float], rows: tuple[float, float]
) -> list[Element]:
    """Return a line wherever the next size that occurs is twice as large or more, and not just the next number."""
    (left, column), (top, row) = columns, rows
    right, bottom = left + column * len(widths), top + row * len(heights)
    across = [top + row * place for place in range(1, len(heights)) if _jumps_to(heights[place], heights[place - 1])]
    down = [left + column * place for place in range(1, len(widths)) if _jumps_to(widths[place - 1], widths[place])]
    return [
        *(_line((left, y), (right, y), "jump") for y in across),
        *(_line((x, top), (x, bottom), "jump") for x in down),
    ]


def _jumps_to(size: int, larger: int) -> bool:
    return larger >= 2 * size and larger > size + 1


def _line(start: tuple[float, float], end: tuple[float, float], name: str) -> Element:
    return tag("line", x1=_share(start[0]), y1=start[1], x2=_share(end[0]), y2=end[1], class_=name)


def _middle(text: str, x: float, y: float, name: str) -> Element:
    return tag("text", text, x=_share(x), y=y, class_=f"middle {name}")


def _anchor(place: float) -> str:
    """Return the class by which a text at a place stays inside the drawing."""
    return "end" if place > 85 else "start" if place < 15 else "middle"


def _share(percent: float) -> str:
    return f"{percent:.3f}".rstrip("0").rstrip(".") + "%"


def _power(exponent: int) -> str:
    return f"{10**exponent}" if 0 <= exponent <= 4 else f"1e{exponent}"


def _short(value: float) -> str:
    """Return an error that fits a cell: in one digit, or in two where it is large."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "inf"
    return number(value) if value == 0 or value >= 0.95 else f"{value:.0e}".replace("e-0", "e-")


def _told(found: Summary) -> str:
    images = "1 image" if found.images == 1 else f"{found.images} images"
    return (
        f"grid {found.of} (height x width), {images}: relative L2 error {number(found.relative_l2)}, "
        f"largest difference {number(found.max_abs)}, 1 - cosine {distance(found.worst_cosine)}"
    )


def _sides(grid: str) -> tuple[int, int]:
    height, width = grid.split("x")
    return int(height), int(width)


def _has_place(value: float) -> bool:
    return math.isfinite(value) and value > 0


def _decades_that_occur(found: Sequence[Distribution]) -> list[int]:
    """Return the bins from the first that any side has values in to the last, largest errors first."""
    taken = [index for side in found for index, count in enumerate(side.counts) if count]
    return list(range(max(taken), min(taken) - 1, -1)) if taken else []


def _decade(decades: Sequence[int], index: int) -> str:
    """Return which errors a bin holds."""
    if index == 0:
        return f"up to {_power(decades[0])}"
    if index == len(decades):
        return f"above {_power(decades[-1])} or NaN"
    return f"{_power(decades[index - 1])} to {_power(decades[index])}"


def _portion(count: int, total: int) -> str:
    """Return a share in percent, or the count where that would round to nothing."""
    share = 100 * count / total
    return f"{share:.1f}%" if share >= 0.1 else f"{count} of {total}"
