"""Blocks that break one rule each, in the name of a real member: what no follower may ever save.

A crash-tolerant protocol does not withstand liars, but a member with bad memory must not spread
what it made; each way of forging here is one rule of `consensus.block.verify_block`. Relies on the
keys of the simulated members.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
from nacl.signing import SigningKey

from consensus.block import Block, assemble_block, block_from_parts
from consensus.messages import Append, BlocksReply, decode_message, encode_message

if TYPE_CHECKING:
    from random import Random

WAYS = (
    "history_root",
    "transactions_root",
    "previous_hash",
    "cluster_id",
    "transaction_count",
    "timestamp_us",
    "term",
    "sealer",
    "signature",
    "body",
)
WAYS_FETCHED = tuple(way for way in WAYS if way != "term")


def forge_blocks(raw: bytes, key: SigningKey, random: Random) -> bytes | None:
    """Return an append or fetched blocks with the last block forged; None where there is none."""
    message = decode_message(raw)
    if not isinstance(message, Append | BlocksReply) or not message.blocks:
        return None
    frame: tuple[bytes, bytes, bytes] = msgspec.msgpack.decode(
        message.blocks[-1], type=tuple[bytes, bytes, bytes]
    )
    if isinstance(message, Append):
        forged = _forge(frame, random.choice(WAYS), message.term, key, random)
    else:
        # What the sealer itself signs with a higher term breaks no rule of a fetched block.
        forged = _forge(frame, random.choice(WAYS_FETCHED), 0, key, random)
    blocks = (*message.blocks[:-1], forged.encode())
    return encode_message(msgspec.structs.replace(message, blocks=blocks))


def _forge(
    frame: tuple[bytes, bytes, bytes], way: str, term: int, key: SigningKey, random: Random
) -> Block:
    block = block_from_parts(*frame)
    header = block.header
    if way == "signature":
        return replace(block, signature=bytes(64))
    if way == "body":
        return replace(block, body=msgspec.msgpack.encode([random.randbytes(30)]))
    changed: object = random.randbytes(32)
    if way == "sealer":
        key = SigningKey(random.randbytes(32))
        changed = bytes(key.verify_key)
    elif way == "transaction_count":
        changed = header.transaction_count + 1
    elif way == "term":
        changed = term + 1  # a term to come: an older one raised to the leader's own breaks no rule
    elif way == "timestamp_us":
        changed = 0
    header = msgspec.structs.replace(header, **{way: changed})
    unsigned = assemble_block(header, bytes(64), block.transactions)
    return replace(unsigned, signature=key.sign(unsigned.hash).signature)
