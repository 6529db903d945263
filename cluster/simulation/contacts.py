"""Whose word each machine has taken lately, so that nobody deposes a leader that is being heard.

"If a server receives a RequestVote request within the minimum election timeout of hearing from a
current leader, it does not update its term or grant its vote" (dissertation §4.2.3); and one that
was removed, as far as the receiver's committed chain tells, is not listened to at all. A breach
raises AssertionError. Relies on the machines' own clocks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from consensus.leadership import RaftConfig
from consensus.messages import Append, Heartbeat, PreVoteRequest, VoteRequest

if TYPE_CHECKING:
    from cluster.simulation.machine import Machine
    from cluster.simulation.record import Trace
    from consensus.messages import AnyMessage, MemberId


class Contacts:
    """When each machine heard its leader last."""

    def __init__(self, trace: Trace) -> None:
        """Nobody has heard anything."""
        self._trace = trace
        self._within_us = RaftConfig().election_min_us
        self._heard: dict[int, tuple[MemberId, int, int]] = {}
        self._turned_away: dict[int, int] = {}

    def forget(self, machine: Machine) -> None:
        """A machine begins a new life."""
        self._heard.pop(machine.number, None)
        self._turned_away.pop(machine.number, None)

    def lost(self, machine: Machine, peer: MemberId) -> None:
        """A machine's connection to its leader broke: it need not trust that one any longer."""
        if self._heard.get(machine.number, (None,))[0] == peer:
            del self._heard[machine.number]

    def heard(self, machine: Machine, source: MemberId, message: AnyMessage, term: int) -> None:
        """A machine has taken a message, under `term` before that."""
        raft = machine.running.raft
        if isinstance(message, PreVoteRequest | VoteRequest):
            self._check_removed(machine, source, term)
        match message:
            case Append() | Heartbeat():
                if raft.leader == source and raft.term == message.term:
                    self._heard[machine.number] = (source, raft.term, machine.clock.mono_us())
            case VoteRequest(transfer=False) | PreVoteRequest():
                self._check_trust(machine, term)
                self._trace.coverage["elections that a living leader kept off"] += (
                    raft.term == term < message.term and self._trusts(machine, term)
                )

    def _check_removed(self, machine: Machine, source: MemberId, term: int) -> None:
        """Who is removed, as far as this machine knows for sure, asks for votes in vain."""
        raft = machine.running.raft
        roster = raft.log.roster
        if source in roster.latest.keys or source not in roster.former(raft.log.commit_index):
            return
        assert raft.term == term, f"{machine.name} lets a removed member raise its term"
        turned_away = raft.dropped["stranger"]
        assert turned_away > self._turned_away.get(machine.number, 0), (
            f"{machine.name} listens to a removed member"
        )
        self._turned_away[machine.number] = turned_away
        self._trace.coverage["removed members turned away"] += 1

    def _check_trust(self, machine: Machine, term: int) -> None:
        raft = machine.running.raft
        if self._trusts(machine, term):
            assert raft.term == term, f"{machine.name} deposes a leader that it hears"

    def _trusts(self, machine: Machine, term: int) -> bool:
        """Whether the leader of `term` was heard within the minimum election timeout.

        Who has asked for pre-votes itself since has given its leader up.
        """
        _, heard_term, heard_us = self._heard.get(machine.number, (b"", -1, 0))
        return heard_term == term and machine.clock.mono_us() - heard_us < self._within_us
