"""The harness sees what it claims to see: raftos in the simulator, judged by our own checkers.

The checkers name what raftos breaks. They say nothing of a calm raftos, nothing of one whose two
worst defects are mended, and nothing of our own core under the same faults. Relies on
`raftos_world.py` beside it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cluster.checker import Fate
from cluster.simulation.faults import Fault
from cluster.simulation.world import simulate as simulate_ours
from tests.control import raftos_mended
from tests.control.raftos_node import Disk
from tests.control.raftos_world import Result, scenario, simulate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager

    Mend = Callable[[Any], AbstractContextManager[None]]

pytestmark = pytest.mark.control

ROOT = Path(__file__).resolve().parents[2]
LOST = "acknowledged means present"
SEEDS = range(1, 5)
FORGETFUL_SEEDS = (0, 5, 12, 18)
CRASH_SEEDS = (8, 11, 14)
"""Power cuts after which two lead one term: twice since files lose it, once since raftos does."""
CRASHES = {Fault.CRASH_ONE, Fault.CRASH_MAJORITY, Fault.CRASH_ALL}


def campaign(
    raftos: Any, profile: str, folder: Path, seeds: Iterable[int] = SEEDS
) -> dict[int, Result]:
    """Some seeds of a profile, each in a folder of its own."""
    return {
        seed: simulate(raftos, scenario(seed, profile), folder / f"{profile} {seed}")
        for seed in seeds
    }


def seeds_that_break(rule: str, results: dict[int, Result]) -> list[int]:
    """Where the checkers reported that rule."""
    return [seed for seed, result in results.items() if rule in result.findings]


@pytest.mark.parametrize(("seed", "nodes"), [(0, 3), (1, 3), (2, 3), (0, 5)])
def test_a_calm_raftos_breaks_nothing(raftos: Any, tmp_path: Path, seed: int, nodes: int) -> None:
    """Without faults it elects once and replicates everything, and no checker cries wolf."""
    result = simulate(raftos, scenario(seed, "calm", nodes=nodes), tmp_path)

    assert {} == result.findings
    assert 1 == result.elections
    assert {Fate.ACKNOWLEDGED} == set(result.fates)
    assert result.fates[Fate.ACKNOWLEDGED] > 50
    assert {} == result.errors


def test_under_chaos_raftos_breaks_election_safety_and_durability(
    raftos: Any, tmp_path: Path
) -> None:
    """Two leaders in one term, two votes of one node, and acknowledged writes that are gone."""
    results = campaign(raftos, "chaos", tmp_path)

    assert [] != seeds_that_break(LOST, results)
    assert [] != seeds_that_break("a vote is kept", results)
    guilty = seeds_that_break("Election Safety", results)
    assert [] != guilty
    for seed in guilty:
        assert results[seed].findings["Election Safety"].detail.startswith("two leaders in term ")


def test_raftos_needs_no_crash_to_forget_its_vote(raftos: Any, tmp_path: Path) -> None:
    """A bad network is enough for a vote forgotten, and for committed entries taken back."""
    results = campaign(raftos, "network", tmp_path, FORGETFUL_SEEDS)

    assert all(CRASHES.isdisjoint(result.faults) for result in results.values())
    assert [] != seeds_that_break("a vote is kept", results)
    assert [] != seeds_that_break("State Machine Safety", results)


@pytest.mark.parametrize(
    ("mend", "expected"),
    [
        pytest.param(raftos_mended.nothing, {"Election Safety", LOST}, id="as it is"),
        pytest.param(raftos_mended.writes_are_durable, {"Election Safety"}, id="durable writes"),
        pytest.param(raftos_mended.both, set(), id="durable writes and votes kept"),
    ],
)
def test_what_is_mended_is_reported_no_more(
    raftos: Any, tmp_path: Path, mend: Mend, expected: set[str]
) -> None:
    """With fsync nothing acknowledged is lost; with its votes kept as well, nothing is found."""
    with mend(raftos):
        results = campaign(raftos, "disk", tmp_path, CRASH_SEEDS)

    found = {rule for result in results.values() for rule in result.findings}
    assert expected == (found & {"Election Safety", LOST} if expected else found)
    assert all(not CRASHES.isdisjoint(result.faults) for result in results.values())


@pytest.mark.parametrize("profile", ["chaos", "disk", "network"])
def test_our_own_core_breaks_nothing_under_the_same_faults(profile: str) -> None:
    """The same seeds, the same mixture of faults, the same checks: it is raftos that fails."""
    ours = [simulate_ours(scenario(seed, profile)) for seed in SEEDS]

    assert [None] * len(SEEDS) == [result.violation for result in ours]
    assert all(result.faults for result in ours)


DIGEST = """
import json, sys
from pathlib import Path
from tests.control import raftos_adapter
from tests.control.raftos_world import scenario, simulate
raftos = raftos_adapter.patched_raftos()
raftos_adapter.configure(raftos, log_path=sys.argv[1])
result = simulate(raftos, scenario(1, "chaos"), Path(sys.argv[1]))
print(json.dumps([result.trace_hash, sorted(result.findings)]))
"""


def digest_in_a_process(folder: Path, hash_seed: str) -> list[Any]:
    """Run one scenario in a process whose sets and dicts of text have an order of their own."""
    done = subprocess.run(
        [sys.executable, "-c", DIGEST, str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        check=True,
    )
    digest: list[Any] = json.loads(done.stdout)
    return digest


def test_a_seed_gives_the_same_run_in_every_process(raftos: Any, tmp_path: Path) -> None:
    """So that what a seed showed once can be shown again."""
    first, second = (digest_in_a_process(tmp_path / seed, seed) for seed in ("1", "2"))

    assert first == second
    assert "Election Safety" in first[1]


def test_a_power_cut_leaves_what_was_written_back(tmp_path: Path) -> None:
    """The model of the disk: since the last write-back everything is lost, before it nothing."""
    (tmp_path / "kept").write_text("old")
    disk = Disk(tmp_path)
    disk.write_back()
    (tmp_path / "kept").write_text("new")
    (tmp_path / "lost").write_text("new")

    disk.cut_power()

    assert {"kept": "old"} == {file.name: file.read_text() for file in tmp_path.iterdir()}
