"""When a learner has come near enough to vote: rounds of replication (dissertation §4.2.1).

Each round sends all that the log held when it began; "if the last round lasts less than an election
timeout, then the leader adds the new server to the cluster". Relies on nothing; time comes in as
microseconds.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Round:
    """The round that one learner is in, and how its last one went."""

    target_index: int
    began_us: int
    was_short: bool = False

    def acknowledged(
        self, match_index: int, *, last_index: int, now_us: int, within_us: int
    ) -> None:
        """The learner holds everything through `match_index`; the log ends at `last_index`.

        A round that ended within `within_us` leaves so little to send that a vote of the learner
        would not hold the others up. Where it leaves nothing, the next one is over at once: no
        acknowledgement would come to end it while the cluster is idle.
        """
        if match_index < self.target_index:
            return
        self.was_short = now_us - self.began_us < within_us or match_index == last_index
        self.target_index = last_index
        self.began_us = now_us

    def is_near(self, match_index: int, *, now_us: int, within_us: int) -> bool:
        """Whether the last round was short, and the present one has not become a long one."""
        is_on_time = match_index >= self.target_index or now_us - self.began_us < within_us
        return self.was_short and is_on_time
