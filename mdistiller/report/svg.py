"""Small line charts as inline SVG, without matplotlib or external files."""

import html
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito
DASHES = ("", "6 3", "2 3", "8 3 2 3")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 330, 60, 12, 36, 46


@dataclass(frozen=True)
class Series:
    """A line with a band of `spread` on both sides (0 or NaN: no band); NaN in `y` is a gap."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float]


def ticks(low: float, high: float, number: int = 5) -> list[float]:
    """About `number` round values within [low, high]."""
    if not high > low:
        return [low]
    raw = (high - low) / number
    size = 10 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw)
    first = math.ceil(low / step - 1e-9)
    return [round(place * step, 10) for place in range(first, math.floor(high / step + 1e-9) + 1)]


def line_chart(series: Sequence[Series], x_label: str, y_label: str) -> str:
    """An <svg> element that scales to its container, followed by a legend."""
    spreads = [[0 if math.isnan(value) else value for value in one.spread] for one in series]
    xs = [value for one in series for value in one.x]
    ys = [y + sign * s for one, spread in zip(series, spreads, strict=True)
          for y, s in zip(one.y, spread, strict=True) if not math.isnan(y) for sign in (-1, 1)]
    low, high = min(ys), max(ys)
    margin = 0.05 * (high - low) or 0.5
    low, high, left, right = low - margin, high + margin, min(xs), max(max(xs), min(xs) + 1)

    def at(x, y):
        across, up = (x - left) / (right - left), (y - low) / (high - low)
        return f"{LEFT + across * (WIDTH - LEFT - RIGHT):.1f},{HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM):.1f}"

    def text(point, words, anchor, dx=0, dy=0):
        x, y = map(float, point.split(","))
        return f'<text x="{x + dx:.1f}" y="{y + dy:.1f}" text-anchor="{anchor}">{words}</text>'

    parts = []
    for value in ticks(low, high):
        parts.append(f'<polyline class="grid" points="{at(left, value)} {at(right, value)}"/>')
        parts.append(text(at(left, value), f"{value:g}", "end", -6, 4))
    whole = [value for value in ticks(left, right) if value == int(value)]
    parts += [text(at(value, low), f"{value:g}", "middle", 0, 19) for value in whole]
    for number, (one, spread) in enumerate(zip(series, spreads, strict=True)):
        colour, dash = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
        for rows in _pieces(zip(one.x, one.y, spread, strict=True)):
            if any(spread):
                edge = [at(x, y + s) for x, y, s in rows] + [at(x, y - s) for x, y, s in reversed(rows)]
                parts.append(f'<polygon points="{" ".join(edge)}" fill="{colour}" opacity="0.18"/>')
            points = " ".join(at(x, y) for x, y, _ in rows)
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2" '
                         f'stroke-dasharray="{dash}"/>')
    parts.append(f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{html.escape(x_label)}</text>')
    parts.append(f'<text x="0" y="20">{html.escape(y_label)}</text>')  # above the chart, where it also fits on a phone
    chart = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(y_label)}">{"".join(parts)}</svg>'
    return chart + _legend(series)


def _pieces(rows):
    """Split a line at its gaps."""
    return [list(part) for gap, part in itertools.groupby(rows, lambda row: math.isnan(row[1])) if not gap]


def _legend(series):
    items = []
    for number, one in enumerate(series):
        colour, dash = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
        key = (f'<svg class="key" viewBox="0 0 30 10"><polyline points="0,5 30,5" stroke="{colour}" stroke-width="3" '
               f'stroke-dasharray="{dash}"/></svg>')
        items.append(f"<span>{key} {html.escape(one.label)}</span>")
    return f'<p class="legend">{" ".join(items)}</p>'
