"""Turns the body of a submit request into canonical transactions, or refuses all of it.

Strict JSON (RFC 8259) by msgspec, which is native: NaN, duplicate keys, integers beyond 64 bits
and halves of surrogate pairs are refused, never mended. A batch is first split into its
transactions and then decoded in slices, so that a large one does not hold the loop. Relies on
`consensus.block` for the bytes and their limits, and on `faults` to name the place of a fault.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import msgspec
from msgspec import UNSET, UnsetType

from consensus.block import (
    MAX_TRANSACTION_BYTES,
    RESERVED_KINDS,
    TRANSACTION_ID_BYTES,
    InvalidTransactionError,
    encode_transaction,
    transaction_id,
)
from node.api.faults import find_fault, show_step
from node.api.problems import ProblemError, ProblemKind, fault_error

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

MAX_BODY_BYTES: Final = 8 << 20
MAX_BATCH_TRANSACTIONS: Final = 10_000
MAX_TEXT_BYTES: Final = 8 * MAX_TRANSACTION_BYTES
"""The longest JSON text of one transaction: escapes make a text at most six times as long."""

MAX_AT_ONCE_BYTES: Final = 16 * 1024
"""The longest body that is read without a pause, in some two milliseconds at most."""

_SUSPICIOUS_COMMAS: Final = 8 * MAX_BATCH_TRANSACTIONS
"""Twice what the largest batch has around its payloads."""

_SLICE_TRANSACTIONS: Final = 256
_SLICE_BYTES: Final = 256 * 1024
_SINGLE_DEPTH: Final = 1
_BATCH_DEPTH: Final = 3
"""The containers around a payload: the transaction; or the batch, its list and the transaction."""


class _Incoming(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """One transaction as it is sent."""

    user_id: str
    kind: str
    payload: Any
    id: UUID | UnsetType = UNSET


class _Batch(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A batch, split but not decoded."""

    transactions: list[msgspec.Raw]


class _Outline(msgspec.Struct, gc=False):
    """What every transaction has; anything else ends the decoding of an `_Outlines` at once."""

    user_id: str
    kind: str
    payload: msgspec.Raw


