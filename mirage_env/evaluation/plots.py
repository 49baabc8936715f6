"""Small plots as inline SVG, so that a report is one file and needs nothing to be drawn or shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from itertools import cycle
from math import ceil, floor, inf, isfinite, log10
from typing import NamedTuple, TypeAlias

from mirage_env.evaluation.metrics import Interval

COLOURS = (
    "#2a9d8f", "#e76f51", "#8d6cab", "#457b9d", "#d4a02a", "#6c757d", "#b5476b",
    "#5a8f3d", "#1d6fb8", "#a0522d", "#c77dba", "#3f7d6e", "#b08900",
)  # fmt: skip
"""One a series, in the order in which they are given; but see `_FIXED`."""
_FIXED = {
    "model": "#2a9d8f", "submission": "#2a9d8f", "no-memory": "#e76f51", "warp-true-depth": "#8d6cab",
    "warp-predicted-depth": "#457b9d", "first-frame": "#d4a02a", "codec": "#6c757d", "perception": "#b5476b",
}  # fmt: skip
"""What stands in every report has one colour in all of its charts."""

WIDTH, HEIGHT = 720, 360
"""Of charts whose lines are named where they end."""
Line: TypeAlias = Sequence[tuple[float, float]]


def line_chart(series: Mapping[str, Sequence[Interval]], x_label: str, y_label: str, band: str = "model") -> str:
    """A line a series over 1, 2, 3 ...; the one called `band` also shows its interval."""
    drawn = {name: values for name, values in series.items() if values}
    if not drawn:
        return ""
    width, height, left, right, top, bottom = 680, 300, 52, 150, 14, 40
    count = max(len(values) for values in drawn.values())
    numbers = [v.mean for values in drawn.values() for v in values if isfinite(v.mean)]
    ticks = _ticks(min(numbers), max(numbers))
    low, high = ticks[0], ticks[-1]

    def x(index: float) -> float:
        return left + (width - left - right) * (index / max(1, count - 1))

    def y(value: float) -> float:
        return top + (height - top - bottom) * (high - min(max(value, low), high)) / (high - low)

    parts = [_open(width, height, f"{y_label} over {x_label}")]
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text x="{left - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for index in sorted({round(i * (count - 1) / 8) for i in range(9)}):
        parts.append(f'<text x="{x(index):.1f}" y="{height - bottom + 18}" text-anchor="middle">{index + 1}</text>')
    middle = (left + width - right) / 2
    parts.append(f'<text class="title" x="{middle}" y="{height - 4}" text-anchor="middle">{escape(x_label)}</text>')
    labels = []
    for colour, (name, values) in zip(_colours(drawn), drawn.items(), strict=True):
        if name == band:
            edge = [f"{x(i):.1f},{y(v.low):.1f}" for i, v in enumerate(values)]
            edge += [f"{x(i):.1f},{y(v.high):.1f}" for i, v in reversed(list(enumerate(values)))]
            parts.append(f'<polygon points="{" ".join(edge)}" fill="{colour}" opacity="0.16"/>')
        points = " ".join(f"{x(i):.1f},{y(v.mean):.1f}" for i, v in enumerate(values) if isfinite(v.mean))
        thick = 2.6 if name == band else 1.6
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="{thick}"/>')
        labels.append((y(values[-1].mean), name, colour))
    for place, (_, name, colour) in zip(
        _apart([at for at, _, _ in sorted(labels)], 14, height - 8), sorted(labels), strict=True
    ):
        parts.append(f'<text x="{width - right + 8}" y="{place + 4:.1f}" style="fill:{colour}">{_words(name)}</text>')
    return "".join([*parts, "</svg>"])


def interval_chart(rows: Mapping[str, Interval], unit: str, marks: Mapping[str, float] | None = None) -> str:
    """A dot and a whisker a row; `marks` are labelled vertical lines, such as a floor and an aim."""
    shown = {name: value for name, value in rows.items() if value.scenes}
    if not shown:
        return ""
    marks = marks or {}
    width, left, right, step, top = 680, 150, 84, 26, 20 if marks else 4
    height = top + step * len(shown) + 26
    numbers = [*(v.low for v in shown.values()), *(v.high for v in shown.values()), *marks.values()]
    ticks = _ticks(min(numbers), max(numbers))
    low, high = ticks[0], ticks[-1]

    def x(value: float) -> float:
        return left + (width - left - right) * (value - low) / (high - low)

    parts = [_open(width, height, f"intervals in {unit or 'no unit'}")]
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{top}" y2="{height - 24}"/>')
        parts.append(f'<text x="{x(tick):.1f}" y="{height - 8}" text-anchor="middle">{tick:g}</text>')
    for name, at in marks.items():
        parts.append(f'<line class="mark" x1="{x(at):.1f}" x2="{x(at):.1f}" y1="{top - 4}" y2="{height - 24}"/>')
        parts.append(f'<text x="{x(at):.1f}" y="{top - 8}" text-anchor="middle">{escape(name)}</text>')
    for row, (colour, (name, value)) in enumerate(zip(_colours(shown), shown.items(), strict=True)):
        y = top + step * (row + 0.5)
        parts.append(f'<text x="{left - 10}" y="{y + 4:.1f}" text-anchor="end">{_words(name)}</text>')
        parts.append(
            f'<line x1="{x(value.low):.1f}" x2="{x(value.high):.1f}" y1="{y}" y2="{y}" stroke="{colour}" '
            'stroke-width="3" stroke-linecap="round" opacity="0.55"/>'
        )
        parts.append(f'<circle cx="{x(value.mean):.1f}" cy="{y}" r="5" fill="{colour}"/>')
        parts.append(
            f'<text class="number" x="{width - right + 10}" y="{y + 4:.1f}">{number(value.mean)} {unit}</text>'
        )
    return "".join([*parts, "</svg>"])


def gap_chart(marks: Mapping[str, float], low: str, high: str, reached: str, unit: str) -> str:
    """Where everybody stands on one line; the way from `low` to `high` is drawn, and how far `reached` comes."""
    width, left, right, y = 1032, 24, 24, 46
    lowest, highest = min(marks.values()), max(marks.values())

    def x(value: float) -> float:
        return left + (width - left - right) * (value - lowest) / max(highest - lowest, 1e-9)

    def stroke(a: float, b: float, colour: str, thick: int) -> str:
        ends = f'x1="{x(a):.1f}" x2="{x(b):.1f}" y1="{y}" y2="{y}"'
        return f'<line {ends} stroke="{colour}" stroke-width="{thick}" stroke-linecap="round"/>'

    colours = dict(zip(marks, _colours(marks), strict=True))
    parts = [
        _open(width, 92, f"{reached} between {low} and {high}"),
        f'<g class="way">{stroke(lowest, highest, "", 4)}',
    ]
    parts.append(f"</g><g opacity='.3'>{stroke(marks[low], marks[high], colours[reached], 10)}</g>")
    parts.append(stroke(marks[low], min(max(marks[reached], marks[low]), marks[high]), colours[reached], 10))
    half = 68  # of the widest label
    others = sorted((name for name in marks if name != reached), key=marks.__getitem__)
    middles = [min(max(x(marks[name]), half), width - half) for name in others]
    for name, place in zip(others, _apart(middles, 2 * half, width - half), strict=True):
        parts.append(f'<circle cx="{x(marks[name]):.1f}" cy="{y}" r="5" fill="{colours[name]}"/>')
        stem = f'x1="{x(marks[name]):.1f}" x2="{place:.1f}" y1="{y + 8}" y2="65"'
        parts.append(f'<line {stem} stroke="{colours[name]}" opacity=".5"/>')
        label = f"{_words(name)} {number(marks[name])}"
        parts.append(f'<text x="{place:.1f}" y="78" text-anchor="middle" style="fill:{colours[name]}">{label}</text>')
    parts.append(f'<circle class="here" cx="{x(marks[reached]):.1f}" cy="{y}" r="9" fill="{colours[reached]}"/>')
    parts.append(
        f'<text class="number" x="{min(max(x(marks[reached]), half), width - half):.1f}" y="20" text-anchor="middle">'
        f"{_words(reached)} {number(marks[reached])} {unit}</text>"
    )
    return "".join([*parts, "</svg>"])


def bar_chart(value: Interval, floor: float, aim: float, spread: bool = False) -> str:
    """How far a value comes between a floor and an aim, which lie at fixed places; `spread`: nearness to 1 counts."""
    width, y = 220, 11

    def x(number: float) -> float:
        at = 1.0 - abs(number - 1.0) if spread else number
        return 110 + 60 * min(max((at - floor) / (aim - floor), -1.7), 1.7)

    parts = [f'<svg class="bar" viewBox="0 0 {width} 22" role="img" aria-label="{number(value.mean)}">']
    parts.append(f'<line class="grid" x1="8" x2="212" y1="{y}" y2="{y}"/>')
    parts += [f'<line class="mark" x1="{at}" x2="{at}" y1="2" y2="20"/>' for at in (110, 170)]
    ends = f'x1="{x(value.low):.1f}" x2="{x(value.high):.1f}" y1="{y}" y2="{y}"'
    parts.append(f'<line {ends} stroke="currentColor" stroke-width="4" stroke-linecap="round" opacity=".35"/>')
    parts.append(f'<circle cx="{x(value.mean):.1f}" cy="{y}" r="5" fill="currentColor"/>')
    return "".join([*parts, "</svg>"])


class _Axis(NamedTuple):
    """What lies at its ends, and the values that are named along it; `scale` makes equal distances of them."""

    low: float
    high: float
    ticks: Sequence[float]
    scale: Callable[[float], float] = float

    def share(self, value: float) -> float:
        """0 at the low end, 1 at the high one."""
        low, high = self.scale(self.low), self.scale(self.high)
        return (self.scale(value) - low) / max(high - low, 1e-9)


def log_chart(series: Mapping[str, Line], x_label: str, y_label: str) -> str:
    """A line a series through positive (x, y), both axes logarithmic: a power law is straight, a ratio a distance."""
    xs, ys = _values(series)
    if not xs:
        return ""
    first, last = floor(log10(ys[0])), ceil(log10(ys[-1]))
    powers = [10.0**power for power in range(first, max(last, first + 1) + 1)]
    return _chart(
        series, x_label, y_label, _Axis(xs[0], xs[-1], xs, log10), _Axis(powers[0], powers[-1], powers, log10)
    )


def point_chart(series: Mapping[str, Line], x_label: str, y_label: str) -> str:
    """A line a series through (x, y), named where it ends."""
    xs, ys = _values(series)
    if not xs:
        return ""
    x_ticks, y_ticks = _ticks(xs[0], xs[-1]), _ticks(ys[0], ys[-1])
    along = [tick for tick in x_ticks if tick <= xs[-1]]
    return _chart(series, x_label, y_label, _Axis(x_ticks[0], xs[-1], along), _Axis(y_ticks[0], y_ticks[-1], y_ticks))


def _values(series: Mapping[str, Line]) -> tuple[list[float], list[float]]:
    """Every x and every y, each once and sorted."""
    points = [point for line in series.values() for point in line]
    return sorted({x for x, _ in points}), sorted({y for _, y in points})


def _chart(series: Mapping[str, Line], x_label: str, y_label: str, x_axis: _Axis, y_axis: _Axis) -> str:
    left, right, top, bottom = 52, WIDTH - 200, 14, HEIGHT - 40

    def x(value: float) -> float:
        return left + (right - left) * x_axis.share(value)

    def y(value: float) -> float:
        return bottom - (bottom - top) * y_axis.share(value)

    title = f"{y_label} over {x_label}"
    parts = [_open(WIDTH, HEIGHT, title)]
    for tick in y_axis.ticks:
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text x="{left - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:,.10g}</text>')
    end = -inf
    for tick in x_axis.ticks:
        label = f"{tick:,.10g}"
        half = 4 * len(label)  # pixels, of wide digits
        if x(tick) - half > end:
            end = x(tick) + half
            parts.append(f'<text x="{x(tick):.1f}" y="{bottom + 18}" text-anchor="middle">{label}</text>')
    parts.append(
        f'<text class="title" x="{(left + right) / 2}" y="{HEIGHT - 4}" text-anchor="middle">{escape(title)}</text>'
    )
    labels = []
    for colour, (name, line) in zip(_colours(series), series.items(), strict=True):
        if not line:
            continue
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in line)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.2"/>')
        parts += [f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="3" fill="{colour}"/>' for a, b in line]
        labels.append((y(line[-1][1]), f"{_words(name)}: {number(line[-1][1])}", colour))
    labels.sort()
    for place, (_, label, colour) in zip(_apart([at for at, _, _ in labels], 15, bottom), labels, strict=True):
        parts.append(f'<text x="{right + 10}" y="{place + 4:.1f}" style="fill:{colour}">{label}</text>')
    return "".join([*parts, "</svg>"])


def stacked(charts: Sequence[str]) -> str:
    """Several of `log_chart` and `point_chart` as one chart, below one another; room is left for an empty one."""
    parts = [chart.replace("<svg", f'<svg y="{HEIGHT * i}" height="{HEIGHT}"', 1) for i, chart in enumerate(charts)]
    return "".join([_open(WIDTH, HEIGHT * len(charts), f"{len(charts)} charts"), *parts, "</svg>"])


def standalone(chart: str) -> str:
    """A chart as a file of its own, on white; within a report, the report's style is what draws it."""
    style = (
        "<style>text{font:12px system-ui,sans-serif;fill:#555}.number{fill:#111;font-weight:600}.grid{stroke:#ddd}"
        ".mark{stroke:#888;stroke-dasharray:3 3}</style><rect width='100%' height='100%' fill='#fff'/>"
    )
    begin, _, rest = chart.removeprefix("<svg").partition(">")
    return f'<svg xmlns="http://www.w3.org/2000/svg"{begin}>{style}{rest}\n' if chart else ""


