"""Charts as inline SVG whose colours follow the page, light or dark.

A series keeps its colour and marker in all charts of a page. Points carry their numbers as
tooltips.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

__all__ = ["STYLE", "Bar", "Series", "bar_chart", "plane", "standalone"]

WIDTH, HEIGHT = 680, 360
LEFT, RIGHT, TOP, BOTTOM = 64, 190, 16, 46
LABEL = 44
"""Letters of a bar's label at most."""

LEGEND = 18
"""Height of a line of the legend."""

NUMBER = 30
"""Pixels between the numbers of an axis at least."""

NUM_COLOURS = 8
DASHES = ("none", "7 4", "2 3", "10 3 2 3")
FILLS = ("1", "0", "0.35", "0.15")
"""Of lines and of markers and bars: a round for each use of all colours."""

STYLE = """
:root { --ink: #1c1e21; --soft: #6a7078; --rule: #dcdfe3; --page: #ffffff; --panel: #f6f7f9;
  --c0: #1f6fd6; --c1: #c8500a; --c2: #1f8a4c; --c3: #8b3fc0; --c4: #c22463; --c5: #0a7d8c;
  --c6: #8a6d00; --c7: #555b63; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --soft: #9aa1a9; --rule: #3a3f45;
  --page: #16181b; --panel: #1f2226; --c0: #6aa8ff; --c1: #ff9a5c; --c2: #5fd08c; --c3: #cf9bff;
  --c4: #ff7fae; --c5: #4fd0df; --c6: #e3c04d; --c7: #b3bac2; } }
svg { display: block; width: 100%; max-width: 760px; height: auto; font: 12px system-ui, sans-serif;
  fill: var(--ink); }
svg .rule { stroke: var(--rule); stroke-width: 1; } svg .soft { fill: var(--soft); }
svg .axis { stroke: var(--soft); stroke-width: 1; }
svg .line { fill: none; stroke-width: 2; stroke-linejoin: round; }
svg .ceiling { fill: none; stroke: var(--soft); stroke-width: 1.5; stroke-dasharray: 6 4; }
"""

Point = tuple[float, float, str]
"""x, y and the tooltip."""


@dataclass
class Series:
    """Points of one contestant.

    Attributes:
        name: In the legend.
        colour: Number of its colour and marker.
        points: To draw.
        joined: Whether a line joins them.
    """

    name: str
    colour: int
    points: list[Point] = field(default_factory=list)
    joined: bool = False


@dataclass(frozen=True)
class Bar:
    """One bar: a value with its quartiles."""

    label: str
    name: str
    colour: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class _Axis:
    """A logarithmic or linear scale onto pixels."""

    low: float
    high: float
    start: float
    stop: float
    log: bool

    def __call__(self, value: float) -> float:
        low, high, value = (self._scaled(v) for v in (self.low, self.high, value))
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.stop - self.start)

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.log else value

    @property
    def ticks(self) -> list[float]:
        if not self.log:
            step = max(1, round((self.high - self.low) / 8))
            first = math.ceil(self.low)
            return [float(v) for v in range(first, math.floor(self.high) + 1, step)]
        exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        ticks: list[float] = []
        for factors in ((1,), (2, 5), (3, 4, 6, 7, 8, 9)):
            for tick in (factor * 10.0**e for e in exponents for factor in factors):
                inside = self.low <= tick * 1.0001 and tick <= self.high * 1.0001
                if inside and all(abs(self(tick) - self(other)) > NUMBER for other in ticks):
                    ticks.append(tick)
            if len(ticks) > 3:
                break
        return sorted(ticks)


def plane(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    *,
    x_log: bool = True,
    y_log: bool = True,
    ceiling: Callable[[float], float] | None = None,
) -> str:
    """Points, joined or not, over two axes; a ceiling is drawn as a dashed line over x."""
    points = [point for one in series for point in one.points]
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    if ceiling is not None:
        ys = [*ys, *(ceiling(x) for x in xs)]
    x = _axis(xs, LEFT, WIDTH - RIGHT, x_log)
    height = max(HEIGHT, TOP + LEGEND * (len(series) + 1))
    y = _axis(ys, height - BOTTOM, TOP, y_log)
    parts = _frame(x, y, x_label, y_label)
    if ceiling is not None:
        steps = [x.low * (x.high / x.low) ** (i / 60) for i in range(61)]
        parts.append(_path([(x(v), y(ceiling(v))) for v in steps], 'class="ceiling"'))
    for one in series:
        colour = f"var(--c{one.colour % NUM_COLOURS})"
        places = [(x(px), y(py)) for px, py, _ in one.points]
        if one.joined:
            dashes = DASHES[one.colour // NUM_COLOURS % len(DASHES)]
            style = f"stroke:{colour};stroke-dasharray:{dashes}"
            parts.append(_path(places, f'class="line" style="{style}"'))
        parts += [
            _marker(one.colour, place, tip)
            for place, (_, _, tip) in zip(places, one.points, strict=True)
        ]
    parts += _legend([(one.name, one.colour) for one in series])
    return _svg(parts, height)


def bar_chart(bars: Sequence[Bar], x_label: str, *, baseline: float = 1.0) -> str:
    """Horizontal bars on a logarithmic scale from the baseline, quartiles as whiskers."""
    row, gap = 15, 20
    longest = min(LABEL, max((len(bar.label) for bar in bars), default=0))
    left = 20 + longest * 6.4
    labels = list(dict.fromkeys(bar.label for bar in bars))
    height = TOP + BOTTOM + row * len(bars) + gap * len(labels)
    values = [baseline, *(v for bar in bars for v in (bar.low, bar.high))]
    x = _axis(values, left, WIDTH - RIGHT - 30, True)  # numbers stand behind the bars
    bottom = height - BOTTOM
    parts = _x_grid(x, TOP, bottom, x_label)
    top = float(TOP)
    for label in labels:
        group = [bar for bar in bars if bar.label == label]
        middle = top + gap / 2 + row * len(group) / 2
        parts.append(_text(left - 8, middle + 4, _short(label, LABEL), "end"))
        top += gap / 2
        for bar in group:
            parts.append(_one_bar(bar, x, baseline, top, row))
            top += row
        top += gap / 2
    zero = x(baseline)
    parts.append(f'<line class="axis" x1="{zero:.1f}" x2="{zero:.1f}" y1="{TOP}" y2="{bottom}"/>')
    parts += _legend(list(dict.fromkeys((bar.name, bar.colour) for bar in bars)))
    return _svg(parts, height)


def standalone(chart: str, title: str) -> str:
    """A chart as a file of its own: with the colours, a background and its title above."""
    start = chart.index(">") + 1
    _, _, width, height = chart[: start - 1].split('viewBox="')[1].split('"')[0].split()
    above = 28
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{int(height) + above}" '
        f'viewBox="0 {-above} {width} {int(height) + above}"><style>{STYLE}</style>'
        f'<rect y="{-above}" width="100%" height="100%" style="fill:var(--page)"/>'
        f'<text x="{LEFT}" y="-8" style="font-weight:600">{escape(title)}</text>{chart[start:]}\n'
    )


