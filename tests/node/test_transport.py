"""The peer transport over real sockets: delivery, bounds, faults of our own, and closing."""

from __future__ import annotations

import asyncio
import gc
import os
from functools import partial
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from nacl.signing import SigningKey

from node.identity import Identity
from node.lane import Lane
from node.transport import MAX_PAYLOAD_BYTES, TransportError
from tests.node.transport_members import (
    NOWHERE,
    Member,
    Members,
    open_descriptors,
    soon,
    turn,
    until,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from consensus.messages import MemberId


@pytest_asyncio.fixture
async def members() -> AsyncIterator[Members]:
    """Members of one test."""
    async with Members() as opened:
        yield opened


@pytest.mark.asyncio
@pytest.mark.parametrize("lane", Lane)
async def test_messages_arrive_both_ways(members: Members, lane: Lane) -> None:
    """Each side hears the other on each lane, and by whom the message was sent."""
    first, second = await members.pair()
    assert first.send(second, b"ping", lane)
    assert (first.id, b"ping") == await soon(second.inbox.get())
    assert second.send(first, b"pong", lane)
    assert (second.id, b"pong") == await soon(first.inbox.get())


@pytest.mark.asyncio
@pytest.mark.parametrize("size", [0, 1, 33, 8_192, 65_536, MAX_PAYLOAD_BYTES])
async def test_payloads_arrive_whole(members: Members, size: int) -> None:
    """Every size up to the limit arrives unchanged."""
    first, second = await members.pair()
    payload = os.urandom(size)
    assert first.send(second, payload, Lane.BULK)
    assert (first.id, payload) == await soon(second.inbox.get())
    assert size == first.transport.counters.sent_bytes
    assert size == second.transport.counters.received_bytes


@pytest.mark.asyncio
async def test_a_payload_over_the_limit_is_never_sent(members: Members) -> None:
    """The peer would cut the connection: to send such a message is a fault of our own."""
    first, second = await members.pair()
    with pytest.raises(AssertionError, match="cut the connection"):
        first.send(second, bytes(MAX_PAYLOAD_BYTES + 1), Lane.BULK)


@pytest.mark.asyncio
async def test_order_holds_within_a_lane(members: Members) -> None:
    """What is sent on one lane arrives in order, also where a drain ends early."""
    first, second = await members.pair()
    expected = [number.to_bytes(2, "big") for number in range(1_000)]
    heard: dict[bytes, list[bytes]] = {b"c": [], b"b": []}
    for number in expected:
        await until(partial(first.send, second, b"c" + number, Lane.CONTROL))
        await until(partial(first.send, second, b"b" + number, Lane.BULK))
    while sum(map(len, heard.values())) < 2 * len(expected):
        _, payload = await soon(second.inbox.get())
        heard[payload[:1]].append(payload[1:])
    assert {b"c": expected, b"b": expected} == heard


@pytest.mark.asyncio
async def test_three_members_know_who_speaks(members: Members) -> None:
    """A message carries the id of the member whose key opened the connection."""
    all_three = [await members.open() for _ in range(3)]
    for member in all_three:
        member.meet(*(other for other in all_three if other is not member))
    for member in all_three:
        assert {await soon(member.ups.get()), await soon(member.ups.get())} == {
            other.id for other in all_three if other is not member
        }
    receiver, *senders = all_three
    for sender in senders:
        assert sender.send(receiver, sender.id)
    for _ in senders:
        speaker, said = await soon(receiver.inbox.get())
        assert speaker == said
    assert {sender.id for sender in senders} == receiver.transport.connected


@pytest.mark.asyncio
async def test_a_new_connection_takes_messages_at_once(members: Members) -> None:
    """Whoever hears of a connection can send on it there and then, having tried before or not."""
    first, second = await members.open(), await members.open()
    second.meet(first)
    taken: list[bool] = []
    first.transport._on_connect = lambda _: taken.extend(
        first.send(second, b"now", lane) for lane in Lane
    )
    first.meet(second)

    while not taken:
        for lane in Lane:
            first.send(second, b"yet?", lane)
        await turn()
    assert [True, True] == taken


@pytest.mark.asyncio
async def test_a_peer_that_does_not_read_costs_bounded_memory(members: Members) -> None:
    """However long it goes on, no more is taken than the queues of both sides hold."""
    first, second = await members.pair()
    loop = asyncio.get_running_loop()
    body, taken = bytes(256 * 1_024), 0
    last_taken_s = loop.time()
    while loop.time() < last_taken_s + 0.1:  # long enough for what was taken to move on
        if first.send(second, body, Lane.BULK):
            taken += 1
            last_taken_s = loop.time()
            assert taken < 400, "no bound"


@pytest.mark.asyncio
async def test_a_full_queue_drops_and_never_waits(members: Members) -> None:
    """A peer that does not read costs bounded memory; what was taken arrives, in order."""
    first, second = await members.pair()
    taken = 0
    body = bytes(256 * 1_024)
    while first.send(second, taken.to_bytes(4, "big") + body, Lane.BULK):
        taken += 1
        assert taken < 1_000, "no bound"
    assert 1 == first.transport.counters.dropped_full
    assert first.send(second, b"urgent"), "the other lane is free"
    heard = []
    for _ in range(taken + 1):
        _, payload = await soon(second.inbox.get())
        heard.append(payload[:4])
    heard.remove(b"urge")
    assert [number.to_bytes(4, "big") for number in range(taken)] == heard
    assert taken + 1 == first.transport.counters.sent


@pytest.mark.asyncio
async def test_a_fault_in_a_callback_is_handed_over(members: Members) -> None:
    """An exception of our own goes to `on_failure`, once, and nothing is delivered after it."""
    first, second = await members.pair()
    heard: list[bytes] = []

    def faulty(_member: MemberId, payload: bytes) -> None:
        heard.append(payload)
        raise ZeroDivisionError

    first.transport._on_message = faulty
    for _ in range(3):
        assert second.send(first, b"once")
    assert isinstance(await soon(first.failures.get()), ZeroDivisionError)
    assert second.send(first, b"twice")
    await first.transport.close()
    assert first.id == await soon(second.downs.get())
    assert [b"once"] == heard
    assert first.failures.empty()


@pytest.mark.asyncio
async def test_a_fault_in_a_disconnect_callback_is_handed_over(members: Members) -> None:
    """Events are guarded as messages are."""
    first, second = await members.pair()

    def faulty(_member: MemberId) -> None:
        raise ZeroDivisionError

    first.transport._on_disconnect = faulty
    await second.transport.close()
    assert isinstance(await soon(first.failures.get()), ZeroDivisionError)


@pytest.mark.asyncio
async def test_an_address_in_use_is_one_clear_error(members: Members) -> None:
    """The error names the address and the cause, and nothing stays open."""
    first = await members.open()
    second = Member(bind=first.address)
    before = open_descriptors()
    with pytest.raises(TransportError) as raised:
        await second.transport.start()
    assert f"cannot listen for peers on {first.address}: Address already in use" == str(
        raised.value
    )
    assert before == open_descriptors()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "bind", ["", "127.0.0.1", ":7001", "127.0.0.1:", "127.0.0.1:x", "h:65536", "[]:1", "h:\u0661"]
)
async def test_a_bind_address_that_makes_no_sense_is_one_clear_error(bind: str) -> None:
    """Only host:port is an address."""
    with pytest.raises(TransportError, match="expected host:port"):
        await Member(bind=bind).transport.start()


@pytest.mark.asyncio
async def test_a_host_name_is_looked_up_for_listening(members: Members) -> None:
    """A member's address may name a host: libzmq itself listens on numbers only."""
    host, _, _ = (await members.open(bind="localhost:0")).address.rpartition(":")
    assert host in {"127.0.0.1", "[::1]"}


@pytest.mark.asyncio
async def test_closing_leaves_nothing_open(members: Members) -> None:
    """Whatever the links were doing, every descriptor is given back."""
    before = open_descriptors()
    async with Members() as brief:
        first, second = await brief.pair()
        assert first.send(second, bytes(1_000_000), Lane.BULK)
        nobody = Identity.of(SigningKey.generate()).public_key
        first.transport.set_peers({second.id: second.address, nobody: NOWHERE})
        third = await brief.open()
        third.meet(first)
        await until(lambda: first.transport.counters.refused_keys > 0)
    gc.collect()
    assert before == open_descriptors()


@pytest.mark.asyncio
async def test_closing_twice_is_harmless(members: Members) -> None:
    """A shutdown that is begun from two sides ends once."""
    first, _second = await members.pair()
    await asyncio.gather(first.transport.close(), first.transport.close())
