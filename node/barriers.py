"""Linearizable reads of one member: all that come meanwhile share one request to the core.

A read passes three stages: *waiting* to be asked for, *asked* for under a token of the core, and
*behind* until its read index is applied here. It goes on over changes of leader until it is
answered or forgotten. Pure; relies on the tokens rising.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    OnApplied = Callable[[int], None]


class _Asked(NamedTuple):
    """A read that the core was asked for; `token` is the first it was asked under."""

    token: int
    on_applied: OnApplied


class _Behind(NamedTuple):
    """A read whose index is confirmed and not yet applied."""

    read_index: int
    on_applied: OnApplied


class Barriers:
    """Reads by a number of their own, which `forget` takes."""

    def __init__(self, *, patience_us: int) -> None:
        """A request without an answer is repeated after `patience_us`."""
        self._patience_us = patience_us
        self._next = 0
        self._token = 0
        self._asked_us = 0
        self._waiting: dict[int, OnApplied] = {}
        self._asked: dict[int, _Asked] = {}
        self._behind: dict[int, _Behind] = {}

    def __len__(self) -> int:
        """How many reads are not answered."""
        return len(self._waiting) + len(self._asked) + len(self._behind)

    def add(self, on_applied: OnApplied) -> int:
        """Takes a read; `on_applied` is called once with the read index. The read's number."""
        self._next += 1
        self._waiting[self._next] = on_applied
        return self._next

    def forget(self, number: int) -> None:
        """Nobody waits for this read any more; harmless once it is answered."""
        for stage in (self._waiting, self._asked, self._behind):
            stage.pop(number, None)

    def next_token(self, now_us: int) -> int | None:
        """The token to ask the core with now, or None where nothing is to be asked.

        While a request is under way the reads that come wait for its answer, and for no longer than
        the patience: then one request is made for all.
        """
        if self._asked and now_us - self._asked_us < self._patience_us:
            return None
        if not self._waiting and not self._asked:
            return None
        self._token += 1
        for number, on_applied in self._waiting.items():
            self._asked[number] = _Asked(self._token, on_applied)
        self._waiting.clear()
        self._asked_us = now_us
        return self._token

    def confirm(self, token: int, read_index: int) -> None:
        """An index confirmed for `token` holds for every read first asked under it or before."""
        for number, asked in list(self._asked.items()):
            if asked.token <= token:
                del self._asked[number]
                self._behind[number] = _Behind(read_index, asked.on_applied)

    def lose(self, token: int) -> None:
        """The request of that token was lost with its leader: its reads are asked for again."""
        if token != self._token:
            return
        again = {number: asked.on_applied for number, asked in self._asked.items()}
        self._asked.clear()
        self._waiting = again | self._waiting

    def release(self, applied_index: int) -> None:
        """Answers the reads whose index is applied."""
        ready = [n for n, behind in self._behind.items() if behind.read_index <= applied_index]
        for number in ready:
            behind = self._behind.pop(number)
            behind.on_applied(behind.read_index)
