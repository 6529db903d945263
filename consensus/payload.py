"""What a transaction's payload may hold, and the check of it that most payloads pass cheaply.

A payload is what JSON can say and PostgreSQL can keep: maps with text keys, lists, text without
NUL, integers of 64 bits, finite floats, true, false and null, nested at most 32 deep. Both ways in
are here: Python values to be encoded, and bytes from elsewhere to be checked. Relies on msgspec.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, TypeAlias

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_PAYLOAD_DEPTH = 32
_MIN_INTEGER = -(1 << 63)
_MAX_INTEGER = (1 << 64) - 1
_MAX_SHOWN_KEY = 40

ENCODER = msgspec.msgpack.Encoder(order="sorted")
"""The one canonical encoder: msgspec sorts map keys by their UTF-8 bytes, in ascending order."""
_DECODER = msgspec.msgpack.Decoder()

DECODE_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes it cannot decode."""
_ENCODE_ERRORS = (TypeError, OverflowError, UnicodeEncodeError, RecursionError)


class InvalidTransactionError(ValueError):
    """A transaction that cannot be recorded.

    `field` is the path of what is wrong, such as `user_id` or `payload.items[3]`, and
    `transaction` where the bytes as a whole are; `detail` says what is wrong with it.
    """

    def __init__(self, field: str, detail: str) -> None:
        super().__init__(f"{field}: {detail}")
        self.field = field
        self.detail = detail


def encode_payload(payload: object) -> bytes:
    """Encode a payload that will be read back exactly as it was given.

    Raises InvalidTransactionError with the path of a fault.
    """
    try:
        encoded = ENCODER.encode(payload)
        decoded = _DECODER.decode(encoded)
        is_same = decoded == payload
    except (*_ENCODE_ERRORS, *DECODE_ERRORS) as error:
        raise _find_fault(payload) or InvalidTransactionError("payload", str(error)) from None
    if not is_same:
        fault = _find_fault(payload)
        raise fault or InvalidTransactionError("payload", "would not be read back as it was given")
    _refuse_faults(encoded, decoded)
    return encoded


def check_payload(encoded: bytes) -> None:
    """Check the bytes of a payload from elsewhere against all that `encode_payload` promises.

    Raises InvalidTransactionError with the path of a fault.
    """
    try:
        decoded = _DECODER.decode(encoded)
    except DECODE_ERRORS as error:
        raise InvalidTransactionError("payload", str(error)) from None
    try:
        canonical = ENCODER.encode(decoded)
    except _ENCODE_ERRORS as error:
        raise _find_fault(decoded) or InvalidTransactionError("payload", str(error)) from None
    if canonical != encoded:
        detail = "is not in its canonical encoding (order of keys, duplicate keys, long forms)"
        raise InvalidTransactionError("payload", detail)
    _refuse_faults(encoded, decoded)


def text_fault(text: str) -> str | None:
    """Say what is wrong with a piece of text, if anything is."""
    # PostgreSQL can hold a NUL neither in text nor in jsonb.
    if "\x00" in text:
        return "must not contain a NUL character"
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return "must not contain half a surrogate pair"
    return None


# fixmap and fixarray, array 16 and 32, map 16 and 32
_CONTAINER_MARKS = bytes([*range(0x80, 0xA0), *range(0xDC, 0xE0)])
# bin 8 to ext 32, fixext 1 to 16, and how a float 64 that is infinite or no number goes on
_SUSPECT_MARKS = bytes([*range(0xC4, 0xCA), *range(0xD4, 0xD9), 0x7F, 0xFF])
_NUL = b"\x00"
_HARMLESS = bytes(set(range(256)) - {*_CONTAINER_MARKS, *_SUSPECT_MARKS, *_NUL})


