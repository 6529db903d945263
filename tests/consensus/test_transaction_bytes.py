"""Transactions as bytes from elsewhere: accepted exactly when they are canonical and within limits.

An oracle that shares no code with the ledger, a strict reader of canonical msgpack, says for any
bytes whether they are a transaction; random, mutated and forged bytes must be judged alike.
"""

from __future__ import annotations

import math
import struct
from typing import TypeAlias

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.block import (
    MAX_KIND_BYTES,
    MAX_PAYLOAD_DEPTH,
    MAX_TRANSACTION_BYTES,
    MAX_USER_ID_BYTES,
    InvalidTransactionError,
    check_transaction,
    decode_transaction,
    encode_transaction,
    transaction_id,
)

PROPERTY = settings(deadline=None, derandomize=True, database=None)
IDENTIFIER = bytes(range(16))
MINIMUM, MAXIMUM = -(2**63), 2**64 - 1

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"


def encode(payload: object) -> bytes:
    """Encode a transaction of which only the payload matters."""
    return encode_transaction(
        transaction_id=IDENTIFIER, user_id="alice", kind="deposit", payload=payload
    )


def around(payload: bytes) -> bytes:
    """Put the bytes of a payload into a transaction, whatever they are."""
    return b"\x94\xc4\x10" + IDENTIFIER + b"\xa5alice\xa7deposit" + payload


def refusal_of(raw: bytes) -> InvalidTransactionError:
    """Check bytes that must be refused, and return the refusal."""
    with pytest.raises(InvalidTransactionError) as caught:
        check_transaction(raw)
    return caught.value


# --- the oracle ---------------------------------------------------------------------------------


class NotCanonicalError(Exception):
    """The oracle's verdict on bytes that are no transaction."""


def require(condition: bool) -> None:
    """Give the verdict unless a condition holds."""
    if not condition:
        raise NotCanonicalError


class Oracle:
    """A strict reader of canonical msgpack, one byte at a time."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.at = 0

    def take(self, size: int) -> bytes:
        """Take the next bytes."""
        taken = self.raw[self.at : self.at + size]
        require(len(taken) == size)
        self.at += size
        return taken

    def number(self, form: str, low: int, high: int) -> int:
        """Take a big-endian number that no shorter form could hold."""
        value = int(struct.unpack(form, self.take(struct.calcsize(form)))[0])
        require(low <= value <= high)
        return value

    def text(self, mark: int) -> str:
        """Take text after its mark."""
        if 0xA0 <= mark <= 0xBF:
            size = mark - 0xA0
        elif mark == 0xD9:
            size = self.number(">B", 32, 0xFF)
        elif mark == 0xDA:
            size = self.number(">H", 0x100, 0xFFFF)
        else:
            require(mark == 0xDB)
            size = self.number(">I", 0x10000, 0xFFFFFFFF)
        try:
            text = self.take(size).decode()
        except UnicodeDecodeError:
            raise NotCanonicalError from None
        require("\x00" not in text)
        return text

    def value(self, depth: int) -> None:
        """Take any value that a payload may hold."""
        mark = self.take(1)[0]
        signed = {
            0xD0: (">b", -0x80, -33),
            0xD1: (">h", -0x8000, -0x81),
            0xD2: (">i", -0x80000000, -0x8001),
            0xD3: (">q", MINIMUM, -0x80000001),
        }
        unsigned = {
            0xCC: (">B", 0x80, 0xFF),
            0xCD: (">H", 0x100, 0xFFFF),
            0xCE: (">I", 0x10000, 0xFFFFFFFF),
            0xCF: (">Q", 0x100000000, MAXIMUM),
        }
        if mark in signed | unsigned:
            self.number(*(signed | unsigned)[mark])
        elif mark == 0xCB:
            require(math.isfinite(struct.unpack(">d", self.take(8))[0]))
        elif 0x90 <= mark <= 0x9F or mark in {0xDC, 0xDD}:
            self.items(mark, 0x90, 0xDC, depth + 1, is_map=False)
        elif 0x80 <= mark <= 0x8F or mark in {0xDE, 0xDF}:
            self.items(mark, 0x80, 0xDE, depth + 1, is_map=True)
        elif not (mark <= 0x7F or mark >= 0xE0 or mark in {0xC0, 0xC2, 0xC3}):
            self.text(mark)

    def items(self, mark: int, fixed: int, wide: int, depth: int, *, is_map: bool) -> None:
        """Take the items of a container; a map's keys must ascend."""
        require(depth <= MAX_PAYLOAD_DEPTH)
        count = mark - fixed
        if mark >= wide:
            forms = {wide: (">H", 16, 0xFFFF), wide + 1: (">I", 0x10000, 0xFFFFFFFF)}
            count = self.number(*forms[mark])
        last: bytes | None = None
        for _ in range(count):
            if is_map:
                key = self.text(self.take(1)[0]).encode()
                require(last is None or last < key)
                last = key
            self.value(depth)


