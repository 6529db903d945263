"""The Merkle trees: three ways to a root, proofs that hold, and proofs that must not."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.merkle import (
    EMPTY_ROOT,
    CompactRange,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    node_hash,
    root_of_leaves,
    transactions_root,
    verify_consistency,
    verify_inclusion,
)

PROPERTY = settings(deadline=None, derandomize=True, database=None)
LEAVES = [leaf_hash(b"leaf %d" % number) for number in range(600)]
# Every size up to 65 sees all shapes of up to seven levels; the rest are the edges beyond.
SIZES = [*range(66), 127, 128, 129, 255, 256, 257, 511, 512, 513]
# The shapes by which the proofs are attacked: complete, almost complete, just begun, and between.
PAIRS = [(old, new) for new in (2, 3, 5, 6, 7, 8, 13) for old in range(1, new)]

trees = st.integers(1, len(LEAVES)).map(lambda size: LEAVES[:size])


def recursive_root(hashes: list[bytes]) -> bytes:
    """Compute the tree hash word for word as RFC 6962 section 2.1 defines it."""
    size = len(hashes)
    if size == 0:
        return sha256(b"").digest()
    if size == 1:
        return hashes[0]
    split = 1
    while split * 2 < size:
        split *= 2
    left, right = recursive_root(hashes[:split]), recursive_root(hashes[split:])
    return sha256(b"\x01" + left + right).digest()


def flip(data: bytes, bit: int) -> bytes:
    """Return the bytes with one bit changed."""
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def flip_each_bit(proof: tuple[bytes, ...]) -> list[tuple[bytes, ...]]:
    """Return every proof that differs from the given one in a single bit."""
    return [
        (*proof[:step], flip(proof[step], bit), *proof[step + 1 :])
        for step in range(len(proof))
        for bit in range(256)
    ]


def test_leaves_and_nodes_are_told_apart() -> None:
    """A leaf's hash begins with a 0 byte and a node's with a 1, so neither passes for the other."""
    left, right = LEAVES[:2]

    assert sha256(b"\x00" + left + right).digest() == leaf_hash(left + right)
    assert sha256(b"\x01" + left + right).digest() == node_hash(left, right)


def test_no_leaves_have_the_hash_of_nothing() -> None:
    """The root over no leaves is SHA-256 of the empty string, whichever way it is computed."""
    expected = sha256(b"").digest()

    assert expected == EMPTY_ROOT
    assert expected == root_of_leaves([])
    assert expected == transactions_root([])
    assert expected == CompactRange.EMPTY.root()


def test_an_odd_node_is_promoted_and_not_duplicated() -> None:
    """Three leaves and the same with the last one repeated have different roots."""
    a, b, c = LEAVES[:3]

    assert node_hash(node_hash(a, b), c) == root_of_leaves([a, b, c])
    assert root_of_leaves([a, b, c, c]) != root_of_leaves([a, b, c])


@pytest.mark.parametrize("size", SIZES)
def test_three_ways_to_a_root_agree(size: int) -> None:
    """The definition, the loop over levels and the compact range give one root at every size."""
    compact = CompactRange.EMPTY
    for leaf in LEAVES[:size]:
        compact = compact.append(leaf)

    expected = recursive_root(LEAVES[:size])

    assert expected == root_of_leaves(LEAVES[:size])
    assert expected == compact.root()
    assert size == compact.size


@PROPERTY
@given(st.lists(st.binary(max_size=200), max_size=40))
def test_a_root_over_transactions_is_one_over_their_leaves(transactions: list[bytes]) -> None:
    """Hashing leaves within the loop changes nothing."""
    hashes = [sha256(b"\x00" + transaction).digest() for transaction in transactions]

    assert recursive_root(hashes) == transactions_root(transactions)
    assert recursive_root(hashes) == transactions_root(tuple(transactions))


def test_a_compact_range_is_not_changed_by_appending() -> None:
    """Appending returns a new range; a block that is refused leaves the old one as it was."""
    before = CompactRange.EMPTY.append(LEAVES[0])

    after = before.append(LEAVES[1])

    assert CompactRange(1, (LEAVES[0],)) == before
    assert CompactRange(2, (node_hash(LEAVES[0], LEAVES[1]),)) == after


@pytest.mark.parametrize(("size", "peaks"), [(-1, ()), (0, (LEAVES[0],)), (3, (LEAVES[0],))])
def test_a_compact_range_has_one_peak_for_each_bit(size: int, peaks: tuple[bytes, ...]) -> None:
    """A range whose peaks do not fit its size cannot be made."""
    with pytest.raises(AssertionError):
        CompactRange(size, peaks)


@pytest.mark.parametrize("size", range(1, 34))
def test_every_inclusion_proof_verifies(size: int) -> None:
    """The proof for each leaf of each tree leads to the root, and is as short as it can be."""
    tree = LEAVES[:size]
    root = root_of_leaves(tree)
    for position, leaf in enumerate(tree):
        proof = inclusion_proof(tree, position)

        assert len(proof) <= (size - 1).bit_length()
        assert verify_inclusion(leaf=leaf, position=position, size=size, proof=proof, root=root)


@PROPERTY
@given(tree=trees, data=st.data())
def test_inclusion_fails_with_anything_else_in_its_place(
    tree: list[bytes], data: st.DataObject
) -> None:
    """A proof is good for one leaf, one position and one root, and with nothing cut or added."""
    size, root = len(tree), root_of_leaves(tree)
    position = data.draw(st.integers(0, size - 1))
    other = data.draw(st.integers(-1, size + 1).filter(lambda value: value != position))
    bit = data.draw(st.integers(0, 255))
    leaf, proof = tree[position], inclusion_proof(tree, position)

    def holds(
        proof: tuple[bytes, ...] = proof,
        position: int = position,
        leaf: bytes = leaf,
        root: bytes = root,
    ) -> bool:
        return verify_inclusion(leaf=leaf, position=position, size=size, proof=proof, root=root)

    assert holds()
    assert not holds(position=other)
    assert not holds(leaf=flip(leaf, bit))
    assert not holds(root=flip(root, bit))
    assert not holds(proof=(*proof, root))
    assert not holds(proof=(root, *proof))
    if proof:
        step = data.draw(st.integers(0, len(proof) - 1))
        assert not holds(proof=(*proof[:step], flip(proof[step], bit), *proof[step + 1 :]))
        assert not holds(proof=proof[:-1])
        assert not holds(proof=proof[1:])


@pytest.mark.parametrize(("position", "size"), [(0, 2), (2, 3), (4, 5), (3, 6), (6, 7), (5, 13)])
def test_no_bit_of_an_inclusion_proof_can_be_changed(position: int, size: int) -> None:
    """Each single-bit corruption of a proof makes it fail."""
    tree = LEAVES[:size]
    root = root_of_leaves(tree)
    for proof in flip_each_bit(inclusion_proof(tree, position)):
        assert not verify_inclusion(
            leaf=tree[position], position=position, size=size, proof=proof, root=root
        )


def test_a_proof_is_not_longer_than_the_tree_is_high() -> None:
    """A leaf of a larger tree is not passed off as one of a smaller tree with the same root."""
    a, b, c = LEAVES[:3]
    inner = node_hash(a, b)

    assert not verify_inclusion(leaf=b, position=0, size=1, proof=(a,), root=inner)
    assert not verify_inclusion(leaf=c, position=1, size=2, proof=(b, a), root=node_hash(a, b))
    assert not verify_inclusion(leaf=b, position=1, size=2, proof=(a, c), root=node_hash(c, inner))
    assert not verify_consistency(
        old_size=1, new_size=2, old_root=a, new_root=node_hash(c, inner), proof=(b, c)
    )
    assert not verify_consistency(
        old_size=3,
        new_size=4,
        old_root=node_hash(b, node_hash(inner, c)),
        new_root=node_hash(b, node_hash(inner, node_hash(c, a))),
        proof=(c, a, inner, b),
    )


@pytest.mark.parametrize(("position", "size"), [(0, 0), (1, 1), (-1, 1), (8, 8), (9, 8)])
def test_there_is_no_proof_of_a_leaf_that_is_not_there(position: int, size: int) -> None:
    """Asking for one is a mistake of the caller's; offering one convinces nobody."""
    with pytest.raises(IndexError, match=f"no leaf {position} in a tree of {size}"):
        inclusion_proof(LEAVES[:size], position)
    assert not verify_inclusion(
        leaf=LEAVES[0], position=position, size=size, proof=(), root=LEAVES[0]
    )


