"""Whole scenarios as texts that a person can follow, compared exactly.

Each scenario runs by virtual time and writes down every message that arrives or is lost (→, ✗), and
what it leads to. A change of the core that changes a text is reviewed as a change of that text; to
write the texts anew:

    BITNEXUS_WRITE_TRANSCRIPTS=1 pytest tests/consensus/test_raft_transcripts.py
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from consensus.changes import ChangeKind
from consensus.leadership import RaftConfig
from tests.consensus.raft_chains import transaction
from tests.consensus.raft_mail import MILLISECOND_US, Weather
from tests.consensus.raft_network import Network

if TYPE_CHECKING:
    from collections.abc import Callable

FOLDER = Path(__file__).parent / "transcripts"


class SlowDisk(Weather):
    """The disk of `c` takes 30 ms for a save."""

    def save_us(self, name: str) -> int:
        """Two milliseconds elsewhere."""
        return 30 * MILLISECOND_US if name == "c" else super().save_us(name)


def settled(network: Network) -> bool:
    """Whether all members that run have applied one log."""
    hosts = [network.hosts[name] for name in network.up]
    ends = {host.running.log.last_tip.hash for host in hosts}
    return len(ends) == 1 and all(h.applied_index == h.running.log.last_index for h in hosts)


def split(network: Network, one: str, other: str) -> None:
    """Cuts the network into two sides."""
    network.cut = {(s, t) for s in one for t in other} | {(s, t) for s in other for t in one}
    network.say(f"the network is cut between {one} and {other}")


def mend(network: Network) -> None:
    """The network is whole again."""
    network.cut.clear()
    network.say("the network is whole again")


def election() -> Network:
    """Three members start, elect a leader, and commit its first block."""
    network = Network(3, seed=1)
    network.run(1_000 * MILLISECOND_US, lambda: network.commit_index == 1 and settled(network))
    return network


def slow_follower() -> Network:
    """Blocks are committed with the quick follower; the slow one is sent each of them once."""
    network = Network(3, weather=SlowDisk(), seed=1)
    network.elect("a")
    network.trace.clear()
    for number in range(4):
        network.propose("a", transaction(number))
        network.run(5 * MILLISECOND_US)
    network.run(200 * MILLISECOND_US, lambda: settled(network))
    return network


def failover() -> Network:
    """The leader seals blocks that reach nobody, and crashes; its successor replaces them."""
    network = Network(3, seed=1)
    network.elect("a")
    network.trace.clear()
    split(network, "a", "bc")
    for number in range(2):
        network.propose("a", transaction(number))
    network.run(10 * MILLISECOND_US)
    network.crash("a")
    network.run(1_000 * MILLISECOND_US, lambda: network.commit_index == 2)
    mend(network)
    network.start("a", applied_index=1)
    network.run(1_000 * MILLISECOND_US, lambda: settled(network))
    return network


def partition_heal() -> Network:
    """A leader cut off with one follower commits nothing; the others go on; then all agree."""
    config = RaftConfig(heartbeat_us=100_000, election_min_us=300_000, election_max_us=400_000)
    network = Network(5, seed=1, config=config)
    network.elect("a")
    network.trace.clear()
    split(network, "ab", "cde")
    network.propose("a", transaction(1))
    network.run(1_500 * MILLISECOND_US, lambda: network.leader in {"c", "d", "e"})
    network.propose(network.leader or "", transaction(2))
    network.run(20 * MILLISECOND_US)
    mend(network)
    network.run(1_000 * MILLISECOND_US, lambda: settled(network))
    return network


def replacement() -> Network:
    """A dead member is removed; a new one learns, is promoted by itself, and votes from then on."""
    network = Network(3, seed=1)
    network.elect("a")
    network.run(60 * MILLISECOND_US)
    network.crash("c")
    network.trace.clear()
    network.change("a", ChangeKind.REMOVE, "c")
    network.run(20 * MILLISECOND_US)
    network.change("a", ChangeKind.ADD, "d")
    network.join("d")
    network.run(1_000 * MILLISECOND_US, lambda: settled(network) and len(network["d"].voters) == 3)
    return network


def handover() -> Network:
    """The leader removes itself, leads until that is committed, and hands over at once."""
    network = Network(3, seed=1)
    network.elect("a")
    network.run(60 * MILLISECOND_US)
    network.trace.clear()
    network.change("a", ChangeKind.REMOVE, "a")
    network.run(1_000 * MILLISECOND_US, lambda: network["b"].log.commit_index == 3)
    return network


SCENARIOS = [election, slow_follower, failover, partition_heal, replacement, handover]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_transcript(scenario: Callable[[], Network]) -> None:
    """The scenario happens as it is written down."""
    path = FOLDER / f"{scenario.__name__}.txt"
    text = transcript(scenario)
    if os.environ.get("BITNEXUS_WRITE_TRANSCRIPTS") == "1":
        path.write_text(text, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == text


def transcript(scenario: Callable[[], Network]) -> str:
    """The title, what happens at which millisecond, and where every member stands in the end."""
    network = scenario()
    ends = []
    for name in network.up:
        raft = network[name]
        log = raft.log
        row = " ".join(str(log.term_at(index)) for index in range(1, log.last_index + 1))
        ends.append(
            f"{name}: {raft.role} of term {raft.term}, log {row}, commit {log.commit_index}"
        )
    return "\n".join([f"{scenario.__doc__}", "", *network.trace, "", *ends, ""])