def is_transaction(raw: bytes) -> bool:
    """Say whether bytes are a transaction, without the ledger's help."""
    oracle = Oracle(raw)
    try:
        require(len(raw) <= MAX_TRANSACTION_BYTES)
        require(oracle.take(3) == b"\x94\xc4\x10")
        oracle.take(16)
        for limit in (MAX_USER_ID_BYTES, MAX_KIND_BYTES):
            require(1 <= len(oracle.text(oracle.take(1)[0]).encode()) <= limit)
        oracle.value(0)
    except NotCanonicalError:
        return False
    return oracle.at == len(raw)


def judged_alike(raw: bytes) -> bool:
    """Say whether the ledger and the oracle agree on bytes, and what is accepted is unchanged."""
    decoded = None
    try:
        decoded = decode_transaction(raw)
        checked = check_transaction(raw)
    except InvalidTransactionError:
        return not is_transaction(raw)
    again = encode_transaction(
        transaction_id=transaction_id(raw),
        user_id=checked.user_id,
        kind=checked.kind,
        payload=msgspec.msgpack.decode(checked.payload),
    )
    return is_transaction(raw) and again == raw and decoded == checked


# --- bytes ---

texts = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=40)
scalars: st.SearchStrategy[Json] = (
    st.none()
    | st.booleans()
    | st.integers(MINIMUM, MAXIMUM)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
)
payloads: st.SearchStrategy[Json] = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(texts, inner, max_size=20),
    max_leaves=30,
)


GOOD = encode({"a": 1, "b": [300, "text", -1, 0.5]})


