"""Single calls that share requests: who goes with whom, and that each hears its own answer."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING

import pytest

from node.api.shapes import NewTransaction, Problem, Receipt
from node.client_crowd import MAX_REQUESTS, MAX_TOGETHER, MAX_TOGETHER_BYTES, Crowd
from node.client_errors import RejectedError, UnavailableError, UnknownOutcomeError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from node.client_crowd import Outcome

pytestmark = pytest.mark.asyncio

LONG_S = 3_600.0

REFUSED = RejectedError(Problem(type="t", title="t", status=422, detail="d"))


def receipt_of(new: NewTransaction) -> Receipt:
    """The receipt that belongs to a transaction."""
    assert isinstance(new.id, uuid.UUID)
    return Receipt(id=str(new.id), index=1, position=0, block_hash="00" * 32, timestamp="then")


class Desk:
    """A crowd, and the requests that it makes; each waits until the test lets it go on."""

    def __init__(self) -> None:
        self.crowd = Crowd(self._record_one, self._try_many)
        self.requests: list[list[int]] = []
        self.gate = asyncio.Event()
        self.instead: dict[int, Outcome | None] = {}
        """What those in a request of many hear instead of a receipt, by number."""
        self.refused: Callable[[list[int]], BaseException | None] = lambda _: None

    def call(
        self, number: int, size_bytes: int = 100, timeout_s: float = LONG_S
    ) -> asyncio.Task[Receipt]:
        """A caller with the transaction of that number."""
        new = NewTransaction(id=uuid.UUID(int=number), user_id="a", kind="k", payload=1)
        return asyncio.create_task(self.crowd.record(new, size_bytes, timeout_s=timeout_s))

    async def _record_one(self, new: NewTransaction) -> Receipt:
        return (await self._answer([new]))[0]

    async def _try_many(self, news: list[NewTransaction]) -> Sequence[Outcome | None]:
        receipts = await self._answer(news)
        return [self.instead.get(int(one.id.replace("-", ""), 16), one) for one in receipts]

    async def _answer(self, news: list[NewTransaction]) -> list[Receipt]:
        numbers = [new.id.int for new in news if isinstance(new.id, uuid.UUID)]
        self.requests.append(numbers)
        await self.gate.wait()
        fault = self.refused(numbers)
        if fault is not None:
            raise fault
        return [receipt_of(new) for new in news]

    async def settle(self) -> None:
        """Let everybody come as far as they can."""
        for _ in range(10):
            await asyncio.sleep(0)


async def test_one_caller_never_waits_for_company() -> None:
    """Each goes at once, as long as few requests are under way."""
    desk = Desk()
    calls = [desk.call(number) for number in range(MAX_REQUESTS)]
    await desk.settle()
    assert [[0], [1]] == desk.requests
    desk.gate.set()
    assert [str(uuid.UUID(int=n)) for n in range(2)] == [(await call).id for call in calls]


async def test_the_rest_goes_together_and_each_hears_its_own_answer() -> None:
    """In the order of the calls."""
    desk = Desk()
    calls = [desk.call(number) for number in range(40)]
    await desk.settle()
    desk.gate.set()
    receipts = await asyncio.gather(*calls)
    assert [[0], [1], list(range(2, 40))] == desk.requests
    assert [str(uuid.UUID(int=number)) for number in range(40)] == [one.id for one in receipts]


@pytest.mark.parametrize(
    ("callers", "size_bytes", "together"),
    [(MAX_TOGETHER + 10, 1, MAX_TOGETHER), (10, MAX_TOGETHER_BYTES // 3, 3), (5, 1 << 30, 1)],
)
async def test_a_request_has_its_limits(callers: int, size_bytes: int, together: int) -> None:
    """What is beyond goes with the next one; one that is too large alone."""
    desk = Desk()
    calls = [desk.call(number, size_bytes) for number in range(MAX_REQUESTS + callers)]
    await desk.settle()
    desk.gate.set()
    await asyncio.gather(*calls)
    assert together == max(map(len, desk.requests))
    asked = [number for numbers in desk.requests for number in numbers]
    assert list(range(MAX_REQUESTS + callers)) == sorted(asked)


async def test_some_of_many_may_fail() -> None:
    """Whoever has no receipt hears why, and only that one."""
    desk = Desk()
    away = UnavailableError("nobody there")
    desk.instead = {5: away}
    calls = [desk.call(number) for number in range(8)]
    await desk.settle()
    desk.gate.set()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [away] == [one for one in outcomes if isinstance(one, BaseException)]
    assert outcomes[5] is away


async def test_one_that_is_still_open_holds_nobody_back() -> None:
    """It goes on alone; the others have their answers by then."""
    desk = Desk()
    desk.instead = {5: None}
    calls = [desk.call(number) for number in range(8)]
    await desk.settle()
    desk.gate.set()
    others = [call for number, call in enumerate(calls) if number != 5]
    await asyncio.gather(*others)
    assert (await calls[5]).id == str(uuid.UUID(int=5))
    assert [5] == desk.requests[-1]


async def test_a_caller_that_never_had_its_turn_knows_that_nothing_was_sent() -> None:
    """And one whose request is under way that it may be recorded; each in its own time."""
    desk = Desk()
    sent = [desk.call(number, timeout_s=0.01) for number in range(MAX_REQUESTS)]
    waiting = desk.call(7, timeout_s=0.01)
    outcomes = await asyncio.gather(*sent, waiting, return_exceptions=True)
    kinds = [type(one) for one in outcomes]
    assert [UnknownOutcomeError] * MAX_REQUESTS + [UnavailableError] == kinds
    desk.gate.set()
    assert (await desk.call(8)).id == str(uuid.UUID(int=8))
    assert [[0], [1], [8]] == desk.requests


async def test_one_that_is_refused_takes_nobody_with_it() -> None:
    """Where all are refused together each is tried alone."""
    desk = Desk()
    desk.refused = lambda numbers: REFUSED if 4 in numbers else None
    calls = [desk.call(number) for number in range(6)]
    await desk.settle()
    desk.gate.set()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [REFUSED] == [one for one in outcomes if isinstance(one, BaseException)]
    assert outcomes[4] is REFUSED


async def test_a_fault_is_heard_by_all_who_went_together() -> None:
    """And the next go on."""
    desk = Desk()
    fault = ZeroDivisionError("a bug of ours")
    desk.refused = lambda numbers: fault if len(numbers) > 1 else None
    calls = [desk.call(number) for number in range(5)]
    await desk.settle()
    desk.gate.set()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [fault] * 3 == outcomes[2:]
    assert (await desk.call(9)).id == str(uuid.UUID(int=9))


async def test_a_caller_that_has_gone_is_not_answered() -> None:
    """Those it went with are."""
    desk = Desk()
    calls = [desk.call(number) for number in range(5)]
    await desk.settle()
    calls[3].cancel()
    desk.gate.set()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(outcomes[3], asyncio.CancelledError)
    assert [str(uuid.UUID(int=4))] == [one.id for one in outcomes[4:] if isinstance(one, Receipt)]


async def test_closing_leaves_nobody_waiting() -> None:
    """Neither those under way nor those that wait for their turn."""
    desk = Desk()
    calls = [desk.call(number) for number in range(5)]
    await desk.settle()
    desk.crowd.close()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [UnknownOutcomeError] * 2 + [UnavailableError] * 3 == [type(one) for one in outcomes]
