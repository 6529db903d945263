"""The chain of one node in memory, for simulations: it loses what was not synced when it crashes.

A save has two halves, so that virtual time may pass, and a crash may fall, between them: what
`begin_save` takes is neither durable nor visible until `finish_save`. It keeps the same contract as
`storage.chain` and is held to it by the same tests. Relies on `storage.contract`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from consensus.block import tip_after
from consensus.changes import holds_change
from consensus.merkle import consistency_proof, inclusion_proof, leaf_hash
from consensus.ready import HardState
from storage.contract import StoredHeader, check_links, check_save
from storage.errors import BlockNotFoundError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from consensus.block import Block, Tip


@dataclass(frozen=True, slots=True, eq=False)
class PendingSave:
    """A save that has begun: volatile until `MemoryChain.finish_save`."""

    hard_state: HardState | None
    truncate_from: int | None
    blocks: tuple[Block, ...]


class MemoryChain:
    """A chain whose blocks survive `crash`, but not the process."""

    def __init__(self, genesis: Block) -> None:
        assert genesis.index == 0, "a chain begins with its genesis block"
        self.cluster_id = genesis.hash
        self.hard_state = HardState()
        self._blocks = [genesis]
        self._tips = [tip_after(None, genesis)]
        self._pending: PendingSave | None = None

    @property
    def last_index(self) -> int:
        """The index of the last durable block."""
        return len(self._blocks) - 1

    def save(
        self,
        *,
        hard_state: HardState | None,
        truncate_from: int | None,
        blocks: Sequence[Block],
    ) -> None:
        """Make all of it durable at once; asserts what `storage.contract` says of a save."""
        self.finish_save(
            self.begin_save(hard_state=hard_state, truncate_from=truncate_from, blocks=blocks)
        )

    def begin_save(
        self,
        *,
        hard_state: HardState | None,
        truncate_from: int | None,
        blocks: Sequence[Block],
    ) -> PendingSave:
        """Take a save without making it durable; one at a time."""
        assert self._pending is None, "one save is in flight"
        check_save(
            held=self.hard_state,
            last_index=self.last_index,
            hard_state=hard_state,
            truncate_from=truncate_from,
            blocks=blocks,
        )
        keep = self.last_index if truncate_from is None else truncate_from - 1
        check_links(self._blocks[keep].hash, self._blocks[keep].term, blocks)
        self._pending = PendingSave(hard_state, truncate_from, tuple(blocks))
        return self._pending

    def finish_save(self, pending: PendingSave) -> None:
        """Make a save that has begun durable and visible."""
        assert pending is self._pending, "the save in flight is the one that finishes"
        self._pending = None
        if pending.truncate_from is not None:
            del self._blocks[pending.truncate_from :]
            del self._tips[pending.truncate_from :]
        for block in pending.blocks:
            self._tips.append(tip_after(self._tips[-1], block))
            self._blocks.append(block)
        if pending.hard_state is not None:
            self.hard_state = pending.hard_state

    def crash(self) -> None:
        """Lose the save in flight, as a power cut does; go on with what is durable."""
        self._pending = None

    def term_starts(self) -> list[tuple[int, int]]:
        """Return (first index, term) of each run of equal terms, ascending; genesis is (0, 0)."""
        starts: list[tuple[int, int]] = []
        for block in self._blocks:
            if not starts or block.term > starts[-1][1]:
                starts.append((block.index, block.term))
        return starts

    def change_indexes(self) -> list[int]:
        """Return the indexes of the blocks that change the membership, ascending."""
        return [block.index for block in self._blocks if holds_change(block)]

    def header(self, index: int) -> StoredHeader:
        """Return the header at `index`; raises BlockNotFoundError."""
        block = self.block(index)
        return StoredHeader(block.header, block.header_bytes, block.hash, block.signature)

    def block(self, index: int) -> Block:
        """Return the block at `index`; raises BlockNotFoundError."""
        self._check_index(index)
        return self._blocks[index]

    def blocks(self, first: int, *, max_blocks: int, max_bytes: int) -> list[Block]:
        """Return blocks from `first` on, at least one where there is one, else within limits."""
        if first < 0:
            return []
        found: list[Block] = []
        size_bytes = 0
        for block in self._blocks[first : first + max_blocks]:
            size_bytes += block.size_bytes
            if found and size_bytes > max_bytes:
                break
            found.append(block)
        return found

    def tip(self, index: int) -> Tip:
        """Return the tip after the block at `index`; raises BlockNotFoundError."""
        self._check_index(index)
        return self._tips[index]

    def history_inclusion(self, index: int, size: int) -> tuple[bytes, ...]:
        """Return the proof that block `index` is among the first `size`; O(n).

        Raises BlockNotFoundError.
        """
        assert 0 <= index < size
        return inclusion_proof(self._leaves(size), index)

    def history_consistency(self, old_size: int, new_size: int) -> tuple[bytes, ...]:
        """Return the proof that `old_size` blocks are the start of `new_size`; O(n).

        Raises BlockNotFoundError.
        """
        assert 0 <= old_size <= new_size
        return consistency_proof(self._leaves(new_size), old_size)

    def close(self) -> None:
        """Do nothing: there are no files to let go of."""

    def _check_index(self, index: int) -> None:
        if not 0 <= index <= self.last_index:
            raise BlockNotFoundError(index, self.last_index)

    def _leaves(self, size: int) -> list[bytes]:
        if size > 0:
            self._check_index(size - 1)
        return [leaf_hash(block.hash) for block in self._blocks[:size]]
