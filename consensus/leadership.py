"""What a member holds only while it leads: followers' progress, rounds of contact, pending reads.

It is made when a member becomes leader and thrown away when it steps down, so that nothing of one
reign can leak into the next. Pure: time comes in, messages come out. Relies on the log for what to
send and on `quorum` for what a majority has reached.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, assert_never

from consensus.changes import Change, ChangeError, ChangeKind, ChangeRefusal
from consensus.learners import Round
from consensus.messages import (
    Append,
    AppendRejection,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    ReadReply,
    ReadRequest,
    TimeoutNow,
)
from consensus.progress import Progress
from consensus.quorum import majority_index, majority_of
from consensus.ready import ConfirmedRead, Outgoing

if TYPE_CHECKING:
    from collections.abc import Callable

    from consensus.changes import Membership
    from consensus.log import Log
    from consensus.membership import Member
    from consensus.messages import MemberId

    FollowersMail = AppendReply | AppendRejection | HeartbeatReply | ReadRequest

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


class Transfer:
    """The leadership is on its way to `target`, or stays here once `deadline_us` has passed."""

    __slots__ = ("asked_us", "deadline_us", "target")

    def __init__(self, target: MemberId, deadline_us: int) -> None:
        self.target = target
        self.deadline_us = deadline_us
        self.asked_us: int | None = None


class Leadership:
    """One reign: from election to stepping down."""

    def __init__(
        self, *, term: int, member: MemberId, log: Log, config: RaftConfig, now_us: int
    ) -> None:
        """Starts with every follower probed just behind the log's end (paper, figure 2)."""
        self._term = term
        self._member = member
        self._log = log
        self._config = config
        self.followers: dict[MemberId, Progress] = {}
        self._told_commit: dict[MemberId, int] = {}
        self._rounds: dict[MemberId, Round] = {}
        self._round = 0
        self._next_heartbeat_us = now_us
        self._waiting: list[Reader] = []
        self._read_round: ReadRound | None = None
        self.confirmed_reads: list[ConfirmedRead] = []
        self.transfer: Transfer | None = None
        self.note_members(now_us)

    @property
    def next_heartbeat_us(self) -> int:
        """When the next heartbeat is due."""
        return self._next_heartbeat_us

    def note_members(self, now_us: int) -> None:
        """Follow the latest membership: new members are sent to, those that left are not."""
        membership = self._log.roster.latest
        for gone in self.followers.keys() - membership.keys:
            del self.followers[gone]
            del self._told_commit[gone]
        for member in sorted(membership.keys - self.followers.keys() - {self._member}):
            self.followers[member] = Progress(
                next_index=self._log.last_index + 1, last_heard_us=now_us
            )
            self._told_commit[member] = 0
        for member in self._rounds.keys() - membership.learners:
            del self._rounds[member]
        for member in membership.learners - self._rounds.keys() - {self._member}:
            self._rounds[member] = Round(self._log.last_index, now_us)

    def in_contact(self, *, now_us: int, within_us: int) -> bool:
        """Whether a majority, this member included, was heard from within that time.

        A new leader, or a new member, has that long until it must have been heard.
        """
        return self._is_majority(
            self._log.roster.latest, lambda follower: now_us - follower.last_heard_us < within_us
        )

    def commit_index(self) -> int:
        """The commit index that the followers' progress allows.

        "Only log entries from the leader's current term are committed by counting replicas; … then
        all prior entries are committed indirectly" (paper §5.4.2, figure 8). A leader that is no
        voter "does not include itself in majorities" (dissertation §4.2.2).
        """
        candidate = majority_index(
            [
                self._log.saved_index
                if voter == self._member
                else self.followers[voter].match_index
                for voter in self._log.roster.latest.voters
            ]
        )
        if candidate > self._log.commit_index and self._log.term_at(candidate) == self._term:
            return candidate
        return self._log.commit_index

    def successor(self, now_us: int) -> MemberId | None:
        """The voter to hand over to: in contact, and with the longest log, the quickest first."""
        voters = self._log.roster.latest.voters
        able = [
            (progress.match_index, -progress.round_trip_us, member)
            for member, progress in self.followers.items()
            if member in voters and self._may_succeed(progress, now_us)
        ]
        return max(able)[-1] if able else None

    def plan(self, change: Change, now_us: int) -> None:
        """Check that `change` may be sealed now.

        None before a commit in the own term: else two leaders in turn might each make a change
        that the other does not know, and count different majorities (Ongaro, "bug in single-server
        membership changes", raft-dev, 2015). One at a time (dissertation §4.1).

        Raises:
            ChangeError: it may not.
        """
        log = self._log
        if self.transfer is not None:
            raise ChangeError(ChangeRefusal.TRANSFER_UNDER_WAY, "the leadership is being handed on")
        if log.term_at(log.commit_index) != self._term:
            detail = "the leader has not committed a block of its own term yet"
            raise ChangeError(ChangeRefusal.NO_COMMIT_IN_TERM, detail)
        if log.roster.latest_index > log.commit_index:
            detail = f"block {log.roster.latest_index} changes the members and is not committed yet"
            raise ChangeError(ChangeRefusal.CHANGE_UNDER_WAY, detail)
        log.roster.plan(change)
        if change.kind is ChangeKind.RECOVER:
            raise ChangeError(ChangeRefusal.INVALID, "a cluster with a leader has its quorum")
        if change.kind is ChangeKind.PROMOTE and not self._is_near(change.member, now_us):
            detail = f"{change.member.name} is still too far behind to vote"
            raise ChangeError(ChangeRefusal.NOT_CAUGHT_UP, detail)
        after = log.roster.latest.after(change)
        if not self._answers(after, now_us):
            detail = "too few of the voters that would be left are in contact"
            raise ChangeError(ChangeRefusal.NO_QUORUM, detail)

    def begin_transfer(self, target: MemberId | None, now_us: int) -> MemberId:
        """See `Raft.transfer_leadership`."""
        target = target or self.successor(now_us)
        if target is None:
            raise ChangeError(ChangeRefusal.NO_QUORUM, "no other voter is in contact")
        if target == self._member or target not in self._log.roster.latest.voters:
            raise ChangeError(ChangeRefusal.INVALID, "the next leader is to be another voter")
        if self.transfer is not None:
            detail = "the leadership is being handed on already"
            raise ChangeError(ChangeRefusal.TRANSFER_UNDER_WAY, detail)
        if not self._may_succeed(self.followers[target], now_us):
            detail = "the next leader is out of contact, or too far behind"
            raise ChangeError(ChangeRefusal.NOT_CAUGHT_UP, detail)
        self.transfer = Transfer(target, now_us + self._config.election_max_us)
        return target

    def promotion(self, now_us: int) -> Change | None:
        """The promotion of a learner that is due and may be made now, if there is one."""
        for member in self._log.roster.latest.members:
            heard = self.followers.get(member.public_key)
            if heard is None or now_us - heard.last_heard_us >= self._config.election_min_us:
                continue
            if self._is_near(member, now_us) and self._may_promote(member, now_us):
                return Change(ChangeKind.PROMOTE, member)
        return None

    def is_overtaken(self, saving_us: int) -> bool:
        """Whether a voter has saved more of this log than this member, whose save takes so long.

        It must be quicker as a rule as well: where all disks are slow, one after another would be
        the last to save, and each change of leader would make it worse.
        """
        voters = self._log.roster.latest.voters
        return any(
            progress.match_index > self._log.saved_index and 2 * progress.round_trip_us <= saving_us
            for member, progress in self.followers.items()
            if member in voters
        )

    def step(self, source: MemberId, message: FollowersMail, now_us: int) -> None:
        """Takes what one of the followers tells or asks."""
        self.followers[source].has_answered = True
        match message:
            case AppendReply():
                self._on_append_reply(source, message, now_us)
            case AppendRejection():
                self._on_append_rejection(source, message, now_us)
            case HeartbeatReply():
                self._on_heartbeat_reply(source, message, now_us)
            case ReadRequest():
                self.read(Reader(source, message.token))
            case _:
                assert_never(message)

    def _on_append_reply(self, source: MemberId, reply: AppendReply, now_us: int) -> None:
        """A follower holds everything through the reply's match index."""
        progress = self.followers[source]
        progress.last_heard_us = now_us
        if reply.match_index <= self._log.last_index:
            progress.acknowledged(reply.match_index, now_us)
        if source in self._rounds:
            self._rounds[source].acknowledged(
                progress.match_index,
                last_index=self._log.last_index,
                now_us=now_us,
                within_us=self._config.election_min_us,
            )

    def _on_append_rejection(self, source: MemberId, reply: AppendRejection, now_us: int) -> None:
        """A follower's log differs: probe at the last place where both could agree.

        The hint skips all of the follower's blocks of a higher term; our own last block at or below
        the hinted term skips all of ours (paper §5.3: "one AppendEntries RPC … for each term").
        """
        progress = self.followers[source]
        progress.last_heard_us = now_us
        agree = self._log.last_at_or_below_term(reply.hint_index, reply.hint_term)
        progress.rejected(previous_index=reply.previous_index, retry_from=agree + 1)
        self._leave_to_fetch(progress)

    def _on_heartbeat_reply(self, source: MemberId, reply: HeartbeatReply, now_us: int) -> None:
        """A follower still follows; what it lost on the way is noticed here."""
        progress = self.followers[source]
        progress.last_heard_us = now_us
        progress.echoed_round = max(progress.echoed_round, min(reply.round, self._round))
        if progress.fetching and reply.last_index + 1 >= self._log.window_start:
            progress.come_near(min(reply.last_index, self._log.last_index) + 1)
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
        if new_round:
            out += self._confirm_reads()
        appended = set()
        for member, progress in self.followers.items():
            self._leave_to_fetch(progress)
            while progress.has_room and self._due(progress):
                out.append(Outgoing(member, self._append_for(progress, now_us)))
                self._told_commit[member] = self._log.commit_index
                appended.add(member)
        if new_round or now_us >= self._next_heartbeat_us:
            self._next_heartbeat_us = now_us + self._config.heartbeat_us
            if not new_round:
                self._round += 1
            out += [Outgoing(m, self._heartbeat(m, self._round, now_us)) for m in self.followers]
        else:
            out += self._commit_news(appended, now_us)
        return out + self._ask_successor(now_us)

    def _ask_successor(self, now_us: int) -> list[Outgoing]:
        """Tells the successor to campaign once it has all, and again after a heartbeat's time."""
        transfer = self.transfer
        if transfer is None:
            return []
        if self.followers[transfer.target].match_index < self._log.last_index:
            return []
        if transfer.asked_us is not None and now_us - transfer.asked_us < self._config.heartbeat_us:
            return []
        transfer.asked_us = now_us
        return [Outgoing(transfer.target, TimeoutNow(self._term))]

    def _is_majority(self, membership: Membership, says_yes: Callable[[Progress], bool]) -> bool:
        """Whether this member, if it votes, and the followers that say yes are a majority."""
        agreed = sum(
            voter == self._member or (voter in self.followers and says_yes(self.followers[voter]))
            for voter in membership.voters
        )
        return agreed >= majority_of(len(membership.voters))

    def _answers(self, membership: Membership, now_us: int) -> bool:
        """Whether a majority of those voters has answered this very leader, and of late."""
        within_us = self._config.election_max_us
        return self._is_majority(
            membership,
            lambda follower: follower.has_answered and now_us - follower.last_heard_us < within_us,
        )

    def _may_succeed(self, progress: Progress, now_us: int) -> bool:
        """Whether that follower lives, as far as can be told, and needs nothing but the last."""
        is_heard = now_us - progress.last_heard_us < self._config.election_min_us
        return is_heard and progress.has_answered and not progress.fetching

    def _is_near(self, member: Member, now_us: int) -> bool:
        """Whether a learner has come near enough to vote."""
        learning = self._rounds.get(member.public_key)
        return learning is not None and learning.is_near(
            self.followers[member.public_key].match_index,
            now_us=now_us,
            within_us=self._config.election_min_us,
        )

    def _may_promote(self, member: Member, now_us: int) -> bool:
        try:
            self.plan(Change(ChangeKind.PROMOTE, member), now_us)
        except ChangeError:
            return False
        return True

    def _leave_to_fetch(self, progress: Progress) -> None:
        """What is not in memory is never read from the disk for a follower: it fetches that."""
        if not progress.fetching and progress.next_index < self._log.window_start:
            progress.leave_to_fetch()

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

    def _heartbeat(self, member: MemberId, contact_round: int, now_us: int) -> Heartbeat:
        """A heartbeat names no commit index beyond what the follower is known to hold.

        Who is not heard from may hear this all the same, and lack the very block that says where
        the leader is to be reached since it moved: it may fetch that from others.
        """
        progress = self.followers[member]
        known = min(self._log.commit_index, progress.match_index)
        self._told_commit[member] = max(known, self._told_commit[member])
        is_silent = now_us - progress.last_heard_us >= self._config.election_max_us
        fetch_through = self._log.commit_index if progress.fetching or is_silent else 0
        return Heartbeat(self._term, known, contact_round, fetch_through)

    def _commit_news(self, appended: set[MemberId], now_us: int) -> list[Outgoing]:
        """Tells followers of a new commit at once, so that their clients need not wait."""
        news = []
        for member, progress in self.followers.items():
            known = min(self._log.commit_index, progress.match_index)
            if member not in appended and known > self._told_commit[member]:
                news.append(Outgoing(member, self._heartbeat(member, NO_REPLY, now_us)))
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
        if not self._is_majority(
            self._log.roster.latest, lambda follower: follower.echoed_round >= reads.round
        ):
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
