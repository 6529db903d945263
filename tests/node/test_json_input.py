"""What a submit request may say, and how each kind of bad input is refused."""

from __future__ import annotations

import asyncio
import json
import math
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from consensus.block import MAX_TRANSACTION_BYTES, check_transaction, decode_transaction
from node.api.json_input import (
    MAX_BATCH_TRANSACTIONS,
    MAX_BODY_BYTES,
    MAX_TEXT_BYTES,
    Submission,
    count_quotes,
    read_submission,
)
from node.api.problems import ProblemError
from node.uuid7 import new_transaction_id

if TYPE_CHECKING:
    from node.api.shapes import Problem

ID = "0190a5d0-c8e2-7cc0-8a9b-1d2e3f405162"


def read(body: bytes) -> Submission:
    """Read a body to its end."""
    return asyncio.run(read_submission(body, new_transaction_id))


def refusal(body: bytes) -> tuple[int, str, str]:
    """The status, path and detail a body is refused with."""
    with pytest.raises(ProblemError) as caught:
        read(body)
    problem = caught.value.problem
    (fault,) = problem.errors
    assert problem.detail == f"{fault.path}: {fault.detail}"
    return problem.status, fault.path, fault.detail


def single(payload: bytes = b"1", **members: bytes) -> bytes:
    """The body of one transaction; members are raw JSON and may replace the usual ones."""
    all_members = {"user_id": b'"alice"', "kind": b'"deposit"', "payload": payload, **members}
    inner = b",".join(b'"%s":%s' % (name.encode(), raw) for name, raw in all_members.items())
    return b"{" + inner + b"}"


def batch(*transactions: bytes) -> bytes:
    """The body of a batch."""
    return b'{"transactions":[' + b",".join(transactions) + b"]}"


# Each row: a payload as JSON text, the status, the path below `payload`, a word of the detail.
BAD_PAYLOADS = [
    (b"NaN", 400, "", "'NaN' is not JSON"),
    (b'{"amounts":[1,Infinity]}', 400, ".amounts[1]", "'Infinity' is not JSON"),
    (b"[-Infinity]", 400, "[0]", "'-Infinity' is not JSON"),
    (b"1e999", 422, "", "64-bit floating-point"),
    (b'{"a":[0,{"two words":-1e999}]}', 422, ".a[1]['two words']", "64-bit floating-point"),
    (b"[1,18446744073709551616]", 422, "[1]", "2^64-1"),
    (b"-9223372036854775809", 422, "", "-2^63"),
    (b"9" * 5000, 422, "", "2^64-1"),
    (b'{"a":1,"a":1}', 422, ".a", "twice"),
    (b'{"x":[{"b":{"c":1,"d":2,"c":3}}]}', 422, ".x[0].b.c", "twice"),
    (b'{"caf\\u00e9":1,"caf\xc3\xa9":2}', 422, ".caf\N{LATIN SMALL LETTER E WITH ACUTE}", "twice"),
    (b'{"\\"a\\\\":"\\\\\\"","\\"a\\\\":2}', 422, "['\"a\\\\']", "twice"),
    (b'{"memo":"\\ud800"}', 400, ".memo", "surrogate"),
    (b'{"memo":"\\udc00\\ud800"}', 400, ".memo", "surrogate"),
    (b'{"\\ud800":1}', 400, "", "surrogate"),
    (b'{"memo":"\xff"}', 400, ".memo", "UTF-8"),
    (b'{"memo":"\xed\xa0\x80"}', 400, ".memo", "UTF-8"),
    (b'{"memo":"a\\u0000b"}', 422, ".memo", "NUL"),
    (b'{"me\\u0000mo":1}', 422, "", "NUL"),
    (b'"a\tb"', 400, "", "forbids"),
    (b'"\\x"', 400, "", "forbids"),
    (b'"open', 400, "", "forbids"),
    (b"[" * 33 + b"1" + b"]" * 33, 422, "", "deep"),
    (b"[" * 100_000 + b"]" * 100_000, 422, "", "deep"),
    (b'{"a":' * 5_000 + b"1" + b"}" * 5_000, 422, "", "deep"),
    (b"[" * 100_000, 422, "", "deep"),
    (b"[1,]", 400, "[1]", "expected a value"),
    (b'{"a":1,}', 400, "", "expected a key"),
    (b'{"a" 1}', 400, ".a", "expected a colon"),
    (b"{a:1}", 400, "", "is not JSON"),
    (b'{"a":{"b":}}', 400, ".a.b", "expected a value"),
    (b"[1 2]", 400, "[0]", "expected a comma or the end"),
    (b"01", 400, "", "'01' is not JSON"),
    (b"+1", 400, "", "is not JSON"),
    (b"1.", 400, "", "is not JSON"),
    (b"tru", 400, "", "is not JSON"),
    (b"1 // one", 400, "", "is not JSON"),
    (b'"' + b"x" * MAX_TRANSACTION_BYTES + b'"', 413, "", "at most 65536"),
]


