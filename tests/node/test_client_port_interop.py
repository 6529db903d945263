"""libzmq against the client port: whoever has an ordinary DEALER with CURVE is served.

The node is held in memory; sockets, libzmq and its threads are real.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from consensus.block import encode_transaction
from node.client_keys import parse_key
from node.outcomes import Wait
from node.port_messages import (
    LookUp,
    Nothing,
    Recorded,
    Submit,
    decode_answers,
    encode_requests,
)
from node.uuid7 import new_transaction_id
from tests.node.port_stage import DEADLINE_S, PortStage, port_stage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from node.port_messages import PortOutcome

pytestmark = pytest.mark.asyncio
PUBLIC, SECRET = zmq.curve_keypair()


@pytest_asyncio.fixture
async def stage() -> AsyncIterator[PortStage]:
    """A port that lets everybody in."""
    async with port_stage() as stage:
        yield stage


@contextmanager
def dealer(stage: PortStage, *, curve: bool = True, **options: int) -> Iterator[zmq.asyncio.Socket]:
    """A DEALER connected to the port, with the right keys; its context goes with it."""
    context = zmq.asyncio.Context()
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    if curve:
        socket.curve_serverkey = stage.identity.curve_public_z85
        socket.curve_publickey, socket.curve_secretkey = PUBLIC, SECRET
    for name, value in options.items():
        socket.setsockopt(getattr(zmq, name), value)
    try:
        yield socket
    finally:
        socket.close()
        context.term()


def new_raw(user_id: str = "alice") -> bytes:
    """A transaction's canonical bytes."""
    return encode_transaction(
        transaction_id=new_transaction_id(), user_id=user_id, kind="deposit", payload={"amount": 1}
    )


async def event_of(socket: zmq.asyncio.Socket, wanted: int) -> int:
    """Wait for an event of a socket; its value."""
    monitor = socket.get_monitor_socket()
    try:
        while True:
            parts = await asyncio.wait_for(monitor.recv_multipart(), DEADLINE_S)
            event = parse_monitor_message(parts)
            if event["event"] == wanted:
                return int(event["value"])
    finally:
        socket.disable_monitor()
        monitor.close(linger=0)


async def test_an_ordinary_dealer_records_and_looks_up(stage: PortStage) -> None:
    """Single, batch and look-up in one message; the receipts are the chain's."""
    with dealer(stage) as socket:
        socket.connect(stage.endpoint)
        raws = [new_raw() for _ in range(3)]
        requests: list[Submit | LookUp] = [
            Submit(1, Wait.COMMITTED, 1_000, (raws[0],)),
            Submit(2, Wait.COMMITTED, 1_000, (raws[1], raws[2])),
            LookUp(3, bytes(16), is_linearizable=True, timeout_ms=1_000),
        ]
        await socket.send(encode_requests(requests))
        answers: dict[int, tuple[PortOutcome, ...]] = {}
        while len(answers) < len(requests):
            message = await asyncio.wait_for(socket.recv(), DEADLINE_S)
            answers |= {one.number: one.outcomes for one in decode_answers(message)}
    assert (Nothing(),) == answers[3]
    for raw, outcome in zip(raws, (*answers[1], *answers[2]), strict=True):
        assert isinstance(outcome, Recorded)
        block = stage.node.blocks[outcome.index]
        assert (raw, block.hash) == (block.transactions[outcome.position], outcome.block_hash)


@pytest.mark.parametrize("size", [1, 222, 223, 60_000])
async def test_messages_of_every_form_travel(stage: PortStage, size: int) -> None:
    """Short and long frames, in both directions."""
    count = 1 if size > 1 else 300
    raws = tuple(
        encode_transaction(
            transaction_id=new_transaction_id(), user_id="u", kind="k", payload="x" * size
        )
        for _ in range(count)
    )
    with dealer(stage) as socket:
        socket.connect(stage.endpoint)
        await socket.send(encode_requests([Submit(7, Wait.COMMITTED, 1_000, raws)]))
        message = await asyncio.wait_for(socket.recv(), DEADLINE_S)
    (answer,) = decode_answers(message)
    assert (7, count) == (answer.number, len(answer.outcomes))