@pytest.mark.parametrize("new_size", range(34))
def test_every_consistency_proof_verifies(new_size: int) -> None:
    """Each smaller tree, the empty one too, is shown to be the beginning of the larger."""
    tree = LEAVES[:new_size]
    new_root = root_of_leaves(tree)
    for old_size in range(new_size + 1):
        assert verify_consistency(
            old_size=old_size,
            new_size=new_size,
            old_root=root_of_leaves(tree[:old_size]),
            new_root=new_root,
            proof=consistency_proof(tree, old_size),
        )


@PROPERTY
@given(tree=trees, data=st.data())
def test_consistency_fails_with_anything_else_in_its_place(
    tree: list[bytes], data: st.DataObject
) -> None:
    """A proof is good for two roots only, and with nothing cut or added."""
    new_size = len(tree)
    old_size = data.draw(st.integers(1, new_size))
    bit = data.draw(st.integers(0, 255))
    old_root, new_root = root_of_leaves(tree[:old_size]), root_of_leaves(tree)
    proof = consistency_proof(tree, old_size)

    def holds(
        proof: tuple[bytes, ...] = proof, old_root: bytes = old_root, new_root: bytes = new_root
    ) -> bool:
        return verify_consistency(
            old_size=old_size,
            new_size=new_size,
            old_root=old_root,
            new_root=new_root,
            proof=proof,
        )

    assert holds()
    assert not holds(old_root=flip(old_root, bit))
    assert not holds(new_root=flip(new_root, bit))
    assert not holds(proof=(*proof, new_root))
    assert not holds(proof=(new_root, *proof))
    if proof:
        assert not holds(proof=proof[:-1])
        assert not holds(proof=proof[1:])


