"""The log of one member: its chain of blocks as the core sees it.

The durable chain lies behind `ChainView`; the log adds the blocks that are not saved yet and keeps
a window of recent ones in memory, so that replication rarely reads the disk. Terms are kept as runs
(one for each reign), which makes skipping whole terms a binary search.

Invariants: `applied <= min(commit, saved)`, `commit <= last`, `saved <= last`; blocks at or below
`commit_index` are never truncated; blocks above it are all in memory.
"""

from __future__ import annotations

from bisect import bisect_right
from operator import itemgetter
from typing import TYPE_CHECKING, Final, Protocol

from consensus.block import tip_after
from consensus.roster import Roster

if TYPE_CHECKING:
    from collections.abc import Sequence

    from consensus.block import Block, Tip

WINDOW_BLOCKS: Final = 256
"""Committed blocks kept in memory for followers that are a little behind."""
WINDOW_BYTES: Final = 16 << 20


class ChainView(Protocol):
    """What the log reads of the durable chain."""

    @property
    def last_index(self) -> int:
        """The highest index that is saved."""

    def term_starts(self) -> list[tuple[int, int]]:
        """(first index, term) of each run of equal terms, ascending."""

    def change_indexes(self) -> list[int]:
        """The saved blocks that change the membership, ascending."""

    def tip(self, index: int) -> Tip:
        """The tip after the saved block at `index`."""

    def blocks(self, first: int, *, max_blocks: int, max_bytes: int) -> list[Block]:
        """Saved blocks from `first`, verified; at least one where it exists."""


