"""Connections between members over real sockets: made, broken, and made again by themselves."""

from __future__ import annotations

import asyncio
import errno
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
import zmq
from nacl.signing import SigningKey

from node.identity import Identity
from node.lane import Lane
from node.zmq_loop import SocketHub
from tests.node.transport_members import (
    CLUSTER,
    DEADLINE_S,
    NOWHERE,
    Member,
    Members,
    Relay,
    only_message_is_from,
    soon,
    until,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


PROJECT = Path(__file__).parents[2]
CHILD = """
import asyncio, sys
from nacl.signing import SigningKey
from node.identity import Identity
from node.transport import Transport

async def main(seed, cluster, peer, address):
    loop = asyncio.get_running_loop()
    parent_gone = asyncio.Event()
    loop.add_reader(0, parent_gone.set)
    transport = Transport(
        identity=Identity.of(SigningKey(seed)),
        cluster_id=cluster,
        bind="127.0.0.1:0",
        on_message=lambda member, payload: None,
        on_disconnect=lambda member: None,
        on_failure=loop.call_exception_handler,
    )
    transport.set_peers({peer: address})
    await transport.start()
    print(transport.address, flush=True)
    await parent_gone.wait()
    await transport.close()

asyncio.run(main(*map(bytes.fromhex, sys.argv[1:4]), sys.argv[4]))
"""


@pytest_asyncio.fixture
async def members() -> AsyncIterator[Members]:
    """Members of one test."""
    async with Members() as opened:
        yield opened


@pytest.mark.asyncio
async def test_a_peer_that_moved_is_found(members: Members) -> None:
    """A new address replaces the old one; leaving the old one is no disconnection."""
    first, second = await members.pair()
    moved = await members.open(identity=second.identity)
    moved.meet(first)
    first.meet(moved)
    assert second.id == await soon(first.ups.get())
    assert first.send(moved, b"hello again")
    assert (first.id, b"hello again") == await soon(moved.inbox.get())
    assert first.downs.empty()
    assert second.inbox.empty()


@pytest.mark.asyncio
async def test_a_peer_that_restarts_is_found_again(members: Members) -> None:
    """Both directions work again by themselves once a peer is back at its address."""
    first, second = await members.pair()
    address = second.address
    await second.transport.close()
    assert second.id == await soon(first.downs.get())
    back = await members.open(identity=second.identity, bind=address)
    back.meet(first)
    assert second.id == await soon(first.ups.get())
    assert first.id == await soon(back.ups.get())
    assert first.send(back, b"welcome", Lane.BULK)
    assert (first.id, b"welcome") == await soon(back.inbox.get())
    await only_message_is_from(first, back)
    assert first.downs.empty()


@pytest.mark.asyncio
async def test_a_member_admitted_late_gets_in(members: Members) -> None:
    """A member that was refused before it was one tries again: libzmq itself would not."""
    first, second = await members.open(), await members.open()
    second.meet(first)
    await until(lambda: first.transport.counters.refused_keys > 1)
    first.meet(second)
    assert first.id == await soon(second.ups.get())
    assert second.downs.empty()
    await only_message_is_from(first, second)


@pytest.mark.asyncio
async def test_a_foreign_server_at_a_peers_address_is_survived(members: Members) -> None:
    """Something else that answers at the address does not end the search for the peer."""
    first = await members.open()
    answered = asyncio.Event()

    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(64))
        await writer.drain()
        answered.set()
        writer.close()
        await writer.wait_closed()

    second = Member()
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        first.transport.set_peers({second.id: f"{host}:{port}"})
        await soon(answered.wait())
    second = await members.open(identity=second.identity, bind=f"{host}:{port}")
    second.meet(first)
    assert second.id == await soon(first.ups.get())


