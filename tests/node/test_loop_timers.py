"""The loop of a member keeps the time of what gathers, on the event loop that nodes run on."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import uvloop

from node.effects import Effects
from node.loop import MemberLoop
from node.pacing import NEVER_US

if TYPE_CHECKING:
    from node.replica import Replica
    from storage.contract import Chain

WAITS = 50
GATHER_US = 3_400
NOTHING = Effects((), None, (), (), has_new_members=False, more=False)


class Gathering:
    """A replica that has something to seal a while after each seal."""

    def __init__(self) -> None:
        self.applied_index = 0
        self.obstacle = None
        self.raft = SimpleNamespace(leader=None)
        self.seal_us = NEVER_US
        self.pumps = self.seals = 0
        self._now_us = 0

    def tick(self, now_us: int, _wall_us: int) -> None:
        """Time passes."""
        self._now_us = now_us

    def pump(self) -> Effects:
        """Seals what is due, and gathers again."""
        self.pumps += 1
        if self.seal_us == NEVER_US or self._now_us >= self.seal_us:
            self.seals += 1
            self.seal_us = self._now_us + GATHER_US + 7 * self.seals
        return NOTHING


async def gather() -> Gathering:
    """As many seals as it takes."""
    replica = Gathering()
    loop = MemberLoop(
        replica=cast("Replica", replica),
        chain=cast("Chain", None),
        tick_s=3_600,
        on_applied=lambda _: None,
        on_members=lambda: None,
        on_failure=lambda _: None,
    )
    loop.start(lambda _member, _lane, _message: True)
    loop._wake()
    ends = time.monotonic() + 10
    while replica.seals < WAITS and time.monotonic() < ends:  # noqa: ASYNC110 - it has no event
        await asyncio.sleep(0.01)
    loop.stop()
    await loop.close()
    return replica


def test_a_wait_takes_no_more_than_a_pump_or_two() -> None:
    """Its timers are of whole milliseconds, and what is left of a wait is less."""
    replica = uvloop.run(gather())
    assert replica.seals >= WAITS
    assert replica.pumps <= 3 * WAITS
