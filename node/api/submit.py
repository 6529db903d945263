"""`POST /api/v1/ledger/transactions`: the hot path, kept free of any framework.

Reads the body within limits, has `json_input` make canonical transactions of it, gives all of them
to the node in one call, and says what became of each. Relies on ASGI as uvicorn speaks it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from node.api.answers import receipt_answer
from node.api.body import check_lengths, check_type, read_body
from node.api.json_input import MAX_BODY_BYTES, read_submission
from node.api.problems import (
    ProblemError,
    ProblemKind,
    make_problem,
    problem_reply,
    refusal_problem,
)
from node.api.query import Choice, Query, Whole, parse_query
from node.api.reply import PROBLEM_JSON, Reply, encode_json, json_reply
from node.api.shapes import (
    MAX_TIMEOUT_MS,
    BatchAnswer,
    BatchRefusal,
    Pending,
    Problem,
    Receipt,
)
from node.outcomes import Accepted, Refusal, Wait
from node.outcomes import Receipt as NodeReceipt
from node.uuid7 import new_transaction_id, uuid_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from node.api.interface import LedgerNode
    from node.api.json_input import Submission
    from node.api.reply import Receive, Scope
    from node.outcomes import Outcome

DEFAULT_TIMEOUT_MS: Final = 10_000

TIMEOUT: Final = Whole(
    "timeout_ms", 1, MAX_TIMEOUT_MS, DEFAULT_TIMEOUT_MS, "How long to wait at most"
)
SUBMIT_PARAMETERS: Final = (
    Choice(
        "wait",
        tuple(wait.value for wait in Wait),
        "Until what to wait: until the transaction is committed, or only until it is queued",
    ),
    TIMEOUT,
)

_CREATED: Final = 201
_ACCEPTED: Final = 202
_MULTI_STATUS: Final = 207
_FULL: Final = "the queue is full; nothing of this was taken"


@dataclass(frozen=True, slots=True)
class Options:
    """How a submit wants to be answered: until what to wait, and how long at most."""

    wait: Wait
    timeout_s: float


async def answer_submit(node: LedgerNode, scope: Scope, receive: Receive) -> Reply:
    """Record what the body holds and return the answer.

    Raises ProblemError where the request as a whole is refused (nothing is recorded then), and
    ClientGoneError.
    """
    options = read_options(scope["query_string"])
    check_lengths(scope["headers"], limit_bytes=MAX_BODY_BYTES)
    check_type(scope["headers"])
    body = await read_body(receive, limit_bytes=MAX_BODY_BYTES)
    refuse_while_full(node)
    submission = await read_submission(body, new_transaction_id)
    outcomes = await node.submit(
        submission.transactions, wait=options.wait, timeout_s=options.timeout_s
    )
    return submit_reply(submission, outcomes)


def refuse_while_full(node: LedgerNode) -> None:
    """Raise ProblemError where nothing could be taken: reading it would only cost the others."""
    if node.is_full:
        raise ProblemError(make_problem(ProblemKind.QUEUE_FULL, _FULL, retry_after_s=1))


def submit_reply(submission: Submission, outcomes: Sequence[Outcome]) -> Reply:
    """Return the answer to a submission of which everything has its outcome."""
    assert len(outcomes) == len(submission.transactions)
    if not submission.is_batch:
        return _single_reply(outcomes[0])
    if submission.order is not None:
        outcomes = [outcomes[place] for place in submission.order]
    return _batch_reply(outcomes)


@lru_cache(maxsize=64)
def read_options(query_string: bytes) -> Options:
    """Read how long to wait, and for what; raises ProblemError."""
    query: Query = parse_query(query_string, SUBMIT_PARAMETERS)
    return Options(Wait(query.choice("wait")), query.whole("timeout_ms") / 1000)


def _single_reply(outcome: Outcome) -> Reply:
    if isinstance(outcome, NodeReceipt):
        return json_reply(_CREATED, receipt_answer(outcome))
    if isinstance(outcome, Accepted):
        return json_reply(_ACCEPTED, Pending(id=uuid_text(outcome.id)))
    return problem_reply(refusal_problem(outcome))


def _batch_reply(outcomes: Sequence[Outcome]) -> Reply:
    """Return one answer for all: 201 or 202 where none is refused, 207 where some are.

    Where all are refused for one reason the answer is that problem, with the problem of each.
    """
    answers = [_outcome_answer(outcome) for outcome in outcomes]
    refusals = [outcome for outcome in outcomes if isinstance(outcome, Refusal)]
    if not refusals:
        is_pending = any(isinstance(outcome, Accepted) for outcome in outcomes)
        return json_reply(_ACCEPTED if is_pending else _CREATED, BatchAnswer(receipts=answers))
    reasons = {refusal.reason for refusal in refusals}
    if len(refusals) == len(outcomes) and len(reasons) == 1:
        return _refused_batch([answer for answer in answers if isinstance(answer, Problem)])
    return json_reply(_MULTI_STATUS, BatchAnswer(receipts=answers))


def _refused_batch(problems: list[Problem]) -> Reply:
    first = problems[0]
    waits = [problem.retry_after_s for problem in problems if problem.retry_after_s is not None]
    retry_after_s = max(waits, default=None)
    refusal = BatchRefusal(
        type=first.type,
        title=first.title,
        status=first.status,
        detail=f"each of the {len(problems)} transactions is refused; the first: {first.detail}",
        retry_after_s=retry_after_s,
        receipts=problems,
    )
    headers = () if retry_after_s is None else ((b"retry-after", b"%d" % retry_after_s),)
    return Reply(refusal.status, encode_json(refusal), PROBLEM_JSON, headers)


def _outcome_answer(outcome: Outcome) -> Receipt | Pending | Problem:
    if isinstance(outcome, NodeReceipt):
        return receipt_answer(outcome)
    if isinstance(outcome, Accepted):
        return Pending(id=uuid_text(outcome.id))
    return refusal_problem(outcome)
