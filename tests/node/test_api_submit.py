"""`POST /api/v1/ledger/transactions`: what is answered, and that nothing bad is recorded."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from consensus.block import decode_transaction
from node.api.json_input import MAX_BODY_BYTES
from node.outcomes import NodeFailedError, Refusal, RefusalReason, Wait
from node.submissions import UNKNOWN_DETAIL
from tests.node.api_fixture import TRANSACTIONS, Stage, problem_of, stage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["stage"]

GOOD = b'{"user_id":"alice","kind":"deposit","payload":{"amount":5}}'
ID = "0190a5d0-c8e2-7cc0-8a9b-1d2e3f405162"


def transaction(
    user_id: str = "alice", payload: object = 1, **members: object
) -> dict[str, object]:
    """One transaction as JSON members."""
    return {"user_id": user_id, "kind": "deposit", "payload": payload, **members}


def batch_body(*transactions: dict[str, object]) -> bytes:
    """The body of a batch."""
    return json.dumps({"transactions": transactions}).encode()


def refuse(stage: Stage, user_id: str, reason: RefusalReason, retry_after_s: int | None) -> None:
    """Let the node refuse everything of a user."""
    stage.node.refusals[user_id.encode()] = Refusal(b"", reason, "for a test", retry_after_s)


@pytest.mark.asyncio
async def test_one_transaction_is_answered_with_its_receipt(stage: Stage) -> None:
    """201, and the receipt says where the transaction is in the chain."""
    response = await stage.post(GOOD)
    assert 201 == response.status_code
    assert "application/json" == response.headers["content-type"]
    receipt = response.json()
    block = stage.node.blocks[receipt["index"]]
    recorded = decode_transaction(block.transactions[receipt["position"]])
    assert {
        "id": str(uuid.UUID(bytes=recorded.id)),
        "index": 1,
        "position": 0,
        "block_hash": block.hash.hex(),
        "timestamp": "2023-11-14T22:13:21.000000Z",
    } == receipt
    assert 7 == uuid.UUID(receipt["id"]).version


@pytest.mark.asyncio
@pytest.mark.parametrize("body", [GOOD, b"{", b" " * 20_000])
async def test_a_full_node_does_not_even_read(stage: Stage, body: bytes) -> None:
    """What could not be taken anyway must not cost those who wait: short and long bodies alike."""
    stage.node.is_full = True
    response = await stage.post(body)
    assert (429, "1") == (response.status_code, response.headers["retry-after"])
    problem_of(response, 429, "queue-full")
    assert [] == stage.node.submits
    stage.node.is_full = False
    assert 201 == (await stage.post(GOOD)).status_code


@pytest.mark.asyncio
async def test_a_retry_gets_the_same_receipt(stage: Stage) -> None:
    """The same id and content twice is one transaction."""
    first = await stage.record(id=ID)
    assert first == await stage.record(id=ID.upper())
    assert 1 == stage.node.applied_index


@pytest.mark.asyncio
async def test_an_id_with_other_content_is_a_conflict(stage: Stage) -> None:
    """409 with the id, and nothing is recorded."""
    await stage.record(id=ID)
    response = await stage.http.post(TRANSACTIONS, json=transaction(payload=2, id=ID))
    assert problem_of(response, 409, "conflict")["id"] == ID
    assert "retry-after" not in response.headers
    assert 1 == stage.node.applied_index


@pytest.mark.asyncio
async def test_a_batch_is_answered_in_the_order_sent(stage: Stage) -> None:
    """201 with a receipt each; an id sent twice has its receipt twice."""
    body = batch_body(transaction("a"), transaction("b", id=ID), transaction("b", id=ID))
    response = await stage.post(body)
    assert 201 == response.status_code
    receipts = response.json()["receipts"]
    assert [(1, 0), (1, 1), (1, 1)] == [(one["index"], one["position"]) for one in receipts]
    assert [ID, ID] == [receipt["id"] for receipt in receipts[1:]]


@pytest.mark.asyncio
async def test_accepted_is_not_waited_for(stage: Stage) -> None:
    """202 with the id, alone and in a batch; the node is told."""
    response = await stage.post(GOOD, "?wait=accepted")
    assert (202, "pending") == (response.status_code, response.json()["status"])
    response = await stage.post(batch_body(transaction(id=ID)), "?wait=accepted")
    assert (202, {"receipts": [{"id": ID, "status": "pending"}]}) == (
        response.status_code,
        response.json(),
    )
    assert [Wait.ACCEPTED, Wait.ACCEPTED] == [wait for _, wait, _ in stage.node.submits]


@pytest.mark.asyncio
async def test_wait_and_timeout_are_told_to_the_node(stage: Stage) -> None:
    """The defaults, and what is asked for."""
    await stage.post(GOOD)
    await stage.post(GOOD, "?wait=committed&timeout_ms=60000")
    await stage.post(GOOD, "?timeout_ms=1")
    expected = [(Wait.COMMITTED, 10.0), (Wait.COMMITTED, 60.0), (Wait.COMMITTED, 0.001)]
    assert expected == [(wait, timeout_s) for _, wait, timeout_s in stage.node.submits]


@pytest.mark.parametrize(
    ("query", "path"),
    [
        ("?wait=maybe", "query.wait"),
        ("?wait=", "query.wait"),
        ("?timeout_ms=0", "query.timeout_ms"),
        ("?timeout_ms=60001", "query.timeout_ms"),
        ("?timeout_ms=1.5", "query.timeout_ms"),
        ("?timeout_ms=-1", "query.timeout_ms"),
        ("?timeout_ms=%D9%A1", "query.timeout_ms"),
        ("?timeout_ms=" + "1" * 5000, "query"),
        ("?timeout_ms=5&timeout_ms=5", "query.timeout_ms"),
        ("?waits=committed", "query.waits"),
        ("?Wait=committed", "query.Wait"),
        ("?&", "query"),
        ("?wait=%ff", "query.wait"),
        ("?wait=%zz", "query.wait"),
    ],
)
@pytest.mark.asyncio
async def test_a_bad_parameter_is_named(stage: Stage, query: str, path: str) -> None:
    """400 naming the parameter; nothing reaches the node."""
    problem = problem_of(await stage.post(GOOD, query), 400, "invalid-request")
    assert [path] == [fault["path"] for fault in problem["errors"]]
    assert 0 == stage.node.recorded


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "application/json; charset=utf-8",
        'Application/JSON;charset="UTF-8"',
        "application/json; profile=x",
    ],
)
@pytest.mark.asyncio
async def test_json_is_taken_however_it_is_named(stage: Stage, content_type: str) -> None:
    """The media type is compared as RFC 9110 says."""
    response = await stage.post(GOOD, **{"content-type": content_type})
    assert 201 == response.status_code


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": "application/json-seq"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/json; charset=latin-1"},
        {"content-type": ""},
        {"content-encoding": "gzip"},
    ],
)
@pytest.mark.asyncio
async def test_what_is_not_json_is_refused_by_its_type(
    stage: Stage, headers: dict[str, str]
) -> None:
    """415; a form posted by a foreign web page ends here too."""
    problem_of(await stage.post(GOOD, **headers), 415, "unsupported-media-type")
    assert 0 == stage.node.recorded


@pytest.mark.asyncio
async def test_a_body_without_a_type_is_refused(stage: Stage) -> None:
    """415: nothing is guessed."""
    response = await stage.http.post(TRANSACTIONS, content=GOOD)
    problem_of(response, 415, "unsupported-media-type")
    assert 0 == stage.node.recorded


@pytest.mark.parametrize(
    ("body", "status", "name"),
    [
        (b"hello", 400, "invalid-json"),
        (b'{"user_id":"a","kind":"k","payload":NaN}', 400, "invalid-json"),
        (b'{"user_id":"a","kind":"k"}', 422, "invalid-content"),
        (b'{"user_id":1,"kind":"k","payload":1}', 422, "invalid-content"),
        (b'{"user_id":"a","kind":"k","payload":1,"x":1}', 422, "invalid-content"),
        (b'{"user_id":"a","kind":"k","payload":{"a":1,"a":1}}', 422, "invalid-content"),
        (b'{"user_id":"a","kind":"k","payload":99999999999999999999}', 422, "invalid-content"),
        (
            b'{"user_id":"a","kind":"k","payload":' + b"[" * 99 + b"]" * 99 + b"}",
            422,
            "invalid-content",
        ),
        (b'{"user_id":"a","kind":"k","payload":"' + b"x" * 70_000 + b'"}', 413, "too-large"),
    ],
)
@pytest.mark.asyncio
async def test_one_bad_transaction_refuses_the_whole_request(
    stage: Stage, body: bytes, status: int, name: str
) -> None:
    """A problem that names the place, and nothing of the batch reaches the node."""
    problem = problem_of(await stage.post(body), status, name)
    assert problem["errors"][0]["path"].startswith("$")
    batch = b'{"transactions":[' + GOOD + b"," + body + b"]}"
    problem_of(await stage.post(batch), status, name)
    assert [] == stage.node.submits


@pytest.mark.parametrize(
    ("reason", "retry_after_s", "status", "name", "header"),
    [
        (RefusalReason.CONFLICT, None, 409, "conflict", None),
        (RefusalReason.QUEUE_FULL, 3, 429, "queue-full", "3"),
        (RefusalReason.QUEUE_FULL, None, 429, "queue-full", "1"),
        (RefusalReason.UNKNOWN, None, 503, "unknown", "1"),
        (RefusalReason.UNAVAILABLE, 7, 503, "unavailable", "7"),
    ],
)
@pytest.mark.asyncio
async def test_a_refusal_has_its_status_and_says_when_to_retry(
    stage: Stage,
    reason: RefusalReason,
    retry_after_s: int | None,
    status: int,
    name: str,
    header: str | None,
) -> None:
    """Alone; and in a batch that is refused as one, with the problem of each beside it."""
    refuse(stage, "mallory", reason, retry_after_s)
    response = await stage.http.post(TRANSACTIONS, json=transaction("mallory", id=ID))
    problem = problem_of(response, status, name)
    assert ID == problem["id"]
    assert header == response.headers.get("retry-after")
    response = await stage.post(batch_body(transaction("mallory", id=ID), transaction("mallory")))
    problem = problem_of(response, status, name)
    assert header == response.headers.get("retry-after")
    assert 2 == len(problem["receipts"])
    assert (ID, status) == (problem["receipts"][0]["id"], problem["receipts"][0]["status"])


@pytest.mark.asyncio
async def test_unknown_says_what_to_do(stage: Stage) -> None:
    """The client must never read it as a failure; the node's own words say what to do."""
    assert "it may be recorded; retry with the same id" in UNKNOWN_DETAIL
    refuse(stage, "mallory", RefusalReason.UNKNOWN, None)
    response = await stage.http.post(TRANSACTIONS, json=transaction("mallory"))
    detail = problem_of(response, 503, "unknown")["detail"]
    assert "unknown: for a test" == detail


