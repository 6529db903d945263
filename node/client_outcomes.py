"""What a call of the Python client ends with: receipts, errors, and a batch that has some of each.

The same for what is sent over HTTP and over the client port, whose refusals are problems alike.
Relies on the shapes of the HTTP face.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import UNSET

from consensus.block import encode_transaction
from node.api.problems import TYPE_PREFIX, ProblemKind
from node.api.shapes import NewTransaction, Problem, Receipt
from node.client_errors import (
    BatchError,
    ChangeRefusedError,
    ConflictError,
    LedgerClientError,
    NotFoundError,
    ProtocolError,
    RejectedError,
    UnavailableError,
    UnknownOutcomeError,
)
from node.client_nodes import Failure, OutOfTimeError, failure_of, worse_of
from node.uuid7 import uuid7

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

_NOT_FOUND: Final = 404
_CONFLICT: Final = 409
_FINAL_KINDS: Final = frozenset({TYPE_PREFIX + ProblemKind.CONFLICT})


def lost(identifier: UUID, error: OutOfTimeError) -> LedgerClientError:
    """What a transaction ends with whose time is up."""
    if error.failure.may_be_recorded:
        return UnknownOutcomeError(identifier, error.failure.detail)
    return UnavailableError(error.failure.detail)


def refusal(problem: Problem) -> RejectedError:
    """What a problem is raised as that no further attempt would change."""
    if problem.status == _NOT_FOUND:
        return NotFoundError(problem)
    if problem.reason is not None:
        return ChangeRefusedError(problem, problem.reason)
    if problem.status == _CONFLICT:
        return ConflictError(problem)
    return RejectedError(problem)


def canonical_bytes(new: NewTransaction) -> bytes:
    """The transaction as it is recorded.

    Raises InvalidTransactionError also for what JSON would change on its way, such as NaN.
    """
    assert new.id is not UNSET
    return encode_transaction(
        transaction_id=new.id.bytes, user_id=new.user_id, kind=new.kind, payload=new.payload
    )


class Batch:
    """A batch under way: what is still to be sent, and what became of the rest."""

    def __init__(self, transactions: Sequence[NewTransaction]) -> None:
        """Gives an id to each that has none; raises InvalidTransactionError."""
        self._outcomes: list[Receipt | LedgerClientError | None] = [None] * len(transactions)
        self.open: dict[int, NewTransaction] = {}
        self.raw: dict[int, bytes] = {}
        """The canonical bytes of those that are open."""
        for position, new in enumerate(transactions):
            with_id = msgspec.structs.replace(new, id=uuid7()) if new.id is UNSET else new
            self.raw[position] = canonical_bytes(with_id)
            self.open[position] = with_id

    def settle(self, outcomes: Sequence[Receipt | Problem]) -> Failure | None:
        """Take the outcomes of an answer; return why some transactions are still open, if any."""
        if len(outcomes) != len(self.open):
            raise ProtocolError(f"{len(outcomes)} outcomes for {len(self.open)} transactions")
        failure = None
        for position, outcome in zip(list(self.open), outcomes, strict=True):
            if isinstance(outcome, Problem):
                if outcome.type not in _FINAL_KINDS:
                    failure = worse_of(failure, failure_of(outcome))
                    continue
                self._outcomes[position] = refusal(outcome)
            else:
                self._outcomes[position] = outcome
            del self.open[position], self.raw[position]
        return failure

    def give_up(self, error: OutOfTimeError) -> None:
        """End what is still open."""
        for position, new in self.open.items():
            assert new.id is not UNSET
            self._outcomes[position] = lost(new.id, error)
        self.open.clear()
        self.raw.clear()

    @property
    def outcomes(self) -> Sequence[Receipt | LedgerClientError | None]:
        """What became of each; None for those that are open."""
        return tuple(self._outcomes)

    def receipts(self) -> list[Receipt]:
        """Return the receipts of a batch that has all of them; raises BatchError."""
        receipts = [outcome for outcome in self._outcomes if isinstance(outcome, Receipt)]
        if len(receipts) == len(self._outcomes):
            return receipts
        raise BatchError(tuple(outcome for outcome in self._outcomes if outcome is not None))
