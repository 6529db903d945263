"""How blocks travel: windows, losses, slow followers, verified blocks, and what commits when."""

from __future__ import annotations

import msgspec
import pytest

from consensus.block import Block, block_from_parts
from consensus.leadership import MAX_APPEND_BYTES
from consensus.log import WINDOW_BLOCKS
from consensus.messages import (
    Append,
    AppendRejection,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    VoteReply,
)
from consensus.progress import MAX_INFLIGHT_BLOCKS, MAX_INFLIGHT_BYTES, MAX_PATIENCE_US, Progress
from consensus.raft import MAX_APPLY_BYTES
from consensus.ready import HardState, Role
from tests.consensus.raft_chains import (
    append_of,
    genesis_of_size,
    log_of_terms,
    member_id,
    transaction,
)
from tests.consensus.raft_mail import MILLISECOND_US, SECOND_US, Weather
from tests.consensus.raft_network import Network


class SlowDisk(Weather):
    """One member's disk takes its time; everything else is quick."""

    def __init__(self, name: str, save_us: int) -> None:
        super().__init__()
        self._slow = name
        self._slow_us = save_us

    def save_us(self, name: str) -> int:
        """That member's saves are slow."""
        return self._slow_us if name == self._slow else super().save_us(name)


def progress_of(network: Network, name: str) -> Progress:
    """What the leader knows of a follower."""
    leader = network.leader
    assert leader is not None
    leadership = network[leader].leadership
    assert leadership is not None
    return leadership.followers[member_id(name)]


def led_network(size: int = 3, *, weather: Weather | None = None, without: str = "") -> Network:
    """A cluster in which `a` leads term 1, some members being away."""
    network = Network(size, weather=weather)
    network.elect("a")
    for name in without:
        network.crash(name)
    network.run(10 * MILLISECOND_US)
    return network


def appends(network: Network, target: str) -> list[Append]:
    """The appends for one member that lie in the bag."""
    return [m for m in network.sent("a", target) if isinstance(m, Append)]


def sent_blocks(network: Network) -> list[int]:
    """The index of every block that `a` sent to `b`, as the trace tells it."""
    indexes = []
    for line in network.trace:
        if "a → b  Append" in line or "a ✗ b  Append" in line:
            blocks = line[line.index("[") + 1 : line.index("]")].split()
            indexes += [int(block.partition("/")[0]) for block in blocks]
    return indexes


# Windows


def test_replication_is_pipelined_within_the_window() -> None:
    """Appends leave before earlier ones are answered, but never more than sixteen blocks."""
    network = led_network(without="c")
    for number in range(40):
        network.propose("a", transaction(number))
    sent = appends(network, "b")
    assert list(range(1, 17)) == [append.previous_index for append in sent]
    assert MAX_INFLIGHT_BLOCKS == progress_of(network, "b").inflight_blocks
    for envelope in [e for e in network.bag if e.target == "b"][:3]:
        network.deliver_one(envelope)
    network.finish_saves("b")
    network.finish_saves("b")
    network.deliver("b", "a")
    assert list(range(4, 20)) == [append.previous_index for append in appends(network, "b")]
    network.settle()
    assert network["b"].log.commit_index == 41


def test_window_is_bounded_in_bytes() -> None:
    """Large blocks fill the window sooner, and no append is larger than a frame allows."""
    network = led_network(without="bc")
    large = [transaction(number, size_bytes=60_000) for number in range(16)]
    for _ in range(12):
        network.propose("a", *large)
    network.start("b", applied_index=1)
    network.run(2 * SECOND_US, lambda: bool(appends(network, "b")))
    seen_bytes = 0
    for _ in range(100):
        progress = progress_of(network, "b")
        assert progress.inflight_bytes < MAX_INFLIGHT_BYTES + MAX_APPEND_BYTES
        seen_bytes = max(seen_bytes, progress.inflight_bytes)
        for append in appends(network, "b"):
            assert sum(len(raw) for raw in append.blocks) <= MAX_APPEND_BYTES
        network.deliver()
        network.finish_saves()
    assert network["b"].log.last_index == network["a"].log.last_index
    assert seen_bytes > MAX_APPEND_BYTES


