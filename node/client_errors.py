"""What a call of the Python client may raise: one type for each thing a caller does differently.

Relies on the shapes of the HTTP face alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uuid import UUID

    from node.api.shapes import Problem, Receipt


class LedgerClientError(Exception):
    """Base of everything a call may raise beside InvalidTransactionError."""


class RejectedError(LedgerClientError):
    """The ledger refused for good; `problem` says why. Nothing was recorded by the call."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem


class ConflictError(RejectedError):
    """The id is in the chain, or on its way there, with other content."""


class NotFoundError(RejectedError):
    """There is no such block, or no such member."""


class ChangeRefusedError(RejectedError):
    """The cluster does not make this change, now or ever; `reason` is one word for why."""

    def __init__(self, problem: Problem, reason: str) -> None:
        super().__init__(problem)
        self.reason = reason


class UnavailableError(LedgerClientError):
    """No node could do it within the time allowed, and nothing was recorded."""


class UnknownOutcomeError(LedgerClientError):
    """It may be recorded, or not. Call again with the same id to find out, and to record it."""

    def __init__(self, transaction_id: UUID, detail: str) -> None:
        super().__init__(f"transaction {transaction_id} may be recorded: {detail}")
        self.transaction_id = transaction_id


class UnknownChangeFateError(LedgerClientError):
    """A change of the cluster may be made, or not. Look at the members to find out."""


class BatchError(LedgerClientError):
    """Some transactions of a batch have no receipt. `outcomes` has one entry each, in order."""

    def __init__(self, outcomes: tuple[Receipt | LedgerClientError, ...]) -> None:
        failed = [outcome for outcome in outcomes if isinstance(outcome, LedgerClientError)]
        super().__init__(f"{len(failed)} of {len(outcomes)} have no receipt; first: {failed[0]}")
        self.outcomes = outcomes


class NoHttpError(LedgerClientError):
    """The call needs the HTTP address of a node, and the client was given none."""


class ProtocolError(LedgerClientError):
    """What answered is no ledger, or speaks another version."""
