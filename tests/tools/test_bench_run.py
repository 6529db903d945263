"""One run: who is absent is skipped with a word, who fails is told, and the others go on."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from cluster.bench.errors import BenchError
from cluster.bench.figures import Figure, Measure, Subject, Workload
from cluster.bench.plan import QUICK
from cluster.bench.result import Skipped
from tools.bench.peer import Effort, Peer, Reading, Steps
from tools.bench.run import merge, run_all

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

PLAN = replace(QUICK, rounds=3, failovers=5, transactions=77)


class Stub:
    """A peer that answers at once and remembers how it was asked."""

    def __init__(self, name: str, *, is_installed: bool = True, fault: str = "") -> None:
        """`fault` is "start" or "step": what goes wrong."""
        self.efforts: list[Effort] = []
        self.log: list[str] = []
        self._fault = fault
        self.peer = Peer(
            name=name,
            install=f"install Debian's package {name}-server",
            is_installed=lambda: is_installed,
            subject=lambda: Subject(name, "1", "on disk", is_durable=True),
            running=self._running,
        )

    @contextlib.asynccontextmanager
    async def _running(self, folder: Path, effort: Effort) -> AsyncIterator[Steps]:
        assert [] == os.listdir(folder)  # noqa: PTH208 - a list to compare with
        self.efforts.append(effort)
        if self._fault == "start":
            raise BenchError("m1 ended with exit code 1:\n no port")
        yield {Workload.SEQUENTIAL: self._sequential, Workload.BATCHED: self._batched}
        self.log.append("ended")

    async def _sequential(self) -> list[Reading]:
        if self._fault == "step":
            raise TimeoutError
        return [Reading(Measure.P50_MS, float(len(self.efforts)))]

    async def _batched(self) -> list[Reading]:
        self.log.append("batched")
        return [Reading(Measure.PER_S, 10.0 * len(self.efforts), "COPY")]


@pytest.mark.asyncio
async def test_rounds_take_turns_and_their_median_counts() -> None:
    """Failovers and memory belong to the last round alone."""
    stub = Stub("etcd")
    result = await run_all(PLAN, [stub.peer], with_ledger=False, report=lambda _: None)

    assert (
        Figure("etcd", Workload.SEQUENTIAL, Measure.P50_MS, 2.0),
        Figure("etcd", Workload.BATCHED, Measure.PER_S, 20.0, "COPY"),
    ) == result.figures
    assert (Subject("etcd", "1", "on disk", is_durable=True),) == result.subjects
    once = Effort(seconds=1, failovers=0, records=0)
    assert [once, once, Effort(seconds=1, failovers=5, records=77)] == stub.efforts
    assert ["batched", "ended"] * 3 == stub.log


@pytest.mark.asyncio
async def test_the_absent_are_skipped_with_the_line_that_installs_them() -> None:
    """Loudly, and without a figure."""
    lines: list[str] = []
    stub = Stub("etcd", is_installed=False)
    result = await run_all(PLAN, [stub.peer], with_ledger=False, report=lines.append)

    words = "skipped: install Debian's package etcd-server"
    assert [f"etcd: {words}"] == lines
    assert (Skipped("etcd", words),) == result.skipped
    assert ((), []) == (result.figures, stub.efforts)


@pytest.mark.asyncio
async def test_a_peer_that_does_not_start_is_told_and_left_alone() -> None:
    """Once, with its reason on one line; the others are measured."""
    lines: list[str] = []
    broken, sound = Stub("etcd", fault="start"), Stub("raftos")
    peers = [broken.peer, sound.peer]
    result = await run_all(PLAN, peers, with_ledger=False, report=lines.append)

    why = "could not be measured: m1 ended with exit code 1: no port"
    assert (Skipped("etcd", why),) == result.skipped
    assert f"etcd: {why}" in lines
    assert (1, 3) == (len(broken.efforts), len(sound.efforts))
    assert {"raftos"} == {figure.subject for figure in result.figures}


@pytest.mark.asyncio
async def test_a_step_that_fails_leaves_the_others() -> None:
    """It is noted once, however many rounds it fails in."""
    stub = Stub("etcd", fault="step")
    result = await run_all(PLAN, [stub.peer], with_ledger=False, report=lambda _: None)

    assert (
        Skipped("etcd, sequential submits", "could not be measured: TimeoutError"),
    ) == result.skipped
    assert [Workload.BATCHED] == [figure.workload for figure in result.figures]


@pytest.mark.asyncio
async def test_only_what_the_plan_asks_for_is_measured() -> None:
    """A step of another workload does not run."""
    plan = replace(PLAN, rounds=1, workloads=frozenset({Workload.SEQUENTIAL}))
    stub = Stub("etcd")
    result = await run_all(plan, [stub.peer], with_ledger=False, report=lambda _: None)

    assert [Workload.SEQUENTIAL] == [figure.workload for figure in result.figures]
    assert ["ended"] == stub.log


def test_rounds_are_merged_by_what_they_measured() -> None:
    """The worst stays the worst, and figures with notes of their own stay apart."""

    def figure(measure: Measure, value: float, note: str = "") -> Figure:
        return Figure("etcd", Workload.FAILOVER, measure, value, note)

    rounds = [
        *(figure(Measure.P50_MS, value) for value in (1.0, 9.0, 2.0)),
        *(figure(Measure.WORST_MS, value) for value in (1.0, 9.0, 2.0)),
        figure(Measure.PER_S, 4.0, "one client"),
        figure(Measure.PER_S, 6.0, "64 clients"),
    ]
    assert [
        figure(Measure.P50_MS, 2.0),
        figure(Measure.WORST_MS, 9.0),
        figure(Measure.PER_S, 4.0, "one client"),
        figure(Measure.PER_S, 6.0, "64 clients"),
    ] == merge(rounds)
