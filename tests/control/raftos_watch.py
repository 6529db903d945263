"""Shows raftos to the project's own checkers, and writes down what they say.

`RaftosView` has the public face of our `Raft`, so that `consensus.invariants` examines raftos by
the very code that examines ours; `Watch` adds, as `cluster.simulation.watch` does, that nobody
votes for two candidates of one term. Nothing is stopped by a breach: raftos goes on, and the first
breach of each rule is kept. What clients saw goes through `cluster.checker`.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVarTuple, cast

from cluster.checker import Entry, Row, check_history
from consensus.invariants import Snapshot, check_cluster, check_state, check_step
from consensus.ready import Role

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cluster.checker import Operation
    from consensus.raft import Raft

_Args = TypeVarTuple("_Args")
ROLES = {"Follower": Role.FOLLOWER, "Candidate": Role.CANDIDATE, "Leader": Role.LEADER}
EMPTY = b"nothing yet"
GONE = b"no such entry"


@dataclass(frozen=True, slots=True)
class Finding:
    """A rule that was broken, as the checker words it, and when for the first time."""

    rule: str
    detail: str
    at_us: int


class LogView:
    """raftos' log as ours: each entry has a hash over itself and everything before it."""

    def __init__(self, log: Any) -> None:
        self._log = log
        self._entries: list[dict[str, Any]] = []
        self._hashes = [EMPTY]

    @property
    def commit_index(self) -> int:
        """Through where raftos calls it committed."""
        return cast("int", self._log.commit_index)

    @property
    def applied_index(self) -> int:
        """Through where it is in the state machine."""
        return cast("int", self._log.last_applied)

    @property
    def last_index(self) -> int:
        """Where the log ends."""
        return cast("int", self._log.last_log_index)

    saved_index = last_index
    """raftos takes everything for saved that it has written."""

    @property
    def last_term(self) -> int:
        """The term of the last entry."""
        return cast("int", self._log.last_log_term)

    @property
    def last_tip(self) -> SimpleNamespace:
        """The end of the log."""
        return SimpleNamespace(hash=self.hash_at(self.last_index))

    def term_at(self, index: int) -> int:
        """The term of an entry that is there."""
        assert 0 < index <= self.last_index, "there is such an entry"
        return cast("int", self._log[index]["term"])

    def hash_at(self, index: int) -> bytes:
        """The hash of an entry; raftos may have committed one that it no longer has."""
        self._follow()
        return self._hashes[index] if index < len(self._hashes) else GONE

    def _follow(self) -> None:
        """Bring the hashes up to date: what is as before keeps its hash."""
        now = self._log.cache
        if now == self._entries:
            return
        same = 0
        for known, entry in zip(self._entries, now, strict=False):
            if known is not entry and known != entry:
                break
            same += 1
        del self._hashes[same + 1 :]
        for entry in now[same:]:
            parent = self._hashes[-1]
            self._hashes.append(blake2b(parent + repr(entry).encode(), digest_size=16).digest())
        self._entries = list(now)


class RaftosView:
    """One life of a raftos node as our checkers see it."""

    def __init__(self, state: Any) -> None:
        self._state = state
        self.member = state.id
        self.log = LogView(state.log)

    @property
    def term(self) -> int:
        """The current term."""
        return cast("int", self._state.storage.term)

    @property
    def vote(self) -> str | None:
        """Whom it voted for, as far as it remembers."""
        return cast("str | None", self._state.storage.voted_for)

    @property
    def role(self) -> Role:
        """Its role of the moment."""
        return ROLES[type(self._state.state).__name__]

    @property
    def leader(self) -> str | None:
        """Who leads, as it thinks."""
        return cast("str | None", self._state.get_leader())

    @property
    def leadership(self) -> SimpleNamespace | None:
        """Something while it leads. How it counts its followers is its own affair."""
        return SimpleNamespace(followers={}) if self.role is Role.LEADER else None

    def entries(self) -> list[tuple[int, str, str]]:
        """The log: place, name and value of each entry."""
        return [
            (index, name, value)
            for index, entry in enumerate(self._state.log.cache, start=1)
            for name, value in entry["command"].items()
        ]


class Watch:
    """All checks of one run; `findings` has the first breach of each rule."""

    def __init__(self, now_us: Callable[[], int]) -> None:
        self.findings: dict[str, Finding] = {}
        self.elections = 0
        self._now_us = now_us
        self._leaders: dict[int, Any] = {}
        self._votes: dict[tuple[int, str], str] = {}
        self._before: dict[RaftosView, Snapshot] = {}

    def look(self, running: Iterable[RaftosView]) -> None:
        """Check each node that runs, its step since the last look, and all against each other."""
        views = list(running)
        lives = [cast("Raft", view) for view in views]
        for view, raft in zip(views, lives, strict=True):
            after = Snapshot.of(raft)
            before = self._before.get(view)
            if before == after:
                continue
            self._before[view] = after
            self._demand(check_state, raft)
            if before is not None:
                self._demand(check_step, before, after)
                self.elections += before.role is not after.role is Role.LEADER
            self._demand(check_cluster, (raft,), self._leaders)
            for other in lives:
                if other is not raft:
                    self._demand(check_cluster, (raft, other), self._leaders)

    def leaves(self, name: str, target: str, message: dict[str, Any]) -> None:
        """A message leaves: whom does it vote for?"""
        if message["type"] == "request_vote":
            self._vote(name, name, message["term"])
        elif message.get("vote_granted"):
            self._vote(name, target, message["term"])

    def check_history(self, operations: Iterable[Operation], kept: RaftosView | None) -> None:
        """What clients were told, against the log that is left; None where none can be read."""
        chain = [] if kept is None else [entry_of(*each) for each in kept.entries()]
        for breach in check_history(operations, chain):
            self.note(breach.rule, breach.detail)

    def note(self, rule: str, detail: str) -> None:
        """Keep a breach, if it is the first of its rule."""
        self.findings.setdefault(rule, Finding(rule, detail, self._now_us()))

    def _vote(self, voter: str, candidate: str, term: int) -> None:
        first = self._votes.setdefault((term, voter), candidate)
        if first != candidate:
            self.note("a vote is kept", f"{voter} voted for {first} and {candidate} in term {term}")

    def _demand(self, check: Callable[[*_Args], None], *args: *_Args) -> None:
        try:
            check(*args)
        except AssertionError as breach:
            rule, _, detail = str(breach).partition(": ")
            self.note(rule, detail)


def entry_of(index: int, name: str, value: str) -> Entry:
    """A log entry as the history's checker knows it."""
    return Entry("everybody", Row((index, 0), name.encode(), value.encode()))
