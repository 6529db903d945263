"""ZeroMQ sockets on the loop: draining in turns, failing aloud, watching, on inproc sockets."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
import zmq

from node.zmq_loop import FailureGuard, Monitor, Reader, SocketHub
from tests.node.transport_members import open_descriptors, turn, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


class Pipe:
    """Two connected sockets, and a reader on one of them."""

    def __init__(self) -> None:
        self.failures: list[BaseException] = []
        self.guard = FailureGuard(self.failures.append)
        self.hub = SocketHub(asyncio.get_running_loop(), self.guard)
        self.sender, self.receiver = self.hub.socket(zmq.PAIR), self.hub.socket(zmq.PAIR)
        for end in (self.sender, self.receiver):
            end.set_hwm(10_000)
        self.receiver.bind("inproc://pipe")
        self.sender.connect("inproc://pipe")
        self.heard: list[bytes] = []

    def send(self, *messages: bytes) -> None:
        """Queue messages; all are there when this returns."""
        for message in messages:
            self.sender.send(message, zmq.DONTWAIT)

    def read(self, on_message: Callable[[bytes], None]) -> Reader:
        """Read the receiving end."""

        def read_one() -> bool:
            try:
                message = self.receiver.recv(zmq.DONTWAIT)
            except zmq.Again:
                return False
            self.heard.append(message)
            on_message(message)
            return True

        return Reader(self.hub, self.receiver, read_one)

    def close(self) -> None:
        """Close both ends."""
        self.sender.close()
        self.receiver.close()
        self.hub.context.term()


@pytest_asyncio.fixture
async def pipe() -> AsyncIterator[Pipe]:
    """Two connected sockets."""
    opened = Pipe()
    yield opened
    opened.close()


def ignore(_message: bytes) -> None:
    """Do nothing with a message."""


@pytest.mark.asyncio
@pytest.mark.parametrize("count", [1, 255, 256, 257, 5_000])
async def test_all_that_waits_is_read(pipe: Pipe, count: int) -> None:
    """Whatever waits when the reader comes is read, in order, though no edge will tell of it."""
    expected = [number.to_bytes(2, "big") for number in range(count)]
    pipe.send(*expected)
    reader = pipe.read(ignore)
    await until(lambda: len(pipe.heard) == count)
    assert expected == pipe.heard
    reader.close()


@pytest.mark.asyncio
async def test_what_comes_later_is_read(pipe: Pipe) -> None:
    """An edge wakes the reader after it has once found nothing."""
    reader = pipe.read(ignore)
    await turn()
    await turn()
    pipe.send(b"later")
    await until(lambda: pipe.heard == [b"later"])
    reader.close()


@pytest.mark.asyncio
async def test_a_long_drain_leaves_room_for_others(pipe: Pipe) -> None:
    """A reader with much to read lets the loop go round between two drains."""
    pipe.send(*[b"x"] * 5_000)
    reader = pipe.read(ignore)
    turns = 0
    while len(pipe.heard) < 5_000:
        await turn()
        turns += 1
    assert turns > 5
    reader.close()


@pytest.mark.asyncio
async def test_a_slow_drain_leaves_room_for_others(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A drain ends early where each message takes long."""
    clock_s = 0.0
    monkeypatch.setattr(pipe.hub.loop, "time", lambda: clock_s)

    def slow(_message: bytes) -> None:
        nonlocal clock_s
        clock_s += 0.001

    pipe.send(*[b"x"] * 10)
    reader = pipe.read(slow)
    await turn()
    assert 0 < len(pipe.heard) < 10
    await until(lambda: len(pipe.heard) == 10)
    reader.close()


@pytest.mark.asyncio
async def test_nothing_is_read_after_a_failure(pipe: Pipe) -> None:
    """A fault goes to its owner once; what waits and what comes stays where it is."""

    def faulty(_message: bytes) -> None:
        raise ZeroDivisionError

    pipe.send(b"first", b"second")
    reader = pipe.read(faulty)
    await until(lambda: bool(pipe.failures))
    pipe.send(b"third")
    for _ in range(10):
        await turn()
    assert [b"first"] == pipe.heard
    assert [ZeroDivisionError] == [type(failure) for failure in pipe.failures]
    reader.close()


@pytest.mark.asyncio
async def test_a_reader_may_be_closed_while_it_reads(pipe: Pipe) -> None:
    """A message that ends the reading is the last that is read."""
    pipe.send(b"first", b"second")
    reader = pipe.read(lambda _: reader.close())
    await until(lambda: bool(pipe.heard))
    for _ in range(10):
        await turn()
    assert [b"first"] == pipe.heard


@pytest.mark.asyncio
async def test_nothing_guarded_runs_after_a_failure(pipe: Pipe) -> None:
    """A node that failed once takes nothing more in, until it is stopped."""
    ran: list[int] = []
    pipe.guard.run(lambda: ran.append(1))
    pipe.guard.run(lambda: ran.append(1 // 0))
    pipe.guard.run(lambda: ran.append(2))
    assert [1] == ran
    assert [ZeroDivisionError] == [type(failure) for failure in pipe.failures]


@pytest.mark.asyncio
async def test_an_interrupt_is_not_taken_for_a_failure(pipe: Pipe) -> None:
    """Ctrl-C belongs to the loop."""

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipe.guard.run(interrupted)
    assert [] == pipe.failures


@pytest.mark.asyncio
async def test_a_monitor_that_cannot_be_made_leaves_nothing_open(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket that was made for a monitor is given back where the monitor is not to be had."""
    monkeypatch.setattr(pipe.hub, "monitor_address", lambda: "inproc://taken")
    monitor = Monitor(pipe.hub, pipe.sender, zmq.EVENT_ALL, lambda _event: None)
    before = open_descriptors()
    with pytest.raises(zmq.ZMQError, match="Address already in use"):
        Monitor(pipe.hub, pipe.receiver, zmq.EVENT_ALL, lambda _event: None)
    await until(lambda: before == open_descriptors())
    monitor.close()
