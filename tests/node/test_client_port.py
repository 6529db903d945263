"""What the client port answers, and that it answers as HTTP does. The node is held in memory."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import pytest_asyncio

from consensus.block import MAX_TRANSACTION_BYTES, encode_transaction
from node.api.json_input import MAX_BATCH_TRANSACTIONS
from node.api.problems import TYPE_PREFIX
from node.api.server import ApiServer
from node.outcomes import NodeFailedError, Refusal, RefusalReason, Wait
from node.port_messages import (
    MIN_TRANSACTION_BYTES,
    LookUp,
    Nothing,
    Recorded,
    Refused,
    Submit,
    Taken,
    encode_requests,
)
from node.port_requests import Examination
from node.uuid7 import new_transaction_id
from tests.node.port_stage import PortStage, RawClient, port_stage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from node.port_messages import PortOutcome

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def stage() -> AsyncIterator[PortStage]:
    """A port that lets everybody in."""
    async with port_stage() as stage:
        yield stage


def new_raw(
    user_id: str = "alice", *, kind: str = "deposit", payload: Any = 1, identifier: bytes = b""
) -> bytes:
    """A transaction's canonical bytes."""
    return encode_transaction(
        transaction_id=identifier or new_transaction_id(),
        user_id=user_id,
        kind=kind,
        payload=payload,
    )


def submit(
    number: int, *raws: bytes, wait: Wait = Wait.COMMITTED, timeout_ms: int = 5_000
) -> Submit:
    """A request."""
    return Submit(number, wait, timeout_ms, raws)


async def outcomes_of(stage: PortStage, request: Submit | LookUp) -> tuple[PortOutcome, ...]:
    """What a client of its own hears."""
    async with RawClient(stage) as client:
        await client.shake_hands()
        client.request(request)
        return (await client.answers_to(1))[request.number].outcomes


async def refusal_of(stage: PortStage, request: Submit | LookUp) -> Refused:
    """The one refusal that a client hears."""
    (outcome,) = await outcomes_of(stage, request)
    assert isinstance(outcome, Refused)
    return outcome


async def test_single_submits_of_one_turn_are_one_call_of_the_node(stage: PortStage) -> None:
    """Each is answered by its own number; those of another timeout are another call."""
    raws = [new_raw() for _ in range(5)]
    async with RawClient(stage) as client:
        await client.shake_hands()
        requests = [submit(10 + place, raw) for place, raw in enumerate(raws[:4])]
        client.request(*requests, submit(14, raws[4], timeout_ms=77))
        answers = await client.answers_to(5)
    assert [(raws[:4], Wait.COMMITTED, 5.0), (raws[4:], Wait.COMMITTED, 0.077)] == [
        (list(one), wait, timeout_s) for one, wait, timeout_s in stage.node.submits
    ]
    for number, raw in enumerate(raws, start=10):
        (outcome,) = answers[number].outcomes
        assert isinstance(outcome, Recorded)
        assert raw == stage.node.blocks[outcome.index].transactions[outcome.position]


async def test_a_batch_has_an_outcome_for_each_in_its_order(stage: PortStage) -> None:
    """A transaction sent twice has the same receipt twice."""
    raws = [new_raw() for _ in range(300)]
    raws[200] = raws[100]
    outcomes = await outcomes_of(stage, submit(1, *raws))
    ids = [outcome.id for outcome in outcomes if isinstance(outcome, Recorded)]
    assert [raw[3:19] for raw in raws] == ids
    assert outcomes[100] == outcomes[200]


async def test_accepted_is_answered_without_a_receipt(stage: PortStage) -> None:
    """It is on its way."""
    raw = new_raw()
    assert (Taken(raw[3:19]),) == await outcomes_of(stage, submit(1, raw, wait=Wait.ACCEPTED))


async def test_a_retry_has_the_first_receipt(stage: PortStage) -> None:
    """The same bytes again, over another connection."""
    raw = new_raw()
    first = await outcomes_of(stage, submit(1, raw))
    assert first == await outcomes_of(stage, submit(2, raw))


async def test_look_ups_tell_recorded_pending_and_unknown(stage: PortStage) -> None:
    """As the receipt call over HTTP does."""
    raw, pending = new_raw(), new_transaction_id()
    receipt = await outcomes_of(stage, submit(1, raw))
    stage.node.pending.add(pending)
    for wanted, expected in (
        (raw[3:19], receipt),
        (pending, (Taken(pending),)),
        (bytes(16), (Nothing(),)),
    ):
        for is_linearizable in (True, False):
            request = LookUp(1, wanted, is_linearizable, 1_000)
            assert expected == await outcomes_of(stage, request)


