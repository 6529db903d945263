"""The Merkle trees of RFC 6962 and RFC 9162: roots, proofs, and the compact range.

Both trees of the ledger are built here: the one over a block's transactions and the one over the
chain's history. Everything is a pure function of hashes; the module relies on `hashlib` alone.
A node without a sibling is promoted to the next level as it is, never duplicated: duplicating
would let two different lists share a root (the flaw of CVE-2012-2459).
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, ClassVar, Self

if TYPE_CHECKING:
    from collections.abc import Sequence

EMPTY_ROOT = sha256(b"").digest()
"""The root of a tree without leaves (RFC 6962 section 2.1)."""

# RFC 6962 section 2.1: leaves and inner nodes are hashed with different first bytes, so that
# an inner node can never be passed off as a leaf.
_LEAF_PREFIX = b"\x00"
_NODE_PREFIX = b"\x01"


def leaf_hash(data: bytes) -> bytes:
    """Hash one leaf's content: SHA-256(0x00 || data)."""
    return sha256(_LEAF_PREFIX + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash an inner node over its two children: SHA-256(0x01 || left || right)."""
    return sha256(_NODE_PREFIX + left + right).digest()


def root_of_leaves(hashes: Sequence[bytes]) -> bytes:
    """Return the Merkle tree hash over leaves that are already hashed; `EMPTY_ROOT` for none."""
    if not hashes:
        return EMPTY_ROOT
    level = hashes
    while len(level) > 1:
        level = _parents(level)
    return level[0]


def transactions_root(transactions: Sequence[bytes]) -> bytes:
    """Return the Merkle tree hash over the contents of leaves, such as a block's transactions."""
    # Every block is hashed here by every member, so no Python function is called for each leaf.
    sha, prefix = sha256, _LEAF_PREFIX
    return root_of_leaves([sha(prefix + transaction).digest() for transaction in transactions])


def inclusion_proof(hashes: Sequence[bytes], position: int) -> tuple[bytes, ...]:
    """Return the audit path, lowest first, of the leaf at `position` (RFC 9162 section 2.1.3.1).

    Raises IndexError where there is no leaf at that position.
    """
    if not 0 <= position < len(hashes):
        message = f"no leaf {position} in a tree of {len(hashes)}"
        raise IndexError(message)
    path: list[bytes] = []
    level = hashes
    while len(level) > 1:
        sibling = position ^ 1
        if sibling < len(level):
            path.append(level[sibling])
        level = _parents(level)
        position >>= 1
    return tuple(path)


def verify_inclusion(
    *, leaf: bytes, position: int, size: int, proof: Sequence[bytes], root: bytes
) -> bool:
    """Tell whether `proof` places the leaf hash `leaf` at `position` of the tree of `size` leaves.

    The algorithm is that of RFC 9162 section 2.1.3.2, with its names in the comments.
    """
    if not 0 <= position < size:
        return False
    node, last = position, size - 1  # fn, sn
    result = leaf  # r
    for sibling in proof:
        if last == 0:
            return False
        if node & 1 or node == last:
            result = node_hash(sibling, result)
            # A promoted node has no sibling at its own level: go up to where it has one.
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            result = node_hash(result, sibling)
        node, last = node >> 1, last >> 1
    return last == 0 and result == root


def consistency_proof(hashes: Sequence[bytes], old_size: int) -> tuple[bytes, ...]:
    """Return the proof that the first `old_size` leaves are unchanged (RFC 9162 section 2.1.4.1).

    The proof is empty for an old tree without leaves and for two trees of the same size. Raises
    IndexError where the old tree would be larger than the new one, or smaller than nothing.
    """
    if not 0 <= old_size <= len(hashes):
        message = f"no tree of {old_size} leaves in one of {len(hashes)}"
        raise IndexError(message)
    if old_size in {0, len(hashes)}:
        return ()
    return tuple(_subproof(hashes, old_size, old_is_known=True))


def verify_consistency(
    *, old_size: int, new_size: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]
) -> bool:
    """Tell whether `proof` shows the new tree to be the old one with leaves appended.

    The algorithm is that of RFC 9162 section 2.1.4.2, with its names in the comments. The empty
    tree, which the RFC leaves out, is a prefix of every tree and needs no proof.
    """
    if not 0 <= old_size <= new_size:
        return False
    if old_size == 0 and old_root != EMPTY_ROOT:
        return False
    if old_size == new_size:
        return not proof and old_root == new_root
    if old_size == 0:
        return not proof
    # An old tree that is complete is itself the first node of the path.
    path = [old_root, *proof] if old_size.bit_count() == 1 else list(proof)
    if not path:
        return False
    node, last = old_size - 1, new_size - 1  # fn, sn
    while node & 1:
        node, last = node >> 1, last >> 1
    old_result = new_result = path[0]  # fr, sr
    for sibling in path[1:]:
        if last == 0:
            return False
        if node & 1 or node == last:
            old_result = node_hash(sibling, old_result)
            new_result = node_hash(sibling, new_result)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            new_result = node_hash(new_result, sibling)
        node, last = node >> 1, last >> 1
    return last == 0 and old_result == old_root and new_result == new_root


@dataclass(frozen=True, slots=True)
class CompactRange:
    """A tree that only grows, kept as the roots of its complete subtrees: O(log n) hashes.

    `peaks` holds one root for each bit that is set in `size`, the largest subtree first.
    """

    size: int
    peaks: tuple[bytes, ...]

    EMPTY: ClassVar[Self]

    def __post_init__(self) -> None:
        """Assert that the peaks are as many as the size calls for."""
        assert self.size >= 0
        assert len(self.peaks) == self.size.bit_count()

    def append(self, leaf: bytes) -> CompactRange:
        """Return the range with one more leaf hash. Costs O(1) hashes on average."""
        # As in binary addition: each trailing 1 of the size is a subtree that becomes full.
        merged, kept, carry = leaf, len(self.peaks), self.size
        while carry & 1:
            kept -= 1
            merged = node_hash(self.peaks[kept], merged)
            carry >>= 1
        return CompactRange(self.size + 1, (*self.peaks[:kept], merged))

    def root(self) -> bytes:
        """Return the Merkle tree hash over all leaves. Costs O(log n) hashes."""
        if not self.peaks:
            return EMPTY_ROOT
        result = self.peaks[-1]
        for peak in self.peaks[-2::-1]:
            result = node_hash(peak, result)
        return result


CompactRange.EMPTY = CompactRange(0, ())


def _parents(level: Sequence[bytes]) -> list[bytes]:
    """Hash a level of a tree pairwise; an odd last node is promoted as it is."""
    sha, prefix = sha256, _NODE_PREFIX
    nodes = iter(level)
    # zip draws from one iterator twice; an odd last node is drawn and dropped, then appended.
    parents = [
        sha(prefix + left + right).digest() for left, right in zip(nodes, nodes, strict=False)
    ]
    if len(level) & 1:
        parents.append(level[-1])
    return parents


def _subproof(hashes: Sequence[bytes], old_size: int, *, old_is_known: bool) -> list[bytes]:
    """SUBPROOF of RFC 9162 section 2.1.4.1; `old_is_known` is its flag b."""
    size = len(hashes)
    if old_size == size:
        return [] if old_is_known else [root_of_leaves(hashes)]
    split = 1 << (size - 1).bit_length() - 1  # the largest power of two below size
    left, right = hashes[:split], hashes[split:]
    if old_size <= split:
        return [
            *_subproof(left, old_size, old_is_known=old_is_known),
            root_of_leaves(right),
        ]
    return [*_subproof(right, old_size - split, old_is_known=False), root_of_leaves(left)]
