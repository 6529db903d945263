"""The invariants themselves: each is broken on purpose, and must be noticed and named."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from consensus.invariants import Snapshot, check_cluster, check_state, check_step
from consensus.ready import HardState, Role
from tests.consensus.raft_chains import member_id
from tests.consensus.raft_network import Network

if TYPE_CHECKING:
    from collections.abc import Callable

    from consensus.messages import MemberId
    from consensus.raft import Raft


def led_network() -> Network:
    """A sound cluster: `a` leads, and one block is committed."""
    network = Network(3)
    network.elect("a")
    return network


def progress(raft: Raft, **changes: int) -> None:
    """Changes what the leader knows of a follower."""
    assert raft.leadership is not None
    for name, value in changes.items():
        setattr(next(iter(raft.leadership.followers.values())), name, value)


def test_sound_states_pass() -> None:
    """Before, during and after an election."""
    network = led_network()
    for name in "abc":
        check_state(network[name])
    check_cluster([network[name] for name in "abc"], {})


STATE_FAULTS: list[tuple[str, Callable[[Raft], object]]] = [
    ("only committed blocks are applied", lambda r: setattr(r.log, "applied_index", 2)),
    ("only saved blocks are applied", lambda r: setattr(r.log, "saved_index", 0)),
    ("only blocks of the log are committed", lambda r: setattr(r.log, "commit_index", 2)),
    ("only blocks of the log are saved", lambda r: setattr(r.log, "saved_index", 2)),
    ("no block is from a future term", lambda r: setattr(r, "term", 0)),
    ("only leaders lead", lambda r: setattr(r, "role", Role.FOLLOWER)),
    ("only leaders lead", lambda r: setattr(r, "leadership", None)),
    ("a leader knows that it leads", lambda r: setattr(r, "leader", None)),
    ("a leader voted for itself", lambda r: setattr(r, "vote", None)),
    ("what matches is not sent again", lambda r: progress(r, next_index=1)),
    ("none matches beyond the leader's log", lambda r: progress(r, match_index=8, next_index=9)),
]


@pytest.mark.parametrize(("text", "fault"), STATE_FAULTS, ids=range(len(STATE_FAULTS)))
def test_broken_states_are_noticed(text: str, fault: Callable[[Raft], object]) -> None:
    """One fault each in a sound leader."""
    raft = led_network()["a"]
    fault(raft)
    with pytest.raises(AssertionError, match=text):
        check_state(raft)


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        ("terms never fall", {"term": 0}),
        ("commit never falls", {"commit_index": 0}),
        ("applied never falls", {"applied_index": 0}),
        ("one vote a term", {"vote": member_id("b")}),
        ("one vote a term", {"vote": None}),
        ("Leader Append-Only", {"last_index": 0}),
        ("Leader Append-Only", {"last_hash": bytes(32)}),
        ("committed blocks never change", {"last_hash": bytes(32), "role": Role.FOLLOWER}),
    ],
)
def test_unlawful_steps_are_noticed(text: str, changes: dict[str, object]) -> None:
    """One fault each in the step of a leader whose whole log is committed."""
    before = Snapshot.of(led_network()["a"])
    check_step(before, before)
    with pytest.raises(AssertionError, match=text):
        check_step(before, replace(before, **changes))  # type: ignore[arg-type]  # each is of its field's type


def test_lawful_steps_pass() -> None:
    """A new term forgets the vote; a follower may truncate what is not committed."""
    before = replace(Snapshot.of(led_network()["a"]), role=Role.FOLLOWER, last_index=3)
    check_step(before, replace(before, term=2, vote=None))
    check_step(before, replace(before, vote=before.vote, last_index=2))
    check_step(before, replace(before, last_hash=bytes(32)))
    check_step(replace(before, vote=None), before)


class Unchecked(Network):
    """A network whose members may contradict each other."""

    def _check(self, name: str, before: Snapshot) -> None:
        """Checks nothing."""


def members(logs: dict[str, list[int]], commits: dict[str, int], leader: str = "") -> list[Raft]:
    """Members with those logs and commit indexes, of which one may lead."""
    last = max(terms[-1] for terms in logs.values() if terms)
    states = {name: HardState(last, None, commits.get(name, 0)) for name in "abc"}
    network = Unchecked(3, logs=logs, states=states)
    if leader:
        network.stand(leader)
        network[leader]._become_leader()
    return [network[name] for name in "abc"]


def test_two_leaders_of_one_term_are_noticed() -> None:
    """Also when the first one is gone by the time the second one leads."""
    leaders: dict[int, MemberId] = {1: member_id("b")}
    with pytest.raises(AssertionError, match="Election Safety: two leaders in term 1"):
        check_cluster([led_network()["a"]], leaders)


def test_leaders_are_remembered() -> None:
    """In the dict that the caller keeps."""
    leaders: dict[int, MemberId] = {}
    check_cluster([led_network()["a"]], leaders)
    assert {1: member_id("a")} == leaders


@pytest.mark.parametrize("pair", ["ab", "bc", "ac"])
def test_different_committed_blocks_are_noticed(pair: str) -> None:
    """Between any two members, not only between neighbours."""
    logs = {"a": [1], "b": [1], "c": [1]}
    logs[pair[1]] = [2]
    commits = dict.fromkeys(pair, 1)
    with pytest.raises(AssertionError, match="State Machine Safety"):
        check_cluster(members(logs, commits), {})


@pytest.mark.parametrize("tail", [[], [4]])
def test_different_blocks_of_one_index_and_term_are_noticed(tail: list[int]) -> None:
    """At the end of the shorter log or before it."""
    logs = {"a": [1, 2, *tail], "b": [1], "c": [2, 2, *[3 for _ in tail]]}
    with pytest.raises(AssertionError, match="Log Matching"):
        check_cluster(members(logs, {}), {})


def test_logs_may_differ_in_terms() -> None:
    """As in figure 7 of the paper."""
    logs = {"a": [1, 1, 4, 4, 5], "b": [1, 1, 2, 3, 3, 3], "c": [1, 1, 4, 4, 4]}
    check_cluster(members(logs, dict.fromkeys("abc", 2)), {})


@pytest.mark.parametrize(
    "leader_log", [pytest.param([1], id="too short"), pytest.param([1, 3], id="another block")]
)
def test_leader_without_a_committed_block_is_noticed(leader_log: list[int]) -> None:
    """A leader of a higher term holds everything that was committed before (paper §5.4.3)."""
    logs = {"a": [1, 2], "b": leader_log, "c": [1]}
    running = members(logs, {"a": 2}, leader="b")
    with pytest.raises(AssertionError, match="Leader Completeness"):
        check_cluster(running, {})


def test_leader_of_an_earlier_term_may_lack_later_commits() -> None:
    """It is deposed and does not know it yet."""
    running = members({"a": [1], "b": [1], "c": [1]}, {}, leader="b")
    running[0].term = running[1].term + 1
    running[0].log = members({"a": [1, 9], "b": [1], "c": [1]}, {"a": 2})[0].log
    check_cluster(running, {})
