"""How long a member waits before it campaigns, and how sure it is that its leader lives.

Relies on the times of `RaftConfig`; time comes in as microseconds, randomness as a seeded source.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from random import Random

    from consensus.leadership import RaftConfig

NOT_STARTED: Final = -1


class Patience:
    """The election timeout of one member, and when it last heard from a leader."""

    def __init__(self, config: RaftConfig, random: Random) -> None:
        """Begins with the first `rest`."""
        self._config = config
        self._random = random
        self.due_us = NOT_STARTED
        self.heard_us = 0
        self._begun_us = 0

    @property
    def has_begun(self) -> bool:
        """Whether a timeout runs at all."""
        return self.due_us != NOT_STARTED

    def rest(self, now_us: int) -> None:
        """A fresh random timeout, so that split votes are rare (paper §5.2)."""
        if not self.has_begun:
            self._begun_us = now_us
        spread_us = self._config.election_max_us - self._config.election_min_us
        wait_us = self._config.election_min_us + self._random.randrange(spread_us)
        self.due_us = now_us + wait_us

    def heard(self, now_us: int) -> None:
        """The leader of this term has spoken."""
        self.heard_us = now_us
        self.rest(now_us)

    def trusts_leader(self, now_us: int) -> bool:
        """Whether the minimum election timeout since the leader's last word is not over."""
        return now_us - self.heard_us < self._config.election_min_us

    def lost_for_us(self, now_us: int) -> int:
        """How long no leader has spoken."""
        return now_us - max(self.heard_us, self._begun_us)

    def doubt(self, now_us: int) -> None:
        """The connection to the leader broke: it is trusted no longer, and not waited for long."""
        self.heard_us = now_us - self._config.election_min_us
        patience_us = self._random.randrange(self._config.election_min_us // 3)
        self.due_us = min(self.due_us, now_us + patience_us)
