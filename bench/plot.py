"""Pictures as SVG, drawn by hand: light, readable, and small enough to be looked at as text."""

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 760, 64, 190, 44, 52
COLOURS = ("#0b6e99", "#d9730d", "#448361", "#9065b0", "#c14c8a", "#787774", "#cb912f", "#d44c47")
GREY, INK = "#e3e2e0", "#37352f"
Points = Sequence[tuple[float, float]]


def bars(values: Mapping[str, float], *, unit: str, highlighted: str) -> str:
    """One bar for each value, its number beside it, the largest as long as the picture allows."""
    names_px, row_px = 270, 28
    height = 16 + row_px * len(values)
    most = max(values.values(), default=0.0) or 1.0
    parts = []
    for row, (name, value) in enumerate(values.items()):
        y = 8 + row * row_px
        long_px = (WIDTH - names_px - 130) * value / most
        colour = COLOURS[0] if name == highlighted else "#b8c4ce"
        parts += [
            _text(names_px - 8, y + 17, name, anchor="end"),
            f'<rect x="{names_px}" y="{y + 4}" width="{long_px:.1f}" height="18" fill="{colour}"/>',
            _text(names_px + long_px + 6, y + 17, f"{value:,.0f} {unit}"),
        ]
    return _svg(height, parts)


def lines(
    series: Mapping[str, Points],
    *,
    title: str,
    x_name: str,
    bands: Sequence[tuple[float, float, str]] = (),
    marks: Sequence[tuple[float, str]] = (),
    is_log: bool = False,
) -> str:
    """One line for each series, named at the right. `bands` colour the ground from x to x, `marks` name what begins."""
    height = 360
    points = [point for each in series.values() for point in each]
    low_x, high_x = min(x for x, _ in points), max(x for x, _ in points)
    step_y = _step(max(y for _, y in points) or 1.0, most=5)
    high_y = step_y * math.ceil(max(y for _, y in points) / step_y or 1)
    x_of = _scale(low_x, high_x, LEFT, WIDTH - RIGHT, is_log=is_log)
    y_of = _scale(0.0, high_y, height - BOTTOM, TOP)
    parts = [_text(LEFT, 22, title, size=15)]
    for begin, end, colour in bands:
        wide, tall = max(0.0, x_of(end) - x_of(begin)), height - TOP - BOTTOM
        parts.append(
            f'<rect x="{x_of(begin):.1f}" y="{TOP}" width="{wide:.1f}" height="{tall}" fill="{colour}"/>'
        )
    for step in range(round(high_y / step_y) + 1):
        value = step * step_y
        y = y_of(value)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="{GREY}"/>')
        parts.append(_text(LEFT - 8, y + 4, _short(value), anchor="end"))
    for value in _ticks(low_x, high_x, is_log=is_log):
        parts.append(_text(x_of(value), height - BOTTOM + 20, _short(value), anchor="middle"))
    for at, name in marks:
        x = x_of(at)
        parts.append(f'<path d="M{x:.1f} {TOP}V{height - BOTTOM}" stroke="#9b9a97" stroke-dasharray="3 3"/>')
        parts.append(_text(x + 4, TOP + 12, name, size=11))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, height - 10, x_name, anchor="middle"))
    for number, (name, each) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = "L".join(f"{x_of(x):.1f} {y_of(y):.1f}" for x, y in each)
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(
            f'<rect x="{WIDTH - RIGHT + 14}" y="{TOP + 22 * number}" width="12" height="12" fill="{colour}"/>'
        )
        parts.append(_text(WIDTH - RIGHT + 32, TOP + 11 + 22 * number, name))
    return _svg(height, parts)


def _scale(low: float, high: float, from_px: float, to_px: float, *, is_log: bool = False) -> "_Scale":
    return _Scale(low, high, from_px, to_px, is_log)


class _Scale:
    def __init__(self, low: float, high: float, from_px: float, to_px: float, is_log: bool) -> None:
        self._is_log = is_log
        self._low, self._from_px = self._on(low), from_px
        self._px_each = (to_px - from_px) / ((self._on(high) - self._low) or 1.0)

    def __call__(self, value: float) -> float:
        return self._from_px + (self._on(value) - self._low) * self._px_each

    def _on(self, value: float) -> float:
        return math.log10(value) if self._is_log else value


def _ticks(low: float, high: float, *, is_log: bool) -> list[float]:
    if is_log:
        return [10.0**power for power in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)]
    step = _step(high - low, most=8)
    return [step * number for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _step(span: float, *, most: int) -> float:
    """1, 2 or 5 times a power of ten, so that there are no more than `most` steps in it."""
    power = 10.0 ** math.floor(math.log10(span / most))
    return next(step * power for step in (1, 2, 5, 10) if step * power * most >= span)


def _short(value: float) -> str:
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:.3g}"


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 13) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(text)}</text>'


def _svg(height: float, parts: Sequence[str]) -> str:
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'font-family="system-ui, sans-serif" fill="{INK}">\n<rect width="100%" height="100%" fill="#ffffff"/>\n'
        f"{body}\n</svg>\n"
    )
