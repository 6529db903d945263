"""What a member holds only while it leads: followers' progress, rounds of contact, pending reads.

It is made when a member becomes leader and thrown away when it steps down, so that nothing of one
reign can leak into the next. Pure: time comes in, messages come out. Relies on the log for what to
send and on `quorum` for what a majority has reached.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from consensus.messages import Append, Heartbeat, ReadReply
from consensus.progress import Progress
from consensus.quorum import majority_index, majority_of
from consensus.ready import ConfirmedRead, Outgoing

if TYPE_CHECKING:
    from collections.abc import Iterable

    from consensus.log import Log
    from consensus.messages import AppendRejection, AppendReply, HeartbeatReply, MemberId

MAX_APPEND_BYTES: Final = 2 << 20
"""Blocks of one append, in bytes, so that a frame stays well below the peers' 4 MiB."""

NO_REPLY: Final = 0
"""The round of a heartbeat that only spreads the commit index."""


@dataclass(frozen=True, slots=True)
class RaftConfig:
    """Times of the core, in microseconds."""

    heartbeat_us: int = 50_000
    election_min_us: int = 300_000
    election_max_us: int = 600_000

    def __post_init__(self) -> None:
        """Refuses times under which a healthy leader would be deposed."""
        assert self.heartbeat_us > 0, "a heartbeat takes time"
        assert 3 * self.heartbeat_us <= self.election_min_us, "three heartbeats in an election"
        assert self.election_min_us < self.election_max_us, "election timeouts are spread"


class Reader(NamedTuple):
    """Who asked for a read: this member where `source` is None, else a follower."""

    source: MemberId | None
    token: int


class ReadRound(NamedTuple):
    """Reads that wait for a majority to echo `round`."""

    round: int
    read_index: int
    readers: tuple[Reader, ...]


