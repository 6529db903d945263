"""A new chain store made out of committed blocks, each verified before it is saved.

Backups, restored nodes and restored checkpoints are all made by this one way, so whatever the
blocks come from, a chain that does not hold from genesis to its end never comes to be. Its hard
state says that the blocks are committed, and nothing of votes: it is no member's memory. So its
store is marked as restored, and `node.standing` lets it be taken up only under a key that never
promised anything. Relies on `node.audit` for every rule and on the chain store.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from consensus.ready import HardState
from consensus.roster import Roster
from node.audit import ChainAuditor
from storage.chain import ChainStore

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from consensus.block import Block
    from storage.contract import Chain

_SAVE_BLOCKS: Final = 1_000
_SAVE_BYTES: Final = 8 << 20
"""A save, which is an fsync, comes with whichever is reached first."""


class ChainRefusedError(Exception):
    """The blocks make no chain that holds; the message names the first bad one."""

    def __init__(self, index: int, what: str) -> None:
        super().__init__(f"block {index}: {what}")
        self.index = index
        self.what = what


@dataclass(frozen=True, slots=True)
class Head:
    """Which chain, and how far: all blocks through `index` are committed."""

    cluster_id: bytes
    index: int
    hash: bytes


class ChainBuilder:
    """Takes blocks 0, 1, 2 and so on, and saves them at `path`, where there is nothing yet.

    Remembers the id of every transaction, some 100 bytes each, as `verify` does.
    """

    def __init__(self, path: Path, head: Head) -> None:
        """The chain shall end with `head`; nothing is made before the first block."""
        self.transactions = 0
        self._path = path
        self._head = head
        self._auditor = ChainAuditor()
        self._store: ChainStore | None = None
        self._waiting: list[Block] = []
        self._waiting_bytes = 0

    def add(self, block: Block) -> None:
        """Verify the next block, and keep it.

        Raises:
            ChainRefusedError: it breaks a rule, or is of another cluster.
            StorageError: it cannot be saved.
        """
        index = self._auditor.next_index
        finding = self._auditor.check(block)
        if finding is not None:
            raise ChainRefusedError(finding.index, finding.what)
        self.transactions += len(block.transactions)
        if index == 0:
            self._begin(block)
            return
        self._waiting.append(block)
        self._waiting_bytes += block.size_bytes
        if len(self._waiting) >= _SAVE_BLOCKS or self._waiting_bytes >= _SAVE_BYTES:
            self._save()

    def finish(self) -> None:
        """Save the rest, durably.

        Raises:
            ChainRefusedError: the chain does not end where and how it should.
            StorageError: it cannot be saved.
        """
        tip, head = self._auditor.tip, self._head
        if tip is None or tip.index < head.index:
            raise ChainRefusedError(self._auditor.next_index, "is missing")
        if tip.hash != head.hash:
            detail = f"its hash is {tip.hash.hex()}, not {head.hash.hex()} as the last one's"
            raise ChainRefusedError(tip.index, detail)
        assert tip.index == head.index, "no more blocks than were announced"
        if self._waiting:
            self._save()

    def __enter__(self) -> Self:
        """Nothing is open yet."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close what was made."""
        if self._store is not None:
            self._store.close()

    def _begin(self, genesis: Block) -> None:
        if genesis.hash != self._head.cluster_id:
            detail = f"begins cluster {genesis.hash.hex()}, not {self._head.cluster_id.hex()}"
            raise ChainRefusedError(0, detail)
        self._store = ChainStore.open(self._path, genesis=genesis, cache_bytes=0, restored=True)

    def _save(self) -> None:
        assert self._store is not None, "genesis came first"
        last = self._waiting[-1]
        state = HardState(term=last.term, vote=None, commit_index=last.index)
        self._store.save(hard_state=state, truncate_from=None, blocks=self._waiting)
        self._waiting = []
        self._waiting_bytes = 0


def roster_of(chain: Chain) -> Roster:
    """Every membership of a chain, from the blocks that its store lists as changes."""
    return Roster(chain.block(0), map(chain.block, chain.change_indexes()))
