"""Chains whose members change: several keys, blocks sealed by any of them, all seeded.

Nothing keeps a society from sealing what is unlawful: that is for the tests to find.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from consensus.block import Sealer, encode_transaction, tip_after
from consensus.changes import Change, ChangeKind, change_transaction
from consensus.membership import CLUSTER_USER_ID, Genesis, Member, genesis_block
from consensus.roster import Roster
from tests.storage.builders import CREATED_US, make_key, make_transaction

if TYPE_CHECKING:
    from collections.abc import Sequence

    from consensus.block import Block


def make_member(number: int) -> Member:
    """The member whose key comes from its number."""
    key = bytes(make_key(number).verify_key)
    return Member(f"n{number}", key, f"127.0.0.1:{7000 + number}", f"127.0.0.1:{8000 + number}")


class Society:
    """Members 1 to `size` of genesis, and the chain that they seal."""

    def __init__(self, size: int = 3, *, http_of_3: str = "127.0.0.1:8003") -> None:
        self.random = Random(size)
        self.members = {number: make_member(number) for number in range(1, 10)}
        third = self.members[3]
        self.members[3] = Member(third.name, third.public_key, third.peer, http_of_3)
        first = tuple(self.members[number] for number in range(1, size + 1))
        self.genesis = genesis_block(Genesis("society", CREATED_US, first))
        self.blocks = [self.genesis]
        self.tip = tip_after(None, self.genesis)
        self.roster = Roster(self.genesis)

    def seal(self, transactions: Sequence[bytes] = (), *, by: int = 1, term: int = 1) -> Block:
        """Seal the next block in the name of member `by`, lawful or not."""
        sealer = Sealer(make_key(by), self.genesis.hash, self.random)
        block = sealer.seal(
            self.tip, term=term, transactions=transactions, wall_us=CREATED_US + len(self.blocks)
        )
        self.blocks.append(block)
        self.tip = tip_after(self.tip, block)
        return block

    def record(self, *, by: int = 1, term: int = 1) -> Block:
        """Seal a block with one transaction of a user."""
        return self.seal([make_transaction(self.random)], by=by, term=term)

    def change(self, kind: ChangeKind, number: int, *, by: int = 1, term: int = 1) -> Block:
        """Seal a change of the membership that makes sense."""
        block = self.seal([self.change_bytes(kind, number)], by=by, term=term)
        self.roster.append(block)
        return block

    def change_bytes(self, kind: ChangeKind, number: int) -> bytes:
        """The transaction of a change."""
        return change_transaction(
            Change(kind, self.members[number]),
            self.roster.latest,
            change_id=self.random.randbytes(16),
        )

    def forged_bytes(self, payload: object, *, user_id: str = CLUSTER_USER_ID) -> bytes:
        """A transaction of kind `membership` with any payload."""
        return encode_transaction(
            transaction_id=self.random.randbytes(16),
            user_id=user_id,
            kind="membership",
            payload=payload,
        )
