"""The history tree read from stored nodes gives what the plain list of leaves gives."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.merkle import CompactRange, consistency_proof, inclusion_proof, leaf_hash
from storage.history import compact_range, completed_by, consistency, inclusion

LEAVES = [leaf_hash(bytes([number])) for number in range(150)]


class Nodes:
    """The complete nodes of a tree over the first leaves, and how often they were read."""

    def __init__(self, size: int) -> None:
        self.stored: dict[tuple[int, int], bytes] = {}
        self.reads = 0
        history = CompactRange.EMPTY
        for position, leaf in enumerate(LEAVES[:size]):
            self.stored[0, position] = leaf
            for node in completed_by(history, leaf):
                assert (node.level, node.position) not in self.stored
                self.stored[node.level, node.position] = node.hash
            history = history.append(leaf)
        self.history = history

    def read(self, level: int, position: int) -> bytes:
        """Return a node, counting."""
        self.reads += 1
        return self.stored[level, position]


@given(size=st.integers(0, len(LEAVES)))
def test_the_compact_range_is_read_from_complete_nodes(size: int) -> None:
    """Peaks read back are the peaks that appending leaves makes."""
    nodes = Nodes(size)

    assert nodes.history == compact_range(size, nodes.read)
    assert size.bit_count() == nodes.reads


@given(size=st.integers(1, len(LEAVES)), data=st.data())
def test_inclusion_proofs_are_those_of_the_leaves(size: int, data: st.DataObject) -> None:
    """A proof from nodes equals the one from all leaves, at a logarithmic number of reads."""
    nodes = Nodes(size)
    index = data.draw(st.integers(0, size - 1))

    assert inclusion_proof(LEAVES[:size], index) == inclusion(index, size, nodes.read)
    assert nodes.reads <= 2 * size.bit_length()


@given(new_size=st.integers(0, len(LEAVES)), data=st.data())
def test_consistency_proofs_are_those_of_the_leaves(new_size: int, data: st.DataObject) -> None:
    """A proof from nodes equals the one from all leaves, at a logarithmic number of reads."""
    nodes = Nodes(new_size)
    old_size = data.draw(st.integers(0, new_size))

    assert consistency_proof(LEAVES[:new_size], old_size) == consistency(
        old_size, new_size, nodes.read
    )
    assert nodes.reads <= 2 * new_size.bit_length()


def test_impossible_questions_are_faults_of_the_caller() -> None:
    """There is no proof for a leaf beyond the tree, nor from a larger tree to a smaller."""
    nodes = Nodes(3)
    with pytest.raises(AssertionError):
        inclusion(3, 3, nodes.read)
    with pytest.raises(AssertionError):
        consistency(4, 3, nodes.read)
