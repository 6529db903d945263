"""What a leader tells those that it does not hear. Relies on the network in `raft_network.py`."""

from __future__ import annotations

from tests.consensus.raft_network import Network

SECOND_US = 1_000_000


def test_whom_the_leader_does_not_hear_is_told_to_fetch() -> None:
    """It may hear all the same, and lack the block that says where the leader is since it moved."""
    network = Network()
    network.elect("a")
    network.cut = {("c", "a")}
    assert network["c"].fetch_through == 0
    network.run(2 * SECOND_US)
    assert network["c"].fetch_through == network["a"].log.commit_index
