"""Messages on their way between members in tests: how long they take, and how they read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from consensus.block import decode_block
from consensus.messages import (
    Append,
    BlocksReply,
    BlocksRequest,
    Forward,
    ForwardRefusal,
    decode_message,
)

if TYPE_CHECKING:
    from consensus.messages import RaftMessage

MILLISECOND_US = 1_000
SECOND_US = 1_000 * MILLISECOND_US


@dataclass(slots=True)
class Envelope:
    """A message on its way. Messages travel as bytes, as they do between real nodes."""

    source: str
    target: str
    raw: bytes
    due_us: int

    @property
    def message(self) -> RaftMessage:
        """The message inside."""
        message = decode_message(self.raw)
        others = Forward | ForwardRefusal | BlocksRequest | BlocksReply
        assert not isinstance(message, others), "the core sends no such thing"
        return message


class Weather:
    """How long things take. This one is calm: nothing is lost, nothing is repeated."""

    def __init__(
        self, *, delay_us: int = MILLISECOND_US, save_us: int = 2 * MILLISECOND_US
    ) -> None:
        self._delay_us = delay_us
        self._save_us = save_us

    def delays_us(self, source: str, target: str) -> list[int]:
        """How long each copy of a message takes: no copy if it is lost, two if repeated."""
        return [self._delay_us]

    def save_us(self, name: str) -> int:
        """How long the next save of a member takes."""
        return self._save_us

    def is_busy(self, name: str) -> bool:
        """Whether a member takes another input before it hands out what the last one led to."""
        return False


def describe(message: RaftMessage) -> str:
    """A message as a person reads it: hashes left out, blocks as index/term."""
    parts = []
    for name in message.__struct_fields__:
        value = getattr(message, name)
        if isinstance(message, Append) and name == "blocks":
            blocks = [decode_block(raw) for raw in message.blocks]
            parts.append(f"[{' '.join(f'{block.index}/{block.term}' for block in blocks)}]")
        elif not isinstance(value, bytes):
            parts.append(f"{name}={value}")
    return f"{type(message).__name__} {' '.join(parts)}"
