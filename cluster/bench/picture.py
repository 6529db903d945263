"""Draws bars and lines as SVG that needs nothing else: no script, no font, no style sheet.

Pure: numbers in, the text of a picture out. Axes are logarithmic but for those of shares.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

WIDTH: Final = 860
_FONT: Final = 'font-family="system-ui, sans-serif" font-size="13"'
_LABEL_WIDTH: Final = 380
_VALUE_WIDTH: Final = 90
_BAR_HEIGHT: Final = 18
_ROW_HEIGHT: Final = 26
_TOP: Final = 62
_PANEL_HEIGHT: Final = 240
_MARGIN: Final = 70
_PANEL_GAP: Final = 60
_BETTER, _WORSE, _INK, _PALE = "#2b7a4b", "#b5482a", "#222222", "#cccccc"
_PALE_OPACITY: Final = 0.4
_SERIES_COLOURS: Final = ("#1f5fa8", "#b5482a", "#2b7a4b", "#7a4b9a")
_LEGEND_WIDTH: Final = 130
_STEPS: Final = (1, 2, 5)
_FINE_DECADES: Final = 2
"""Above so many powers of ten, only these are marked."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: what it is of, how long it is, and the words at its end."""

    label: str
    value: float
    text: str
    is_pale: bool = False
    """Drawn so that it counts for less."""
    heading: str = ""
    """A line above it, where a group of bars begins."""


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


@dataclass(frozen=True, slots=True)
class Axis:
    """A logarithmic axis from one place of the picture to another, with round numbers on it."""

    ticks: tuple[float, ...]
    start: float
    end: float

    @classmethod
    def through(cls, values: Sequence[float], *, start: float, end: float) -> Self:
        """An axis on which all these values, above 0, have their place."""
        first = math.floor(math.log10(min(values)))
        last = math.ceil(math.log10(max(values)))
        steps = _STEPS if last - first <= _FINE_DECADES else (1,)
        marks = [step * 10.0**power for power in range(first, last + 1) for step in steps]
        low = max(mark for mark in marks if mark <= min(values))
        high = min((mark for mark in marks if mark >= max(values)), default=marks[-1])
        high = high if high > low else marks[marks.index(low) + 1]
        return cls(tuple(mark for mark in marks if low <= mark <= high), start, end)

    def place(self, value: float) -> float:
        """Where a value stands."""
        low, high = math.log10(self.ticks[0]), math.log10(self.ticks[-1])
        share = (math.log10(value) - low) / (high - low)
        return self.start + (self.end - self.start) * share


def draw_bars(title: str, bars: Sequence[Bar], *, is_ratio: bool) -> str:
    """One bar below the other; ratios, above 0, start at 1, to the right where they exceed it.

    Others are shares of a whole, which is as wide as the picture.
    """
    height = _TOP + _ROW_HEIGHT * (len(bars) + sum(1 for bar in bars if bar.heading)) + 12
    room = WIDTH - _LABEL_WIDTH - _VALUE_WIDTH
    parts = []
    lengths = [math.log10(bar.value) if is_ratio else bar.value for bar in bars]
    low = min([0.0, *lengths])
    span = max([0.0 if is_ratio else 1.0, *lengths]) - low or 1.0
    zero = _LABEL_WIDTH + room * -low / span
    top = _TOP - _ROW_HEIGHT
    for bar, length in zip(bars, lengths, strict=True):
        top += _ROW_HEIGHT
        if bar.heading:
            parts.append(_text(12, top + 14, bar.heading))
            top += _ROW_HEIGHT
        start, end = sorted((zero, zero + room * length / span))
        colour = _WORSE if is_ratio and length < 0 else _BETTER
        parts += [
            _text(_LABEL_WIDTH - 8, top + 14, bar.label, anchor="end"),
            _rect(start, top, max(1.0, end - start), colour, is_pale=bar.is_pale),
            _text(max(end, zero) + 6, top + 14, bar.text),
        ]
    parts.append(_stroke(zero, _TOP - 6, zero, height - 6, _INK))
    return _svg(title, height, parts)


def draw_panels(title: str, panels: Sequence[Panel]) -> str:
    """One panel of lines below the other; all numbers are above 0."""
    height = _TOP + len(panels) * (_PANEL_HEIGHT + _PANEL_GAP)
    parts: list[str] = []
    for number, panel in enumerate(panels):
        parts += _draw_panel(panel, _TOP + number * (_PANEL_HEIGHT + _PANEL_GAP))
    return _svg(title, height, parts)


def _draw_panel(panel: Panel, top: float) -> list[str]:
    points = [point for line in panel.lines for point in line.points]
    if not points:
        return [_text(_MARGIN, top - 8, f"{panel.y_label}: nothing")]
    x_axis = Axis.through([x for x, _ in points], start=_MARGIN, end=WIDTH - _MARGIN)
    y_axis = Axis.through([y for _, y in points], start=top + _PANEL_HEIGHT, end=top)
    parts = [
        _text(_MARGIN, top - 8, panel.y_label),
        _text(WIDTH - _MARGIN, top + _PANEL_HEIGHT + 34, panel.x_label, anchor="end"),
    ]
    for tick in y_axis.ticks:
        y = y_axis.place(tick)
        parts.append(_stroke(_MARGIN, y, WIDTH - _MARGIN, y, _PALE))
        parts.append(_text(_MARGIN - 6, y + 4, _short(tick), anchor="end"))
    for tick in x_axis.ticks:
        x = x_axis.place(tick)
        parts.append(_stroke(x, top, x, top + _PANEL_HEIGHT, _PALE))
        parts.append(_text(x, top + _PANEL_HEIGHT + 16, _short(tick), anchor="middle"))
    for number, line in enumerate(panel.lines):
        colour = _SERIES_COLOURS[number % len(_SERIES_COLOURS)]
        places = [(x_axis.place(x), y_axis.place(y)) for x, y in line.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        legend = WIDTH - _MARGIN - _LEGEND_WIDTH * (len(panel.lines) - 1 - number)
        parts.append(_text(legend, top - 8, line.name, "end", colour))
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


def _rect(x: float, y: float, width: float, colour: str, *, is_pale: bool = False) -> str:
    size = f'width="{width:.1f}" height="{_BAR_HEIGHT}"'
    opacity = f' fill-opacity="{_PALE_OPACITY}"' if is_pale else ""
    return f'<rect x="{x:.1f}" y="{y:.1f}" {size} fill="{colour}"{opacity}/>'


def _stroke(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _short(number: float) -> str:
    """A number on an axis."""
    return f"{number:,.0f}" if number >= 10 or number == 0 else f"{number:.2g}"  # noqa: PLR2004 - two digits
