"""What is read from other programs and from the kernel: wrk, /proc, HTTP answers, metrics."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cluster.bench import run
from cluster.bench.connection import Answer, make_post, split_answer
from cluster.bench.errors import BenchError
from cluster.bench.figures import Measure, Workload
from cluster.bench.limits import measure_limits
from cluster.bench.machine import find_file_system, look_at_machine, look_at_versions
from cluster.bench.plan import LEDGER, Book, Plan
from cluster.bench.probe import Probed
from cluster.bench.processes import (
    cpu_s,
    own_memory_mib,
    parse_anonymous_kib,
    parse_cpu_ticks,
    with_children,
)
from cluster.bench.programs import run_program
from cluster.bench.result import Skipped
from cluster.bench.stage import parse_metrics
from cluster.bench.timings import Timings, percentile
from cluster.bench.wrk import WrkLoad, find_wrk, parse_output

if TYPE_CHECKING:
    from cluster.bench.wrk import Wrk

WRK = """\
Running 1s test @ http://127.0.0.1:36051/
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     9.61ms    4.15ms  52.53ms   92.09%
    Req/Sec     6.85k   817.60     8.00k    70.00%
  Latency Distribution
     50%  850.00us
     75%   10.06ms
     90%   12.77ms
     99%    1.02s
  6814 requests in 1.00s, 2.52MB read
{trouble}Requests/sec:   6806.12
Transfer/sec:      2.52MB
"""


def test_wrk_is_read() -> None:
    """Its rate, how many requests there were, and latencies in whichever unit it prints."""
    load = parse_output(WRK.format(trouble=""))

    assert WrkLoad(requests=6814, per_s=6806.12, p50_ms=0.85, p99_ms=1020.0) == load


@pytest.mark.parametrize(
    "trouble",
    ["  Non-2xx or 3xx responses: 7\n", "  Socket errors: connect 0, read 3, write 0, timeout 0\n"],
)
def test_a_load_with_errors_is_no_measurement(trouble: str) -> None:
    """Refusals are quick: they must not pass for work."""
    with pytest.raises(BenchError, match=r"7|read 3"):
        parse_output(WRK.format(trouble=trouble))


def test_what_wrk_does_not_print_is_said() -> None:
    """Another version may print something else."""
    with pytest.raises(BenchError, match="printed no"):
        parse_output("wrk 9.9")


def test_without_wrk_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked for on the path."""
    monkeypatch.setenv("PATH", str(tmp_path))

    assert find_wrk(tmp_path) is None


