"""The peers' codec: every message there and back, and nothing else accepted."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus import messages
from consensus.messages import (
    AnyMessage,
    Append,
    AppendRejection,
    AppendReply,
    BlocksReply,
    BlocksRequest,
    Forward,
    ForwardRefusal,
    Heartbeat,
    HeartbeatReply,
    InvalidMessageError,
    PreVoteReply,
    PreVoteRequest,
    RaftMessage,
    ReadReply,
    ReadRequest,
    TimeoutNow,
    VoteReply,
    VoteRequest,
    decode_message,
    encode_message,
)

LARGEST = (1 << 63) - 1

EVERY_MESSAGE: list[AnyMessage] = [
    PreVoteRequest(1, last_index=2, last_term=3),
    PreVoteReply(1, granted=True),
    VoteRequest(1, last_index=2, last_term=3, transfer=True),
    VoteReply(1, granted=False),
    Append(1, 2, 3, bytes(32), 4, (b"one", b"two")),
    AppendReply(1, match_index=2),
    AppendRejection(1, 2, 3, hint_term=4),
    Heartbeat(1, commit_index=2, round=3, fetch_through=4),
    HeartbeatReply(1, round=2, last_index=3, saved_index=4),
    TimeoutNow(1),
    ReadRequest(1, token=2),
    ReadReply(1, token=2, read_index=3),
    BlocksRequest(1, through=2),
    BlocksReply(1, first=2, commit_index=3, blocks=(b"one", b"two")),
    Forward(7, (b"one", b"two")),
    ForwardRefusal(7, (bytes(16), bytes(16))),
]


def test_every_message_is_listed() -> None:
    """Each struct of the module is in both the union that is decoded and in these tests."""
    defined = {
        value
        for value in vars(messages).values()
        if isinstance(value, type) and issubclass(value, messages.Message)
    } - {messages.Message}
    assert defined == {type(message) for message in EVERY_MESSAGE} == set(AnyMessage.__args__)
    between_replicas = {BlocksRequest, BlocksReply, Forward, ForwardRefusal}
    assert defined - between_replicas == set(RaftMessage.__args__)


@pytest.mark.parametrize("message", EVERY_MESSAGE, ids=lambda m: type(m).__name__)
def test_message_there_and_back(message: AnyMessage) -> None:
    """The same message, and the same bytes again."""
    raw = encode_message(message)
    assert message == decode_message(raw)
    assert raw == encode_message(decode_message(raw))


@pytest.mark.parametrize("message", EVERY_MESSAGE, ids=lambda m: type(m).__name__)
def test_messages_are_immutable(message: AnyMessage) -> None:
    """A message in two queues at once must not change in one of them."""
    field = message.__struct_fields__[0]
    with pytest.raises(AttributeError):
        setattr(message, field, 0)


@pytest.mark.parametrize("message", EVERY_MESSAGE, ids=lambda m: type(m).__name__)
def test_unknown_fields_are_refused(message: AnyMessage) -> None:
    """Neither more nor fewer than this version knows."""
    fields = msgspec.msgpack.decode(encode_message(message))
    for wrong in ([*fields, 0], fields[:-1], [*fields[:-1], {"x": 1}], fields[:1]):
        with pytest.raises(InvalidMessageError):
            decode_message(msgspec.msgpack.encode(wrong))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xc1",
        b"not msgpack",
        msgspec.msgpack.encode(["Unknown", 1]),
        msgspec.msgpack.encode({"type": "VoteReply", "term": 1, "granted": True}),
        msgspec.msgpack.encode(["VoteReply", "1", True]),
        msgspec.msgpack.encode(["VoteReply", 1.5, True]),
        msgspec.msgpack.encode(["VoteReply", True, True]),
        msgspec.msgpack.encode(["VoteReply", None, True]),
        encode_message(VoteReply(1, granted=True)) + b"\x00",
        encode_message(VoteReply(1, granted=True)).replace(b"Vote", b"\x80ote"),
        b"\x91" * 100_000,
    ],
    ids=range(12),
)
def test_garbage_is_refused(raw: bytes) -> None:
    """With the one error that callers expect, whatever is wrong."""
    with pytest.raises(InvalidMessageError):
        decode_message(raw)


@pytest.mark.parametrize("number", [-1, -(1 << 63), LARGEST + 1, (1 << 64) - 1])
@pytest.mark.parametrize("position", [1, 2, 3])
def test_numbers_out_of_range_are_refused(position: int, number: int) -> None:
    """Terms, indexes and rounds count from zero, and can be counted up; the error names them."""
    fields = ["Heartbeat", 1, 1, 1, 1]
    fields[position] = number
    with pytest.raises(InvalidMessageError, match=r"Heartbeat\.(term|commit_index|round)"):
        decode_message(msgspec.msgpack.encode(fields))


def test_largest_numbers_are_accepted() -> None:
    """Everything that 63 bits hold."""
    message = Heartbeat(LARGEST, commit_index=LARGEST, round=LARGEST, fetch_through=0)
    assert message == decode_message(encode_message(message))


def decode_anything(raw: bytes) -> None:
    """Bytes from a peer are a message or an InvalidMessageError, never anything else."""
    try:
        message = decode_message(raw)
    except InvalidMessageError:
        return
    assert message == decode_message(encode_message(message))


@given(st.binary(max_size=200))
def test_no_bytes_raise_another_error(raw: bytes) -> None:
    """Whatever they are."""
    decode_anything(raw)


@given(st.sampled_from(EVERY_MESSAGE), st.data())
def test_no_damaged_message_raises_another_error(message: AnyMessage, data: st.DataObject) -> None:
    """One byte changed, in any place."""
    raw = bytearray(encode_message(message))
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    decode_anything(bytes(raw))
