"""The replica: exactly once, over retries, forwarding, failover and restarts, in virtual time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from consensus.block import encode_transaction
from consensus.messages import Append, AppendReply, Forward, ForwardRefusal
from node.mempool import QueueLimits
from node.outcomes import Accepted, Receipt, Refusal, RefusalReason, Wait
from node.pacing import NEVER_US, SMALL_PIPELINE_BLOCKS
from node.replica import RETRY_US, SEALS_PER_PUMP
from node.submissions import Submission
from tests.node.replica_network import ReplicaNetwork, transaction

if TYPE_CHECKING:
    import pytest

    from node.outcomes import Outcome
    from storage.recent import Place


def refusal_reasons(outcomes: list[Outcome]) -> list[RefusalReason]:
    """The reasons of outcomes that are all refusals."""
    return [outcome.reason for outcome in outcomes if isinstance(outcome, Refusal)]


def ids(*numbers: int) -> list[bytes]:
    """The ids that `transaction` gives to these numbers."""
    return [number.to_bytes(16, "big") for number in numbers]


def test_receipt_names_the_place_in_the_chain() -> None:
    """A receipt's index, position, hash and time are those of the block on every member."""
    network = ReplicaNetwork()
    leader = network.elect()
    outcomes = network.submit(leader, transaction(1), transaction(2))
    network.settle()
    network.run_for(100_000)
    for replica in network.running:
        block = network.chain_of(replica)[-1]
        places = enumerate(ids(1, 2))
        expected = [Receipt(i, block.index, n, block.hash, block.timestamp_us) for n, i in places]
        assert expected == outcomes


def test_calls_that_come_together_are_answered_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """One look-up for all; each hears of its own transactions, and who has given up is left out."""
    network = ReplicaNetwork()
    leader = network.elect()
    network.submit(leader, transaction(1))
    network.settle()
    answers: list[list[Outcome]] = [[], [], []]
    calls = [
        Submission([transaction(n), transaction(m)], wait=Wait.COMMITTED, on_done=answer.extend)
        for (n, m), answer in zip([(2, 1), (3, 4), (5, 2)], answers, strict=True)
    ]
    leader.expire(calls[1])
    looked_up: list[list[bytes]] = []
    places = leader._lookup.places

    def look_up(wanted: list[bytes]) -> list[Place | None]:
        looked_up.append(wanted)
        return places(wanted)

    monkeypatch.setattr(leader._lookup, "places", look_up)
    leader.submit(*calls)
    network.settle()
    assert [ids(2, 1, 5, 2)] == looked_up
    receipts = [[one.id for one in answer if isinstance(one, Receipt)] for answer in answers]
    assert [ids(2, 1), [], ids(5, 2)] == receipts
    assert [RefusalReason.UNKNOWN] * 2 == refusal_reasons(answers[1])
    assert ids(1, 2, 5) == network.committed_ids(leader)


def test_follower_answers_its_own_clients() -> None:
    """A follower forwards, and answers from its own chain without time passing."""
    network = ReplicaNetwork()
    network.elect()
    outcomes = network.submit(network.followers()[0], transaction(1))
    network.settle()
    assert [1] == [int.from_bytes(o.id, "big") for o in outcomes if isinstance(o, Receipt)]


def test_forwards_are_never_forwarded() -> None:
    """Who is no leader drops a forward and counts it: forwarding cannot loop."""
    network = ReplicaNetwork()
    network.elect()
    one, other = network.followers()
    one.receive(other.raft.member, Forward(1, (transaction(1),)))
    network.settle()
    assert one.dropped["forward to no leader"] == 1
    assert [] == network.committed_ids(one)


def test_retry_gets_the_original_receipt_from_any_member() -> None:
    """The same id with the same content is answered with the first receipt, wherever it is sent."""
    network = ReplicaNetwork()
    leader = network.elect()
    first = network.submit(leader, transaction(1))
    network.run_for(100_000)
    again = [network.submit(replica, transaction(1)) for replica in network.running]
    network.settle()
    assert [first] * 3 == again
    assert ids(1) == network.committed_ids(leader)


def test_same_id_with_other_content_is_refused_and_not_recorded() -> None:
    """Other content under a recorded id is a conflict on every member."""
    network = ReplicaNetwork()
    leader = network.elect()
    network.submit(leader, transaction(1, "first"))
    network.run_for(100_000)
    answers = [network.submit(replica, transaction(1, "second")) for replica in network.running]
    network.settle()
    assert [[RefusalReason.CONFLICT]] * 3 == [refusal_reasons(a) for a in answers]
    assert transaction(1, "first") == network.chain_of(leader)[-1].transactions[0]