async def test_a_linearizable_look_up_without_a_leader_is_refused(stage: PortStage) -> None:
    """A local one is answered."""
    stage.node.leader = None
    refused = await refusal_of(stage, LookUp(1, bytes(16), is_linearizable=True, timeout_ms=20))
    assert ("no-leader", 1) == (refused.problem, refused.retry_after_s)
    local = LookUp(1, bytes(16), is_linearizable=False, timeout_ms=20)
    assert (Nothing(),) == await outcomes_of(stage, local)


async def http_problem(stage: PortStage, document: dict[str, Any]) -> Any:
    """What the HTTP face of the same node answers."""
    server = ApiServer(stage.node, "127.0.0.1", 0)
    await server.start()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    async with httpx.AsyncClient(base_url=server.url, trust_env=False, verify=tls) as http:
        response = await http.post("/api/v1/ledger/transactions", json=document)
    await server.stop()
    return response.json()


@pytest.mark.parametrize("reason", RefusalReason)
@pytest.mark.parametrize("retry_after_s", [None, 3])
async def test_refusals_are_those_of_http(
    stage: PortStage, reason: RefusalReason, retry_after_s: int | None
) -> None:
    """The same problem, detail and time to wait."""
    stage.node.refusals[b"mallory"] = Refusal(b"", reason, "because", retry_after_s)
    refused = await refusal_of(stage, submit(1, new_raw("mallory")))
    problem = await http_problem(stage, {"user_id": "mallory", "kind": "deposit", "payload": 1})
    expected = (problem["type"], problem["detail"], problem.get("retry_after_s"))
    assert expected == (TYPE_PREFIX + refused.problem, refused.detail, refused.retry_after_s)


async def test_a_conflict_is_one(stage: PortStage) -> None:
    """An id that is recorded with other content."""
    identifier = new_transaction_id()
    await outcomes_of(stage, submit(1, new_raw(identifier=identifier)))
    refused = await refusal_of(stage, submit(1, new_raw(identifier=identifier, payload=2)))
    assert "conflict" == refused.problem


async def test_a_node_that_does_not_run_refuses(stage: PortStage) -> None:
    """In words, on a connection that stays."""
    stage.node.fault = NodeFailedError("the disk is gone")
    async with RawClient(stage) as client:
        await client.shake_hands()
        client.request(submit(1, new_raw()), submit(2, new_raw(), new_raw()))
        answers = await client.answers_to(2)
        expected = (Refused("unavailable", "the disk is gone", None, 1),)
        assert [expected, expected] == [answers[number].outcomes for number in (1, 2)]
        stage.node.fault = None
        client.request(submit(3, new_raw()))
        assert isinstance((await client.answers_to(1))[3].outcomes[0], Recorded)


TWO = new_transaction_id()


