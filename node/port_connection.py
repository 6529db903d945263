"""One client's connection to the client port: bytes in, requests to the node, answers out.

An asyncio protocol; which connection an answer goes to is decided by the connection itself, and by
nothing that a client says of itself. What arrives is decrypted and worked on in turns that the
port gives out (`work`), so that one client's batches hold up neither the loop nor the others.
Single submits that one turn takes from a connection go to the node as one call. Answers that become
ready within one turn of the loop leave in one frame, with one write.

A client that asks for more than it may have is not read from until it has had its answers; one that
breaks the protocol is dropped. Relies on `node.zmtp` and `node.port_requests`.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Final, cast

from node.api.problems import error_problem
from node.outcomes import LedgerError
from node.port_limits import Dropped
from node.port_messages import (
    DECODE_ERRORS,
    MAX_MESSAGE_BYTES,
    Submit,
    decode_requests,
    encode_answers,
    outcome_fields,
    problem_fields,
)
from node.port_requests import Examination, look_up, transaction_problem
from node.zmtp import Fault, Session, ZmtpError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from enum import StrEnum

    from node.client_port import ClientPort
    from node.outcomes import Outcome, Wait
    from node.port_messages import Fields, LookUp
    from node.submissions import Submission

SLICE_TRANSACTIONS: Final = 256
MAX_EARLY_BYTES: Final = 4 << 10
"""More than a whole handshake, before the port had a turn for it."""
TAKE_BYTES: Final = 16 << 10
"""How much of one client's is decrypted before others have their turn: at most some four hundred
frames, and the rest of a large one that has begun."""
SLICE_BYTES: Final = 256 << 10
"""How much of one client's is worked on before others have their turn: about a millisecond."""