def test_conflict_with_an_unsettled_transaction_waits_for_its_fate() -> None:
    """While the first content is uncommitted nobody is refused; afterwards one of them is."""
    network = ReplicaNetwork()
    leader = network.elect()
    network.held = lambda message: isinstance(message, AppendReply)
    first = network.submit(leader, transaction(1, "first"))
    second = network.submit(network.followers()[0], transaction(1, "second"))
    network.settle()
    assert ([], []) == (first, second)
    network.held = lambda _message: False
    network.run_for(RETRY_US)
    assert isinstance(first[0], Receipt)
    assert [RefusalReason.CONFLICT] == refusal_reasons(second)


def test_one_call_may_name_an_id_twice() -> None:
    """Both slots of one call get the one receipt; it is recorded once."""
    network = ReplicaNetwork()
    leader = network.elect()
    outcomes = network.submit(leader, transaction(1), transaction(1))
    network.settle()
    assert outcomes[0] == outcomes[1]
    assert ids(1) == network.committed_ids(leader)


def test_transaction_survives_the_leader_that_took_it() -> None:
    """A follower offers it to the next leader; it is recorded once, and the client hears so."""
    network = ReplicaNetwork()
    leader = network.elect()
    follower = network.followers()[0]
    network.held = lambda message: isinstance(message, Append)
    outcomes = network.submit(follower, transaction(1))
    network.settle()
    network.crash(leader.raft.member)
    network.held = lambda _message: False
    network.elect()
    network.run_for(100_000)
    assert isinstance(outcomes[0], Receipt)
    assert ids(1) == network.committed_ids(network.leader)


def test_deposed_leader_offers_its_clients_transactions_to_the_next() -> None:
    """What a cut-off leader sealed in vain is recorded by its successor after the heal."""
    network = ReplicaNetwork()
    old = network.elect()
    network.isolate(old.raft.member)
    outcomes = network.submit(old, transaction(1))
    network.run_for(2_000_000)
    assert [] == outcomes
    network.heal()
    network.run_for(3_000_000)
    assert isinstance(outcomes[0], Receipt)
    assert ids(1) == network.committed_ids(network.leader)


def test_new_leader_does_not_seal_what_its_tail_holds() -> None:
    """An id in an uncommitted block of an earlier term is not sealed again (exactly once)."""
    network = ReplicaNetwork()
    leader = network.elect()
    network.held = lambda message: isinstance(message, AppendReply)
    network.submit(leader, transaction(1))
    network.settle()
    network.crash(leader.raft.member)
    for replica in network.running:
        network.submit(replica, transaction(1))
    network.held = lambda _message: False
    network.elect()
    network.run_for(2 * RETRY_US)
    assert ids(1) == network.committed_ids(network.leader)


def test_restart_of_all_remembers_every_id() -> None:
    """After a full restart a retry is answered with the original receipt, not recorded again."""
    network = ReplicaNetwork()
    first = network.submit(network.elect(), transaction(1))
    network.run_for(100_000)
    for member in network.seats:
        network.crash(member)
    for member in network.seats:
        network.start(member)
    leader = network.elect()
    network.run_for(100_000)
    again = network.submit(leader, transaction(1))
    network.settle()
    assert first == again


def test_expired_submission_is_unknown_and_may_still_commit() -> None:
    """Unknown promises nothing: the transaction commits later, once, and a retry is told so."""
    network = ReplicaNetwork()
    leader = network.elect()
    network.isolate(leader.raft.member)
    outcomes = network.submit(leader, transaction(1))
    network.settle()
    leader.expire(network.last_submission)
    assert [RefusalReason.UNKNOWN] == refusal_reasons(outcomes)
    network.heal()
    network.run_for(RETRY_US)
    again = network.submit(network.leader, transaction(1))
    network.settle()
    assert isinstance(again[0], Receipt)
    assert ids(1) == network.committed_ids(network.leader)


def test_expiry_of_one_caller_leaves_the_others_waiting() -> None:
    """Two callers wait for one id; the deadline of the first does not answer the second."""
    network = ReplicaNetwork()
    leader = network.elect()
    network.isolate(leader.raft.member)
    network.submit(leader, transaction(1))
    early = network.last_submission
    late = network.submit(leader, transaction(1))
    leader.expire(early)
    assert [] == late
    network.heal()
    network.run_for(RETRY_US)
    assert isinstance(late[0], Receipt)
    assert 0 == leader.load.waiting


def test_accepted_is_answered_at_once_and_committed_later() -> None:
    """`accepted` does not wait for the commit, which follows all the same."""
    network = ReplicaNetwork()
    leader = network.elect()
    outcomes = network.submit(leader, transaction(1), wait=Wait.ACCEPTED)
    assert [Accepted(ids(1)[0])] == outcomes
    assert leader.is_pending(ids(1)[0])
    network.settle()
    assert not leader.is_pending(ids(1)[0])
    assert ids(1) == network.committed_ids(leader)


