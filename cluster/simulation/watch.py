"""Looks at a machine after every event, and at messages, saves and answers, for what is unlawful.

Cheap, since it compares with what it saw last: only what changed is examined, against the members
that run and against the one committed chain, which it writes down as members first commit it. What
it demands is in `consensus.invariants` and, beyond that, what only the whole cluster can see: what
a message promises is durable when it leaves, a leader has the votes of a majority, what is
committed lies on the disks of a majority for ever, every saved block is sound, ids are unique, and
a client hears only what is true: each receipt, each conflict, each row of each page and each place
of an id, at the moment the node answers. Majorities are those of the members in force
(`members_watch`). A breach raises AssertionError.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, NamedTuple

from cluster.simulation.contacts import Contacts
from cluster.simulation.members_watch import Form, MembersWatch
from consensus.block import verify_block
from consensus.invariants import Snapshot, check_cluster, check_state, check_step
from consensus.messages import (
    AppendReply,
    HeartbeatReply,
    PreVoteReply,
    PreVoteRequest,
    RaftMessage,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from consensus.quorum import majority_of
from consensus.ready import Role
from storage.recent import Place, ids_of, user_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cluster.simulation.machine import Machine
    from cluster.simulation.record import Trace
    from consensus.block import Block
    from consensus.messages import AnyMessage, BlocksReply, MemberId
    from consensus.raft import Raft
    from consensus.ready import Save
    from node.outcomes import Receipt

Seen = tuple[object, ...]


class Page(NamedTuple):
    """A question for a user's history, as the faces put it."""

    user: str
    after: Place | None
    limit: int
    newest_first: bool


