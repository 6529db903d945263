"""Far behind: what a leader has no longer in memory is fetched, from any member.

A leader never reads old blocks from its disk for a follower: one that needs them is told how far it
may fetch, takes them from whoever sends them, verified like a leader's, and is sent blocks again
once it has come near. What is committed is in the log of every leader to come (paper, figure 3), so
it does not matter who sends it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from consensus.block import SIGNATURE_BYTES, Block, assemble_block, decode_block, tip_after
from consensus.leadership import NO_REPLY
from consensus.messages import Append, AppendRejection, Heartbeat, PreVoteReply
from consensus.ready import HardState, Role
from tests.consensus.raft_chains import (
    DurableChain,
    append_of,
    log_of_terms,
    member_id,
    sealer_of,
    transaction,
)
from tests.consensus.raft_mail import MILLISECOND_US, SECOND_US
from tests.consensus.raft_network import Network

if TYPE_CHECKING:
    from consensus.progress import Progress

LONG = (1,) * 10 + (3,) * 30
FAR = len(LONG)
TAILS = {
    "nothing": (),
    "shorter, and the same": LONG[:20],
    "shorter, and another one": (1,) * 10 + (2,) * 5,
    "longer, and another one": (1,) * 10 + (2,) * 50,
}


class GuardedChain(DurableChain):
    """A disk from which no block is read any more once it is `guarded`."""

    guarded = False

    def blocks(self, first: int, *, max_blocks: int, max_bytes: int) -> list[Block]:
        """Blocks, at the start alone."""
        assert not self.guarded, f"block {first} is read from the disk"
        return super().blocks(first, max_blocks=max_blocks, max_bytes=max_bytes)


class FarNetwork(Network):
    """`a` and `b` have committed forty blocks, `c` has another log; `a` leads term 5.

    The disk of `a` is guarded from its start on, so that whoever fetches asks `b`.
    """

    def __init__(self, tail: tuple[int, ...] = ()) -> None:
        state = HardState(term=4, commit_index=FAR)
        behind = HardState(term=4, commit_index=min(5, len(tail)))
        super().__init__(
            3,
            logs={"a": LONG, "b": LONG, "c": tail},
            states={"a": state, "b": state, "c": behind},
        )
        self.crash("a")
        chain = GuardedChain(log_of_terms(3, LONG), state)
        self.hosts["a"].chain = chain
        self.start("a", applied_index=FAR)
        chain.guarded = True
        self.elect("a", among="ab")

    def look_around(self, name: str) -> bool:
        """There is more to have wherever a member was asked to fetch."""
        self.fetch(name, "b")
        return True


def lagging(
    tail: tuple[int, ...] = (), *, of: tuple[int, ...] = LONG, commit_index: int = 0
) -> Network:
    """`a` and `b` have committed the log `of`, and `c` has another one."""
    ahead = HardState(term=of[-1], commit_index=len(of))
    behind = HardState(term=max(tail, default=0), commit_index=commit_index)
    logs = {"a": of, "b": of, "c": tail}
    return Network(3, logs=logs, states={"a": ahead, "b": ahead, "c": behind})


def progress_of(network: Network, name: str) -> Progress:
    """What the leader `a` knows of a follower."""
    leadership = network["a"].leadership
    assert leadership is not None
    return leadership.followers[member_id(name)]


def encoded(terms: tuple[int, ...], first: int) -> list[bytes]:
    """The blocks of a log from `first` on."""
    return [block.encode() for block in log_of_terms(3, terms)[first:]]


def unsigned(raw: bytes) -> bytes:
    """The same block with a signature that nobody made."""
    block = decode_block(raw)
    return assemble_block(block.header, bytes(SIGNATURE_BYTES), block.transactions).encode()


def take(network: Network, name: str, first: int, blocks: list[bytes], *, term: int = 0) -> None:
    """Hands fetched blocks to a member, from one in `term`."""
    with network.event(name) as raft:
        raft.take_fetched(term, first, blocks)


# A follower that is far behind


@pytest.mark.parametrize("case", TAILS)
def test_far_follower_comes_near(case: str) -> None:
    """By fetching, whatever its log holds; the leader reads nothing from its disk for it."""
    network = FarNetwork(TAILS[case])
    assert network.run(SECOND_US, lambda: network["c"].log.commit_index == FAR + 1)
    assert network["a"].log.last_tip.hash == network["c"].log.last_tip.hash
    assert any("c fetches blocks" in line for line in network.trace)
    index = network.propose("a", transaction(1)).index
    network.run(200 * MILLISECOND_US)
    assert (index, False) == (network["c"].log.last_index, progress_of(network, "c").fetching)
    assert (Role.LEADER, 5, 0) == (
        network.role("a"),
        network["a"].term,
        network["c"].dropped.total(),
    )


def test_far_follower_is_sent_no_blocks() -> None:
    """It hears through where it may fetch instead, with each heartbeat until it is near."""
    network = FarNetwork()
    rejection = AppendRejection(5, FAR, hint_index=0, hint_term=0)
    network.bag.clear()
    network.step("a", "c", rejection)
    assert progress_of(network, "c").fetching
    network.now_us += network.config.heartbeat_us
    network.tick("a")
    assert [Heartbeat] == [type(message) for message in network.sent("a", "c")]
    (heartbeat,) = network.sent("a", "c")
    assert isinstance(heartbeat, Heartbeat)
    assert (0, FAR + 1) == (heartbeat.commit_index, heartbeat.fetch_through)
    (other,) = network.sent("a", "b", Heartbeat)
    assert isinstance(other, Heartbeat)
    assert 0 == other.fetch_through


def test_follower_that_is_near_is_sent_blocks() -> None:
    """Once its log reaches what the leader has in memory, it is probed there."""
    network = FarNetwork(LONG[:20])
    network.run(SECOND_US, lambda: progress_of(network, "c").fetching)
    network.run(SECOND_US, lambda: not progress_of(network, "c").fetching)
    assert FAR + 1 == network["c"].log.last_index
    (append,) = network.sent("a", "c", Append)
    assert isinstance(append, Append)
    assert FAR + 1 == append.previous_index


def test_how_far_to_fetch_never_falls() -> None:
    """A heartbeat that names nothing takes nothing back."""
    network = Network(3)
    network.cut = {("c", "a"), ("c", "b")}
    network.step("c", "a", Heartbeat(1, commit_index=0, round=NO_REPLY, fetch_through=7))
    network.step("c", "a", Heartbeat(1, commit_index=0, round=NO_REPLY, fetch_through=0))
    assert 7 == network["c"].fetch_through


# What is fetched is verified


@pytest.mark.parametrize(
    ("spoil", "rule"),
    [
        (lambda raw: raw[:-1], "encoding"),
        (unsigned, "signature"),
    ],
    ids=["cut off", "another signature"],
)
def test_forged_blocks_are_dropped(spoil: object, rule: str) -> None:
    """They are counted by the rule that they break; those before them are taken."""
    network = lagging()
    blocks = encoded(LONG, 1)
    assert callable(spoil)
    blocks[3] = spoil(blocks[3])
    take(network, "c", 1, blocks)
    assert (3, 3) == (network["c"].log.last_index, network["c"].log.commit_index)
    assert {f"invalid block: {rule}": 1} == network["c"].dropped


def test_block_of_a_stranger_is_dropped() -> None:
    """Whoever sends it, only members seal."""
    network = Network(3)
    tip = tip_after(None, log_of_terms(3, ())[0])
    forged = sealer_of("d", 3, seed="").seal(tip, term=1, transactions=(), wall_us=0)
    take(network, "c", 1, [forged.encode()])
    assert ({"invalid block: sealer": 1}, 0) == (
        network["c"].dropped,
        network["c"].log.last_index,
    )


def test_contradiction_raises_the_alarm() -> None:
    """Two blocks of one index and term are proof of corruption, wherever they come from."""
    network = Network(3, logs={"c": [1]})
    tip = tip_after(None, log_of_terms(3, ())[0])
    other = sealer_of("b", 3, seed="other").seal(tip, term=1, transactions=(), wall_us=0)
    take(network, "c", 1, [other.encode()])
    assert "CORRUPT: two blocks with index 1 and the same term" == network["c"].alarm
    assert log_of_terms(3, (1,))[1].hash == network["c"].log.hash_at(1)
    take(network, "c", 1, encoded(LONG, 1))
    assert (1, 0) == (network["c"].log.last_index, network["c"].log.commit_index)


def test_gap_is_ignored() -> None:
    """What is before the first block is not known to be committed here; block 0 is everyone's."""
    network = lagging(LONG[:5], commit_index=3)
    for first in (5, 6, 0):
        take(network, "c", first, encoded(LONG, first))
    assert (5, 3) == (network["c"].log.last_index, network["c"].log.commit_index)
    take(network, "c", 4, encoded(LONG, 4))
    assert (FAR, FAR) == (network["c"].log.last_index, network["c"].log.commit_index)


