"""Submits under way: how each of them ends, and that nothing of it stays behind."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from consensus.block import encode_transaction
from node.calls import Calls
from node.outcomes import Accepted, Outcome, Receipt, Refusal, RefusalReason, Wait
from node.submissions import Submission, Waiter, Waiting

pytestmark = pytest.mark.asyncio

LONG_S = 3_600.0


def transaction(number: int) -> bytes:
    """The bytes of a transaction of its own."""
    return encode_transaction(
        transaction_id=uuid.UUID(int=number).bytes, user_id="alice", kind="deposit", payload=number
    )


class Desk:
    """Calls beside what a replica keeps of them."""

    def __init__(self) -> None:
        self.waiting = Waiting()
        self.calls = Calls(offer=self._offer, expire=self._expire)
        self.answers: list[list[Outcome]] = []
        self.offered: list[Submission] = []
        self.expired = 0
        self.answered = asyncio.Event()

    def begin(
        self, *numbers: int, wait: Wait = Wait.COMMITTED, timeout_s: float = LONG_S
    ) -> Submission:
        """A call for those transactions."""
        return self.calls.begin(
            [transaction(number) for number in numbers],
            wait=wait,
            timeout_s=timeout_s,
            on_done=self._answer,
        )

    def _answer(self, outcomes: list[Outcome]) -> None:
        self.answers.append(outcomes)
        self.answered.set()

    def _offer(self, call: Submission) -> None:
        self.offered.append(call)
        for slot, wanted in enumerate(call.ids):
            self.waiting.add(wanted, Waiter(call.transactions[slot], call, slot))

    def _expire(self, call: Submission) -> None:
        self.expired += 1
        self.waiting.expire(call)


def reasons(outcomes: list[Outcome]) -> list[RefusalReason | type]:
    """What became of each: the reason of a refusal, or the kind of the answer."""
    return [one.reason if isinstance(one, Refusal) else type(one) for one in outcomes]


async def test_a_call_past_its_time_is_unknown_and_offered_no_more() -> None:
    """The deadline settles what is open, and nothing is left to offer."""
    desk = Desk()
    desk.begin(1, 2, timeout_s=0)
    await desk.answered.wait()
    assert [[RefusalReason.UNKNOWN] * 2] == [reasons(one) for one in desk.answers]
    assert len(desk.waiting) == 0


async def test_calls_of_one_moment_end_together() -> None:
    """They share a timer; what was answered before is not ended by it, nor what ends later."""
    desk = Desk()
    answered = desk.begin(1, timeout_s=0)
    desk.begin(2, timeout_s=0)
    desk.begin(3, timeout_s=0)
    desk.begin(4)
    answered.settle(0, Receipt(answered.ids[0], 1, 0, bytes(32), 0))
    desk.waiting.expire(answered)
    desk.answered.clear()
    await desk.answered.wait()
    assert [[Receipt], [RefusalReason.UNKNOWN], [RefusalReason.UNKNOWN]] == [
        reasons(one) for one in desk.answers
    ]
    assert desk.expired == len(["the second", "the third"])
    assert [transaction(4)] == [desk.waiting.raw_of(wanted) for wanted in desk.waiting]


async def test_a_caller_that_is_gone_is_offered_no_more() -> None:
    """Only one that waits for the commit: what was accepted is held on its behalf."""
    desk = Desk()
    gone, accepted = desk.begin(1), desk.begin(2, wait=Wait.ACCEPTED)
    desk.calls.abandon(gone)
    desk.calls.abandon(accepted)
    assert [[Accepted], [RefusalReason.UNKNOWN]] == [reasons(one) for one in desk.answers]
    assert [transaction(2)] == [desk.waiting.raw_of(wanted) for wanted in desk.waiting]


async def test_the_end_of_all_calls_ends_each_that_is_open_once() -> None:
    """A call that has its answer is not open, unless it is held beyond it."""
    desk = Desk()
    answered = desk.begin(1)
    accepted = desk.begin(2, wait=Wait.ACCEPTED)
    desk.begin(3)
    receipt = Receipt(answered.ids[0], 1, 0, bytes(32), 0)
    answered.settle(0, receipt)
    desk.waiting.expire(answered)
    desk.calls.end_all()
    assert [[Accepted], [Receipt], [RefusalReason.UNKNOWN]] == [
        reasons(one) for one in desk.answers
    ]
    assert accepted.is_held is False
    desk.calls.end_all()
    assert desk.expired == len([accepted, "the third"])


async def test_deadline_holds_while_an_old_retry_is_read() -> None:
    """Though nothing of the call is held any more: the last outcome may never come."""
    waiting, answers = Waiting(), []

    def offer(call: Submission) -> None:
        """The first is new; the second is recorded, in a block that is being read."""
        waiting.add(call.ids[0], Waiter(call.transactions[0], call, 0))
        waiting.note_forward(call.ids[0], 7)

    calls = Calls(offer=offer, expire=waiting.expire)
    answered = asyncio.Event()

    def answer(outcomes: list[Outcome]) -> None:
        answers.append(outcomes)
        answered.set()

    raws = [transaction(1), transaction(2)]
    call = calls.begin(raws, wait=Wait.COMMITTED, timeout_s=0, on_done=answer)
    waiting.refuse_full(call.ids[0], 7)
    await asyncio.wait_for(answered.wait(), 1)
    assert [[RefusalReason.QUEUE_FULL, RefusalReason.UNKNOWN]] == [reasons(one) for one in answers]
