"""Line charts as inline SVG: a viewBox, a few polylines, colours from the page's style sheet."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

Number = int | float

WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 48, 10, 8, 34


@dataclass(frozen=True)
class Series:
    """A named line. `marked` draws its points, for lines of few points."""

    label: str
    points: Sequence[tuple[Number, Number]]
    marked: bool = False


@dataclass(frozen=True)
class Chart:
    """Lines over one pair of axes. `marks` are vertical lines with a label: (x, label)."""

    title: str
    series: Sequence[Series]
    x_label: str = "step"
    marks: Sequence[tuple[Number, str]] = field(default_factory=tuple)


def format_number(value: Number) -> str:
    """Four significant digits, thousands separated: 0.01358, 4.125, 15,000, 2e-05."""
    if value and not 1e-4 <= abs(value) < 1e7:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def ticks(low: Number, high: Number, number: int = 5) -> list[float]:
    """Round values that cover [low, high]: steps of 1, 2 or 5 times a power of ten.

    ticks(0.3, 7.9) == [0, 2, 4, 6, 8]
    """
    span = (high - low) or abs(high) or 1.0
    rough = span / (number - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(float(i * step), 12) for i in range(first, max(last, first + 1) + 1)]


def svg(chart: Chart) -> str:
    """The chart as an `<svg>` element; points that are not finite are left out."""
    lines = [
        Series(s.label, [p for p in s.points if all(map(math.isfinite, p))], s.marked)
        for s in chart.series
    ]
    points = [point for line in lines for point in line.points]
    if not points:
        return '<p class="empty">nothing recorded</p>'
    xs, ys = zip(*points, strict=True)
    x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
    # The x axis ends with the data; the y axis ends with a tick.
    x_low, x_high = min(xs), max(max(xs), min(xs) + 1e-9)
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def place(x: Number, y: Number) -> tuple[float, float]:
        across = LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        down = TOP + (y_high - y) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)
        return round(across, 1), round(down, 1)

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(chart.title)}">',
        *_axes(place, [x for x in x_ticks if x_low <= x <= x_high], y_ticks, chart.x_label),
        *_marks(place, chart.marks, x_low, x_high, y_low, y_high),
    ]
    for number, line in enumerate(lines, start=1):
        parts += _line([place(*point) for point in line.points], line, number)
    return "".join([*parts, "</svg>"])


def _axes(place, x_ticks, y_ticks, x_label) -> list[str]:
    parts = []
    for y in y_ticks:
        _, down = place(x_ticks[0] if x_ticks else 0, y)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down}" y2="{down}"/>'
        )
        parts.append(
            f'<text x="{LEFT - 6}" y="{down + 3.5}" text-anchor="end">{format_number(y)}</text>'
        )
    for x in x_ticks:
        across, _ = place(x, y_ticks[0])
        parts.append(
            f'<text x="{across}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">'
            f"{format_number(x)}</text>"
        )
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">'
        f"{escape(x_label)}</text>"
    )
    return parts


def _marks(place, marks, x_low, x_high, y_low, y_high) -> list[str]:
    parts = []
    for x, label in marks:
        if not x_low <= x <= x_high:
            continue
        across, bottom = place(x, y_low)
        _, top = place(x, y_high)
        parts.append(f'<line class="mark" x1="{across}" x2="{across}" y1="{top}" y2="{bottom}"/>')
        parts.append(f'<text x="{across + 4}" y="{top + 10}">{escape(label)}</text>')
    return parts


def _line(points: list[tuple[float, float]], line: Series, number: int) -> list[str]:
    path = " ".join(f"{x},{y}" for x, y in points)
    parts = [f'<polyline class="line s{number}" points="{path}"/>'] if len(points) > 1 else []
    if line.marked or len(points) == 1:
        for (x, y), (step, value) in zip(points, line.points, strict=True):
            text = escape(f"{line.label}, {format_number(step)}: {format_number(value)}")
            parts.append(
                f'<circle class="s{number}" cx="{x}" cy="{y}" r="3"><title>{text}</title></circle>'
            )
    return parts
