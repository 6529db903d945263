"""Results: their file, their ratios, their tables and their pictures."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import msgspec
import pytest

from cluster.bench.errors import BenchError
from cluster.bench.figures import Figure, Measure, Subject, Workload
from cluster.bench.picture import Axis, Bar, Line, Panel, draw_bars, draw_panels
from cluster.bench.plan import LEDGER, MACHINE
from cluster.bench.ratios import compare, headlines, peers_of, shares_of, times_better
from cluster.bench.report import print_comparison, print_result, write_pictures
from cluster.bench.result import LoadPoint, Machine, Result, Skipped, read_result, write_result

if TYPE_CHECKING:
    from pathlib import Path

SVG = "{http://www.w3.org/2000/svg}"


def point(multiple: float, goodput: float, latency_ms: float | None) -> LoadPoint:
    """One of a curve."""
    return LoadPoint(
        subject=LEDGER,
        shape="single submits",
        multiple=multiple,
        offered_per_s=multiple * 1_000,
        goodput_per_s=goodput,
        p50_ms=latency_ms,
        p99_ms=latency_ms,
        refused_share=0.25,
        failed_share=0.0,
        unserved_share=0.5,
    )


def result(**changed: object) -> Result:
    """A run with the ledger, a peer that is not durable, and the machine."""
    figures = (
        Figure(MACHINE, Workload.HTTP_ECHO, Measure.PER_S, 20_000.0, "64 clients"),
        Figure(MACHINE, Workload.HTTP_ECHO, Measure.P50_MS, 0.1, "one client"),
        Figure(MACHINE, Workload.ZEROMQ, Measure.P50_MS, 0.2),
        Figure(MACHINE, Workload.LMDB_3, Measure.P50_MS, 0.7),
        Figure(LEDGER, Workload.SEQUENTIAL, Measure.P50_MS, 2.0),
        Figure(LEDGER, Workload.SINGLE_64, Measure.PER_S, 5_000.0),
        Figure("peer <1>", Workload.SEQUENTIAL, Measure.P50_MS, 3.0),
        Figure("peer <1>", Workload.SINGLE_64, Measure.PER_S, 10_000.0),
        Figure("peer <1>", Workload.FAILOVER, Measure.P50_MS, 90.0),
    )
    whole = Result(
        measured_at="2026-01-01T00:00:00+00:00",
        commit="0" * 40,
        machine=Machine("a CPU", 2, 4_096, "6.1", "ext4 on /dev/a"),
        versions={"bitnexus": "0.1.0"},
        seconds=5.0,
        rounds=3,
        subjects=(
            Subject(LEDGER, "0.1.0", "on the disks of a majority", is_durable=True),
            Subject("peer <1>", "9", "in memory", is_durable=False),
        ),
        figures=figures,
        load=(point(0.5, 500.0, 2.0), point(2.0, 900.0, 700.0), point(10.0, 0.0, None)),
        skipped=(Skipped("etcd", "it is not installed"),),
    )
    return msgspec.structs.replace(whole, **changed)


def test_a_result_comes_back_from_its_file(tmp_path: Path) -> None:
    """Every field of it."""
    file = tmp_path / "result.json"
    write_result(result(), file)

    assert result() == read_result(file)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"{", "holds no results"),
        (b'{"format": 1}', "holds no results"),
        (msgspec.json.encode(result(format=2)), "of format 2"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path: Path, content: bytes, why: str) -> None:
    """Nothing is guessed, and of another format nothing is read."""
    file = tmp_path / "result.json"
    file.write_bytes(content)
    with pytest.raises(BenchError, match=why):
        read_result(file)


def test_a_file_that_cannot_be_reached_is_told(tmp_path: Path) -> None:
    """Neither read nor written."""
    with pytest.raises(BenchError, match="cannot read"):
        read_result(tmp_path / "none")
    with pytest.raises(BenchError, match="cannot write"):
        write_result(result(), tmp_path / "none" / "result.json")


@pytest.mark.parametrize(
    ("measure", "value", "other", "expected"),
    [
        (Measure.PER_S, 20.0, 10.0, 2.0),
        (Measure.MB_PER_S, 5.0, 10.0, 0.5),
        (Measure.P50_MS, 20.0, 10.0, 0.5),
        (Measure.CPU_MS_PER_1000, 5.0, 10.0, 2.0),
        (Measure.MIB, 10.0, 10.0, 1.0),
        (Measure.WORST_MS, 0.0, 10.0, math.inf),
        (Measure.WORST_MS, 0.0, 0.0, 1.0),
    ],
)
def test_above_one_is_better(measure: Measure, value: float, other: float, expected: float) -> None:
    """Whichever way the measure goes, and also beside a 0."""
    figure = Figure(LEDGER, Workload.SEQUENTIAL, measure, value)

    assert expected == times_better(figure, value, other)


def test_a_figure_is_a_share_of_what_is_possible() -> None:
    """A lone write of three waits, many clients of the server stack; a peer's is none of ours."""
    lone, many = shares_of(result())

    assert pytest.approx(0.5) == lone.share
    assert pytest.approx(1.0) == lone.bound.value
    assert "ZeroMQ round trip" in lone.bound.made_of
    assert (Workload.SINGLE_64, 0.25) == (many.figure.workload, many.share)


