"""What a request over the client port says, examined as strictly as one over HTTP.

A transaction comes as its canonical bytes, so nothing is encoded anew: `check_transaction` refuses
what `encode_transaction` would not have made. A batch is examined in slices, since the largest
would hold the loop. Relies on the problems of the HTTP face, which are those of this port too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from consensus.block import (
    MAX_TRANSACTION_BYTES,
    RESERVED_KINDS,
    InvalidTransactionError,
    check_transaction,
    transaction_id,
)
from node.api.json_input import MAX_BATCH_TRANSACTIONS
from node.api.problems import (
    HANDLED_ERRORS,
    ProblemKind,
    error_problem,
    fault_error,
)
from node.outcomes import TransactionState
from node.port_messages import (
    MAX_BATCH_BYTES,
    nothing_fields,
    outcome_fields,
    problem_fields,
    taken_fields,
)

if TYPE_CHECKING:
    from node.api.interface import LedgerNode
    from node.api.shapes import Problem
    from node.port_messages import Fields, LookUp, Submit

_BATCH: Final = "$.transactions"


class Examination:
    """One submit request on its way to the node."""

    def __init__(self, request: Submit) -> None:
        self.problem: Problem | None = None
        """Why nothing of it is recorded, once that is known."""
        self._transactions = request.transactions
        self._next = 0
        count = len(self._transactions)
        if not count:
            self._refuse(ProblemKind.INVALID_CONTENT, _BATCH, "must not be empty")
        elif count > MAX_BATCH_TRANSACTIONS:
            detail = f"has {count} transactions; at most {MAX_BATCH_TRANSACTIONS}"
            self._refuse(ProblemKind.TOO_LARGE, _BATCH, detail)
        elif sum(map(len, self._transactions)) > MAX_BATCH_BYTES:
            detail = f"has more than {MAX_BATCH_BYTES} bytes"
            self._refuse(ProblemKind.TOO_LARGE, _BATCH, detail)

    @property
    def is_done(self) -> bool:
        """Whether all of it is examined, or a fault was found."""
        return self.problem is not None or self._next == len(self._transactions)

    def go_on(self, count: int, size_bytes: int) -> tuple[int, int]:
        """Examines `count` transactions or `size_bytes`, at least one; how many there were."""
        start = self._next
        seen_bytes = 0
        while not self.is_done and self._next - start < count and seen_bytes < size_bytes:
            raw = self._transactions[self._next]
            seen_bytes += len(raw)
            self._next += 1
            try:
                kind = check_transaction(raw).kind
            except InvalidTransactionError as error:
                is_large = len(raw) > MAX_TRANSACTION_BYTES
                problem = ProblemKind.TOO_LARGE if is_large else ProblemKind.INVALID_CONTENT
                self._refuse(problem, self._path(error.field), error.detail)
                break
            if kind in RESERVED_KINDS:
                detail = f"{kind} is recorded by the cluster itself alone"
                self._refuse(ProblemKind.INVALID_CONTENT, self._path("kind"), detail)
        if self.is_done and len(self._transactions) > 1:
            self._refuse_two_contents()
        return max(1, self._next - start), seen_bytes

    def _refuse_two_contents(self) -> None:
        """An id that a batch gives to two contents is a mistake of the client, not a conflict."""
        if self.problem is not None:
            return
        first: dict[bytes, int] = {}
        for position, raw in enumerate(self._transactions):
            other = first.setdefault(transaction_id(raw), position)
            if self._transactions[other] != raw:
                detail = f"is also the id of {_BATCH}[{other}], of other content"
                self._refuse(ProblemKind.INVALID_CONTENT, f"{_BATCH}[{position}].id", detail)
                return

    def _path(self, field: str) -> str:
        """Where a fault of the transaction examined last is, as over HTTP."""
        place = "$" if len(self._transactions) == 1 else f"{_BATCH}[{self._next - 1}]"
        return place if field == "transaction" else f"{place}.{field}"

    def _refuse(self, kind: ProblemKind, path: str, detail: str) -> None:
        self.problem = fault_error(kind, path, detail).problem


async def look_up(node: LedgerNode, request: LookUp) -> Fields:
    """What the node knows of an id, or why it cannot say."""
    try:
        if request.is_linearizable:
            await node.read_barrier(timeout_s=request.timeout_ms / 1_000)
        status = await node.receipt_status(request.id)
    except HANDLED_ERRORS as error:
        return problem_fields(error_problem(error))
    if status.receipt is not None:
        return outcome_fields(status.receipt)
    if status.state is TransactionState.PENDING:
        return taken_fields(request.id)
    return nothing_fields()
