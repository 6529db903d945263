"""The Python client's retries, against nodes that answer from a script."""

from __future__ import annotations

import asyncio
import socket
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from node.client import (
    BatchError,
    ConflictError,
    LedgerClient,
    NewTransaction,
    ProtocolError,
    Receipt,
    RejectedError,
    UnavailableError,
    UnknownOutcomeError,
)
from node.client_nodes import Nodes
from tests.node.scripted_node import Answer, HangUp, ScriptedNode, Seen, Silence

if TYPE_CHECKING:
    from collections.abc import Callable

ID = uuid.UUID("0190a5d0-c8e2-7cc0-8a9b-1d2e3f405162")


def receipt_for(identifier: str) -> dict[str, object]:
    """A receipt as a node sends it."""
    return {
        "id": identifier,
        "index": 1,
        "position": 0,
        "block_hash": "ab" * 32,
        "timestamp": "2023-11-14T22:13:21.000000Z",
    }


def committed(seen: Seen) -> Answer:
    """Answer a single submit with its receipt."""
    return Answer(201, receipt_for(seen.json["id"]))


def problem(status: int, name: str, **members: object) -> Answer:
    """Answer with problem details."""
    body = {
        "type": f"urn:bitnexus:problem:{name}",
        "title": name,
        "status": status,
        "detail": f"scripted {name}",
        **members,
    }
    return Answer(status, body, {"content-type": "application/problem+json"})


UNKNOWN = problem(503, "unknown")
UNAVAILABLE = problem(503, "unavailable")


def of_each(*make: Callable[[str], dict[str, object]], status: int) -> Callable[[Seen], Answer]:
    """Answer a batch with what is made of each id."""

    def answer(seen: Seen) -> Answer:
        ids = [transaction["id"] for transaction in seen.json["transactions"]]
        return Answer(
            status, {"receipts": [one(text) for one, text in zip(make, ids, strict=True)]}
        )

    return answer


def refused(status: int, name: str) -> Callable[[str], dict[str, object]]:
    """Make the problem of one transaction of a batch."""
    return lambda identifier: {**problem(status, name).body, "id": identifier}


def record(client: LedgerClient, **changes: Any) -> Any:
    """Record one transaction."""
    return client.record_transaction(
        **{"user_id": "alice", "kind": "deposit", "payload": {"amount": 5}, **changes}
    )


def watch_pauses(client: LedgerClient) -> list[float]:
    """Let the client's pauses take no time, and return the list they are noted in."""
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        await asyncio.sleep(0)

    client._nodes.sleep = sleep  # type: ignore[assignment] # takes what the client gives
    return pauses


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    "step", [HangUp(), UNKNOWN, UNAVAILABLE, problem(500, "internal"), Answer(502, b"<html>")]
)
@pytest.mark.asyncio
async def test_the_next_node_is_tried_with_the_same_id(step: Any) -> None:
    """At once, and the call after that begins where this one ended."""
    async with ScriptedNode(step) as first, ScriptedNode(committed, committed) as second:
        async with LedgerClient([first.url, second.url]) as client:
            pauses = watch_pauses(client)
            receipt = await record(client)
            await record(client)
        assert [] == pauses
        assert first.seen[0].body == second.seen[0].body
        assert receipt.id == first.seen[0].json["id"]
        assert first.seen[0].json["id"] != second.seen[1].json["id"]


@pytest.mark.asyncio
async def test_a_node_that_is_not_there_is_passed_over() -> None:
    """A refused connection leads to the next node."""
    async with ScriptedNode(committed) as second:
        urls = [f"http://127.0.0.1:{free_port()}", second.url]
        async with LedgerClient(urls) as client:
            await record(client)


@pytest.mark.asyncio
async def test_a_node_that_does_not_answer_is_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After the time one attempt may take."""
    monkeypatch.setattr("node.client_nodes._GRACE_S", 0.01)
    async with ScriptedNode(Silence()) as first, ScriptedNode(committed) as second:
        async with LedgerClient([first.url, second.url], attempt_timeout_s=0.05) as client:
            await record(client)
        assert "50" == first.seen[0].query["timeout_ms"]


@pytest.mark.asyncio
async def test_when_every_node_was_tried_the_client_backs_off() -> None:
    """No pause between nodes, a growing and jittered one between rounds."""
    async with (
        ScriptedNode(UNKNOWN, UNKNOWN, UNKNOWN) as first,
        ScriptedNode(UNKNOWN, UNKNOWN, committed) as second,
    ):
        async with LedgerClient([first.url, second.url]) as client:
            pauses = watch_pauses(client)
            await record(client)
        assert 2 == len(pauses)
        assert 0.025 <= pauses[0] <= 0.05 <= pauses[1] <= 0.1
        assert 1 == len({seen.body for seen in first.seen + second.seen})


@pytest.mark.parametrize(
    ("answer", "pause_s"),
    [
        (problem(429, "queue-full", retry_after_s=3), 3),
        (Answer(429, problem(429, "queue-full").body, {"retry-after": "2"}), 2),
        (Answer(429, b"slow down", {"retry-after": "4"}), 4),
        (Answer(429, b"slow down"), 1),
        (Answer(429, b"slow down", {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}), 1),
    ],
)
@pytest.mark.asyncio
async def test_a_full_queue_is_waited_for(answer: Answer, pause_s: float) -> None:
    """As long as the ledger says, at the same node: the queue is the leader's."""
    async with ScriptedNode(answer, committed) as first, ScriptedNode() as second:
        async with LedgerClient([first.url, second.url]) as client:
            pauses = watch_pauses(client)
            await record(client)
        assert [pause_s] == pauses
        assert [] == second.seen