def test_without_a_limit_there_is_no_share() -> None:
    """Half a bound is none."""
    figures = tuple(one for one in result().figures if one.workload is not Workload.ZEROMQ)

    assert [Workload.SINGLE_64] == [
        one.figure.workload for one in shares_of(result(figures=figures))
    ]


def test_peers_are_compared_where_both_did_it() -> None:
    """The machine is no peer, and a failover that we did not do has no ratio."""
    assert [(Workload.SEQUENTIAL, 1.5), (Workload.SINGLE_64, 0.5)] == [
        (one.ours.workload, one.ratio) for one in peers_of(result())
    ]


def test_a_peers_other_port_is_compared_with_ours_over_http() -> None:
    """Until this ledger has a figure for such a port of its own."""
    theirs = Figure("peer <1>", Workload.PORT_64, Measure.PER_S, 20_000.0, "gRPC")
    own = Figure(LEDGER, Workload.PORT_64, Measure.PER_S, 40_000.0)
    over_http = peers_of(result(figures=(*result().figures, theirs)))[-1]
    alike = peers_of(result(figures=(*result().figures, theirs, own)))[-1]

    assert (Workload.SINGLE_64, theirs, 0.25) == (
        over_http.ours.workload,
        over_http.theirs,
        over_http.ratio,
    )
    assert (own, theirs, 2.0) == (alike.ours, alike.theirs, alike.ratio)


def test_the_picture_of_ratios_has_one_measure_for_each_workload(tmp_path: Path) -> None:
    """The rate where there is one; who is not durable is pale."""
    figures = (
        *result().figures,
        Figure(LEDGER, Workload.SINGLE_64, Measure.P50_MS, 9.0),
        Figure("peer <1>", Workload.SINGLE_64, Measure.P50_MS, 9.0),
        Figure("etcd", Workload.SINGLE_64, Measure.PER_S, 1_000.0),
    )
    peers = peers_of(result(figures=figures))
    assert [
        (Workload.SEQUENTIAL, Measure.P50_MS),
        (Workload.SINGLE_64, Measure.PER_S),
        (Workload.SINGLE_64, Measure.PER_S),
    ] == [(one.theirs.workload, one.theirs.measure) for one in headlines(peers)]
    assert 4 == len(peers)

    write_pictures(result(figures=figures), tmp_path)
    root = ET.fromstring((tmp_path / "ratios.svg").read_text())  # noqa: S314 - our own text
    opacities = [one.get("fill-opacity") for one in root.iter(f"{SVG}rect")]
    assert [None, "0.4", "0.4", None] == opacities
    assert [
        "sequential submits, p50, ms",
        "peer <1>",
        "1.5",
        "64 clients, single submits, per s",
        "peer <1>",
        "0.5",
        "etcd",
        "5",
    ] == [one.text for one in root.iter(f"{SVG}text")][1:]


