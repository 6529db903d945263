"""Learners: sent all blocks, counted in no majority, promoted once they have come near.

Sections are those of the dissertation (Ongaro 2014): 4.2.1 on new servers that catch up.
"""

from __future__ import annotations

import pytest

from consensus.changes import ChangeError, ChangeKind, ChangeRefusal
from consensus.elections import LEARNER_PATIENCE
from consensus.learners import Round
from consensus.messages import PreVoteRequest, VoteReply, VoteRequest
from consensus.ready import Role
from tests.consensus.raft_chains import member_id, name_of, transaction
from tests.consensus.raft_mail import MILLISECOND_US, SECOND_US, Weather
from tests.consensus.raft_network import Network

ADD, PROMOTE, REMOVE = ChangeKind.ADD, ChangeKind.PROMOTE, ChangeKind.REMOVE


class SlowLearner(Weather):
    """The disk of `d` takes longer for a save than a round may."""

    def save_us(self, name: str) -> int:
        """Two milliseconds elsewhere."""
        return 350 * MILLISECOND_US if name == "d" else super().save_us(name)


def learning_network(weather: Weather | None = None) -> Network:
    """A cluster of three led by `a`; `d` learns, holds all, and is not promoted yet."""
    network = Network(3, weather=weather)
    network.elect("a")
    network.run(60 * MILLISECOND_US)
    network.join("d")
    network.change("a", ADD, "d")
    network.settle()
    assert (2, 2) == (network["d"].log.saved_index, network["a"].log.commit_index)
    return network


def voters(network: Network, name: str) -> str:
    """The names of the voters by the latest membership in one member's log."""
    return "".join(sorted(map(name_of, network[name].voters)))


# Counted in no majority (§4.2.1)


def test_learner_does_not_count_for_commit() -> None:
    """A block on the leader's disk and a learner's is on one voter's disk."""
    network = learning_network()
    network.propose("a", transaction(1))
    network.settle("ad")
    assert (3, 2) == (network["d"].log.saved_index, network["a"].log.commit_index)
    network.settle("ab")
    assert network["a"].log.commit_index == 3


def test_learner_does_not_count_for_an_election() -> None:
    """It is not asked, and what it says is no vote."""
    network = learning_network()
    network.stand("b")
    assert network.sent("b", "d", VoteRequest) == []
    network.step("b", "d", VoteReply(2, granted=True))
    assert Role.CANDIDATE is network.role("b")
    network.step("b", "c", VoteReply(2, granted=True))
    assert Role.LEADER is network.role("b")


def test_learner_does_not_confirm_a_read() -> None:
    """Its echo proves nothing about the leadership."""
    network = learning_network()
    network.read("a", 1)
    network.settle("ad")
    assert network.hosts["a"].reads == {}
    network.settle("ab")
    assert {1: 2} == network.hosts["a"].reads


def test_learner_does_not_keep_a_leader() -> None:
    """A leader that hears only a learner has lost its quorum."""
    network = learning_network()
    network.crash("b")
    network.crash("c")
    network.run(network.config.election_max_us + 60 * MILLISECOND_US)
    assert Role.FOLLOWER is network.role("a")


def test_learner_reads_and_applies() -> None:
    """In all else it is a follower."""
    network = learning_network()
    network.propose("a", transaction(1))
    network.run(20 * MILLISECOND_US)
    network.read("d", 1)
    network.run(20 * MILLISECOND_US)
    assert (3, {1: 3}) == (network.hosts["d"].applied_index, network.hosts["d"].reads)


def test_learner_is_patient_without_a_leader() -> None:
    """It forgets the one that fell silent, and leaves the election to the voters."""
    network = learning_network()
    network.read("d", 1)
    for name in "abc":
        network.crash(name)
    network.run((LEARNER_PATIENCE - 1) * network.config.election_max_us)
    assert (Role.FOLLOWER, None) == (network.role("d"), network["d"].leader)
    assert network.sent("d", "b", PreVoteRequest) == []
    assert {1: None} == network.hosts["d"].reads


def test_learner_alone_disturbs_nobody() -> None:
    """However long it asks for pre-votes, its term stays what it was."""
    network = learning_network()
    for name in "abc":
        network.crash(name)
    network.run(30 * SECOND_US)
    assert network["d"].term == 1


def network_that_needs_a_learner() -> Network:
    """`a` holds a promotion of `d`; the log of `d` is of a later term, and does not hold it.

    It has that from `b`, which nobody but `c` voted for, and which is gone for good.
    """
    network = learning_network()
    network.change("a", PROMOTE, "d")
    network.settle("ad")
    network.crash("c")
    network.start("c")
    network.stand("b")
    network.drop("b", "a")
    network.deliver("b", "c", VoteRequest)
    network.finish_save("c")
    network.deliver("c", "b", VoteReply)
    network.drop("b", "c")
    network.settle("bd")
    network.crash("a")
    network.start("a")
    network.crash("b")
    network.bag.clear()
    assert ("abcd", "abc") == (voters(network, "a"), voters(network, "d"))
    return network


def test_learner_with_the_longest_log_leads_until_a_voter_can() -> None:
    """Else `a` would wait for the vote of `d`, which must refuse it, for ever.

    "A server that is not part of its own latest configuration … should still start new elections"
    (§4.2.2).
    """
    network = network_that_needs_a_learner()
    assert network.run(20 * SECOND_US, lambda: network.leader in {"a", "c"})
    network.run(SECOND_US)
    assert 1 == len({network[name].log.last_tip.hash for name in "acd"})


