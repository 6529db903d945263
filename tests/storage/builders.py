"""Chains to test with: a genesis block of one member, and blocks sealed by it, all seeded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from nacl.signing import SigningKey

from consensus.block import Sealer, encode_transaction, tip_after
from consensus.membership import Genesis, Member, genesis_block

if TYPE_CHECKING:
    from collections.abc import Sequence

    from consensus.block import Block, Tip

ROOT = Path(__file__).parents[2]
CREATED_US = 1_750_000_000_000_000
RESERVE_BYTES = 0
"""Tests do not care how full the disk of the machine is."""


def make_genesis(*, name: str = "test", seed: int = 7) -> Block:
    """Return the genesis block of a cluster of one member whose key comes from `seed`."""
    member = Member(
        name="node-1",
        public_key=bytes(make_key(seed).verify_key),
        peer="127.0.0.1:7001",
        http="127.0.0.1:8001",
    )
    return genesis_block(Genesis(name=name, created_us=CREATED_US, members=(member,)))


def make_key(seed: int) -> SigningKey:
    """Return a signing key that is a function of its seed."""
    return SigningKey(Random(seed).randbytes(32))


def make_transaction(random: Random, *, user_id: str = "alice", memo: str = "") -> bytes:
    """Return the bytes of a transaction with a random id."""
    return encode_transaction(
        transaction_id=random.randbytes(16),
        user_id=user_id,
        kind="deposit",
        payload={"amount": random.randrange(1_000_000), "memo": memo},
    )


class Author:
    """Seals blocks one after the other, on any tip; what it makes depends on its seed alone."""

    def __init__(self, *, seed: int = 7, genesis: Block | None = None) -> None:
        self.random = Random(seed)
        self.genesis = make_genesis(seed=seed) if genesis is None else genesis
        self.tip = tip_after(None, self.genesis)
        self._sealer = Sealer(make_key(seed), self.genesis.hash, self.random)

    def seal(self, transactions: Sequence[bytes] = (), *, term: int = 1) -> Block:
        """Seal the block after the tip, which moves to it."""
        block = self._sealer.seal(
            self.tip, term=term, transactions=transactions, wall_us=CREATED_US + self.tip.index
        )
        self.tip = tip_after(self.tip, block)
        return block

    def seal_for(self, *user_ids: str, term: int = 1) -> Block:
        """Seal a block with one transaction for each user id given, in that order."""
        transactions = [make_transaction(self.random, user_id=user_id) for user_id in user_ids]
        return self.seal(transactions, term=term)

    def blocks(self, count: int, *, term: int = 1, memo: str = "") -> list[Block]:
        """Seal `count` blocks of one transaction each."""
        return [
            self.seal([make_transaction(self.random, memo=memo)], term=term) for _ in range(count)
        ]

    def back_to(self, tip: Tip) -> None:
        """Go on from an earlier tip, as a leader of another branch."""
        self.tip = tip


def start_python(program: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a program text in a fresh Python that can import the project."""
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
