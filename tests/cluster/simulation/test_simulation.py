"""Whole clusters in virtual time: runs are repeatable, reach what they should, and break no rule.

A bounded sample of fresh seeds is part of it: their numbers stand in the name of a failure, and
`bitnexus simulate --replay SEED` runs one again.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections import Counter

import pytest

from cluster.simulation.boundary import KIND_OF
from cluster.simulation.campaign import run_campaign
from cluster.simulation.database_client import CheckpointBoundary
from cluster.simulation.faults import PROFILES, Fault, Scenario
from cluster.simulation.shrink import shrink
from cluster.simulation.world import simulate
from tests.cluster.simulation.defects import DEFECTS
from tests.house_rules import ROOT

FRESH = [secrets.randbits(32) for _ in range(8)]
"""Drawn anew in every run of the tests."""

KEPT: list[tuple[str, Scenario]] = [
    ("a longer log of an older term", Scenario(seed=9, nodes=3, seconds=30.0)),
    ("one member's vote, twice", Scenario(seed=45, nodes=5, seconds=30.0)),
    ("a read at a cut-off leader", Scenario(seed=3, nodes=3, seconds=30.0, profile="network")),
    ("a heartbeat's reply that waits while its blocks go", Scenario(seed=301, seconds=60.0)),
    (
        "a reply to an old leader, let out before the next one's blocks",
        Scenario(seed=20111, nodes=3, seconds=180.0),
    ),
    ("a learner whose log is the longest", Scenario(seed=20147, nodes=3, seconds=180.0)),
    (
        "a learner that hears a leader which has moved, and asks it where it was",
        Scenario(seed=30102, nodes=3, seconds=180.0, profile="membership"),
    ),
    *(
        (story, Scenario(seed=seed, nodes=nodes, seconds=30.0, profile="membership"))
        for story, nodes, seed in (
            ("an idle learner, a lost leader, first members that moved", 3, 1),
            ("blocks to fetch, and most of those to ask are gone", 3, 27),
            ("a leader that has moved, and a learner that does not know", 3, 16),
            ("a voter that missed so much that all it knew are gone", 5, 0),
        )
    ),
]
"""Seeds worth keeping, and what they came upon, some of them with a defect planted."""

MEMBERSHIP_FAULTS = (
    Fault.MEMBER_CHANGE,
    Fault.TRANSFER,
    Fault.WIPED_DISK,
    Fault.CRASH_AMID,
)

SAME_EVERYWHERE = (
    Scenario(seed=5, nodes=5, seconds=20.0),
    # Both go another way with another order of hashes where calls expire in that order.
    Scenario(seed=41, nodes=3, seconds=20.0),
    Scenario(seed=31, nodes=5, seconds=20.0, profile="network"),
    Scenario(seed=3, nodes=3, seconds=20.0, profile="disk"),
    Scenario(seed=3, nodes=3, seconds=20.0, profile="membership"),
    Scenario(seed=0, nodes=5, seconds=20.0, profile="membership"),
)

PRINT_HASHES = (
    "from cluster.simulation.world import simulate\n"
    "from tests.cluster.simulation.test_simulation import SAME_EVERYWHERE\n"
    "for scenario in SAME_EVERYWHERE:\n"
    "    print(simulate(scenario).trace_hash)\n"
)


def hashes_in_process(hash_seed: str) -> list[str]:
    """The trace hashes in a fresh interpreter with that PYTHONHASHSEED."""
    done = subprocess.run(
        [sys.executable, "-c", PRINT_HASHES],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def test_a_seed_gives_the_same_trace_in_every_process() -> None:
    """Neither the process nor the order of its hashes changes a single event."""
    here = [simulate(scenario).trace_hash for scenario in SAME_EVERYWHERE]
    for hash_seed in ("0", "1", "77"):
        assert here == hashes_in_process(hash_seed)


def test_another_seed_gives_another_trace() -> None:
    """The seed drives everything."""
    hashes = {simulate(Scenario(seed=seed, seconds=3.0)).trace_hash for seed in range(5)}
    assert 5 == len(hashes)


def test_keeping_a_readable_trace_changes_nothing() -> None:
    """A replay with its trace in words is the same run."""
    scenario = Scenario(seed=2, nodes=3, seconds=5.0)
    silent, told = simulate(scenario), simulate(scenario, readable=True)
    assert silent.trace_hash == told.trace_hash
    assert () == silent.trace
    assert any("lead t1" in line for line in told.trace)


@pytest.mark.parametrize(("story", "scenario"), KEPT, ids=[story for story, _ in KEPT])
def test_a_kept_seed_is_clean(story: str, scenario: Scenario) -> None:
    """What once showed something stays clean."""
    assert simulate(scenario).violation is None


@pytest.mark.parametrize("seed", FRESH)
def test_a_fresh_seed_is_clean(seed: int) -> None:
    """Seeds that nobody has run before break no rule."""
    for profile in ("chaos", "disk", "network", "membership"):
        scenario = Scenario(seed=seed, nodes=(3, 5, 7)[seed % 3], seconds=20.0, profile=profile)
        assert simulate(scenario).violation is None, f"{scenario}"


def test_calm_commits_without_faults() -> None:
    """Without faults one leader serves everyone."""
    result = simulate(Scenario(seed=1, seconds=20.0, profile="calm"))
    assert result.violation is None
    assert {} == result.faults
    assert 1 == result.coverage["leaders elected"]
    assert result.blocks > 20


def test_chaos_reaches_what_it_is_for() -> None:
    """Every kind of fault is injected, and the states that are hard to reach are reached."""
    faults: Counter[str] = Counter()
    coverage: Counter[str] = Counter()
    for seed in range(15):
        result = simulate(Scenario(seed=seed, nodes=5, seconds=30.0))
        assert result.violation is None, f"seed {seed}: {result.violation}"
        faults.update(result.faults)
        coverage.update(result.coverage)
    unseen = {kind for kind in PROFILES["chaos"] if not faults[kind]} - {Fault.CLOCK_DRIFT}
    assert set() == unseen
    crashes = {f"{Fault.CRASH_AT_CHECKPOINT}, {each}" for each in CheckpointBoundary}
    assert crashes <= set(faults)
    rare = (
        "contested elections",
        "tails truncated",
        "leaders deposed with an open tail",
        "promises void by a new term",
        "unsaved blocks lost",
        "queue full",
        "conflicts answered",
        "retries elsewhere",
        "checkpoints committed and not answered",
        "checkpoint writers changed",
        "checkpointers without a database",
        "further pages and ids looked up",
        "nodes stopped: NoSpaceError",
        "index batches refused for want of room",
    )
    assert [] == [name for name in rare if not coverage[name]]


def test_bad_disks_reach_what_they_are_for() -> None:
    """A crash falls on every boundary, and damaged blocks reach readers, retries and the core."""
    faults: Counter[str] = Counter()
    coverage: Counter[str] = Counter()
    for seed in range(15):
        result = simulate(Scenario(seed=seed, nodes=3, seconds=60.0, profile="disk"))
        assert result.violation is None, f"seed {seed}: {result.violation}"
        faults.update(result.faults)
        coverage.update(result.coverage)
    assert set() == {kind for kind in PROFILES["disk"] if not faults[kind]}
    assert [] == [
        boundary for boundary, kind in KIND_OF.items() if not faults[f"{kind}, {boundary}"]
    ]
    rare = (
        "reads refused: DamagedBlockError",
        "retries refused: DamagedBlockError",
        "nodes stopped: DamagedBlockError",
        "boots failed: DamagedBlockError",
        "boots failed: NoSpaceError",
    )
    assert [] == [name for name in rare if not coverage[name]]


def test_membership_reaches_what_it_is_for() -> None:
    """Members come, vote, move and go, by the leader's hand and against its will."""
    faults: Counter[str] = Counter()
    coverage: Counter[str] = Counter()
    for seed in range(20):
        result = simulate(Scenario(seed=seed, nodes=5, seconds=30.0, profile="membership"))
        assert result.violation is None, f"seed {seed}: {result.violation}"
        faults.update(result.faults)
        coverage.update(result.coverage)
    assert set() == {kind for kind in MEMBERSHIP_FAULTS if not faults[kind]}
    rare = (
        "members added",
        "members promoted",
        "members removed",
        "members moved",
        "membership changes reverted",
        "leaders that removed themselves",
        "handovers asked for",
        "changes heard to be committed",
        "changes refused: no-commit-in-term",
        "changes refused: not-leader",
        "fetches served by followers",
        "messages of strangers",
        "removed members turned away",
        "messages to where nobody listens",
        "elections that a living leader kept off",
    )
    assert [] == [name for name in rare if not coverage[name]]


