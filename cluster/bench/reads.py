"""Measures how a running ledger answers: receipts, linearizable and local, and a user's history.

Relies on `stage` for the cluster and on wrk for the clients.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Final

from cluster.bench.connection import Connection, make_post
from cluster.bench.figures import Measure, Workload
from cluster.bench.plan import LEDGER
from cluster.bench.stage import SUBMIT_PATH, USER, batch_body
from cluster.bench.wrk import MISSING

if TYPE_CHECKING:
    from cluster.bench.plan import Book, Plan
    from cluster.bench.stage import Stage
    from cluster.bench.wrk import Wrk

CLIENTS: Final = 64
PAGE_ROWS: Final = 100
_READS: Final = (Workload.READ_64, Workload.LOCAL_READ_64, Workload.HISTORY)


async def measure_reads(stage: Stage, plan: Plan, book: Book, wrk: Wrk | None) -> None:
    """Measure the reads that the plan asks for, at the leader: a follower would ask it."""
    for workload in book.wanted(plan, _READS):
        if wrk is None:
            book.skip(workload.value, MISSING)
            continue
        leader = await stage.leader_url()
        receipt = await asyncio.to_thread(_record, leader)
        await stage.rest()
        url = leader + _path_of(workload, receipt)
        trials = []
        for _ in range(plan.rounds):
            load = await wrk.get(url, clients=CLIENTS, seconds=plan.seconds)
            trials.append(
                {
                    Measure.PER_S: load.per_s,
                    Measure.P50_MS: load.p50_ms,
                    Measure.P99_MS: load.p99_ms,
                }
            )
        note = (
            f"{PAGE_ROWS} rows, {CLIENTS} clients" if workload is Workload.HISTORY else "receipts"
        )
        book.add_median(LEDGER, workload, trials, note)


def _path_of(workload: Workload, receipt: str) -> str:
    match workload:
        case Workload.READ_64:
            return f"/api/v1/ledger/receipts/{receipt}"
        case Workload.LOCAL_READ_64:
            return f"/api/v1/ledger/receipts/{receipt}?consistency=local"
        case _:
            return f"{SUBMIT_PATH}/{USER}?limit={PAGE_ROWS}"


def _record(leader: str) -> str:
    """Record as much as a page of a history shows; the id of one of them."""
    with Connection(leader) as connection:
        answer = connection.exchange(make_post(leader + SUBMIT_PATH, batch_body(PAGE_ROWS)))
    identifier: str = json.loads(answer.body)["receipts"][0]["id"]
    return identifier
