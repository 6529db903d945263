"""The one place that decides when a message may leave.

A message rests on state: the term and the vote it was made in, and the blocks it acknowledges. It
is let out once all of that is durable ("updated on stable storage before responding to RPCs",
paper, figure 2), and never after its term is over. Relies on nothing but the messages' terms.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from consensus.messages import HeartbeatReply, PreVoteReply, PreVoteRequest

if TYPE_CHECKING:
    from consensus.messages import MemberId, RaftMessage
    from consensus.ready import HardState, Outgoing


class Promises:
    """Messages that wait for what they promise to be durable."""

    def __init__(self, durable: HardState) -> None:
        """`durable` is the hard state that is saved; its owner sets it after each save."""
        self.durable = durable
        self._waiting: list[tuple[Outgoing, int]] = []

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
