"""UUIDv7, which Python 3.11 lacks: ids that sort in the order they were made (RFC 9562 §5.7).

Time-ordered ids keep the index local: new keys land at its end. Relies on nothing; the clock and
the entropy are handed in, so that a test is repeatable.
"""

from __future__ import annotations

import os
import time
import uuid
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_TIME_BITS: Final = 48
_COUNTER_MASK: Final = 0xFFF
_SEED_MASK: Final = 0x7FF
_RANDOM_MASK: Final = (1 << 62) - 1
_VERSION: Final = 0x7 << 76
_VARIANT: Final = 0b10 << 62
_RANDOM_BYTES: Final = 10
_POOL_BYTES: Final = 400 * _RANDOM_BYTES
"""Entropy is fetched for many ids at once: a system call for each would cost more than all else."""


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


class Uuid7Source:
    """Makes ids that strictly ascend, whatever the clock does. For one thread."""

    def __init__(
        self,
        *,
        wall_ms: Callable[[], int] = _wall_ms,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._wall_ms = wall_ms
        self._entropy = entropy
        self._pool = b""
        self._pool_start = 0
        self._last_ms = -1
        self._counter = 0

    def next_bytes(self) -> bytes:
        """Return the next id as its 16 bytes."""
        random = self._next_random()
        now_ms = self._wall_ms()
        if now_ms > self._last_ms:
            self._last_ms = now_ms
            # RFC 9562 §6.2, method 1: a fresh counter with its top bit clear, so that it has room.
            self._counter = random >> 62 & _SEED_MASK
        else:
            self._counter += 1
            if self._counter > _COUNTER_MASK:
                # The counter is full: run ahead of the clock rather than fall out of order.
                self._last_ms += 1
                self._counter = 0
        assert self._last_ms >> _TIME_BITS == 0
        whole = self._last_ms << 80 | _VERSION | self._counter << 64
        return (whole | _VARIANT | random & _RANDOM_MASK).to_bytes(16, "big")

    def _next_random(self) -> int:
        """Return 80 bits that were never returned before."""
        start = self._pool_start
        if start >= len(self._pool):
            self._pool = self._entropy(_POOL_BYTES)
            assert len(self._pool) == _POOL_BYTES
            start = 0
        self._pool_start = start + _RANDOM_BYTES
        return int.from_bytes(self._pool[start : start + _RANDOM_BYTES], "big")


_SOURCE: Final = Uuid7Source()


def new_transaction_id() -> bytes:
    """Return a new UUIDv7 as 16 bytes, later than every one this process made before."""
    return _SOURCE.next_bytes()


def uuid7() -> uuid.UUID:
    """Return a new UUIDv7, later than every one this process made before."""
    return uuid.UUID(bytes=_SOURCE.next_bytes())


def uuid_text(raw: bytes) -> str:
    """Return the text form of 16 bytes: what `str(uuid.UUID(bytes=raw))` says, in a third of it."""
    text = raw.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