def test_follower_far_behind_is_served_from_the_chain() -> None:
    """Blocks beyond the window in memory are read back from what is saved."""
    network = led_network(without="c")
    for number in range(WINDOW_BLOCKS + 50):
        network.propose("a", transaction(number))
        network.settle()
    assert 2 not in network["a"].log._recent
    network.start("c", applied_index=1)
    network.run(2 * SECOND_US, lambda: network["c"].log.commit_index == network.commit_index)
    assert network["c"].log.last_tip == network["a"].log.last_tip


# Losses


def test_lost_append_is_sent_again() -> None:
    """Also when nothing follows it that the follower could miss it by."""
    network = led_network(without="c")
    network.propose("a", transaction(1))
    network.drop("a", "b", Append)
    assert network.run(MAX_PATIENCE_US, lambda: network.commit_index == 2)


def test_lost_append_in_the_middle_is_sent_again() -> None:
    """The follower refuses what comes after the gap, and is served from the gap on."""
    network = led_network(without="c")
    for number in range(3):
        network.propose("a", transaction(number))
    lost = next(e for e in network.bag if isinstance(e.message, Append))
    network.bag.remove(lost)
    network.settle()
    assert (4, 4) == (network["b"].log.last_index, network.commit_index)
    assert network.now_us == 610 * MILLISECOND_US


def test_lost_acknowledgement_is_asked_for() -> None:
    """The follower has everything and says nothing more: a heartbeat shows it."""
    network = led_network(without="c")
    network.propose("a", transaction(1))
    network.deliver("a", "b")
    network.finish_saves()
    network.drop("b", "a", AppendReply)
    assert network.run(300 * MILLISECOND_US, lambda: network.commit_index == 2)


def test_loss_is_noticed_behind_a_longer_log() -> None:
    """A follower with a tail of another term holds as many blocks as were sent, but not those."""
    logs = {"a": [1] * 30, "b": [*[1] * 30, *[2] * 5], "c": [1] * 30}
    states = {"a": HardState(term=4), "c": HardState(term=4)}
    network = Network(3, logs=logs, states=states)
    network.elect("a", "ac")
    network.crash("c")
    network.bag.clear()
    progress_of(network, "b").probe_from(11)
    network.tick("a")
    network.deliver("a", "b")
    network.finish_saves()
    network.deliver("b", "a", AppendReply)
    assert (26, 35) == (progress_of(network, "b").match_index, network["b"].log.last_index)
    network.drop("a", "b", Append)
    assert network.run(SECOND_US, lambda: network["b"].log.last_index == 31)
    assert network["b"].log.last_tip == network["a"].log.last_tip


def test_lost_probe_is_repeated_where_it_was() -> None:
    """A new leader that loses its first append does not begin again at genesis."""
    network = Network(3, logs={name: [1] * 300 for name in "abc"})
    network.elect("a", "ac")
    network.crash("c")
    network.drop("a", "b", Append)
    assert network.run(SECOND_US, lambda: network.commit_index == 301)
    assert [301] == sorted(set(sent_blocks(network)))


@pytest.mark.parametrize("pause_ms", [3, 11, 15, 20, 30])
def test_slow_follower_is_not_sent_anything_twice(pause_ms: int) -> None:
    """Its disk takes longer than the leader's patience, but it holds all it was sent."""
    network = Network(3, weather=SlowDisk("b", 180 * MILLISECOND_US))
    network.elect("a")
    network.run(300 * MILLISECOND_US)
    network.trace.clear()
    for number in range(40):
        network.propose("a", transaction(number))
        network.run(pause_ms * MILLISECOND_US)
    network.run(2 * SECOND_US)
    sent = sent_blocks(network)
    assert sent == sorted(set(sent))
    assert network["b"].log.last_tip == network["a"].log.last_tip


def test_restarted_follower_is_sent_what_it_forgot() -> None:
    """It held a block that it had not saved; after its restart it is sent once more."""
    network = led_network(without="c")
    network.propose("a", transaction(1))
    network.deliver("a", "b", Append)
    assert network["b"].log.last_index == 2
    network.crash("b")
    network.start("b")
    assert network["b"].log.last_index == 1
    assert network.run(400 * MILLISECOND_US, lambda: network.commit_index == 2)


# Late and repeated messages


