"""What both chain stores promise: the one in LMDB and the one in memory pass the same tests."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING

import pytest

from consensus.block import tip_after
from consensus.changes import ChangeKind
from consensus.merkle import leaf_hash, verify_consistency, verify_inclusion
from consensus.ready import HardState
from storage.chain import ChainStore
from storage.errors import BlockNotFoundError
from storage.memory import MemoryChain
from tests.storage.builders import RESERVE_BYTES, Author
from tests.storage.society import Society

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from consensus.block import Block, Tip
    from storage.contract import Chain


@pytest.fixture
def author() -> Author:
    """Who seals the blocks of the test."""
    return Author()


@pytest.fixture(params=["lmdb", "memory"])
def chain(request: pytest.FixtureRequest, author: Author, tmp_path: Path) -> Iterator[Chain]:
    """A chain that holds genesis."""
    store: Chain
    if request.param == "memory":
        store = MemoryChain(author.genesis)
    else:
        store = ChainStore.open(
            tmp_path / "chain", genesis=author.genesis, reserve_bytes=RESERVE_BYTES
        )
    yield store
    store.close()


def append(chain: Chain, blocks: Sequence[Block]) -> None:
    """Save blocks and nothing else."""
    chain.save(hard_state=None, truncate_from=None, blocks=blocks)


def fold(blocks: Sequence[Block]) -> Tip:
    """Return the tip after all of the blocks, genesis first."""
    tip = tip_after(None, blocks[0])
    return reduce(tip_after, blocks[1:], tip)


def test_a_new_chain_holds_genesis_alone(chain: Chain, author: Author) -> None:
    """It begins with the genesis block, in term 0, and with a member that has never voted."""
    assert author.genesis.hash == chain.cluster_id
    assert chain.last_index == 0
    assert author.genesis == chain.block(0)
    assert HardState() == chain.hard_state
    assert [(0, 0)] == chain.term_starts()
    assert fold([author.genesis]) == chain.tip(0)


def test_saved_blocks_are_read_back_as_they_were(chain: Chain, author: Author) -> None:
    """Every part of every block, its header alone, and the tip after it are what was saved."""
    blocks = author.blocks(9)
    append(chain, blocks[:4])
    append(chain, blocks[4:])

    assert chain.last_index == 9
    assert blocks == [chain.block(index) for index in range(1, 10)]
    for block in blocks:
        stored = chain.header(block.index)
        assert (block.header, block.header_bytes) == (stored.header, stored.header_bytes)
        assert (block.hash, block.signature) == (stored.hash, stored.signature)
        assert fold([author.genesis, *blocks[: block.index]]) == chain.tip(block.index)


def test_a_block_without_transactions_is_a_block(chain: Chain, author: Author) -> None:
    """A new leader's first block is empty (Raft §5.4.2), and stored like any other."""
    block = author.seal()
    append(chain, [block])

    assert block == chain.block(1)


def test_hard_state_is_saved_alone_or_with_blocks(chain: Chain, author: Author) -> None:
    """A vote needs no block, and a save without a hard state leaves the last one."""
    vote = HardState(1, b"v" * 32, 0)
    chain.save(hard_state=vote, truncate_from=None, blocks=())
    assert vote == chain.hard_state

    append(chain, author.blocks(2))
    assert vote == chain.hard_state

    chain.save(hard_state=HardState(2, None, 3), truncate_from=None, blocks=author.blocks(1))
    assert HardState(2, None, 3) == chain.hard_state


def test_a_truncation_replaces_the_end_of_the_chain(chain: Chain, author: Author) -> None:
    """Blocks, terms, tips and proofs are those of the new branch, in one save."""
    append(chain, author.blocks(3, term=1))
    kept = author.tip
    append(chain, [*author.blocks(2, term=2), *author.blocks(4, term=3)])
    author.back_to(kept)
    branch = author.blocks(2, term=5)
    chain.save(hard_state=HardState(5, None, 3), truncate_from=4, blocks=branch)

    assert chain.last_index == 5
    assert branch == chain.blocks(4, max_blocks=10, max_bytes=1 << 20)
    assert [(0, 0), (1, 1), (4, 5)] == chain.term_starts()
    assert author.tip == chain.tip(5)
    with pytest.raises(BlockNotFoundError):
        chain.block(6)


