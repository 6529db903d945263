"""`LedgerClient` over client ports: the same calls, retries and errors as over HTTP.

libzmq and sockets are real, the nodes are held in memory.
"""

from __future__ import annotations

import asyncio
import select
import socket
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
import pytest_asyncio
import zmq
from zmq.utils import z85

from consensus.block import InvalidTransactionError, decode_transaction
from node.client import (
    BatchError,
    ConflictError,
    LedgerClient,
    NewTransaction,
    NoHttpError,
    ProtocolError,
    Receipt,
    RejectedError,
    UnavailableError,
    UnknownOutcomeError,
)
from node.outcomes import NodeFailedError, Refusal, RefusalReason
from node.port_link import PortAddress, PortLink
from node.uuid7 import uuid7
from tests.node.port_stage import DEADLINE_S, IDENTITY, PortStage, port_stage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.asyncio
KEY = IDENTITY.public_key.hex()


@pytest_asyncio.fixture
async def stage() -> AsyncIterator[PortStage]:
    """A port that lets everybody in."""
    async with port_stage() as stage:
        yield stage


def new(user_id: str = "alice", payload: object = 1) -> NewTransaction:
    """A transaction without an id."""
    return NewTransaction(user_id=user_id, kind="deposit", payload=payload)


def link_of(ledger: LedgerClient) -> PortLink:
    """The client's one link."""
    assert ledger._ports is not None
    (link,) = ledger._ports._links
    return link


async def test_many_calls_at_once_share_a_connection_and_its_messages(stage: PortStage) -> None:
    """Each has its own receipt; what one turn of the loop sends is one call of the node."""
    async with LedgerClient([stage.port.url]) as ledger:
        first = await ledger.record_transaction(user_id="first", kind="deposit", payload=0)
        receipts = await asyncio.gather(
            *(
                ledger.record_transaction(user_id=f"user-{n}", kind="deposit", payload=n)
                for n in range(200)
            )
        )
    assert (1, 0) == (first.index, first.position)
    assert 1 == stage.port.metrics["client_connections_accepted_total"]
    assert [1, 200] == [len(raws) for raws, _, _ in stage.node.submits]
    for number, receipt in enumerate(receipts):
        raw = stage.node.blocks[receipt.index].transactions[receipt.position]
        assert f"user-{number}" == decode_transaction(raw).user_id


async def test_receipts_are_those_of_http(stage: PortStage) -> None:
    """In the same shape."""
    async with LedgerClient([stage.port.url]) as ledger:
        receipt = await ledger.record_transaction(user_id="alice", kind="deposit", payload=1)
        lookup = await ledger.receipt(UUID(receipt.id))
        unknown = await ledger.receipt(uuid7(), consistency="local")
    block = stage.node.blocks[receipt.index]
    assert (block.hash.hex(), "2023-11-14T22:13:21.000000Z") == (
        receipt.block_hash,
        receipt.timestamp,
    )
    assert ("committed", receipt) == (lookup.status, lookup.receipt)
    assert "unknown" == unknown.status


async def test_a_batch_has_its_receipts_in_order(stage: PortStage) -> None:
    """Over one message."""
    async with LedgerClient([stage.port.url]) as ledger:
        receipts = await ledger.record_transactions([new(f"user-{n}") for n in range(50)])
    users = [
        decode_transaction(stage.node.blocks[one.index].transactions[one.position]).user_id
        for one in receipts
    ]
    assert [f"user-{n}" for n in range(50)] == users


async def test_refusals_are_the_exceptions_of_http(stage: PortStage) -> None:
    """Conflict at once; what may pass is tried again until the time is up."""
    async with LedgerClient([stage.port.url], timeout_s=0.3) as ledger:
        identifier = uuid7()

        async def record(user_id: str, payload: object = 1) -> Receipt:
            return await ledger.record_transaction(
                user_id=user_id, kind="deposit", payload=payload, transaction_id=identifier
            )

        await record("alice")
        with pytest.raises(ConflictError) as conflict:
            await record("alice", payload=2)
        assert 409 == conflict.value.problem.status
        identifier = uuid7()
        for reason, expected in (
            (RefusalReason.QUEUE_FULL, UnavailableError),
            (RefusalReason.UNAVAILABLE, UnavailableError),
            (RefusalReason.UNKNOWN, UnknownOutcomeError),
        ):
            stage.node.refusals[b"mallory"] = Refusal(b"", reason, "because", 0)
            with pytest.raises(expected, match="because"):
                await record("mallory")
        with pytest.raises(InvalidTransactionError):
            await record("alice", payload=float("nan"))
        with pytest.raises(RejectedError, match=r"\$.kind"):
            await ledger.record_transaction(user_id="a", kind="membership", payload=1)


