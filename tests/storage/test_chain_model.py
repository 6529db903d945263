"""Both chain stores against a plain list, under random saves, truncations, crashes and reopens."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from consensus.merkle import consistency_proof, inclusion_proof, leaf_hash
from consensus.ready import HardState
from storage.chain import ChainStore
from storage.memory import MemoryChain
from tests.storage.builders import RESERVE_BYTES, Author

SMALLEST_MAP_BYTES = 16 * 4096


class ChainMachine(RuleBasedStateMachine):
    """The model is a list of blocks and of the tips after them, and a hard state."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.author = Author()
        self.blocks = [self.author.genesis]
        self.tips = [self.author.tip]
        self.hard_state = HardState()
        self.term = 0
        self.memory = MemoryChain(self.author.genesis)
        self.store = ChainStore.open(
            self._path,
            genesis=self.author.genesis,
            map_bytes=SMALLEST_MAP_BYTES,
            reserve_bytes=RESERVE_BYTES,
        )

    @property
    def _path(self) -> Path:
        return Path(self._folder.name) / "chain"

    @rule(
        cut=st.integers(0, 6),
        count=st.integers(0, 5),
        new_term=st.booleans(),
        memo_bytes=st.sampled_from([0, 3_000, 9_000]),
        commits=st.integers(0, 2),
    )
    def save(self, *, cut: int, count: int, new_term: bool, memo_bytes: int, commits: int) -> None:
        """Cut off some uncommitted blocks, append others, and move the hard state on."""
        keep = max(self.hard_state.commit_index, len(self.blocks) - 1 - cut)
        truncate_from = keep + 1 if keep < len(self.blocks) - 1 else None
        del self.blocks[keep + 1 :], self.tips[keep + 1 :]
        self.term += new_term
        self.author.back_to(self.tips[-1])
        fresh = []
        for _ in range(count):
            fresh += self.author.blocks(1, term=self.term, memo="m" * memo_bytes)
            self.tips.append(self.author.tip)
        self.blocks += fresh
        commit_index = min(self.hard_state.commit_index + commits, len(self.blocks) - 1)
        self.hard_state = HardState(self.term, None, commit_index)
        for chain in (self.store, self.memory):
            chain.save(hard_state=self.hard_state, truncate_from=truncate_from, blocks=fresh)

    @rule()
    def reopen(self) -> None:
        """What was saved is there after the process has ended."""
        self.store.close()
        self.store = ChainStore.open(self._path, reserve_bytes=RESERVE_BYTES)

    @rule(count=st.integers(1, 3))
    def crash_before_sync(self, count: int) -> None:
        """A save that has begun is neither seen nor, after a crash, remembered."""
        branch = Author(seed=8, genesis=self.author.genesis)
        branch.back_to(self.tips[-1])
        self.memory.begin_save(
            hard_state=HardState(self.term + 1, b"v" * 32, 0),
            truncate_from=None,
            blocks=branch.blocks(count, term=self.term),
        )
        assert len(self.blocks) - 1 == self.memory.last_index
        self.memory.crash()

    @precondition(lambda self: len(self.blocks) > 1)
    @rule(data=st.data())
    def prove(self, data: st.DataObject) -> None:
        """Proofs are those of the list of leaves."""
        leaves = [leaf_hash(block.hash) for block in self.blocks]
        size = data.draw(st.integers(1, len(leaves)))
        index = data.draw(st.integers(0, size - 1))
        for chain in (self.store, self.memory):
            assert inclusion_proof(leaves[:size], index) == chain.history_inclusion(index, size)
            assert consistency_proof(leaves[:size], index) == chain.history_consistency(index, size)

    @invariant()
    def both_are_the_list(self) -> None:
        """Every read agrees with the model."""
        starts = [(0, 0)]
        starts += [
            (block.index, block.term)
            for parent, block in zip(self.blocks, self.blocks[1:], strict=False)
            if block.term > parent.term
        ]
        for chain in (self.store, self.memory):
            assert len(self.blocks) - 1 == chain.last_index
            assert self.hard_state == chain.hard_state
            assert self.blocks == chain.blocks(0, max_blocks=1_000, max_bytes=1 << 30)
            assert starts == chain.term_starts()
            assert self.tips == [chain.tip(index) for index in range(len(self.tips))]

    def teardown(self) -> None:
        """Let go of the files."""
        self.store.close()
        self._folder.cleanup()


TestChainModel = ChainMachine.TestCase
TestChainModel.settings = settings(max_examples=15, stateful_step_count=12, deadline=None)
