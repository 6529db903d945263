"""Members come and go, one at a time, while the cluster works (dissertation, chapter 4).

Sections are those of Ongaro's dissertation (2014): 4.1 on safety. The rule that a leader commits in
its own term first is from "bug in single-server membership changes" (Ongaro, raft-dev, 2015).
Learners and members that leave have files of their own.
"""

from __future__ import annotations

import msgspec
import pytest

from consensus.changes import Change, ChangeError, ChangeKind, ChangeRefusal
from consensus.leadership import Leadership
from consensus.messages import Append, VoteReply, VoteRequest
from consensus.ready import Role
from tests.consensus.raft_chains import member_id, member_of, name_of, transaction
from tests.consensus.raft_mail import MILLISECOND_US, SECOND_US
from tests.consensus.raft_network import Network

ADD, PROMOTE, REMOVE = ChangeKind.ADD, ChangeKind.PROMOTE, ChangeKind.REMOVE


def led_network(size: int = 3) -> Network:
    """A cluster in which `a` leads term 1 and has committed in it."""
    network = Network(size)
    network.elect("a")
    network.run(60 * MILLISECOND_US)
    return network


def grown_network(size: int = 3) -> Network:
    """The same, and the next name is a learner, far from a promotion."""
    network = led_network(size)
    joiner = "abcdefghi"[size]
    network.change("a", ADD, joiner)
    network.settle()
    network.join(joiner)
    return network


def cut_off(network: Network, name: str) -> None:
    """Cuts one member off from all others, both ways."""
    for other in network.hosts:
        network.cut |= {(name, other), (other, name)}


def voters(network: Network, name: str) -> str:
    """The names of the voters by the latest membership in one member's log."""
    return "".join(sorted(map(name_of, network[name].voters)))


def refusal(network: Network, kind: ChangeKind, subject: str, *, by: str = "a") -> ChangeRefusal:
    """Why a change is not made; nothing is sealed for it."""
    last_index = network[by].log.last_index
    with pytest.raises(ChangeError) as error:
        network.change(by, kind, subject)
    assert last_index == network[by].log.last_index
    return error.value.reason


# In force at append (§4.1)


def test_change_is_in_force_at_append() -> None:
    """A server "always uses the latest configuration in its log", committed or not (§4.1)."""
    network = led_network()
    network.change("a", REMOVE, "c")
    assert (1, "ab") == (network["a"].log.commit_index, voters(network, "a"))
    network.deliver("a", "b", Append)
    assert (1, "ab") == (network["b"].log.commit_index, voters(network, "b"))
    assert network.sent("a", "c", Append) == []


def test_change_is_committed_by_the_new_voters() -> None:
    """With three of four dead but one, two of the three that are left decide (§4.1)."""
    network = led_network(4)
    network.run(SECOND_US)
    network.crash("d")
    network.change("a", REMOVE, "d")
    network.crash("c")
    assert network.run(SECOND_US, lambda: network["a"].log.commit_index == 2)
    assert (1, "abc") == (network["b"].term, voters(network, "b"))


def test_change_is_undone_by_truncation() -> None:
    """A server "must fall back to the previous configuration" when its log is cut back (§4.1)."""
    network = led_network()
    cut_off(network, "a")
    network.change("a", REMOVE, "c")
    assert voters(network, "a") == "ab"
    network.elect("b", among="bc")
    network.cut.clear()
    network.run(SECOND_US)
    assert ("abc", "abc", "b") == (voters(network, "a"), voters(network, "b"), network.leader)
    assert 0 == network["a"].log.roster.latest_index


def test_change_survives_a_restart() -> None:
    """The membership is read from the chain, and from nowhere else."""
    network = led_network()
    network.change("a", REMOVE, "c")
    network.settle()
    network.crash("b")
    assert ("ab", 2) == (
        "".join(sorted(name_of(v) for v in network.start("b").voters)),
        network["b"].log.roster.latest_index,
    )


# What is refused


def test_one_change_at_a_time() -> None:
    """None before the last one is committed (§4.1)."""
    network = led_network()
    network.change("a", ADD, "d")
    assert ChangeRefusal.CHANGE_UNDER_WAY is refusal(network, ADD, "e")
    network.settle()
    network.change("a", ADD, "e")


