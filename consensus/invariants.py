"""What must hold in every state of a member, over every step, and between members.

Tests and simulations call these after every event; each names the property it guards (paper, figure
3, and dissertation §3.6 for the proofs). Relies on the public state of `Raft` alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from consensus.ready import Role

if TYPE_CHECKING:
    from collections.abc import Iterable

    from consensus.messages import MemberId
    from consensus.raft import Raft


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The part of a member's state that a step may only change in lawful ways."""

    term: int
    vote: MemberId | None
    role: Role
    commit_index: int
    applied_index: int
    last_index: int
    last_hash: bytes

    @classmethod
    def of(cls, raft: Raft) -> Snapshot:
        """The state of `raft` now."""
        log = raft.log
        return cls(
            term=raft.term,
            vote=raft.vote,
            role=raft.role,
            commit_index=log.commit_index,
            applied_index=log.applied_index,
            last_index=log.last_index,
            last_hash=log.last_tip.hash,
        )


def check_state(raft: Raft) -> None:
    """Asserts what holds in every single state."""
    log = raft.log
    assert log.applied_index <= log.commit_index, "only committed blocks are applied"
    assert log.applied_index <= log.saved_index, "only saved blocks are applied"
    assert log.commit_index <= log.last_index, "only blocks of the log are committed"
    assert log.saved_index <= log.last_index, "only blocks of the log are saved"
    assert log.last_term <= raft.term, "no block is from a future term"
    assert (raft.leadership is not None) == (raft.role is Role.LEADER), "only leaders lead"
    if raft.leadership is not None:
        assert raft.leader == raft.member, "a leader knows that it leads"
        assert raft.vote == raft.member, "a leader voted for itself"
        for progress in raft.leadership.followers.values():
            assert progress.match_index < progress.next_index, "what matches is not sent again"
            assert progress.match_index <= log.last_index, "none matches beyond the leader's log"


def check_step(before: Snapshot, after: Snapshot) -> None:
    """Asserts what no step may do, whatever came in."""
    assert before.term <= after.term, "terms never fall (paper §5.1)"
    assert before.commit_index <= after.commit_index, "commit never falls"
    assert before.applied_index <= after.applied_index, "applied never falls"
    if before.term == after.term:
        assert before.vote in {None, after.vote}, "one vote a term (paper §5.2)"
        if before.role is Role.LEADER and after.role is Role.LEADER:
            assert before.last_index <= after.last_index, "Leader Append-Only (paper §5.3)"
            if before.last_index == after.last_index:
                assert before.last_hash == after.last_hash, "Leader Append-Only (paper §5.3)"
    if before.last_index == after.last_index and before.last_hash != after.last_hash:
        assert after.last_index > before.commit_index, "committed blocks never change"


def check_cluster(members: Iterable[Raft], leaders: dict[int, MemberId]) -> None:
    """Asserts Election Safety, Log Matching, Leader Completeness and State Machine Safety.

    `leaders` remembers who led each term; it is the caller's, and grows.
    """
    running = list(members)
    for raft in running:
        if raft.role is Role.LEADER:
            first = leaders.setdefault(raft.term, raft.member)
            assert first == raft.member, f"Election Safety: two leaders in term {raft.term}"
    for one, other in combinations(running, 2):
        _check_pair(one, other)


def _check_pair(one: Raft, other: Raft) -> None:
    """Equal hashes at one index mean equal logs up to there, so only what differs is walked."""
    committed = min(one.log.commit_index, other.log.commit_index)
    assert one.log.hash_at(committed) == other.log.hash_at(committed), "State Machine Safety"
    index = min(one.log.last_index, other.log.last_index)
    while one.log.hash_at(index) != other.log.hash_at(index):
        assert one.log.term_at(index) != other.log.term_at(index), "Log Matching"
        index -= 1
    _check_leader_completeness(one, other)
    _check_leader_completeness(other, one)


def _check_leader_completeness(leader: Raft, other: Raft) -> None:
    """What was committed by a term's end is in the logs of the leaders of all higher terms."""
    if leader.role is not Role.LEADER or leader.term < other.term:
        return
    committed = other.log.commit_index
    assert committed <= leader.log.last_index, "Leader Completeness: too short"
    assert leader.log.hash_at(committed) == other.log.hash_at(committed), "Leader Completeness"
