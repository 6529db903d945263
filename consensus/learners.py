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
        would not hold the others up. So does one that leaves nothing to send: while nothing new is
        sealed, no further acknowledgement would come to end the next one.
        """
        if match_index < self.target_index:
            return
        self.was_short = now_us - self.began_us < within_us or match_index >= last_index
        self.target_index = last_index
        self.began_us = now_us
