"""Raft for one member: messages, time and proposals in, `Ready` out; nothing else happens here.

Theory of operation. A member is in one `Role`; `step` takes a peer's message, first settles terms
(`_accept_term`), then hands it to one small handler. Roles change only through `_become_*`. The
caller works in rounds: feed `tick`, `step`, `propose`, `read`; then take `ready()`: send its
messages, start its save, apply what is committed; when the save is durable, call `saved`, and take
`ready()` again. At most one save is under way; what comes meanwhile joins the next one.

    FOLLOWER ──timeout──▶ PRE_CANDIDATE ──majority──▶ CANDIDATE ──majority──▶ LEADER
        ▲                      │                          │                     │
        └──────────────── higher term, or a leader of this term ◀───────────────┘ lost its quorum

Sources: Ongaro and Ousterhout, "In Search of an Understandable Consensus Algorithm" (2014), cited
as *paper*; Ongaro, "Consensus: Bridging Theory and Practice" (2014), cited as *dissertation*.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final, assert_never

from consensus.intake import ContradictionError, Intake
from consensus.leadership import NO_REPLY, Leadership, RaftConfig, Reader
from consensus.log import Log, extend
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
    VoteReply,
    VoteRequest,
)
from consensus.promises import Promises
from consensus.quorum import Poll
from consensus.reads import AskedReads
from consensus.ready import ConfirmedRead, HardState, Outgoing, Ready, Role, Save

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from random import Random

    from consensus.block import Block, Sealer
    from consensus.log import ChainView
    from consensus.messages import MemberId, RaftMessage

MAX_APPLY_BYTES: Final = 1 << 20
"""Committed blocks handed out by one `ready`, so that catching up comes in slices."""
NOT_STARTED: Final = -1


class Raft:
    """The consensus state of one member. See the module's text for how it is driven."""

    def __init__(
        self,
        *,
        config: RaftConfig,
        member: MemberId,
        voters: Collection[MemberId],
        cluster_id: bytes,
        sealer: Sealer,
        chain: ChainView,
        hard_state: HardState,
        applied_index: int,
        random: Random,
    ) -> None:
        """Takes up where the durable state left off, as a follower of its last term.

        `applied_index` is how far the caller has applied; `ready` goes on from the next block.
        `random` must not repeat itself from one start to the next.
        """
        assert member in voters, "a member is one of the voters"
        self.config = config
        self.member = member
        self.voters = frozenset(voters)
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
        self._intake = Intake(self.log, cluster_id, sealers=self.voters, dropped=self.dropped)
        self.leadership: Leadership | None = None
        self._promises = Promises(hard_state)
        self._save: Save | None = None
        self._save_started_us = 0
        self._leader_heard_us = 0
        self._election_due_us = NOT_STARTED
        self._poll = Poll(self.voters)
        self._asked_reads = AskedReads(base=random.getrandbits(62))
        self._messages: list[Outgoing] = []
        self._reads: list[ConfirmedRead] = []

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
        if self._election_due_us == NOT_STARTED:
            self._rest_until_election()
        if self.alarm is not None:
            return
        if self.leadership is not None:
            self._check_leadership(self.leadership)
        elif now_us >= self._election_due_us:
            self._campaign()

    def wake_us(self) -> int:
        """When `tick` has something to do next if nothing else happens."""
        if self.alarm is not None:
            return self._now_us + self.config.election_max_us
        if self.leadership is not None:
            return self.leadership.next_heartbeat_us
        return self._election_due_us

    def step(self, source: MemberId, message: RaftMessage) -> None:
        """Takes one message from the authenticated member `source`.

        A faulty message is dropped and counted in `dropped`; it never raises.
        """
        if source == self.member or source not in self.voters:
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
            case AppendReply():
                self._on_append_reply(source, message)
            case AppendRejection():
                self._on_append_rejection(source, message)
            case Heartbeat():
                self._on_heartbeat(source, message)
            case HeartbeatReply():
                self._on_heartbeat_reply(source, message)
            case ReadRequest():
                self._on_read_request(source, message)
            case ReadReply():
                self._on_read_reply(message)
            case _:
                assert_never(message)

    def propose(self, transactions: Sequence[bytes]) -> Block:
        """Seals `transactions` into the next block; only the leader may, and none twice."""
        assert self.leadership is not None, "only the leader seals"
        block = self._sealer.seal(
            self.log.last_tip, term=self.term, transactions=transactions, wall_us=self._wall_us
        )
        extend(self.log, block)
        return block

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
            self._leader_heard_us = self._now_us - self.config.election_min_us
            patience_us = self.random.randrange(self.config.election_min_us // 3)
            self._election_due_us = min(self._election_due_us, self._now_us + patience_us)

    def saved(self, save: Save) -> None:
        """`save` is durable. What rested on it leaves with the next `ready`."""
        assert save is self._save, "saves end in the order they were given"
        self._save = None
        self._promises.durable = save.hard_state
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
        return Ready(messages, self._next_save(), committed, reads)

    # Terms

    def _accept_term(self, source: MemberId, message: RaftMessage) -> bool:
        """Settles terms (paper §5.1); False where the message needs no handler."""
        if message.term < self.term:
            self._answer_stale(source, message)
            return False
        if isinstance(message, PreVoteRequest | VoteRequest) and self._leader_is_alive():
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
        return self.leader is not None and self._now_us - self._leader_heard_us < within_us

    # Elections

    def _campaign(self) -> None:
        """The election timeout ran out: ask for pre-votes (paper §5.2, dissertation §9.6)."""
        if self._save_is_slow():
            self._rest_until_election()
            return
        self._become_pre_candidate()
        request = PreVoteRequest(self.term + 1, self.log.last_index, self.log.last_term)
        for peer in self._peers():
            self._send(peer, request)
        self._on_pre_vote_reply(self.member, PreVoteReply(self.term + 1, granted=True))

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
            self._rest_until_election()
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

    # Replication

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

    def _on_append_reply(self, source: MemberId, reply: AppendReply) -> None:
        if self.leadership is not None:
            self.leadership.on_append_reply(source, reply, self._now_us)
            self._advance_commit()

    def _on_append_rejection(self, source: MemberId, reply: AppendRejection) -> None:
        if self.leadership is not None:
            self.leadership.on_append_rejection(source, reply, self._now_us)

    def _on_heartbeat(self, source: MemberId, heartbeat: Heartbeat) -> None:
        if not self._follow(source):
            return
        if heartbeat.commit_index > self.log.last_index:
            self._raise_alarm("this member acknowledged blocks that it does not hold any more")
            return
        self._commit(heartbeat.commit_index)
        if heartbeat.round != NO_REPLY:
            self._send(source, self._heartbeat_reply(heartbeat.round))

    def _heartbeat_reply(self, contact_round: int) -> HeartbeatReply:
        return HeartbeatReply(self.term, contact_round, self.log.last_index, self.log.saved_index)

    def _on_heartbeat_reply(self, source: MemberId, reply: HeartbeatReply) -> None:
        if self.leadership is not None:
            self.leadership.on_heartbeat_reply(source, reply, self._now_us)

    def _commit(self, index: int) -> None:
        if index > self.log.commit_index:
            self.log.commit_to(index)

    def _advance_commit(self) -> None:
        if self.leadership is not None:
            self._commit(self.leadership.commit_index())

    # Reads

    def _on_read_request(self, source: MemberId, request: ReadRequest) -> None:
        if self.leadership is not None:
            self.leadership.read(Reader(source, request.token))

    def _on_read_reply(self, reply: ReadReply) -> None:
        confirmed = self._asked_reads.answered(reply.token)
        self._reads += [ConfirmedRead(token, reply.read_index) for token in confirmed]

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
        self._rest_until_election()

    def _become_pre_candidate(self) -> None:
        assert self.role is not Role.LEADER, "a leader does not campaign"
        self.role = Role.PRE_CANDIDATE
        self.leader = None
        self._lose_reads()
        self._poll = Poll(self.voters)
        self._rest_until_election()

    def _become_candidate(self) -> None:
        assert self.role is Role.PRE_CANDIDATE, "an election follows a won pre-vote"
        self.role = Role.CANDIDATE
        self.term += 1
        self.vote = self.member
        self._poll = Poll(self.voters)
        self._rest_until_election()
        request = VoteRequest(self.term, self.log.last_index, self.log.last_term)
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
            followers=self._peers(),
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
        self._leader_heard_us = self._now_us
        self._rest_until_election()
        return True

    def _check_leadership(self, leadership: Leadership) -> None:
        """Steps down without a quorum (dissertation §6.2) or with a disk that stalls."""
        quorum = leadership.in_contact(now_us=self._now_us, within_us=self.config.election_max_us)
        if not quorum or self._save_is_slow():
            self._become_follower(self.term)

    def _save_is_slow(self) -> bool:
        saving_us = self._now_us - self._save_started_us if self._save is not None else 0
        return saving_us >= self.config.election_max_us

    def _raise_alarm(self, text: str) -> None:
        """The chains contradict each other: take no further part, keep what there is."""
        self._become_follower(self.term)
        self.alarm = f"CORRUPT: {text}"

    def _peers(self) -> list[MemberId]:
        return sorted(self.voters - {self.member})

    def _rest_until_election(self) -> None:
        """A fresh random timeout, so that split votes are rare (paper §5.2)."""
        spread = self.config.election_max_us - self.config.election_min_us
        wait_us = self.config.election_min_us + self.random.randrange(spread)
        self._election_due_us = self._now_us + wait_us

    def _lose_reads(self) -> None:
        tokens = self._asked_reads.lose()
        if self.leadership is not None:
            lost = self.leadership.lost_readers()
            tokens += [reader.token for reader in lost if reader.source is None]
            self._reads += self.leadership.confirmed_reads
        self._reads += [ConfirmedRead(token, None) for token in tokens]

    def _send(self, target: MemberId, message: RaftMessage, match_index: int = 0) -> None:
        """Sends now, or once the term, the vote and the blocks through `match_index` are saved."""
        self._promises.add(Outgoing(target, message), match_index)
        self._release_promises()

    def _release_promises(self) -> None:
        saved_index = self.log.saved_index
        for outgoing in self._promises.release(self.term, self.vote, saved_index):
            if outgoing.target == self.member:
                self._handle(self.member, outgoing.message)
            else:
                self._messages.append(outgoing)

    def _next_save(self) -> Save | None:
        if self._save is not None:
            return None
        if self._promises.are_covered(self.term, self.vote) and not self.log.has_unsaved:
            return None
        truncate_from, blocks = self.log.take_save()
        # The commit index rides along, never ahead of the blocks that this very save makes durable.
        last_index = blocks[-1].index if blocks else self.log.saved_index
        hard_state = HardState(self.term, self.vote, min(self.log.commit_index, last_index))
        self._save = Save(hard_state, truncate_from, blocks)
        self._save_started_us = self._now_us
        return self._save