@pytest.mark.parametrize(("payload", "status", "path", "word"), BAD_PAYLOADS)
def test_a_bad_payload_is_refused_with_its_place(
    payload: bytes, status: int, path: str, word: str
) -> None:
    """Alone and as the second of a batch: the status, the path and what is wrong."""
    for body, root in (
        (single(payload), "$.payload"),
        (batch(single(), single(payload)), "$.transactions[1].payload"),
    ):
        found_status, found_path, detail = refusal(body)
        assert (status, root + path) == (found_status, found_path)
        assert word in detail


BAD_MEMBERS = [
    (single(user_id=b"7"), 422, ".user_id", "Expected str, got int"),
    (single(user_id=b"null"), 422, ".user_id", "Expected str, got null"),
    (single(user_id=b'""'), 422, ".user_id", "empty"),
    (single(user_id=b'"a\\u0000"'), 422, ".user_id", "NUL"),
    (single(user_id=b'"' + b"u" * 257 + b'"'), 422, ".user_id", "256"),
    (single(user_id=b'"\\ud800"'), 400, ".user_id", "surrogate"),
    (single(kind=b"[]"), 422, ".kind", "Expected str, got array"),
    (single(kind=b'""'), 422, ".kind", "empty"),
    (single(kind=b'"' + b"k" * 65 + b'"'), 422, ".kind", "64"),
    (single(kind=b'"genesis"'), 422, ".kind", "cluster itself"),
    (single(kind=b'"membership"'), 422, ".kind", "cluster itself"),
    (single(id=b'"7"'), 422, ".id", "Invalid UUID"),
    (single(id=b"7"), 422, ".id", "Expected uuid, got int"),
    (single(id=b"null"), 422, ".id", "Expected uuid, got null"),
    (single(memo=b"1"), 422, ".memo", "not a known member"),
    (b'{"user_id":"a","kind":"k","payload":1,"kind":"k"}', 422, ".kind", "twice"),
    (b'{"kind":"k","payload":1}', 422, ".user_id", "missing"),
    (b'{"user_id":"a","payload":1}', 422, ".kind", "missing"),
    (b'{"user_id":"a","kind":"k"}', 422, ".payload", "missing"),
    (b"{}", 422, ".user_id", "missing"),
]


@pytest.mark.parametrize(("transaction", "status", "path", "word"), BAD_MEMBERS)
def test_a_bad_member_is_refused_with_its_place(
    transaction: bytes, status: int, path: str, word: str
) -> None:
    """Alone and as the second of a batch: the status, the path and what is wrong."""
    for body, root in (
        (transaction, "$"),
        (batch(single(), transaction), "$.transactions[1]"),
    ):
        found_status, found_path, detail = refusal(body)
        assert (status, root + path) == (found_status, found_path)
        assert word in detail