@pytest.mark.parametrize(("old_size", "new_size"), PAIRS)
def test_no_bit_of_a_consistency_proof_can_be_changed(old_size: int, new_size: int) -> None:
    """Each single-bit corruption of a proof makes it fail."""
    tree = LEAVES[:new_size]
    old_root, new_root = root_of_leaves(tree[:old_size]), root_of_leaves(tree)
    for proof in flip_each_bit(consistency_proof(tree, old_size)):
        assert not verify_consistency(
            old_size=old_size,
            new_size=new_size,
            old_root=old_root,
            new_root=new_root,
            proof=proof,
        )


@pytest.mark.parametrize(("old_size", "new_size"), PAIRS)
def test_a_rewritten_history_has_no_consistency_proof(old_size: int, new_size: int) -> None:
    """The honest proof of a tree whose first leaf was replaced does not fit the old root."""
    rewritten = [leaf_hash(b"another"), *LEAVES[1:new_size]]

    assert not verify_consistency(
        old_size=old_size,
        new_size=new_size,
        old_root=root_of_leaves(LEAVES[:old_size]),
        new_root=root_of_leaves(rewritten),
        proof=consistency_proof(rewritten, old_size),
    )


@pytest.mark.parametrize(("old_size", "new_size"), [(-1, 1), (2, 1), (1, 0)])
def test_a_tree_does_not_shrink(old_size: int, new_size: int) -> None:
    """Asking how a tree became smaller is a mistake of the caller's; no proof shows it."""
    with pytest.raises(IndexError, match=f"no tree of {old_size} leaves in one of {new_size}"):
        consistency_proof(LEAVES[:new_size], old_size)
    assert not verify_consistency(
        old_size=old_size, new_size=new_size, old_root=LEAVES[0], new_root=LEAVES[0], proof=()
    )


@pytest.mark.parametrize(
    ("old_size", "new_size", "old_root", "new_root", "proof", "holds"),
    [
        (0, 0, EMPTY_ROOT, EMPTY_ROOT, (), True),
        (0, 1, EMPTY_ROOT, LEAVES[0], (), True),
        (0, 0, LEAVES[0], LEAVES[0], (), False),
        (0, 1, LEAVES[0], LEAVES[0], (), False),
        (0, 1, EMPTY_ROOT, LEAVES[0], (LEAVES[0],), False),
        (1, 1, LEAVES[0], LEAVES[0], (), True),
        (1, 1, LEAVES[0], LEAVES[1], (), False),
        (1, 1, LEAVES[0], LEAVES[0], (LEAVES[0],), False),
        (3, 4, LEAVES[0], LEAVES[0], (), False),
    ],
)
def test_trees_of_no_difference_need_no_proof(
    old_size: int,
    new_size: int,
    old_root: bytes,
    new_root: bytes,
    proof: tuple[bytes, ...],
    holds: bool,
) -> None:
    """The empty tree and the same tree are settled by their roots alone; nothing else is."""
    assert holds is verify_consistency(
        old_size=old_size, new_size=new_size, old_root=old_root, new_root=new_root, proof=proof
    )