@PROPERTY
@given(payloads)
def test_what_is_encoded_is_canonical(payload: Json) -> None:
    """The oracle accepts what the ledger encodes, and so does the ledger."""
    raw = encode(payload)

    assert is_transaction(raw)
    assert judged_alike(raw)


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        (b"\xcc\x01", "payload"),  # 1 in two bytes
        (b"\xd0\x01", "payload"),  # 1 as a signed number
        (b"\xd3" + b"\xff" * 8, "payload"),  # -1 in nine bytes
        (b"\xca\x3f\x80\x00\x00", "payload"),  # 1.0 in 32 bits
        (b"\xd9\x01a", "payload"),  # text with a long length
        (b"\xdc\x00\x00", "payload"),  # an empty list with a long length
        (b"\xde\x00\x00", "payload"),  # an empty map with a long length
        (b"\x82\xa1b\xc0\xa1a\xc0", "payload"),  # keys that descend
        (b"\x82\xa1a\xc0\xa1a\xc0", "payload"),  # a key that is there twice
        (b"\x82\xa1a\x01\xa1a\x02", "payload"),  # ... with two values
        (b"\x81\xa1a\x82\xa1b\xc0\xa1b\xc0", "payload"),  # ... deeper
        (b"\x81\x01\xc0", "payload"),  # a number as a key
        (b"\x81\xa1a\x81\x01\xc0", "payload.a"),  # ... deeper
        (b"\x81\xc4\x01a\xc0", "payload"),  # bytes as a key
        (b"\x81\x90\xc0", "payload"),  # a list as a key
        (b"\x81\x80\xc0", "payload"),  # a map as a key
        (b"\x81\xa1a\xc4\x01x", "payload.a"),  # bytes
        (b"\x92\x01\xd4\x01x", "payload[1]"),  # an extension
        (b"\x91\xc7\x03\x01xyz", "payload[0]"),  # a longer one
        (b"\x91\xd6\xff\x00\x00\x00\x00", "payload[0]"),  # the timestamp extension
        (b"\x91\xd6\xff\xff\xff\xff\xff", "payload[0]"),  # ... late
        (b"\x91\xc7\x0c\xff" + b"\xff" * 12, "payload"),  # ... beyond any calendar
        (b"\xcb\x7f\xf8" + bytes(6), "payload"),  # not a number
        (b"\xcb\xff\xf8\x00\x00\x00\x00\x00\x01", "payload"),  # not a number, with a message
        (b"\xcb\x7f\xf0" + bytes(6), "payload"),  # infinity
        (b"\xcb\xff\xf0" + bytes(6), "payload"),  # minus infinity
        (b"\xa1\x00", "payload"),  # NUL
        (b"\x81\xa1\x00\xc0", "payload"),  # NUL in a key
        (b"\x81\xa1k\xa5\\u\x0000", "payload.k"),  # NUL beside what looks like its escape
        (b"\xa2\xc3\x28", "payload"),  # not UTF-8
        (b"\xa3\xed\xa0\x80", "payload"),  # a surrogate
        (b"\xa2\xc0\x80", "payload"),  # NUL in an overlong form
        (b"\xc1", "transaction"),  # never used in msgpack
        (b"", "transaction"),  # nothing
        (b"\xa2a", "transaction"),  # cut
        (b"\xdd\xff\xff\xff\xff", "transaction"),  # four thousand million items, absent
        (b"\xc0\xc0", "transaction"),  # more than there should be
    ],
)
def test_a_payload_from_elsewhere_is_refused(payload: bytes, field: str) -> None:
    """Every fault and every other spelling than the canonical one is refused, with its field."""
    raw = around(payload)

    assert field == refusal_of(raw).field
    assert judged_alike(raw)


@pytest.mark.parametrize(
    "text", ["\\u0000", "\\\\u0000", "Łódź ĄĆĘ ıİş אבג عربي", "é" * 60, "\x7f"]
)
def test_what_only_looks_suspicious_is_accepted(text: str) -> None:
    """Text whose bytes or whose JSON look like a fault is told from one, beside zeros too."""
    raw = encode({text: [text, 0, 256, 0.0, -1, 127, {}]})

    assert is_transaction(raw)
    assert judged_alike(raw)


