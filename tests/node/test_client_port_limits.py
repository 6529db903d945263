"""Hostile and broken clients against the port: each limit holds, and costs nobody else anything.

Raw sockets against a port in front of a node held in memory; limits are made small where time or
memory would be large.
"""

from __future__ import annotations

import asyncio
import itertools
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest

from consensus.block import encode_transaction
from node.outcomes import Wait
from node.port_limits import LargeRoom, source_of
from node.port_messages import MAX_MESSAGE_BYTES, LookUp, Submit, encode_requests
from node.uuid7 import new_transaction_id
from tests.node.curve_client import greeting
from tests.node.port_stage import PortStage, RawClient, port_stage

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

pytestmark = pytest.mark.asyncio


def with_limits(**limits: Any) -> AbstractAsyncContextManager[PortStage]:
    """A port with the usual limits but these, that looks at its times often."""
    return port_stage(limits=PortStage.limits(**{"tick_s": 0.01, "stop_s": 0.2, **limits}))


def submit(number: int, count: int = 1, wait: Wait = Wait.COMMITTED) -> Submit:
    """A request of new transactions."""
    raws = [
        encode_transaction(
            transaction_id=new_transaction_id(), user_id="alice", kind="deposit", payload=1
        )
        for _ in range(count)
    ]
    return Submit(number, wait, 60_000, tuple(raws))


def look_up(number: int) -> LookUp:
    """A request that is answered at once."""
    return LookUp(number, bytes(16), is_linearizable=False, timeout_ms=1_000)


# Connections


@pytest.mark.parametrize("limits", [{"connections": 2}, {"connections_per_source": 2}])
async def test_connections_are_counted_and_turned_away(limits: dict[str, int]) -> None:
    """In all and from one address; where one goes there is room again."""
    async with with_limits(**limits) as stage, AsyncExitStack() as stack:
        first, second = [await stack.enter_async_context(RawClient(stage)) for _ in range(2)]
        await first.shake_hands()
        await second.shake_hands()
        for _ in range(3):
            async with RawClient(stage) as third:
                assert b"" == await third.ended()
        assert 3 == stage.port.metrics["client_connections_turned_away_total"]
        assert await second.is_served()
        first.writer.transport.abort()
        await stage.until(lambda: stage.port.metrics["client_connections"] == 1)
        async with RawClient(stage) as third:
            await third.shake_hands()


async def test_strangers_keep_nobody_out() -> None:
    """The oldest of those in their handshake gives way; whoever is through it never does."""
    async with with_limits(connections=3) as stage, AsyncExitStack() as stack:
        known = await stack.enter_async_context(RawClient(stage))
        await known.shake_hands()
        silent = [await stack.enter_async_context(RawClient(stage)) for _ in range(2)]
        await stage.until(lambda: stage.port.metrics["client_connections"] == 3)
        late = await stack.enter_async_context(RawClient(stage))
        await late.shake_hands()
        await silent[0].ended()
        assert 1 == stage.port.metrics["client_dropped_crowded_out_total"]
        assert await known.is_served()
        assert await late.is_served()


