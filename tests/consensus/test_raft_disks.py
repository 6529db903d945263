"""Disks that are slow, one or all: whose save stalls hands over, and whose vote takes long waits.

A save belongs to the protocol: a vote or an acknowledgement leaves after it (paper, figure 2). So a
slow disk looks like a slow network, and elections must leave it time.
"""

from __future__ import annotations

import pytest

from consensus.changes import ChangeKind
from consensus.messages import PreVoteRequest, TimeoutNow, VoteReply, VoteRequest
from consensus.ready import Role
from tests.consensus.raft_chains import transaction
from tests.consensus.raft_mail import MILLISECOND_US, SECOND_US, Weather
from tests.consensus.raft_network import Network


class Disks(Weather):
    """Every save of those members takes so long, and two milliseconds elsewhere."""

    def __init__(self, save_us: int, names: str = "abc") -> None:
        super().__init__()
        self.slow_us = save_us
        self.names = names

    def save_us(self, name: str) -> int:
        """As it was said."""
        return self.slow_us if name in self.names else super().save_us(name)


def led_network(weather: Weather | None = None, size: int = 3) -> Network:
    """A cluster in which `a` leads term 1 and has committed in it."""
    network = Network(size, weather=weather)
    network.elect("a")
    network.run(60 * MILLISECOND_US)
    return network


# One slow disk


def test_leader_whose_save_stalls_hands_over() -> None:
    """To one that has saved more of its log, within an election timeout and two heartbeats."""
    disks = Disks(2 * MILLISECOND_US, "a")
    network = led_network(disks)
    disks.slow_us = 10 * SECOND_US
    index = network.propose("a", transaction(1)).index
    began_us = network.now_us
    assert network.run(SECOND_US, lambda: network.leader in {"b", "c"})
    stalled_us = network.now_us - began_us
    assert stalled_us < network.config.election_max_us + 2 * network.config.heartbeat_us
    assert network.run(SECOND_US, lambda: network.commit_index > index)
    network.run(5 * SECOND_US)
    assert (Role.FOLLOWER, 2) == (network.role("a"), network["b"].term)


def test_stalled_leader_asks_the_one_that_has_most() -> None:
    """It leads no longer when it asks: its disk is of no use to anybody."""
    network = led_network()
    network.propose("a", transaction(1))
    network.deliver("a", "c")
    network.finish_save("c")
    network.deliver("c", "a")
    network.now_us += network.config.heartbeat_us
    network.tick("a")
    network.deliver("b", "a")
    network.bag.clear()
    leadership = network["a"].leadership
    assert leadership is not None
    network.now_us += network.config.election_max_us
    for progress in leadership.followers.values():
        progress.last_heard_us = network.now_us
    network.tick("a")
    assert ([TimeoutNow(1)], []) == (
        network.sent("a", "c", TimeoutNow),
        network.sent("a", "b", TimeoutNow),
    )
    assert Role.FOLLOWER is network.role("a")


def test_leader_goes_on_where_nobody_has_more() -> None:
    """Where the others are as slow, an election would only cost time."""
    disks = Disks(2 * MILLISECOND_US)
    network = led_network(disks)
    disks.slow_us = 10 * SECOND_US
    network.propose("a", transaction(1))
    network.run(5 * SECOND_US)
    assert (Role.LEADER, 1) == (network.role("a"), network["a"].term)


@pytest.mark.parametrize(("saving_us", "is_overtaken"), [(399_999, False), (400_000, True)])
def test_quicker_member_overtakes(saving_us: int, *, is_overtaken: bool) -> None:
    """One whose acknowledgements take less than half as long as the leader's save by now."""
    network = led_network()
    network.propose("a", transaction(1))
    network.deliver("a", "b")
    network.now_us += 200 * MILLISECOND_US
    network.advance("a")
    network.finish_save("b")
    network.deliver("b", "a")
    leadership = network["a"].leadership
    assert leadership is not None
    assert is_overtaken == leadership.is_overtaken(saving_us)


def test_learner_overtakes_nobody() -> None:
    """What a learner has saved is no reason to hand over; what a voter has is one."""
    network = led_network()
    network.join("d")
    network.change("a", ChangeKind.ADD, "d")
    network.settle()
    network.propose("a", transaction(1))
    leadership = network["a"].leadership
    assert leadership is not None
    overtaken = []
    for name in "db":
        network.deliver("a", name)
        network.finish_save(name)
        network.deliver(name, "a")
        overtaken.append(leadership.is_overtaken(SECOND_US))
    assert [False, True] == overtaken


def test_member_whose_save_stalls_does_not_campaign() -> None:
    """Its vote for itself would not be durable in time either."""
    network = Network(3)
    network.step("a", "b", VoteRequest(1, last_index=0, last_term=0, transfer=False))
    network.hosts["a"].save_due_us = 10 * SECOND_US
    for name in "bc":
        network.crash(name)
    network.run(9 * SECOND_US)
    assert (1, []) == (network["a"].term, [line for line in network.trace if "PreVote" in line])
    network.run(3 * SECOND_US)
    assert Role.PRE_CANDIDATE is network.role("a")
    assert any("PreVoteRequest term=2" in line for line in network.trace)


# A vote that takes long


def test_slow_vote_is_not_a_lost_election() -> None:
    """A candidate waits for its own vote to be durable: a new term would need another save."""
    network = Network(3, weather=Disks(5 * SECOND_US, "a"))
    network.now_us = network["a"].wake_us()
    network.tick("a")
    network.deliver("a", kind=PreVoteRequest)
    network.deliver(target="a")
    assert (Role.CANDIDATE, 1) == (network.role("a"), network["a"].term)
    for name in "bc":
        network.crash(name)
    network.run(4 * SECOND_US)
    assert (Role.CANDIDATE, 1) == (network.role("a"), network["a"].term)


def test_answers_have_their_time_from_the_end_of_the_save() -> None:
    """The election timeout of a candidate begins anew once it could ask (paper §5.2)."""
    network = Network(3)
    network.now_us = network["a"].wake_us()
    network.tick("a")
    network.deliver("a", kind=PreVoteRequest)
    network.deliver(target="a")
    network.now_us += network.config.election_min_us - 1
    network.advance("a")
    network.finish_save("a")
    assert network["a"].wake_us() >= network.now_us + network.config.election_min_us - 1
    assert [VoteRequest] == [type(message) for message in network.sent("a", "b", VoteRequest)]
    network.step("a", "b", VoteReply(1, granted=True))
    assert Role.LEADER is network.role("a")


# All disks slow


def is_idle(network: Network) -> bool:
    """Whether the leader has committed all that it holds."""
    log = network[network.leader].log if network.leader else None
    return log is not None and log.last_index == log.commit_index


@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("save_ms", [300, 400, 500])
def test_slow_disks_everywhere(save_ms: int, size: int) -> None:
    """With default times a cluster elects a leader and commits.

    In 30 virtual seconds, with one block on its way at a time, seeds gave 95 or 96 commits where a
    save takes 300 ms, 65 to 71 where it takes 400 ms, 45 to 51 where it takes 500 ms, and in one
    cluster of five, which needed twenty elections for its first leader, 20.
    """
    for seed in range(3):
        network = Network(size, seed=seed, weather=Disks(save_ms * MILLISECOND_US, "abcde"))
        number = 0
        while network.run(30 * SECOND_US - network.now_us, lambda n=network: is_idle(n)):  # type: ignore[misc]  # mypy cannot infer a lambda with a default
            assert network.leader is not None
            network.propose(network.leader, transaction(number))
            number += 1
        assert network.commit_index >= 20