class Log:
    """Blocks 0 … `last_index`, of which those through `saved_index` are durable here."""

    def __init__(self, chain: ChainView, *, commit_index: int, applied_index: int) -> None:
        """Takes up the durable chain; `commit_index` is what was known before a restart."""
        self._chain = chain
        self._term_starts = list(chain.term_starts())
        self._recent: dict[int, Block] = {}
        self._recent_bytes = 0
        self.last_tip = chain.tip(chain.last_index)
        self._tips: dict[int, Tip] = {}
        self.saved_index = chain.last_index
        self.commit_index = commit_index
        self.applied_index = applied_index
        self._save_cursor = chain.last_index
        self._truncate_from: int | None = None
        self.roster = Roster(self._saved(0), map(self._saved, chain.change_indexes()))
        assert applied_index <= commit_index, "applied blocks are committed"
        assert commit_index <= self.saved_index, "a commit index is saved with its blocks"
        self._tips[commit_index] = chain.tip(commit_index)
        for index in range(commit_index + 1, chain.last_index + 1):
            self._remember(self._saved(index), chain.tip(index))

    @property
    def window_start(self) -> int:
        """The first block in memory; all after it, and all that is not committed, are there too."""
        return self.last_index + 1 - len(self._recent)

    @property
    def last_index(self) -> int:
        """The highest index, saved or not."""
        return self.last_tip.index

    @property
    def last_term(self) -> int:
        """The term of the last block."""
        return self.last_tip.term

    @property
    def has_unsaved(self) -> bool:
        """Whether a save has something to write."""
        return self._save_cursor < self.last_index or self._truncate_from is not None

    def term_at(self, index: int) -> int:
        """The term of the block at `index`, which must exist."""
        assert 0 <= index <= self.last_index, f"no block at {index}"
        run = bisect_right(self._term_starts, index, key=itemgetter(0)) - 1
        return self._term_starts[run][1]

    def tip_at(self, index: int) -> Tip:
        """The tip after the block at `index`, which must exist."""
        assert 0 <= index <= self.last_index, f"no block at {index}"
        if index == self.last_index:
            return self.last_tip
        return self._tips.get(index) or self._chain.tip(index)

    def hash_at(self, index: int) -> bytes:
        """The hash of the block at `index`, which must exist."""
        return self.tip_at(index).hash

    def last_at_or_below_term(self, index: int, term: int) -> int:
        """The highest index not above `index` whose term is not above `term`."""
        index = min(index, self.last_index)
        run = bisect_right(self._term_starts, term, key=itemgetter(1))
        if run == len(self._term_starts):
            return index
        return min(index, self._term_starts[run][0] - 1)

    def append(self, block: Block, tip: Tip) -> None:
        """Takes a sealed or verified block as the new last one."""
        assert block.index == self.last_index + 1, "blocks are contiguous"
        assert tip.hash == block.hash, "the tip is the block's own"
        assert block.term >= self.last_term, "terms never fall"
        if block.term > self.last_term:
            self._term_starts.append((block.index, block.term))
        self._remember(block, tip)
        self.roster.append(block)
        self.last_tip = tip

    def truncate_from(self, index: int) -> None:
        """Forgets the uncommitted blocks from `index` on; the next save forgets them durably."""
        assert self.commit_index < index, "a committed block is never truncated"
        assert index <= self.last_index, f"no block at {index}"
        tip = self.tip_at(index - 1)
        for gone in range(index, self.last_index + 1):
            self._recent_bytes -= self._recent.pop(gone).size_bytes
            del self._tips[gone]
        while self._term_starts[-1][0] >= index:
            self._term_starts.pop()
        self.roster.truncate_from(index)
        self.last_tip = tip
        if index <= self._save_cursor:
            self._save_cursor = index - 1
            self._truncate_from = index  # below any earlier one: the cursor stands behind that
        self.saved_index = min(self.saved_index, index - 1)

    def take_save(self) -> tuple[int | None, tuple[Block, ...]]:
        """What the next save must do: from where to truncate first, and the blocks to append."""
        truncate_from, self._truncate_from = self._truncate_from, None
        first = self._save_cursor + 1
        blocks = tuple(self._recent[index] for index in range(first, self.last_index + 1))
        self._save_cursor = self.last_index
        return truncate_from, blocks

    def mark_saved(self, blocks: Sequence[Block]) -> None:
        """A save of `blocks` is durable; those truncated meanwhile do not count."""
        for block in reversed(blocks):
            if block.index <= self._save_cursor and self._holds(block):
                self.saved_index = max(self.saved_index, block.index)
                return

    def commit_to(self, index: int) -> None:
        """The blocks through `index` are committed."""
        assert self.commit_index <= index <= self.last_index, "commit never falls nor runs ahead"
        self.commit_index = index

    def take_committed(self, max_bytes: int) -> tuple[Block, ...]:
        """The next committed and saved blocks to apply, about `max_bytes` at most, in order."""
        through = min(self.commit_index, self.saved_index)
        count = through - self.applied_index
        if count <= 0:
            return ()
        blocks = self.blocks_from(self.applied_index + 1, max_blocks=count, max_bytes=max_bytes)
        self.applied_index = blocks[-1].index
        self._trim()
        return tuple(blocks)

    def recent_block(self, index: int) -> Block | None:
        """The block at `index` if it is in memory."""
        return self._recent.get(index)

    def block(self, index: int) -> Block:
        """The block at `index`, which must exist."""
        assert 0 <= index <= self.last_index, f"no block at {index}"
        return self.blocks_from(index, max_blocks=1, max_bytes=0)[0]

    def blocks_from(self, first: int, *, max_blocks: int, max_bytes: int) -> list[Block]:
        """Blocks from `first`, at least one where it exists, else within both limits."""
        if first not in self._recent:
            saved = self.saved_index - first + 1
            if saved <= 0:
                return []
            return self._chain.blocks(first, max_blocks=min(max_blocks, saved), max_bytes=max_bytes)
        blocks: list[Block] = []
        size_bytes = 0
        for index in range(first, min(first + max_blocks, self.last_index + 1)):
            block = self._recent[index]
            size_bytes += block.size_bytes
            if blocks and size_bytes > max_bytes:
                break
            blocks.append(block)
        return blocks

    def _saved(self, index: int) -> Block:
        (block,) = self._chain.blocks(index, max_blocks=1, max_bytes=0)
        return block

    def _remember(self, block: Block, tip: Tip) -> None:
        self._recent[block.index] = block
        self._recent_bytes += block.size_bytes
        self._tips[block.index] = tip

    def _holds(self, block: Block) -> bool:
        held = self._recent.get(block.index)
        return held is not None and held.hash == block.hash

    def _trim(self) -> None:
        """Drops applied blocks beyond the window, oldest first; dicts keep the order of entry."""
        while self._recent and (
            len(self._recent) > WINDOW_BLOCKS or self._recent_bytes > WINDOW_BYTES
        ):
            oldest = next(iter(self._recent))
            if oldest >= self.applied_index:
                return
            self._recent_bytes -= self._recent.pop(oldest).size_bytes
            # The tip before the window stays: an append that starts with the window names it.
            self._tips.pop(oldest - 1, None)


def extend(log: Log, block: Block) -> None:
    """Appends a block of our own sealing, whose tip is computed rather than verified."""
    log.append(block, tip_after(log.last_tip, block))
