"""Who leads: terms, votes and roles of one member.

The half of `Raft` that decides who may seal; in `consensus.raft` is the other half, what becomes
of blocks. `_accept_term` settles terms before any handler sees a message; roles change only through
`_become_*`. Sources: Ongaro and Ousterhout, "In Search of an Understandable Consensus Algorithm"
(2014), cited as *paper*; Ongaro, "Consensus: Bridging Theory and Practice" (2014), cited as
*dissertation*. Relies on the log for how far it reaches, and on `Promises` for what may leave when.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from consensus.intake import Intake
from consensus.leadership import NO_REPLY, Leadership, RaftConfig
from consensus.log import Log, extend
from consensus.messages import (
    Append,
    Heartbeat,
    HeartbeatReply,
    PreVoteReply,
    PreVoteRequest,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from consensus.patience import Patience
from consensus.promises import Promises
from consensus.quorum import Poll
from consensus.reads import AskedReads
from consensus.ready import ConfirmedRead, Outgoing, Role

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

    from consensus.block import Block, Sealer
    from consensus.log import ChainView
    from consensus.messages import MemberId, RaftMessage
    from consensus.ready import HardState

LEARNER_PATIENCE: Final = 10
"""After so many of the longest election timeouts without a leader a learner asks for votes."""


class Elector:
    """One member as far as elections go: its role in its term."""

    def __init__(
        self,
        *,
        config: RaftConfig,
        member: MemberId,
        cluster_id: bytes,
        sealer: Sealer,
        chain: ChainView,
        hard_state: HardState,
        applied_index: int,
        random: Random,
    ) -> None:
        """Takes up where the durable state left off, as a follower of its last term.

        `applied_index` is how far the caller has applied; `ready` goes on from the next block.
        `random` must not repeat itself from one start to the next. Who the members are is in the
        chain; `member` need not be one of them, yet or any longer.
        """
        self.config = config
        self.member = member
        self._sealer = sealer
        self.random = random
        self._now_us = 0
        self._wall_us = 0
        self.role = Role.FOLLOWER
        self.term = hard_state.term
        self.vote = hard_state.vote
        self.leader: MemberId | None = None
        self.alarm: str | None = None
        self.dropped: Counter[str] = Counter()
        commit_index = max(hard_state.commit_index, applied_index)
        self.log = Log(chain, commit_index=commit_index, applied_index=applied_index)
        assert self.log.last_term <= self.term, "a term is saved before its blocks"
        self.fetch_through = 0
        """The highest index that a leader asked this member to fetch by itself."""
        self._intake = Intake(self.log, cluster_id, dropped=self.dropped)
        self.leadership: Leadership | None = None
        self._promises = Promises(hard_state)
        self._patience = Patience(config, random)
        self._poll = Poll(self.voters)
        self._asked_reads = AskedReads(base=random.getrandbits(62))
        self._messages: list[Outgoing] = []
        self._reads: list[ConfirmedRead] = []

    @property
    def voters(self) -> frozenset[MemberId]:
        """Those that majorities are made of, by the latest membership in the log."""
        return self.log.roster.latest.voters

    @property
    def removed_at(self) -> int | None:
        """The committed block that removed this member, if there is one."""
        gone = self.log.roster.former(self.log.commit_index).get(self.member)
        return gone[1] if gone else None

    def propose(self, transactions: Sequence[bytes]) -> Block:
        """Seals `transactions` into the next block; only the leader may, and none twice."""
        assert self.leadership is not None, "only the leader seals"
        block = self._sealer.seal(
            self.log.last_tip, term=self.term, transactions=transactions, wall_us=self._wall_us
        )
        extend(self.log, block)
        return block

    # Terms

    def _accept_term(self, source: MemberId, message: RaftMessage) -> bool:
        """Settles terms (paper §5.1); False where the message needs no handler."""
        if message.term < self.term:
            self._answer_stale(source, message)
            return False
        if _disturbs(message) and self._leader_is_alive():
            # "If a server receives a RequestVote request within the minimum election timeout of
            # hearing from a current leader, it does not update its term or grant its vote"
            # (dissertation §4.2.3).
            self.dropped["sticky"] += 1
            return False
        if message.term == self.term or isinstance(message, PreVoteRequest):
            return True
        if isinstance(message, PreVoteReply) and message.granted:
            return True
        self._become_follower(message.term)
        return True

    def _answer_stale(self, source: MemberId, message: RaftMessage) -> None:
        """A member of an older term learns ours, so that it is not stuck (paper §5.1)."""
        match message:
            case PreVoteRequest():
                self._send(source, PreVoteReply(term=self.term, granted=False))
            case VoteRequest():
                self._send(source, VoteReply(term=self.term, granted=False))
            case Append() | Heartbeat():
                self._send(source, self._heartbeat_reply(NO_REPLY))
            case _:
                self.dropped["stale"] += 1

    def _leader_is_alive(self) -> bool:
        within_us = self.config.election_min_us
        if self.leadership is not None:
            return self.leadership.in_contact(now_us=self._now_us, within_us=within_us)
        return self.leader is not None and self._patience.trusts_leader(self._now_us)

    def _knows(self, source: MemberId) -> bool:
        """Whether `source` is a member as far as this log tells, or was until a moment ago."""
        roster = self.log.roster
        return source in roster.latest.keys or source in roster.at(self.log.commit_index).keys

    # Elections

    def _campaign(self) -> None:
        """The election timeout ran out: ask for pre-votes (paper §5.2, dissertation §9.6).

        A candidate whose own vote is not durable yet has a slow disk, not a lost election. Who may
        not lead asks nobody, but has lost its leader all the same.
        """
        is_voting = self.role is Role.CANDIDATE and not self._is_durable
        if self._save_is_slow() or is_voting:
            self._patience.rest(self._now_us)
            return
        if not self._may_campaign():
            self._become_follower(self.term)
            return
        self._become_pre_candidate()
        request = PreVoteRequest(self.term + 1, self.log.last_index, self.log.last_term)
        for peer in self._peers():
            self._send(peer, request)
        self._on_pre_vote_reply(self.member, PreVoteReply(self.term + 1, granted=True))

    def _may_campaign(self) -> bool:
        """Whether this member may be the one that the others need.

        "A server that is not part of its own latest configuration … should still start new
        elections" until the new one is committed (dissertation §4.2.2). So should a learner, after
        a long time without a leader: it may have the longest log, and a voter may need its vote,
        by a promotion that the learner's own log does not hold. Else both would wait for ever.
        """
        return self._may_vote() or (
            self.member in self.log.roster.latest.keys
            and self._patience.lost_for_us(self._now_us)
            >= LEARNER_PATIENCE * self.config.election_max_us
        )

    def _may_vote(self) -> bool:
        """Whether this member is a voter, or one whose removal is not committed."""
        roster = self.log.roster
        if roster.latest_index <= self.log.commit_index or self.member in roster.latest.keys:
            return self.member in self.voters
        is_elector = self.member in roster.electors(self.log.last_index + 1)
        return is_elector and self.member in roster.at(roster.latest_index - 1).voters

    def _on_timeout_now(self, source: MemberId) -> None:
        """The leader hands over: no pre-vote, for nobody else has lost it (dissertation §3.10)."""
        if source != self.leader or not self._may_vote() or self._save_is_slow():
            self.dropped["untimely handover"] += 1
            return
        self._become_candidate(transfer=True)

    def _on_pre_vote_request(self, source: MemberId, request: PreVoteRequest) -> None:
        if request.term > self.term and self._is_up_to_date(request):
            self._send(source, PreVoteReply(term=request.term, granted=True))
        else:
            self._send(source, PreVoteReply(term=self.term, granted=False))

    def _on_pre_vote_reply(self, source: MemberId, reply: PreVoteReply) -> None:
        if self.role is not Role.PRE_CANDIDATE:
            return
        if not reply.granted or reply.term == self.term + 1:
            self._poll.count(source, granted=reply.granted)
        if self._poll.is_won:
            self._become_candidate()
        elif self._poll.is_lost:
            self._become_follower(self.term)

    def _on_vote_request(self, source: MemberId, request: VoteRequest) -> None:
        """Votes once a term, first come, first served, for a log as up to date as its own.

        "Each server will vote for at most one candidate in a given term, on a
        first-come-first-served basis" (paper §5.2); the restriction is §5.4.1's.
        """
        granted = self.vote in {None, source} and self._is_up_to_date(request)
        if granted:
            self.vote = source
            self._patience.rest(self._now_us)
        self._send(source, VoteReply(term=self.term, granted=granted))

    def _on_vote_reply(self, source: MemberId, reply: VoteReply) -> None:
        if self.role is not Role.CANDIDATE:
            return
        self._poll.count(source, granted=reply.granted)
        if self._poll.is_won:
            self._become_leader()
        elif self._poll.is_lost:
            self._become_follower(self.term)

    def _is_up_to_date(self, request: PreVoteRequest | VoteRequest) -> bool:
        """The later last term wins, then the longer log (paper §5.4.1)."""
        ours = (self.log.last_term, self.log.last_index)
        return (request.last_term, request.last_index) >= ours

    # Roles

    def _become_follower(self, term: int, leader: MemberId | None = None) -> None:
        assert term >= self.term, "terms never fall"
        if term > self.term:
            self.term = term
            self.vote = None
        self.role = Role.FOLLOWER
        self._lose_reads()
        self.leadership = None
        self.leader = leader
        self._patience.rest(self._now_us)

    def _become_pre_candidate(self) -> None:
        assert self.role is not Role.LEADER, "a leader does not campaign"
        self.role = Role.PRE_CANDIDATE
        self.leader = None
        self._lose_reads()
        self._poll = Poll(self.voters)
        self._patience.rest(self._now_us)

    def _become_candidate(self, *, transfer: bool = False) -> None:
        """Follows a won pre-vote, or the leader's own wish."""
        assert (self.role is Role.FOLLOWER) == transfer, "only a leader's wish skips the pre-vote"
        assert self.role is not Role.LEADER, "a leader does not campaign"
        self._lose_reads()
        self.leader = None
        self.role = Role.CANDIDATE
        self.term += 1
        self.vote = self.member
        self._poll = Poll(self.voters)
        self._patience.rest(self._now_us)
        request = VoteRequest(self.term, self.log.last_index, self.log.last_term, transfer)
        for peer in self._peers():
            self._send(peer, request)
        self._send(self.member, VoteReply(self.term, granted=True))

    def _become_leader(self) -> None:
        assert self.role is Role.CANDIDATE, "a leader is elected"
        assert self.vote == self.member, "a leader voted for itself"
        self.role = Role.LEADER
        self.leader = self.member
        self.leadership = Leadership(
            term=self.term,
            member=self.member,
            log=self.log,
            config=self.config,
            now_us=self._now_us,
        )
        # A block of the new term at once, so that older ones can be committed (paper §5.4.2, §8).
        self.propose(())

    def _follow(self, source: MemberId) -> bool:
        """Contact from the leader of this term; False where the term has another leader already.

        Election Safety (paper §5.2) allows one leader a term: whoever claims to be a second one
        lies, and is not believed.
        """
        if self.leader not in {None, source}:
            self.dropped["second leader of a term"] += 1
            return False
        if self.role is not Role.FOLLOWER or self.leader is None:
            self._become_follower(self.term, leader=source)
        self._patience.heard(self._now_us)
        return True

    def _hand_over(self, leadership: Leadership) -> None:
        """Steps down, and has the closest follower campaign at once, if one is in contact."""
        successor = leadership.successor(self._now_us)
        if successor is not None:
            self._messages.append(Outgoing(successor, TimeoutNow(self.term)))
        self._become_follower(self.term)

    def _raise_alarm(self, text: str) -> None:
        """The chains contradict each other: take no further part, keep what there is."""
        self._become_follower(self.term)
        self.alarm = f"CORRUPT: {text}"

    def _lose_reads(self) -> None:
        tokens = self._asked_reads.lose()
        if self.leadership is not None:
            lost = self.leadership.lost_readers()
            tokens += [reader.token for reader in lost if reader.source is None]
            self._reads += self.leadership.confirmed_reads
        self._reads += [ConfirmedRead(token, None) for token in tokens]

    # Sending

    def _peers(self) -> list[MemberId]:
        return sorted(self.voters - {self.member})

    def _heartbeat_reply(self, contact_round: int) -> HeartbeatReply:
        return HeartbeatReply(self.term, contact_round, self.log.last_index, self.log.saved_index)

    def _send(self, target: MemberId, message: RaftMessage, match_index: int = 0) -> None:
        """Sends now, or once the term, the vote and the blocks through `match_index` are saved."""
        self._promises.add(Outgoing(target, message), match_index)
        self._release_promises()

    def _release_promises(self) -> None:
        saved_index = self.log.saved_index
        for outgoing in self._promises.release(self.term, self.vote, saved_index):
            if outgoing.target != self.member:
                self._messages.append(outgoing)
                continue
            assert isinstance(outgoing.message, VoteReply), "a member tells itself its own vote"
            # That took its time on the disk: the answers of the others have theirs.
            self._patience.rest(self._now_us)
            self._on_vote_reply(self.member, outgoing.message)

    def _save_is_slow(self) -> bool:
        return self._promises.saving_us(self._now_us) >= self.config.election_max_us

    @property
    def _is_durable(self) -> bool:
        return self._promises.are_covered(self.term, self.vote)


def _disturbs(message: RaftMessage) -> bool:
    """Whether a message asks for an election that a living leader has not asked for itself."""
    if isinstance(message, VoteRequest):
        return not message.transfer
    return isinstance(message, PreVoteRequest)