def test_a_truncation_may_stand_alone(chain: Chain, author: Author) -> None:
    """A save may cut off without appending, down to genesis, and cut off nothing at the end."""
    append(chain, author.blocks(5))
    chain.save(hard_state=None, truncate_from=6, blocks=())
    assert chain.last_index == 5
    chain.save(hard_state=None, truncate_from=1, blocks=())

    assert chain.last_index == 0
    assert [(0, 0)] == chain.term_starts()
    assert fold([author.genesis]) == chain.tip(0)


def test_term_starts_are_the_reigns(chain: Chain, author: Author) -> None:
    """Each run of equal terms is named by its first block; terms without blocks are not there."""
    for term, count in ((1, 2), (4, 1), (7, 3)):
        append(chain, author.blocks(count, term=term))

    assert [(0, 0), (1, 1), (3, 4), (4, 7)] == chain.term_starts()


def test_blocks_are_read_within_limits_of_count_and_bytes(chain: Chain, author: Author) -> None:
    """As many as fit, in order, and at least one where there is one."""
    blocks = [author.genesis, *author.blocks(6)]
    append(chain, blocks[1:])
    two_bytes = blocks[2].size_bytes + blocks[3].size_bytes

    assert blocks[2:5] == chain.blocks(2, max_blocks=3, max_bytes=1 << 20)
    assert blocks[2:4] == chain.blocks(2, max_blocks=9, max_bytes=two_bytes)
    assert blocks[2:3] == chain.blocks(2, max_blocks=9, max_bytes=two_bytes - 1)
    assert blocks[2:3] == chain.blocks(2, max_blocks=9, max_bytes=0)
    assert blocks[5:] == chain.blocks(5, max_blocks=9, max_bytes=1 << 20)
    assert [] == chain.blocks(7, max_blocks=9, max_bytes=1 << 20)
    assert [] == chain.blocks(-1, max_blocks=9, max_bytes=1 << 20)


@pytest.mark.parametrize("index", [-1, 3, 1 << 40])
def test_a_block_beyond_the_chain_is_not_found(chain: Chain, author: Author, index: int) -> None:
    """The error is a LookupError, and says where the chain ends."""
    append(chain, author.blocks(2))
    for read in (chain.block, chain.header, chain.tip):
        with pytest.raises(BlockNotFoundError, match="the chain ends at 2"):
            read(index)
    assert issubclass(BlockNotFoundError, LookupError)


def test_history_proofs_hold_for_every_size(chain: Chain, author: Author) -> None:
    """Inclusion and consistency proofs lead to the roots of the tips."""
    blocks = [author.genesis, *author.blocks(11)]
    append(chain, blocks[1:])
    roots = [chain.tip(size - 1).history.root() for size in range(1, 13)]
    for size, root in enumerate(roots, 1):
        for index in range(size):
            assert verify_inclusion(
                leaf=leaf_hash(blocks[index].hash),
                position=index,
                size=size,
                proof=chain.history_inclusion(index, size),
                root=root,
            )
        for old_size in range(1, size + 1):
            assert verify_consistency(
                old_size=old_size,
                new_size=size,
                old_root=roots[old_size - 1],
                new_root=root,
                proof=chain.history_consistency(old_size, size),
            )


def test_proofs_end_with_the_chain(chain: Chain, author: Author) -> None:
    """There is no proof over blocks that are not there; the empty history is in every other."""
    append(chain, author.blocks(2))

    assert () == chain.history_consistency(0, 3)
    with pytest.raises(BlockNotFoundError):
        chain.history_inclusion(0, 4)
    with pytest.raises(BlockNotFoundError):
        chain.history_consistency(0, 4)


@pytest.fixture
def society() -> Society:
    """Members that change; the fixture `society_chain` holds their genesis."""
    return Society(3)


@pytest.fixture(params=["lmdb", "memory"])
def society_chain(
    request: pytest.FixtureRequest, society: Society, tmp_path: Path
) -> Iterator[Chain]:
    """A chain that holds the society's genesis."""
    store: Chain
    if request.param == "memory":
        store = MemoryChain(society.genesis)
    else:
        store = ChainStore.open(
            tmp_path / "society", genesis=society.genesis, reserve_bytes=RESERVE_BYTES
        )
    yield store
    store.close()


