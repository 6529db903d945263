"""Offers a ledger more than it can carry, and sees what becomes of it: goodput, latency, refusals.

First the capacity: connections that always have a request under way. Then multiples of it, in an
open loop (`generator`, a process of its own). Relies on `stage` for the cluster.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from cluster.bench.figures import Measure, Workload
from cluster.bench.generator import Order, Report
from cluster.bench.plan import LEDGER
from cluster.bench.programs import run_program
from cluster.bench.result import LoadPoint

if TYPE_CHECKING:
    from cluster.bench.plan import Book, Plan
    from cluster.bench.stage import Stage

CONNECTIONS: Final = 512
GRACE_S: Final = 5.0
_GENERATOR: Final = "cluster.bench.generator"


@dataclass(frozen=True, slots=True)
class Shape:
    """What one request of a load holds, and how many of them are under way at capacity."""

    name: str
    transactions: int
    connections: int


SINGLE: Final = Shape("single submits", 1, 256)
BATCHES: Final = Shape("batches of 250", 250, 64)
"""So large that the connections together hold more than a node's queue."""


async def measure_overload(stage: Stage, plan: Plan, book: Book) -> None:
    """Measure both shapes, at the leader."""
    for workload in book.wanted(plan, (Workload.OVERLOAD,)):
        points = []
        for shape in (SINGLE, BATCHES):
            points += await _measure_shape(stage, plan, book, shape)
        book.load += points
        for point in points:
            if point.multiple == max(plan.multiples):
                values = {Measure.PER_S: point.goodput_per_s}
                if point.p99_ms is not None:
                    values[Measure.P99_MS] = point.p99_ms
                note = f"{point.shape}, {point.multiple:g} times the capacity offered"
                book.add(LEDGER, workload, values, note)


def make_point(shape: Shape, multiple: float, order: Order, report: Report) -> LoadPoint:
    """What a report says, as rates and shares of what was offered."""
    offered = report.accepted + report.refused + report.failed + report.unanswered
    whole = max(1, offered)
    return LoadPoint(
        subject=LEDGER,
        shape=shape.name,
        multiple=multiple,
        offered_per_s=offered / order.seconds,
        goodput_per_s=report.in_time / order.seconds,
        p50_ms=report.p50_ms,
        p99_ms=report.p99_ms,
        refused_share=report.refused / whole,
        failed_share=report.failed / whole,
        unserved_share=report.unanswered / whole,
    )


async def _measure_shape(stage: Stage, plan: Plan, book: Book, shape: Shape) -> list[LoadPoint]:
    url = await stage.leader_url()
    await stage.rest()
    closed = Order(
        url=url,
        seconds=plan.seconds,
        connections=shape.connections,
        transactions=shape.transactions,
    )
    capacity_per_s = (await _offer(closed)).in_time / plan.seconds
    points = []
    for multiple in plan.multiples:
        book.report(
            f"{Workload.OVERLOAD}: {shape.name}, {multiple:g} times {capacity_per_s:,.0f}/s"
        )
        await stage.rest()
        order = Order(
            url=await stage.leader_url(),
            seconds=plan.seconds,
            connections=CONNECTIONS,
            transactions=shape.transactions,
            rate_per_s=max(1.0, multiple * capacity_per_s / shape.transactions),
            grace_s=GRACE_S,
        )
        points.append(make_point(shape, multiple, order, await _offer(order)))
    return points


async def _offer(order: Order) -> Report:
    return await run_program(_GENERATOR, [msgspec.json.encode(order).decode()], Report)