def test_a_failure_is_shrunk() -> None:
    """A failing run becomes one with fewer kinds of faults that still fails.

    One of the first few does: where all hangs on the moment, nothing can be left out.
    """
    defect = next(each for each in DEFECTS if each.name == "a restart forgets the vote")
    kinds: list[int] = []
    with defect.planted():
        for seed in range(20):
            failed = simulate(Scenario(seed=seed, nodes=5, seconds=10.0))
            if failed.violation is None:
                continue
            smallest = shrink(failed)
            assert smallest.violation is not None
            assert smallest.scenario.clients <= failed.scenario.clients
            kinds.append(sum(rate > 0 for rate in smallest.scenario.rates().values()))
            if kinds[-1] <= 3:
                break
    assert min(kinds) <= 3


def test_a_campaign_adds_up() -> None:
    """Processes of their own find what one process finds."""
    scenarios = [Scenario(seed=seed, nodes=3, seconds=2.0) for seed in range(4)]
    done: list[int] = []
    alone = run_campaign(scenarios, workers=1, on_run=done.append)
    together = run_campaign(scenarios, workers=2, on_run=lambda _: None)
    assert [1, 2, 3, 4] == done
    assert (alone.events, alone.blocks, alone.faults, alone.coverage) == (
        together.events,
        together.blocks,
        together.faults,
        together.coverage,
    )
    assert alone.speed > 0