def test_full_queue_refuses_at_the_leader_and_through_a_follower() -> None:
    """Beyond the limit a transaction is refused, and is not recorded later."""
    network = ReplicaNetwork(limits=QueueLimits(transactions=2))
    leader = network.elect()
    network.held = lambda message: isinstance(message, AppendReply | Append)
    for number in range(SMALL_PIPELINE_BLOCKS):
        network.submit(leader, transaction(100 + number))
        network.settle()
    network.submit(leader, transaction(1), transaction(2))
    here = network.submit(leader, transaction(3))
    there = network.submit(network.followers()[0], transaction(4))
    network.settle()
    assert [RefusalReason.QUEUE_FULL] * 2 == refusal_reasons(here + there)
    network.held = lambda _message: False
    network.run_for(3 * RETRY_US)
    assert ids(100, 101, 1, 2) == network.committed_ids(network.leader)


def test_follower_refuses_when_it_holds_too_much_itself() -> None:
    """Without a leader a member's own waiting transactions are bounded as well."""
    network = ReplicaNetwork(limits=QueueLimits(transactions=2))
    replica = network.running[0]
    outcomes = network.submit(replica, transaction(1), transaction(2))
    refused = network.submit(replica, transaction(3))
    assert [] == outcomes
    assert [RefusalReason.QUEUE_FULL] == refusal_reasons(refused)


def test_refusal_of_a_second_offer_is_not_final() -> None:
    """An earlier offer may have been sealed somewhere, so "full" then must not reach the client."""
    network = ReplicaNetwork()
    leader = network.elect()
    follower = network.followers()[0]
    network.held = lambda message: isinstance(message, Forward)
    outcomes = network.submit(follower, transaction(1))
    network.run_for(RETRY_US + 100_000)
    for forward in [message for message in network.lost if isinstance(message, Forward)]:
        follower.receive(leader.raft.member, ForwardRefusal(forward.number, (ids(1)[0],)))
    assert [] == outcomes
    network.held = lambda _message: False
    network.run_for(4 * RETRY_US)
    assert isinstance(outcomes[0], Receipt)


def test_late_refusal_does_not_answer_a_later_call() -> None:
    """The refusal of a call that timed out says nothing of the next call's forward."""
    network = ReplicaNetwork()
    leader = network.elect()
    follower = network.followers()[0]
    network.held = lambda message: isinstance(message, Forward)
    network.submit(follower, transaction(1))
    network.settle()
    (first,) = [message for message in network.lost if isinstance(message, Forward)]
    follower.expire(network.last_submission)
    network.held = lambda _message: False
    outcomes = network.submit(follower, transaction(1))
    follower.receive(leader.raft.member, ForwardRefusal(first.number, (ids(1)[0],)))
    assert [] == outcomes
    network.settle()
    assert isinstance(outcomes[0], Receipt)


def test_what_was_accepted_outlives_a_full_leader() -> None:
    """A 202 is kept and offered again when the leader had no room for it."""
    network = ReplicaNetwork()
    leader = network.elect()
    follower = network.followers()[0]
    network.held = lambda message: isinstance(message, Forward)
    network.submit(follower, transaction(1), wait=Wait.ACCEPTED)
    network.settle()
    (forward,) = [message for message in network.lost if isinstance(message, Forward)]
    follower.receive(leader.raft.member, ForwardRefusal(forward.number, (ids(1)[0],)))
    network.held = lambda _message: False
    network.run_for(2 * RETRY_US)
    assert ids(1) == network.committed_ids(leader)


def test_accepted_submission_is_released_once_it_is_committed() -> None:
    """Nothing of an accepted transaction stays in memory until its deadline."""
    network = ReplicaNetwork()
    leader = network.elect()
    released: list[bool] = []
    submission = Submission(
        [transaction(1), transaction(2)],
        wait=Wait.ACCEPTED,
        on_done=lambda _outcomes: None,
        on_end=lambda _submission: released.append(True),
    )
    leader.submit(submission)
    assert submission.is_held
    network.settle()
    assert [True] == released
    assert 0 == leader.load.waiting


def test_leaderless_member_holds_only_what_is_waited_for() -> None:
    """Expired calls leave nothing behind, in the outbox neither."""
    network = ReplicaNetwork()
    replica = network.running[0]
    for number in range(100):
        network.submit(replica, transaction(number))
        replica.expire(network.last_submission)
    assert (0, 0, []) == (replica.load.waiting, replica._waiting.size_bytes, replica._outbox)


def test_same_transaction_sent_often_is_held_once() -> None:
    """Equal bytes count once against the limit; different ones under one id count each."""
    network = ReplicaNetwork()
    replica = network.running[0]
    for _ in range(10):
        network.submit(replica, transaction(1, "same"))
    network.submit(replica, transaction(1, "else"))
    held = len(transaction(1, "same")) + len(transaction(1, "else"))
    assert held == replica._waiting.size_bytes