async def test_a_batch_that_is_refused_in_part_tells_of_each(stage: PortStage) -> None:
    """The others are recorded all the same."""
    stage.node.refusals[b"mallory"] = Refusal(b"", RefusalReason.CONFLICT, "taken", None)
    async with LedgerClient([stage.port.url]) as ledger:
        with pytest.raises(BatchError) as caught:
            await ledger.record_transactions([new(), new("mallory"), new()])
    kinds = [type(outcome) for outcome in caught.value.outcomes]
    assert [Receipt, ConflictError, Receipt] == kinds


async def test_a_batch_that_is_too_large_is_refused_before_it_is_sent(stage: PortStage) -> None:
    """A port would hang up on it."""
    async with LedgerClient([stage.port.url]) as ledger:
        with pytest.raises(RejectedError, match="more than 8388608 bytes") as caught:
            await ledger.record_transactions([new(payload="x" * 60_000) for _ in range(150)])
        assert 413 == caught.value.problem.status
        with pytest.raises(RejectedError, match="more than 10000 transactions"):
            await ledger.record_transactions([new() for _ in range(10_001)])
        with pytest.raises(RejectedError, match=r"transactions\[1\].kind"):
            await ledger.record_transactions(
                [new(), NewTransaction(user_id="a", kind="genesis", payload=1)]
            )
    assert 0 == stage.node.recorded


async def test_a_call_goes_on_at_the_next_node_with_the_same_bytes() -> None:
    """Where one cannot, where nobody listens, and where the connection ends under it."""
    async with AsyncExitStack() as stack:
        first, second = [await stack.enter_async_context(port_stage()) for _ in range(2)]
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            nobody = f"tcp://127.0.0.1:{bound.getsockname()[1]}?key={KEY}"
            ledger = LedgerClient([nobody, first.port.url, second.port.url])
            await stack.enter_async_context(ledger)
            first.node.fault = NodeFailedError("stopped")
            await ledger.record_transaction(user_id="alice", kind="deposit", payload=1)
        assert (0, 1) == (first.node.recorded, second.node.recorded)
        second.node.gate = asyncio.Event()
        first.node.fault = None
        call = asyncio.create_task(
            ledger.record_transaction(user_id="bob", kind="deposit", payload=1)
        )
        await second.until(lambda: len(second.node.calls) == 2)
        (submission,) = [one for one in second.node.calls if not one.is_done]
        for connection in list(second.port._connections):
            connection.abort()
        receipt = await call
        recorded = first.node.blocks[receipt.index].transactions[receipt.position]
        assert submission.transactions == (recorded,)


async def test_a_broken_connection_is_made_anew(stage: PortStage) -> None:
    """At the next call, or by a call that is under way."""
    async with LedgerClient([stage.port.url]) as ledger:
        for count in (1, 2, 3):
            await ledger.record_transaction(user_id="alice", kind="deposit", payload=1)
            assert count == stage.port.metrics["client_connections_accepted_total"]
            for connection in list(stage.port._connections):
                connection.abort()
            await stage.until(lambda: not stage.port._connections)
            await stage.until(lambda: link_of(ledger)._connection is None)


async def test_what_was_not_sent_is_known_not_to_be_recorded() -> None:
    """Nobody listens: unavailable. No answer: unknown, with the id to ask again with."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        url = f"tcp://127.0.0.1:{silent.getsockname()[1]}?key={KEY}"
        async with LedgerClient([url], timeout_s=0.3) as ledger:
            with pytest.raises(UnavailableError, match="cannot be connected to"):
                await ledger.record_transaction(user_id="alice", kind="deposit", payload=1)
            silent.listen()
            with pytest.raises(UnavailableError, match="in time"):
                await ledger.record_transaction(user_id="alice", kind="deposit", payload=1)
    async with (
        port_stage() as stage,
        LedgerClient([stage.port.url], timeout_s=0.3, attempt_timeout_s=0.1) as ledger,
    ):
        stage.node.gate = asyncio.Event()
        identifier = uuid7()
        with pytest.raises(UnknownOutcomeError) as caught:
            await ledger.record_transaction(
                user_id="alice", kind="deposit", payload=1, transaction_id=identifier
            )
        assert identifier == caught.value.transaction_id


async def test_a_client_s_key_decides_where_only_some_are_let_in() -> None:
    """The wrong one hears why."""
    public, secret = (z85.decode(key) for key in zmq.curve_keypair())
    async with port_stage(client_keys=[public]) as stage:
        async with LedgerClient([stage.port.url], client_key=secret) as ledger:
            await ledger.record_transaction(user_id="alice", kind="deposit", payload=1)
        async with LedgerClient([stage.port.url], timeout_s=0.2) as ledger:
            with pytest.raises(UnavailableError, match="does not let this client's key in"):
                await ledger.record_transaction(user_id="alice", kind="deposit", payload=1)


async def test_a_node_that_is_another_is_not_spoken_to(stage: PortStage) -> None:
    """The key in the URL is the node's identity."""
    other = stage.port.url.replace(KEY, (b"\x58" + b"\x66" * 31).hex())
    async with LedgerClient([other], timeout_s=0.2) as ledger:
        with pytest.raises(UnavailableError, match="has it another key"):
            await ledger.record_transaction(user_id="alice", kind="deposit", payload=1)
    assert 0 == stage.node.recorded