async def test_connections_leave_descriptors_to_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of what the process may open."""
    monkeypatch.setattr("resource.getrlimit", lambda _: (3, 3))
    async with with_limits() as stage, RawClient(stage) as first:
        await first.shake_hands()
        async with RawClient(stage) as second:
            assert b"" == await second.ended()


async def test_handshakes_have_turns_as_well() -> None:
    """Nothing is computed for a client where its bytes arrive; all are served in the end."""
    async with with_limits(turn_s=0.0) as stage, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(RawClient(stage)) for _ in range(20)]
        await asyncio.gather(*(client.shake_hands() for client in clients))
        late = await stack.enter_async_context(RawClient(stage))
        await stage.until(lambda: stage.port.metrics["client_connections"] == 21)
        connection = list(stage.port._connections)[-1]
        connection.data_received(greeting() + late.curve.hello())
        assert (0, False) == (connection._session.frames_taken, stage.port._awake == {})
        assert all([await client.is_served() for client in clients])


async def test_a_flood_of_frames_has_turns_as_well() -> None:
    """One read can hold thousands; they are decrypted some at a time, and none more is read."""
    async with with_limits() as stage, RawClient(stage) as client:
        await client.shake_hands()
        assert await client.is_served()
        (connection,) = stage.port._connections
        before = connection._session.frames_taken
        pong = b"\x04PONG"
        connection.data_received(
            b"".join(client.curve.message(pong, inner=2) for _ in range(5_000))
        )
        assert (before, True) == (connection._session.frames_taken, connection._is_paused)
        assert connection.work()
        assert 0 < connection._session.frames_taken - before < 500
        await stage.heard_frames(before + 5_000)
        assert await client.is_served()


async def test_too_much_before_a_handshake_is_dropped() -> None:
    """Only so much is kept until the port has a turn for it."""
    async with with_limits() as stage, RawClient(stage) as client:
        client.send(greeting() + bytes(5_000))
        await client.ended()
        assert 1 == stage.port.dropped["too_large"]


async def test_what_counts_as_one_source() -> None:
    """An IPv4 address, mapped or not; of IPv6 a network, since each has 2^64 addresses."""
    assert source_of("192.0.2.1") == source_of("::ffff:192.0.2.1")
    assert source_of("2001:db8::1") == source_of("2001:db8::2:3")
    assert 4 == len({source_of(one) for one in ("192.0.2.1", "192.0.2.2", "::1", "2001:db8::1")})


# Time


@pytest.mark.parametrize("sent", [b"", b"\xff", greeting()[:63], greeting(), greeting() + b"\x04"])
async def test_who_does_not_say_who_it_is_is_dropped(sent: bytes) -> None:
    """However far it came, within the time for a handshake."""
    async with with_limits(handshake_s=0.05) as stage, RawClient(stage) as client:
        client.send(sent)
        await client.ended()
        assert 1 == stage.port.dropped["handshake_time"]


async def test_bytes_one_by_one_win_no_time() -> None:
    """The time runs from the start, not from the last byte."""
    async with with_limits(handshake_s=0.1) as stage, RawClient(stage) as client:
        ended = asyncio.create_task(client.ended())
        hello = greeting() + client.curve.hello()
        while not ended.done():
            client.send(hello[:1])
            hello = hello[1:]
            await asyncio.wait({ended}, timeout=0.01)
        assert 1 == stage.port.dropped["handshake_time"]


async def test_a_message_that_never_ends_is_dropped() -> None:
    """Although the client goes on sending: the whole of it has its time."""
    async with with_limits(arrival_s=0.1) as stage, RawClient(stage) as client:
        await client.shake_hands()
        ended = asyncio.create_task(client.ended())
        client.send(b"\x02" + (1_000_000).to_bytes(8, "big"))
        for count in itertools.count():
            client.send(b"%d" % count)
            if (await asyncio.wait({ended}, timeout=0.01))[0]:
                break
        assert 1 == stage.port.dropped["arrival_time"]


async def test_a_message_may_begin_long_after_the_last() -> None:
    """Its time runs from its own first bytes."""
    async with with_limits(arrival_s=0.4) as stage, RawClient(stage) as client:
        await client.shake_hands()
        loop = asyncio.get_running_loop()
        message = client.curve.message(encode_requests([look_up(1)]))
        begins, ends = loop.time() + 0.5, loop.time() + 0.6
        await stage.until(lambda: loop.time() > begins)
        client.send(message[:20])
        await stage.until(lambda: loop.time() > ends)
        client.send(message[20:])
        assert {1} == set(await client.answers_to(1))


@pytest.mark.parametrize("minor", [0, 1])
async def test_a_silent_client_is_dropped(minor: int) -> None:
    """One that knows PING is asked first; one of ZMTP 3.0 has more time, and is not asked."""
    limits = {"ping_after_s": 0.02, "silent_s": 0.1, "unpinged_silent_s": 0.2}
    async with with_limits(**limits) as stage, RawClient(stage) as client:
        client.send(greeting(minor=minor))
        await client.reader.readexactly(64)
        client.send(client.curve.hello())
        client.curve.take_welcome(await client.frame())
        client.send(client.curve.initiate())
        client.curve.take_ready(await client.frame())
        asked = client.curve.opened(await client.ended())
        assert 1 == stage.port.dropped["silent"]
        assert {(2, b"\x04PING\0\0")} == set(asked) if minor else not asked


async def test_a_client_is_given_up_when_it_asked_to_be() -> None:
    """RFC 37: after the TTL of its last PING."""
    async with with_limits() as stage, RawClient(stage) as client:
        await client.shake_hands()
        client.send(client.curve.message(b"\x04PING\0\x01", inner=2))
        await client.ended()
        assert 1 == stage.port.dropped["silent"]


# Memory


async def test_a_client_with_many_unanswered_requests_is_not_read_from() -> None:
    """The node hears of so many and no more, and all are answered in the end."""
    async with with_limits(unanswered_requests=8) as stage, RawClient(stage) as client:
        stage.node.gate = asyncio.Event()
        await client.shake_hands()
        for number in range(2_000):
            client.request(submit(number))
        await stage.until(lambda: len(stage.node.calls) > 0)
        (connection,) = stage.port._connections
        await stage.until(lambda: connection._is_paused)
        assert sum(len(call.transactions) for call in stage.node.calls) <= 256
        stage.node.gate.set()
        assert set(range(2_000)) == set(await client.answers_to(2_000))
        assert 2_000 == stage.node.recorded


async def test_a_client_with_many_unanswered_transactions_is_not_read_from() -> None:
    """Batches count by what is in them."""
    async with with_limits(unanswered_transactions=1_000) as stage, RawClient(stage) as client:
        stage.node.gate = asyncio.Event()
        await client.shake_hands()
        client.request(*(submit(number, 500) for number in range(20)))
        await stage.until(lambda: bool(stage.node.calls))
        await stage.at_rest()
        (connection,) = stage.port._connections
        assert (2, True) == (len(stage.node.calls), connection._is_paused)
        stage.node.gate.set()
        assert 20 == len(await client.answers_to(20))
        assert 10_000 == stage.node.recorded


async def test_requests_in_one_message_count_one_by_one() -> None:
    """Those beyond the limit wait where they are."""
    async with with_limits(unanswered_requests=8) as stage, RawClient(stage) as client:
        stage.node.gate = asyncio.Event()
        await client.shake_hands()
        client.request(*(submit(number, 2) for number in range(100)))
        await stage.until(lambda: bool(stage.node.calls))
        await stage.at_rest()
        assert 8 == len(stage.node.calls)
        stage.node.gate.set()
        assert 100 == len(await client.answers_to(100))


async def test_a_client_that_reads_no_answers_is_dropped() -> None:
    """First it is not read from, then its time is up; what it asked for is bounded by that."""
    async with with_limits(unread_s=0.2) as stage, RawClient(stage) as client:
        await client.shake_hands()
        client.read_nothing()
        message = encode_requests([look_up(number) for number in range(1_024)])
        (connection,) = stage.port._connections
        while connection._unread_since is None:
            await client.push(client.curve.message(message))
        heard = stage.port.requests
        while not stage.port.dropped["unread"]:
            await client.push(client.curve.message(message))
        assert (1, heard) == (stage.port.dropped["unread"], stage.port.requests)


async def test_answers_for_those_who_do_not_read_are_bounded_in_all() -> None:
    """Who reads least is dropped first."""
    async with with_limits(unsent_total_bytes=1) as stage, RawClient(stage) as client:
        await client.shake_hands()
        client.read_nothing()
        message = encode_requests([look_up(number) for number in range(1_024)])
        while not stage.port.dropped["unread"]:
            await client.push(client.curve.message(message))
        assert 1 == stage.port.dropped["unread"]


async def test_large_messages_share_a_room_and_come_in_turn() -> None:
    """Who finds none is not read from; it has its turn when another is done, or is gone."""
    limits = {"large_total_bytes": MAX_MESSAGE_BYTES + (65 << 10)}
    head = b"\x02" + MAX_MESSAGE_BYTES.to_bytes(8, "big")
    async with with_limits(**limits) as stage, RawClient(stage) as hog, RawClient(stage) as honest:
        await hog.shake_hands()
        await honest.shake_hands()
        hog.send(head + bytes(1_000))
        await stage.until(lambda: stage.port.room.used_bytes > MAX_MESSAGE_BYTES)
        honest.request(submit(1, 10_000))
        await stage.until(lambda: len(stage.port.room._waiting) == 1)
        small = await RawClient(stage).__aenter__()
        await small.shake_hands()
        small.request(submit(1))
        assert {1} == set(await small.answers_to(1))
        small.writer.transport.abort()
        assert 1 == stage.node.recorded
        hog.writer.transport.abort()
        assert {1} == set(await honest.answers_to(1))
        assert 10_001 == stage.node.recorded


async def test_room_is_given_in_the_order_of_asking() -> None:
    """Nobody overtakes; who needs less than it holds gives back; who leaves needs nothing."""
    room, given = LargeRoom(100), []
    assert room.hold("a", 60, lambda: given.append("a"))
    assert not room.hold("b", 50, lambda: given.append("b"))
    assert not room.hold("c", 10, lambda: given.append("c"))
    assert (60, []) == (room.used_bytes, given)
    assert room.hold("a", 50, lambda: given.append("a"))
    assert (100, ["b"]) == (room.used_bytes, given)
    room.leave("a")
    assert (60, ["b", "c"]) == (room.used_bytes, given)
    room.leave("b")
    room.leave("c")
    assert 0 == room.used_bytes


async def test_who_waits_for_room_and_leaves_is_forgotten() -> None:
    """Its place goes to the next."""
    room, given = LargeRoom(100), []
    room.hold("a", 100, lambda: given.append("a"))
    room.hold("b", 50, lambda: given.append("b"))
    room.hold("c", 50, lambda: given.append("c"))
    room.leave("b")
    room.leave("a")
    assert (50, ["c"]) == (room.used_bytes, given)


async def test_a_message_beyond_the_limit_is_dropped_by_its_header() -> None:
    """No room is asked for it."""
    async with with_limits() as stage, RawClient(stage) as client:
        await client.shake_hands()
        client.send(b"\x02" + (MAX_MESSAGE_BYTES + 34).to_bytes(8, "big"))
        await client.ended()
        assert 1 == stage.port.dropped["too_large"]


# Lies


async def test_forged_and_replayed_messages_cost_the_liar_its_connection_alone() -> None:
    """They are counted; the others are served."""
    async with with_limits() as stage, RawClient(stage) as other:
        await other.shake_hands()
        for reason, count in (("forged", 0), ("replayed", 1), ("multipart", 0)):
            async with RawClient(stage) as liar:
                await liar.shake_hands()
                message = liar.curve.message(encode_requests([look_up(1)]))
                if reason == "multipart":
                    message = b"\x01" + message[1:]
                elif reason == "forged":
                    message = message[:-1] + bytes((message[-1] ^ 1,))
                liar.send(message * (count + 1))
                await liar.ended()
                assert 1 == stage.port.dropped[reason]
        assert await other.is_served()
        assert 1 == stage.port.metrics["client_connections"]


async def test_an_end_of_stream_in_the_middle_is_no_error() -> None:
    """Wherever it comes."""
    async with with_limits() as stage:
        for cut in (0, 1, 64, 100, 266):
            async with RawClient(stage) as client:
                client.send((greeting() + client.curve.hello())[:cut])
                client.writer.write_eof()
                await client.ended()
        await stage.until(lambda: stage.port.metrics["client_connections"] == 0)


async def test_a_flood_of_pings_that_nobody_reads_is_bounded() -> None:
    """Each costs an answer; once those pile up nothing more is read."""
    async with with_limits(unread_s=0.2) as stage, RawClient(stage) as client:
        await client.shake_hands()
        client.read_nothing()
        while not stage.port.dropped["unread"]:
            pings = [client.curve.message(b"\x04PING\0\0" + bytes(16), inner=2) for _ in range(500)]
            await client.push(b"".join(pings))
        assert 1 == stage.port.dropped["unread"]