def test_late_append_cuts_nothing_off() -> None:
    """Truncation only where a block contradicts: an old append is a prefix of what is there."""
    network = led_network(without="c")
    first = network.propose("a", transaction(1))
    late = next(e for e in network.bag if e.target == "b")
    for number in range(2, 6):
        network.propose("a", transaction(number))
    for envelope in [e for e in network.bag if e.target == "b"]:
        network.deliver_one(envelope, keep=envelope is late)
    network.finish_saves()
    network.finish_saves()
    last = network["b"].log.last_tip
    network.deliver_one(late)
    assert last == network["b"].log.last_tip
    assert network.sent("b", "a", AppendReply)[-1] == AppendReply(1, match_index=first.index)


def test_appends_in_the_opposite_order_arrive() -> None:
    """Each is refused but the first, and the leader sends the rest again."""
    network = led_network(without="c")
    for number in range(5):
        network.propose("a", transaction(number))
    network.bag.reverse()
    network.settle()
    assert (6, 6) == (network["b"].log.last_index, network.commit_index)


def test_stale_rejection_is_ignored() -> None:
    """One for a block that is known to match, and one for a probe that is over."""
    network = led_network(without="c")
    network.propose("a", transaction(1))
    network.settle("ab")
    before = progress_of(network, "b")
    state = (before.match_index, before.next_index, before.probing)
    network.step("a", "b", AppendRejection(1, 1, 0, 0))
    assert state == (before.match_index, before.next_index, before.probing)
    network.propose("a", transaction(2))
    network.step("a", "b", AppendRejection(1, 2 + 1, 2, 1))
    assert before.probing
    network.step("a", "b", AppendRejection(1, 7, 0, 0))
    assert before.next_index == 3


def test_match_beyond_the_log_is_not_believed() -> None:
    """An acknowledgement of a block that the leader does not have counts for nothing."""
    network = led_network(5)
    network.propose("a", transaction(1))
    network.finish_save("a")
    for name in "bcde":
        network.step("a", name, AppendReply(1, match_index=3))
    assert (1, 1) == (network["a"].log.commit_index, progress_of(network, "b").match_index)


def test_replies_to_a_deposed_leader_change_nothing() -> None:
    """It leads no more, whatever its followers still say in that term."""
    network = led_network()
    network.propose("a", transaction(1))
    network["a"]._become_follower(1, leader=None)
    for message in (
        AppendReply(1, match_index=2),
        AppendRejection(1, 1, 0, 0),
        HeartbeatReply(1, round=1, last_index=1, saved_index=1),
        VoteReply(1, granted=True),
    ):
        network.step("a", "b", message)
    assert (Role.FOLLOWER, 1) == (network.role("a"), network["a"].log.commit_index)


# What commits when


def test_leader_counts_itself_only_once_saved() -> None:
    """With one follower of two, the block is committed when the leader's own save ends.

    The leader writes in parallel with its followers (dissertation §10.2.1), and what is not yet on
    its disk is not on a majority of disks.
    """
    network = led_network(without="c")
    network.propose("a", transaction(1))
    network.deliver("a", "b")
    network.finish_save("b")
    network.deliver("b", "a")
    assert network["a"].log.commit_index == 1
    network.finish_save("a")
    assert network["a"].log.commit_index == 2


def test_followers_commit_before_the_leader_has_saved() -> None:
    """But the leader hands nothing out that is not on its own disk (dissertation §10.2.1)."""
    network = led_network()
    network.propose("a", transaction(1))
    network.deliver("a")
    network.finish_saves("bc")
    network.deliver("b", "a", AppendReply)
    network.deliver("c", "a", AppendReply)
    assert (2, 1) == (network["a"].log.commit_index, network.hosts["a"].applied_index)
    network.finish_save("a")
    assert network.hosts["a"].applied_index == 2


def test_heartbeat_names_no_commit_beyond_what_matched() -> None:
    """A follower that lags must not take its own old blocks for committed ones."""
    network = led_network(without="c")
    for number in range(3):
        network.propose("a", transaction(number))
        network.settle()
    network.start("c")
    network.now_us += network.config.heartbeat_us
    network.tick("a")
    (heartbeat,) = network.sent("a", "c", Heartbeat)
    assert heartbeat == Heartbeat(1, commit_index=1, round=2, fetch_through=0)


def test_commit_news_wants_no_reply() -> None:
    """A heartbeat of round 0 spreads the commit index at once, and is not answered."""
    network = led_network()
    network.step("b", "a", Heartbeat(1, commit_index=1, round=0, fetch_through=0))
    assert network.sent("b", "a") == []


