"""What is durable, what is on its way to the disk, and which messages may leave by that.

A message rests on state: the term and the vote it was made in, and the blocks it acknowledges. It
is let out once all of that is durable ("updated on stable storage before responding to RPCs",
paper, figure 2), and never after its term is over. At most one save is under way. Relies on the
messages' terms and on the log for what is not saved yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from consensus.messages import HeartbeatReply, PreVoteReply, PreVoteRequest
from consensus.ready import HardState, Save

if TYPE_CHECKING:
    from consensus.log import Log
    from consensus.messages import MemberId, RaftMessage
    from consensus.ready import Outgoing


class Promises:
    """The hard state that is durable, the save under way, and the messages that wait for it."""

    def __init__(self, durable: HardState) -> None:
        """`durable` is the hard state that is saved."""
        self.durable = durable
        self._save: Save | None = None
        self._save_started_us = 0
        self._waiting: list[tuple[Outgoing, int]] = []

    def next_save(self, log: Log, *, term: int, vote: MemberId | None, now_us: int) -> Save | None:
        """The save to start now: None while one is under way, or where all is durable."""
        if self._save is not None:
            return None
        if self.are_covered(term, vote) and not log.has_unsaved:
            return None
        truncate_from, blocks = log.take_save()
        # The commit index rides along, never ahead of the blocks that this very save makes durable.
        last_index = blocks[-1].index if blocks else log.saved_index
        hard_state = HardState(term, vote, min(log.commit_index, last_index))
        self._save = Save(hard_state, truncate_from, blocks)
        self._save_started_us = now_us
        return self._save

    def saved(self, save: Save) -> None:
        """`save` is durable."""
        assert save is self._save, "saves end in the order they were given"
        self._save = None
        self.durable = save.hard_state

    def saving_us(self, now_us: int) -> int:
        """How long the save under way has been so; 0 where there is none."""
        return 0 if self._save is None else now_us - self._save_started_us

    def add(self, outgoing: Outgoing, match_index: int) -> None:
        """Keeps a message back that acknowledges the blocks through `match_index`.

        A heartbeat's reply takes the place of an earlier one: while a save stalls they would pile
        up, and the last one says all.
        """
        if isinstance(outgoing.message, HeartbeatReply):
            self._waiting = [kept for kept in self._waiting if not _is_reply_to(outgoing, kept[0])]
        self._waiting.append((outgoing, match_index))

    def are_covered(self, term: int, vote: MemberId | None) -> bool:
        """Whether the present term and vote are durable."""
        return (self.durable.term, self.durable.vote) == (term, vote)

    def release(self, term: int, vote: MemberId | None, saved_index: int) -> list[Outgoing]:
        """The messages that may leave now, in order; those of an earlier term are void."""
        if not self.are_covered(term, vote):
            return []
        waiting, self._waiting = self._waiting, []
        released = []
        for outgoing, match_index in waiting:
            if not _is_current(outgoing.message, term):
                continue
            if match_index > saved_index:
                self._waiting.append((outgoing, match_index))
            else:
                released.append(outgoing)
        return released


def _is_reply_to(news: Outgoing, kept: Outgoing) -> bool:
    return kept.target == news.target and isinstance(kept.message, HeartbeatReply)


def _is_current(message: RaftMessage, term: int) -> bool:
    """A pre-vote speaks of a term to come; everything else of the present one."""
    granted = isinstance(message, PreVoteReply) and message.granted
    if granted or isinstance(message, PreVoteRequest):
        return message.term > term
    return message.term == term