class Leadership:
    """One reign: from election to stepping down."""

    def __init__(
        self, *, term: int, followers: Iterable[MemberId], log: Log, config: RaftConfig, now_us: int
    ) -> None:
        """Starts with every follower probed just behind the log's end (paper, figure 2)."""
        self._term = term
        self._log = log
        self._config = config
        self.followers = {
            member: Progress(next_index=log.last_index + 1, last_heard_us=now_us)
            for member in sorted(followers)
        }
        self._told_commit = dict.fromkeys(self.followers, 0)
        self._round = 0
        self._next_heartbeat_us = now_us
        self._waiting: list[Reader] = []
        self._read_round: ReadRound | None = None
        self.confirmed_reads: list[ConfirmedRead] = []

    @property
    def next_heartbeat_us(self) -> int:
        """When the next heartbeat is due."""
        return self._next_heartbeat_us

    def in_contact(self, *, now_us: int, within_us: int) -> bool:
        """Whether a majority, this member included, was heard from within that time."""
        heard = sum(now_us - p.last_heard_us < within_us for p in self.followers.values())
        return heard + 1 >= self._majority

    def commit_index(self) -> int:
        """The commit index that the followers' progress allows.

        "Only log entries from the leader's current term are committed by counting replicas; … then
        all prior entries are committed indirectly" (paper §5.4.2, figure 8).
        """
        matches = [progress.match_index for progress in self.followers.values()]
        candidate = majority_index([self._log.saved_index, *matches])
        if candidate > self._log.commit_index and self._log.term_at(candidate) == self._term:
            return candidate
        return self._log.commit_index

    def on_append_reply(self, source: MemberId, reply: AppendReply, now_us: int) -> None:
        """A follower holds everything through the reply's match index."""
        progress = self.followers[source]
        progress.last_heard_us = now_us
        if reply.match_index <= self._log.last_index:
            progress.acknowledged(reply.match_index, now_us)

    def on_append_rejection(self, source: MemberId, reply: AppendRejection, now_us: int) -> None:
        """A follower's log differs: probe at the last place where both could agree.

        The hint skips all of the follower's blocks of a higher term; our own last block at or below
        the hinted term skips all of ours (paper §5.3: "one AppendEntries RPC … for each term").
        """
        progress = self.followers[source]
        progress.last_heard_us = now_us
        agree = self._log.last_at_or_below_term(reply.hint_index, reply.hint_term)
        progress.rejected(previous_index=reply.previous_index, retry_from=agree + 1)

    def on_heartbeat_reply(self, source: MemberId, reply: HeartbeatReply, now_us: int) -> None:
        """A follower still follows; what it lost on the way is noticed here."""
        progress = self.followers[source]
        progress.last_heard_us = now_us
        progress.echoed_round = max(progress.echoed_round, min(reply.round, self._round))
        patience_us = 2 * self._config.heartbeat_us
        lost = progress.looks_lost(
            follower_last=reply.last_index,
            follower_saved=reply.saved_index,
            now_us=now_us,
            patience_us=patience_us,
        )
        if lost:
            progress.retry(patience_us=patience_us)

    def read(self, reader: Reader) -> None:
        """Takes a read, to be confirmed by a round that begins after this call."""
        self._waiting.append(reader)

    def lost_readers(self) -> tuple[Reader, ...]:
        """The reads that were not confirmed, for when this leadership ends."""
        in_round = self._read_round.readers if self._read_round else ()
        return (*in_round, *self._waiting)

    def messages(self, now_us: int) -> list[Outgoing]:
        """Everything that should leave now: confirmed reads, appends, heartbeats, commit news."""
        out = self._confirm_reads()
        new_round = self._start_read_round()
        if not self.followers:
            out += self._confirm_reads()
        appended = set()
        for member, progress in self.followers.items():
            while progress.has_room and self._due(progress):
                out.append(Outgoing(member, self._append_for(progress, now_us)))
                self._told_commit[member] = self._log.commit_index
                appended.add(member)
        if new_round or now_us >= self._next_heartbeat_us:
            self._next_heartbeat_us = now_us + self._config.heartbeat_us
            if not new_round:
                self._round += 1
            out += [Outgoing(m, self._heartbeat(m, self._round)) for m in self.followers]
        else:
            out += self._commit_news(appended)
        return out

    @property
    def _majority(self) -> int:
        return majority_of(len(self.followers) + 1)

    def _due(self, progress: Progress) -> bool:
        return progress.probing or progress.next_index <= self._log.last_index

    def _append_for(self, progress: Progress, now_us: int) -> Append:
        previous = self._log.tip_at(progress.next_index - 1)
        blocks = self._log.blocks_from(
            progress.next_index, max_blocks=progress.room_blocks, max_bytes=MAX_APPEND_BYTES
        )
        progress.sent(
            last_index=previous.index + len(blocks),
            blocks=len(blocks),
            size_bytes=sum(block.size_bytes for block in blocks),
            now_us=now_us,
        )
        return Append(
            term=self._term,
            previous_index=previous.index,
            previous_term=previous.term,
            previous_hash=previous.hash,
            commit_index=self._log.commit_index,
            blocks=tuple(block.encode() for block in blocks),
        )

    def _heartbeat(self, member: MemberId, contact_round: int) -> Heartbeat:
        """A heartbeat names no commit index beyond what the follower is known to hold."""
        known = min(self._log.commit_index, self.followers[member].match_index)
        self._told_commit[member] = max(known, self._told_commit[member])
        return Heartbeat(term=self._term, commit_index=known, round=contact_round)

    def _commit_news(self, appended: set[MemberId]) -> list[Outgoing]:
        """Tells followers of a new commit at once, so that their clients need not wait."""
        news = []
        for member, progress in self.followers.items():
            known = min(self._log.commit_index, progress.match_index)
            if member not in appended and known > self._told_commit[member]:
                news.append(Outgoing(member, self._heartbeat(member, NO_REPLY)))
        return news

    def _start_read_round(self) -> bool:
        """One round serves all reads that wait; none before a commit in the own term.

        "If the leader has not yet marked an entry from its current term committed, it waits until
        it has done so" (dissertation §6.4).
        """
        if not self._waiting or self._read_round is not None:
            return False
        if self._log.term_at(self._log.commit_index) != self._term:
            return False
        self._round += 1
        self._read_round = ReadRound(self._round, self._log.commit_index, tuple(self._waiting))
        self._waiting.clear()
        return True

    def _confirm_reads(self) -> list[Outgoing]:
        reads = self._read_round
        if reads is None:
            return []
        echoes = sum(p.echoed_round >= reads.round for p in self.followers.values())
        if echoes + 1 < self._majority:
            return []
        self._read_round = None
        replies = []
        for source, token in reads.readers:
            if source is None:
                self.confirmed_reads.append(ConfirmedRead(token, reads.read_index))
            else:
                reply = ReadReply(term=self._term, token=token, read_index=reads.read_index)
                replies.append(Outgoing(source, reply))
        return replies
