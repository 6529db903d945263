"""How far the leader knows each follower to be, and what is on its way there.

A follower is *probed* with one append at a time until one fits, then *replicated to*: appends leave
before earlier ones are answered, within the window of `MAX_INFLIGHT_BLOCKS` and
`MAX_INFLIGHT_BYTES` (dissertation §10.2.2). One that needs blocks which the leader has no longer in
memory *fetches* them, from any member, and is probed again when it has come near. Relies on
nothing; time comes in as microseconds.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final, NamedTuple

MAX_INFLIGHT_BLOCKS: Final = 16
MAX_INFLIGHT_BYTES: Final = 8 << 20
MAX_PATIENCE_US: Final = 2_000_000
"""The longest wait for an acknowledgement before what was sent is taken for lost."""


class Inflight(NamedTuple):
    """One append that is not acknowledged yet."""

    last_index: int
    blocks: int
    size_bytes: int
    sent_us: int


@dataclass(slots=True)
class Progress:
    """The leader's knowledge of one follower in this term.

    Invariant: `match_index < next_index`; what is in flight ends at `next_index - 1`.
    """

    next_index: int
    last_heard_us: int
    """When it last answered; until it first does, when this leader began to send to it."""
    has_answered: bool = False
    match_index: int = 0
    echoed_round: int = 0
    probing: bool = True
    fetching: bool = False
    probe_sent_us: int | None = None
    inflight: deque[Inflight] = field(default_factory=deque)
    inflight_blocks: int = 0
    inflight_bytes: int = 0
    round_trip_us: int = 0
    """A decaying maximum of the times from sending to acknowledgement; it doubles with a loss."""

    @property
    def has_room(self) -> bool:
        """Whether another append may be sent now."""
        if self.fetching:
            return False
        if self.probing:
            return self.probe_sent_us is None
        return (
            self.inflight_blocks < MAX_INFLIGHT_BLOCKS and self.inflight_bytes < MAX_INFLIGHT_BYTES
        )

    @property
    def room_blocks(self) -> int:
        """How many blocks the next append may hold."""
        return MAX_INFLIGHT_BLOCKS - self.inflight_blocks

    def sent(self, *, last_index: int, blocks: int, size_bytes: int, now_us: int) -> None:
        """An append that ends at `last_index` left."""
        if self.probing:
            self.probe_sent_us = now_us
            return
        assert last_index == self.next_index + blocks - 1, "appends are contiguous"
        self.next_index = last_index + 1
        self.inflight.append(Inflight(last_index, blocks, size_bytes, now_us))
        self.inflight_blocks += blocks
        self.inflight_bytes += size_bytes

    def acknowledged(self, match_index: int, now_us: int) -> None:
        """The follower holds everything through `match_index`."""
        while self.inflight and self.inflight[0].last_index <= match_index:
            done = self.inflight.popleft()
            self.inflight_blocks -= done.blocks
            self.inflight_bytes -= done.size_bytes
            self.round_trip_us = max(now_us - done.sent_us, self.round_trip_us * 7 // 8)
        if match_index > self.match_index:
            self.match_index = match_index
            self.next_index = max(self.next_index, match_index + 1)
        if self.probing and not self.fetching and match_index >= self.next_index - 1:
            self.probing = False
            self.probe_sent_us = None

    def rejected(self, *, previous_index: int, retry_from: int) -> None:
        """The follower lacks `previous_index`: go on probing from `retry_from`.

        Nothing happens for a rejection that is out of date: of an index known to match, or of
        another probe than the one that is out.
        """
        if previous_index <= self.match_index or self.fetching:
            return
        if self.probing and previous_index != self.next_index - 1:
            return
        self.probe_from(max(self.match_index + 1, retry_from))

    def leave_to_fetch(self) -> None:
        """The blocks it needs next are not in memory: it is sent none until it has come near."""
        self.probe_from(self.next_index)
        self.fetching = True

    def come_near(self, next_index: int) -> None:
        """Its log reaches blocks that are in memory: probe there."""
        self.fetching = False
        self.probe_from(max(next_index, self.match_index + 1))

    def probe_from(self, next_index: int) -> None:
        """Forgets what is in flight and probes at `next_index`."""
        assert next_index > self.match_index, "what matches is never sent again"
        self.probing = True
        self.probe_sent_us = None
        self.next_index = next_index
        self.inflight.clear()
        self.inflight_blocks = 0
        self.inflight_bytes = 0

    def looks_lost(
        self, *, follower_last: int, follower_saved: int, now_us: int, patience_us: int
    ) -> bool:
        """Whether an append or its acknowledgement must be taken for lost: a new probe is due.

        What the follower holds and has not saved is only slow: it is not sent again. What it has
        saved it did acknowledge. The oldest append that is neither tells: later ones may have left
        after the follower spoke. The patience is at least `patience_us` and twice the slowest round
        trip of late: on a thin link what is still on its way must not be sent once more.
        """
        patience_us = min(max(patience_us, 2 * self.round_trip_us), MAX_PATIENCE_US)
        if self.fetching:
            return False
        if self.probing:
            return self.probe_sent_us is not None and now_us - self.probe_sent_us >= patience_us
        for append in self.inflight:
            if not follower_saved < append.last_index <= follower_last:
                return now_us - append.sent_us >= patience_us
        return False

    def retry(self, *, patience_us: int) -> None:
        """Sends again: a lost probe as it was, else from behind what is known to match.

        The round trip is taken for twice as long, for it may have been slow rather than lost, and
        shrinks again with acknowledgements (as TCP's timer does, RFC 6298 §5.5).
        """
        slower_us = max(patience_us, 2 * self.round_trip_us)
        self.round_trip_us = min(slower_us, MAX_PATIENCE_US // 2)
        self.probe_from(self.next_index if self.probing else self.match_index + 1)
