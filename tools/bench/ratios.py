"""How this ledger compares with each peer of the same run: as ratios, in text and as a picture.

A ratio says how many times as good as the peer the ledger is, so above 1 is better for each
measure. Relies on a result with figures of the ledger's; draws SVG with nothing but text.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Final

from cluster.bench.figures import Figure, Measure, Workload
from cluster.bench.plan import LEDGER, MACHINE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cluster.bench.result import Result

STANDS_IN: Final = {
    Workload.PORT_SEQUENTIAL: Workload.SEQUENTIAL,
    Workload.PORT_64: Workload.SINGLE_64,
    Workload.PORT_256: Workload.SINGLE_256,
}
"""What the ledger answers over HTTP, where it has no figure for a peer's faster port."""

CAVEATS: Final = (
    "Failover: a process is killed, so its connections close at once. This ledger takes that for",
    "its end, where peers wait for a timeout; a machine that falls silent costs it an election",
    "timeout as well.",
)
FONT: Final = 'font-family="sans-serif" font-size="12"'
WIDTH: Final = 960
ROW: Final = 18
GAP: Final = 26
TOP: Final = 64
LEFT: Final = 300
RIGHT: Final = 130
LOWEST, HIGHEST = -2, 2
"""The ends of the picture's scale, as powers of ten; what lies beyond is drawn at its end."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """A peer's figure beside the ledger's."""

    figure: Figure
    ours: Figure
    is_durable: bool
    """Whether what the peer acknowledges is on the disks of a majority."""

    @property
    def value(self) -> float:
        """How many times as good the ledger is."""
        ours, theirs = self.ours.value, self.figure.value
        best, other = (ours, theirs) if self.figure.measure.is_better_higher else (theirs, ours)
        return best / other if other else math.inf


def ratios(result: Result) -> list[Ratio]:
    """Every figure of a peer that the ledger has one for, by workload and measure."""
    ours = {(one.workload, one.measure): one for one in result.figures if one.subject == LEDGER}
    durable = {subject.name for subject in result.subjects if subject.is_durable}
    found = []
    for figure in result.figures:
        stand_in = STANDS_IN.get(figure.workload, figure.workload)
        own = ours.get((figure.workload, figure.measure)) or ours.get((stand_in, figure.measure))
        if figure.subject not in {LEDGER, MACHINE} and own is not None:
            found.append(Ratio(figure, own, figure.subject in durable))
    order = list(Workload)
    measures = list(Measure)
    return sorted(
        found,
        key=lambda one: (order.index(one.figure.workload), measures.index(one.figure.measure)),
    )


def table(result: Result) -> str:
    """The ratios as text, under each workload and measure the ledger's own value."""
    lines = [f"{LEDGER} against its peers; above 1 is better for {LEDGER}"]
    title = ""
    for one in ratios(result):
        of_what = f"{one.figure.workload}, {one.figure.measure}"
        if of_what != title:
            title = of_what
            over = f" ({one.ours.workload})" if one.ours.workload != one.figure.workload else ""
            lines += ["", f"{title}: {one.ours.value:,.2f}{over}"]
        remarks = "; ".join(
            filter(None, ("" if one.is_durable else "NOT DURABLE", one.figure.note))
        )
        lines.append(
            f"  {one.value:8.2f} x  {one.figure.subject:36} {one.figure.value:14,.2f}  {remarks}"
        )
    lines += ["", *CAVEATS, "", "What an acknowledgement means:"]
    lines += [
        f"  {subject.name} {subject.version}: {subject.acknowledgement}"
        for subject in result.subjects
        if subject.name != MACHINE
    ]
    return "\n".join(line.rstrip() for line in lines)


def picture(result: Result) -> str:
    """The ratios as SVG: a bar from 1 to each, to the right where the ledger is better."""
    groups = _groups(ratios(result))
    height = TOP + sum(GAP + ROW * len(group) for group in groups) + GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" {FONT}>',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        _text(12, 22, f"{LEDGER} against its peers, as ratios of one run", "font-size='16'"),
        _text(12, 42, "Right of 1: this ledger is better. Pale: the peer does not fsync."),
        *_scale(height),
    ]
    y = TOP
    for group in groups:
        y += GAP
        first = group[0].figure
        parts.append(_text(12, y - 6, f"{first.workload}, {first.measure}", "font-weight='bold'"))
        for one in group:
            parts += _bar(one, y)
            y += ROW
    return "\n".join([*parts, "</svg>"]) + "\n"


def _groups(found: Iterable[Ratio]) -> list[list[Ratio]]:
    """One group for each workload, by the measure that says most about it."""
    groups: dict[Workload, list[Ratio]] = {}
    for one in found:
        group = groups.setdefault(one.figure.workload, [])
        if not group or group[0].figure.measure is one.figure.measure:
            group.append(one)
        elif one.figure.measure is Measure.PER_S:
            groups[one.figure.workload] = [one]
    return list(groups.values())


def _bar(one: Ratio, y: int) -> Sequence[str]:
    end, start = _x(one.value), _x(1.0)
    fill = "#1b6ca8" if one.value >= 1 else "#c4572b"
    opacity = 1.0 if one.is_durable else 0.35
    words = f"{one.value:.2f} x"
    place = f'x="{min(start, end):.1f}" y="{y}" width="{max(1.0, abs(end - start)):.1f}"'
    return (
        _text(24, y + 11, one.figure.subject),
        f'<rect {place} height="{ROW - 5}" fill="{fill}" fill-opacity="{opacity}"/>',
        _text(WIDTH - RIGHT + 12, y + 11, words),
    )


def _scale(height: int) -> list[str]:
    parts = []
    for power in range(LOWEST, HIGHEST + 1):
        x = _x(10.0**power)
        stroke = "#444" if power == 0 else "#ddd"
        parts.append(f'<path d="M{x:.1f} {TOP}V{height - 8}" stroke="{stroke}"/>')
        parts.append(_text(x, TOP - 6, f"{10.0**power:g}", "text-anchor='middle'"))
    return parts


def _x(ratio: float) -> float:
    power = min(max(math.log10(ratio), LOWEST), HIGHEST) if ratio > 0 else LOWEST
    return LEFT + (power - LOWEST) / (HIGHEST - LOWEST) * (WIDTH - LEFT - RIGHT)


def _text(x: float, y: float, words: str, attributes: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" {attributes}>{escape(words)}</text>'