class Watch:
    """All checks of one run, and the committed chain as it came about."""

    def __init__(
        self,
        *,
        machines: Sequence[Machine],
        genesis: Block,
        trace: Trace,
        now_us: Callable[[], int],
    ) -> None:
        self.committed = [genesis]
        self.on_elected: Callable[[Machine], None] = lambda _machine: None
        self.places: dict[bytes, Place] = {}
        self._histories: dict[bytes, list[Place]] = {}
        self._machines = machines
        self.members = MembersWatch(genesis=genesis, committed=self.committed, trace=trace)
        self._committed_voters = self.members.present.voters
        self._contacts = Contacts(trace)
        self._trace = trace
        self._now_us = now_us
        self._leaders: dict[int, MemberId] = {}
        self._votes: dict[tuple[int, MemberId], MemberId] = {}
        self._polls: dict[int, set[MemberId]] = {}
        self._acknowledged: dict[tuple[int, MemberId], int] = {}
        self._highest: dict[int, int] = {}
        self._seen: dict[int, Seen] = {}
        self._before: dict[int, Snapshot] = {}
        self._forms: dict[int, Form] = {}
        self._transfers: dict[int, object] = {}
        self._sound: dict[bytes, Block] = {genesis.hash: genesis}

    # What a machine is

    def started(self, machine: Machine) -> None:
        """A machine booted: what it is now is what it will be compared with."""
        raft = machine.running.raft
        self._before[machine.number] = Snapshot.of(raft)
        self._seen.pop(machine.number, None)
        self._forms.pop(machine.number, None)
        self._contacts.forget(machine)
        self._trace.coverage["restarts"] += machine.life > 1

    def crashed(self, machine: Machine) -> None:
        """A machine is gone; what it had promised is on its disk."""
        raft = machine.running.raft
        self.members.look(machine)
        if raft.log.saved_index < raft.log.last_index:
            self._trace.coverage["unsaved blocks lost"] += 1
        if raft.role is Role.LEADER:
            self._trace.coverage["leaders crashed"] += 1

    def wiped(self, machine: Machine) -> None:
        """A disk is empty: nobody may ever speak under its key again."""
        self.members.dead.add(machine.member)
        self._highest.pop(machine.number, None)
        self._seen.pop(machine.number, None)

    def look(self, machine: Machine) -> None:
        """Check a machine after an event."""
        raft = machine.running.raft
        assert raft.alarm is None, f"{machine.name} raised an alarm: {raft.alarm}"
        check_state(raft)
        log = raft.log
        seen = (raft.term, raft.vote, raft.role, log.commit_index, log.last_tip, log.applied_index)
        last = self._seen.get(machine.number)
        if seen == last:
            return
        self._seen[machine.number] = seen
        before, after = self._before[machine.number], Snapshot.of(raft)
        self._before[machine.number] = after
        check_step(before, after)
        self._trace.event(self._now_us(), machine.name, b"%d %d" % (raft.term, log.commit_index))
        self._check_handover(machine, raft, before)
        if last is None or last[:5] != seen[:5]:
            self._compare(machine, raft)
        if after.commit_index > before.commit_index or last is None:
            if before.role is after.role is Role.LEADER:
                self._check_counted(machine, raft)
            self._write_down(machine)
        if before.role is not after.role or before.term != after.term:
            self._check_role(machine, raft, before)
        if last is None or last[4] != seen[4]:
            self._forms[machine.number] = self.members.look(machine)

    def _compare(self, machine: Machine, raft: Raft) -> None:
        check_cluster((raft,), self._leaders)
        for other in self._machines:
            if other is not machine and other.replica is not None:
                check_cluster((raft, other.replica.raft), self._leaders)

    def _check_counted(self, machine: Machine, raft: Raft) -> None:
        index = raft.log.commit_index
        assert raft.log.term_at(index) == raft.term, (
            f"{machine.name} committed block {index} of an older term by counting (paper §5.4.2)"
        )

    def _write_down(self, machine: Machine) -> None:
        """What a member says is committed is what everyone said, and lies on a majority's disks."""
        log = machine.running.raft.log
        commit_index = log.commit_index
        known = min(commit_index, len(self.committed) - 1)
        assert log.hash_at(known) == self.committed[known].hash, (
            f"{machine.name} committed another block {known} than others did"
        )
        for index in range(len(self.committed), commit_index + 1):
            block = log.block(index)
            self.members.after(log, index)
            self.committed.append(block)
            self.members.committed_through(block)
            for position, wanted in enumerate(ids_of(block)):
                assert wanted not in self.places, f"id {wanted.hex()} is committed twice"
                self.places[wanted] = place = Place(index, position)
                user = user_of(block.transactions[position])
                self._histories.setdefault(user, []).append(place)
        if known < commit_index:
            # Whoever commits first has led, and counted by the latest members of its log; since
            # then it may have changed them.
            forms = [self._forms.get(machine.number), self.members.after(log, log.last_index)]
            voters = [form.voters for form in forms if form is not None]
            self._committed_voters = max(voters, key=self._holding)
            self._check_majority_holds()

    def _check_majority_holds(self) -> None:
        """The last committed block, and so all before it, is durable on a majority.

        A disk that was wiped since need not hold it: its key takes part in no majority any more.
        """
        voters = self._committed_voters
        assert self._holding(voters) >= 0, (
            f"committed block {self.committed[-1].index} is durable on "
            f"{majority_of(len(voters)) + self._holding(voters)} of {len(voters)}"
        )

    def _holding(self, voters: frozenset[MemberId]) -> int:
        """How many more than a majority of these hold the last committed block, or fewer."""
        tip = self.committed[-1]
        holders = {
            machine.member
            for machine in self._machines
            if machine.chain.last_index >= tip.index
            and machine.chain.tip(tip.index).hash == tip.hash
        } | self.members.dead
        return len(holders & voters) - majority_of(len(voters))

    def _check_complete(self, machine: Machine, raft: Raft) -> None:
        """What earlier terms committed is in a new leader's log: Leader Completeness (§5.4)."""
        for block in reversed(self.committed):
            if block.term < raft.term:
                index = min(block.index, raft.log.last_index)
                assert raft.log.hash_at(index) == block.hash, (
                    f"Leader Completeness: {machine.name} leads without block {block.index}"
                )
                return

    def _check_handover(self, machine: Machine, raft: Raft, before: Snapshot) -> None:
        """Nothing is sealed while the leadership is on its way (dissertation §3.10)."""
        transfer = None if raft.leadership is None else raft.leadership.transfer
        last = self._transfers.get(machine.number)
        if transfer is not None and transfer is last:
            assert raft.log.last_index == before.last_index, (
                f"{machine.name} seals while it hands over"
            )
        self._transfers[machine.number] = transfer

    def _check_role(self, machine: Machine, raft: Raft, before: Snapshot) -> None:
        coverage = self._trace.coverage
        if raft.role is Role.LEADER:
            coverage["leaders elected"] += 1
            self.on_elected(machine)
            self._votes.setdefault((raft.term, raft.member), raft.member)
            voters = self.members.after(raft.log, raft.log.last_index).voters
            votes = [v for v in voters if self._votes.get((raft.term, v)) == raft.member]
            assert len(votes) >= majority_of(len(voters)), (
                f"{machine.name} leads term {raft.term} with {len(votes)} votes"
            )
            self._check_complete(machine, raft)
            assert raft.log.last_term == raft.term, (
                f"{machine.name} leads term {raft.term} without a block of it (paper §8)"
            )
        elif before.role is Role.LEADER:
            coverage["leaders deposed"] += 1
            if before.last_index > before.commit_index:
                coverage["leaders deposed with an open tail"] += 1
        if before.role is Role.CANDIDATE and raft.role is not Role.LEADER:
            coverage["elections lost"] += 1
        if before.role is Role.PRE_CANDIDATE and raft.role is Role.FOLLOWER:
            coverage["pre-votes lost"] += 1
        if raft.term > before.term and raft.log.saved_index < before.last_index:
            coverage["promises void by a new term"] += 1
        if raft.role is Role.CANDIDATE:
            rivals = self._polls.setdefault(raft.term, set())
            rivals.add(raft.member)
            coverage["contested elections"] += len(rivals) == 2  # noqa: PLR2004 - the second rival

    # What leaves a machine

    def leaves(self, machine: Machine, target: MemberId, message: AnyMessage) -> None:
        """What a message promises must be durable at the moment it leaves (paper, figure 2)."""
        assert machine.member not in self.members.dead, (
            f"{machine.name} speaks under the key of a wiped disk"
        )
        self._trace.coverage["handovers asked for"] += isinstance(message, TimeoutNow)
        if isinstance(message, PreVoteRequest | PreVoteReply) or not isinstance(
            message, RaftMessage
        ):
            return
        held = machine.chain.hard_state
        assert message.term <= held.term, f"{machine.name} spoke of term {message.term} unsaved"
        match message:
            case VoteRequest():
                self._check_vote(machine, message.term, machine.member)
            case VoteReply(granted=True):
                self._check_vote(machine, message.term, target)
                self._check_candidate(machine, message.term, target)
            case AppendReply():
                index = message.match_index
                assert index <= machine.chain.last_index, f"{machine.name} acknowledged unsaved"
                self._check_acknowledged(machine, message)
                last = self._acknowledged.get((message.term, machine.member), 0)
                self._acknowledged[message.term, machine.member] = max(last, index)
            case HeartbeatReply():
                saved = message.saved_index
                # It is a hint, and what it tells of may be truncated by the save it waited for.
                highest = self._highest.get(machine.number, 0)
                assert saved <= highest, f"{machine.name} claims unsaved blocks"

    def _check_acknowledged(self, machine: Machine, reply: AppendReply) -> None:
        """What is acknowledged is the block on the disk.

        A reply that was let out under an earlier term is of that leader's block, which may have
        given way since in the log, but not yet on the disk: that save begins after it has left.
        """
        raft, durable = machine.running.raft, machine.chain.tip(reply.match_index)
        if reply.term == raft.term:
            is_held = raft.log.hash_at(reply.match_index) == durable.hash
        else:
            is_held = durable.term <= reply.term
        assert is_held, f"{machine.name} acknowledged what is not on its disk"

    def _check_candidate(self, machine: Machine, term: int, candidate: MemberId) -> None:
        """A vote is for a log at least as up to date as the voter's own (paper §5.4.1).

        A candidate's log does not change before it is elected, nor its voter's.
        """
        log = machine.running.raft.log
        for other in self._machines:
            if other.member == candidate and other.replica is not None:
                rival = other.replica.raft
                if rival.term == term and rival.role is Role.CANDIDATE:
                    theirs = (rival.log.last_term, rival.log.last_index)
                    assert theirs >= (log.last_term, log.last_index), (
                        f"{machine.name} voted for {other.name}, whose log is behind its own"
                    )

    def _check_vote(self, machine: Machine, term: int, candidate: MemberId) -> None:
        held = machine.chain.hard_state
        assert held.term > term or held.vote == candidate, f"{machine.name} voted unsaved"
        first = self._votes.setdefault((term, machine.member), candidate)
        assert first == candidate, f"{machine.name} voted twice in term {term}"

    def serves(self, machine: Machine, reply: BlocksReply) -> None:
        """What one member fetches from another is committed, for it is taken without a quorum."""
        end = reply.first + len(reply.blocks)
        assert end <= len(self.committed), f"{machine.name} serves blocks that are not committed"
        for index, raw in enumerate(reply.blocks, start=reply.first):
            assert raw == self.committed[index].encode(), f"{machine.name} serves another {index}"
        is_leader = machine.running.raft.role is Role.LEADER
        by = "leaders" if is_leader else "followers"
        self._trace.coverage[f"fetches served by {by}"] += bool(reply.blocks)

    # What reaches a machine

    def heard(self, machine: Machine, source: MemberId, message: AnyMessage, term: int) -> None:
        """A machine has taken a message, under `term` before that."""
        self._contacts.heard(machine, source, message, term)

    def lost_connection(self, machine: Machine, peer: MemberId) -> None:
        """A machine hears that a connection broke."""
        self._contacts.lost(machine, peer)

    # What reaches a disk

    def saving(self, machine: Machine, save: Save) -> None:
        """Every block is sound in itself and where it goes, checked here and not by the core."""
        if save.truncate_from is not None:
            kept = self._acknowledged.get((save.hard_state.term, machine.member), 0)
            assert save.truncate_from > kept, (
                f"{machine.name} truncates what it acknowledged in the same term"
            )
        if not save.blocks:
            return
        parent = machine.chain.tip(save.blocks[0].index - 1)
        for block in save.blocks:
            assert block.previous_hash == parent.hash, f"{machine.name} saves a broken link"
            known = self._sound.get(block.hash)
            if known is None:
                log = machine.running.raft.log
                sealers = self.members.after(log, block.index - 1).electors
                verify_block(parent, block, cluster_id=self.committed[0].hash, sealers=sealers)
                self._sound[block.hash] = known = block
            assert known.body == block.body, f"{machine.name} saves another body of one hash"
            assert known.signature == block.signature, f"{machine.name} saves another signature"
            parent = machine.running.raft.log.tip_at(block.index)

    def saved(self, machine: Machine, save: Save) -> None:
        """What a majority holds is not lost by a truncation."""
        highest = self._highest.get(machine.number, 0)
        self._highest[machine.number] = max(highest, machine.chain.last_index)
        if save.truncate_from is not None:
            self._trace.coverage["tails truncated"] += 1
            if save.truncate_from < len(self.committed):
                self._check_majority_holds()

    # What clients hear

    def acknowledged(self, machine: Machine, raw: bytes, receipt: Receipt) -> None:
        """A receipt names a committed block, in which these very bytes stand at that place.

        And the node that gives it has applied it: it answers for what is on its own disk.
        """
        self._write_down(machine)
        assert receipt.index < len(self.committed), "acknowledged before it was committed"
        block = self.committed[receipt.index]
        assert block.hash == receipt.block_hash, "a receipt of another block than the committed"
        assert receipt.position < len(block.transactions), "a receipt beyond its block"
        assert block.transactions[receipt.position] == raw, "a receipt for other content"
        applied_index = machine.running.applied_index
        assert receipt.index <= applied_index, f"{machine.name} acknowledged before it applied"

    def may_read(self, machine: Machine, index: int, known: int) -> None:
        """A read sees everything that anybody knew to be committed when it reached the node.

        So it covers every receipt and every row that was told before it began (real-time order).
        """
        applied_index = machine.running.applied_index
        assert index >= known, f"a stale read at {machine.name}: {index}, {known} was committed"
        assert applied_index >= index, f"a stale read at {machine.name}: {index} is not applied"

    def page_read(self, machine: Machine, page: Page, rows: Sequence[tuple[Place, bytes]]) -> None:
        """A page is the committed rows of its user through what the node has applied, and no other.

        Contents, completeness and order at once. What is applied covers the read's own index.
        """
        self._write_down(machine)
        places = self._histories.get(page.user.encode(), [])
        places = places[: bisect_left(places, Place(machine.running.applied_index + 1, 0))]
        if page.newest_first:
            end = len(places) if page.after is None else bisect_left(places, page.after)
            expected = places[max(0, end - page.limit) : end][::-1]
        else:
            start = 0 if page.after is None else bisect_right(places, page.after)
            expected = places[start : start + page.limit]
        told = [place for place, _ in rows]
        assert told == expected, (
            f"a page of {machine.name} is not the chain's: {_first_difference(told, expected)}"
        )
        for (index, position), raw in rows:
            assert raw == self.committed[index].transactions[position], (
                f"{machine.name} served other content than was committed in block {index}"
            )

    def looked_up(self, machine: Machine, wanted: bytes, place: Place | None) -> None:
        """An id is found where it is committed, once that is applied, and nowhere else."""
        self._write_down(machine)
        known = self.places.get(wanted)
        if known is not None and known.index > machine.running.applied_index:
            known = None
        assert place == known, f"{machine.name} finds id {wanted.hex()} at {place}, not at {known}"

    def refused_as_conflict(self, machine: Machine, wanted: bytes, raw: bytes) -> None:
        """A conflict is told only of an id that is committed with other content."""
        self._write_down(machine)
        assert wanted in self.places, "a conflict with an id that is not committed"
        index, position = self.places[wanted]
        recorded = self.committed[index].transactions[position]
        assert recorded != raw, "a conflict with the same content"
        self._trace.coverage["conflicts answered"] += 1


def _first_difference(told: Sequence[Place], expected: Sequence[Place]) -> str:
    """Where two lists of places part, in words."""
    for number, (one, other) in enumerate(zip(told, expected, strict=False)):
        if one != other:
            return f"row {number} is of {tuple(one)}, not of {tuple(other)}"
    return f"{len(told)} rows, not {len(expected)}"
