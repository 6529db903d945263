"""What a member fetches, what it serves, and with whom it talks."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from nacl.signing import SigningKey

from consensus.changes import Change, ChangeKind
from consensus.messages import BlocksReply, BlocksRequest, Forward
from node.catchup import MAX_RANGE_BLOCKS, RANGES_IN_FLIGHT, CatchUp
from node.fetching import SLICE_BYTES, Fetching
from tests.node.replica_network import ReplicaNetwork, transaction

if TYPE_CHECKING:
    from consensus.membership import Member

SEED = bytes(SigningKey(b"seed" * 8).verify_key)
BLOCK_BYTES = SLICE_BYTES // 2


def led_network() -> ReplicaNetwork:
    """Three members, a leader, and some blocks that all have committed."""
    network = ReplicaNetwork()
    network.elect()
    for number in range(1, 8):
        network.submit(network.leader, transaction(number))
        network.settle()
    network.run_for(100_000)
    return network


def test_seeds_are_known_until_the_chain_has_come_as_far() -> None:
    """By then it says itself who is a member, and where."""
    replica = led_network().leader
    commit_index = replica.raft.log.commit_index
    behind = Fetching(replica.raft, {SEED, replica.raft.member}, commit_index + 1)
    assert {SEED: None} == {key: peer for key, peer in behind.peers.items() if peer is None}
    assert SEED not in Fetching(replica.raft, {SEED}, commit_index).peers


def test_what_an_invitation_says_of_a_member_is_newer() -> None:
    """The chain's address of a member that moved since is not used."""
    network = led_network()
    follower = network.followers()[0]
    leader = network.leader.raft.member
    index = follower.raft.log.commit_index
    assert Fetching(follower.raft, {leader}, index + 1).peers[leader] is None
    assert Fetching(follower.raft, {leader}, index).peers[leader] is not None


def test_a_member_that_the_chain_does_not_name_keeps_its_seeds() -> None:
    """It may ask them until it is one; what the chain says of them comes first."""
    network = led_network()
    gone = network.followers()[0].raft
    leader = network.leader
    leader.change_membership(Change(ChangeKind.REMOVE, _member(network, gone.member)), print)
    network.run_for(2_000_000)
    assert gone.removed_at is not None
    peers = Fetching(gone, {SEED, leader.raft.member}, 0).peers
    assert peers[SEED] is None
    assert peers[leader.raft.member] is not None


def test_former_members_fetch_and_do_nothing_else() -> None:
    """They are told of their removal, and no more; what they forward is not recorded."""
    network = led_network()
    leader, gone = network.leader, network.followers()[0].raft.member
    leader.change_membership(Change(ChangeKind.REMOVE, _member(network, gone)), print)
    network.settle()
    removed_at = leader.raft.log.last_index
    network.submit(leader, transaction(50))
    network.settle()
    leader.receive(gone, Forward(1, (transaction(99),)))
    network.settle()
    assert (1, 0) == (leader.dropped["forward of a former member"], leader.queued)
    assert transaction(99)[3:19] not in network.committed_ids(leader)
    leader.receive(gone, BlocksRequest(1, 1_000))
    (serving,) = leader.pump().servings
    assert (removed_at, removed_at) == (serving.count, serving.commit_index)


def test_no_peer_has_more_than_its_share_read() -> None:
    """Whoever asks for more asks again; another peer is not kept waiting."""
    network = led_network()
    fetching = Fetching(network.leader.raft, (), 0)
    one, other = (replica.raft.member for replica in network.followers())
    for _ in range(10):
        fetching.on_request(one, BlocksRequest(1, 5))
    fetching.on_request(other, BlocksRequest(1, 5))
    targets = [serving.target for serving in fetching.take_servings()]
    assert [one] * RANGES_IN_FLIGHT + [other] == targets
    fetching.on_request(one, BlocksRequest(1, 5))
    assert () == fetching.take_servings()
    fetching.served(one)
    fetching.on_request(one, BlocksRequest(1, 5))
    assert len(fetching.take_servings()) == 1


def test_an_alarmed_member_fetches_nothing() -> None:
    """It could take none of it."""
    network = led_network()
    follower = network.followers()[0].raft
    follower.fetch_through = follower.log.commit_index + 100
    assert not Fetching(follower, (), 0).go_on(0)
    asking = Fetching(follower, (), 0)
    asking.go_on(0)
    assert len(asking.take_envelopes()) == 1
    follower.alarm = "CORRUPT: planted"
    silent = Fetching(follower, (), 0)
    assert not silent.go_on(0)
    assert [] == silent.take_envelopes()


def test_an_answer_is_taken_in_slices() -> None:
    """So that verifying it never holds the loop; all of it comes, in order, from one source."""
    catch_up = CatchUp(election_max_us=600_000, random=Random(1))
    catch_up.target_index = 5
    ((_, request),) = catch_up.requests(now_us=0, commit_index=0, leader=None, peers={SEED})
    assert BlocksRequest(1, min(5, MAX_RANGE_BLOCKS)) == request
    blocks = tuple(bytes([number]) * BLOCK_BYTES for number in range(5))
    assert catch_up.arrived(SEED, BlocksReply(3, first=1, commit_index=5, blocks=blocks), 1)
    taken: list[bytes] = []
    while (fetched := catch_up.take(len(taken), SLICE_BYTES)) is not None:
        assert (SEED, 3, len(taken) + 1) == (fetched.source, fetched.term, fetched.first)
        assert len(fetched.blocks) in {1, 2}
        taken += fetched.blocks
    assert list(blocks) == taken


def _member(network: ReplicaNetwork, key: bytes) -> Member:
    members = network.leader.raft.log.roster.latest.members
    return next(member for member in members if member.public_key == key)
