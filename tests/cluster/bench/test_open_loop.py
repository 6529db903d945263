"""The accounting of an open loop, in virtual time, and what the generator makes of answers."""

from __future__ import annotations

from itertools import pairwise
from random import Random
from typing import TYPE_CHECKING

import msgspec
import pytest

from cluster.bench.connection import Answer
from cluster.bench.generator import Order, Report, judge, make_due
from cluster.bench.open_loop import OpenLoop, Tally, poisson
from cluster.bench.overload import SINGLE, make_point

if TYPE_CHECKING:
    from collections.abc import Sequence


def serve(loop: OpenLoop, moments: Sequence[tuple[float, float]]) -> None:
    """Run a load whose n-th request is sent at no earlier than, and answered at, these moments."""
    for start, end in moments:
        (connection,) = loop.start_due(start)
        loop.answered(connection, end, Tally(accepted=1))


def test_a_stalled_server_is_charged_for_everyone_who_waited() -> None:
    """Ten requests are due 10 ms apart, the first takes a second: nine others waited as well."""
    due = [number / 100 for number in range(10)]
    loop = OpenLoop(due=due, connections=1, seconds=2.0)
    serve(loop, [(0.0, 1.0)] + [(1.0, 1.0)] * 9)

    assert loop.percentile_ms(0.5) == pytest.approx(950)
    assert loop.percentile_ms(0.1) == pytest.approx(910)
    assert loop.is_over


def test_nothing_is_sent_before_it_is_due() -> None:
    """However idle the connections are."""
    loop = OpenLoop(due=[0.5, 0.6], connections=4, seconds=1.0)

    assert [] == loop.start_due(0.4)
    assert 0.5 == loop.next_due
    assert 1 == len(loop.start_due(0.5))
    assert 0.6 == loop.next_due


def test_a_connection_carries_one_request_at_a_time() -> None:
    """What is due beyond that waits, in the order in which it fell due."""
    loop = OpenLoop(due=[0.0, 0.1, 0.2], connections=2, seconds=1.0)
    first, second = loop.start_due(0.5)
    assert [] == loop.start_due(0.6)

    loop.answered(second, 0.7, Tally(accepted=1))
    assert [second] == loop.start_due(0.7)
    loop.answered(second, 0.9, Tally(accepted=1))
    assert loop.latencies_s == pytest.approx([0.6, 0.7])
    assert first != second


def test_only_what_is_accepted_within_the_load_is_goodput() -> None:
    """Later answers count as accepted, and have their latency, but came too late."""
    loop = OpenLoop(due=[0.0, 0.0], connections=2, seconds=1.0, transactions=250)
    one, other = loop.start_due(0.0)
    loop.answered(one, 1.0, Tally(accepted=250))
    loop.answered(other, 1.1, Tally(accepted=250))

    assert 250 == loop.in_time
    assert Tally(accepted=500) == loop.tally


def test_what_is_refused_has_no_latency() -> None:
    """A quick refusal must not pass for quick work."""
    loop = OpenLoop(due=[0.0], connections=1, seconds=1.0)
    (connection,) = loop.start_due(0.0)
    loop.answered(connection, 0.1, Tally(refused=1))

    assert loop.percentile_ms(0.5) is None
    assert Tally(refused=1) == loop.tally


def test_a_broken_connection_fails_what_it_carried_and_is_not_used_again() -> None:
    """The others go on; without any, what is due stays unanswered."""
    loop = OpenLoop(due=[0.0, 0.1, 0.2], connections=2, seconds=1.0)
    (first,) = loop.start_due(0.0)
    loop.broke(first)
    (second,) = loop.start_due(0.1)
    assert first != second
    loop.broke(second)

    assert [] == loop.start_due(0.3)
    assert Tally(failed=2) == loop.tally
    assert 1 == loop.unanswered()


def test_an_idle_connection_that_breaks_fails_nothing() -> None:
    """It is only missing from then on."""
    loop = OpenLoop(due=[0.5], connections=1, seconds=1.0)
    loop.broke(0)

    assert [] == loop.start_due(0.5)
    assert Tally() == loop.tally


def test_what_is_not_answered_at_the_end_is_counted() -> None:
    """What was never sent, and what was sent in vain, in transactions."""
    loop = OpenLoop(due=[0.0, 0.1, 0.2, 0.3], connections=1, seconds=0.4, transactions=10)
    loop.start_due(0.4)

    assert 40 == loop.unanswered()


def test_arrivals_come_at_the_rate_asked_for() -> None:
    """Ascending, within the time, about as many as asked for, and not in step."""
    moments = list(poisson(1_000, 10.0, Random(1)))

    assert sorted(moments) == moments
    assert moments[-1] < 10.0
    assert 9_700 < len(moments) < 10_300
    gaps = [later - earlier for earlier, later in pairwise(moments)]
    assert max(gaps) > 5 * sum(gaps) / len(gaps)


def test_a_closed_loop_is_always_due() -> None:
    """The capacity is measured with connections that never idle."""
    due = iter(make_due(Order(url="http://127.0.0.1:1", seconds=1.0, connections=1)))

    assert [0.0, 0.0, 0.0] == [next(due) for _ in range(3)]


PARTLY = msgspec.json.encode(
    {"receipts": [{"block_hash": "00", "index": 1}, {"status": 429}, {"status": 503}]}
)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Answer(201, b""), Tally(accepted=3)),
        (Answer(429, b""), Tally(refused=3)),
        (Answer(503, b""), Tally(failed=3)),
        (Answer(207, PARTLY), Tally(accepted=1, refused=1, failed=1)),
    ],
)
def test_an_answer_is_judged_by_its_status(answer: Answer, expected: Tally) -> None:
    """Each transaction of a batch for itself, where some were refused."""
    assert expected == judge(answer, 3)


def test_a_point_is_of_what_was_offered() -> None:
    """Shares are of everything that fell due, rates of the time of the load."""
    order = Order(url="http://127.0.0.1:1", seconds=2.0, connections=1)
    report = Report(
        accepted=60, in_time=50, refused=20, failed=5, unanswered=15, p50_ms=1.0, p99_ms=2.0
    )
    point = make_point(SINGLE, 2.0, order, report)

    assert (50.0, 25.0) == (point.offered_per_s, point.goodput_per_s)
    shares = point.refused_share, point.failed_share, point.unserved_share
    assert (0.2, 0.05, 0.15) == shares
