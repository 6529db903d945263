"""Networks in which some links are down for good: a stable leader is found, and kept.

In 2020 a switch at Cloudflare cut one link of three etcd members for hours, and they deposed one
leader after the other. Pre-vote and check-quorum (dissertation §9.6 and §6.2) let such a cluster
settle: ten virtual seconds after the cut, one leader leads one term for five seconds and commits.
"""

from __future__ import annotations

from itertools import combinations

import pytest

from consensus.ready import Role
from tests.consensus.raft_chains import transaction
from tests.consensus.raft_mail import MILLISECOND_US, SECOND_US
from tests.consensus.raft_network import Network

RUNS = [(seed, True) for seed in range(20)] + [(seed, False) for seed in range(5)]
"""Seeds, and whether there is work: who hears no leader is not far behind in an idle cluster."""
MESHED = {frozenset(link) for link in ("ab", "ac", "bc", "bd", "ce")}
"""The links of five members: three know one another, each of the others knows one of those."""


def only(links: set[frozenset[str]]) -> set[tuple[str, str]]:
    """What is cut where only these links of five members are up."""
    down = [pair for pair in combinations("abcde", 2) if frozenset(pair) not in links]
    return {link for pair in down for link in (pair, pair[::-1])}


CUTS = {
    "three, one link cut": (3, {("a", "b"), ("b", "a")}),
    "five, three of them meshed": (5, only(MESHED)),
}


def reign(network: Network) -> tuple[str, int] | None:
    """Who leads, in which term."""
    leader = network.leader
    return (leader, network[leader].term) if leader else None


def settles(network: Network, *, is_busy: bool) -> bool:
    """Whether one reign lasts five of the next fifteen seconds, and commits what there is."""
    end_us = network.now_us + 15 * SECOND_US
    since_us, present = network.now_us, reign(network)
    while network.now_us < end_us:
        committed = network.commit_index
        for name in network.up:
            if is_busy and network.role(name) is Role.LEADER:
                network.propose(name, transaction(network.now_us))
        network.run(SECOND_US // 2)
        works = network.commit_index > committed or not is_busy
        if reign(network) != present or not works or present is None:
            since_us, present = network.now_us, reign(network)
        if network.now_us - since_us >= 5 * SECOND_US:
            return True
    return False


@pytest.mark.parametrize("case", CUTS)
@pytest.mark.parametrize(("seed", "is_busy"), RUNS)
def test_cut_from_the_start(case: str, seed: int, *, is_busy: bool) -> None:
    """No leader was there before: one is elected, and stays."""
    size, cut = CUTS[case]
    network = Network(size, seed=seed)
    network.cut = set(cut)
    assert settles(network, is_busy=is_busy)


@pytest.mark.parametrize("case", CUTS)
@pytest.mark.parametrize(("seed", "is_busy"), RUNS)
def test_cut_under_a_leader(case: str, seed: int, *, is_busy: bool) -> None:
    """Whoever led and reaches a majority leads on; after the others, one that does leads soon."""
    size, cut = CUTS[case]
    for leader in "abcde"[:size]:
        network = Network(size, seed=seed)
        network.elect(leader)
        network.propose(leader, transaction(0))
        network.run(100 * MILLISECOND_US)
        network.cut = set(cut)
        assert settles(network, is_busy=is_busy), f"after {leader}"
        assert leader in "de" or (leader, 1) == reign(network)
