"""The loop of one member: it carries everything between peers, disk, clock and `Replica`.

Order of travel: call or message → `Replica` (pure) → `Effects` → writer thread (LMDB, fsync) →
`Replica` → receipts. One save is under way at a time, in a thread of its own; while it runs the
loop goes on, and what comes meanwhile joins the next save. Everything else runs on the asyncio
loop, in short turns. An exception in here is a broken invariant or a failed disk: the node stops.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from consensus.messages import InvalidMessageError, decode_message, encode_message
from node.zmq_loop import FailureGuard

if TYPE_CHECKING:
    from collections.abc import Callable

    from consensus.messages import MemberId
    from consensus.ready import Save
    from node.lane import Lane
    from node.replica import Replica
    from node.submissions import Submission
    from storage.contract import Chain

TICKS_PER_HEARTBEAT: Final = 5
NANOS_PER_MICRO: Final = 1_000


class MemberLoop:
    """Drives a replica. Lives on the asyncio loop on which it is started."""

    def __init__(
        self,
        *,
        replica: Replica,
        chain: Chain,
        tick_s: float,
        on_applied: Callable[[int], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        """Nothing runs before `start`.

        Args:
            replica: the member's state.
            chain: where saves go; only this object writes to it.
            tick_s: how often time passes for the replica, in seconds.
            on_applied: takes the index up to which blocks are applied, each time it rises.
            on_failure: takes the exception that must stop the node.
        """
        self.dropped: Counter[str] = Counter()
        self._replica = replica
        self._chain = chain
        self._tick_s = tick_s
        self._on_applied = on_applied
        self._on_failure = on_failure
        self._guard = FailureGuard(on_failure)
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="writer")
        self._applied_waiters: list[asyncio.Future[None]] = []
        self._pump_scheduled = False
        self._running = False

    @property
    def applied_index(self) -> int:
        """The last index whose transactions this member answers for."""
        return self._replica.applied_index

    def start(self, send: Callable[[MemberId, Lane, bytes], bool]) -> None:
        """Begins to take part; `send` never waits, and False from it is a lost message."""
        self._loop = asyncio.get_running_loop()
        self._send = send
        self._running = True
        self._tick()

    def stop(self) -> None:
        """Takes no further part. A save under way still ends."""
        self._running = False
        self._ticker.cancel()

    async def close(self) -> None:
        """Waits for the save under way."""
        await asyncio.to_thread(self._writer.shutdown)

    def submit(self, submission: Submission) -> None:
        """Takes a client's transactions."""
        with self._guard:
            self._replica.submit(submission)
        self._wake()

    def read(self, on_applied: Callable[[int], None]) -> None:
        """Takes a client's linearizable read; see `Replica.read`."""
        with self._guard:
            self._replica.read(on_applied)
        self._wake()

    def receive(self, source: MemberId, raw: bytes) -> None:
        """Takes a peer's message; what cannot be decoded is dropped and counted."""
        try:
            message = decode_message(raw)
        except InvalidMessageError:
            self.dropped["undecodable"] += 1
            return
        if self._running:
            with self._guard:
                self._replica.receive(source, message)
            self._wake()

    def unreachable(self, peer: MemberId) -> None:
        """The connection to a peer broke."""
        if self._running:
            with self._guard:
                self._replica.unreachable(peer)
            self._wake()

    def flushed(self, index: int) -> None:
        """The index store answers for everything through `index`."""
        with self._guard:
            self._replica.flushed(index)
        self._wake()

    async def wait_applied(self, beyond: int) -> int:
        """Waits until more than `beyond` is applied; how far that is."""
        while self._replica.applied_index <= beyond:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._applied_waiters.append(waiter)
            await waiter
        return self._replica.applied_index

    def _tick(self) -> None:
        self._ticker = self._loop.call_later(self._tick_s, self._tick)
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
        with self._guard:
            applied_before = self._replica.applied_index
            self._replica.tick(time.monotonic_ns() // NANOS_PER_MICRO, _wall_us())
            effects = self._replica.pump()
            for target, lane, message in effects.envelopes:
                self._send(target, lane, encode_message(message))
            if effects.save is not None:
                self._start_save(effects.save)
            if self._replica.applied_index > applied_before:
                self._on_applied(self._replica.applied_index)
                self._release_applied_waiters()
            if effects.more:
                self._wake()

    def _start_save(self, save: Save) -> None:
        work = self._loop.run_in_executor(self._writer, self._save, save)
        work.add_done_callback(lambda done: self._on_saved(save, done))

    def _save(self, save: Save) -> None:
        self._chain.save(
            hard_state=save.hard_state, truncate_from=save.truncate_from, blocks=save.blocks
        )

    def _on_saved(self, save: Save, done: asyncio.Future[None]) -> None:
        """A save that failed is never tried again: what is on the disk is not known."""
        error = done.exception()
        if error is not None:
            self._on_failure(error)
        elif self._running:
            with self._guard:
                self._replica.saved(save)
            self._wake()

    def _release_applied_waiters(self) -> None:
        waiters, self._applied_waiters = self._applied_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


def _wall_us() -> int:
    return time.time_ns() // NANOS_PER_MICRO