async def test_without_an_http_url_the_rest_is_refused_in_words(stage: PortStage) -> None:
    """A typed error, at once."""
    async with LedgerClient([stage.port.url]) as ledger:
        for call in (ledger.history_page("alice"), ledger.block(0), ledger.cluster()):
            with pytest.raises(NoHttpError, match="http URL"):
                await call


@pytest.mark.parametrize(
    "url",
    [
        "tcp://127.0.0.1:1",
        "tcp://127.0.0.1:1?key=00",
        f"tcp://127.0.0.1?key={KEY}",
        f"tcp://:1?key={KEY}",
        f"tcp://127.0.0.1:1?key={KEY}&x=1",
        f"tcp://127.0.0.1:1/x?key={KEY}",
        f"tcp://127.0.0.1:99999?key={KEY}",
        f"tcp://127.0.0.1:1?key={'02' * 32}",
    ],
)
async def test_what_names_no_port_is_refused_at_once(url: str) -> None:
    """With the URL in the message."""
    with pytest.raises(ValueError, match="tcp://"):
        LedgerClient([url])


async def test_an_address_in_words() -> None:
    """Without the key, which is long."""
    address = PortAddress.of(f"tcp://[::1]:9001?key={KEY}")
    assert ("::1", 9001, IDENTITY.public_key) == (address.host, address.port, address.public_key)
    assert "tcp://[::1]:9001" == str(address)
    with pytest.raises(ValueError, match="32 bytes"):
        LedgerClient([f"tcp://[::1]:9001?key={KEY}"], client_key=b"short")


async def test_what_is_no_ledger_is_told_so(
    stage: PortStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes that are no answer end the connection; an answer that makes no sense is an error."""
    async with LedgerClient([stage.port.url], timeout_s=0.3) as ledger:
        monkeypatch.setattr("node.port_connection.encode_answers", lambda _: b"?")
        with pytest.raises(UnknownOutcomeError, match="is no ledger"):
            await ledger.record_transaction(user_id="alice", kind="deposit", payload=1)
        monkeypatch.undo()
        monkeypatch.setattr("node.port_connection.outcome_fields", lambda _: (3,))
        with pytest.raises(ProtocolError):
            await ledger.record_transaction(user_id="alice", kind="deposit", payload=1)


async def test_a_call_that_is_given_up_leaves_nothing_behind(stage: PortStage) -> None:
    """Its answer, when it comes, is nobody's."""
    async with LedgerClient([stage.port.url]) as ledger:
        stage.node.gate = asyncio.Event()
        call = asyncio.create_task(
            ledger.record_transaction(user_id="alice", kind="deposit", payload=1)
        )
        await stage.until(lambda: bool(stage.node.calls))
        call.cancel()
        await asyncio.wait({call}, timeout=DEADLINE_S)
        stage.node.gate.set()
        await ledger.record_transaction(user_id="bob", kind="deposit", payload=1)
        assert ({}, {}) == (link_of(ledger)._calls, link_of(ledger)._unsent)


async def test_an_answer_is_not_missed_where_a_request_takes_the_edge(stage: PortStage) -> None:
    """Libzmq tells once that something came; whoever uses the socket next takes that note away."""
    loop = asyncio.get_running_loop()
    async with LedgerClient([stage.port.url]) as ledger:

        def record() -> asyncio.Task[Receipt]:
            call = ledger.record_transaction(user_id="alice", kind="deposit", payload=1)
            return asyncio.create_task(call)

        await record()
        stage.node.gate = asyncio.Event()
        first = record()
        await stage.until(lambda: len(stage.node.calls) == 2)
        connection = link_of(ledger)._connection
        assert connection is not None
        loop.remove_reader(connection._socket.fileno())
        stage.node.gate.set()
        await asyncio.to_thread(select.select, [connection._socket.fileno()], [], [], DEADLINE_S)
        stage.node.gate = asyncio.Event()
        second = record()
        await asyncio.wait_for(first, DEADLINE_S)
        loop.add_reader(connection._socket.fileno(), connection._reader._drain)
        assert not second.done()
        stage.node.gate.set()
        await second