def number(value: float) -> str:
    """Three digits or so."""
    if not isfinite(value):
        return "-"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3}f}"


def _open(width: int, height: int, label: str) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">'


def _words(name: str) -> str:
    return escape(name.replace("-", " "))


def _colours(names: Iterable[str]) -> list[str]:
    free = cycle(sorted(COLOURS, key=lambda colour: colour in _FIXED.values()))  # those that nothing stands for first
    return [_FIXED.get(name) or next(free) for name in names]


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers that enclose the range, about five of them."""
    span = max(high - low, 1e-3 * max(abs(low), abs(high)), 1e-9)
    rough = span / 4
    unit = 10.0 ** floor(log10(rough))
    step = next(s for s in (unit, 2 * unit, 5 * unit, 10 * unit) if s >= rough)
    first, last = floor(low / step + 1e-9), max(ceil(high / step - 1e-9), floor(low / step + 1e-9) + 1)
    return [round(step * i, 10) for i in range(first, last + 1)]


def _apart(places: Sequence[float], gap: float, last: float) -> list[float]:
    """Sorted places moved until none is nearer than `gap` to the one before, nor, if there is room, beyond `last`."""
    down: list[float] = []
    for place in places:
        down.append(place if not down else max(place, down[-1] + gap))
    up: list[float] = []
    for place in reversed(down):
        up.append(min(place, last) if not up else min(place, up[-1] - gap))
    return up[::-1]