@pytest.mark.asyncio
async def test_a_batch_of_which_some_are_refused(stage: Stage) -> None:
    """207 with a receipt or a problem each, in the order sent."""
    refuse(stage, "mallory", RefusalReason.CONFLICT, None)
    refuse(stage, "trudy", RefusalReason.QUEUE_FULL, None)
    response = await stage.post(batch_body(transaction("mallory"), transaction("alice")))
    assert (207, "application/json") == (response.status_code, response.headers["content-type"])
    first, second = response.json()["receipts"]
    assert (409, 1) == (first["status"], second["index"])
    response = await stage.post(batch_body(transaction("mallory"), transaction("trudy")))
    assert 207 == response.status_code
    assert [409, 429] == [one["status"] for one in response.json()["receipts"]]


@pytest.mark.asyncio
async def test_a_node_that_does_not_run_is_unavailable(stage: Stage) -> None:
    """503 with Retry-After: another node may do."""
    stage.node.fault = NodeFailedError("the disk is gone")
    response = await stage.post(GOOD)
    assert "the disk is gone" in problem_of(response, 503, "unavailable")["detail"]
    assert "1" == response.headers["retry-after"]


@pytest.mark.asyncio
async def test_a_fault_of_our_own_is_answered_and_told(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    """500 without the fault's words, which are for the log and for the node's owner."""
    stage.node.fault = ZeroDivisionError("a secret")
    problem = problem_of(await stage.post(GOOD), 500, "internal")
    assert "secret" not in json.dumps(problem)
    assert [stage.node.fault] == stage.faults
    assert "ZeroDivisionError" in capsys.readouterr().out
    stage.faults.clear()
    stage.node.fault = None
    assert 201 == (await stage.post(GOOD)).status_code


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "HEAD"])
@pytest.mark.asyncio
async def test_other_methods_are_refused(stage: Stage, method: str) -> None:
    """405 with Allow."""
    response = await stage.http.request(method, TRANSACTIONS)
    assert (405, "POST, OPTIONS") == (response.status_code, response.headers["allow"])
    if method != "HEAD":
        problem_of(response, 405, "method-not-allowed")


