"""The remote calls between members, one frozen struct for each, and their codec.

A message never names its sender: the transport knows it from the authenticated key. Blocks travel
as the bytes that were sealed, so that what is hashed is never encoded twice. Relies on msgspec
alone; the fields follow figure 2 of the Raft paper (Ongaro and Ousterhout 2014) and §6.4 and §9.6
of the dissertation (Ongaro 2014).
"""

from __future__ import annotations

from typing import Final

import msgspec

MemberId = bytes
"""A member's Ed25519 public key, 32 bytes."""


class Message(
    msgspec.Struct, frozen=True, array_like=True, tag=True, forbid_unknown_fields=True, gc=False
):
    """Base of all messages: immutable, one msgpack array each, tagged by its class name."""


class PreVoteRequest(Message, frozen=True):
    """Asks whether a vote would be given in `term`, without starting it (dissertation §9.6)."""

    term: int
    last_index: int
    last_term: int


class PreVoteReply(Message, frozen=True):
    """Answers a pre-vote. `term` is the proposed one if granted, else the voter's own."""

    term: int
    granted: bool


class VoteRequest(Message, frozen=True):
    """Asks for a vote in `term` (paper §5.2, §5.4.1).

    `transfer` says that the leader itself asked for this election (dissertation §4.2.3), so that
    those who hear from the leader vote all the same.
    """

    term: int
    last_index: int
    last_term: int
    transfer: bool


class VoteReply(Message, frozen=True):
    """Answers a vote request; leaves only once the vote is durable."""

    term: int
    granted: bool


class Append(Message, frozen=True):
    """Blocks that follow `previous_*`, or none as a probe (paper §5.3).

    `previous_hash` makes Log Matching a check of content. `blocks` are encoded blocks.
    """

    term: int
    previous_index: int
    previous_term: int
    previous_hash: bytes
    commit_index: int
    blocks: tuple[bytes, ...]


class AppendReply(Message, frozen=True):
    """The follower's log equals the leader's through `match_index`, durably."""

    term: int
    match_index: int


class AppendRejection(Message, frozen=True):
    """The follower has no block with the previous hash at `previous_index`.

    `hint_index` and `hint_term` are its own last block at or before `previous_index` whose term is
    not above the leader's previous term: the leader skips whole terms by it (paper §5.3, end).
    """

    term: int
    previous_index: int
    hint_index: int
    hint_term: int


class Heartbeat(Message, frozen=True):
    """Holds the leadership and spreads the commit index, never beyond what the follower matched.

    `round` numbers the leader's rounds of contact: a majority's echo proves that the leader was
    still the leader when the round began (ReadIndex, dissertation §6.4). Round 0 wants no reply.
    `fetch_through` is 0, or the index of a committed block to a follower that is too far behind to
    be sent blocks: it fetches them, from whichever member it likes.
    """

    term: int
    commit_index: int
    round: int
    fetch_through: int


class HeartbeatReply(Message, frozen=True):
    """Echoes a heartbeat's `round`, and tells how far the follower is.

    `last_index` and `saved_index` let the leader notice a lost append and a lost acknowledgement;
    neither says that the logs match.
    """

    term: int
    round: int
    last_index: int
    saved_index: int


class TimeoutNow(Message, frozen=True):
    """The leader hands over: campaign at once (dissertation §3.10)."""

    term: int


class ReadRequest(Message, frozen=True):
    """A follower asks the leader for a read index; `token` is the follower's own name for it."""

    term: int
    token: int


class ReadReply(Message, frozen=True):
    """The leader's confirmed read index for `token`."""

    term: int
    token: int
    read_index: int


class BlocksRequest(Message, frozen=True):
    """Asks any member for committed blocks from `first` through `through`."""

    first: int
    through: int


class BlocksReply(Message, frozen=True):
    """Committed blocks from `first`, encoded: as many as were asked for, or fit, or are there.

    `commit_index` is how far the sender could go on; `term` is the one it knows that in.
    """

    term: int
    first: int
    commit_index: int
    blocks: tuple[bytes, ...]


class Forward(Message, frozen=True):
    """Transactions of a follower's clients, as canonical bytes, for the leader to seal.

    `number` is the follower's own, for the refusal; it never comes twice in one life of a member.
    """

    number: int
    transactions: tuple[bytes, ...]


class ForwardRefusal(Message, frozen=True):
    """The leader's queue had no room for these of the forward `number`; it did not take them."""

    number: int
    transaction_ids: tuple[bytes, ...]


AnyMessage = (
    PreVoteRequest
    | PreVoteReply
    | VoteRequest
    | VoteReply
    | Append
    | AppendReply
    | AppendRejection
    | Heartbeat
    | HeartbeatReply
    | TimeoutNow
    | ReadRequest
    | ReadReply
    | BlocksRequest
    | BlocksReply
    | Forward
    | ForwardRefusal
)

RaftMessage = (
    PreVoteRequest
    | PreVoteReply
    | VoteRequest
    | VoteReply
    | Append
    | AppendReply
    | AppendRejection
    | Heartbeat
    | HeartbeatReply
    | TimeoutNow
    | ReadRequest
    | ReadReply
)

_NUMBER_LIMIT: Final = 1 << 63
"""One bit below what msgpack can carry, so that a number taken from a peer can be counted up."""
_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(AnyMessage)


class InvalidMessageError(ValueError):
    """Bytes from a peer that are no message of this version."""


def encode_message(message: AnyMessage) -> bytes:
    """The message's bytes for the wire."""
    return _encoder.encode(message)


def decode_message(raw: bytes) -> AnyMessage:
    """The message in `raw`.

    Raises:
        InvalidMessageError: unknown message, wrong type, unknown field, negative number.
    """
    try:
        message: AnyMessage = _decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidMessageError(str(error)) from error
    for field in message.__struct_fields__:
        value = getattr(message, field)
        if type(value) is int and not 0 <= value < _NUMBER_LIMIT:
            raise InvalidMessageError(f"{type(message).__name__}.{field} is out of range")
    return message
