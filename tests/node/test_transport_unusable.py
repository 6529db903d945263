"""Peers that cannot be connected to, for a cause on this side: they stop nothing."""

from __future__ import annotations

import errno
from functools import partial
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
import zmq
from structlog.testing import capture_logs

from node.zmq_loop import SocketHub
from tests.node.transport_members import (
    NOWHERE,
    Member,
    Members,
    only_message_is_from,
    somebody,
    soon,
    until,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ODD_ADDRESSES = [
    "",
    "nonsense",
    ":7001",
    "peer:",
    "peer:x",
    "peer:65536",
    "peer:" + "9" * 5_000,
    "127.0.0.1:0",
    "[fe80::1%nowhere]:7001",
    "a..b:7001",
    f"{'x' * 64}:7001",
    "nu\0l:7001",
]


@pytest_asyncio.fixture
async def members() -> AsyncIterator[Members]:
    """Members of one test."""
    async with Members() as opened:
        yield opened


def scarce_sockets(monkeypatch: pytest.MonkeyPatch, *kinds: int) -> list[int]:
    """Refuse these sockets, in this order, as a process without descriptors does; what is left."""
    opened = SocketHub.socket
    left = list(kinds)

    def scarce(hub: SocketHub, kind: int) -> zmq.Socket[bytes]:
        if left and kind == left[0]:
            left.pop(0)
            raise zmq.ZMQError(errno.EMFILE)
        return opened(hub, kind)

    monkeypatch.setattr(SocketHub, "socket", scarce)
    return left


@pytest.mark.asyncio
@pytest.mark.parametrize("address", ODD_ADDRESSES)
async def test_no_address_stops_a_running_member(members: Members, address: str) -> None:
    """A peer whose address cannot be used is listed with the cause; the others are reached."""
    first, second = await members.open(), await members.open()
    odd = somebody()
    second.meet(first)
    first.transport.set_peers({odd: address, second.id: second.address})
    assert second.id == await soon(first.ups.get())
    await only_message_is_from(second, first)
    await until(lambda: odd in first.transport.unusable)
    assert [odd] == list(first.transport.unusable)
    assert first.transport.unusable[odd].startswith(f"peer {address} cannot be connected to: ")
    assert first.transport.counters.unusable > 0
    assert not first.send(Member(), b"to no peer")


@pytest.mark.asyncio
@pytest.mark.parametrize("address", ODD_ADDRESSES)
async def test_no_address_stops_a_start(members: Members, address: str) -> None:
    """A chain that holds such an address can still be started on."""
    second = await members.open()
    first, odd = Member(), somebody()
    first.transport.set_peers({odd: address, second.id: second.address})
    await first.transport.start()
    members.push_async_callback(first.transport.close)
    members.callback(first.nothing_failed)
    second.meet(first)
    assert second.id == await soon(first.ups.get())
    await until(lambda: [odd] == list(first.transport.unusable))


@pytest.mark.asyncio
@pytest.mark.parametrize("kinds", [[zmq.PUSH] * 6, [zmq.PAIR] * 4, [zmq.PUSH, zmq.PAIR, zmq.PAIR]])
async def test_want_of_descriptors_puts_a_new_peer_off(
    members: Members, monkeypatch: pytest.MonkeyPatch, kinds: list[int]
) -> None:
    """A link that cannot be opened at first is tried later, and is an alarm only until then."""
    first, second = await members.open(), await members.open()
    second.meet(first)
    left = scarce_sockets(monkeypatch, *kinds)
    with capture_logs() as logs:
        first.meet(second)
        cause = f"peer {second.address} cannot be connected to: Too many open files"
        assert {second.id: cause} == first.transport.unusable
        assert second.id == await soon(first.ups.get())
    assert [] == left
    assert {} == first.transport.unusable
    assert len(kinds) == first.transport.counters.unusable
    assert [("peer_unusable", second.address, "Too many open files")] == [
        (log["event"], log["address"], log["cause"]) for log in logs
    ]


@pytest.mark.asyncio
async def test_a_peer_that_is_merely_not_there_is_no_alarm(
    members: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once there are sockets again, a peer that is down is one like any other."""
    first, down = await members.open(), somebody()
    scarce_sockets(monkeypatch, zmq.PUSH, zmq.PUSH)
    first.transport.set_peers({down: NOWHERE})
    assert [down] == list(first.transport.unusable)
    await until(lambda: not first.transport.unusable)
    assert not first.transport.connected


@pytest.mark.asyncio
async def test_want_of_descriptors_stops_no_start(
    members: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a transport's own sockets are needed for a start; those to peers can wait."""
    second = await members.open()
    first = Member()
    first.meet(second)
    scarce_sockets(monkeypatch, zmq.PUSH, zmq.PUSH)
    await first.transport.start()
    members.push_async_callback(first.transport.close)
    second.meet(first)
    assert second.id == await soon(first.ups.get())


@pytest.mark.asyncio
async def test_a_peer_that_turns_unusable_again_is_logged_again(
    members: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time counts that a connected peer is lost for a cause on this side."""
    first, second = await members.pair()
    with capture_logs() as logs:
        for _ in range(2):
            left = scarce_sockets(monkeypatch, zmq.PUSH, zmq.PUSH)
            address = second.address
            await second.transport.close()
            await until(partial(list.__eq__, left, []))
            second = await members.open(identity=second.identity, bind=address)
            second.meet(first)
            assert second.id == await soon(first.ups.get())
    assert ["peer_unusable"] * 2 == [log["event"] for log in logs]
