"""Offers load to a node in an open loop: `python -m cluster.bench.generator`, a JSON order inside.

A process of its own on uvloop, with raw connections and a request made once, so that what it costs
is small beside what a server does. Reads a `Order` as its argument, prints a `Report`.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from random import Random
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import msgspec
import uvloop

from cluster.bench.connection import Answer, make_post, split_answer
from cluster.bench.open_loop import OpenLoop, Tally, poisson
from cluster.bench.programs import tell
from cluster.bench.stage import SUBMIT_PATH, batch_body, single_body

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_CREATED: Final = 201
_MULTI_STATUS: Final = 207
_TOO_MANY: Final = 429
_ENDLESS: Final = 1_000_000
"""Requests of a closed loop: more than any server answers within a measured load."""


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The load to offer."""

    url: str
    """A node's."""
    seconds: float
    connections: int
    transactions: int = 1
    """In one request."""
    rate_per_s: float | None = None
    """Requests a second, independent of each other. None: each connection always has one."""
    grace_s: float = 0.0
    """How long answers are waited for after `seconds`."""
    seed: int = 1


class Report(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What became of it, in transactions."""

    accepted: int
    in_time: int
    """Accepted within `seconds`."""
    refused: int
    failed: int
    unanswered: int
    p50_ms: float | None
    p99_ms: float | None


class _Judged(msgspec.Struct):
    """One answer of a batch of which some are refused."""

    block_hash: str | None = None
    status: int | None = None


class _Batch(msgspec.Struct):
    receipts: list[_Judged]


def judge(answer: Answer, transactions: int) -> Tally:
    """What an answer says of the transactions of its request."""
    if answer.status == _CREATED:
        return Tally(accepted=transactions)
    if answer.status == _TOO_MANY:
        return Tally(refused=transactions)
    if answer.status != _MULTI_STATUS:
        return Tally(failed=transactions)
    outcomes = msgspec.json.decode(answer.body, type=_Batch).receipts
    accepted = sum(1 for one in outcomes if one.block_hash is not None)
    refused = sum(1 for one in outcomes if one.status == _TOO_MANY)
    return Tally(accepted, refused, len(outcomes) - accepted - refused)


def make_due(order: Order) -> Iterable[float]:
    """When the requests of an order fall due."""
    if order.rate_per_s is None:
        return itertools.repeat(0.0, _ENDLESS)
    return poisson(order.rate_per_s, order.seconds, Random(order.seed))


class _Wire(asyncio.Protocol):
    """One connection: sends the request when told, hands each answer on."""

    def __init__(self, number: int, load: _Load) -> None:
        self._number = number
        self._load = load
        self._data = b""

    def data_received(self, data: bytes) -> None:
        """Hand on an answer that is whole."""
        self._data = self._data + data if self._data else data
        found = split_answer(self._data)
        if found is not None:
            self._data = b""
            self._load.on_answer(self._number, found[0])

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's way to call it
        """Tell that nothing more can be sent here."""
        self._load.on_lost(self._number)


class _Load:
    """Drives an `OpenLoop` by the clock and by what comes back."""

    def __init__(self, order: Order) -> None:
        self._order = order
        body = single_body() if order.transactions == 1 else batch_body(order.transactions)
        self._request = make_post(order.url + SUBMIT_PATH, body)
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._wires: list[asyncio.Transport] = []
        self._done = asyncio.Event()

    async def run(self) -> OpenLoop:
        """Connect, offer everything, and wait for the answers as long as the order allows."""
        order = self._order
        place = urlsplit(order.url)
        assert place.hostname is not None
        assert place.port is not None
        for number in range(order.connections):
            transport, _ = await self._loop.create_connection(
                self._wire_maker(number), place.hostname, place.port
            )
            self._wires.append(transport)
        self._open = OpenLoop(
            due=make_due(order),
            connections=order.connections,
            seconds=order.seconds,
            transactions=order.transactions,
        )
        self._started = self._loop.time()
        self._go_on()
        try:
            async with asyncio.timeout(order.seconds + order.grace_s):
                await self._done.wait()
        except TimeoutError:
            pass
        self._done.set()
        return self._open

    def on_answer(self, number: int, answer: Answer) -> None:
        """Count it, and send what has waited for this connection."""
        if not self._done.is_set():
            self._open.answered(number, self._now(), judge(answer, self._order.transactions))
            self._go_on()

    def on_lost(self, number: int) -> None:
        """Go on with the others."""
        if not self._done.is_set():
            self._open.broke(number)
            self._go_on()

    def _wire_maker(self, number: int) -> Callable[[], _Wire]:
        return lambda: _Wire(number, self)

    def _now(self) -> float:
        return self._loop.time() - self._started

    def _go_on(self) -> None:
        now = self._now()
        for number in self._open.start_due(now):
            self._wires[number].write(self._request)
        due = self._open.next_due
        if self._open.is_over:
            self._done.set()
        elif due is not None and due > now and self._timer is None:
            self._timer = self._loop.call_later(due - now, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        if not self._done.is_set():
            self._go_on()


async def offer(order: Order) -> Report:
    """Offer a load and tell what became of it; raises OSError where nobody listens."""
    loop = await _Load(order).run()
    return Report(
        accepted=loop.tally.accepted,
        in_time=loop.in_time,
        refused=loop.tally.refused,
        failed=loop.tally.failed,
        unanswered=loop.unanswered(),
        p50_ms=loop.percentile_ms(0.5),
        p99_ms=loop.percentile_ms(0.99),
    )


def main() -> None:
    """Carry out the order in the only argument."""
    order = msgspec.json.decode(sys.argv[1], type=Order)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        tell(runner.run(offer(order)))


if __name__ == "__main__":
    main()