def _refuse_faults(encoded: bytes, decoded: object) -> None:
    """Raise InvalidTransactionError where a canonical payload holds what no payload may hold.

    Each fault needs certain bytes in the encoding, which most payloads lack: more than 32 marks of
    containers, the marks of bin and ext, the exponent of an infinite float, NUL. The same bytes
    also occur in text and numbers, so they prove nothing. Then JSON tells: it can say what a
    payload may hold and nothing else. Only a payload that has a fault is walked, to name it: for
    64 KiB of small containers that takes ten times as long as all else.
    """
    marks = encoded.translate(None, _HARMLESS)
    others = marks.translate(None, _CONTAINER_MARKS)
    if len(marks) - len(others) <= MAX_PAYLOAD_DEPTH and not others:
        return
    if _is_sound_json(decoded, has_suspects=bool(others.strip(_NUL))):
        return
    fault = _find_fault(decoded)
    if fault is not None:
        raise fault


_NUL_ESCAPE = b"\\u0000"
_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*+"')
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_SQUARE = bytes.maketrans(b"{}", b"[]")


def _is_sound_json(decoded: object, *, has_suspects: bool) -> bool:
    """Whether JSON brings a payload back as it is, with no NUL in it and not too deep.

    False may also mean that only a walk can tell, as for text that holds a NUL's escape.
    """
    try:
        text = msgspec.json.encode(decoded)
        # Bytes come back as text, and what is no number as null.
        if has_suspects and msgspec.json.decode(text) != decoded:
            return False
    except (*_ENCODE_ERRORS, *DECODE_ERRORS):
        return False
    if _NUL_ESCAPE in text:
        return False
    brackets = _STRINGS.sub(b"", text).translate(_SQUARE, _NO_BRACKETS)
    for _ in range(MAX_PAYLOAD_DEPTH):
        brackets = brackets.replace(b"[]", b"")  # the innermost containers
    return not brackets


# Where a value stands in a payload: the place of its container, and its key or position there.
_Place: TypeAlias = "tuple[_Place, object] | None"


def _find_fault(payload: object) -> InvalidTransactionError | None:
    """Walk a payload and return what no payload may hold, if there is any."""
    pending: list[tuple[object, _Place, int]] = [(payload, None, 1)]
    while pending:
        value, place, depth = pending.pop()
        items: Iterable[tuple[object, object]]
        if isinstance(value, dict):
            fault, items = _keys_fault(value), value.items()
        elif isinstance(value, list):
            fault, items = None, enumerate(value)
        else:
            fault, items, depth = _scalar_fault(value), (), 0
        if fault is not None:
            return InvalidTransactionError(_show(place), fault)
        if depth > MAX_PAYLOAD_DEPTH:
            # The full path would be as deep as what it complains of.
            detail = f"is nested deeper than {MAX_PAYLOAD_DEPTH}"
            return InvalidTransactionError("payload", detail)
        # Most of what a large payload holds is told to be sound right here, without a call.
        pending += [
            (item, (place, key), depth + 1)
            for key, item in items
            if not (type(item) is int and _MIN_INTEGER <= item <= _MAX_INTEGER)
            and not (type(item) is str and item.isascii() and "\x00" not in item)
        ]
    return None


def _keys_fault(value: dict[object, object]) -> str | None:
    """Say what is wrong with the keys of a map, if anything is."""
    for key in value:
        if not isinstance(key, str):
            return f"has a key that is not text but {type(key).__name__}"
        fault = text_fault(key)
        if fault is not None:
            return f"has a key that {fault}"
    return None


def _scalar_fault(value: object) -> str | None:
    """Say what is wrong with a value that is no container, if anything is."""
    if isinstance(value, str):
        return text_fault(value)
    if isinstance(value, int):
        is_small = _MIN_INTEGER <= value <= _MAX_INTEGER
        return None if is_small else "must be from -2^63 to 2^64-1"
    if isinstance(value, float):
        return None if math.isfinite(value) else "must be a finite number"
    return None if value is None else f"must not be of the type {type(value).__name__}"


def _show(place: _Place) -> str:
    """Write a place as `payload.items[3]`; keys that are no plain words are quoted."""
    steps: list[str] = []
    while place is not None:
        place, key = place
        if isinstance(key, str):
            short = key if len(key) <= _MAX_SHOWN_KEY else key[:_MAX_SHOWN_KEY] + "..."
            steps.append(f".{key}" if short.isidentifier() else f"[{short!a}]")
        else:
            steps.append(f"[{key}]")
    return "payload" + "".join(reversed(steps))