def test_what_is_committed_is_taken_once() -> None:
    """Blocks that come again, or were on their way twice, change nothing."""
    network = lagging()
    take(network, "c", 1, encoded(LONG[:20], 1))
    take(network, "c", 1, encoded(LONG[:10], 1))
    assert 20 == network["c"].log.commit_index
    take(network, "c", 11, encoded(LONG, 11))
    assert FAR == network["c"].log.commit_index


def test_own_uncommitted_blocks_give_way() -> None:
    """Those that are the same stay, and are committed; from the first other one on they go."""
    network = lagging((1,) * 10 + (2,) * 50, commit_index=5)
    take(network, "c", 6, encoded(LONG, 6))
    assert (FAR, FAR) == (network["c"].log.last_index, network["c"].log.commit_index)
    assert log_of_terms(3, LONG)[FAR].hash == network["c"].log.last_tip.hash


# In which role


def test_leader_ignores_what_is_fetched() -> None:
    """It has all that is committed (Leader Completeness, paper §5.4.3)."""
    network = Network(3)
    network.elect("a")
    tip = network["a"].log.last_tip
    other = sealer_of("b", 3, seed="").seal(tip, term=1, transactions=(), wall_us=0)
    take(network, "a", 2, [other.encode()])
    assert (1, Role.LEADER) == (network["a"].log.last_index, network.role("a"))


