"""Raft for one member: messages, time and proposals in, `Ready` out; nothing else happens here.

Theory of operation. A member is in one `Role`; `step` takes a peer's message, first settles terms
(`_accept_term`), then hands it to one small handler. Roles change only through `_become_*`. The
caller works in rounds: feed `tick`, `step`, `propose`, `read`; then take `ready()`: send its
messages, start its save, apply what is committed; when the save is durable, call `saved`, and take
`ready()` again. At most one save is under way; what comes meanwhile joins the next one.

    FOLLOWER ──timeout──▶ PRE_CANDIDATE ──majority──▶ CANDIDATE ──majority──▶ LEADER
        ▲                      │                          │                     │
        └──────────────── higher term, or a leader of this term ◀───────────────┘ lost its quorum

Elections are in `consensus.elections`; here is what becomes of blocks. Sources: Ongaro and
Ousterhout, "In Search of an Understandable Consensus Algorithm" (2014), cited as *paper*; Ongaro,
"Consensus: Bridging Theory and Practice" (2014), cited as *dissertation*.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, assert_never

from consensus.block import TRANSACTION_ID_BYTES
from consensus.changes import ChangeError, ChangeRefusal, change_transaction
from consensus.elections import Elector
from consensus.intake import ContradictionError
from consensus.leadership import NO_REPLY, Leadership, Reader
from consensus.messages import (
    Append,
    AppendRejection,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    PreVoteReply,
    PreVoteRequest,
    ReadReply,
    ReadRequest,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from consensus.ready import ConfirmedRead, Ready, Role

if TYPE_CHECKING:
    from collections.abc import Sequence

    from consensus.block import Block
    from consensus.changes import Change
    from consensus.leadership import FollowersMail
    from consensus.messages import MemberId, RaftMessage
    from consensus.ready import Save

MAX_APPLY_BYTES: Final = 1 << 20
"""Committed blocks handed out by one `ready`, so that catching up comes in slices."""


class Raft(Elector):
    """The consensus state of one member. See the module's text for how it is driven."""

    # Inputs

    def advance(self, now_us: int, wall_us: int) -> None:
        """The clock moves, before a message is taken; only `tick` lets a timeout run out.

        `now_us` is monotonic, `wall_us` only stamps blocks (no safety on it).
        """
        assert now_us >= self._now_us, "monotonic time never falls"
        self._now_us = now_us
        self._wall_us = wall_us

    def tick(self, now_us: int, wall_us: int) -> None:
        """Time passes, and what was due is done."""
        self.advance(now_us, wall_us)
        if not self._patience.has_begun:
            self._patience.rest(now_us)
        if self.alarm is not None:
            return
        if self.leadership is not None:
            self._check_leadership(self.leadership)
        elif now_us >= self._patience.due_us:
            self._campaign()

    def wake_us(self) -> int:
        """When `tick` has something to do next if nothing else happens."""
        if self.alarm is not None:
            return self._now_us + self.config.election_max_us
        if self.leadership is not None:
            return self.leadership.next_heartbeat_us
        return self._patience.due_us

    def step(self, source: MemberId, message: RaftMessage) -> None:
        """Takes one message from the authenticated member `source`.

        A faulty message is dropped and counted in `dropped`; it never raises.
        """
        if source == self.member or not self._knows(source):
            self.dropped["stranger"] += 1
        elif self.alarm is None and self._accept_term(source, message):
            self._handle(source, message)

    def _handle(self, source: MemberId, message: RaftMessage) -> None:
        match message:
            case PreVoteRequest():
                self._on_pre_vote_request(source, message)
            case PreVoteReply():
                self._on_pre_vote_reply(source, message)
            case VoteRequest():
                self._on_vote_request(source, message)
            case VoteReply():
                self._on_vote_reply(source, message)
            case Append():
                self._on_append(source, message)
            case Heartbeat():
                self._on_heartbeat(source, message)
            case TimeoutNow():
                self._on_timeout_now(source)
            case ReadReply():
                self._on_read_reply(message)
            case AppendReply() | AppendRejection() | HeartbeatReply() | ReadRequest():
                self._on_followers_mail(source, message)
            case _:
                assert_never(message)

    def change_membership(self, change: Change) -> Block:
        """Seals a block of its own that changes one member; the change is in force at once.

        Raises:
            ChangeError: this member does not lead, or the change must not be made now, or ever.
        """
        leadership = self._reign()
        leadership.plan(change, self._now_us)
        change_id = self.random.randbytes(TRANSACTION_ID_BYTES)
        before = self.log.roster.latest
        block = self.propose([change_transaction(change, before, change_id=change_id)])
        leadership.note_members(self._now_us)
        return block

    def transfer_leadership(self, target: MemberId | None = None) -> MemberId:
        """Begins to hand over to `target`, or to whoever is closest; returns to whom.

        Until that member leads, or an election timeout is over, nothing is to be proposed
        (dissertation §3.10): see `may_propose`.

        Raises:
            ChangeError: this member does not lead, or the target cannot.
        """
        return self._reign().begin_transfer(target, self._now_us)

    def _reign(self) -> Leadership:
        if self.leadership is None:
            raise ChangeError(ChangeRefusal.NOT_LEADER, "this node does not lead")
        return self.leadership

    @property
    def may_propose(self) -> bool:
        """Whether this member leads and is not about to hand over."""
        return self.leadership is not None and self.leadership.transfer is None

    @property
    def durable_term(self) -> int:
        """The term that is saved: what this member says of it may leave."""
        return self._promises.durable.term

    def take_fetched(self, term: int, first: int, blocks: Sequence[bytes]) -> None:
        """Takes committed blocks from `first` on that another member, in `term`, sent when asked.

        They are verified like a leader's. Where they contradict blocks that are not known to be
        committed here, those give way: what is committed is in the log of every leader to come.
        The sender may know of the commit from a leader of its term; one of an older term, whose
        log may differ, must not be followed any longer.
        """
        if self.alarm is not None or self.leadership is not None:
            return
        if term > self.term:
            self._become_follower(term)
        tip = self.log.last_tip
        try:
            last_index = self._intake.take_committed(first, blocks)
        except ContradictionError as error:
            self._raise_alarm(str(error))
            return
        if self.log.last_term > self.term:
            self._become_follower(self.log.last_term)
        elif self.log.last_tip is not tip and self.role is not Role.FOLLOWER:
            # What it asked votes for is its log no more, and who votes may have changed.
            self._become_follower(self.term)
        self._commit(last_index)

    def read(self, token: int) -> None:
        """Asks for a linearizable read; `Ready.reads` answers with the same token.

        Tokens rise from call to call. Reads lost with their leader are answered with None. One
        whose request or reply the network lost is answered with the next one that gets through:
        the caller asks again after a while.
        """
        if self.leadership is not None:
            self.leadership.read(Reader(None, token))
        elif self.leader is not None:
            self._send(self.leader, ReadRequest(self.term, self._asked_reads.ask(token)))
        else:
            self._reads.append(ConfirmedRead(token, None))

    def unreachable(self, peer: MemberId) -> None:
        """The connection to `peer` broke. A lost leader is not waited for any longer.

        Only a hint: it shortens this member's own patience, and every other member that still
        hears the leader refuses the pre-vote.
        """
        if peer == self.leader and self.leadership is None:
            self._patience.doubt(self._now_us)

    def saved(self, save: Save) -> None:
        """`save` is durable. What rested on it leaves with the next `ready`."""
        self._promises.saved(save)
        self.log.mark_saved(save.blocks)
        self._advance_commit()
        self._release_promises()

    def ready(self) -> Ready:
        """What must happen now. Its messages may leave at once."""
        if self.leadership is not None:
            self._messages += self.leadership.messages(self._now_us)
            self._reads += self.leadership.confirmed_reads
            self.leadership.confirmed_reads.clear()
        messages, self._messages = tuple(self._messages), []
        reads, self._reads = tuple(self._reads), []
        committed = self.log.take_committed(MAX_APPLY_BYTES)
        save = self._promises.next_save(
            self.log, term=self.term, vote=self.vote, now_us=self._now_us
        )
        return Ready(messages, save, committed, reads)

    # Followers

    def _on_append(self, source: MemberId, append: Append) -> None:
        if not self._follow(source):
            return
        try:
            reply = self._intake.take(append)
        except ContradictionError as error:
            self._raise_alarm(str(error))
            return
        if isinstance(reply, AppendReply):
            self._commit(min(append.commit_index, reply.match_index))
            self._send(source, reply, reply.match_index)
        else:
            self._send(source, reply)

    def _on_heartbeat(self, source: MemberId, heartbeat: Heartbeat) -> None:
        if not self._follow(source):
            return
        if heartbeat.commit_index > self.log.last_index:
            self._raise_alarm("this member acknowledged blocks that it does not hold any more")
            return
        self._commit(heartbeat.commit_index)
        self.fetch_through = max(self.fetch_through, heartbeat.fetch_through)
        if heartbeat.round != NO_REPLY:
            self._send(source, self._heartbeat_reply(heartbeat.round))

    # Leaders

    def _on_followers_mail(self, source: MemberId, message: FollowersMail) -> None:
        """What a follower tells or asks its leader; late for one that leads no longer."""
        if self.leadership is not None and source in self.leadership.followers:
            self.leadership.step(source, message, self._now_us)
            self._advance_commit()

    def _commit(self, index: int) -> None:
        if index > self.log.commit_index:
            self.log.commit_to(index)

    def _advance_commit(self) -> None:
        if self.leadership is None:
            return
        self._commit(self.leadership.commit_index())
        log = self.log
        is_settled = log.roster.latest_index <= log.commit_index
        leads_in_fact = log.term_at(log.commit_index) == self.term
        if self.member not in self.voters and is_settled and leads_in_fact:
            # "The leader … steps down … once C_new is committed" (dissertation §4.2.2), and one
            # that only learns once a voter can lead in its place.
            self._hand_over(self.leadership)

    def _check_leadership(self, leadership: Leadership) -> None:
        """Steps down without a quorum (dissertation §6.2), hands over when the disk stalls."""
        now_us = self._now_us
        if not leadership.in_contact(now_us=now_us, within_us=self.config.election_max_us):
            self._become_follower(self.term)
        elif self._save_is_slow() and leadership.is_overtaken(self._promises.saving_us(now_us)):
            self._hand_over(leadership)
        else:
            if leadership.transfer is not None and now_us >= leadership.transfer.deadline_us:
                leadership.transfer = None
            self._promote(leadership)

    def _promote(self, leadership: Leadership) -> None:
        """A learner that has come near votes from now on, as soon as a change may be made."""
        promotion = leadership.promotion(self._now_us)
        if promotion is not None:
            self.change_membership(promotion)

    def _on_read_reply(self, reply: ReadReply) -> None:
        confirmed = self._asked_reads.answered(reply.token)
        self._reads += [ConfirmedRead(token, reply.read_index) for token in confirmed]
