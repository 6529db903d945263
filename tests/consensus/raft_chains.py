"""Keys, blocks and disks for the tests of the Raft core, the same in every run.

Members have names of one letter, in the order of their public keys. `log_of_terms` builds the logs
that the paper draws as rows of terms; `DurableChain` is the smallest thing that is a `ChainView`,
and keeps what a member's disk keeps.
"""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from random import Random
from typing import TYPE_CHECKING

from nacl.signing import SigningKey

from consensus.block import Sealer, encode_transaction, tip_after
from consensus.changes import holds_change
from consensus.membership import Genesis, Member, genesis_block
from consensus.messages import Append

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from consensus.block import Block, Tip
    from consensus.messages import MemberId
    from consensus.ready import HardState, Save

NAMES = "abcdefghi"


@cache
def _signing_keys() -> dict[str, SigningKey]:
    """Keys whose public halves are in the order of the names, for traces read in that order."""
    keys = [SigningKey(sha256(name.encode()).digest()) for name in NAMES]
    keys.sort(key=lambda key: bytes(key.verify_key))
    return dict(zip(NAMES, keys, strict=True))


@cache
def member_id(name: str) -> MemberId:
    """The public key of the member that the tests call `name`."""
    return bytes(_signing_keys()[name].verify_key)


@cache
def name_of(member: MemberId) -> str:
    """The name of a member by its public key."""
    return next(name for name in NAMES if member_id(name) == member)


@cache
def member_of(name: str) -> Member:
    """The member that the tests call `name`, with its addresses."""
    number = NAMES.index(name) + 1
    return Member(name, member_id(name), f"127.0.0.1:{7000 + number}", f"127.0.0.1:{8000 + number}")


@cache
def genesis_of_size(size: int) -> Block:
    """Block 0 of a cluster of the first `size` names."""
    members = tuple(member_of(name) for name in NAMES[:size])
    return genesis_block(Genesis(name="test", created_us=0, members=members))


@cache
def log_of_terms(size: int, terms: tuple[int, ...]) -> tuple[Block, ...]:
    """A chain whose blocks 1, 2, … have these terms; equal beginnings give equal blocks."""
    if not terms:
        return (genesis_of_size(size),)
    before = log_of_terms(size, terms[:-1])
    sealer = sealer_of(NAMES[terms[-1] % size], size, seed=repr(terms))
    return (*before, sealer.seal(_tips_of(before)[-1], term=terms[-1], transactions=(), wall_us=0))


def append_of(
    terms: Sequence[int], after: int, *, term: int, commit: int = 0, size: int = 3
) -> Append:
    """What a leader of `term` with a log of these terms sends to follow block `after`."""
    log = log_of_terms(size, tuple(terms))
    previous = log[after]
    return Append(
        term=term,
        previous_index=after,
        previous_term=previous.term,
        previous_hash=previous.hash,
        commit_index=commit,
        blocks=tuple(block.encode() for block in log[after + 1 :]),
    )


def sealer_of(name: str, size: int, *, seed: str) -> Sealer:
    """The sealer of a member, with nonces that repeat from run to run."""
    return Sealer(_signing_keys()[name], genesis_of_size(size).hash, Random(seed))


def transaction(number: int, *, size_bytes: int = 0) -> bytes:
    """A transaction with an id of its own."""
    return encode_transaction(
        transaction_id=number.to_bytes(16),
        user_id="user",
        kind="deposit",
        payload={"memo": "x" * size_bytes},
    )


def _tips_of(blocks: Iterable[Block]) -> list[Tip]:
    tips: list[Tip] = []
    for block in blocks:
        tips.append(tip_after(tips[-1] if tips else None, block))
    return tips


class DurableChain:
    """What is on one member's disk: the smallest thing that is a `ChainView`."""

    def __init__(self, blocks: Sequence[Block], hard_state: HardState) -> None:
        self._blocks = list(blocks)
        self._tips = _tips_of(blocks)
        self.hard_state = hard_state

    @property
    def last_index(self) -> int:
        """The highest index that is saved."""
        return len(self._blocks) - 1

    def term_starts(self) -> list[tuple[int, int]]:
        """(first index, term) of each run of equal terms, ascending."""
        starts: list[tuple[int, int]] = []
        for block in self._blocks:
            if not starts or starts[-1][1] != block.term:
                starts.append((block.index, block.term))
        return starts

    def change_indexes(self) -> list[int]:
        """The saved blocks that change the membership, ascending."""
        return [block.index for block in self._blocks if holds_change(block)]

    def tip(self, index: int) -> Tip:
        """The tip after the saved block at `index`."""
        assert 0 <= index <= self.last_index
        return self._tips[index]

    def blocks(self, first: int, *, max_blocks: int, max_bytes: int) -> list[Block]:
        """Saved blocks from `first`; at least one where it exists."""
        assert max_blocks > 0
        found: list[Block] = []
        for block in self._blocks[first : first + max_blocks]:
            max_bytes -= block.size_bytes
            if found and max_bytes < 0:
                break
            found.append(block)
        return found

    def holds(self, index: int, digest: bytes) -> bool:
        """Whether the block at `index` is saved and has this hash."""
        return index <= self.last_index and self._tips[index].hash == digest

    def save(self, save: Save) -> None:
        """Does what `save` asks, all of it at once, and refuses what no store would take."""
        if save.truncate_from is not None:
            assert 0 < save.truncate_from <= self.last_index
            del self._blocks[save.truncate_from :]
            del self._tips[save.truncate_from :]
        for block in save.blocks:
            assert block.index == self.last_index + 1
            self._tips.append(tip_after(self._tips[-1], block))
            self._blocks.append(block)
        assert save.hard_state.term >= self.hard_state.term
        assert save.hard_state.commit_index <= self.last_index
        self.hard_state = save.hard_state
