"""Who the members are, worked out from the blocks alone, and what may never happen to that.

It reads changes of the membership for itself, without `consensus.roster`, and knows for every block
that anybody ever held which members were in force once it was in a log ("a server always uses the
latest configuration in its log", dissertation §4.1). By that it holds every node's own roster to
account, and whoever makes a change: one at a time, none before a commit in the own term, one member
each, never a key that was there before. A breach raises AssertionError. Relies on the layout of
membership transactions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from consensus.block import decode_transaction
from consensus.membership import Member, genesis_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cluster.simulation.machine import Machine
    from cluster.simulation.record import Trace
    from consensus.block import Block
    from consensus.log import Log
    from consensus.messages import MemberId


@dataclass(frozen=True, slots=True)
class Form:
    """The members from the block at `index` on."""

    index: int
    members: tuple[Member, ...]
    learners: frozenset[MemberId]
    electors: frozenset[MemberId]
    """Who may seal the next block: the voters of this form and of the one before."""
    ever: frozenset[MemberId]
    """Every key that was a member's, up to here."""

    @property
    def keys(self) -> frozenset[MemberId]:
        """All members."""
        return frozenset(member.public_key for member in self.members)

    @property
    def voters(self) -> frozenset[MemberId]:
        """Those that majorities are made of."""
        return self.keys - self.learners


class MembersWatch:
    """The members after every block that was ever held."""

    def __init__(self, *, genesis: Block, committed: Sequence[Block], trace: Trace) -> None:
        """`committed` is the chain as it comes about."""
        members = genesis_of(genesis).members
        voters = frozenset(member.public_key for member in members)
        first = Form(0, members, frozenset(), voters, voters)
        self.dead: set[MemberId] = set()
        """Keys whose disk was wiped, or whose node was given up: they must be silent for good."""
        self._committed = committed
        self._trace = trace
        self._forms = {genesis.hash: first}
        self._open: dict[bytes, Form] = {}
        self._agreed: dict[int, tuple[object, Form]] = {}

    @property
    def present(self) -> Form:
        """The members by the committed chain."""
        return self._forms[self._committed[-1].hash]

    @property
    def possible(self) -> list[Form]:
        """Whatever is in force somewhere, or may still be."""
        return [self.present, *self._open.values()]

    def after(self, log: Log, index: int) -> Form:
        """The members in force once the block at `index` is in a log."""
        missing = []
        while (form := self._forms.get(log.hash_at(index))) is None:
            missing.append(log.block(index))
            index -= 1
        for block in reversed(missing):
            form = self._next(form, block)
            self._forms[block.hash] = form
        return form

    def look(self, machine: Machine) -> Form:
        """The members as a machine's log has them, which its own roster must say too."""
        log = machine.running.raft.log
        form = self.after(log, log.last_index)
        if form.index and form.index > len(self._committed) - 1:
            change = log.hash_at(form.index)
            if change not in self._open:
                self._open[change] = form
                self._check_sealed(machine, form)
        latest = log.roster.latest
        if self._agreed.get(machine.number) != (latest, form):
            ours = (form.index, form.members, form.learners)
            assert ours == (log.roster.latest_index, latest.members, latest.learners), (
                f"{machine.name} has another roster than its log says"
            )
            self._agreed[machine.number] = (latest, form)
        return form

    def committed_through(self, block: Block) -> None:
        """One more block is committed: what it changed is settled, and what it contradicts."""
        form = self._forms[block.hash]
        if form.index == block.index:
            self._count(form, self._forms[block.previous_hash], block)
        for change, rival in list(self._open.items()):
            if rival.index <= block.index:
                del self._open[change]
                if form != rival:
                    self._trace.coverage["membership changes reverted"] += 1

    def is_survivable(self, lost: set[MemberId]) -> bool:
        """Whether a majority stays alive without the disks of `lost`, whatever is in force.

        A dead learner may be promoted by a leader that does not know yet.
        """
        gone = self.dead | lost
        for form in self.possible:
            voters = form.voters | (form.learners & gone)
            if 2 * len(voters - gone) <= len(voters):
                return False
        return True

    def _next(self, form: Form, block: Block) -> Form:
        if len(block.transactions) != 1:
            return form
        transaction = decode_transaction(block.transactions[0])
        if transaction.kind != "membership":
            return form
        listed = msgspec.msgpack.decode(transaction.payload)["members"]
        members = tuple(
            Member(each["name"], bytes.fromhex(each["public_key"]), each["peer"], each["http"])
            for each in listed
        )
        learners = frozenset(
            bytes.fromhex(each["public_key"]) for each in listed if each["role"] == "learner"
        )
        keys = frozenset(member.public_key for member in members)
        _check_single(form, members, learners)
        return Form(
            index=block.index,
            members=members,
            learners=learners,
            electors=form.keys | keys,
            ever=form.ever | keys,
        )

    def _check_sealed(self, machine: Machine, form: Form) -> None:
        """A change seen for the first time: might its leader have made it?"""
        raft = machine.running.raft
        block = raft.log.block(form.index)
        before = self._forms[block.previous_hash]
        if block.header.sealer != machine.member or raft.leadership is None:
            return
        commit_index = raft.log.commit_index
        assert raft.log.term_at(commit_index) == block.term, (
            f"{machine.name} changes the members before a commit in its own term"
        )
        assert before.index <= commit_index, (
            f"{machine.name} changes the members in block {form.index} while the change in block "
            f"{before.index} is not committed (dissertation §4.1)"
        )
        for key in sorted(form.keys - before.keys):
            assert key not in self.dead, f"{machine.name} adds the key of a wiped disk"

    def _count(self, form: Form, before: Form, block: Block) -> None:
        for what in _differences(before, form):
            self._trace.coverage[f"members {what}"] += 1
        if block.header.sealer not in form.voters:
            self._trace.coverage["leaders that removed themselves"] += 1


def _differences(before: Form, after: Form) -> Iterator[str]:
    """What was done to how many members."""
    for key in before.keys | after.keys:
        if key not in before.keys:
            yield "added"
        elif key not in after.keys:
            yield "removed"
        elif key in before.learners - after.learners:
            yield "promoted"
        elif key in after.learners - before.learners:
            yield "demoted"
        elif _member(before, key) != _member(after, key):
            yield "moved"


def _member(form: Form, key: MemberId) -> Member:
    return next(member for member in form.members if member.public_key == key)


def _check_single(before: Form, members: tuple[Member, ...], learners: frozenset[MemberId]) -> None:
    """One member is added, promoted, removed or moved, and no key comes back."""
    keys = frozenset(member.public_key for member in members)
    after = Form(0, members, learners, frozenset(), frozenset())
    done = list(_differences(before, after))
    assert len(done) == 1, f"one change of the membership makes {len(done)}: {done}"
    assert done != ["demoted"], "a voter becomes a learner"
    new = keys - before.keys
    assert new <= learners, "a new member votes at once"
    assert not new & before.ever, "a key that was removed is a member again"
    assert keys - learners, "no voter is left"