class Connection(asyncio.Protocol):
    """One connection, from its first byte to its end. The times are the port's to look at."""

    def __init__(self, port: ClientPort) -> None:
        self._port = port
        self._limits = port.limits
        self._session = Session(
            port.keys, allows=port.allows, entropy=os.urandom, max_message_bytes=MAX_MESSAGE_BYTES
        )
        self._is_over = False
        self._heard_at = self._begun_at = self._pinged_at = port.now
        self._frames_seen = self._expected = 0
        self._unread_since: float | None = None
        self._is_paused = self._is_stopping = False
        self._is_holding_room = self._is_waiting_for_room = False
        self._arrived = bytearray()
        self._inbox: deque[bytes] = deque()
        self._inbox_bytes = self._open_bytes = 0
        self._requests: deque[Submit | LookUp] = deque()
        self._examination: Examination | None = None
        self._look_ups: deque[LookUp] = deque()
        self._looking: asyncio.Task[None] | None = None
        self._calls: dict[int, Submission] = {}
        self._last_call = 0
        self._unanswered = self._unanswered_transactions = 0
        self._answers: list[tuple[int, Sequence[Fields]]] = []

    # What the loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greets, if there is room for one more."""
        # uvloop's transport is one by its methods alone.
        self._transport = cast("asyncio.Transport", transport)
        with self._port.guard(self):
            peer = transport.get_extra_info("peername")
            if not peer or not self._port.admit(self, peer[0]):
                self._is_over = True
                self._transport.abort()
                return
            self._write(self._session.take_output())

    def data_received(self, data: bytes) -> None:
        """Keeps what arrived; all that is done with it is for a turn of its own."""
        with self._port.guard(self):
            self._receive(data)

    def pause_writing(self) -> None:
        """The client does not read: it gets no further while it does not."""
        self._unread_since = self._port.now
        with self._port.guard(self):
            self._regulate()

    def resume_writing(self) -> None:
        """It has read."""
        self._unread_since = None
        with self._port.guard(self):
            self._regulate()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's
        """Nobody is there to answer any more: what it waited for is offered no longer."""
        with self._port.guard(self):
            self._is_over = True
            self._port.forget(self)
            if self._looking is not None:
                self._looking.cancel()
            calls, self._calls = list(self._calls.values()), {}
            for call in calls:
                self._port.node.abandon(call)

    # What the port calls

    @property
    def unsent_bytes(self) -> int:
        """What waits for a client that does not read; 0 for one that does."""
        return 0 if self._unread_since is None else self._transport.get_write_buffer_size()

    @property
    def is_stranger(self) -> bool:
        """Whether it has not shown its key yet."""
        return not self._session.is_open

    @property
    def is_answering(self) -> bool:
        """Whether the node has calls of it under way, or answers have not left."""
        return bool(self._calls or self._answers)

    def work(self) -> bool:
        """Works on what was asked, for a slice; whether more is left that can be worked on now."""
        if self._may_take():
            self._take(self._next_arrived())
        singles: dict[tuple[Wait, int], list[tuple[int, bytes]]] = {}
        left = SLICE_TRANSACTIONS
        left_bytes = SLICE_BYTES
        while left > 0 and left_bytes > 0 and self._may_work():
            if not self._requests and not self._open_next():
                break
            request = self._requests[0]
            if not isinstance(request, Submit):
                self._requests.popleft()
                self._queue_look_up(request)
                left -= 1
            elif len(request.transactions) == 1:
                self._requests.popleft()
                self._take_single(request, singles)
                left -= 1
                left_bytes -= len(request.transactions[0])
            else:
                seen, seen_bytes = self._examine(request, left, left_bytes)
                left -= seen
                left_bytes -= seen_bytes
        for (wait, timeout_ms), group in singles.items():
            self._begin(wait, timeout_ms, group)
        if not self._requests:
            self._open_bytes = 0
        if self._is_holding_room:
            self._hold_room()
        self._regulate()
        return self._has_work()

    def flush(self) -> None:
        """Sends the answers that are ready, in one frame."""
        answers, self._answers = self._answers, []
        if self._is_over or not answers:
            return
        self._session.queue(encode_answers(answers))
        self._write(self._session.take_output())
        self._unanswered -= len(answers)
        if self._is_paused or self._requests or self._inbox:
            self._regulate()

    def look_at_times(self, now: float) -> None:
        """Drops a client that is too slow, and asks a silent one for a sign of life."""
        limits = self._limits
        if self._is_over:
            # It was told why it is dropped, and does not read that.
            if now - self._begun_at > limits.handshake_s:
                self._transport.abort()
        elif self._unread_since is not None and now - self._unread_since > limits.unread_s:
            self.drop(Dropped.UNREAD)
        elif not self._session.is_open:
            if now - self._heard_at > limits.handshake_s:
                self.drop(Dropped.HANDSHAKE_TIME)
        elif not self._is_paused:
            self._look_at_silence(now)

    def drop(self, reason: StrEnum) -> None:
        """Ends the connection at once, and counts why."""
        if not self._is_over:
            self._is_over = True
            self._port.dropped[reason] += 1
            self._transport.abort()

    def stop(self) -> None:
        """Takes nothing more; answers still leave."""
        self._is_stopping = True
        self._regulate()

    def give_up_calls(self) -> None:
        """What has no answer yet is unknown, and says so."""
        for call in list(self._calls.values()):
            self._port.node.abandon(call)
        self.flush()

    def close(self) -> None:
        """Closes once what was written has been sent."""
        self._is_over = True
        self._begun_at = self._port.now
        self._transport.close()

    def abort(self) -> None:
        """Closes now."""
        self._is_over = True
        self._transport.abort()

    # Taking in

    def _receive(self, data: bytes) -> None:
        if self._is_over:
            return
        # Public keys take a tenth of a millisecond each, and what fits into one read are thousands
        # of frames: a flood of either has turns as well.
        self._arrived += data
        if not self._session.is_open and len(self._arrived) > MAX_EARLY_BYTES:
            self.drop(Fault.TOO_LARGE)
            return
        self._port.wake(self)
        if len(self._arrived) > TAKE_BYTES:
            self._regulate()

    def _may_take(self) -> bool:
        """Whether something has arrived whose turn it is: all that came before is worked on."""
        is_next = not (self._inbox or self._requests or self._is_waiting_for_room)
        return bool(self._arrived) and is_next and self._may_work()

    def _next_arrived(self) -> bytes:
        session = self._session
        size = max(TAKE_BYTES, session.expected_bytes - session.buffered_bytes)
        data = bytes(self._arrived[:size])
        del self._arrived[:size]
        return data

    def _take(self, data: bytes) -> None:
        session = self._session
        try:
            messages = session.receive(data)
        except ZmtpError as error:
            # What it is told, if anything, goes first; then there is nothing more to say.
            self._write(session.take_output())
            self._port.dropped[error.fault] += 1
            self.close()
            return
        if session.has_output:
            self._write(session.take_output())
        now = self._port.now
        if session.is_open:
            self._heard_at = now
        if session.frames_taken != self._frames_seen or session.expected_bytes != self._expected:
            self._frames_seen, self._expected = session.frames_taken, session.expected_bytes
            self._begun_at = now
        if messages:
            self._inbox.extend(messages)
            self._inbox_bytes += sum(map(len, messages))
        if len(data) > self._limits.large_bytes or session.expected_bytes or self._is_holding_room:
            self._hold_room()

    def _hold_room(self) -> None:
        """Holds the room that large messages need, or waits for it, reading nothing meanwhile."""
        needed = self._inbox_bytes + self._open_bytes + self._session.expected_bytes
        if needed <= self._limits.large_bytes:
            needed = 0
        if not needed and not self._is_holding_room:
            return
        self._is_holding_room = needed > 0
        self._is_waiting_for_room = not self._port.room.hold(self, needed, self._on_room)
        self._regulate()

    def _on_room(self) -> None:
        self._is_waiting_for_room = False
        self._regulate()

    def _open_next(self) -> bool:
        """Decodes the next message; False where there is none that can be."""
        if not self._inbox:
            return False
        message = self._inbox.popleft()
        self._inbox_bytes -= len(message)
        self._open_bytes = len(message)
        try:
            requests = decode_requests(message)
        except DECODE_ERRORS:
            self.drop(Dropped.UNDECODABLE)
            return False
        self._requests.extend(requests)
        self._unanswered += len(requests)
        self._port.requests += len(requests)
        return True

    # Working

    def _may_work(self) -> bool:
        return (
            not (self._is_over or self._is_stopping)
            and self._unread_since is None
            and self._unanswered - len(self._requests) < self._limits.unanswered_requests
            and self._unanswered_transactions < self._limits.unanswered_transactions
        )

    def _has_work(self) -> bool:
        return self._may_take() or (bool(self._requests or self._inbox) and self._may_work())

    def _take_single(
        self, request: Submit, singles: dict[tuple[Wait, int], list[tuple[int, bytes]]]
    ) -> None:
        """One transaction: it is refused, or joins the others of its kind in this turn."""
        (raw,) = request.transactions
        problem = transaction_problem(raw)
        if problem is not None:
            self._answer(request.number, (problem_fields(problem),))
            return
        self._unanswered_transactions += 1
        key = (request.wait, request.timeout_ms)
        singles.setdefault(key, []).append((request.number, raw))

    def _examine(self, request: Submit, count: int, size_bytes: int) -> tuple[int, int]:
        """A slice of a batch; after its last one it is refused, or goes to the node."""
        examination = self._examination
        if examination is None:
            examination = self._examination = Examination(request)
        seen = examination.go_on(count, size_bytes)
        if examination.is_done:
            self._requests.popleft()
            self._examination = None
            if examination.problem is not None:
                self._answer(request.number, (problem_fields(examination.problem),))
            else:
                self._unanswered_transactions += len(request.transactions)
                numbers = (request.number,)
                self._offer(request.wait, request.timeout_ms, request.transactions, numbers)
        return seen

    def _begin(self, wait: Wait, timeout_ms: int, group: list[tuple[int, bytes]]) -> None:
        numbers, transactions = zip(*group, strict=True)
        self._offer(wait, timeout_ms, transactions, numbers)

    def _offer(
        self, wait: Wait, timeout_ms: int, transactions: tuple[bytes, ...], numbers: tuple[int, ...]
    ) -> None:
        """Hands transactions to the node: each the whole of a request, or all of one request."""
        self._last_call += 1
        place = self._last_call
        try:
            call = self._port.node.begin_submit(
                transactions,
                wait=wait,
                timeout_s=timeout_ms / 1_000,
                on_done=partial(self._on_done, place, numbers),
            )
        except LedgerError as error:
            self._unanswered_transactions -= len(transactions)
            refusal = (problem_fields(error_problem(error)),)
            for number in numbers:
                self._answer(number, refusal)
            return
        self._port.transactions += len(transactions)
        if not call.is_done:
            self._calls[place] = call

    def _on_done(self, place: int, numbers: tuple[int, ...], outcomes: list[Outcome]) -> None:
        """The node has an outcome for each transaction of a call; it may be at once."""
        self._calls.pop(place, None)
        self._unanswered_transactions -= len(outcomes)
        if self._is_over:
            return
        # The node's own loop calls this: a fault in here is this connection's alone.
        with self._port.guard(self):
            self._queue_outcomes(numbers, outcomes)

    def _queue_outcomes(self, numbers: tuple[int, ...], outcomes: list[Outcome]) -> None:
        if len(numbers) == len(outcomes):
            for number, outcome in zip(numbers, outcomes, strict=True):
                self._answers.append((number, (outcome_fields(outcome),)))
        else:
            (number,) = numbers
            self._answers.append((number, [outcome_fields(outcome) for outcome in outcomes]))
        self._port.flush_soon(self)

    def _answer(self, number: int, outcomes: Sequence[Fields]) -> None:
        self._answers.append((number, outcomes))
        self._port.flush_soon(self)

    # Look-ups, one after the other: they are no part of the hot path

    def _queue_look_up(self, request: LookUp) -> None:
        self._look_ups.append(request)
        if self._looking is None:
            self._looking = asyncio.get_running_loop().create_task(self._look_up_all())

    async def _look_up_all(self) -> None:
        with self._port.guard(self):
            while self._look_ups:
                request = self._look_ups.popleft()
                fields = await look_up(self._port.node, request)
                self._answer(request.number, (fields,))
            self._looking = None

    # Flow

    def _write(self, data: bytes) -> None:
        if not data:
            return
        self._transport.write(data)
        if self.unsent_bytes > self._limits.unsent_bytes:
            self.drop(Dropped.UNREAD)

    def _regulate(self) -> None:
        """Reads from the client, or not, as it may have more."""
        if self._is_over:
            return
        may_work = self._may_work()
        if self._has_work():
            self._port.wake(self)
        is_waiting = self._is_waiting_for_room or bool(self._inbox or self._requests)
        is_full = is_waiting or bool(self._arrived) or not may_work
        if is_full == self._is_paused:
            return
        self._is_paused = is_full
        if is_full:
            self._transport.pause_reading()
        else:
            # What it did not send while nobody read is no fault of its own.
            self._heard_at = self._begun_at = self._port.now
            self._transport.resume_reading()

    def _look_at_silence(self, now: float) -> None:
        session, limits = self._session, self._limits
        silent_s = now - self._heard_at
        patience_s = limits.silent_s if session.speaks_ping else limits.unpinged_silent_s
        if session.ttl_s is not None:
            patience_s = min(patience_s, max(session.ttl_s, limits.tick_s))
        if session.expected_bytes and now - self._begun_at > limits.arrival_s:
            self.drop(Dropped.ARRIVAL_TIME)
        elif silent_s > patience_s:
            self.drop(Dropped.SILENT)
        elif (
            session.speaks_ping and now - max(self._heard_at, self._pinged_at) > limits.ping_after_s
        ):
            self._pinged_at = now
            session.queue_ping()
            self._write(session.take_output())
