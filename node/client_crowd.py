"""Single calls that are under way at once share requests.

A request costs an HTTP client far more than a transaction does, so while `MAX_REQUESTS` of them are
under way whoever else calls waits for one of those to end, and then goes along with all others that
wait. One caller alone never waits. Every transaction is still recorded for itself: it has an id and
an answer of its own. Relies on the client's calls for one transaction and for many.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from node.client_errors import BatchError, RejectedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from node.api.shapes import NewTransaction, Receipt

MAX_REQUESTS: Final = 2
"""Two, so that one is under way while the answers to the other are handed out."""
MAX_TOGETHER: Final = 500
MAX_TOGETHER_BYTES: Final = 1 << 20
"""Well below what a node takes in one request."""


class _Call(NamedTuple):
    new: NewTransaction
    size_bytes: int
    answer: asyncio.Future[Receipt]


class Crowd:
    """The callers of one client. Lives on one event loop."""

    def __init__(
        self,
        record_one: Callable[[NewTransaction], Awaitable[Receipt]],
        record_many: Callable[[list[NewTransaction]], Awaitable[list[Receipt]]],
    ) -> None:
        """`record_many` raises BatchError where some have no receipt, RejectedError for all."""
        self._record_one = record_one
        self._record_many = record_many
        self._waiting: list[_Call] = []
        self._requests: set[asyncio.Task[Sequence[Receipt | BaseException]]] = set()

    async def record(self, new: NewTransaction, size_bytes: int) -> Receipt:
        """Record one transaction, whose encoding takes about so many bytes.

        Raises what recording it alone raises.
        """
        answer: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Call(new, size_bytes, answer))
        self._send()
        return await answer

    def close(self) -> None:
        """Give up what is under way; whoever waits for it is cancelled."""
        for call in self._waiting:
            call.answer.cancel()
        self._waiting.clear()
        for request in self._requests:
            request.cancel()

    def _send(self) -> None:
        self._waiting = [call for call in self._waiting if not call.answer.done()]
        while self._waiting and len(self._requests) < MAX_REQUESTS:
            calls = self._take()
            request = asyncio.ensure_future(self._carry(calls))
            self._requests.add(request)
            request.add_done_callback(partial(self._end, calls))

    async def _carry(self, calls: Sequence[_Call]) -> Sequence[Receipt | BaseException]:
        """What became of each."""
        if len(calls) > 1:
            try:
                return await self._record_many([call.new for call in calls])
            except BatchError as error:
                return error.outcomes
            except RejectedError:
                pass  # one that is refused must not take the others with it: each alone
        alone = [self._record_one(call.new) for call in calls]
        return await asyncio.gather(*alone, return_exceptions=True)

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

    def _end(
        self, calls: Sequence[_Call], request: asyncio.Task[Sequence[Receipt | BaseException]]
    ) -> None:
        """Hand out the answers, and let the next request go."""
        self._requests.discard(request)
        if request.cancelled():
            for call in calls:
                call.answer.cancel()
            return
        fault = request.exception()
        outcomes = request.result() if fault is None else [fault] * len(calls)
        for outcome, call in zip(outcomes, calls, strict=True):
            if call.answer.done():
                continue  # the caller has gone
            if isinstance(outcome, BaseException):
                call.answer.set_exception(outcome)
            else:
                call.answer.set_result(outcome)
        self._send()