class _Outlines(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A batch, of which nothing is kept."""

    transactions: list[_Outline]


class _Either(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A body that is one transaction or a batch: which, its members say."""

    user_id: str | UnsetType = UNSET
    kind: str | UnsetType = UNSET
    payload: Any = UNSET
    id: UUID | UnsetType = UNSET
    transactions: list[msgspec.Raw] | UnsetType = UNSET


_EITHER_DECODER: Final = msgspec.json.Decoder(_Either)
_BATCH_DECODER: Final = msgspec.json.Decoder(_Batch)
_OUTLINES_DECODER: Final = msgspec.json.Decoder(_Outlines)
_ONE_DECODER: Final = msgspec.json.Decoder(_Incoming)
_SLICE_DECODER: Final = msgspec.json.Decoder(list[_Incoming])
_ENCODER: Final = msgspec.json.Encoder()

DECODE_ERRORS: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_SYNTAX: Final = (ProblemKind.INVALID_CONTENT, ProblemKind.INVALID_JSON)
_BEGINS_BATCH: Final = re.compile(rb'[ \t\r\n]*+\{[ \t\r\n]*+"transactions"')
_LOCATED: Final = re.compile(r"^(?P<detail>.*?)(?: - at `\$(?P<path>[^`]*)`)?$", re.DOTALL)
_FIELD: Final = re.compile(
    r"^Object (?P<what>missing required|contains unknown) field `(.*)`$", re.DOTALL
)


class Submission(msgspec.Struct, frozen=True):
    """What a body asks to record. `transactions` are canonical and hold each id once.

    `order` says for each transaction sent where it is in `transactions`; None where the two lists
    are the same, which is nearly always.
    """

    is_batch: bool
    transactions: list[bytes]
    order: tuple[int, ...] | None = None


async def read_submission(body: bytes, new_id: Callable[[], bytes]) -> Submission:
    """Read a body: one transaction, or `{"transactions": [...]}`.

    `new_id` makes the 16-byte id of a transaction that came without. Raises ProblemError naming
    the first fault found; then nothing of the body may be recorded.
    """
    steps = _steps(body, new_id)
    try:
        while True:
            next(steps)
            # Let the loop serve others: a slice takes about a millisecond.
            await asyncio.sleep(0)
    except StopIteration as end:
        submission: Submission = end.value
        return submission


def read_at_once(body: bytes, new_id: Callable[[], bytes]) -> Submission:
    """As `read_submission`, without a pause: for a body of at most MAX_AT_ONCE_BYTES."""
    assert len(body) <= MAX_AT_ONCE_BYTES
    steps = _steps(body, new_id)
    try:
        while True:
            next(steps)
    except StopIteration as end:
        submission: Submission = end.value
        return submission


def _steps(body: bytes, new_id: Callable[[], bytes]) -> Generator[None, None, Submission]:
    """Read a body, with a stop between the slices of a batch."""
    if len(body) > MAX_BODY_BYTES:
        raise _too_large("$", f"has more than {MAX_BODY_BYTES} bytes")
    try:
        return (yield from _read(body, new_id))
    except RecursionError as error:
        # A text nested nearly as deep as the interpreter allows is decoded, and then some other
        # step needs one frame more. Far beyond the depth allowed, whatever step it was.
        raise explain(body, error, "$", _depth_around(body)) from None


def _depth_around(body: bytes) -> int:
    return _BATCH_DEPTH if _BEGINS_BATCH.match(body) else _SINGLE_DEPTH


def _read(body: bytes, new_id: Callable[[], bytes]) -> Generator[None, None, Submission]:
    try:
        head = _decode_head(body)
    except DECODE_ERRORS as error:
        if len(body) > MAX_TEXT_BYTES and not _BEGINS_BATCH.match(body):
            detail = f"has {len(body)} bytes of JSON; one transaction has at most {MAX_TEXT_BYTES}"
            raise _too_large("$", detail) from None
        raise explain(body, error, "$", _depth_around(body)) from None
    if head.transactions is UNSET:
        assert isinstance(head, _Either)
        return Submission(is_batch=False, transactions=[_read_single(head, body, new_id)])
    if isinstance(head, _Either):
        _refuse_both(head)
    return (yield from _read_batch(head.transactions, body, new_id))


def _decode_head(body: bytes) -> _Either | _Batch:
    """Decode all but the transactions of a batch; raises DECODE_ERRORS."""
    if len(body) <= MAX_TEXT_BYTES:
        return _EITHER_DECODER.decode(body)
    if body.count(b",") > _SUSPICIOUS_COMMAS:
        # Four million members that are no transactions would hold the loop for a quarter of a
        # second, and 290 MiB, before they are counted.
        _OUTLINES_DECODER.decode(body)
    return _BATCH_DECODER.decode(body)


def count_quotes(text: bytes) -> int:
    r"""Return how many quotes begin or end a string, or a key, in a valid JSON text.

    Every string has two quotes that no backslash escapes. Backslashes stand in strings alone, so
    once `\\` is gone each one left begins an escape, and a quote after it is no end of a string.
    """
    if b"\\" in text:
        text = text.replace(rb"\\", b"").replace(rb"\"", b"")
    return text.count(b'"')


def _read_single(head: _Either, body: bytes, new_id: Callable[[], bytes]) -> bytes:
    for name in ("user_id", "kind", "payload"):
        if getattr(head, name) is UNSET:
            raise fault_error(ProblemKind.INVALID_CONTENT, f"$.{name}", "is missing")
    # A duplicate key is decoded to its last value alone: the text then holds more strings.
    if count_quotes(_ENCODER.encode(head)) != count_quotes(body):
        raise _duplicate(body, "$", _SINGLE_DEPTH)
    assert isinstance(head.user_id, str)
    assert isinstance(head.kind, str)
    incoming = _Incoming(head.user_id, head.kind, head.payload, head.id)
    return _encode(incoming, "$", new_id)


def _refuse_both(head: _Either) -> None:
    """Refuse a body that is a batch and a transaction at once."""
    for name in ("user_id", "kind", "payload", "id"):
        if getattr(head, name) is not UNSET:
            detail = "must not stand beside `transactions`"
            raise fault_error(ProblemKind.INVALID_CONTENT, f"$.{name}", detail)


def _read_batch(
    texts: list[msgspec.Raw], body: bytes, new_id: Callable[[], bytes]
) -> Generator[None, None, Submission]:
    if not texts:
        raise fault_error(ProblemKind.INVALID_CONTENT, "$.transactions", "must not be empty")
    if len(texts) > MAX_BATCH_TRANSACTIONS:
        detail = f"has {len(texts)} transactions; at most {MAX_BATCH_TRANSACTIONS}"
        raise _too_large("$.transactions", detail)
    quotes = count_quotes(b'"transactions"')
    transactions: list[bytes] = []
    for first, part in _slices(texts):
        if first:
            yield
        incoming = _decode_slice(first, part)
        quotes += count_quotes(_ENCODER.encode(incoming))
        transactions += [
            _encode(one, f"$.transactions[{first + offset}]", new_id)
            for offset, one in enumerate(incoming)
        ]
    if quotes != count_quotes(body):
        raise _find_duplicate(texts)
    return _without_repeats(transactions)


def _slices(texts: list[msgspec.Raw]) -> Iterator[tuple[int, list[msgspec.Raw]]]:
    """Cut a batch where a slice has enough transactions or bytes; raises on one too long."""
    first = 0
    size_bytes = 0
    for position, text in enumerate(texts):
        text_bytes = len(memoryview(text))
        if text_bytes > MAX_TEXT_BYTES:
            detail = f"has {text_bytes} bytes of JSON; at most {MAX_TEXT_BYTES}"
            raise _too_large(f"$.transactions[{position}]", detail)
        size_bytes += text_bytes
        if size_bytes >= _SLICE_BYTES or position - first + 1 >= _SLICE_TRANSACTIONS:
            yield first, texts[first : position + 1]
            first = position + 1
            size_bytes = 0
    if first < len(texts):
        yield first, texts[first:]


def _decode_slice(first: int, texts: Sequence[msgspec.Raw]) -> list[_Incoming]:
    """Decode a slice in one call, and on a fault each alone to find the one at fault."""
    try:
        return _SLICE_DECODER.decode(b"[" + b",".join(texts) + b"]")
    except DECODE_ERRORS as error:
        for position, text in enumerate(texts, first):
            try:
                _ONE_DECODER.decode(text)
            except DECODE_ERRORS as own_error:
                path = f"$.transactions[{position}]"
                raise explain(bytes(text), own_error, path, _SINGLE_DEPTH) from None
        if isinstance(error, RecursionError):
            raise  # one container deeper than the transaction alone
        raise AssertionError("a slice is refused and each of its transactions is not") from error


def _encode(incoming: _Incoming, path: str, new_id: Callable[[], bytes]) -> bytes:
    if incoming.kind in RESERVED_KINDS:
        detail = f"{incoming.kind} is recorded by the cluster itself alone"
        raise fault_error(ProblemKind.INVALID_CONTENT, f"{path}.kind", detail)
    identifier = new_id() if incoming.id is UNSET else incoming.id.bytes
    try:
        return encode_transaction(
            transaction_id=identifier,
            user_id=incoming.user_id,
            kind=incoming.kind,
            payload=incoming.payload,
        )
    except InvalidTransactionError as error:
        kind = ProblemKind.TOO_LARGE if _is_too_large(incoming) else ProblemKind.INVALID_CONTENT
        raise fault_error(kind, f"{path}.{error.field}", error.detail) from None


def _is_too_large(incoming: _Incoming) -> bool:
    """Whether a refused transaction is so for its size, which has a status code of its own."""
    try:
        fields = (bytes(TRANSACTION_ID_BYTES), incoming.user_id, incoming.kind, incoming.payload)
        return len(msgspec.msgpack.encode(fields)) > MAX_TRANSACTION_BYTES
    except OverflowError:
        return False


def _without_repeats(transactions: list[bytes]) -> Submission:
    """Fold transactions that were sent twice into one; refuse an id with two contents."""
    ids = [transaction_id(raw) for raw in transactions]
    if len(set(ids)) == len(ids):
        return Submission(is_batch=True, transactions=transactions)
    places: dict[bytes, int] = {}
    unique: list[bytes] = []
    order: list[int] = []
    for position, (identifier, raw) in enumerate(zip(ids, transactions, strict=True)):
        place = places.setdefault(identifier, len(unique))
        if place == len(unique):
            unique.append(raw)
        elif unique[place] != raw:
            detail = f"is also the id of $.transactions[{ids.index(identifier)}], of other content"
            path = f"$.transactions[{position}].id"
            raise fault_error(ProblemKind.INVALID_CONTENT, path, detail)
        order.append(place)
    return Submission(is_batch=True, transactions=unique, order=tuple(order))


def _find_duplicate(texts: list[msgspec.Raw]) -> ProblemError:
    """Name the transaction of a batch that has a key twice, or else the batch itself."""
    for position, text in enumerate(texts):
        raw = bytes(text)
        if count_quotes(_ENCODER.encode(_ONE_DECODER.decode(raw))) != count_quotes(raw):
            return _duplicate(raw, f"$.transactions[{position}]", _SINGLE_DEPTH)
    return fault_error(ProblemKind.INVALID_CONTENT, "$.transactions", "is there twice")


def _duplicate(text: bytes, path: str, depth_around: int) -> ProblemError:
    finding = find_fault(text, path=path, depth_around=depth_around)
    if finding is None:
        return fault_error(ProblemKind.INVALID_CONTENT, path, "has a key twice")
    return fault_error(ProblemKind.INVALID_CONTENT, finding.path, finding.detail)


def _too_large(path: str, detail: str) -> ProblemError:
    return fault_error(ProblemKind.TOO_LARGE, path, detail)


def explain(text: bytes, error: Exception, path: str, depth_around: int) -> ProblemError:
    """Return the problem for a text that msgspec refused, with the place of the fault."""
    is_typed = isinstance(error, msgspec.ValidationError)
    if not is_typed or "out of range" in str(error):
        finding = find_fault(text, path=path, depth_around=depth_around)
        if finding is not None:
            return fault_error(_SYNTAX[finding.is_syntax], finding.path, finding.detail)
    if isinstance(error, RecursionError):
        return fault_error(ProblemKind.INVALID_CONTENT, path, "is nested too deep")
    if not is_typed:
        return fault_error(ProblemKind.INVALID_JSON, path, str(error))
    return _explain_type(str(error), path)


def _explain_type(message: str, path: str) -> ProblemError:
    """Translate msgspec's message about a type into a place and what is wrong there."""
    located = _LOCATED.match(message)
    assert located is not None
    path += located["path"] or ""
    detail = located["detail"]
    field = _FIELD.match(detail)
    if field is None:
        return fault_error(ProblemKind.INVALID_CONTENT, path, detail.replace("`", ""))
    what = "is missing" if field["what"].startswith("missing") else "is not a known member"
    return fault_error(ProblemKind.INVALID_CONTENT, path + show_step(field[2]), what)
