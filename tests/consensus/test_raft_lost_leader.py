"""What becomes of a member that cannot lead. Relies on the network in `raft_network.py`."""

from __future__ import annotations

from unittest import mock

from tests.consensus.raft_network import Network

SECOND_US = 1_000_000


def test_who_cannot_lead_forgets_a_leader_that_it_does_not_hear() -> None:
    """Else it would never ask around for the one that leads now."""
    network = Network()
    network.elect("a")
    learner = network["c"]
    with mock.patch.object(learner, "_may_campaign", return_value=False):
        network.crash("a")
        network.crash("b")
        network.run(SECOND_US)
    assert learner.leader is None