def test_learner_that_leads_commits_first() -> None:
    """Before a block of its own term is committed no voter could lead in its place."""
    network = network_that_needs_a_learner()
    network.now_us += LEARNER_PATIENCE * network.config.election_max_us
    network.stand("d")
    network.deliver("d", kind=VoteRequest)
    network.finish_saves("ac")
    network.deliver(kind=VoteReply)
    network.finish_save("d")
    assert Role.LEADER is network.role("d")
    network.settle()
    assert Role.FOLLOWER is network.role("d")
    assert network.leader in {"a", "c"}


# Rounds (§4.2.1)


def test_learner_is_promoted_once_near() -> None:
    """By the leader itself, at its next heartbeat."""
    network = learning_network()
    assert voters(network, "a") == "abc"
    assert network.run(60 * MILLISECOND_US, lambda: voters(network, "a") == "abcd")
    assert network.run(60 * MILLISECOND_US, lambda: voters(network, "d") == "abcd")
    assert 3 == network["a"].log.roster.latest_index


def test_dead_learner_is_not_promoted() -> None:
    """Neither one that never came, nor one that went when it was near."""
    network = learning_network()
    network.crash("d")
    network.now_us += network.config.election_min_us
    network.run(10 * SECOND_US)
    assert voters(network, "a") == "abc"
    network.change("a", REMOVE, "d")
    network.run(SECOND_US)
    network.change("a", ADD, "e")
    network.run(10 * SECOND_US)
    assert ("abc", frozenset([member_id("e")])) == (
        voters(network, "a"),
        network["a"].log.roster.latest.learners,
    )


def test_learner_is_not_promoted_while_it_falls_behind() -> None:
    """A round that lasts an election timeout leaves too much to send; one that ends it all, not."""
    network = Network(3, weather=SlowLearner())
    network.elect("a")
    network.join("d")
    network.change("a", ADD, "d")
    for number in range(250):
        network.propose("a", transaction(number))
        network.run(20 * MILLISECOND_US)
    assert voters(network, "a") == "abc"
    assert network["d"].log.saved_index > 150
    assert network.run(2 * SECOND_US, lambda: voters(network, "a") == "abcd")


def test_learner_of_an_idle_cluster_is_promoted() -> None:
    """Where its first round was a long one and nothing is left to send, it is as near as can be."""
    network = Network(3, weather=SlowLearner())
    network.elect("a")
    network.join("d")
    network.change("a", ADD, "d")
    assert network.run(3 * SECOND_US, lambda: voters(network, "a") == "abcd")


def test_promotion_waits_for_another_change() -> None:
    """One at a time: the removal of one member goes first (§4.1)."""
    network = learning_network()
    network.change("a", REMOVE, "c")
    network.tick("a")
    assert (voters(network, "a"), 3) == ("ab", network["a"].log.last_index)
    assert network.run(200 * MILLISECOND_US, lambda: voters(network, "a") == "abd")


def test_operator_promotes_a_learner_that_is_near() -> None:
    """Without waiting for the next heartbeat."""
    network = learning_network()
    network.change("a", PROMOTE, "d")
    assert voters(network, "a") == "abcd"


def test_new_leader_begins_anew() -> None:
    """What was near to the last leader has a round to do with the next."""
    network = learning_network()
    network.elect("b", among="abc")
    with pytest.raises(ChangeError) as refusal:
        network.change("b", PROMOTE, "d")
    assert ChangeRefusal.NOT_CAUGHT_UP is refusal.value.reason
    assert network.run(SECOND_US, lambda: voters(network, "b") == "abcd")


def test_removed_learner_is_forgotten() -> None:
    """Its rounds end with it."""
    network = learning_network()
    network.change("a", REMOVE, "d")
    network.run(SECOND_US)
    assert ("abc", 3) == (voters(network, "a"), network["a"].log.last_index)


# One round


def test_round_ends_with_its_last_block() -> None:
    """And the next one begins, with all that the log holds by then."""
    first = Round(target_index=5, began_us=100)
    first.acknowledged(4, last_index=9, now_us=150, within_us=100)
    assert Round(5, 100) == first
    first.acknowledged(5, last_index=9, now_us=199, within_us=100)
    assert Round(9, 199, was_short=True) == first


@pytest.mark.parametrize(
    ("last_index", "is_near"), [(9, False), (5, True)], ids=["more to send", "nothing to send"]
)
def test_long_round(last_index: int, is_near: bool) -> None:
    """It tells nothing good, but where nothing is left to send the next one is over at once."""
    first = Round(target_index=5, began_us=100, was_short=True)
    first.acknowledged(5, last_index=last_index, now_us=200, within_us=100)
    assert Round(last_index, 200, was_short=is_near) == first


@pytest.mark.parametrize(
    ("match_index", "now_us", "is_near"),
    [(8, 199, True), (8, 200, False), (9, 10_000, True)],
    ids=["on time", "too long", "all there"],
)
def test_present_round_counts_too(match_index: int, now_us: int, *, is_near: bool) -> None:
    """A learner that was quick once and has got stuck since is not near any more."""
    present = Round(target_index=9, began_us=100, was_short=True)
    assert is_near == present.is_near(match_index, now_us=now_us, within_us=100)
    assert not Round(9, 100).is_near(match_index, now_us=now_us, within_us=100)
