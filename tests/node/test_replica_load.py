"""When a member has no room for more. Relies on the network in `replica_network.py`."""

from __future__ import annotations

from node.mempool import QueueLimits
from tests.node.replica_network import ReplicaNetwork, transaction


def test_a_full_member_says_so() -> None:
    """A leader by its queue, a follower by what waits at it; one free place is room."""
    network = ReplicaNetwork(limits=QueueLimits(transactions=2))
    leader = network.elect()
    follower = network.followers()[0]
    assert not leader.is_full
    for number in range(2):
        network.submit(leader, transaction(number))
        network.submit(follower, transaction(10 + number))
    assert (True, True) == (leader.is_full, follower.is_full)
    network.settle()
    assert (False, False) == (leader.is_full, follower.is_full)