@pytest.mark.asyncio
async def test_options_tell_what_works(stage: Stage) -> None:
    """Allow, and no permission for foreign origins."""
    response = await stage.http.options(TRANSACTIONS)
    assert (200, "POST, OPTIONS") == (response.status_code, response.headers["allow"])
    assert "access-control-allow-origin" not in response.headers


async def _pieces(count: int, piece: bytes) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield piece


@pytest.mark.asyncio
async def test_a_body_in_pieces_is_read_whole(stage: Stage) -> None:
    """Chunked transfer, with the transaction spread over it."""
    text = b"x" * 50_000

    async def body() -> AsyncIterator[bytes]:
        yield b'{"user_id":"alice","kind":"k","payload":"'
        await asyncio.sleep(0)
        yield text
        await asyncio.sleep(0)
        yield b'"}'

    headers = {"content-type": "application/json"}
    response = await stage.http.post(TRANSACTIONS, content=body(), headers=headers)
    assert 201 == response.status_code
    assert text in stage.node.blocks[1].transactions[0]


@pytest.mark.asyncio
async def test_a_body_too_large_is_refused_however_it_is_sent(stage: Stage) -> None:
    """413 for a length that says so, and for one that only shows."""
    response = await stage.post(b" " * (MAX_BODY_BYTES + 1))
    problem_of(response, 413, "too-large")
    pieces: Any = _pieces(9, b" " * (1 << 20))
    headers = {"content-type": "application/json"}
    response = await stage.http.post(TRANSACTIONS, content=pieces, headers=headers)
    problem_of(response, 413, "too-large")
    assert 201 == (await stage.post(GOOD)).status_code
