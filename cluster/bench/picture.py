"""Draws bars and lines as SVG that needs nothing else: no script, no font, no style sheet.

Pure: numbers in, the text of a picture out. Axes are logarithmic where what is shown is a ratio.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

WIDTH: Final = 860
_FONT: Final = 'font-family="system-ui, sans-serif" font-size="13"'
_LABEL_WIDTH: Final = 380
_VALUE_WIDTH: Final = 90
_BAR_HEIGHT: Final = 18
_ROW_HEIGHT: Final = 26
_TOP: Final = 48
_PANEL_HEIGHT: Final = 240
_MARGIN: Final = 70
_PANEL_GAP: Final = 60
_BETTER, _WORSE, _INK, _PALE = "#2b7a4b", "#b5482a", "#222222", "#cccccc"
_SERIES_COLOURS: Final = ("#1f5fa8", "#b5482a", "#2b7a4b", "#7a4b9a")
_TICKS: Final = 4


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: what it is of, how long it is, and the words at its end."""

    label: str
    value: float
    text: str


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a panel, through points of x and y."""

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Panel:
    """A picture of lines: the words on its axes, and the lines."""

    x_label: str
    y_label: str
    lines: tuple[Line, ...]


def draw_bars(title: str, bars: Sequence[Bar], *, is_ratio: bool) -> str:
    """One bar below the other; ratios start at 1, to the right where they are above it."""
    height = _TOP + _ROW_HEIGHT * len(bars) + 12
    room = WIDTH - _LABEL_WIDTH - _VALUE_WIDTH
    parts = []
    lengths = [math.log10(bar.value) if is_ratio else bar.value for bar in bars]
    low = min([0.0, *lengths])
    span = max([0.0, *lengths]) - low or 1.0
    zero = _LABEL_WIDTH + room * -low / span
    for row, (bar, length) in enumerate(zip(bars, lengths, strict=True)):
        top = _TOP + row * _ROW_HEIGHT
        start, end = sorted((zero, zero + room * length / span))
        colour = _WORSE if is_ratio and length < 0 else _BETTER
        parts += [
            _text(_LABEL_WIDTH - 8, top + 14, bar.label, anchor="end"),
            _rect(start, top, max(1.0, end - start), colour),
            _text(max(end, zero) + 6, top + 14, bar.text),
        ]
    parts.append(_stroke(zero, _TOP - 6, zero, height - 6, _INK))
    return _svg(title, height, parts)


def draw_panels(title: str, panels: Sequence[Panel]) -> str:
    """One panel of lines below the other."""
    height = _TOP + len(panels) * (_PANEL_HEIGHT + _PANEL_GAP)
    parts: list[str] = []
    for number, panel in enumerate(panels):
        parts += _draw_panel(panel, _TOP + number * (_PANEL_HEIGHT + _PANEL_GAP))
    return _svg(title, height, parts)


def _draw_panel(panel: Panel, top: float) -> list[str]:
    points = [point for line in panel.lines for point in line.points]
    right = max((x for x, _ in points), default=1.0) or 1.0
    highest = max((y for _, y in points), default=1.0) or 1.0
    width, bottom = WIDTH - 2 * _MARGIN, top + _PANEL_HEIGHT
    parts = []
    for tick in range(_TICKS + 1):
        x, y = _MARGIN + width * tick / _TICKS, bottom - _PANEL_HEIGHT * tick / _TICKS
        parts += [
            _stroke(_MARGIN, y, _MARGIN + width, y, _PALE),
            _text(_MARGIN - 6, y + 4, _short(highest * tick / _TICKS), anchor="end"),
            _text(x, bottom + 16, _short(right * tick / _TICKS), anchor="middle"),
        ]
    parts.append(_text(_MARGIN, top - 8, panel.y_label))
    parts.append(_text(_MARGIN + width, bottom + 34, panel.x_label, anchor="end"))
    for number, line in enumerate(panel.lines):
        colour = _SERIES_COLOURS[number % len(_SERIES_COLOURS)]
        places = [
            (_MARGIN + width * x / right, bottom - _PANEL_HEIGHT * y / highest)
            for x, y in line.points
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        parts.append(_text(_MARGIN + width - 8, top + 16 * number, line.name, "end", colour))
    return parts


def _svg(title: str, height: float, parts: Iterable[str]) -> str:
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" {_FONT}>',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{height:g}" fill="white"/>',
        _text(12, 24, title),
        *parts,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _text(x: float, y: float, words: str, anchor: str = "start", colour: str = _INK) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}"'
    return f"<text {place}>{escape(words)}</text>"


def _rect(x: float, y: float, width: float, colour: str) -> str:
    size = f'width="{width:.1f}" height="{_BAR_HEIGHT}"'
    return f'<rect x="{x:.1f}" y="{y:.1f}" {size} fill="{colour}"/>'


def _stroke(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _short(number: float) -> str:
    """A number on an axis."""
    return f"{number:,.0f}" if number >= 10 or number == 0 else f"{number:.2g}"  # noqa: PLR2004 - two digits