def test_blocks_that_change_the_members_are_listed(society_chain: Chain, society: Society) -> None:
    """In their order, whichever save they came with; a user's transactions are none."""
    assert [] == society_chain.change_indexes()
    append(society_chain, [society.record(), society.change(ChangeKind.ADD, 4), society.record()])
    append(society_chain, [society.change(ChangeKind.PROMOTE, 4)])
    append(society_chain, [society.change(ChangeKind.REMOVE, 1), society.record()])
    assert [2, 4, 5] == society_chain.change_indexes()


def test_a_truncation_takes_changes_back(society_chain: Chain, society: Society) -> None:
    """Those of the new branch take their place, and a cut alone leaves fewer."""
    blocks = [society.change(ChangeKind.ADD, 4), society.record()]
    append(society_chain, [*blocks, society.change(ChangeKind.PROMOTE, 4)])
    assert [1, 3] == society_chain.change_indexes()
    other = Society(3)
    branch = [other.record(term=2), other.record(term=2), other.change(ChangeKind.ADD, 5, term=2)]
    society_chain.save(hard_state=None, truncate_from=1, blocks=branch)
    assert [3] == society_chain.change_indexes()
    society_chain.save(hard_state=None, truncate_from=3, blocks=())
    assert [] == society_chain.change_indexes()


def test_a_save_with_a_gap_is_refused(chain: Chain, author: Author) -> None:
    """Neither a missing block nor one that is there already can be appended."""
    blocks = author.blocks(3)
    with pytest.raises(AssertionError, match="contiguous"):
        append(chain, blocks[1:])
    append(chain, blocks[:2])
    with pytest.raises(AssertionError, match="contiguous"):
        append(chain, blocks[1:])
    with pytest.raises(AssertionError, match="contiguous"):
        chain.save(hard_state=None, truncate_from=1, blocks=blocks[1:])
    with pytest.raises(AssertionError, match="begins at a block"):
        chain.save(hard_state=None, truncate_from=4, blocks=())

    assert chain.last_index == 2


def test_a_block_of_another_branch_is_refused(chain: Chain, author: Author) -> None:
    """A block names its parent by hash, and that must be the block before it."""
    append(chain, author.blocks(2))
    branch = Author(seed=8, genesis=author.genesis).blocks(3)
    with pytest.raises(AssertionError, match="names its parent"):
        append(chain, branch[2:])
    with pytest.raises(AssertionError, match="names its parent"):
        chain.save(hard_state=None, truncate_from=2, blocks=branch[1:])


def test_terms_never_fall_along_the_chain(chain: Chain, author: Author) -> None:
    """A block of an older term than its parent's is refused."""
    append(chain, author.blocks(1, term=3))
    object.__setattr__(author.tip, "term", 0)  # the sealer itself would refuse
    with pytest.raises(AssertionError, match="terms never fall"):
        append(chain, author.blocks(1, term=2))


@pytest.mark.parametrize("truncate_from", [0, 1, 2])
def test_committed_blocks_are_never_truncated(
    chain: Chain, author: Author, truncate_from: int
) -> None:
    """Neither genesis nor what the saved commit index covers can be cut off."""
    chain.save(hard_state=HardState(1, None, 2), truncate_from=None, blocks=author.blocks(3))
    with pytest.raises(AssertionError, match="never truncated"):
        chain.save(hard_state=None, truncate_from=truncate_from, blocks=())

    assert chain.last_index == 3


@pytest.mark.parametrize(
    ("hard_state", "rule"),
    [
        (HardState(1, None, 0), "term never falls"),
        (HardState(2, b"b" * 32, 0), "votes once"),
        (HardState(2, None, 0), "votes once"),
        (HardState(2, b"a" * 32, 1), "committed is saved"),
    ],
)
def test_a_hard_state_that_breaks_a_promise_is_refused(
    chain: Chain, hard_state: HardState, rule: str
) -> None:
    """A term does not fall, a vote is not taken back, and only saved blocks are committed."""
    held = HardState(2, b"a" * 32, 0)
    chain.save(hard_state=held, truncate_from=None, blocks=())
    with pytest.raises(AssertionError, match=rule):
        chain.save(hard_state=hard_state, truncate_from=None, blocks=())

    assert held == chain.hard_state
