"""Shows results: tables for a terminal, pictures for a page.

Relies on `node.cli_output` for tables and on `picture` for SVG.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from cluster.bench.errors import BenchError
from cluster.bench.picture import Bar, Line, Panel, draw_bars, draw_panels
from cluster.bench.ratios import compare, headlines, peers_of, shares_of
from node.cli_output import print_fields, print_table, say

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cluster.bench.figures import Figure
    from cluster.bench.ratios import Comparison
    from cluster.bench.result import LoadPoint, Result

_SMALL, _LARGE = 10, 1_000
_NOT_DURABLE = "*"


def print_result(result: Result) -> None:
    """Print figures, ratios, the load curve, and what could not be run."""
    print_fields(_facts(result))
    if result.figures:
        say("")
        _print_figures(result)
    if peers_of(result):
        say("")
        _print_peers(result)
    if result.load:
        say("")
        _print_load(result.load)
    for one in result.skipped:
        say(f"not run: {one.what}: {one.why}")


def print_comparison(before: Result, after: Result) -> None:
    """Print how many times better each figure is after, and what the ratios rest on."""
    found = compare(before, after)
    rows = [
        (
            one.after.subject,
            one.after.workload.value,
            one.after.measure.value,
            _number(one.before.value),
            _number(one.after.value),
            f"{one.ratio:.2f}",
            one.verdict,
        )
        for one in found
    ]
    headers = ("subject", "workload", "measure", "before", "after", "ratio", "verdict")
    print_table(headers, rows, right="before after ratio")
    say("A ratio above 1 is better, whichever way the measure goes.")
    if before.machine != after.machine:
        say("The machines differ: the ratios tell of them as well.")
    if (before.seconds, before.rounds) != (after.seconds, after.rounds):
        say("The lengths or the rounds differ: the shorter run tells less.")
    alone = len(before.figures) + len(after.figures) - 2 * len(found)
    if alone:
        say(f"{alone} figures are in one of the files alone, or on other terms.")


def comparison_rows(found: list[Comparison]) -> list[dict[str, object]]:
    """The same for a machine."""
    return [
        {
            "subject": one.after.subject,
            "workload": one.after.workload,
            "measure": one.after.measure,
            "note": one.after.note,
            "before": one.before.value,
            "after": one.after.value,
            "times_better": one.ratio,
            "verdict": one.verdict,
        }
        for one in found
    ]


def write_pictures(result: Result, folder: Path) -> list[Path]:
    """Draw what there is to draw into a folder, made where there is none; raises BenchError."""
    paths = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, picture in _pictures(result):
            paths.append(folder / f"{name}.svg")
            paths[-1].write_text(picture, encoding="utf-8")
    except OSError as error:
        raise BenchError(f"cannot draw in {folder}: {error.strerror}") from error
    return paths


def _facts(result: Result) -> list[tuple[str, str]]:
    machine = result.machine
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    return [
        ("measured", f"{result.measured_at}, {result.rounds} x {result.seconds:g} s"),
        ("commit", result.commit),
        ("machine", f"{machine.cpu}, {machine.cores} cores, {machine.memory_mib:,} MiB"),
        ("system", f"Linux {machine.kernel}, {machine.disk}"),
        ("versions", versions),
    ]


def _print_figures(result: Result) -> None:
    shares = {id(one.figure): one for one in shares_of(result)}
    rows = []
    for figure in result.figures:
        share = shares.get(id(figure))
        limit = "" if share is None else _number(share.bound.value)
        percent = "" if share is None else f"{100 * share.share:.0f} %"
        note = figure.note if share is None else _with_note(figure, share.bound.made_of)
        what = (figure.subject, figure.workload.value, figure.measure.value)
        rows.append((*what, _number(figure.value), limit, percent, note))
    headers = ("subject", "workload", "measure", "value", "limit", "share", "on which terms")
    print_table(headers, rows, right="value limit share")


def _with_note(figure: Figure, made_of: str) -> str:
    limit = f"limit: {made_of}"
    return f"{figure.note}; {limit}" if figure.note else limit


def _print_peers(result: Result) -> None:
    weak = {one.name for one in result.subjects if not one.is_durable}
    rows = [
        (
            one.ours.workload.value,
            one.ours.measure.value,
            _number(one.ours.value),
            one.theirs.subject + _NOT_DURABLE * (one.theirs.subject in weak),
            _number(one.theirs.value),
            _number(one.ratio),
            one.theirs.note,
        )
        for one in peers_of(result)
    ]
    headers = ("workload", "measure", "ours", "peer", "theirs", "ratio", "on which terms")
    print_table(headers, rows, right="ours theirs ratio")
    say("A ratio above 1 means that this ledger is better, whichever way the measure goes.")
    say("Failover is of a killed process: its connections close, which this ledger takes for its")
    say("end. A machine that falls silent costs it an election timeout, as it does most peers.")
    for one in result.subjects:
        mark = "" if one.is_durable else f"{_NOT_DURABLE} "
        say(f"{mark}{one.name} {one.version} acknowledges a write when it is {one.acknowledgement}")


def _print_load(points: tuple[LoadPoint, ...]) -> None:
    rows = [
        (
            one.subject,
            one.shape,
            f"{one.multiple:g}",
            _number(one.offered_per_s),
            _number(one.goodput_per_s),
            _milliseconds(one.p50_ms),
            _milliseconds(one.p99_ms),
            f"{100 * one.refused_share:.1f} %",
            f"{100 * one.failed_share:.1f} %",
            f"{100 * one.unserved_share:.1f} %",
        )
        for one in points
    ]
    numbers = "capacities offered/s goodput/s p50,ms p99,ms refused failed unserved"
    print_table(("subject", "shape", *numbers.split()), rows, right=numbers)
    say("Load in an open loop: latency counts from the moment a request was to be sent.")


def _pictures(result: Result) -> Iterator[tuple[str, str]]:
    shares = shares_of(result)
    if shares:
        bars = [Bar(_label(one.figure), one.share, f"{100 * one.share:.0f} %") for one in shares]
        yield "limits", draw_bars("Share of what is possible here", bars, is_ratio=False)
    if peers_of(result):
        title = "How many times better this ledger is; pale: the peer does not fsync"
        yield "ratios", draw_bars(title, list(_bars_of_peers(result)), is_ratio=True)
    for shape in dict.fromkeys(one.shape for one in result.load):
        points = [one for one in result.load if one.shape == shape]
        yield f"load-{shape.replace(' ', '-')}", _draw_load(shape, points)


def _bars_of_peers(result: Result) -> Iterator[Bar]:
    """A group of bars for each workload."""
    weak = {one.name for one in result.subjects if not one.is_durable}
    group = ""
    for one in headlines(peers_of(result)):
        if 0 < one.ratio < math.inf:
            label = _label(one.theirs)
            yield Bar(
                one.theirs.subject,
                one.ratio,
                _number(one.ratio),
                is_pale=one.theirs.subject in weak,
                heading=label if label != group else "",
            )
            group = label


def _draw_load(shape: str, points: list[LoadPoint]) -> str:
    """Goodput and latency against what was offered, one line for each subject."""
    goodput, latency = [], []
    for subject in dict.fromkeys(one.subject for one in points):
        own = sorted(
            (one for one in points if one.subject == subject), key=lambda one: one.offered_per_s
        )
        carried = ((one.offered_per_s, one.goodput_per_s) for one in own)
        goodput.append(Line(subject, tuple((x, y) for x, y in carried if x and y)))
        for name, values in (
            ("p50", [(one.offered_per_s, one.p50_ms) for one in own]),
            ("p99", [(one.offered_per_s, one.p99_ms) for one in own]),
        ):
            known = tuple((x, y) for x, y in values if x and y)
            latency.append(Line(f"{subject}, {name}", known))
    x_label = "offered, transactions per s"
    panels = (
        Panel(x_label, "goodput, transactions per s", tuple(goodput)),
        Panel(x_label, "latency of accepted work, ms", tuple(latency)),
    )
    return draw_panels(f"Load in an open loop: {shape}", panels)


def _label(figure: Figure) -> str:
    return f"{figure.workload}, {figure.measure}"


def _number(value: float) -> str:
    """Three digits that count, and no more than a reader can compare."""
    if value >= _LARGE:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= _SMALL else f"{value:.3g}"


def _milliseconds(value: float | None) -> str:
    return "" if value is None else _number(value)
