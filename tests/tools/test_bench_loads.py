"""What the load programs print is read right, and an answer that is an error ends a load."""

from __future__ import annotations

import sys

import pytest

from cluster.bench.errors import BenchError
from cluster.bench.figures import Measure
from tools.bench.loads import (
    Load,
    latencies,
    output_of,
    parse_answer,
    parse_h2load,
    parse_pgbench,
    summary,
    throughput,
)
from tools.bench.peer import Reading

H2LOAD = """\
finished in 1.00s, 4.00 req/s, 1.2KB/s
requests: 4 total, 4 done, {succeeded} succeeded, {failed} failed, {errored} errored, 0 timeout
status codes: 4 2xx, 0 3xx, 0 4xx, 0 5xx
"""
H2LOAD_LOG = "".join(
    f"1795366670000000\t{status}\t{time_us}\n"
    for status, time_us in ((200, 1_000), (200, 4_000), (200, 2_000), (-1, 9), (200, 3_000))
)
PGBENCH = """\
number of transactions actually processed: 3
number of failed transactions: {failed} (0.000%)
latency average = 2.000 ms
tps = 1500.000000 (without initial connection time)
"""
PGBENCH_LOG = """\
0 1 1000 0 1795366670 201616
1 1 3000 0 1795366670 204759
0 2 2000 0 1795366670 209573
"""


def test_h2load_is_read_from_its_log() -> None:
    """Answered requests alone count, and the percentiles are of their own times."""
    output = H2LOAD.format(succeeded=4, failed=0, errored=0)

    assert Load(4, 2.0, 2.0, 4.0) == parse_h2load(output, H2LOAD_LOG, seconds=2)


@pytest.mark.parametrize(("failed", "errored"), [(1, 0), (1, 1)])
def test_a_failed_request_of_h2load_is_an_error(failed: int, errored: int) -> None:
    """No rate is made of what was not answered."""
    output = H2LOAD.format(succeeded=3, failed=failed, errored=errored)

    with pytest.raises(BenchError, match=f"{failed} requests failed, {errored} of them"):
        parse_h2load(output, H2LOAD_LOG, seconds=2)


def test_pgbench_is_read_from_its_log() -> None:
    """The rate is pgbench's own, without the time to connect."""
    assert Load(3, 1500.0, 2.0, 3.0) == parse_pgbench(PGBENCH.format(failed=0), PGBENCH_LOG)


def test_a_failed_transaction_of_pgbench_is_an_error() -> None:
    """As is an output that says nothing of them, as when nobody connected in time."""
    with pytest.raises(BenchError, match="number of failed transactions: 2"):
        parse_pgbench(PGBENCH.format(failed=2), PGBENCH_LOG)
    with pytest.raises(BenchError, match="duration: 1 s"):
        parse_pgbench("duration: 1 s\n", "")


def test_a_node_programs_answer_is_read() -> None:
    """Counts and microseconds."""
    assert Load(2_000, 4_000.0, 0.25, 1.5) == parse_answer("2000 500000 250 1500\n")


@pytest.mark.parametrize("answer", ["", "{badmatch,x}", "1 2 3", "0 500000 0 0"])
def test_a_node_programs_error_is_told(answer: str) -> None:
    """Whatever is no load is an error, and so is a load that nobody answered."""
    with pytest.raises(BenchError, match=r"a node answered|no request was answered"):
        parse_answer(answer)


def test_readings_of_a_load() -> None:
    """A batch counts for its transactions, a lone client for its latency alone."""
    load = Load(count=10, per_s=5.0, p50_ms=1.0, p99_ms=2.0)

    assert [Reading(Measure.P50_MS, 1.0), Reading(Measure.P99_MS, 2.0)] == latencies(load)
    assert Reading(Measure.PER_S, 500.0, "COPY") == throughput(load, batch=100, note="COPY")[0]


def test_nothing_answered_is_an_error() -> None:
    """There is no percentile of nothing."""
    with pytest.raises(BenchError, match="no request was answered"):
        summary([], 1.0)


@pytest.mark.asyncio
async def test_a_program_that_fails_is_told_by_its_last_words() -> None:
    """The name, and what it said."""
    script = "import sys; sys.exit('no such host')"

    with pytest.raises(BenchError, match=r"python.*: no such host"):
        await output_of(sys.executable, "-c", script)
    assert "fine\n" == await output_of(sys.executable, "-c", "print('fine')")