@pytest.mark.asyncio
async def test_a_wait_beyond_the_deadline_is_not_begun() -> None:
    """Nothing was recorded, and the caller hears so at once."""
    async with ScriptedNode(problem(429, "queue-full", retry_after_s=60)) as node:
        async with LedgerClient([node.url]) as client:
            pauses = watch_pauses(client)
            with pytest.raises(UnavailableError, match="scripted queue-full"):
                await record(client, timeout_s=5)
        assert [] == pauses


@pytest.mark.parametrize("step", [HangUp(), UNKNOWN, problem(500, "internal"), Answer(504, b"")])
@pytest.mark.asyncio
async def test_out_of_time_after_it_may_have_been_recorded(step: Any) -> None:
    """The error carries the id to ask again with, also when a later attempt surely failed."""
    async with ScriptedNode(step, problem(429, "queue-full", retry_after_s=60)) as node:
        async with LedgerClient([node.url]) as client:
            watch_pauses(client)
            with pytest.raises(UnknownOutcomeError, match="may be recorded") as caught:
                await record(client, transaction_id=ID)
        assert ID == caught.value.transaction_id


@pytest.mark.asyncio
async def test_out_of_time_when_nothing_can_have_been_recorded() -> None:
    """No node was reached, or each said that it cannot: the caller need not wonder."""
    full = problem(429, "queue-full", retry_after_s=60)
    async with ScriptedNode(UNAVAILABLE, full) as node:
        urls = [f"http://127.0.0.1:{free_port()}", node.url]
        async with LedgerClient(urls) as client:
            watch_pauses(client)
            with pytest.raises(UnavailableError):
                await record(client)
        # The first node is passed over again in the second round.
        assert 2 == len(node.seen)


@pytest.mark.asyncio
async def test_the_deadline_bounds_what_a_node_is_given() -> None:
    """Never more than is left of the call, nor than the API takes."""
    async with ScriptedNode(committed, committed) as node:
        async with LedgerClient([node.url], timeout_s=0.5) as client:
            await record(client)
        async with LedgerClient([node.url], timeout_s=900, attempt_timeout_s=900) as client:
            await record(client)
        assert 400 < int(node.seen[0].query["timeout_ms"]) <= 500
        assert "60000" == node.seen[1].query["timeout_ms"]


@pytest.mark.asyncio
async def test_reads_go_to_another_node_too() -> None:
    """A node without a leader is passed over; at the deadline the reason is told."""
    cluster = Answer(
        200,
        {
            "cluster_id": "ab" * 32,
            "incarnation": "ab" * 32,
            "name": "test",
            "node": "n2",
            "role": "leader",
            "leader": "n2",
            "term": 1,
            "last_index": 0,
            "commit_index": 0,
            "applied_index": 0,
            "members": [],
            "alarms": [],
            "of a later version": 1,
        },
    )
    async with (
        ScriptedNode(problem(503, "no-leader")) as first,
        ScriptedNode(cluster) as second,
        LedgerClient([first.url, second.url]) as client,
    ):
        assert "n2" == (await client.cluster()).node
    async with LedgerClient([f"http://127.0.0.1:{free_port()}"], timeout_s=0.05) as client:
        watch_pauses(client)
        with pytest.raises(UnavailableError, match="ConnectError"):
            await client.block(0)


@pytest.mark.asyncio
async def test_what_is_no_ledger_is_told_as_such() -> None:
    """An answer of another shape is not taken for one of ours."""
    pages = (Answer(201, b"<html>"), Answer(201, {"id": 7}), Answer(200, {}), Answer(418, b""))
    async with ScriptedNode(*pages) as node, LedgerClient([node.url]) as client:
        for _ in range(2):
            with pytest.raises(ProtocolError, match="no ledger"):
                await record(client)
        with pytest.raises(ProtocolError):
            await client.cluster()
        with pytest.raises(RejectedError, match="answered 418 without problem details"):
            await record(client)