@pytest.mark.asyncio
async def test_a_killed_process_is_noticed(members: Members) -> None:
    """The kernel closes a dead process's connections, and we hear it at once."""
    first = await members.open()
    child = Identity.of(SigningKey.generate())
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        CHILD,
        bytes(child.signing_key).hex(),
        CLUSTER.hex(),
        first.id.hex(),
        first.address,
        cwd=PROJECT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        address = (await soon(process.stdout.readline())).decode().strip()
        first.transport.set_peers({child.public_key: address})
        assert child.public_key == await soon(first.ups.get())
        process.send_signal(signal.SIGKILL)
        assert child.public_key == await soon(first.downs.get())
        assert frozenset() == first.transport.connected
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.mark.asyncio
async def test_lanes_break_each_for_itself(members: Members) -> None:
    """A broken bulk lane heals by itself and is no disconnection; a broken control lane is one."""
    first, second = await members.open(), await members.open()
    second.meet(first)
    async with Relay(second.address) as network:
        first.transport.set_peers({second.id: network.address})
        assert second.id == await soon(first.ups.get())
        assert first.send(second, bytes(100_000), Lane.BULK)
        await soon(second.inbox.get())
        control, bulk = sorted(network.connections, key=lambda each: each.carried_bytes)
        bulk.cut()
        assert second.id == await soon(first.ups.get())
        assert first.downs.empty()
        control.cut()
        assert second.id == await soon(first.downs.get())
        assert second.id == await soon(first.ups.get())
        await only_message_is_from(second, first)


@pytest.mark.asyncio
async def test_a_peer_that_falls_silent_is_given_up(members: Members) -> None:
    """Where no connection is ever closed, as after a power cut, the pings go unanswered."""
    first, second = await members.open(), await members.open()
    async with Relay(second.address) as network:
        second.meet(first)
        first.transport.set_peers({second.id: network.address})
        assert second.id == await soon(first.ups.get())
        network.fall_silent()
        assert second.id == await soon(first.downs.get())


@pytest.mark.asyncio
async def test_closing_does_not_wait_for_a_silent_peer(members: Members) -> None:
    """What is queued for a peer that takes nothing does not hold a node that stops."""
    first, second = await members.open(), await members.open()
    async with Relay(second.address) as network:
        second.meet(first)
        first.transport.set_peers({second.id: network.address})
        assert second.id == await soon(first.ups.get())
        network.fall_silent()
        while first.send(second, bytes(1_000_000), Lane.BULK):
            pass
        await asyncio.wait_for(first.transport.close(), DEADLINE_S / 4)


@pytest.mark.asyncio
async def test_our_own_closing_is_no_disconnection(members: Members) -> None:
    """The side that closes hears nothing; the other one does."""
    first, second = await members.pair()
    await first.transport.close()
    assert first.id == await soon(second.downs.get())
    assert first.downs.empty()
    assert not first.send(second, b"too late")


@pytest.mark.asyncio
async def test_nothing_stale_reaches_a_peer_that_returns(members: Members) -> None:
    """What is sent to a dead peer is dropped and counted, not kept for its return."""
    first, second = await members.pair()
    address = second.address
    await second.transport.close()
    assert second.id == await soon(first.downs.get())
    await until(lambda: first.transport.counters.disconnects == 2)
    for lane in Lane:
        assert not any(first.send(second, b"stale", lane) for _ in range(1_000))
    assert 2_000 == first.transport.counters.dropped_disconnected
    back = await members.open(identity=second.identity, bind=address)
    back.meet(first)
    assert second.id == await soon(first.ups.get())
    for lane in Lane:
        assert first.send(back, b"fresh", lane)
        assert (first.id, b"fresh") == await soon(back.inbox.get())


@pytest.mark.asyncio
async def test_nothing_waits_for_a_peer_that_was_never_there(members: Members) -> None:
    """Before the first connection, too, what is sent is dropped and counted."""
    first, second = await members.open(), Member()
    first.transport.set_peers({second.id: NOWHERE})
    assert not any(first.send(second, b"early", lane) for lane in Lane)
    assert 2 == first.transport.counters.dropped_disconnected


@pytest.mark.asyncio
async def test_running_out_of_descriptors_puts_a_link_off(
    members: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link that cannot be opened again for want of descriptors is tried later."""
    first, second = await members.pair()
    address = second.address
    opened = SocketHub.socket
    refusals = 4

    def scarce(hub: SocketHub, kind: int) -> zmq.Socket[bytes]:
        nonlocal refusals
        if kind == zmq.PUSH and refusals:
            refusals -= 1
            raise zmq.ZMQError(errno.EMFILE)
        return opened(hub, kind)

    await second.transport.close()
    monkeypatch.setattr(SocketHub, "socket", scarce)
    await until(lambda: refusals == 0)
    back = await members.open(identity=second.identity, bind=address)
    back.meet(first)
    assert second.id == await soon(first.ups.get())
    assert first.failures.empty()
