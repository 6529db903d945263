"""Linearizable reads of a replica: confirmed by a majority, applied here, forgotten in time."""

from __future__ import annotations

from node.barriers import Barriers
from tests.node.replica_network import ReplicaNetwork, transaction


def ids(*numbers: int) -> list[bytes]:
    """The ids that `transaction` gives to these numbers."""
    return [number.to_bytes(16, "big") for number in numbers]


def test_read_waits_until_its_index_is_applied() -> None:
    """A linearizable read at a follower answers for what was committed before it was asked."""
    network = ReplicaNetwork()
    leader = network.elect()
    network.submit(leader, transaction(1))
    network.settle()
    answers: list[int] = []
    follower = network.followers()[0]
    follower.read(answers.append)
    network.settle()
    assert answers
    assert answers[0] >= leader.raft.log.commit_index
    assert ids(1) == network.committed_ids(follower)


def test_cut_off_leader_confirms_no_read() -> None:
    """A leader that cannot reach a majority never answers a linearizable read."""
    network = ReplicaNetwork()
    leader = network.elect()
    network.isolate(leader.raft.member)
    answers: list[int] = []
    leader.read(answers.append)
    network.run_for(2_000_000)
    assert [] == answers
    network.heal()
    network.run_for(2_000_000)
    assert len(answers) == 1


def test_reads_that_come_meanwhile_share_a_round() -> None:
    """Many reads at once are all answered, and once each."""
    network = ReplicaNetwork()
    network.elect()
    answers: list[int] = []
    for replica in network.running:
        for _ in range(50):
            replica.read(answers.append)
    network.settle()
    network.run_for(100_000)
    assert len(answers) == 150


def test_slow_answers_confirm_the_reads_they_were_asked_for() -> None:
    """A reply that takes longer than the patience still answers: repeating must not starve it."""
    barriers = Barriers(patience_us=100)
    answers: list[int] = []
    barriers.add(answers.append)
    first = barriers.next_token(0)
    assert first is not None
    barriers.add(answers.append)
    assert barriers.next_token(50) is None
    second = barriers.next_token(150)
    assert second is not None
    barriers.confirm(first, 7)
    barriers.release(7)
    assert [7] == answers
    barriers.confirm(second, 9)
    barriers.release(8)
    assert [7] == answers
    barriers.release(9)
    assert [7, 9] == answers


def test_forgotten_reads_leave_nothing_behind() -> None:
    """A caller whose time is up is forgotten at every stage, and not called."""
    network = ReplicaNetwork()
    replica = network.running[0]
    for _ in range(100):
        replica.forget_read(replica.read(lambda _index: None))
    assert 0 == len(replica._barriers)
    leader = network.elect()
    number = leader.read(lambda _index: None)
    leader.pump()
    leader.forget_read(number)
    assert 0 == len(leader._barriers)


def test_read_survives_the_loss_of_its_request() -> None:
    """A read whose request the network lost is asked again."""
    network = ReplicaNetwork()
    leader = network.elect()
    follower = network.followers()[0]
    network.cut.add((follower.raft.member, leader.raft.member))
    answers: list[int] = []
    follower.read(answers.append)
    network.settle()
    assert [] == answers
    network.heal()
    network.run_for(1_000_000)
    assert len(answers) == 1
