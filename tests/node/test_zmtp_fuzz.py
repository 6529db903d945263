"""Hostile bytes against a session: nothing comes out but messages and `ZmtpError`.

Random bytes, and a real client's bytes cut, changed, repeated and left out anywhere, in random
portions: a session never raises anything else, never keeps more than the frame that its limits
allow, and never gives out a message that the client did not send. Relies on hypothesis.
"""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from node.curve import Keys
from node.zmtp import Session, ZmtpError
from tests.node.curve_client import CurveClient, greeting

if TYPE_CHECKING:
    from collections.abc import Callable

SERVER = Keys.of(b"s" * 32)
MAX_MESSAGE = 400
MAX_FRAME = 1_300
"""The largest frame that any state takes, its header included: an INITIATE."""


@dataclass
class Line:
    """A session at the end of a line of bytes in portions."""

    session: Session
    is_dropped: bool = False

    def feed(self, data: bytes, cuts: list[int]) -> list[bytes]:
        """Send bytes in portions; the messages that come out."""
        messages: list[bytes] = []
        places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
        for start, end in itertools.pairwise(places):
            try:
                messages += self.session.receive(data[start:end])
            except ZmtpError:
                self.is_dropped = True
            assert self.session.buffered_bytes <= MAX_FRAME
        return messages


def new_line() -> Line:
    """A line to a fresh session."""
    return Line(
        Session(SERVER, allows=lambda _: True, entropy=os.urandom, max_message_bytes=MAX_MESSAGE)
    )


portions = st.lists(st.integers(0, 2_000), max_size=8)
changes = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "insert", "repeat"]),
        st.integers(0, 3_000),
        st.binary(max_size=9),
    ),
    min_size=1,
    max_size=4,
)


def changed(data: bytes, steps: list[tuple[str, int, bytes]]) -> bytes:
    """The bytes after some damage."""
    for kind, place, more in steps:
        at = place % (len(data) + 1)
        match kind:
            case "flip":
                data = data[:at] + bytes(byte ^ 0x55 for byte in data[at : at + 1]) + data[at + 1 :]
            case "cut":
                data = data[:at] + data[at + 1 + len(more) :]
            case "insert":
                data = data[:at] + more + data[at:]
            case _:
                data = data[:at] + data[max(0, at - 60) :]
    return data


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=3_000), cuts=portions, prefix=st.sampled_from([b"", greeting()]))
def test_random_bytes_never_come_through(data: bytes, cuts: list[int], prefix: bytes) -> None:
    """Neither as a message nor as an error of another kind, nor do they pile up."""
    line = new_line()
    assert [] == line.feed(prefix + data, cuts)


@settings(max_examples=200, deadline=None)
@given(steps=changes, cuts=portions, stage=st.integers(0, 2))
def test_a_damaged_client_gets_no_message_through_that_it_did_not_send(
    steps: list[tuple[str, int, bytes]], cuts: list[int], stage: int
) -> None:
    """Damage at any stage of the handshake, or after it."""
    line, client = new_line(), CurveClient(SERVER.public, transient=os.urandom(32))
    session = line.session
    session.take_output()
    sent = [b"one", b"two" * 50, b"three" * 70]
    stages: list[Callable[[], bytes]] = [
        lambda: greeting() + client.hello(),
        client.initiate,
        lambda: b"".join(client.message(one) for one in sent),
    ]
    for number, make in enumerate(stages):
        data = make()
        messages = line.feed(changed(data, steps) if number == stage else data, cuts)
        if number == 2:
            assert messages == sent[: len(messages)]
            assert stage == 2 or messages == sent
        output = session.take_output()
        if line.is_dropped or not output:
            return  # the client would wait for an answer that does not come
        if number == 0:
            client.take_welcome(output)


@settings(max_examples=200, deadline=None)
@given(contents=st.lists(st.binary(max_size=MAX_MESSAGE), max_size=6), cuts=portions)
def test_what_a_client_sends_arrives_however_it_is_cut(
    contents: list[bytes], cuts: list[int]
) -> None:
    """All of it, in order, and nothing is left over."""
    line, client = new_line(), CurveClient(SERVER.public)
    line.session.take_output()
    line.feed(greeting() + client.hello(), cuts)
    client.take_welcome(line.session.take_output())
    line.feed(client.initiate(), cuts)
    assert contents == line.feed(b"".join(client.message(one) for one in contents), cuts)
    assert 0 == line.session.buffered_bytes
