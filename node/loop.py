"""The loop of one member: it carries everything between peers, disk, clock and `Replica`.

Order of travel: call or message → `Replica` (pure) → `Effects` → writer thread (LMDB, fsync) →
`Replica` → receipts. One save is under way at a time, in a thread of its own; while it runs the
loop goes on, and what comes meanwhile joins the next save. Everything else runs on the asyncio
loop, in short turns. An exception in here is a broken invariant or a failed disk: the node stops.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import structlog

from consensus.changes import ChangeError
from consensus.messages import InvalidMessageError, decode_message, encode_message
from node.catchup import serve
from node.lane import Lane
from node.outcomes import NodeFailedError
from node.pacing import NEVER_US
from node.saving import SavingThread
from node.zmq_loop import FailureGuard
from storage.errors import DamagedBlockError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from consensus.block import Block
    from consensus.changes import Change
    from consensus.messages import MemberId
    from consensus.ready import Save
    from node.effects import Recorded, Serving
    from node.replica import Replica
    from node.submissions import Submission
    from storage.contract import Chain

Value = TypeVar("Value")
_log = structlog.get_logger("loop")

TICKS_PER_HEARTBEAT: Final = 5
SUBMITTED_PER_PUMP: Final = 2_000
"""Transactions taken in one turn of the loop, some 2 µs each; a larger call is taken whole."""
STALL_TICKS: Final = 10
"""A loop that is so many ticks late was held up."""
NANOS_PER_MICRO: Final = 1_000
MICROS_PER_MILLI: Final = 1_000
MILLIS_PER_SECOND: Final = 1_000


class MemberLoop:
    """Drives a replica. Lives on the asyncio loop on which it is started."""

    def __init__(
        self,
        *,
        replica: Replica,
        chain: Chain,
        tick_s: float,
        on_applied: Callable[[int], None],
        on_members: Callable[[], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        """Nothing runs before `start`.

        Args:
            replica: the member's state.
            chain: where saves go; only this object writes to it.
            tick_s: how often time passes for the replica, in seconds.
            on_applied: takes the index up to which blocks are applied, each time it rises.
            on_members: called when `Fetching.peers` may have changed.
            on_failure: takes the exception that must stop the node.
        """
        self.dropped: Counter[str] = Counter()
        self._replica = replica
        self._chain = chain
        self._tick_s = tick_s
        self._on_applied = on_applied
        self._on_members = on_members
        self._on_failure = on_failure
        self._guard = FailureGuard(self._fail)
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reader")
        self._server = ThreadPoolExecutor(max_workers=1, thread_name_prefix="server")
        self._saver = SavingThread(chain, on_saved=self._on_saved, on_failure=self._fail)
        self._submitted: list[Submission] = []
        self._applied_waiters: list[asyncio.Future[None]] = []
        self._leader_waiters: list[asyncio.Future[None]] = []
        self._leader_seen: MemberId | None = None
        self._obstacle_seen: str | None = None
        self._seal_planned_us = NEVER_US
        self._pump_scheduled = False
        self._running = False
        self._worst_stall_s = 0.0

    @property
    def applied_index(self) -> int:
        """The last index whose transactions this member answers for."""
        return self._replica.applied_index

    def take_worst_stall_us(self) -> int:
        """By how much the latest tick since the last call came late, in microseconds.

        So much of a stall of this loop is seen as outlasts the time to the next tick.
        """
        worst_s, self._worst_stall_s = self._worst_stall_s, 0.0
        return int(worst_s * 1_000_000)

    def start(self, send: Callable[[MemberId, Lane, bytes], bool]) -> None:
        """Begins to take part; `send` never waits, and False from it is a lost message."""
        self._loop = asyncio.get_running_loop()
        self._send = send
        self._running = True
        self._ticked = self._tick_due = self._pumped = self._loop.time()
        self._saver.start()
        self._tick()

    def change_membership(self, change: Change, on_settled: Callable[[bool], None]) -> Block:
        """Seals a change of the membership; see `Replica.change_membership`.

        Raises:
            ChangeError: it is not made.
        """
        return self._call(lambda: self._replica.change_membership(change, on_settled))

    def transfer_leadership(self, target: MemberId | None) -> None:
        """Begins to hand over; see `Raft.transfer_leadership`. Raises ChangeError."""
        self._call(lambda: self._replica.raft.transfer_leadership(target))

    async def wait_leader_news(self) -> None:
        """Waits until someone else leads than now, or nobody does."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._leader_waiters.append(waiter)
        await waiter

    def forget_read(self, number: int) -> None:
        """Nobody waits for that read any more."""
        self._replica.forget_read(number)

    def stop(self) -> None:
        """Takes no further part. A save under way still ends."""
        self._running = False

    async def close(self) -> None:
        """Waits for the save and the read under way, so that the chain can be closed."""
        await asyncio.to_thread(self._reader.shutdown, cancel_futures=True)
        await asyncio.to_thread(self._server.shutdown, cancel_futures=True)
        await self._saver.close()

    def submit(self, submission: Submission) -> None:
        """Takes a client's transactions, at the next pump; once it has stopped, nothing."""
        if self._running:
            self._submitted.append(submission)
            self._wake()

    def read(self, on_applied: Callable[[int], None]) -> int | None:
        """Takes a client's linearizable read; see `Replica.read`. None where nothing runs."""
        number = None
        if self._running:
            with self._guard:
                number = self._replica.read(on_applied)
            self._wake()
        return number

    def receive(self, source: MemberId, raw: bytes) -> None:
        """Takes a peer's message; what cannot be decoded is dropped and counted."""
        try:
            message = decode_message(raw)
        except InvalidMessageError:
            self.dropped["undecodable"] += 1
            return
        if self._running:
            with self._guard:
                self._replica.advance(*_clocks())
                self._replica.receive(source, message)
            self._wake()

    def unreachable(self, peer: MemberId) -> None:
        """The connection to a peer broke."""
        self._run(lambda: self._replica.unreachable(peer))

    def reachable(self, peer: MemberId) -> None:
        """The connection to a peer is there."""
        self._run(lambda: self._replica.reachable(peer))

    def flushed(self, index: int) -> None:
        """The index store answers for everything through `index`."""
        self._run(lambda: self._replica.flushed(index))

    async def wait_applied(self, beyond: int) -> int:
        """Waits until more than `beyond` is applied; how far that is."""
        while self._replica.applied_index <= beyond:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._applied_waiters.append(waiter)
            await waiter
        return self._replica.applied_index

    def _call(self, work: Callable[[], Value]) -> Value:
        """One call that may be refused, and a pump to follow."""
        if not self._running:
            raise NodeFailedError("the node is not running")
        try:
            self._replica.advance(*_clocks())
            value = work()
        except ChangeError:
            raise
        except Exception as error:
            self._fail(error)
            raise
        self._wake()
        return value

    def _run(self, work: Callable[[], None]) -> None:
        """One input to the replica, and a pump to follow; nothing once the member has stopped."""
        if self._running:
            with self._guard:
                work()
            self._wake()

    def _fail(self, error: BaseException) -> None:
        """Falls silent at once, before anyone else hears of it."""
        self.stop()
        self._on_failure(error)

    def _tick(self) -> None:
        """After a stall of this loop, messages that wait in the sockets come before timeouts.

        Else a follower would take its own pause for the silence of a leader whose heartbeats lie
        unread. One turn of the loop reads the sockets.
        """
        if not self._running:
            return
        now = self._loop.time()
        is_late = now - self._ticked > STALL_TICKS * self._tick_s
        self._ticked = now
        self._worst_stall_s = max(self._worst_stall_s, now - self._tick_due)
        if is_late:
            self._tick_due = now
            self._loop.call_soon(self._loop.call_soon, self._tick)
            return
        self._tick_due = now + self._tick_s
        self._loop.call_later(self._tick_s, self._tick)
        if now - self._pumped >= self._tick_s / 2:  # each pump lets time pass, too
            self._pump()

    def _wake(self) -> None:
        """One pump serves all that comes in within one turn of the loop."""
        if self._running and not self._pump_scheduled:
            self._pump_scheduled = True
            self._loop.call_soon(self._pump_once)

    def _pump_once(self) -> None:
        self._pump_scheduled = False
        if self._running:
            self._pump()

    def _pump(self) -> None:
        self._pumped = self._loop.time()
        with self._guard:
            applied_before = self._replica.applied_index
            self._replica.tick(*_clocks())
            if self._submitted:
                self._replica.submit(*self._take_submitted())
            effects = self._replica.pump()
            for target, lane, message in effects.envelopes:
                self._send(target, lane, encode_message(message))
            if effects.save is not None:
                self._saver.save(effects.save)
            if effects.recorded:
                self._read_recorded(effects.recorded)
            for serving in effects.servings:
                self._serve(serving)
            if effects.has_new_members:
                self._on_members()
            if self._replica.applied_index > applied_before:
                self._on_applied(self._replica.applied_index)
                self._applied_waiters = _release(self._applied_waiters)
            if self._replica.raft.leader != self._leader_seen:
                self._leader_waiters = _release(self._leader_waiters)
            self._leader_seen = self._replica.raft.leader
            if self._replica.obstacle != self._obstacle_seen:
                self._note_obstacle()
            if effects.more:
                self._wake()
            self._plan_seal()

    def _take_submitted(self) -> list[Submission]:
        """What was submitted since the last pump, or as much of it as one turn has time for."""
        count = transactions = 0
        for submission in self._submitted:
            count += 1
            transactions += len(submission.transactions)
            if transactions >= SUBMITTED_PER_PUMP:
                break
        taken, self._submitted = self._submitted[:count], self._submitted[count:]
        if self._submitted:
            self._wake()
        return taken

    def _plan_seal(self) -> None:
        """What gathers is sealed in its time, though nothing else happens until then."""
        due_us = self._replica.seal_us
        if due_us < self._seal_planned_us:
            self._seal_planned_us = due_us
            delay_us = due_us - time.monotonic_ns() // NANOS_PER_MICRO
            self._loop.call_later(_timer_s(delay_us), self._seal_in_time)

    def _seal_in_time(self) -> None:
        self._seal_planned_us = NEVER_US
        self._wake()

    def _note_obstacle(self) -> None:
        """Whoever looks into this member's log must find why it takes no part: once, not in a row.

        Nothing else would say so here: a member that is removed or CORRUPT goes on running.
        """
        self._obstacle_seen = self._replica.obstacle
        if self._obstacle_seen is not None:
            _log.error("takes_no_part", reason=self._obstacle_seen)

    def _on_saved(self, save: Save) -> None:
        self._run(lambda: self._replica.saved(save))

    def _serve(self, serving: Serving) -> None:
        """Reads, verifies and encodes in a thread what a peer fetches."""
        work = self._loop.run_in_executor(
            self._server, lambda: encode_message(serve(self._chain, serving))
        )
        work.add_done_callback(partial(self._on_served, serving.target))

    def _on_served(self, target: MemberId, done: asyncio.Future[bytes]) -> None:
        self._replica.fetching.served(target)
        if done.cancelled() or not self._running:
            return
        error = done.exception()
        if error is not None:
            self._fail(error)
        else:
            self._send(target, Lane.BULK, done.result())

    def _read_recorded(self, recorded: Sequence[Recorded]) -> None:
        """Reads and verifies the blocks of old retries in a thread, each block once."""
        by_index: defaultdict[int, list[Recorded]] = defaultdict(list)
        for one in recorded:
            by_index[one.place.index].append(one)
        for index in sorted(by_index):
            asked = by_index[index]
            work = self._loop.run_in_executor(self._reader, self._read_block, index, asked)
            work.add_done_callback(partial(self._on_read_block, asked))

    def _read_block(self, index: int, asked: Sequence[Recorded]) -> Block | None:
        """A block that is damaged on this disk has no answer; it must not end the node.

        Nor is one read for callers who have all given up: their queue would never end.
        """
        if all(one.submission.is_done for one in asked):
            return None
        try:
            return self._chain.block(index)
        except DamagedBlockError as error:
            _log.error("block_damaged", index=index, what=error.what)
            return None

    def _on_read_block(self, recorded: list[Recorded], done: asyncio.Future[Block | None]) -> None:
        if done.cancelled():
            return
        error = done.exception()
        if error is not None:
            self._fail(error)
            return
        block = done.result()
        for one in recorded:
            one.settle(block)


def _release(waiters: list[asyncio.Future[None]]) -> list[asyncio.Future[None]]:
    """Wakes all of them; what is left to wait for: nothing."""
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
    return []


def _timer_s(wait_us: int) -> float:
    """The time to wait, in whole milliseconds: uvloop's timers know no shorter ones.

    It rounds to the nearest, so what is left of a wait would fire at once, again and again.
    """
    return max(1, -(-wait_us // MICROS_PER_MILLI)) / MILLIS_PER_SECOND


def _clocks() -> tuple[int, int]:
    """The monotonic clock and the wall clock, in microseconds."""
    return time.monotonic_ns() // NANOS_PER_MICRO, time.time_ns() // NANOS_PER_MICRO
