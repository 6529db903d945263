"""What a member fetches, what it serves, and with whom it talks."""

from __future__ import annotations

from random import Random

from nacl.signing import SigningKey

from consensus.changes import Change, ChangeKind
from consensus.membership import Member
from consensus.messages import BlocksReply, BlocksRequest, Forward
from node.catchup import FIRST_RANGE_BLOCKS, RANGES_IN_FLIGHT, CatchUp
from node.fetching import SLICE_BYTES, Fetching
from tests.node.replica_network import ReplicaNetwork, transaction

SEED = Member("seed", bytes(SigningKey(b"seed" * 8).verify_key), "127.0.0.1:1", "127.0.0.1:1")
KEY = SEED.public_key
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


def test_seeds_come_first_until_the_chain_has_come_as_far() -> None:
    """What an invitation says of a member is newer than a chain that ends before it."""
    network = led_network()
    follower = network.followers()[0].raft
    leader = network.leader.raft.member
    moved = Member("moved", leader, "127.0.0.1:9", "127.0.0.1:9")
    index = follower.log.commit_index
    assert moved == Fetching(follower, {leader: moved}, index + 1).peers[leader]
    assert moved != Fetching(follower, {leader: moved}, index).peers[leader]


def test_seeds_are_kept_for_when_nobody_leads() -> None:
    """A chain may end before all that it names have gone: whom the invitation names is asked."""
    network = led_network()
    follower = network.followers()[0].raft
    fetching = Fetching(follower, {SEED.public_key: SEED}, 0)
    assert fetching.peers[SEED.public_key] == SEED
    assert follower.member not in Fetching(follower, {follower.member: SEED}, 9_999).peers
    follower.fetch_through = follower.log.commit_index + 9
    asked = set()
    for leader in (follower.leader, None):
        follower.leader = leader
        for now_us in range(0, 120_000_000, 100_000):
            fetching.go_on(now_us)
            asked |= {(leader is None, envelope.target) for envelope in fetching.take_envelopes()}
    assert (False, SEED.public_key) not in asked
    assert (True, SEED.public_key) in asked


def test_seeds_that_are_gone_or_whose_place_is_taken_are_not_connected_to() -> None:
    """A node that was removed, and one whose address is another member's by now."""
    network = led_network()
    gone, leader = network.followers()[0].raft, network.leader
    taken = Member("old", SEED.public_key, _member(network, leader.raft.member).peer, "h:1")
    assert SEED.public_key not in Fetching(gone, {SEED.public_key: taken}, 0).peers
    leader.change_membership(Change(ChangeKind.REMOVE, _member(network, gone.member)), print)
    network.settle()
    seed = Member("gone", gone.member, "127.0.0.1:9", "127.0.0.1:9")
    known = Fetching(leader.raft, {gone.member: seed}, 0).peers[gone.member]
    assert known.peer != seed.peer


def test_a_member_that_moves_is_looked_for_where_it_was_until_that_is_committed() -> None:
    """It moves when it hears that it may; a leader that is lost meanwhile may have undone it."""
    network = led_network()
    leader, moving = network.leader, network.followers()[0].raft.member
    before = _member(network, moving)
    fetching = leader.fetching
    fetching.note_members()
    after = Member(before.name, moving, "127.0.0.1:9", before.http)
    leader.raft.change_membership(Change(ChangeKind.MOVE, after))
    assert (before, True) == (fetching.peers[moving], fetching.note_members())
    assert not fetching.note_members()
    network.settle()
    assert after == fetching.peers[moving]


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
    assert (1, 0) == (leader.dropped["forward of a former member"], leader.load.queued)
    assert transaction(99)[3:19] not in network.committed_ids(leader)
    leader.receive(gone, BlocksRequest(1, 1_000))
    (serving,) = leader.pump().servings
    assert (removed_at, removed_at) == (serving.count, serving.commit_index)


def test_no_peer_has_more_than_its_share_read() -> None:
    """Whoever asks for more asks again; another peer is not kept waiting."""
    network = led_network()
    fetching = Fetching(network.leader.raft, {}, 0)
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
    assert not Fetching(follower, {}, 0).go_on(0)
    asking = Fetching(follower, {}, 0)
    asking.go_on(0)
    assert len(asking.take_envelopes()) == 1
    follower.alarm = "CORRUPT: planted"
    silent = Fetching(follower, {}, 0)
    assert not silent.go_on(0)
    assert [] == silent.take_envelopes()


def test_an_answer_is_taken_in_slices() -> None:
    """So that verifying it never holds the loop; all of it comes, in order, from one source."""
    catch_up = CatchUp(election_max_us=600_000, random=Random(1))
    catch_up.target_index = 5
    ((_, request),) = catch_up.requests(now_us=0, commit_index=0, leader=None, peers={KEY})
    assert BlocksRequest(1, FIRST_RANGE_BLOCKS) == request
    blocks = tuple(bytes([number]) * BLOCK_BYTES for number in range(FIRST_RANGE_BLOCKS))
    assert catch_up.arrived(KEY, BlocksReply(3, first=1, commit_index=5, blocks=blocks), 1)
    taken: list[bytes] = []
    while (fetched := catch_up.take(len(taken), SLICE_BYTES)) is not None:
        assert (KEY, 3, len(taken) + 1) == (fetched.source, fetched.term, fetched.first)
        assert len(fetched.blocks) in {1, 2}
        taken += fetched.blocks
    assert list(blocks) == taken


def _member(network: ReplicaNetwork, key: bytes) -> Member:
    members = network.leader.raft.log.roster.latest.members
    return next(member for member in members if member.public_key == key)