def test_many_shallow_containers_are_accepted() -> None:
    """The limit is on depth, not on number."""
    raw = encode([[[], {}]] * 100)

    assert is_transaction(raw)
    assert judged_alike(raw)


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        (b"", "transaction"),
        (b"\xc0", "transaction"),
        (b"\x80", "transaction"),
        (GOOD[:-1], "transaction"),
        (GOOD + b"\xc0", "transaction"),
        (b"\x93\xc4\x10" + IDENTIFIER + b"\xa1u\xa1k", "transaction"),
        (b"\x95\xc4\x10" + IDENTIFIER + b"\xa1u\xa1k\xc0\xc0", "transaction"),
        (b"\xdc\x00\x04\xc4\x10" + IDENTIFIER + b"\xa1u\xa1k\xc0", "transaction"),
        (b"\x94\xc5\x00\x10" + IDENTIFIER + b"\xa1u\xa1k\xc0", "transaction"),
        (b"\x94\xc4\x10" + IDENTIFIER + b"\xd9\x01u\xa1k\xc0", "transaction"),
        (b"\x94\xc4\x10" + IDENTIFIER + b"\xa1\xff\xa1k\xc0", "transaction"),
        (b"\x94\xc4\x0f" + bytes(15) + b"\xa1u\xa1k\xc0", "id"),
        (b"\x94\xc4\x11" + bytes(17) + b"\xa1u\xa1k\xc0", "id"),
        (b"\x94\xb0" + b"i" * 16 + b"\xa1u\xa1k\xc0", "id"),
        (b"\x94\xc4\x10" + IDENTIFIER + b"\x07\xa1k\xc0", "user_id"),
        (b"\x94\xc4\x10" + IDENTIFIER + b"\xc4\x01u\xa1k\xc0", "user_id"),
        (b"\x94\xc4\x10" + IDENTIFIER + b"\xa0\xa1k\xc0", "user_id"),
        (b"\x94\xc4\x10" + IDENTIFIER + b"\xa1\x00\xa1k\xc0", "user_id"),
        (b"\x94\xc4\x10" + IDENTIFIER + b"\xda\x01\x01" + b"u" * 257 + b"\xa1k\xc0", "user_id"),
        (b"\x94\xc4\x10" + IDENTIFIER + b"\xa1u\xc0\xc0", "kind"),
        (b"\x94\xc4\x10" + IDENTIFIER + b"\xa1u\xa0\xc0", "kind"),
        (b"\x94\xc4\x10" + IDENTIFIER + b"\xa1u\xa1\x00\xc0", "kind"),
        (b"\x94\xc4\x10" + IDENTIFIER + b"\xa1u\xd9\x41" + b"k" * 65 + b"\xc0", "kind"),
        (around(b"\xdb\x00\x01\x00\x00" + b"x" * 65_536), "transaction"),
    ],
)
def test_a_record_from_elsewhere_is_refused(raw: bytes, field: str) -> None:
    """A record that is cut, padded, misspelt, mistyped or too large is refused, with its field."""
    assert field == refusal_of(raw).field
    assert judged_alike(raw)


@settings(PROPERTY, max_examples=300)
@given(st.binary(max_size=200))
def test_random_bytes_raise_only_the_typed_error(noise: bytes) -> None:
    """Noise, by itself and as a payload, is judged as the oracle judges it."""
    assert judged_alike(noise)
    assert judged_alike(around(noise))


lengths = st.integers(0, 40)
pieces = st.one_of(
    st.binary(max_size=3),
    st.sampled_from([b"\xcb\x7f\xf0" + bytes(6), b"\xcb\x3f\xf8" + bytes(6), b"\xa1\x00"]),
    texts.map(msgspec.msgpack.encode),
    st.integers(MINIMUM, MAXIMUM).map(msgspec.msgpack.encode),
    st.integers(0, 127).map(lambda number: b"\xcc" + bytes([number])),
)


def join(items: list[bytes], mark: int, per_item: int) -> bytes:
    """Write a container with a one-byte mark."""
    return bytes([mark + len(items) // per_item]) + b"".join(items)


structures = st.recursive(
    pieces,
    lambda inner: st.one_of(
        st.lists(inner, max_size=8).map(lambda items: join(items, 0x90, 1)),
        st.lists(
            st.tuples(st.sampled_from([b"\xa1a", b"\xa1b", b"\xa2aa", b"\x01"]), inner), max_size=4
        ).map(lambda pairs: join([b"".join(pair) for pair in pairs], 0x80, 1)),
        inner.map(lambda item: b"\x91" * 31 + item),
    ),
    max_leaves=12,
)


@settings(PROPERTY, max_examples=600)
@given(structures)
def test_forged_payloads_are_judged_rightly(payload: bytes) -> None:
    """Payloads built of right and wrong pieces are accepted exactly when the oracle does."""
    assert judged_alike(around(payload))


@settings(PROPERTY, max_examples=200)
@given(payload=payloads, at=st.floats(0, 1, exclude_max=True), noise=st.binary(max_size=2))
def test_mutated_transactions_are_judged_rightly(payload: Json, at: float, noise: bytes) -> None:
    """A good transaction with a byte overwritten, cut or slipped in is judged rightly."""
    raw = encode(payload)
    place = int(at * len(raw))

    assert judged_alike(raw[:place] + noise + raw[place + len(noise) :])
    assert judged_alike(raw[:place] + noise + raw[place:])
    assert judged_alike(raw[:place] + noise)