def test_candidate_steps_back() -> None:
    """Its log is another one than it asked votes for; votes that come late are not heard."""
    network = lagging(of=(1,))
    network.stand("c")
    take(network, "c", 1, encoded((1,), 1))
    assert (Role.FOLLOWER, 1, None) == (network.role("c"), network["c"].term, network["c"].leader)


def test_pre_candidate_steps_back() -> None:
    """The same for one that asks for pre-votes."""
    network = lagging(of=(1, 1))
    network.crash("a")
    network.crash("b")
    network.run(SECOND_US, lambda: network.role("c") is Role.PRE_CANDIDATE)
    take(network, "c", 1, encoded((1, 1), 1))
    network.step("c", "a", PreVoteReply(1, granted=True))
    network.step("c", "a", PreVoteReply(2, granted=True))
    assert (Role.FOLLOWER, 1) == (network.role("c"), network["c"].term)


@pytest.mark.parametrize("sent", [[], encoded((1,), 1)], ids=["nothing", "what it holds"])
def test_nothing_new_disturbs_no_candidate(sent: list[bytes]) -> None:
    """Where its log stays as it was it stands on, whatever it learns to be committed."""
    network = lagging(tail=(1,), of=(1,))
    network.stand("c")
    take(network, "c", 1, sent)
    assert (Role.CANDIDATE, len(sent)) == (network.role("c"), network["c"].log.commit_index)


def test_blocks_of_later_terms_raise_the_term() -> None:
    """A term is saved before its blocks; in that term nobody has this member's vote yet."""
    network = lagging()
    network.stand("c")
    take(network, "c", 1, encoded(LONG, 1))
    assert (3, None, None) == (network["c"].term, network["c"].vote, network["c"].leader)
    save = network.hosts["c"].save
    assert save is not None
    assert (3, FAR) == (save.hard_state.term, len(save.blocks))


def test_sender_of_a_later_term_ends_the_present_one() -> None:
    """It may know of a commit that the leader of this term has never heard of.

    Else that leader's next append, lawful as it is, would contradict a committed block.
    """
    network = lagging()
    network.step("c", "a", append_of([], 0, term=1))
    take(network, "c", 1, encoded(LONG, 1)[:1], term=3)
    assert (3, None, 1) == (network["c"].term, network["c"].leader, network["c"].log.commit_index)
    network.step("c", "a", append_of([1, 1], 1, term=1))
    assert (None, 1) == (network["c"].alarm, network["c"].log.last_index)


def test_follower_keeps_its_leader() -> None:
    """Fetching is no sign that the leader is gone."""
    network = lagging()
    network.step("c", "a", append_of([], 0, term=5))
    take(network, "c", 1, encoded(LONG, 1))
    assert (5, member_id("a")) == (network["c"].term, network["c"].leader)