@pytest.mark.asyncio
async def test_what_needs_wrk_is_skipped_with_a_line_that_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lone client of the echo needs none, and is measured."""
    monkeypatch.setenv("PATH", str(tmp_path))
    plan = Plan(seconds=0.01, rounds=1, workloads=frozenset({Workload.HTTP_ECHO}))
    result = await run.measure(plan, report=lambda _line: None)

    assert [(Workload.HTTP_ECHO, Measure.P50_MS), (Workload.HTTP_ECHO, Measure.P99_MS)] == [
        (one.workload, one.measure) for one in result.figures
    ]
    (skipped,) = result.skipped
    assert "HTTP echo on the same server stack, 64 clients" == skipped.what
    assert "apt-get install wrk" in skipped.why


@pytest.mark.asyncio
async def test_the_limits_of_the_machine_are_measured() -> None:
    """Each by a process of its own; what fails leaves the others as they are."""
    limits = (Workload.FDATASYNC, Workload.LMDB_3, Workload.ZEROMQ, Workload.SHA256)
    plan = Plan(seconds=0.01, rounds=1, workloads=frozenset(limits))
    result = await run.measure(plan, report=lambda _line: None)

    assert set(limits) == {one.workload for one in result.figures}
    assert all(one.value > 0 for one in result.figures)
    assert () == result.skipped
    assert () == result.subjects


@pytest.mark.asyncio
async def test_what_fails_is_told_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """One limit cannot be measured, the next one is."""

    async def fail_once(folder: Path, plan: Plan, book: Book, wrk: Wrk | None) -> None:
        if plan.wants(Workload.FDATASYNC):
            raise OSError("the disk is gone")
        await measure_limits(folder, plan, book, wrk)

    monkeypatch.setattr(run, "measure_limits", fail_once)
    workloads = frozenset({Workload.FDATASYNC, Workload.SHA256})
    plan = Plan(seconds=0.01, rounds=1, workloads=workloads)
    result = await run.measure(plan, report=lambda _line: None)

    assert [Workload.SHA256] == [one.workload for one in result.figures]
    assert (Skipped("fdatasync", "OSError: the disk is gone"),) == result.skipped


def test_every_workload_of_ours_is_measured_somewhere() -> None:
    """Each in one place alone."""
    places = [*run._ON_THREE_NODES, *run._ON_CLUSTERS_OF_THEIR_OWN, set(run._LIMITS)]

    assert run.OURS == frozenset().union(*places)
    assert len(run.OURS) == sum(len(place) for place in places)


@pytest.mark.asyncio
async def test_a_program_that_fails_says_why() -> None:
    """The last line of what it complained of."""
    with pytest.raises(BenchError, match="FileNotFoundError"):
        await run_program("cluster.bench.probe", ["lmdb", "0.01", "/nowhere/at/all"], Probed)


def test_processor_time_is_read_behind_any_name() -> None:
    """A process may be called whatever it likes, brackets and spaces included."""
    fields = "S 1 1 1 0 -1 4194560 100 0 0 0 250 50 9 9 20 0 1 0 5 5 5".split()

    assert 300 == parse_cpu_ticks(f"7 (a) b (c) {' '.join(fields)}")


def test_memory_is_what_a_process_has_for_itself() -> None:
    """Without mapped files; a process that has ended has none."""
    assert 512 == parse_anonymous_kib("VmRSS:\t  9000 kB\nRssAnon:\t     512 kB\nRssFile:\t 1 kB")
    assert 0 == parse_anonymous_kib("Name:\tgone\nState:\tZ (zombie)\n")


def test_this_process_is_measured() -> None:
    """It has used time and memory; a process that does not exist counts as nothing."""
    gone = 1 << 22
    assert os.getpid() in with_children([os.getpid()])
    assert cpu_s([os.getpid(), gone]) > 0
    assert own_memory_mib([os.getpid(), gone]) > 1
    assert [gone] == with_children([gone])


def test_an_answer_is_whole_with_its_last_byte() -> None:
    """However it is cut, and with what follows left alone."""
    data = b"HTTP/1.1 201 Created\r\nServer: x\r\nContent-Length: 5\r\n\r\nhello"
    for end in range(len(data)):
        assert split_answer(data[:end]) is None
    assert (Answer(201, b"hello"), len(data)) == split_answer(data)
    assert (Answer(201, b"hello"), len(data)) == split_answer(data + b"HTTP/1.1 ")


def test_an_answer_without_a_length_is_refused() -> None:
    """It could not be told from one that is not whole."""
    with pytest.raises(BenchError, match="Content-Length"):
        split_answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")


def test_a_request_is_what_http_says() -> None:
    """With its query, its host and its length."""
    assert (
        b"POST /a?b=c HTTP/1.1\r\nHost: 127.0.0.1:8001\r\n"
        b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    ) == make_post("http://127.0.0.1:8001/a?b=c", b"{}")


def test_metrics_are_read_by_the_names_of_the_node() -> None:
    """Comments and what has labels are left out."""
    text = (
        "# HELP bitnexus_term The node's term\nbitnexus_term 3.0\n"
        'bitnexus_http_answers_total{status="201"} 9.0\nother 1\n'
    )
    assert {"term": 3.0} == parse_metrics(text)


def test_the_file_system_is_the_innermost_mount() -> None:
    """Mounts lie in each other, and names begin alike."""
    mounts = "/dev/a / ext4 rw 0 0\ntmpfs /data tmpfs rw 0 0\n/dev/b /data/x xfs rw 0 0\n"

    assert "xfs on /dev/b" == find_file_system(mounts, Path("/data/x/y"))
    assert "tmpfs on tmpfs" == find_file_system(mounts, Path("/data/xy"))
    assert "ext4 on /dev/a" == find_file_system(mounts, Path("/home"))


def test_this_machine_is_known() -> None:
    """What a result tells of it is there."""
    machine = look_at_machine(Path("/"))

    assert len(os.sched_getaffinity(0)) == machine.cores
    assert machine.memory_mib > 0
    assert sys.version.split()[0] == look_at_versions()["python"]


def test_percentiles_are_values_that_were_measured() -> None:
    """The least that the share does not exceed; of one value it is that value."""
    values = [float(number) for number in range(1, 101)]

    assert (50.0, 99.0, 100.0) == tuple(percentile(values, share) for share in (0.5, 0.99, 1.0))
    assert 7.0 == percentile([7.0], 0.01)
    timings = Timings.of([0.002, 0.001, 0.004], elapsed_s=0.5)
    assert Timings(count=3, per_s=6.0, p50_ms=2.0, p99_ms=4.0, worst_ms=4.0) == timings


def test_a_figure_is_the_median_of_its_rounds() -> None:
    """Of each measure by itself."""
    book = Book(lambda _line: None)
    trials = [
        {Measure.PER_S: 10.0, Measure.P50_MS: 1.0},
        {Measure.PER_S: 90.0, Measure.P50_MS: 9.0},
        {Measure.PER_S: 20.0, Measure.P50_MS: 8.0},
    ]
    book.add_median(LEDGER, Workload.SINGLE_64, trials)

    assert [20.0, 8.0] == [one.value for one in book.figures]
