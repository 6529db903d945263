"""When the client port hands on what it has: at once, or together with what is about to come.

A client that has just been answered mostly asks again at once, so the requests that follow the
answers of a block come within a moment of each other. Handed on one by one they would become many
small blocks, each with its fsyncs and messages, and those cost more than all else. So a request
waits for the clients that were answered last, but only for them, and no longer than half of what a
commit takes of late. A client that is alone, or whose fellows have all come, never waits. Pure.
"""

from __future__ import annotations

from typing import Final

LONGEST_WAIT_S: Final = 0.005
PART_OF_CALL: Final = 0.5
"""The wait as a part of the time that calls take of late."""
_WEIGHT: Final = 1 / 16


class Gathering:
    """Who is expected to ask again."""

    def __init__(self) -> None:
        """Nobody."""
        self._expected: dict[object, float] = {}
        self._call_s = 0.0

    @property
    def wait_s(self) -> float:
        """How long the first one waits for the others at most, in seconds."""
        return min(LONGEST_WAIT_S, PART_OF_CALL * self._call_s)

    def note_call(self, took_s: float) -> None:
        """A call was answered after so long."""
        self._call_s += (took_s - self._call_s) * _WEIGHT

    def answered(self, client: object, now: float) -> None:
        """The client has been answered: it may ask again."""
        self._expected.pop(client, None)
        self._expected[client] = now

    def forget(self, client: object) -> None:
        """The client is gone."""
        self._expected.pop(client, None)

    def is_over(self, client: object, now: float) -> bool:
        """The client asks: whether nobody else is expected any more."""
        self._expected.pop(client, None)
        oldest = now - self.wait_s
        while self._expected:
            first = next(iter(self._expected))
            if self._expected[first] > oldest:
                return False
            del self._expected[first]
        return True
