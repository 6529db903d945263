"""The tree over all blocks, read from stored nodes: O(log n) for each peak, proof and new leaf.

The tree is the one of RFC 6962 that `header.history_root` is the root of; its leaf at position i
is the leaf hash of block i's hash. A *complete* node, one whose subtree has all of its 2**level
leaves, never changes again, so those are stored, by (level, position), and everything else is
computed from them. Functions take `node(level, position)`, which returns such a hash; level 0 are
the leaves. Relies on `consensus.merkle` for hashing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from consensus.merkle import CompactRange, node_hash

if TYPE_CHECKING:
    from collections.abc import Callable

    NodeReader = Callable[[int, int], bytes]


class Node(NamedTuple):
    """An inner node that has become complete."""

    level: int
    position: int
    hash: bytes


def completed_by(history: CompactRange, leaf: bytes) -> list[Node]:
    """Return the inner nodes, lowest first, that become complete when `leaf` is appended."""
    nodes: list[Node] = []
    merged, level, kept = leaf, 0, len(history.peaks)
    # As in binary addition: each trailing 1 of the size is a subtree that the leaf completes.
    while history.size >> level & 1:
        kept -= 1
        merged = node_hash(history.peaks[kept], merged)
        level += 1
        nodes.append(Node(level, history.size >> level, merged))
    return nodes


def compact_range(size: int, node: NodeReader) -> CompactRange:
    """Return the compact range over the first `size` leaves."""
    return CompactRange(size, tuple(_peaks(0, size, node)))


def inclusion(index: int, size: int, node: NodeReader) -> tuple[bytes, ...]:
    """Return the audit path, lowest first, of a leaf in the tree of `size` (RFC 9162 2.1.3.1)."""
    assert 0 <= index < size
    path: list[bytes] = []
    low, high = 0, size
    while high - low > 1:
        split = low + _split(high - low)
        if index < split:
            path.append(_root(split, high, node))
            high = split
        else:
            path.append(_root(low, split, node))
            low = split
    return tuple(reversed(path))


def consistency(old_size: int, new_size: int, node: NodeReader) -> tuple[bytes, ...]:
    """Return the proof that the old tree is the start of the new one (RFC 9162 2.1.4.1).

    It is empty where the old tree is empty or is the new one.
    """
    assert 0 <= old_size <= new_size
    if old_size in {0, new_size}:
        return ()
    proof: list[bytes] = []
    low, high = 0, new_size
    while high > old_size:
        split = low + _split(high - low)
        if old_size <= split:
            proof.append(_root(split, high, node))
            high = split
        else:
            proof.append(_root(low, split, node))
            low = split
    # An old tree that is complete is known to the verifier (the RFC's flag b).
    if low > 0:
        proof.append(_root(low, high, node))
    return tuple(reversed(proof))


def _split(size: int) -> int:
    """Return k of RFC 9162 2.1.1: the largest power of two below `size`."""
    return 1 << (size - 1).bit_length() - 1


def _root(low: int, high: int, node: NodeReader) -> bytes:
    """Return the hash of the subtree over the leaves from `low` up to but not including `high`."""
    peaks = _peaks(low, high, node)
    root = peaks.pop()
    while peaks:
        root = node_hash(peaks.pop(), root)
    return root


def _peaks(low: int, high: int, node: NodeReader) -> list[bytes]:
    """Return the complete subtrees that cover a range of leaves, the largest first.

    `low` must be a multiple of the largest power of two that fits, as in every subtree of the RFC.
    """
    peaks: list[bytes] = []
    while low < high:
        level = (high - low).bit_length() - 1
        peaks.append(node(level, low >> level))
        low += 1 << level
    return peaks