def test_no_change_before_a_commit_in_the_own_term() -> None:
    """A new leader knows what is committed only then (Ongaro, raft-dev, 2015)."""
    network = Network(3)
    network.stand("a")
    network.deliver("a", "b")
    network.finish_save("b")
    network.deliver("b", "a")
    assert network.role("a") is Role.LEADER
    assert ChangeRefusal.NO_COMMIT_IN_TERM is refusal(network, ADD, "d")
    network.settle()
    network.change("a", ADD, "d")


def test_only_the_leader_changes_members() -> None:
    """Others say so."""
    network = led_network()
    assert ChangeRefusal.NOT_LEADER is refusal(network, ADD, "d", by="b")


def test_no_change_while_handing_over() -> None:
    """The next leader would not have it (§3.10)."""
    network = led_network()
    network.transfer("a", "b")
    assert ChangeRefusal.TRANSFER_UNDER_WAY is refusal(network, ADD, "d")


def test_recovery_is_refused_where_there_is_a_leader() -> None:
    """A cluster with a leader has its quorum."""
    assert ChangeRefusal.INVALID is refusal(led_network(), ChangeKind.RECOVER, "a")


def test_lawful_changes_only() -> None:
    """What makes no sense is refused before anything is sealed."""
    network = led_network()
    assert ChangeRefusal.UNKNOWN_MEMBER is refusal(network, REMOVE, "d")
    assert ChangeRefusal.INVALID is refusal(network, ADD, "b")


def test_removal_that_leaves_no_live_quorum() -> None:
    """Of three with one dead, neither living one may go; the dead one may."""
    network = led_network()
    network.crash("c")
    network.run(SECOND_US)
    assert ChangeRefusal.NO_QUORUM is refusal(network, REMOVE, "b")
    assert ChangeRefusal.NO_QUORUM is refusal(network, REMOVE, "a")
    network.change("a", REMOVE, "c")
    assert network.run(SECOND_US, lambda: network["b"].log.commit_index == 2)


def test_removal_just_after_an_election() -> None:
    """Whoever has not answered this leader yet may be dead: the vote was that of another."""
    network = Network(3)
    network.crash("c")
    network.elect("a", among="ab")
    assert 1 == network["a"].log.commit_index
    assert ChangeRefusal.NO_QUORUM is refusal(network, REMOVE, "b")
    network.change("a", REMOVE, "c")


def test_promotion_of_a_learner_that_is_behind() -> None:
    """An operator's wish does not make it any nearer."""
    network = grown_network()
    network.crash("d")
    assert ChangeRefusal.NOT_CAUGHT_UP is refusal(network, PROMOTE, "d")


def test_former_member_does_not_return() -> None:
    """With its old key it might vote twice in one term."""
    network = led_network()
    network.change("a", REMOVE, "c")
    network.settle()
    assert ChangeRefusal.FORMER_MEMBER is refusal(network, ADD, "c")


# The bug in single-server changes (Ongaro, raft-dev, 2015)


def elect_by(network: Network, name: str, others: str) -> None:
    """Lets `name` stand, and only those hear and answer."""
    network.tick(name)
    network.stand(name)
    for other in others:
        network.advance(other)
        network.deliver(name, other, VoteRequest)
        network.finish_saves(other)
        network.deliver(other, name, VoteReply)
    network.bag = [e for e in network.bag if not isinstance(e.message, VoteRequest)]


def promotion_that_few_know() -> Network:
    """Leader `a` of four makes a fifth member a voter; only that one hears of it."""
    network = Network(4)
    network.elect("a")
    network.run(60 * MILLISECOND_US)
    network.join("e")
    network.change("a", ADD, "e")
    network.settle()
    network.cut = {("a", other) for other in "bcd"}
    network.change("a", PROMOTE, "e")
    network.settle()
    network.cut.clear()
    return network


def return_of_the_first_leader(network: Network) -> None:
    """`a` stands again, in the term after that of `b`, and only `d` and `e` hear it."""
    network.crash("b")
    network.crash("c")
    elect_by(network, "a", "d")
    elect_by(network, "a", "de")
    network.settle()