def test_commit_is_told_in_the_same_moment() -> None:
    """Followers learn of a commit without waiting for the next heartbeat."""
    network = led_network()
    now_us = network.now_us
    network.propose("a", transaction(1))
    network.settle()
    assert {2} == {network[name].log.commit_index for name in "abc"}
    assert now_us == network.now_us


def test_committed_blocks_come_in_slices() -> None:
    """Catching up does not hand out everything at once."""
    network = led_network(without="c")
    large = [transaction(number, size_bytes=60_000) for number in range(16)]
    for _ in range(9):
        network.propose("a", *large)
        network.settle()
    network.crash("b")
    host = network.hosts["b"]
    raft = network.start("b")
    slices = []
    host.applied.clear()
    raft.log.applied_index = 0
    while ready := raft.ready():
        slices.append(ready.committed)
        assert sum(block.size_bytes for block in ready.committed) <= MAX_APPLY_BYTES
    host.applied = [block for part in slices for block in part]
    assert len(slices) >= 2
    assert list(range(1, raft.log.commit_index + 1)) == [block.index for block in host.applied]


# Blocks that break a rule


def broken(block: Block, rule: str) -> Block:
    """The block with one thing wrong."""
    if rule == "signature":
        return block_from_parts(block.header_bytes, bytes(64), block.body)
    changes: dict[str, dict[str, object]] = {
        "previous_hash": {"previous_hash": bytes(32)},
        "index": {"index": block.index + 1},
        "cluster": {"cluster_id": bytes(32)},
        "sealer": {"sealer": member_id("i")},
    }
    header = msgspec.structs.replace(block.header, **changes[rule])
    return block_from_parts(msgspec.msgpack.encode(header), block.signature, block.body)


@pytest.mark.parametrize("rule", ["signature", "previous_hash", "index", "cluster", "sealer"])
def test_block_that_breaks_a_rule_is_not_appended(rule: str) -> None:
    """It is counted; what stood before it in the same append is kept."""
    network = Network(3)
    good = append_of([1, 1, 1], 0, term=1)
    log = log_of_terms(3, (1, 1, 1))
    raws = (good.blocks[0], broken(log[2], rule).encode(), good.blocks[2])
    network.step("a", "b", msgspec.structs.replace(good, blocks=raws))
    assert network["a"].log.last_index == 1
    assert {f"invalid block: {rule}": 1} == network["a"].dropped
    network.finish_saves()
    network.finish_saves()
    assert [AppendReply(1, match_index=1)] == network.sent("a", "b")


def test_garbage_is_not_appended() -> None:
    """Bytes that are no block at all."""
    network = Network(3)
    good = append_of([1], 0, term=1)
    network.step("a", "b", msgspec.structs.replace(good, blocks=(b"garbage",)))
    assert (0, 1) == (network["a"].log.last_index, network["a"].dropped["invalid block: encoding"])


def test_block_of_a_future_term_is_not_appended() -> None:
    """A leader cannot hold a block of a term after its own."""
    network = Network(3)
    network.step("a", "b", append_of([1, 2], 0, term=1))
    assert (1, 1) == (network["a"].log.last_index, network["a"].dropped["block of a future term"])


def test_leader_with_a_refused_block_does_not_flood() -> None:
    """A follower that keeps refusing a block is sent it a few times a heartbeat, not in a loop."""
    network = led_network(without="c")
    network["b"]._intake._cluster_id = bytes(32)
    network.propose("a", transaction(1))
    network.trace.clear()
    network.run(SECOND_US)
    assert network["b"].log.last_index == 1
    assert 1 < len(sent_blocks(network)) < 2 * 20
    network["b"]._intake._cluster_id = genesis_of_size(3).hash
    assert network.run(2 * MAX_PATIENCE_US, lambda: network.commit_index == 2)


def test_hostile_follower_cannot_break_the_leader() -> None:
    """Replies with any numbers are taken without an error."""
    network = led_network(5)
    for number in range(3):
        network.propose("a", transaction(number))
    huge = (1 << 64) - 1
    for message in (
        AppendReply(1, huge),
        AppendRejection(1, huge, huge, huge),
        AppendRejection(1, 4, huge, huge),
        AppendRejection(1, 3, 0, 0),
        HeartbeatReply(1, huge, huge, huge),
    ):
        network.step("a", "b", message)
    network.cut = {("b", "a")}
    network.settle()
    assert (Role.LEADER, 4) == (network.role("a"), network.commit_index)
