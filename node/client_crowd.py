"""Single calls that are under way at once share requests.

A request costs an HTTP client far more than a transaction does, so while `MAX_REQUESTS` of them are
under way whoever else calls waits for one of those to end, and then goes along with all others that
wait. One caller alone never waits. Every transaction is still recorded for itself: it has an id and
an answer of its own. Relies on the client's calls for one transaction and for many.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple
from uuid import UUID

from node.client_errors import (
    LedgerClientError,
    RejectedError,
    UnavailableError,
    UnknownOutcomeError,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from node.api.shapes import NewTransaction, Receipt

    Outcome = Receipt | LedgerClientError

MAX_REQUESTS: Final = 2
"""Two, so that one is under way while the answers to the other are handed out."""
MAX_TOGETHER: Final = 500
MAX_TOGETHER_BYTES: Final = 1 << 20
"""Well below what a node takes in one request."""


class _Call(NamedTuple):
    new: NewTransaction
    size_bytes: int
    answer: asyncio.Future[Receipt]

    def settle(self, outcome: Receipt | BaseException) -> None:
        """Answer the caller, unless it has gone."""
        if self.answer.done():
            return
        if isinstance(outcome, BaseException):
            self.answer.set_exception(outcome)
        else:
            self.answer.set_result(outcome)


class Crowd:
    """The callers of one client. Lives on one event loop."""

    def __init__(
        self,
        record_one: Callable[[NewTransaction], Awaitable[Receipt]],
        try_many: Callable[[list[NewTransaction]], Awaitable[Sequence[Outcome | None]]],
    ) -> None:
        """`try_many` sends one request and has an outcome for each; None where one is still open.

        It raises RejectedError where all are refused together.
        """
        self._record_one = record_one
        self._try_many = try_many
        self._waiting: list[_Call] = []
        self._requests: dict[asyncio.Task[None], list[_Call]] = {}

    async def record(self, new: NewTransaction, size_bytes: int, *, timeout_s: float) -> Receipt:
        """Record one transaction, whose encoding takes about so many bytes.

        Raises what recording it alone raises; at the end of its time UnavailableError where it was
        not even sent, else UnknownOutcomeError.
        """
        answer: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
        call = _Call(new, size_bytes, answer)
        self._waiting.append(call)
        self._send()
        try:
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError:
            raise self._given_up(call, f"no answer within {timeout_s:g} s") from None

    def close(self) -> None:
        """End what is under way; whoever waits hears that the client is closed."""
        calls = [*self._waiting, *(call for calls in self._requests.values() for call in calls)]
        for call in calls:
            call.settle(self._given_up(call, "the client is closed"))
        self._waiting.clear()
        for request in self._requests:
            request.cancel()

    def _given_up(self, call: _Call, why: str) -> LedgerClientError:
        """What a call ends with that has no outcome."""
        if call in self._waiting:
            return UnavailableError(f"{why}, and nothing was sent")
        assert isinstance(call.new.id, UUID), "every transaction has an id before it is sent"
        return UnknownOutcomeError(call.new.id, why)

    def _send(self) -> None:
        self._waiting = [call for call in self._waiting if not call.answer.done()]
        while self._waiting and len(self._requests) < MAX_REQUESTS:
            calls = self._take()
            request = asyncio.ensure_future(self._carry(calls))
            self._requests[request] = calls
            request.add_done_callback(self._end)

    def _take(self) -> list[_Call]:
        """Those who have waited longest, as many as go together."""
        size_bytes = count = 0
        for call in self._waiting[:MAX_TOGETHER]:
            size_bytes += call.size_bytes
            if count and size_bytes > MAX_TOGETHER_BYTES:
                break
            count += 1
        calls = self._waiting[:count]
        del self._waiting[:count]
        return calls

    async def _carry(self, calls: list[_Call]) -> None:
        """One request for all of them; whoever has no outcome by that goes on alone."""
        still_open = calls
        if len(calls) > 1:
            with suppress(RejectedError):  # one that is refused must not take the others with it
                outcomes = await self._try_many([call.new for call in calls])
                still_open = []
                for call, outcome in zip(calls, outcomes, strict=True):
                    if outcome is None:
                        still_open.append(call)
                    else:
                        call.settle(outcome)
        for call in still_open:
            try:
                call.settle(await self._record_one(call.new))
            except LedgerClientError as error:
                call.settle(error)

    def _end(self, request: asyncio.Task[None]) -> None:
        """Let the next request go; a fault of ours is heard by all who went together."""
        calls = self._requests.pop(request)
        fault = None if request.cancelled() else request.exception()
        if fault is not None:
            for call in calls:
                call.settle(fault)
        self._send()
