"""Peers behind names, over real sockets and with a resolver that answers and hangs as told."""

from __future__ import annotations

import asyncio
import socket
import threading
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from node.lane import Lane
from node.route import look_up
from tests.node.transport_members import (
    NOWHERE,
    Members,
    Names,
    Relay,
    only_message_is_from,
    open_descriptors,
    somebody,
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
def names() -> Iterator[Names]:
    """A resolver that knows nothing yet."""
    resolver = Names()
    yield resolver
    resolver.close()


@pytest.mark.asyncio
async def test_a_name_that_appears_late_is_found(members: Members, names: Names) -> None:
    """A name that nobody knows is an alarm, logged once and asked for until somebody knows it."""
    first, second = await members.open(look_up=names), await members.open()
    second.meet(first)
    with capture_logs() as logs:
        first.transport.set_peers({second.id: "late.test:7001"})
        await until(lambda: first.transport.counters.unusable == 3)
        assert {
            second.id: "peer late.test:7001 cannot be connected to: no such name"
        } == first.transport.unusable
        names.answers["late.test"] = (NOWHERE,)
        await until(lambda: not first.transport.unusable)
        names.answers["late.test"] = (second.address,)
        assert second.id == await soon(first.ups.get())
    assert {} == first.transport.unusable
    assert 100 == first.transport._peers[second.id].route._delay_ms, "the next search starts soon"
    assert ["peer_unusable"] == [log["event"] for log in logs]


@pytest.mark.asyncio
async def test_want_of_threads_puts_a_look_up_off(
    members: Members, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that cannot be had makes a peer unusable for a while, and nothing else."""
    first, second = await members.open(look_up=names), await members.open()
    names.answers["peer.test"] = (second.address,)
    second.meet(first)
    with monkeypatch.context() as scarce:

        def refuse(_thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        scarce.setattr(threading.Thread, "start", refuse)
        first.transport.set_peers({second.id: "peer.test:7001"})
        await until(lambda: first.transport.counters.unusable > 0)
    assert {
        second.id: "peer peer.test:7001 cannot be connected to: can't start new thread"
    } == first.transport.unusable
    assert second.id == await soon(first.ups.get())


@pytest.mark.asyncio
async def test_numbers_are_not_looked_up(members: Members, names: Names) -> None:
    """An address of numbers, of either family, takes no detour: the socket is there at once."""
    first = await members.open(look_up=names)
    for host in ("127.0.0.1", "[::1]"):
        second = await members.open(bind=f"{host}:0")
        second.meet(first)
        first.meet(second)
        assert all(link._push for link in first.transport._peers[second.id].links.values())
        assert second.id == await soon(first.ups.get())
    assert [] == names.asked


@pytest.mark.asyncio
@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
async def test_a_peer_behind_a_name_is_reached(members: Members, names: Names, host: str) -> None:
    """What the resolver answers, of either family, is connected to; each peer is asked for once."""
    first, second = await members.open(look_up=names), await members.open(bind=f"{host}:0")
    names.answers["peer.test"] = (second.address,)
    second.meet(first)
    first.transport.set_peers({second.id: "peer.test:7001"})
    assert second.id == await soon(first.ups.get())
    for lane in Lane:
        assert first.send(second, b"hello", lane)
        assert (first.id, b"hello") == await soon(second.inbox.get())
    assert 1 == names.times_asked("peer.test")


@pytest.mark.asyncio
async def test_the_systems_resolver_is_asked(members: Members) -> None:
    """Where a test brings no resolver of its own, the system's answers."""
    first, second = await members.open(), await members.open()
    second.meet(first)
    port = second.address.rpartition(":")[2]
    first.transport.set_peers({second.id: f"localhost:{port}"})
    assert second.id == await soon(first.ups.get())


def test_the_systems_answer_names_each_endpoint_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Endpoints come in the resolver's order, IPv6 in brackets."""
    found = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fd00::1", 7001, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 7001)),
        (socket.AF_INET, socket.SOCK_STREAM, 132, "", ("192.0.2.1", 7001)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    assert ("[fd00::1]:7001", "192.0.2.1:7001") == look_up("peer.test", 7001)


@pytest.mark.asyncio
async def test_names_that_hang_hold_nobody(members: Members, names: Names) -> None:
    """However many look-ups hang, other peers are reached, by number and by name."""
    first = await members.open(look_up=names)
    second, third = await members.open(), await members.open()
    second.meet(first)
    third.meet(first)
    hanging = [f"hanging{number}.test" for number in range(20)]
    names.hold(*hanging)
    names.answers["peer.test"] = (third.address,)
    first.transport.set_peers(
        {somebody(): f"{name}:7001" for name in hanging}
        | {second.id: second.address, third.id: "peer.test:7001"}
    )
    assert {second.id, third.id} == {await soon(first.ups.get()), await soon(first.ups.get())}
    await until(lambda: len(names.asked) == len(hanging) + 1)
    await only_message_is_from(second, first)


@pytest.mark.asyncio
async def test_look_ups_that_hang_are_bounded(members: Members, names: Names) -> None:
    """Look-ups given up go on in their threads; too many of them put further ones off."""
    first = await members.open(look_up=names)
    second = await members.open()
    second.meet(first)
    hanging = [f"hanging{number}.test" for number in range(32)]
    names.hold(*hanging)
    names.answers["peer.test"] = (second.address,)
    for name in hanging:
        first.transport.set_peers({somebody(): f"{name}:7001"})
    first.transport.set_peers({second.id: "peer.test:7001"})
    cause = "peer peer.test:7001 cannot be connected to: too many names are being looked up"
    await until(lambda: {second.id: cause} == first.transport.unusable)
    names.release()
    assert second.id == await soon(first.ups.get())


@pytest.mark.asyncio
async def test_endpoints_are_tried_in_turn(members: Members, names: Names) -> None:
    """Nobody at the first, somebody else at the next ones: the peer at the last is found."""
    first, second, other = [await members.open(look_up=names) for _ in range(3)]
    served = asyncio.Event()

    async def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.set()
        writer.close()
        await writer.wait_closed()

    second.meet(first)
    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        names.answers["peer.test"] = (
            "no number:1",  # libzmq refuses this one
            NOWHERE,
            f"{host}:{port}",
            other.address,
            second.address,
        )
        first.transport.set_peers({second.id: "peer.test:7001"})
        assert second.id == await soon(first.ups.get())
        assert served.is_set()
    assert other.transport.counters.refused_handshakes > 0
    await only_message_is_from(second, first)


@pytest.mark.asyncio
async def test_the_endpoint_that_answered_is_tried_first_again(
    members: Members, names: Names
) -> None:
    """A connection that breaks is sought where it was, before the others have their turn."""
    first, second = await members.open(look_up=names), await members.open()
    second.meet(first)
    names.answers["peer.test"] = (NOWHERE, second.address)
    first.transport.set_peers({second.id: "peer.test:7001"})
    assert second.id == await soon(first.ups.get())
    control = first.transport._peers[second.id].links[Lane.CONTROL]
    sought: asyncio.Queue[str | None] = asyncio.Queue()
    first.transport._on_disconnect = lambda _: sought.put_nowait(control._endpoint)
    address = second.address
    await second.transport.close()
    assert address == await soon(sought.get())


@pytest.mark.asyncio
async def test_a_name_makes_nobody_a_peer(members: Members, names: Names) -> None:
    """A name that leads to another member's endpoint opens nothing: the key decides."""
    first, second = await members.open(look_up=names), await members.open()
    second.meet(first)
    absent = somebody()
    names.answers["absent.test"] = (second.address,)
    first.transport.set_peers({absent: "absent.test:7001"})
    await until(lambda: second.transport.counters.refused_handshakes > 3)
    assert frozenset() == first.transport.connected
    assert not any(first.transport.send(absent, lane, b"for you alone") for lane in Lane)


@pytest.mark.asyncio
async def test_a_peer_that_moved_behind_its_name_is_found(members: Members, names: Names) -> None:
    """A broken connection asks for the name again, and goes where it leads now."""
    first, second = await members.open(look_up=names), await members.open()
    names.answers["peer.test"] = (second.address,)
    first.transport.set_peers({second.id: "peer.test:7001"})
    second.meet(first)
    assert second.id == await soon(first.ups.get())
    moved = await members.open(identity=second.identity)
    moved.meet(first)
    names.answers["peer.test"] = (moved.address,)
    await second.transport.close()
    assert second.id == await soon(first.ups.get())
    await only_message_is_from(moved, first)


@pytest.mark.asyncio
async def test_a_connection_outlives_its_name(members: Members, names: Names) -> None:
    """Where one lane asks again and the name leads elsewhere, the other lane stays as it is."""
    first, second = await members.open(look_up=names), await members.open()
    second.meet(first)
    async with Relay(second.address) as network:
        names.answers["peer.test"] = (network.address,)
        first.transport.set_peers({second.id: "peer.test:7001"})
        assert second.id == await soon(first.ups.get())
        assert first.send(second, bytes(100_000), Lane.BULK)
        await soon(second.inbox.get())
        names.answers["peer.test"] = (second.address,)
        max(network.connections, key=lambda each: each.carried_bytes).cut()
        assert second.id == await soon(first.ups.get())
        await until(lambda: first.transport._peers[second.id].route.endpoints == (second.address,))
        control = first.transport._peers[second.id].links[Lane.CONTROL]
        assert (True, network.address) == (control.connected, control._endpoint)
        assert first.downs.empty()


@pytest.mark.asyncio
@pytest.mark.parametrize("endpoints", [(NOWHERE,), (NOWHERE, "127.0.0.2:1")])
async def test_a_name_that_led_nowhere_is_asked_for_again(
    members: Members, names: Names, endpoints: tuple[str, ...]
) -> None:
    """Where nobody ever listened the name may lead elsewhere by now."""
    first, second = await members.open(look_up=names), await members.open()
    second.meet(first)
    names.answers["peer.test"] = endpoints
    first.transport.set_peers({second.id: "peer.test:7001"})
    await until(lambda: names.times_asked("peer.test") > 1)
    assert {} == first.transport.unusable
    names.answers["peer.test"] = (second.address,)
    assert second.id == await soon(first.ups.get())


@pytest.mark.asyncio
@pytest.mark.parametrize("hangs", [True, False])
async def test_a_resolver_that_is_down_breaks_nothing(
    members: Members, names: Names, hangs: bool
) -> None:
    """What was known stays in use while the resolver hangs or knows the name no more."""
    first, second = await members.open(look_up=names), await members.open()
    names.answers["peer.test"] = (second.address,)
    first.transport.set_peers({second.id: "peer.test:7001"})
    second.meet(first)
    assert second.id == await soon(first.ups.get())
    if hangs:
        names.hold("peer.test")
    names.answers.clear()
    address = second.address
    await second.transport.close()
    await until(lambda: names.times_asked("peer.test") > 1)
    back = await members.open(identity=second.identity, bind=address)
    back.meet(first)
    assert second.id == await soon(first.ups.get())
    with capture_logs() as logs:
        names.release()
        await until(lambda: first.transport._resolver._running == 0)
    assert first.transport.counters.unusable > 0
    assert {} == first.transport.unusable
    assert (address,) == first.transport._peers[second.id].route.endpoints
    assert [] == logs
    await only_message_is_from(back, first)


@pytest.mark.asyncio
async def test_look_ups_back_off(members: Members, names: Names) -> None:
    """A name that nobody knows is asked for less and less often, one look-up for both lanes."""
    first = await members.open(look_up=names)
    first.transport.set_peers({somebody(): "absent.test:7001"})
    await until(lambda: len(names.asked) == 4)
    pauses = [later - sooner for (_, sooner), (_, later) in pairwise(names.asked)]
    assert [True] * 3 == [
        least <= pause for least, pause in zip((0.1, 0.2, 0.4), pauses, strict=True)
    ]


# Changes of mind while a look-up is under way


@pytest.mark.asyncio
async def test_a_new_address_does_not_wait_for_the_old_name(members: Members, names: Names) -> None:
    """The answer for an address that was left comes to nothing."""
    first, second = await members.open(look_up=names), await members.open()
    second.meet(first)
    names.answers["old.test"] = (NOWHERE,)
    names.hold("old.test")
    first.transport.set_peers({second.id: "old.test:7001"})
    await until(lambda: names.times_asked("old.test") == 1)
    first.transport.set_peers({second.id: second.address})
    assert second.id == await soon(first.ups.get())
    names.release()
    await until(lambda: first.transport._resolver._running == 0)
    assert frozenset([second.id]) == first.transport.connected
    assert (second.address,) == first.transport._peers[second.id].route.endpoints
    await only_message_is_from(second, first)


@pytest.mark.asyncio
async def test_the_same_address_goes_on_being_looked_up(members: Members, names: Names) -> None:
    """To set the same peers again asks nobody anew."""
    first, second = await members.open(look_up=names), await members.open()
    second.meet(first)
    names.answers["peer.test"] = (second.address,)
    names.hold("peer.test")
    for _ in range(2):
        first.transport.set_peers({second.id: "peer.test:7001"})
        await until(lambda: names.times_asked("peer.test") == 1)
    names.release()
    assert second.id == await soon(first.ups.get())
    assert 1 == names.times_asked("peer.test")


@pytest.mark.asyncio
async def test_a_peer_that_is_gone_is_not_connected_to(members: Members, names: Names) -> None:
    """The answer for a peer that is one no more opens nothing, good or bad."""
    first, second = await members.open(look_up=names), await members.open()
    names.answers["peer.test"] = (second.address,)
    names.hold("peer.test", "absent.test")
    before = open_descriptors()
    first.transport.set_peers({second.id: "peer.test:7001", somebody(): "absent.test:7001"})
    await until(lambda: len(names.asked) == 2)
    first.transport.set_peers({})
    names.release()
    await until(lambda: first.transport._resolver._running == 0)
    assert before == open_descriptors()
    assert 0 == first.transport.counters.unusable


@pytest.mark.asyncio
@pytest.mark.parametrize("waits", ["for the resolver", "to ask again", "to connect again"])
async def test_closing_leaves_no_look_up(members: Members, names: Names, waits: str) -> None:
    """Whatever a peer behind a name waits for, closing does not, and nothing goes on after it."""
    before = open_descriptors()
    first = await members.open(look_up=names)
    names.answers["peer.test"] = (NOWHERE,)
    if waits == "for the resolver":
        names.hold("peer.test")
    if waits == "to ask again":
        names.answers.clear()
    first.transport.set_peers({somebody(): "peer.test:7001"})
    await until(lambda: len(names.asked) == (2 if waits == "to connect again" else 1))
    if waits == "to ask again":
        await until(lambda: first.transport.counters.unusable == 1)
    asked, unusable = len(names.asked), first.transport.counters.unusable
    (peer,) = first.transport._peers.values()
    await soon(first.transport.close())
    assert peer.route._timer is None or peer.route._timer.cancelled()
    assert before == open_descriptors()
    assert {asyncio.current_task()} == asyncio.all_tasks()
    names.release()
    await until(lambda: first.transport._resolver._running == 0)
    assert before == open_descriptors()
    assert asked == len(names.asked)
    assert unusable == first.transport.counters.unusable


def test_a_loop_that_ends_hears_no_answer(names: Names) -> None:
    """A look-up may outlast the loop; its thread then ends in silence."""
    names.hold("absent.test")

    async def ask() -> None:
        async with Members() as members:
            first = await members.open(look_up=names)
            first.transport.set_peers({somebody(): "absent.test:7001"})
            await until(lambda: len(names.asked) == 1)

    asyncio.run(ask())
    (thread,) = names.threads
    assert thread.is_alive()
    assert thread.daemon, "a process that ends would wait for the resolver"
    names.close()
    assert not thread.is_alive()
