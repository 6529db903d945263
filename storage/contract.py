"""What every chain store promises, whether it keeps its blocks in LMDB or in memory.

One suite of tests holds both to it. The rules of a save live here too, since a save that breaks
them is a fault of the program that asks for it, whatever it is stored in. Relies on `consensus`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from consensus.block import Block, Header, Tip
    from consensus.ready import HardState


@dataclass(frozen=True, slots=True)
class StoredHeader:
    """A header with its bytes, hash and signature, but without the block's transactions."""

    header: Header
    header_bytes: bytes
    hash: bytes
    signature: bytes


class Chain(Protocol):
    """The durable chain of one member: blocks 0 to `last_index`, and its hard state.

    One thread writes and any may read. Reads see whole saves only.
    """

    @property
    def cluster_id(self) -> bytes:
        """The hash of the genesis block."""

    @property
    def hard_state(self) -> HardState:
        """The hard state last saved."""

    @property
    def last_index(self) -> int:
        """The index of the last block saved."""

    def save(
        self,
        *,
        hard_state: HardState | None,
        truncate_from: int | None,
        blocks: Sequence[Block],
    ) -> None:
        """Make all of it durable at once: cut off from `truncate_from`, append, set the state."""

    def term_starts(self) -> list[tuple[int, int]]:
        """(first index, term) of each run of equal terms, ascending; genesis is (0, 0)."""

    def change_indexes(self) -> list[int]:
        """The indexes of the blocks that change the membership, ascending."""

    def header(self, index: int) -> StoredHeader:
        """The header at `index`, verified."""

    def block(self, index: int) -> Block:
        """The block at `index`, verified."""

    def blocks(self, first: int, *, max_blocks: int, max_bytes: int) -> list[Block]:
        """Consecutive blocks from `first`, verified; at least one where it exists."""

    def tip(self, index: int) -> Tip:
        """The tip after the block at `index`."""

    def history_inclusion(self, index: int, size: int) -> tuple[bytes, ...]:
        """The proof that block `index` is in the history tree of the first `size` blocks."""

    def history_consistency(self, old_size: int, new_size: int) -> tuple[bytes, ...]:
        """The proof that the history of `old_size` blocks is the start of that of `new_size`."""

    def close(self) -> None:
        """Let go of the files."""


def check_save(
    *,
    held: HardState,
    last_index: int,
    hard_state: HardState | None,
    truncate_from: int | None,
    blocks: Sequence[Block],
) -> None:
    """Assert what can be told of a save without reading the chain."""
    start = last_index + 1
    if truncate_from is not None:
        assert truncate_from > held.commit_index, "a committed block is never truncated"
        assert 0 < truncate_from <= start, "a truncation begins at a block"
        start = truncate_from
    for index, block in enumerate(blocks, start):
        assert block.index == index, "blocks are contiguous"
    if hard_state is not None:
        assert hard_state.term >= held.term, "a member's term never falls"
        assert hard_state.commit_index < start + len(blocks), "what is committed is saved"
        if hard_state.term == held.term and held.vote is not None:
            assert hard_state.vote == held.vote, "a member votes once in a term (Raft §5.2)"


def check_links(parent_hash: bytes, parent_term: int, blocks: Sequence[Block]) -> None:
    """Assert that each block names the one before it, and that terms do not fall."""
    for block in blocks:
        assert block.previous_hash == parent_hash, "a block names its parent"
        assert block.term >= parent_term, "terms never fall along the chain"
        parent_hash, parent_term = block.hash, block.term