def test_without_the_rule_two_leaders_commit_different_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The very scenario: {b, c} of three and {a, d, e} of five are majorities that share nobody."""
    plan = Leadership.plan

    def plan_without_the_rule(self: Leadership, change: Change, now_us: int) -> None:
        try:
            plan(self, change, now_us)
        except ChangeError as error:
            if error.reason is not ChangeRefusal.NO_COMMIT_IN_TERM:
                raise

    monkeypatch.setattr(Leadership, "plan", plan_without_the_rule)
    network = promotion_that_few_know()
    elect_by(network, "b", "cd")
    network.change("b", REMOVE, "a")
    network.settle("bc")
    assert (4, "bcd") == (network["b"].log.commit_index, voters(network, "b"))
    with pytest.raises(AssertionError, match="two blocks 3"):
        return_of_the_first_leader(network)
    assert ("abcde", Role.LEADER) == (voters(network, "a"), network.role("a"))


def test_with_the_rule_the_first_leader_cannot_return() -> None:
    """The second one commits in its own term first, and whoever holds that votes for it no more."""
    network = promotion_that_few_know()
    elect_by(network, "b", "cd")
    assert ChangeRefusal.NO_COMMIT_IN_TERM is refusal(network, REMOVE, "a", by="b")
    network.settle("bc")
    assert ChangeRefusal.NO_COMMIT_IN_TERM is refusal(network, REMOVE, "a", by="b")
    network.settle("bcd")
    network.change("b", REMOVE, "a")
    network.settle("bc")
    assert network["b"].log.commit_index == 4
    return_of_the_first_leader(network)
    assert network.role("a") is not Role.LEADER
    assert [2, 2] == [network[name].log.commit_index for name in "ae"]


# Whole lives


def test_dead_member_is_replaced() -> None:
    """Removed first and the new one added then, so that the quorum never needs the dead one."""
    network = led_network()
    network.crash("c")
    network.run(SECOND_US)
    network.change("a", REMOVE, "c")
    network.run(100 * MILLISECOND_US)
    network.change("a", ADD, "d")
    network.join("d")
    assert network.run(2 * SECOND_US, lambda: voters(network, "d") == "abd")
    network.run(SECOND_US)
    network.crash("b")
    committed = network.propose("a", transaction(1)).index
    assert network.run(SECOND_US, lambda: network["d"].log.commit_index == committed)


def test_member_moves() -> None:
    """It has other addresses, and is the same member in all else."""
    network = led_network()
    member = msgspec.structs.replace(member_of("c"), peer="elsewhere:1")
    with network.event("a") as raft:
        raft.change_membership(Change(ChangeKind.MOVE, member))
    network.run(100 * MILLISECOND_US)
    assert member == network["c"].log.roster.latest.named("c")
    assert ("abc", "a", 1) == (voters(network, "c"), network.leader, network["a"].term)


def test_member_that_missed_the_addition_of_its_leader() -> None:
    """It drops what its leader says, until it has fetched from anyone who that is."""
    network = led_network()
    network.crash("c")
    network.join("d")
    network.change("a", ADD, "d")
    assert network.run(2 * SECOND_US, lambda: "d" in voters(network, "d"))
    network.run(SECOND_US)
    network.transfer("a", "d")
    assert network.run(SECOND_US, lambda: network.leader == "d")
    network.start("c")
    network.run(5 * SECOND_US)
    assert (None, True) == (network["c"].leader, network["c"].dropped["stranger"] > 5)
    assert (2, 2) == (network["d"].term, network["a"].term)
    assert network.look_around("c")
    network.run(SECOND_US)
    assert member_id("d") == network["c"].leader
    assert network["d"].log.commit_index == network["c"].log.commit_index


def test_cluster_grows_and_shrinks() -> None:
    """From one member to five and back to one, with a block after each change."""
    network = led_network(1)

    def commit(number: int) -> None:
        leader = network.leader
        assert leader is not None
        index = network.propose(leader, transaction(number)).index
        assert network.run(SECOND_US, lambda: network.commit_index >= index)

    for number, name in enumerate("bcde"):
        network.join(name)
        network.change("a", ADD, name)
        assert network.run(2 * SECOND_US, lambda name=name: name in voters(network, name))  # type: ignore[misc]  # mypy cannot infer a lambda with a default
        commit(number)
    for number, name in enumerate("abcd"):
        network.run(SECOND_US)
        leader = network.leader
        assert leader is not None
        network.change(leader, REMOVE, name)
        assert network.run(2 * SECOND_US, lambda name=name: network.leader not in {None, name})  # type: ignore[misc]  # as above
        commit(10 + number)
    assert ("e", "e") == (network.leader, voters(network, "e"))