@pytest.mark.asyncio
async def test_only_what_is_open_of_a_batch_is_sent_again() -> None:
    """With the same ids; receipts come back in the order of the call."""
    new = [NewTransaction(user_id="alice", kind="k", payload=number) for number in range(3)]
    step = of_each(receipt_for, refused(503, "unknown"), refused(429, "queue-full"), status=207)
    async with ScriptedNode(step, of_each(receipt_for, receipt_for, status=201)) as node:
        async with LedgerClient([node.url]) as client:
            pauses = watch_pauses(client)
            receipts = await client.record_transactions(new)
        first, second = (seen.json["transactions"] for seen in node.seen)
        assert first[1:] == second
        assert [one["id"] for one in first] == [receipt.id for receipt in receipts]
        assert [1.0] == pauses


@pytest.mark.asyncio
async def test_a_batch_that_is_refused_as_one_is_sent_again() -> None:
    """A 503 with the problem of each, then a 503 of something that stands before the node."""
    new = [NewTransaction(user_id="alice", kind="k", payload=1)]

    def all_unknown(seen: Seen) -> Answer:
        each = refused(503, "unknown")(seen.json["transactions"][0]["id"])
        return problem(503, "unknown", receipts=[each])

    script = (all_unknown, Answer(503, b"<html>"), of_each(receipt_for, status=201))
    async with ScriptedNode(*script) as node:
        async with LedgerClient([node.url]) as client:
            watch_pauses(client)
            assert 1 == len(await client.record_transactions(new))
        assert 1 == len({seen.body for seen in node.seen})


@pytest.mark.asyncio
async def test_a_batch_that_runs_out_of_time() -> None:
    """What has a receipt keeps it, a conflict stays one, the rest is unknown."""
    new = [NewTransaction(user_id="alice", kind="k", payload=number) for number in range(3)]
    step = of_each(receipt_for, refused(409, "conflict"), refused(503, "unknown"), status=207)
    full = problem(429, "queue-full", retry_after_s=60)
    async with ScriptedNode(step, full) as node, LedgerClient([node.url]) as client:
        watch_pauses(client)
        with pytest.raises(BatchError, match="2 of 3") as caught:
            await client.record_transactions(new)
    kinds = [type(outcome) for outcome in caught.value.outcomes]
    assert [Receipt, ConflictError, UnknownOutcomeError] == kinds


@pytest.mark.parametrize(
    "answer",
    [
        Answer(201, {"receipts": []}),
        Answer(201, {"receipts": [{"id": "x", "status": "pending"}]}),
        Answer(201, {"receipts": [7]}),
        Answer(201, b"{}"),
        Answer(409, b"{}"),
    ],
)
@pytest.mark.asyncio
async def test_a_batch_answer_that_makes_no_sense(answer: Answer) -> None:
    """Is told as such rather than taken for receipts."""
    new = [NewTransaction(user_id="alice", kind="k", payload=1)]
    async with ScriptedNode(answer) as node, LedgerClient([node.url]) as client:
        with pytest.raises(ProtocolError):
            await client.record_transactions(new)


@pytest.mark.asyncio
async def test_many_calls_that_lose_a_node_move_on_together() -> None:
    """Each goes to the next node, and none past it."""
    async with (
        ScriptedNode(*[HangUp()] * 8) as first,
        ScriptedNode(*[committed] * 8) as second,
        ScriptedNode() as third,
        LedgerClient([first.url, second.url, third.url]) as client,
    ):
        await asyncio.gather(*(record(client, timeout_s=30.0) for _ in range(8)))
        assert (8, 8, 0) == (len(first.seen), len(second.seen), len(third.seen))


@pytest.mark.asyncio
async def test_a_late_failure_does_not_lead_back() -> None:
    """A call that fails at a node others have left already goes where they are."""
    nodes = Nodes(["http://a", "http://b", "http://c"], attempt_timeout_s=1)
    for failed_at, expected in ((0, 1), (1, 2), (0, 2), (2, 0)):
        nodes.leave(failed_at)
        assert expected == nodes.current
    await nodes.close()


@pytest.mark.asyncio
async def test_an_https_node_is_checked_against_the_systems_roots() -> None:
    """A node that cannot prove who it is is never spoken to; this one speaks no TLS at all."""
    async with ScriptedNode() as node:
        url = node.url.replace("http:", "https:")
        async with LedgerClient([url], timeout_s=0.05) as client:
            watch_pauses(client)
            with pytest.raises(UnavailableError):
                await record(client)
        assert [] == node.seen
