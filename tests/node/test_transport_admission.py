"""Who gets a message through the peer transport, over real sockets, and who does not."""

from __future__ import annotations

import asyncio
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
import zmq
from nacl.signing import SigningKey

from node.identity import Identity, IdentityError
from node.transport import MAX_PAYLOAD_BYTES
from node.zap import ZapGate
from tests.node.transport_members import (
    CLUSTER,
    DEADLINE_S,
    NOWHERE,
    Members,
    RawClient,
    only_message_is_from,
    soon,
    until,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


@pytest_asyncio.fixture
async def members() -> AsyncIterator[Members]:
    """Members of one test."""
    async with Members() as opened:
        yield opened


@pytest.fixture
def stranger() -> Iterator[RawClient]:
    """A client that is not ours."""
    client = RawClient()
    yield client
    client.close()


@pytest.mark.asyncio
async def test_an_unknown_key_is_refused(members: Members, stranger: RawClient) -> None:
    """A valid CURVE client whose key is no member's gets nothing through, and is counted."""
    first, second = await members.pair()
    stranger.use_curve(Identity.of(SigningKey.generate()), first.identity)
    stranger.connect(first.address)
    stranger.socket.send(CLUSTER + b"hello")
    await stranger.event(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
    await only_message_is_from(first, second)
    assert 1 == first.transport.counters.refused_keys


@pytest.mark.asyncio
async def test_a_client_with_the_wrong_server_key_is_refused(
    members: Members, stranger: RawClient
) -> None:
    """Even a member's key opens nothing where the server is not the one it was meant for."""
    first, second = await members.pair()
    stranger.use_curve(second.identity, Identity.of(SigningKey.generate()))
    stranger.connect(first.address)
    stranger.socket.send(CLUSTER + b"hello")
    await stranger.event(zmq.EVENT_DISCONNECTED)
    await only_message_is_from(first, second)
    await until(lambda: first.transport.counters.refused_handshakes > 0)


@pytest.mark.asyncio
async def test_a_client_without_curve_is_refused(members: Members, stranger: RawClient) -> None:
    """A plain client gets nothing through, and is counted."""
    first, second = await members.pair()
    stranger.connect(first.address)
    stranger.socket.send(CLUSTER + b"hello")
    await stranger.event(zmq.EVENT_DISCONNECTED)
    await only_message_is_from(first, second)
    await until(lambda: first.transport.counters.refused_handshakes > 0)


@pytest.mark.asyncio
async def test_a_socket_of_another_kind_is_refused(members: Members) -> None:
    """Only what pushes is let in, even under a member's key: nothing is ever sent back."""
    first, second = await members.pair()
    dealer = RawClient(zmq.DEALER)
    dealer.use_curve(second.identity, first.identity)
    dealer.connect(first.address)
    await dealer.event(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, zmq.EVENT_DISCONNECTED)
    dealer.close()
    await only_message_is_from(first, second)


@pytest.mark.asyncio
async def test_a_member_cannot_speak_as_another(members: Members, stranger: RawClient) -> None:
    """A member that claims to be another is heard as itself."""
    first, second = await members.pair()
    liar = Identity.of(SigningKey.generate())
    first.transport.set_peers({second.id: second.address, liar.public_key: NOWHERE})
    stranger.use_curve(liar, first.identity)
    stranger.connect(first.address)
    stranger.socket.send(CLUSTER + b"I am the other")
    assert (liar.public_key, b"I am the other") == await soon(first.inbox.get())
    await only_message_is_from(first, second)


@pytest.mark.asyncio
async def test_a_message_of_another_cluster_is_dropped(members: Members) -> None:
    """Members of two clusters never talk, even with each other's keys."""
    first, second = await members.pair()
    foreign = await members.open(cluster_id=bytes(32))
    first.meet(second, foreign)
    foreign.meet(first)
    assert first.id == await soon(foreign.ups.get())
    assert foreign.send(first, b"from elsewhere")
    await until(lambda: first.transport.counters.wrong_cluster == 1)
    await only_message_is_from(first, second)


@pytest.mark.asyncio
@pytest.mark.parametrize("frames", [[CLUSTER + b"x", b"y"], [CLUSTER, b"x", b"", b"z"]])
async def test_a_message_of_several_frames_is_dropped(
    members: Members, stranger: RawClient, frames: list[bytes]
) -> None:
    """It is counted, and what follows is read."""
    first, second = await members.pair()
    stranger.use_curve(second.identity, first.identity)
    stranger.connect(first.address)
    stranger.socket.send_multipart(frames)
    stranger.socket.send(CLUSTER + b"well-formed")
    assert (second.id, b"well-formed") == await soon(first.inbox.get())
    assert 1 == first.transport.counters.malformed


@pytest.mark.asyncio
@pytest.mark.parametrize("frame", [b"", CLUSTER[:-1], CLUSTER[1:] + b"hello"])
async def test_a_message_that_names_no_cluster_is_dropped(
    members: Members, stranger: RawClient, frame: bytes
) -> None:
    """It is counted, and what follows is read."""
    first, second = await members.pair()
    stranger.use_curve(second.identity, first.identity)
    stranger.connect(first.address)
    stranger.socket.send(frame)
    stranger.socket.send(CLUSTER + b"well-formed")
    assert (second.id, b"well-formed") == await soon(first.inbox.get())
    assert 1 == first.transport.counters.wrong_cluster


@pytest.mark.asyncio
async def test_an_oversize_frame_cuts_the_connection(members: Members, stranger: RawClient) -> None:
    """Not even a member can make us hold more than the limit."""
    first, second = await members.pair()
    stranger.use_curve(second.identity, first.identity)
    stranger.connect(first.address)
    await stranger.event(zmq.EVENT_HANDSHAKE_SUCCEEDED)
    stranger.socket.send(CLUSTER + bytes(MAX_PAYLOAD_BYTES + 1))
    await stranger.event(zmq.EVENT_DISCONNECTED)
    await only_message_is_from(first, second)


@pytest.mark.asyncio
async def test_silent_connections_keep_no_member_out(members: Members) -> None:
    """Hundreds of connections that say nothing do not hinder a member, and are cut off soon."""
    first, second = await members.open(), await members.open()
    host, port = first.address.split(":")
    with ExitStack() as flood:
        silent = [
            flood.enter_context(socket.create_connection((host, int(port)))) for _ in range(300)
        ]
        first.meet(second)
        second.meet(first)
        assert first.id == await soon(second.ups.get())
        await only_message_is_from(first, second)
        for connection in silent:
            connection.settimeout(DEADLINE_S)
            await asyncio.to_thread(_read_to_end, connection)
    await until(lambda: first.transport.counters.refused_handshakes == len(silent))


def _read_to_end(connection: socket.socket) -> None:
    while connection.recv(1_024):
        pass


@pytest.mark.asyncio
async def test_a_former_peer_is_not_heard(members: Members) -> None:
    """A removed member's connection may still be open, but nothing comes through it."""
    first, second = await members.pair()
    third = await members.open()
    third.meet(first)
    first.meet(third)
    assert first.id == await soon(third.ups.get())
    assert second.send(first, b"am I still there?")
    await until(lambda: first.transport.counters.refused_senders == 1)
    await only_message_is_from(first, third)
    assert not first.send(second, b"nor spoken to")
    assert 1 == first.transport.counters.dropped_unknown


@pytest.mark.asyncio
async def test_a_peer_without_a_key_is_refused(members: Members) -> None:
    """A member id that is no key changes nothing."""
    first, second = await members.pair()
    with pytest.raises(IdentityError, match="not an Ed25519 public key"):
        first.transport.set_peers({bytes(32): NOWHERE})
    await only_message_is_from(first, second)


@pytest.mark.parametrize(
    ("mechanism", "credentials"),
    [
        (b"NULL", []),
        (b"PLAIN", [b"name", b"word"]),
        (b"CURVE", []),
        (b"CURVE", [bytes(32)]),
        (b"GSSAPI", [b"x"]),
    ],
)
def test_the_gate_admits_by_curve_key_alone(mechanism: bytes, credentials: list[bytes]) -> None:
    """Nothing but a member's CURVE key opens the gate, and every answer names its request."""
    gate = ZapGate()
    gate.admit_only([Identity.of(SigningKey.generate()).public_key])
    answer = gate.answer([b"1.0", b"7", b"", b"127.0.0.1", b"", mechanism, *credentials])
    assert (b"7", b"400", b"") == (answer.request_id, answer.status_code, answer.user_id)
