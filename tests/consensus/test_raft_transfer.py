"""The leader hands over (dissertation §3.10), and no election timeout passes.

It brings its successor up to date and tells it to campaign at once; §4.2.3 lets the others vote.
"""

from __future__ import annotations

import pytest

from consensus.changes import ChangeError, ChangeKind, ChangeRefusal
from consensus.messages import Append, TimeoutNow, VoteReply, VoteRequest
from consensus.ready import Role
from tests.consensus.raft_chains import member_id, transaction
from tests.consensus.raft_mail import MILLISECOND_US, SECOND_US, Weather
from tests.consensus.raft_network import Network


def led_network(size: int = 3, weather: Weather | None = None) -> Network:
    """A cluster in which `a` leads term 1 and has committed in it."""
    network = Network(size, weather=weather)
    network.elect("a")
    network.run(60 * MILLISECOND_US)
    return network


def refusal(network: Network, target: str | None, *, by: str = "a") -> ChangeRefusal:
    """Why a leadership is not handed over."""
    with pytest.raises(ChangeError) as error:
        network.transfer(by, target)
    return error.value.reason


def test_hand_over_takes_no_election_timeout() -> None:
    """A few round trips and saves, and the successor has committed in its own term (§3.10)."""
    network = led_network()
    assert "b" == network.transfer("a", "b")
    assert network.run(10 * MILLISECOND_US, lambda: network.role("b") is Role.LEADER)
    assert network.run(10 * MILLISECOND_US, lambda: network["b"].log.commit_index == 2)
    assert (Role.FOLLOWER, 2) == (network.role("a"), network["a"].term)


def test_successor_has_everything_before_it_is_asked() -> None:
    """The prior leader brings "the target server's log" up to date, then asks it (§3.10)."""
    network = led_network()
    network.propose("a", transaction(1))
    network.bag.clear()
    network.transfer("a", "b")
    assert network.sent("a", "b", TimeoutNow) == []
    network.run(SECOND_US, lambda: network["b"].log.last_index == 2)
    network.finish_saves("b")
    network.deliver("b", "a")
    assert [TimeoutNow(1)] == network.sent("a", "b", TimeoutNow)
    network.settle()
    assert (Role.LEADER, 3) == (network.role("b"), network["b"].log.commit_index)


def test_nothing_is_proposed_meanwhile() -> None:
    """The prior leader "stops accepting new client requests" (§3.10)."""
    network = led_network()
    assert [True, False] == [network[name].may_propose for name in "ab"]
    network.transfer("a")
    assert not network["a"].may_propose
    network.settle()
    assert 1 == sum(network[name].may_propose for name in "bc")


def test_transfer_is_aborted_after_an_election_timeout() -> None:
    """The prior leader "aborts the transfer and resumes accepting client requests" (§3.10)."""
    network = led_network()
    network.crash("b")
    network.transfer("a", "b")
    network.run(network.config.election_max_us - MILLISECOND_US)
    assert not network["a"].may_propose
    network.run(60 * MILLISECOND_US)
    assert network["a"].may_propose
    index = network.propose("a", transaction(1)).index
    network.run(60 * MILLISECOND_US)
    assert (Role.LEADER, 1, index) == (
        network.role("a"),
        network["a"].term,
        network["c"].log.commit_index,
    )


def test_lost_request_is_repeated() -> None:
    """After a heartbeat's time, and no sooner."""
    network = led_network()
    network.transfer("a", "b")
    assert network.drop("a", "b", TimeoutNow) == 1
    network.tick("a")
    assert network.sent("a", "b", TimeoutNow) == []
    assert network.run(2 * network.config.heartbeat_us, lambda: network.leader == "b")


def test_living_leader_does_not_keep_members_from_it() -> None:
    """Members that hear a leader vote all the same where it asked for the election (§4.2.3)."""
    network = led_network()
    vote = VoteRequest(2, last_index=1, last_term=1, transfer=True)
    network.step("c", "b", vote)
    network.finish_save("c")
    assert [VoteReply(2, granted=True)] == network.sent("c", "b", VoteReply)


def test_others_are_still_kept_from_it() -> None:
    """A vote request that no leader asked for changes nothing (§4.2.3)."""
    network = led_network()
    network.step("c", "b", VoteRequest(2, last_index=1, last_term=1, transfer=False))
    assert (1, 1, []) == (
        network["c"].term,
        network["c"].dropped["sticky"],
        network.sent("c", "b", VoteReply),
    )


def test_candidate_by_transfer_says_so() -> None:
    """And one that lost its leader by itself does not."""
    network = led_network()
    network.step("b", "a", TimeoutNow(1))
    network.finish_save("b")
    assert [VoteRequest(2, 1, 1, transfer=True)] == network.sent("b", "c", VoteRequest)
    network.stand("c")
    assert [VoteRequest(2, 1, 1, transfer=False)] == network.sent("c", "b", VoteRequest)