def _one_bar(bar: Bar, x: _Axis, baseline: float, top: float, row: int) -> str:
    start, stop = sorted((x(baseline), x(bar.value)))
    middle = top + row / 2
    tip = escape(f"{bar.name}: {bar.value:.3g} [{bar.low:.3g}, {bar.high:.3g}]")
    return (
        f'<g><title>{tip}</title><rect x="{start:.1f}" y="{top + 2:.1f}" rx="2" '
        f'width="{max(stop - start, 1):.1f}" height="{row - 4}" '
        f'style="{_paint(bar.colour)}"/>'
        f'<line class="axis" x1="{x(bar.low):.1f}" x2="{x(bar.high):.1f}" y1="{middle:.1f}" '
        f'y2="{middle:.1f}"/></g>'
        + _text(max(x(bar.high), stop) + 5, middle + 4, f"{bar.value:.2g}", css="soft")
    )


def _axis(values: Sequence[float], start: float, stop: float, log: bool) -> _Axis:
    low, high = min(values), max(values)
    if log:
        low, high = low / 1.25, high * 1.25
    else:
        margin = 0.05 * (high - low) or 0.5
        low, high = low - margin, high + margin
    return _Axis(low, high, start, stop, log)


def _frame(x: _Axis, y: _Axis, x_label: str, y_label: str) -> list[str]:
    parts = _x_grid(x, TOP, y.start, x_label)
    for tick in y.ticks:
        place = y(tick)
        parts.append(
            f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{place:.1f}" '
            f'y2="{place:.1f}"/>'
        )
        parts.append(_text(LEFT - 6, place + 4, _number(tick), "end", "soft"))
    middle = (TOP + y.start) / 2
    parts.append(
        f'<text class="soft" text-anchor="middle" transform="translate(14 {middle:.0f}) '
        f'rotate(-90)">{escape(y_label)}</text>'
    )
    return parts


def _x_grid(x: _Axis, top: float, bottom: float, label: str) -> list[str]:
    parts = []
    for tick in x.ticks:
        place = x(tick)
        parts.append(
            f'<line class="rule" x1="{place:.1f}" x2="{place:.1f}" y1="{top}" y2="{bottom}"/>'
        )
        parts.append(_text(place, bottom + 16, _number(tick), "middle", "soft"))
    parts.append(_text((x.start + x.stop) / 2, bottom + 36, label, "middle", "soft"))
    return parts


def _legend(names: Sequence[tuple[str, int]]) -> list[str]:
    parts = []
    for row, (name, colour) in enumerate(names):
        place = (WIDTH - RIGHT + 18, TOP + 8 + LEGEND * row)
        parts.append(_marker(colour, place, name))
        parts.append(_text(place[0] + 12, place[1] + 4, _short(name, 26)))
    return parts


def _paint(kind: int) -> str:
    """The style of a marker or bar; later rounds of the colours are hollow, then paler."""
    colour = f"var(--c{kind % NUM_COLOURS})"
    opacity = FILLS[kind // NUM_COLOURS % len(FILLS)]
    return f"fill:{colour};fill-opacity:{opacity};stroke:{colour};stroke-width:1.5"


def _marker(kind: int, place: tuple[float, float], tip: str) -> str:
    """A circle, square, triangle or diamond."""
    x, y = place
    corners = {
        1: ((-4, -4), (4, -4), (4, 4), (-4, 4)),
        2: ((0, -5), (5, 4), (-5, 4)),
        3: ((0, -5.5), (5.5, 0), (0, 5.5), (-5.5, 0)),
    }.get((kind + kind // NUM_COLOURS) % 4)
    style = f'style="{_paint(kind)}"'
    title = f"<title>{escape(tip)}</title>"
    if corners is None:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" {style}>{title}</circle>'
    points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)
    return f'<polygon points="{points}" {style}>{title}</polygon>'


def _path(places: Sequence[tuple[float, float]], attributes: str) -> str:
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return f'<polyline points="{points}" {attributes}/>'


def _text(x: float, y: float, text: str, anchor: str = "start", css: str = "") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{css}">{escape(text)}</text>'
    )


def _number(value: float) -> str:
    if value == 0 or 0.001 <= abs(value) < 100_000:
        return f"{value:g}"
    return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _svg(parts: Sequence[str], height: float) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" xmlns="http://www.w3.org/2000/svg">'
        + "".join(parts)
        + "</svg>"
    )
