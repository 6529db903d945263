"""A follower's side of replication: what an append may do to its log.

Every block is verified before it enters the log, and nothing is truncated but for a block that has
proven to be the leader's and to contradict ours. Two chains that contradict each other where Raft
allows no difference end in `ContradictionError`. Relies on `consensus.log` and the rules of blocks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from consensus.block import InvalidBlockError, decode_block, verify_block
from consensus.messages import AppendRejection, AppendReply

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Sequence

    from consensus.block import Block
    from consensus.log import Log
    from consensus.messages import Append


class ContradictionError(Exception):
    """The leader's chain and ours differ where no run of Raft lets them: corruption, or a lie."""


class Intake:
    """Takes the appends of the leader of the present term into a log."""

    def __init__(self, log: Log, cluster_id: bytes, *, dropped: Counter[str]) -> None:
        """What is refused counts in `dropped`, by the rule that it breaks."""
        self._log = log
        self._cluster_id = cluster_id
        self._dropped = dropped

    def take(self, append: Append) -> AppendReply | AppendRejection:
        """Takes what is new and valid; the reply holds once the log is saved that far.

        Raises:
            ContradictionError: the chains contradict each other; the log stays as it was before
                the block that does.
        """
        previous = append.previous_index
        if previous <= self._log.last_index and (
            self._log.hash_at(previous) == append.previous_hash
        ):
            return AppendReply(append.term, match_index=self._take_blocks(append))
        if previous <= self._log.last_index:
            self._check_may_differ(previous, append.previous_term)
        return self._rejection(append)

    def take_committed(self, first: int, blocks: Sequence[bytes]) -> int:
        """Takes blocks from `first` on that another member holds as committed.

        Returns the index through which our log equals that member's; nothing is taken where that
        cannot be told, since blocks before `first` are not known to be committed here.

        Raises:
            ContradictionError: as in `take`.
        """
        log = self._log
        if not 0 < first <= log.commit_index + 1:
            return log.commit_index
        index = first - 1
        for raw in blocks:
            try:
                if index + 1 > log.commit_index:
                    self._enter(decode_block(raw), index + 1)
            except InvalidBlockError as error:
                self._dropped[f"invalid block: {error.rule}"] += 1
                break
            index += 1
        return max(index, log.commit_index)

    def _rejection(self, append: Append) -> AppendRejection:
        """Says from where the leader should go on."""
        hint = self._log.last_at_or_below_term(append.previous_index, append.previous_term)
        return AppendRejection(
            term=append.term,
            previous_index=append.previous_index,
            hint_index=hint,
            hint_term=self._log.term_at(hint),
        )

    def _take_blocks(self, append: Append) -> int:
        """The index through which our log equals the leader's once its blocks are taken."""
        index = append.previous_index
        for raw in append.blocks:
            try:
                if not self._take_block(decode_block(raw), index + 1, append.term):
                    break
            except InvalidBlockError as error:
                self._dropped[f"invalid block: {error.rule}"] += 1
                break
            index += 1
        return index

    def _take_block(self, block: Block, index: int, leader_term: int) -> bool:
        """Takes the leader's block for `index`; False for one of a term to come.

        "If an existing entry conflicts with a new one (same index but different terms), delete the
        existing entry and all that follow it" (paper, figure 2), and only then.

        Raises:
            InvalidBlockError: it breaks a rule of the chain.
            ContradictionError: it would take the place of a block that must stay.
        """
        if block.term > leader_term:
            self._dropped["block of a future term"] += 1
            return False
        self._enter(block, index)
        return True

    def _enter(self, block: Block, index: int) -> None:
        """The block stands at `index` from now on, if it may; what contradicts it gives way."""
        log = self._log
        if index <= log.last_index and log.hash_at(index) == block.hash:
            return
        parent = log.tip_at(index - 1)
        electors = log.roster.electors(index)
        tip = verify_block(parent, block, cluster_id=self._cluster_id, sealers=electors)
        log.roster.verify(block)
        if index <= log.last_index:
            self._check_may_differ(index, block.term)
            log.truncate_from(index)
        log.append(block, tip)

    def _check_may_differ(self, index: int, term: int) -> None:
        """Our block at `index` differs from the leader's, which is of `term`: is that lawful?"""
        if index <= self._log.commit_index:
            raise ContradictionError(f"the leader's block {index} differs from the committed one")
        if self._log.term_at(index) == term:
            raise ContradictionError(f"two blocks with index {index} and the same term")