def test_two_runs_are_compared_on_the_same_terms() -> None:
    """Better, worse or the same; a figure of other terms is not compared."""
    figures = (
        Figure(LEDGER, Workload.SEQUENTIAL, Measure.P50_MS, 1.0),
        Figure(LEDGER, Workload.SINGLE_64, Measure.PER_S, 4_900.0),
        Figure(MACHINE, Workload.ZEROMQ, Measure.P50_MS, 0.4),
        Figure(MACHINE, Workload.HTTP_ECHO, Measure.PER_S, 20_000.0, "512 clients"),
    )
    found = compare(result(), result(figures=figures))

    assert [("better", 2.0), ("same", 0.98), ("worse", 0.5)] == [
        (one.verdict, one.ratio) for one in found
    ]


def test_the_tables_tell_all(capsys: pytest.CaptureFixture[str]) -> None:
    """Figures, shares, ratios, load, who is not durable, and what could not be run."""
    print_result(result())
    shown = capsys.readouterr().out

    for words in ("50 %", "25 %", "1.5", "0.5", "peer <1>*", "* peer <1> 9", "in memory"):
        assert words in shown, words
    assert "not run: etcd: it is not installed" in shown
    assert "25.0 %" in shown


def test_a_comparison_warns_of_what_it_rests_on(capsys: pytest.CaptureFixture[str]) -> None:
    """Another machine, other lengths, figures without a partner."""
    other = Machine("another CPU", 64, 4_096, "6.1", "ext4 on /dev/a")
    print_comparison(result(), result(machine=other, seconds=1.0, figures=()))
    shown = capsys.readouterr().out

    assert "machines differ" in shown
    assert "lengths or the rounds differ" in shown
    assert "9 figures are in one of the files alone" in shown
    print_comparison(result(), result())
    shown = capsys.readouterr().out
    assert "differ" not in shown
    assert "alone" not in shown


def test_pictures_are_whole_and_need_nothing_else(tmp_path: Path) -> None:
    """Well-formed SVG, whatever a subject is called, without a link to anywhere."""
    paths = write_pictures(result(), tmp_path / "new")

    assert ["limits.svg", "ratios.svg", "load-single-submits.svg"] == [one.name for one in paths]
    for path in paths:
        text = path.read_text(encoding="utf-8")
        assert f"{SVG}svg" == ET.fromstring(text).tag  # noqa: S314 - our own text
        assert "href" not in text
        assert "nan" not in text.lower()


def test_bars_are_as_long_as_their_numbers() -> None:
    """Shares are of the whole; ratios begin at 1 and go as far to the left as to the right."""
    root = ET.fromstring(draw_bars("t", [Bar("a", 0.25, ""), Bar("b", 1.0, "")], is_ratio=False))  # noqa: S314 - our own text
    _, quarter, whole = [float(one.attrib["width"]) for one in root.iter(f"{SVG}rect")]
    assert pytest.approx(4, rel=0.01) == whole / quarter

    root = ET.fromstring(draw_bars("t", [Bar("a", 0.1, ""), Bar("b", 10.0, "")], is_ratio=True))  # noqa: S314 - our own text
    _, worse, better = list(root.iter(f"{SVG}rect"))
    assert worse.attrib["width"] == better.attrib["width"]
    assert float(worse.attrib["x"]) < float(better.attrib["x"])
    assert worse.attrib["fill"] != better.attrib["fill"]


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([3.0, 17.0], (2.0, 5.0, 10.0, 20.0)),
        ([10.0, 10.0], (10.0, 20.0)),
        ([1.0, 900_000.0], (1.0, 10.0, 100.0, 1_000.0, 10_000.0, 100_000.0, 1_000_000.0)),
    ],
)
def test_an_axis_has_round_numbers_around_its_values(
    values: list[float], ticks: tuple[float, ...]
) -> None:
    """Fine ones where there is room, powers of ten where there is not."""
    axis = Axis.through(values, start=0.0, end=100.0)

    assert ticks == pytest.approx(axis.ticks)
    assert (0.0, 100.0) == pytest.approx((axis.place(ticks[0]), axis.place(ticks[-1])))


def test_a_panel_without_points_is_no_fault() -> None:
    """Nothing was accepted: the picture says so."""
    picture = draw_panels("t", [Panel("x", "latency", (Line("a", ()),))])

    assert "latency: nothing" in picture
