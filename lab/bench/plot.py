"""A plot as SVG text: lines over container sizes, both axes logarithmic. Needs no library."""

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape

_WIDTH, _HEIGHT = 800, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 250, 40, 50
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's, which the colour-blind can tell apart."""
_DASHES = ("", "6 3", "2 3")

Points = Mapping[int, Sequence[float]]
"""Size -> the values of its runs; the line goes through their medians, a dot is one run."""


def lines(title: str, unit: str, named: Mapping[str, Points]) -> str:
    """Draw the lines, in the order given; those whose names are alike up to a comma have one colour."""
    values = [value for points in named.values() for runs in points.values() for value in runs if value > 0]
    sizes = sorted({size for points in named.values() for size in points})
    if not values or not sizes:
        return ""
    scale = _Scale(sizes, 10 ** math.floor(math.log10(min(values))), 10 ** math.ceil(math.log10(max(values))))
    body = [*_frame(title, unit, scale, sizes)]
    for number, (name, points) in enumerate(named.items()):
        body += _line(number, _style(name, list(named)), name, points, scale)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif"'
    return "\n".join(
        [f'{head} font-size="12">', f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>', *body, "</svg>\n"]
    )


class _Scale:
    def __init__(self, sizes: Sequence[int], low: float, high: float) -> None:
        self.low, self.high = low, high if high > low else low * 10
        # One size alone stands in the middle.
        self._first: float = sizes[0] if len(sizes) > 1 else sizes[0] / 2
        self._last: float = sizes[-1] if len(sizes) > 1 else sizes[0] * 2

    def x(self, size: float) -> float:
        share = math.log(size / self._first) / math.log(self._last / self._first)
        return round(_LEFT + 15 + share * (_WIDTH - _LEFT - _RIGHT - 30), 1)

    def y(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return round(_HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM), 1)


def _frame(title: str, unit: str, scale: _Scale, sizes: Sequence[int]) -> Iterator[str]:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    yield f'<text x="{_LEFT}" y="22" font-size="15">{escape(title)}, {escape(unit)}</text>'
    decade = scale.low
    while decade <= scale.high * 1.001:
        for step in (1, 2, 5):
            value = decade * step
            if value > scale.high * 1.001:
                break
            y = scale.y(value)
            yield f'<line x1="{_LEFT}" x2="{right}" y1="{y}" y2="{y}" stroke="{"#bbb" if step == 1 else "#eee"}"/>'
            yield f'<text x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{value:,.10g}</text>'
        decade *= 10
    for size in sizes:
        yield f'<text x="{scale.x(size)}" y="{bottom + 20}" text-anchor="middle">{size}</text>'
    yield f'<text x="{(_LEFT + right) / 2}" y="{bottom + 38}" text-anchor="middle">MiB of memory</text>'
    yield f'<path d="M{_LEFT},{_TOP}V{bottom}H{right}" fill="none" stroke="#444"/>'


def _style(name: str, names: Sequence[str]) -> tuple[str, str]:
    """A colour for the kind, a dash for the one of its kind."""
    kind = name.split(",")[0]
    kinds = list(dict.fromkeys(each.split(",")[0] for each in names))
    alike = [each for each in names if each.split(",")[0] == kind]
    return _COLOURS[kinds.index(kind) % len(_COLOURS)], _DASHES[alike.index(name) % len(_DASHES)]


def _line(number: int, style: tuple[str, str], name: str, points: Points, scale: _Scale) -> Iterator[str]:
    colour, dash = style
    medians = [(scale.x(size), scale.y(sorted(runs)[len(runs) // 2])) for size, runs in sorted(points.items())]
    path = " ".join(f"{x},{y}" for x, y in medians)
    stroke = f'fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"'
    yield f'<polyline points="{path}" {stroke}/>'
    for size, runs in points.items():
        for value in runs:
            yield f'<circle cx="{scale.x(size)}" cy="{scale.y(value)}" r="2.5" fill="{colour}" fill-opacity="0.6"/>'
    y = _TOP + 10 + 20 * number
    x = _WIDTH - _RIGHT + 12
    yield f'<line x1="{x}" x2="{x + 24}" y1="{y}" y2="{y}" {stroke}/>'
    yield f'<text x="{x + 30}" y="{y + 4}">{escape(name)}</text>'