def test_request_of_an_earlier_term_is_stale() -> None:
    """Its sender leads no longer."""
    network = led_network()
    network.elect("b")
    network.step("c", "a", TimeoutNow(1))
    assert (Role.FOLLOWER, 2, 1) == (
        network.role("c"),
        network["c"].term,
        network["c"].dropped["stale"],
    )


def test_request_of_another_than_the_leader() -> None:
    """Nobody but its own leader sends a follower into an election."""
    network = led_network()
    network.step("c", "b", TimeoutNow(1))
    network.step("a", "b", TimeoutNow(1))
    network.step("c", "b", TimeoutNow(2))
    assert [1, 2] == [network[name].dropped["untimely handover"] for name in "ac"]
    assert [Role.LEADER, Role.FOLLOWER] == [network.role(name) for name in "ac"]


def test_request_to_a_member_with_a_slow_disk() -> None:
    """It could not even save its own vote."""
    network = led_network()
    network.propose("a", transaction(1))
    network.deliver("a", "b", Append)
    network.now_us += network.config.election_max_us
    network.advance("b")
    network.step("b", "a", TimeoutNow(1))
    assert (Role.FOLLOWER, 1) == (network.role("b"), network["b"].dropped["untimely handover"])


def test_request_to_a_learner() -> None:
    """One that may not lead does not, whoever asks."""
    network = led_network()
    network.join("d")
    network.change("a", ChangeKind.ADD, "d")
    network.settle()
    network.step("d", "a", TimeoutNow(1))
    assert (Role.FOLLOWER, 1) == (network.role("d"), network["d"].dropped["untimely handover"])


def test_unfit_targets() -> None:
    """The leader itself, a learner, a member that was removed, and a stranger."""
    network = led_network(4)
    network.change("a", ChangeKind.REMOVE, "d")
    network.settle()
    network.change("a", ChangeKind.ADD, "e")
    network.settle()
    assert [ChangeRefusal.INVALID] * 4 == [refusal(network, target) for target in "aedf"]
    assert network["a"].may_propose


def test_target_out_of_contact() -> None:
    """Nothing is held up for a member that cannot take over."""
    network = led_network()
    network.crash("c")
    network.run(network.config.election_max_us)
    assert ChangeRefusal.NOT_CAUGHT_UP is refusal(network, "c")
    assert network["a"].may_propose


def test_one_transfer_at_a_time() -> None:
    """A second one would renew the time in which nothing is sealed."""
    network = led_network()
    network.transfer("a", "b")
    assert [ChangeRefusal.TRANSFER_UNDER_WAY] * 2 == [refusal(network, to) for to in ("c", None)]


def test_only_a_leader_hands_over() -> None:
    """Others say so."""
    assert ChangeRefusal.NOT_LEADER is refusal(led_network(), "c", by="b")


def test_nobody_to_hand_over_to() -> None:
    """Alone, or out of contact with all others."""
    assert ChangeRefusal.NO_QUORUM is refusal(led_network(1), None)
    network = led_network()
    for name in "bc":
        network.crash(name)
    network.run(network.config.election_min_us)
    assert ChangeRefusal.NO_QUORUM is refusal(network, None)


def test_successor_has_the_longest_log() -> None:
    """Of those in contact: it has the least to wait for."""
    network = led_network(4)
    network.propose("a", transaction(1))
    network.cut = {("a", "c"), ("a", "d")}
    network.settle("ab")
    assert "b" == network.transfer("a")


def test_successor_is_in_contact() -> None:
    """The longest log is of no use on a machine that is down."""
    network = led_network()
    network.propose("a", transaction(1))
    network.cut = {("a", "c")}
    network.settle("ab")
    network.cut.clear()
    network.crash("b")
    network.run(network.config.election_min_us)
    assert "c" == network.transfer("a")


class Distance(Weather):
    """`b` is far from all others."""

    def delays_us(self, source: str, target: str) -> list[int]:
        """One millisecond among the others."""
        return (
            [20 * MILLISECOND_US] if "b" in (source, target) else super().delays_us(source, target)
        )


def test_successor_is_near() -> None:
    """Of equal logs, the quickest to answer."""
    network = led_network(weather=Distance())
    network.propose("a", transaction(1))
    network.run(100 * MILLISECOND_US)
    followers = network.hosts["a"].running.leadership
    assert followers is not None
    matches = [followers.followers[member_id(name)].match_index for name in "bc"]
    assert ([2, 2], "c") == (matches, network.transfer("a"))


def test_vote_of_the_leader_that_hands_over() -> None:
    """It steps down for the term that it asked for, and votes."""
    network = led_network()
    network.transfer("a", "b")
    network.deliver("a", "b", TimeoutNow)
    network.finish_save("b")
    network.deliver("b", "a", VoteRequest)
    network.finish_save("a")
    assert [VoteReply(2, granted=True)] == network.sent("a", "b", VoteReply)
    network.deliver("a", "b", VoteReply)
    assert Role.LEADER is network.role("b")