def test_retry_of_an_old_transaction_is_read_beside_the_loop() -> None:
    """A block that is not in memory is asked of the loop's reader; one that is damaged is said."""
    network = ReplicaNetwork()
    leader = network.elect()
    network.submit(leader, transaction(1), transaction(2))
    network.settle()
    block = network.chain_of(leader)[-1]
    leader.raft.log._recent.clear()
    outcomes = network.submit(leader, transaction(1), transaction(2))
    first, second = leader.pump().recorded
    assert [] == outcomes
    first.settle(block)
    second.settle(None)
    assert isinstance(outcomes[0], Receipt)
    assert [RefusalReason.UNKNOWN] == refusal_reasons(outcomes)


def test_long_queue_is_sealed_in_slices() -> None:
    """One turn of the loop seals few blocks, however many transactions wait."""
    network = ReplicaNetwork()
    leader = network.elect()
    network.submit(leader, *(transaction(number) for number in range(9_000)))
    before = leader.raft.log.last_index
    assert leader.pump().more
    assert SEALS_PER_PUMP == leader.raft.log.last_index - before


def test_slow_index_holds_the_sealing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Applied transactions that wait for the index are bounded: the queue fills instead."""
    monkeypatch.setattr("node.replica.RECENT_TRANSACTIONS", 5)
    network = ReplicaNetwork()
    leader = network.elect()
    network.submit(leader, *(transaction(number) for number in range(5)))
    network.settle()
    later = network.submit(leader, transaction(5))
    network.settle()
    assert [] == later
    leader.flushed(leader.applied_index)
    network.settle()
    assert isinstance(later[0], Receipt)


def test_lost_forward_is_sent_again() -> None:
    """A forward that the network loses is repeated after a while."""
    network = ReplicaNetwork()
    network.elect()
    network.held = lambda message: isinstance(message, Forward)
    outcomes = network.submit(network.followers()[0], transaction(1))
    network.settle()
    network.held = lambda _message: False
    network.run_for(RETRY_US + 100_000)
    assert isinstance(outcomes[0], Receipt)


def test_leader_drops_unlawful_forwards() -> None:
    """Reserved kinds and bytes that are not canonical never reach the chain through a peer."""
    network = ReplicaNetwork()
    leader = network.elect()
    source = network.followers()[0].raft.member
    reserved = encode_transaction(
        transaction_id=bytes(16), user_id="ada", kind="membership", payload={}
    )
    leader.receive(source, Forward(1, (reserved, b"\x94garbage", transaction(1) + b"\x00")))
    network.settle()
    assert leader.dropped["forwarded transaction is invalid"] == 3
    assert [] == network.committed_ids(leader)


def test_transactions_gather_while_the_pipeline_is_full() -> None:
    """With blocks on their way, later transactions share the next block, without a timer."""
    network = ReplicaNetwork()
    leader = network.elect()
    network.held = lambda message: isinstance(message, Append)
    for number in range(10):
        network.submit(leader, transaction(number))
        network.settle()
    network.held = lambda _message: False
    network.run_for(500_000)
    sizes = [len(block.transactions) for block in network.chain_of(leader)[2:]]
    assert [1] * SMALL_PIPELINE_BLOCKS + [10 - SMALL_PIPELINE_BLOCKS] == sizes


def test_lone_transaction_commits_without_time_passing() -> None:
    """No timer delays a lone transaction."""
    network = ReplicaNetwork()
    leader = network.elect()
    outcomes = network.submit(leader, transaction(1))
    network.settle()
    assert isinstance(outcomes[0], Receipt)


def test_alarm_refuses_submits() -> None:
    """A member whose chain is damaged records nothing and says why."""
    network = ReplicaNetwork()
    leader = network.elect()
    leader.raft.alarm = "CORRUPT: for the test"
    outcomes = network.submit(leader, transaction(1))
    assert [RefusalReason.UNAVAILABLE] == refusal_reasons(outcomes)


def test_what_is_sealed_asks_for_no_further_pump() -> None:
    """Nothing gathers any more: the loop would set a timer, and pump in vain, at each block."""
    network = ReplicaNetwork()
    leader = network.elect()
    network.submit(leader, transaction(1))
    leader.pump()
    assert (1, NEVER_US) == (leader.blocks_sealed, leader.seal_us)


def test_a_leader_with_a_slow_disk_does_not_hold_the_others_up() -> None:
    """They commit without it, so it goes on sealing while its own save lasts."""
    network = ReplicaNetwork()
    leader = network.elect()
    network.settle()
    network.saves_held.add(leader.raft.member)
    follower = network.followers()[0]
    answers = []
    for number in range(1, 9):
        answers.append(network.submit(follower, transaction(number)))
        network.run_for(20_000)
    assert leader.raft.leadership is not None
    assert all(answers)
