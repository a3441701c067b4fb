"""Pictures of the HTML report as SVG: colours come from its style sheet, so they follow light and dark."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

from qat.report.pictures.placement import beside_each_other, spread

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 640, 64, 16, 14, 40


class Point(NamedTuple):
    """A point with a whisker. kind: the class of its colour; name: beside it; title: shown by a pointer that rests on it."""

    x: float
    y: float
    error: float | None
    kind: str
    name: str
    title: str
    hollow: bool = False


class Axis(NamedTuple):
    """A linear axis from `low` to `high`, drawn from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def place(self, value: float) -> float:
        """The coordinate of a value."""
        span = (self.high - self.low) or 1.0
        return round(self.start + (value - self.low) / span * (self.end - self.start), 2)

    def ticks(self, n: int = 5) -> list[float]:
        """At most about `n` round numbers on the axis."""
        span = (self.high - self.low) or 1.0
        step = 10 ** math.floor(math.log10(span / n))
        step = next((step * factor for factor in (1, 2, 5, 10) if span / (step * factor) <= n), step * 10)
        first = math.ceil(self.low / step - 1e-9)
        return [round(step * i, 12) for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def axis(values: Iterable[float], start: float, end: float, margin: float = 0.08, zero: bool = False) -> Axis:
    """An axis that holds all finite values. zero: it begins at 0."""
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    space = margin * (high - low) or 0.01 * abs(high) or 1.0
    return Axis(0.0 if zero else low - space, high + space, start, end)


def scatter(
    points: Sequence[Point], x_label: str, y_label: str, x_text: Callable[[float], str] = "{:g}".format
) -> Markup:
    """Points with whiskers, and their names in a column on the right."""
    height, right = 320, WIDTH - 190
    xs = axis([p.x for p in points], LEFT, right, zero=True)
    reach = [p.y + sign * (p.error or 0) for p in points for sign in (1, -1)]
    ys = axis(reach, height - BOTTOM, TOP)
    marks = [_grid(xs, ys, height, x_label, y_label, x_text)]
    points = sorted(points, key=lambda p: p.hollow)  # files keep their places, others give way
    spans = [(xs.place(p.x), ys.place(p.y + (p.error or 0)) - 4, ys.place(p.y - (p.error or 0)) + 4) for p in points]
    places = beside_each_other(spans, step=6)
    heights = spread([ys.place(p.y) for p in points], gap=15)
    for p, x, label in zip(points, places, heights, strict=True):
        y = ys.place(p.y)
        marks.append(_line("lead " + p.kind, x, y, right + 8, round(label, 2)))
        if p.error:
            marks.append(_line("whisker " + p.kind, x, ys.place(p.y - p.error), x, ys.place(p.y + p.error)))
        marks.append(f'<text class="tick" x="{right + 12}" y="{label + 4:.2f}">{escape(p.name)}</text>')
    for p, x in zip(points, places, strict=True):
        hollow = " hollow" if p.hollow else ""
        marks.append(
            f'<circle class="dot {p.kind}{hollow}" cx="{x}" cy="{ys.place(p.y)}" r="4">'
            f"<title>{escape(p.title)}</title></circle>"
        )
    return _svg(WIDTH, height, f"{y_label} against {x_label}", marks)


def lines(
    series: Sequence[tuple[str, Sequence[float | None]]], xs: Sequence[float], x_label: str, y_label: str
) -> Markup:
    """One line for each (kind, values)."""
    height = 260
    across = axis(xs, LEFT, WIDTH - RIGHT, margin=0.02)
    up = axis((v for _, values in series for v in values if v is not None), height - BOTTOM, TOP)
    marks = [_grid(across, up, height, x_label, y_label)]
    for kind, values in series:
        marks.append(_polyline(kind, across, up, xs, values))
        marks += [
            f'<circle class="dot {kind}" cx="{across.place(x)}" cy="{up.place(v)}" r="3"><title>{x:g}: {v:.4g}</title></circle>'
            for x, v in zip(xs, values, strict=True)
            if v is not None
        ]
    return _svg(WIDTH, height, f"{y_label} over {x_label}", marks)


def spark(values: Sequence[float | None], kind: str, title: str, zero: bool = False) -> Markup:
    """A small line without axes, from its lowest to its highest value. zero: from 0."""
    width, height = 220, 46
    up = axis((v for v in values if v is not None), height - 4, 4, margin=0.0, zero=zero)
    across = Axis(0, max(1, len(values) - 1), 3, width - 3)
    marks = [
        _line("rule", 3, height - 3, width - 3, height - 3),
        _polyline(kind, across, up, range(len(values)), values),
    ]
    return _svg(width, height, title, marks)


def bars(items: Sequence[tuple[str, float, str]], x_label: str, kind: str) -> Markup:
    """Horizontal bars: (name, value, text beside it)."""
    left, row = 190, 20
    height = row * len(items) + BOTTOM
    xs = axis([0.0, *(value for _, value, _ in items)], left, WIDTH - 70, zero=True)
    marks = []
    for index, (name, value, text) in enumerate(items):
        y = index * row + 4
        width = max(0.0, xs.place(value) - left)
        short = name if len(name) <= 27 else f"…{name[-26:]}"
        marks.append(
            f'<text class="tick" x="{left - 6}" y="{y + 11}" text-anchor="end">{escape(short)}'
            f"<title>{escape(name)}</title></text>"
        )
        marks.append(f'<rect class="bar {kind}" x="{left}" y="{y}" width="{width:.2f}" height="13"/>')
        marks.append(f'<text class="tick" x="{left + width + 5:.2f}" y="{y + 11}">{escape(text)}</text>')
    marks.append(
        f'<text class="label" x="{(left + WIDTH) / 2}" y="{height - 8}" text-anchor="middle">{escape(x_label)}</text>'
    )
    return _svg(WIDTH, height, x_label, marks)


def histogram(
    counts: Sequence[int], first: float, last: float, codes: Sequence[float], kind: str, title: str
) -> Markup:
    """A distribution in steps of the scale, with a line at each of `codes`, where values are rounded to."""
    width, height = 220, 84
    across, up = Axis(first, last, 3, width - 3), Axis(0, max(counts, default=1) or 1, height - 16, 3)
    bin_width = (width - 6) / max(1, len(counts))
    marks = [_line("code", across.place(code), 3, across.place(code), height - 13) for code in codes]
    marks += [
        f'<rect class="bar {kind}" x="{3 + i * bin_width:.2f}" y="{up.place(n)}" width="{bin_width:.2f}" '
        f'height="{max(0.0, height - 16 - up.place(n)):.2f}"/>'
        for i, n in enumerate(counts)
        if n
    ]
    ends = (codes[0], "start"), (codes[-1], "end")
    marks += [
        f'<text class="tick" x="{across.place(code)}" y="{height - 3}" text-anchor="{anchor}">{code:g}</text>'
        for code, anchor in ends
    ]
    return _svg(width, height, title, marks)


def _grid(
    xs: Axis, ys: Axis, height: int, x_label: str, y_label: str, x_text: Callable[[float], str] = "{:g}".format
) -> str:
    marks = []
    for value in xs.ticks():
        x = xs.place(value)
        marks.append(_line("rule", x, TOP, x, height - BOTTOM))
        marks.append(
            f'<text class="tick" x="{x}" y="{height - BOTTOM + 15}" text-anchor="middle">{escape(x_text(value))}</text>'
        )
    for value in ys.ticks():
        y = ys.place(value)
        marks.append(_line("rule", LEFT, y, xs.end, y))
        marks.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{value:g}</text>')
    middle = (height - BOTTOM + TOP) / 2
    marks.append(
        f'<text class="label" x="{(LEFT + xs.end) / 2}" y="{height - 6}" text-anchor="middle">{escape(x_label)}</text>'
    )
    marks.append(
        f'<text class="label" transform="translate(13 {middle}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    )
    return "".join(marks)


def _polyline(kind: str, xs: Axis, ys: Axis, across: Iterable[float], values: Sequence[float | None]) -> str:
    places = " ".join(f"{xs.place(x)},{ys.place(v)}" for x, v in zip(across, values, strict=True) if v is not None)
    return f'<polyline class="line {kind}" points="{places}"/>'


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>'


def _svg(width: int, height: int, label: str, marks: Iterable[str]) -> Markup:
    size = "large" if width == WIDTH else "little"
    return Markup(  # every text in it was escaped
        f'<svg class="{size}" role="img" aria-label="{escape(label)}" viewBox="0 0 {width} {height}" '
        f'style="max-width:{width}px">'
        f"{''.join(marks)}</svg>"
    )
