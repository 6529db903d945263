"""Transactions from Python values: recorded exactly as given, or refused with the fault's path."""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import math
import struct
import uuid
from typing import TYPE_CHECKING, TypeAlias

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.block import (
    MAX_KIND_BYTES,
    MAX_PAYLOAD_DEPTH,
    MAX_TRANSACTION_BYTES,
    MAX_USER_ID_BYTES,
    RESERVED_KINDS,
    InvalidTransactionError,
    check_transaction,
    encode_transaction,
    transaction_id,
)

if TYPE_CHECKING:
    from random import Random

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


def nest(depth: int, *, in_maps: bool, core: object = None) -> object:
    """Nest a value within `depth` containers."""
    nested = core
    for _ in range(depth):
        nested = {"k": nested} if in_maps else [nested]
    return nested


# --- values -------------------------------------------------------------------------------------

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


def same(left: object, right: object) -> bool:
    """Say whether two values are equal and of equal types, all the way down."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, float) and isinstance(right, float):
        return struct.pack(">d", left) == struct.pack(">d", right)
    return left == right


@PROPERTY
@given(payload=payloads, user_id=texts.filter(bool), kind=st.sampled_from(["a", "k" * 64]))
def test_what_is_given_is_what_is_recorded(payload: Json, user_id: str, kind: str) -> None:
    """Every payload JSON could say comes back the same, in bytes that any member accepts."""
    raw = encode_transaction(transaction_id=IDENTIFIER, user_id=user_id, kind=kind, payload=payload)

    checked = check_transaction(raw)

    assert (IDENTIFIER, user_id, kind) == (checked.id, checked.user_id, checked.kind)
    assert same(payload, msgspec.msgpack.decode(checked.payload))
    assert IDENTIFIER == transaction_id(raw)


@PROPERTY
@given(st.dictionaries(texts, scalars, max_size=8), st.randoms(use_true_random=False))
def test_the_order_of_keys_makes_no_difference(payload: dict[str, Json], random: Random) -> None:
    """Equal payloads are equal bytes, in whatever order their keys were set."""
    keys = list(payload)
    random.shuffle(keys)

    assert encode(payload) == encode({key: payload[key] for key in keys})


def test_keys_are_in_the_order_of_their_bytes() -> None:
    """Capitals before small letters, ASCII before all others, and U+FFFF before U+10000."""
    keys = ["A", "Z", "a", "aa", "b", "é", "\uffff", "\U00010000"]
    payload = encode(dict.fromkeys(reversed(keys)))[len(around(b"")) :]

    assert b"\x88" + b"".join(msgspec.msgpack.encode(key) + b"\xc0" for key in keys) == payload


class Colour(enum.Enum):
    """A value that msgspec would write as text."""

    RED = "red"


class Moody(dict[str, int]):
    """A map that is not even equal to itself."""

    def __eq__(self, other: object) -> bool:
        """Deny it."""
        return False

    __hash__ = None  # as every map has it


anything: st.SearchStrategy[object] = st.recursive(
    st.one_of(
        scalars,
        st.integers(),
        st.floats(),
        st.text(st.sampled_from("a\x00\ud800\udfffé"), max_size=3),
        st.binary(max_size=3),
        st.sampled_from(
            [
                Colour.RED,
                Moody(a=1),
                decimal.Decimal("1.5"),
                uuid.UUID(int=1),
                dt.date(2025, 1, 31),
                dt.datetime(2025, 1, 31, tzinfo=dt.UTC),
                dt.timedelta(seconds=1),
                msgspec.msgpack.Ext(1, b"x"),
                msgspec.Raw(b"\xc4\x01x"),
                msgspec.Raw(b"\xc1"),
                object(),
                bytearray(b"x"),
                (),
                {1},
            ]
        ),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.text(max_size=2) | st.integers(0, 2), inner, max_size=4),
        st.tuples(inner),
    ),
    max_leaves=8,
)


@settings(PROPERTY, max_examples=500)
@given(anything)
def test_what_cannot_be_recorded_is_refused(payload: object) -> None:
    """Whatever Python value is given, it comes back the same or raises the typed error."""
    try:
        raw = encode(payload)
    except InvalidTransactionError as error:
        refusal = error
    else:
        assert msgspec.msgpack.decode(check_transaction(raw).payload) == payload
        return

    assert refusal.field.startswith("payload")
    assert str(refusal).encode()


# --- each refusal -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "field", "detail"),
    [
        (math.nan, "payload", "must be a finite number"),
        ({"amount": math.inf}, "payload.amount", "must be a finite number"),
        ({"amount": [1, -math.inf]}, "payload.amount[1]", "must be a finite number"),
        (2**64, "payload", "must be from -2^63 to 2^64-1"),
        ({"items": [0, 1, 2, -(2**63) - 1]}, "payload.items[3]", "must be from -2^63 to 2^64-1"),
        ({"memo": "a\x00b"}, "payload.memo", "must not contain a NUL character"),
        ({"memo": {"a\x00": 1}}, "payload.memo", "has a key that must not contain a NUL character"),
        ({"memo": "\ud800"}, "payload.memo", "must not contain half a surrogate pair"),
        ({"\udfff": 1}, "payload", "has a key that must not contain half a surrogate pair"),
        ({"memo": b"bytes"}, "payload.memo", "must not be of the type bytes"),
        ([{"at": dt.datetime(2025, 1, 31, tzinfo=dt.UTC)}], "payload[0].at", "type datetime"),
        ({"at": dt.date(2025, 1, 31)}, "payload.at", "must not be of the type date"),
        ({"id": uuid.UUID(int=1)}, "payload.id", "must not be of the type UUID"),
        ({"sum": decimal.Decimal(1)}, "payload.sum", "must not be of the type Decimal"),
        ({"ext": msgspec.msgpack.Ext(1, b"")}, "payload.ext", "must not be of the type Ext"),
        ({"raw": msgspec.Raw(b"\xc0")}, "payload.raw", "must not be of the type Raw"),
        ({"colour": Colour.RED}, "payload.colour", "must not be of the type Colour"),
        ({"pair": (1, 2)}, "payload.pair", "must not be of the type tuple"),
        ({"tags": {"a"}}, "payload.tags", "must not be of the type set"),
        ({"object": object()}, "payload.object", "must not be of the type object"),
        ({"map": {1: 2}}, "payload.map", "has a key that is not text but int"),
        ({"map": {None: 2}}, "payload.map", "has a key that is not text but NoneType"),
        ({"a b": {"": b""}}, "payload['a b']['']", "must not be of the type bytes"),
        ({"k" * 40: b""}, f"payload.{'k' * 40}", "must not be of the type bytes"),
        ({"k" * 41: b""}, f"payload['{'k' * 40}...']", "must not be of the type bytes"),
        ({"moody": Moody(a=1)}, "payload", "would not be read back as it was given"),
        ({"a": "x" * 65_536}, "payload", "makes a transaction of 65577 bytes; at most 65536"),
    ],
)
def test_a_payload_is_refused_with_the_path_of_its_fault(
    payload: object, field: str, detail: str
) -> None:
    """The error names where in the payload the fault is, and what it is."""
    with pytest.raises(InvalidTransactionError) as caught:
        encode(payload)

    assert field == caught.value.field
    assert detail in caught.value.detail
    assert f"{caught.value.field}: {caught.value.detail}" == str(caught.value)


class Word(str):
    """Text of a type that msgspec does not encode."""

    __slots__ = ()


def test_a_value_that_cannot_be_encoded_is_refused() -> None:
    """What the encoder refuses is refused, though the walk finds nothing to point at."""
    with pytest.raises(InvalidTransactionError, match=r"^payload: Encoding objects of type Word"):
        encode({"word": Word("x")})


@pytest.mark.parametrize(
    ("changes", "field", "detail"),
    [
        ({"transaction_id": bytes(15)}, "id", "must be 16 bytes"),
        ({"transaction_id": bytes(17)}, "id", "must be 16 bytes"),
        ({"transaction_id": "0123456789abcdef"}, "id", "must be 16 bytes"),
        ({"user_id": ""}, "user_id", "must not be empty"),
        ({"user_id": 7}, "user_id", "must be text, not int"),
        ({"user_id": "a\x00"}, "user_id", "must not contain a NUL character"),
        ({"user_id": "\ud800"}, "user_id", "must not contain half a surrogate pair"),
        ({"user_id": "u" * 257}, "user_id", "has more than 256 bytes"),
        ({"user_id": "é" * 128 + "u"}, "user_id", "has more than 256 bytes"),
        ({"kind": ""}, "kind", "must not be empty"),
        ({"kind": None}, "kind", "must be text, not NoneType"),
        ({"kind": "\x00"}, "kind", "must not contain a NUL character"),
        ({"kind": "\udfff"}, "kind", "must not contain half a surrogate pair"),
        ({"kind": "k" * 65}, "kind", "has more than 64 bytes"),
    ],
)
def test_a_field_is_refused_by_its_name(
    changes: dict[str, object], field: str, detail: str
) -> None:
    """Each field outside the payload has its own limits, and the error says which broke them."""
    fields: dict[str, object] = {
        "transaction_id": IDENTIFIER,
        "user_id": "alice",
        "kind": "deposit",
        "payload": None,
        **changes,
    }
    with pytest.raises(InvalidTransactionError) as caught:
        encode_transaction(**fields)  # type: ignore[arg-type]  # wrong types are the point

    assert (field, detail) == (caught.value.field, caught.value.detail)


def test_the_limits_themselves_are_allowed() -> None:
    """The longest user id and kind, the extreme integers and the largest transaction pass."""
    raw = encode_transaction(
        transaction_id=IDENTIFIER,
        user_id="é" * (MAX_USER_ID_BYTES // 2),
        kind="k" * MAX_KIND_BYTES,
        payload=[MINIMUM, MAXIMUM],
    )
    filled = encode("x" * (MAX_TRANSACTION_BYTES - len(around(b"\xda\xff\xff"))))

    assert check_transaction(raw).user_id == "é" * (MAX_USER_ID_BYTES // 2)
    assert len(filled) == MAX_TRANSACTION_BYTES
    assert check_transaction(filled).kind == "deposit"


@pytest.mark.parametrize("kind", sorted(RESERVED_KINDS))
def test_reserved_kinds_can_be_encoded(kind: str) -> None:
    """The cluster records them itself, so it is the API that refuses them and not the encoder."""
    raw = encode_transaction(transaction_id=IDENTIFIER, user_id="cluster", kind=kind, payload=None)

    assert kind == check_transaction(raw).kind


@pytest.mark.parametrize("core", [None, [], {}, "text"], ids=repr)
@pytest.mark.parametrize("in_maps", [False, True])
def test_nesting_has_a_limit(core: object, in_maps: bool) -> None:
    """Thirty-two containers within each other are allowed; one more, empty or not, is not."""
    allowed = MAX_PAYLOAD_DEPTH - isinstance(core, list | dict)
    deepest = nest(allowed, in_maps=in_maps, core=core)
    too_deep = nest(allowed + 1, in_maps=in_maps, core=core)

    assert check_transaction(encode(deepest)).kind == "deposit"
    with pytest.raises(InvalidTransactionError, match=r"^payload: is nested deeper than 32"):
        encode(too_deep)
    refusal = refusal_of(around(msgspec.msgpack.encode(too_deep)))
    assert ("payload", "is nested deeper than 32") == (refusal.field, refusal.detail)


@pytest.mark.parametrize("in_maps", [False, True])
def test_wide_containers_count_as_much_as_narrow_ones(in_maps: bool) -> None:
    """Containers of more than fifteen items are marked otherwise, and nest as deep."""
    nested: object = None
    for _ in range(MAX_PAYLOAD_DEPTH):
        items = [None] * 15 + [nested]
        nested = {f"k{i:02}": item for i, item in enumerate(items)} if in_maps else items
    raw = encode(nested)

    assert check_transaction(raw).kind == "deposit"
    for too_deep in ([nested], {"k": nested}):
        with pytest.raises(InvalidTransactionError, match=r"^payload: is nested deeper than 32"):
            encode(too_deep)


@pytest.mark.parametrize("in_maps", [False, True])
def test_absurd_nesting_is_refused_like_any_other(in_maps: bool) -> None:
    """Nesting that exhausts the interpreter's stack is a refusal, not a RecursionError."""
    with pytest.raises(InvalidTransactionError, match=r"^payload: is nested deeper than 32"):
        encode(nest(100_000, in_maps=in_maps))
    layer = b"\x81\xa1k" if in_maps else b"\x91"

    assert "payload" == refusal_of(around(layer * 15_000 + b"\xc0")).field
    assert "payload" == refusal_of(around(layer * 500 + b"\xc0")).field


def test_a_payload_that_holds_itself_is_refused() -> None:
    """A list within itself has no end, and is refused for its depth."""
    endless: list[object] = [1]
    endless.append(endless)

    with pytest.raises(InvalidTransactionError, match=r"^payload: is nested deeper than 32"):
        encode({"endless": endless})