@pytest.mark.parametrize(
    ("raws", "problem", "path", "detail"),
    [
        ([], "invalid-content", "$.transactions", "must not be empty"),
        ([bytes(24)], "invalid-content", "$", "Expected `array`"),
        ([new_raw()[:-1]], "invalid-content", "$", "truncated"),
        ([new_raw() + b"\0"], "invalid-content", "$", "trailing"),
        ([new_raw(), new_raw() + b"\0"], "invalid-content", "$.transactions[1]", "trailing"),
        ([new_raw(kind="membership")], "invalid-content", "$.kind", "cluster itself"),
        (
            [new_raw(), new_raw(kind="genesis")],
            "invalid-content",
            "$.transactions[1].kind",
            "cluster",
        ),
        ([bytes(MAX_TRANSACTION_BYTES + 1)], "too-large", "$", "at most 65536"),
        (
            [bytes(24)] * (MAX_BATCH_TRANSACTIONS + 1),
            "too-large",
            "$.transactions",
            "at most 10000",
        ),
        ([bytes(64 << 10)] * 129, "too-large", "$.transactions", "8388608 bytes"),
        (
            [new_raw(identifier=TWO), new_raw(), new_raw(identifier=TWO, payload=2)],
            "invalid-content",
            "$.transactions[2].id",
            "is also the id of $.transactions[0]",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_what_cannot_be_recorded_is_refused_whole(
    stage: PortStage, raws: list[bytes], problem: str, path: str, detail: str
) -> None:
    """With the place of the fault; nothing of the request reaches the node."""
    refused = await refusal_of(stage, submit(1, *raws))
    assert (problem, path) == (refused.problem, refused.path)
    assert detail in refused.detail
    assert 0 == stage.node.recorded


async def test_the_largest_batch_is_taken(stage: PortStage) -> None:
    """10,000 transactions in one message, examined in slices."""
    raws = [new_raw() for _ in range(MAX_BATCH_TRANSACTIONS)]
    outcomes = await outcomes_of(stage, submit(1, *raws))
    assert MAX_BATCH_TRANSACTIONS == len(outcomes)


async def test_a_batch_is_examined_in_slices() -> None:
    """By count and by bytes, at least one at a time, and the fault is found where it is."""
    raws = [new_raw() for _ in range(10)]
    examination = Examination(submit(1, *raws, b"x", *raws))
    assert (4, 4 * len(raws[0])) == examination.go_on(4, 1_000_000)
    assert (1, len(raws[0])) == examination.go_on(4, 1)
    assert not examination.is_done
    examination.go_on(100, 1_000_000)
    assert examination.is_done
    assert examination.problem is not None
    assert "$.transactions[10]" == examination.problem.errors[0].path


async def test_answers_go_to_the_connection_that_asked(stage: PortStage) -> None:
    """Whatever routing id and numbers two clients claim, each hears of its own alone."""
    claimed = b"\x0bSocket-Type\0\0\0\x06DEALER\x08Identity\0\0\0\x03me!"
    raws = [new_raw("alice"), new_raw("bob")]
    async with RawClient(stage) as alice, RawClient(stage) as bob:
        for client in (alice, bob):
            await client.greet()
            client.send(client.curve.initiate(claimed))
            client.curve.take_ready(await client.frame())
        for client, raw in zip((alice, bob), raws, strict=True):
            client.request(submit(1, raw))
        for client, raw in zip((alice, bob), raws, strict=True):
            (outcome,) = (await client.answers_to(1))[1].outcomes
            assert isinstance(outcome, Recorded)
            assert raw[3:19] == outcome.id


async def test_a_client_that_hangs_up_is_offered_no_longer(stage: PortStage) -> None:
    """Its call is abandoned; the answer goes nowhere."""
    stage.node.gate = asyncio.Event()
    async with RawClient(stage) as client:
        await client.shake_hands()
        client.request(submit(1, new_raw()))
        await stage.until(lambda: bool(stage.node.calls))
    (call,) = stage.node.calls.values()
    await asyncio.wait({call}, timeout=20)
    assert call.cancelled()


async def test_a_stop_lets_what_is_under_way_be_answered() -> None:
    """What comes after it is not taken."""
    async with port_stage(limits=PortStage.limits(stop_s=20)) as stage:
        stage.node.gate = asyncio.Event()
        async with RawClient(stage) as client:
            await client.shake_hands()
            client.request(submit(1, new_raw()))
            await stage.until(lambda: bool(stage.node.calls))
            stopping = asyncio.create_task(stage.port.stop())
            await asyncio.sleep(0)
            client.request(submit(2, new_raw()))
            stage.node.gate.set()
            answers = await client.answers_to(1)
            assert isinstance(answers[1].outcomes[0], Recorded)
            assert b"" == await client.ended()
            await stopping
        assert 1 == stage.node.recorded


@pytest.mark.parametrize("fault", [RuntimeError("ours"), AssertionError()])
async def test_a_fault_of_our_own_costs_the_connection_alone(fault: Exception) -> None:
    """It is logged and counted; neither the loop nor the node hears of it, and others go on."""
    async with port_stage() as stage:
        async with RawClient(stage) as victim, RawClient(stage) as other:
            await victim.shake_hands()
            await other.shake_hands()
            stage.node.fault = fault
            victim.request(submit(1, new_raw()))
            assert b"" == await victim.ended()
            stage.node.fault = None
            other.request(submit(1, new_raw()))
            assert isinstance((await other.answers_to(1))[1].outcomes[0], Recorded)
        assert 1 == stage.port.dropped.pop("node_fault")


async def test_a_fault_in_answering_does_not_reach_the_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The node calls from its own loop: an exception there would stop it."""

    def fail(_: object) -> None:
        raise RuntimeError("ours")

    async with port_stage() as stage:
        monkeypatch.setattr("node.port_connection.outcome_fields", fail)
        async with RawClient(stage) as client:
            await client.shake_hands()
            client.request(submit(1, new_raw()))
            assert b"" == await client.ended()
        (call,) = stage.node.calls.values()
        await call
        assert 1 == stage.port.dropped.pop("node_fault")


async def test_the_shortest_transaction_is_taken(stage: PortStage) -> None:
    """What is shorter cannot be one."""
    shortest = new_raw("a", kind="k")
    assert MIN_TRANSACTION_BYTES == len(shortest)
    (outcome,) = await outcomes_of(stage, submit(1, shortest))
    assert isinstance(outcome, Recorded)


async def test_what_is_no_list_of_requests_is_dropped(stage: PortStage) -> None:
    """Another version too."""
    good = encode_requests([submit(1, new_raw())])
    short = encode_requests([submit(1, bytes(MIN_TRANSACTION_BYTES - 1))])
    unversioned = b"\x92\x02" + good[2:]
    for message in (b"", b"x", good + b"x", unversioned, good[:-1], b"\x92\x01\x90", short):
        async with RawClient(stage) as client:
            await client.shake_hands()
            client.send(client.curve.message(message))
            assert b"" == await client.ended()
    assert 7 == stage.port.dropped["undecodable"]
    assert 0 == stage.node.recorded
