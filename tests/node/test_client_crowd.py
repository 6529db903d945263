"""Single calls that share requests: who goes with whom, and that each hears its own answer."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING

import pytest

from node.api.shapes import NewTransaction, Problem, Receipt
from node.client_crowd import MAX_REQUESTS, MAX_TOGETHER, MAX_TOGETHER_BYTES, Crowd
from node.client_errors import BatchError, RejectedError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.asyncio

REFUSED = RejectedError(Problem(type="t", title="t", status=422, detail="d"))


def receipt_of(new: NewTransaction) -> Receipt:
    """The receipt that belongs to a transaction."""
    assert isinstance(new.id, uuid.UUID)
    return Receipt(id=str(new.id), index=1, position=0, block_hash="00" * 32, timestamp="then")


class Desk:
    """A crowd, and the requests that it makes; each waits until the test lets it go on."""

    def __init__(self) -> None:
        self.crowd = Crowd(self._record_one, self._record_many)
        self.requests: list[list[int]] = []
        self.gate = asyncio.Event()
        self.refused: Callable[[list[int]], BaseException | None] = lambda _: None

    def call(self, number: int, size_bytes: int = 100) -> asyncio.Task[Receipt]:
        """A caller with the transaction of that number."""
        new = NewTransaction(id=uuid.UUID(int=number), user_id="a", kind="k", payload=1)
        return asyncio.create_task(self.crowd.record(new, size_bytes))

    async def _record_one(self, new: NewTransaction) -> Receipt:
        return (await self._answer([new]))[0]

    async def _record_many(self, news: list[NewTransaction]) -> list[Receipt]:
        return await self._answer(news)

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

    def refuse(numbers: list[int]) -> BaseException | None:
        if len(numbers) == 1:
            return None
        return BatchError(
            tuple(away if number == 5 else receipt_of_number(number) for number in numbers)
        )

    desk.refused = refuse
    calls = [desk.call(number) for number in range(8)]
    await desk.settle()
    desk.gate.set()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [away] == [one for one in outcomes if isinstance(one, BaseException)]
    assert outcomes[5] is away


def receipt_of_number(number: int) -> Receipt:
    """The receipt of the transaction of that number."""
    return receipt_of(NewTransaction(id=uuid.UUID(int=number), user_id="a", kind="k", payload=1))


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
    assert [asyncio.CancelledError] * 5 == [type(one) for one in outcomes]


async def test_who_gives_up_before_its_turn_is_not_recorded() -> None:
    """Nothing of it was sent, and nobody wants it any more."""
    desk = Desk()
    calls = [desk.call(number) for number in range(5)]
    await desk.settle()
    calls[3].cancel()
    await desk.settle()
    desk.gate.set()
    await asyncio.gather(*calls, return_exceptions=True)
    assert [[0], [1], [2, 4]] == desk.requests