async def test_another_server_s_key_ends_the_handshake(stage: PortStage) -> None:
    """The client learns nothing, and the port counts it."""
    with dealer(stage) as socket:
        socket.curve_serverkey = zmq.curve_keypair()[0]
        failed = asyncio.create_task(event_of(socket, zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL))
        await asyncio.sleep(0)
        socket.connect(stage.endpoint)
        await failed
    assert stage.port.dropped["handshake"] > 0


async def test_a_key_that_is_not_let_in_is_told_so_and_another_is_served() -> None:
    """Libzmq shows the code of a ZAP refusal."""
    async with port_stage(client_keys=[parse_key(PUBLIC.decode())]) as stage:
        with dealer(stage) as socket:
            socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()
            refused = asyncio.create_task(event_of(socket, zmq.EVENT_HANDSHAKE_FAILED_AUTH))
            await asyncio.sleep(0)
            socket.connect(stage.endpoint)
            assert 400 == await refused
        assert stage.port.dropped["key"] > 0
        await test_an_ordinary_dealer_records_and_looks_up(stage)


@pytest.mark.parametrize("plain", [False, True])
async def test_without_curve_nobody_is_let_in(stage: PortStage, plain: bool) -> None:
    """The greetings do not fit: whichever side sees it first hangs up."""
    with dealer(stage, curve=False) as socket:
        if plain:
            socket.plain_username, socket.plain_password = b"u", b"p"
        ended = asyncio.create_task(event_of(socket, zmq.EVENT_DISCONNECTED))
        await asyncio.sleep(0)
        socket.connect(stage.endpoint)
        await socket.send(b"unheard")
        await ended
    assert 0 < stage.port.metrics["client_connections_accepted_total"]
    assert 0 == stage.port.metrics["client_requests_total"]


@pytest.mark.parametrize("kind", [zmq.REQ, zmq.ROUTER, zmq.REP])
async def test_another_kind_of_socket_is_no_client(stage: PortStage, kind: int) -> None:
    """It would send what the port does not take."""
    context = zmq.asyncio.Context()
    socket = context.socket(kind)
    socket.curve_serverkey = stage.identity.curve_public_z85
    socket.curve_publickey, socket.curve_secretkey = PUBLIC, SECRET
    ended = asyncio.create_task(event_of(socket, zmq.EVENT_DISCONNECTED))
    await asyncio.sleep(0)
    socket.connect(stage.endpoint)
    await ended
    socket.close(linger=0)
    context.term()
    assert stage.port.dropped["metadata"] > 0


async def test_the_pings_of_libzmq_are_answered(stage: PortStage) -> None:
    """It would close the connection within 20 ms without a PONG; it is the same one all along."""
    with dealer(stage, HEARTBEAT_IVL=10, HEARTBEAT_TIMEOUT=2_000, HEARTBEAT_TTL=5_000) as socket:
        socket.connect(stage.endpoint)
        for number in range(20):
            lookup = LookUp(number, bytes(16), is_linearizable=True, timeout_ms=1_000)
            await socket.send(encode_requests([lookup]))
            await asyncio.wait_for(socket.recv(), DEADLINE_S)
            await stage.heard_frames(number)
    assert 1 == stage.port.metrics["client_connections_accepted_total"]


async def test_libzmq_answers_our_pings() -> None:
    """A silent client that lives is kept: it stays connected for many times what silence costs."""
    limits = PortStage.limits(ping_after_s=0.02, silent_s=0.3, unpinged_silent_s=0.3, tick_s=0.01)
    async with port_stage(limits=limits) as stage:
        with dealer(stage) as socket:
            socket.connect(stage.endpoint)
            lookup = LookUp(1, bytes(16), is_linearizable=True, timeout_ms=1_000)
            await socket.send(encode_requests([lookup]))
            await asyncio.wait_for(socket.recv(), DEADLINE_S)
            await stage.pongs(30)
            assert 0 == stage.port.dropped["silent"]
            assert 1 == stage.port.metrics["client_connections"]


async def test_a_message_of_two_parts_is_refused(stage: PortStage) -> None:
    """At its first part."""
    with dealer(stage) as socket:
        ended = asyncio.create_task(event_of(socket, zmq.EVENT_DISCONNECTED))
        await asyncio.sleep(0)
        socket.connect(stage.endpoint)
        await socket.send_multipart([b"one", b"two"])
        await ended
    assert 1 == stage.port.dropped["multipart"]
