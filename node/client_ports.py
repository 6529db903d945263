"""The Python client's way over client ports: the same calls, retries and errors as over HTTP.

A transaction's canonical bytes are made once, its id in them, so every retry sends the same bytes,
at whichever node. Relies on `node.port_link` for the connections, and on `node.client_nodes` for
which node is tried when.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from zmq import curve_keypair
from zmq.utils import z85

from node.api.answers import hash_text, time_text
from node.api.json_input import MAX_BATCH_TRANSACTIONS
from node.api.problems import ProblemKind, fault_error, make_problem
from node.api.shapes import MAX_TIMEOUT_MS, Problem, Receipt, ReceiptLookup
from node.client_errors import ProtocolError, UnavailableError
from node.client_nodes import (
    RETRIED,
    Failure,
    OutOfTimeError,
    Rota,
    failure_of,
)
from node.client_outcomes import lost, refusal
from node.outcomes import Wait
from node.port_link import LinkError, PortAddress, PortLink
from node.port_messages import (
    MAX_BATCH_BYTES,
    LookUp,
    Nothing,
    Recorded,
    Refused,
    Submit,
    Taken,
)
from node.uuid7 import uuid_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from uuid import UUID

    from node.client_nodes import Course
    from node.client_outcomes import Batch
    from node.port_messages import PortOutcome

_KEY_BYTES: Final = 32
_GRACE_S: Final = 1.0
"""What an answer may take beyond the time the node was given."""


class Ports(Rota):
    """The client ports of one ledger's nodes."""

    def __init__(
        self, urls: Sequence[str], *, attempt_timeout_s: float, client_key: bytes | None
    ) -> None:
        """`client_key` is the client's secret CURVE key; None makes one. Raises ValueError."""
        super().__init__(len(urls), attempt_timeout_s=attempt_timeout_s)
        if client_key is None:
            client_key = z85.decode(curve_keypair()[1])
        if len(client_key) != _KEY_BYTES:
            raise ValueError(f"a client's key has {_KEY_BYTES} bytes")
        self._links = [PortLink(PortAddress.of(url), client_key) for url in urls]

    def close(self) -> None:
        """Close every connection."""
        for link in self._links:
            link.close()

    async def record(self, raw: bytes, identifier: UUID, course: Course) -> Receipt:
        """Record one transaction; raises as `LedgerClient.record_transaction` does."""
        try:
            while True:
                (outcome,) = await self._submit((raw,), course)
                if isinstance(outcome, Receipt):
                    return outcome
                await course.go_on(_failure(outcome))
        except OutOfTimeError as error:
            raise lost(identifier, error) from error

    async def record_batch(self, batch: Batch, course: Course) -> None:
        """Record what is open of a batch; raises RejectedError where all of it is refused."""
        while batch.open:
            raws = tuple(batch.raw.values())
            _check_size(raws)
            try:
                failure = batch.settle(await self._submit(raws, course))
                if failure is not None:
                    await course.go_on(failure)
            except OutOfTimeError as error:
                batch.give_up(error)

    async def receipt(
        self, transaction_id: UUID, course: Course, *, is_linearizable: bool
    ) -> ReceiptLookup:
        """Return what is known of an id; raises UnavailableError."""

        def make(number: int) -> LookUp:
            timeout_ms = _timeout_ms(course.attempt_s())
            return LookUp(number, transaction_id.bytes, is_linearizable, timeout_ms)

        try:
            while True:
                (outcome,) = _exactly(1, await self._ask(make, course))
                if not isinstance(outcome, Refused):
                    return _lookup(outcome)
                await course.go_on(_failure(_problem(outcome)))
        except OutOfTimeError as error:
            raise UnavailableError(error.failure.detail) from error

    async def _submit(self, raws: tuple[bytes, ...], course: Course) -> Sequence[Receipt | Problem]:
        """An outcome for each transaction. Raises OutOfTimeError and RejectedError."""

        def make(number: int) -> Submit:
            return Submit(number, Wait.COMMITTED, _timeout_ms(course.attempt_s()), raws)

        while True:
            answer = await self._ask(make, course)
            first = answer[0] if answer else None
            if len(answer) == 1 < len(raws) and isinstance(first, Refused):
                # The request as a whole: nothing of it is recorded by this attempt.
                await course.go_on(_failure(_problem(first)))
                continue
            return [_outcome(one) for one in _exactly(len(raws), answer)]

    async def _ask(
        self, make: Callable[[int], Submit | LookUp], course: Course
    ) -> tuple[PortOutcome, ...]:
        """The first answer of any node. Raises OutOfTimeError."""
        while True:
            link = self._links[course.begin()]
            try:
                return await link.ask(make, course.attempt_s() + _GRACE_S)
            except LinkError as error:
                failure = Failure(str(error), may_be_recorded=error.may_be_recorded)
            await course.go_on(failure)


def _timeout_ms(attempt_s: float) -> int:
    return min(MAX_TIMEOUT_MS, max(1, int(attempt_s * 1_000)))


def _check_size(raws: Sequence[bytes]) -> None:
    """Refuses what no node would take, before a message is made that nobody reads."""
    for is_wrong, what in (
        (len(raws) > MAX_BATCH_TRANSACTIONS, f"{MAX_BATCH_TRANSACTIONS} transactions"),
        (sum(map(len, raws)) > MAX_BATCH_BYTES, f"{MAX_BATCH_BYTES} bytes"),
    ):
        if is_wrong:
            detail = f"has more than {what}"
            raise refusal(fault_error(ProblemKind.TOO_LARGE, "$.transactions", detail).problem)


def _failure(problem: Problem) -> Failure:
    """Why to try again; raises RejectedError where that is of no use."""
    if problem.status not in RETRIED:
        raise refusal(problem)
    return failure_of(problem)


def _exactly(count: int, outcomes: tuple[PortOutcome, ...]) -> tuple[PortOutcome, ...]:
    if len(outcomes) != count:
        raise ProtocolError(f"{len(outcomes)} outcomes for {count} transactions")
    return outcomes


def _outcome(outcome: PortOutcome) -> Receipt | Problem:
    if isinstance(outcome, Recorded):
        return _receipt(outcome)
    if isinstance(outcome, Refused):
        return _problem(outcome)
    raise ProtocolError("a transaction that was to be committed is pending")


def _receipt(recorded: Recorded) -> Receipt:
    return Receipt(
        id=uuid_text(recorded.id),
        index=recorded.index,
        position=recorded.position,
        block_hash=hash_text(recorded.block_hash),
        timestamp=time_text(recorded.timestamp_us),
    )


def _problem(refused: Refused) -> Problem:
    try:
        kind = ProblemKind(refused.problem)
    except ValueError as error:
        raise ProtocolError(f"refused for a reason that is not known: {refused.problem}") from error
    if refused.path is not None:
        return fault_error(
            kind, refused.path, refused.detail.removeprefix(f"{refused.path}: ")
        ).problem
    return make_problem(kind, refused.detail, retry_after_s=refused.retry_after_s)


def _lookup(outcome: Recorded | Taken | Nothing) -> ReceiptLookup:
    match outcome:
        case Recorded():
            return ReceiptLookup(status="committed", receipt=_receipt(outcome))
        case Taken():
            return ReceiptLookup(status="pending")
        case Nothing():
            return ReceiptLookup(status="unknown")