BAD_BODIES = [
    (b"", 400, "$", "ends too early"),
    (b"  ", 400, "$", "ends too early"),
    (b"hello", 400, "$", "'hello' is not JSON"),
    (b'{"user_id":"a"', 400, "$.user_id", "ends too early"),
    (b"\xef\xbb\xbf" + single(), 400, "$", "is not JSON"),
    (single() + b"{}", 400, "$", "goes on"),
    (single() + b"x", 400, "$", "is not JSON"),
    (b'"a" "b"', 422, "$", "Expected object, got str"),
    (b'"a":1', 422, "$", "Expected object, got str"),
    (b"\xff\xfe", 400, "$", "is not JSON"),
    (b"[]", 422, "$", "Expected object, got array"),
    (b"null", 422, "$", "Expected object, got null"),
    (b'{"transactions":[]}', 422, "$.transactions", "empty"),
    (b'{"transactions":{}}', 422, "$.transactions", "Expected array, got object"),
    (b'{"transactions":null}', 422, "$.transactions", "Expected array, got null"),
    (b'{"transactions":[7]}', 422, "$.transactions[0]", "Expected object, got int"),
    (b'{"transactions":[[]]}', 422, "$.transactions[0]", "Expected object, got array"),
    (b'{"transactions":[1],"kind":"k"}', 422, "$.kind", "must not stand beside"),
    (b'{"transactions":[1],"x":1}', 422, "$.x", "not a known member"),
    (batch(single())[:-1] + b',"transactions":[]}', 422, "$.transactions", "empty"),
    (
        batch(single())[:-1] + b',"transactions":[' + single() + b"]}",
        422,
        "$.transactions",
        "twice",
    ),
    (batch(*[b"1"] * (MAX_BATCH_TRANSACTIONS + 1)), 413, "$.transactions", "at most 10000"),
    # So many that they are not even counted.
    (batch(*[b"1"] * (MAX_TEXT_BYTES // 2)), 422, "$.transactions[0]", "Expected object"),
    (b" " * MAX_BODY_BYTES + b"1", 413, "$", "bytes"),
    (single(b" " * MAX_TEXT_BYTES + b"1"), 413, "$", "one transaction"),
    (batch(single(b" " * MAX_TEXT_BYTES + b"1")), 413, "$.transactions[0]", "bytes of JSON"),
]


@pytest.mark.parametrize(("body", "status", "path", "word"), BAD_BODIES)
def test_a_bad_body_is_refused_with_its_place(
    body: bytes, status: int, path: str, word: str
) -> None:
    """The status, the path and what is wrong."""
    found_status, found_path, detail = refusal(body)
    assert (status, path) == (found_status, found_path)
    assert word in detail


def test_a_good_transaction_is_read() -> None:
    """Members come out as they were sent, whatever their order and white space."""
    body = (
        b'\r\n{ "payload" : {"b":[1.5,null,true],"a":"\\u00e9"} ,"kind":"k",\t"id":"%s",'
        b'"user_id" : "u" }\n' % ID.upper().encode()
    )
    submission = read(body)
    (raw,) = submission.transactions
    transaction = check_transaction(raw)
    assert not submission.is_batch
    assert (ID.replace("-", ""), "u", "k") == (
        transaction.id.hex(),
        transaction.user_id,
        transaction.kind,
    )
    payload = msgspec.msgpack.decode(transaction.payload)
    assert {"a": "\N{LATIN SMALL LETTER E WITH ACUTE}", "b": [1.5, None, True]} == payload


def test_an_id_is_made_where_none_is_sent() -> None:
    """Each transaction without an id gets one of its own, and one with an id keeps it."""
    made = iter([b"a" * 16, b"b" * 16])
    body = batch(single(), single(id=f'"{ID}"'.encode()), single())
    submission = asyncio.run(read_submission(body, lambda: next(made)))
    ids = [decode_transaction(raw).id for raw in submission.transactions]
    assert [b"a" * 16, bytes.fromhex(ID.replace("-", "")), b"b" * 16] == ids


def test_limits_are_inclusive() -> None:
    """What is exactly as large as allowed is read: the batch, and one transaction."""
    assert MAX_BATCH_TRANSACTIONS == len(
        read(batch(*[single()] * MAX_BATCH_TRANSACTIONS)).transactions
    )
    head_bytes = len(read(single(b'"' + b"x" * 60_000 + b'"')).transactions[0]) - 60_000
    text = b"x" * (MAX_TRANSACTION_BYTES - head_bytes)
    assert MAX_TRANSACTION_BYTES == len(read(single(b'"' + text + b'"')).transactions[0])
    status, _, _ = refusal(single(b'"x' + text + b'"'))
    assert 413 == status


def test_integers_of_64_bits_are_read_exactly() -> None:
    """The ends of the range are kept as integers, never as floats."""
    submission = read(single(b"[18446744073709551615,-9223372036854775808,-0]"))
    payload = msgspec.msgpack.decode(decode_transaction(submission.transactions[0]).payload)
    assert [2**64 - 1, -(2**63), 0] == payload
    assert all(type(number) is int for number in payload)


def test_the_same_transaction_twice_in_a_batch_is_recorded_once() -> None:
    """Equal content under one id, however it is spelt, is one transaction with two answers."""
    with_id = {"id": f'"{ID}"'.encode()}
    body = batch(single(**with_id), single(b"2"), single(b" 1", **with_id))
    submission = read(body)
    assert (0, 1, 0) == submission.order
    assert 2 == len(submission.transactions)


def test_one_id_with_two_contents_in_a_batch_is_refused() -> None:
    """Both places are named."""
    with_id = {"id": f'"{ID}"'.encode()}
    body = batch(single(), single(b"1", **with_id), single(b"2", **with_id))
    expected = (422, "$.transactions[2].id", "is also the id of $.transactions[1]")
    status, path, detail = refusal(body)
    assert expected == (status, path, detail.partition(",")[0])


def test_a_fault_far_into_a_large_batch_is_named() -> None:
    """Slices do not shift the place."""
    transactions = [single()] * 1000
    transactions[777] = single(b'{"n":1e999}')
    assert "$.transactions[777].payload.n" == refusal(batch(*transactions))[1]
    transactions[777] = single(b'{"n":1,"n":1}')
    assert "$.transactions[777].payload.n" == refusal(batch(*transactions))[1]
    transactions[777] = single(kind=b"1")
    assert "$.transactions[777].kind" == refusal(batch(*transactions))[1]


@pytest.mark.asyncio
async def test_a_large_batch_does_not_hold_the_loop() -> None:
    """While the largest batch is read, whatever else waits gets its turn after each slice."""
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(take_turns())
    await read_submission(batch(*[single()] * MAX_BATCH_TRANSACTIONS), new_transaction_id)
    other.cancel()
    assert turns >= MAX_BATCH_TRANSACTIONS // 256


def test_a_fault_beyond_the_scanner_is_still_refused() -> None:
    """Where the place is too far in to be looked for, the transaction is named."""
    many = b"[" + b"1," * 30_000 + b"%s]"
    assert refusal(single(many % b'{"a":1,"a":1}'))[:2] == (422, "$")
    assert refusal(batch(single(many % b'{"a":1,"a":1}')))[:2] == (422, "$.transactions[0]")
    assert refusal(batch(single(many % b"NaN")))[:2] == (400, "$")
    assert refusal(batch(single(many % b'"\xff"')))[:2] == (400, "$.transactions[0]")
    assert 422 == refusal(single(many % b"1e999"))[0]
    assert refusal(single(many % (b"[" * 5_000)))[:2] == (422, "$")


# Texts of JSON, with every freedom the grammar gives: white space, escapes and duplicate keys.

_SPACE = st.text(" \t\r\n", max_size=2)
_LETTER = st.one_of(
    st.sampled_from(list('ab":{}[],/ \N{LATIN SMALL LETTER E WITH ACUTE}\N{SNOWMAN}')),
    st.characters(exclude_categories=["Cs"], exclude_characters="\x00"),
)


@st.composite
def _json_string(draw: st.DrawFn, letters: st.SearchStrategy[str] = _LETTER) -> str:
    parts = []
    for letter in draw(st.lists(letters, max_size=4)):
        utf16 = letter.encode("utf-16-be")
        escaped = "".join(
            f"\\u{int.from_bytes(utf16[at : at + 2], 'big'):04x}" for at in range(0, len(utf16), 2)
        )
        must_escape = letter in '"\\' or letter < " "
        short = json.dumps(letter)[1:-1]
        parts.append(draw(st.sampled_from([escaped, short] if must_escape else [letter, escaped])))
    return '"' + "".join(parts) + '"'


@st.composite
def _container(draw: st.DrawFn, children: st.SearchStrategy[str]) -> str:
    space = draw(_SPACE)
    if draw(st.booleans()):
        items = draw(st.lists(children, max_size=4))
        return f"[{space}" + f"{space},".join(items) + f"{space}]"
    # Few letters, so that keys meet.
    keys = draw(st.lists(_json_string(st.sampled_from('ab"\\')), max_size=4))
    members = [f"{key}{space}:{space}{draw(children)}" for key in keys]
    return "{" + space + f",{space}".join(members) + "}"


_NUMBER = st.one_of(
    st.integers(-(2**63), 2**64 - 1).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.sampled_from(["-0", "-0.0", "1e2", "1E+2", "5e-400", "0.1e-7"]),
)
_JSON_TEXT = st.recursive(
    st.one_of(st.sampled_from(["null", "true", "false"]), _NUMBER, _json_string()),
    _container,
    max_leaves=12,
)


def duplicates_in(text: str) -> bool:
    """What the standard library's parser says of duplicate keys, which is the measure."""
    found = False

    def look(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal found
        members = dict(pairs)
        found = found or len(members) < len(pairs)
        return members

    json.loads(text, object_pairs_hook=look)
    return found


@settings(max_examples=60, deadline=None)
@given(_JSON_TEXT)
@example('{"a":": b","c":" :"}')
@example('{"a":"\\"","\\u0061":1}')
@example('{"\\\\":1,"\\\\\\\\":2}')
@example('{"a":{"a":"a"},"b":["a","a"]}')
def test_duplicate_keys_are_found_exactly(text: str) -> None:
    """Refused for a key that is there twice when, and only when, one is."""
    body = single(text.encode())
    if not duplicates_in(text):
        assert 1 == len(read(body).transactions)
        assert 2 == len(read(batch(body, body)).transactions)
        return
    for bad in (body, batch(single(), body)):
        status, path, detail = refusal(bad)
        assert (422, "is there twice") == (status, detail)
        assert "payload" in path


@settings(max_examples=60, deadline=None)
@given(_JSON_TEXT)
def test_quotes_are_counted_exactly(text: str) -> None:
    """Two for each string and key, however it is escaped."""
    strings = 0

    def count(value: object) -> None:
        nonlocal strings
        if isinstance(value, str):
            strings += 1
        elif isinstance(value, list | tuple):
            for item in value:
                count(item)

    count(json.loads(text, object_pairs_hook=list))
    assert 2 * strings == count_quotes(text.encode())


@settings(max_examples=60, deadline=None)
@given(_JSON_TEXT.filter(lambda text: not duplicates_in(text)))
def test_a_payload_comes_back_as_it_was_sent(text: str) -> None:
    """JSON to canonical bytes and back to JSON is the same value, number for number."""
    (raw,) = read(single(text.encode())).transactions
    check_transaction(raw)
    payload = msgspec.msgpack.decode(decode_transaction(raw).payload)
    assert same(json.loads(text), json.loads(msgspec.json.encode(payload)))


def same(one: object, other: object) -> bool:
    """Equality that tells 1 from 1.0 from true, and 0.0 from -0.0."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return one == other and math.copysign(1, one) == math.copysign(1, other)
    return type(one) is type(other) and one == other


@settings(deadline=None)
@given(st.binary(max_size=40), st.sampled_from(["body", "payload", "user_id", "batch"]))
def test_no_bytes_do_more_than_be_refused(junk: bytes, where: str) -> None:
    """Whatever is sent is read or refused with a 4xx; nothing else is ever raised."""
    body = {
        "body": junk,
        "payload": single(junk),
        "user_id": single(user_id=junk),
        "batch": batch(single(), junk),
    }[where]
    try_to_read(body)


@settings(deadline=None)
@given(st.text(st.sampled_from(list('{}[]",:1e-\\u0aN \ud800')), max_size=24))
def test_no_near_json_does_more_than_be_refused(text: str) -> None:
    """The same for text that is nearly JSON."""
    body = single(text.encode("utf-8", "surrogatepass"))
    try_to_read(body)


def try_to_read(body: bytes) -> None:
    """Read a body that may be bad; what is read must be good, and a refusal can be sent."""
    refused: Problem | None = None
    transactions: list[bytes] = []
    try:
        transactions = read(body).transactions
    except ProblemError as error:
        refused = error.problem
    for raw in transactions:
        check_transaction(raw)
    assert refused is None or refused.status in {400, 413, 422}
    # Whatever was quoted in it.
    assert refused is None or msgspec.json.encode(refused)
