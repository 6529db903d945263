"""What clients and the client port say to each other: msgpack, one frame for each ZeroMQ message.

    client: [version, [request, ...]]        node: [version, [answer, ...]]

    submit   [1, number, wait, timeout_ms, [transaction bytes, ...]]
    look-up  [2, number, id, is_linearizable, timeout_ms]
    answer   [number, [outcome, ...]]        one outcome for each transaction, or for the id

    outcome  [0, id, index, position, block_hash, timestamp_us]     a receipt
             [1, id]                                                taken, not waited for
             [2, problem, detail, path, retry_after_s]              refused; `problem` as over HTTP
             [3]                                                    a look-up found nothing

Numbers are the client's: an answer bears that of its request, and answers come in any order. A
transaction is its canonical bytes (`consensus.block`), made by the client with its id in them, so a
retry is byte for byte the same. A request that is refused as a whole has one outcome, a refusal,
and nothing of it is recorded. Relies on msgspec, and on the limits of the HTTP face.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

from consensus.block import HASH_BYTES, TRANSACTION_ID_BYTES
from node.api.json_input import MAX_BODY_BYTES
from node.api.problems import TYPE_PREFIX, refusal_problem
from node.api.shapes import MAX_TIMEOUT_MS
from node.outcomes import Accepted, Receipt, Wait

if TYPE_CHECKING:
    from collections.abc import Sequence

    from node.api.shapes import Problem
    from node.outcomes import Outcome

VERSION: Final = 1
MAX_REQUESTS: Final = 1_024
"""Requests in one message."""
MAX_BATCH_BYTES: Final = MAX_BODY_BYTES
"""The transactions of one message, together."""
MAX_MESSAGE_BYTES: Final = MAX_BATCH_BYTES + (128 << 10)
"""With the length prefixes of the largest batch, and what stands around its transactions."""

MIN_TRANSACTION_BYTES: Final = 24
"""The shortest transaction there is: what claims to be a shorter one is not even decoded, or one
message would become two million objects, in a tenth of a second and 130 MiB."""

_RECEIPT: Final = 0
_ACCEPTED: Final = 1
_REFUSED: Final = 2
_NOTHING: Final = 3
_MAX_NUMBER: Final = (1 << 63) - 1

Number = Annotated[int, Meta(ge=0, le=_MAX_NUMBER)]
TransactionId = Annotated[
    bytes, Meta(min_length=TRANSACTION_ID_BYTES, max_length=TRANSACTION_ID_BYTES)
]
RawTransaction = Annotated[bytes, Meta(min_length=MIN_TRANSACTION_BYTES)]
TimeoutMs = Annotated[int, Meta(ge=1, le=MAX_TIMEOUT_MS)]


class _Part(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, gc=False):
    """An array with a fixed number of members."""


class Submit(_Part, tag=1, array_like=True, frozen=True, forbid_unknown_fields=True, gc=False):
    """Transactions to record, each for itself."""

    number: Number
    wait: Wait
    timeout_ms: TimeoutMs
    transactions: tuple[RawTransaction, ...]


class LookUp(_Part, tag=2, array_like=True, frozen=True, forbid_unknown_fields=True, gc=False):
    """Asks where a transaction stands in the chain."""

    number: Number
    id: TransactionId
    is_linearizable: bool
    timeout_ms: TimeoutMs


class Recorded(
    _Part, tag=_RECEIPT, array_like=True, frozen=True, forbid_unknown_fields=True, gc=False
):
    """A receipt."""

    id: TransactionId
    index: Number
    position: Number
    block_hash: Annotated[bytes, Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)]
    timestamp_us: Number


class Taken(
    _Part, tag=_ACCEPTED, array_like=True, frozen=True, forbid_unknown_fields=True, gc=False
):
    """On its way: taken without waiting for the commit, or found pending by a look-up."""

    id: TransactionId


class Refused(
    _Part, tag=_REFUSED, array_like=True, frozen=True, forbid_unknown_fields=True, gc=False
):
    """No receipt. `problem` is one of `ProblemKind`, `path` what it is about, as over HTTP."""

    problem: str
    detail: str
    path: str | None
    retry_after_s: Number | None


class Nothing(
    _Part, tag=_NOTHING, array_like=True, frozen=True, forbid_unknown_fields=True, gc=False
):
    """This node knows nothing of the id."""


PortOutcome: TypeAlias = Recorded | Taken | Refused | Nothing


class Answer(_Part, array_like=True, frozen=True, forbid_unknown_fields=True, gc=False):
    """What became of one request."""

    number: Number
    outcomes: tuple[PortOutcome, ...]


class Requests(_Part, array_like=True, frozen=True, forbid_unknown_fields=True, gc=False):
    """One message of a client."""

    version: Literal[1]
    requests: Annotated[tuple[Submit | LookUp, ...], Meta(min_length=1, max_length=MAX_REQUESTS)]


class Answers(_Part, array_like=True, frozen=True, forbid_unknown_fields=True, gc=False):
    """One message of a node."""

    version: Literal[1]
    answers: tuple[Answer, ...]


DECODE_ERRORS: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding bytes of anybody's making may raise."""

_ENCODER: Final = msgspec.msgpack.Encoder()
_REQUESTS: Final = msgspec.msgpack.Decoder(Requests)
_ANSWERS: Final = msgspec.msgpack.Decoder(Answers)

Fields: TypeAlias = tuple[object, ...]
"""An outcome as the array that travels: of tuples the node makes ten where it made one struct."""


def encode_requests(requests: Sequence[Submit | LookUp]) -> bytes:
    """A client's message."""
    return _ENCODER.encode((VERSION, requests))


def decode_requests(message: bytes) -> tuple[Submit | LookUp, ...]:
    """The requests of a message; raises one of DECODE_ERRORS."""
    return _REQUESTS.decode(message).requests


def encode_answers(answers: Sequence[tuple[int, Sequence[Fields]]]) -> bytes:
    """A node's message: request numbers and outcomes."""
    return _ENCODER.encode((VERSION, answers))


def decode_answers(message: bytes) -> tuple[Answer, ...]:
    """The answers of a message; raises one of DECODE_ERRORS."""
    return _ANSWERS.decode(message).answers


def outcome_fields(outcome: Outcome) -> Fields:
    """An outcome as it travels."""
    if isinstance(outcome, Receipt):
        return (
            _RECEIPT,
            outcome.id,
            outcome.index,
            outcome.position,
            outcome.block_hash,
            outcome.timestamp_us,
        )
    if isinstance(outcome, Accepted):
        return (_ACCEPTED, outcome.id)
    return problem_fields(refusal_problem(outcome))


def taken_fields(identifier: bytes) -> Fields:
    """That a transaction is on its way, as it travels."""
    return (_ACCEPTED, identifier)


def nothing_fields() -> Fields:
    """That nothing is known of an id, as it travels."""
    return (_NOTHING,)


def problem_fields(problem: Problem) -> Fields:
    """A problem of the HTTP face as it travels here."""
    path = problem.errors[0].path if problem.errors else None
    kind = problem.type.removeprefix(TYPE_PREFIX)
    return (_REFUSED, kind, problem.detail, path, problem.retry_after_s)
