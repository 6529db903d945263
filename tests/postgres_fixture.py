"""A real PostgreSQL for tests, and a small chain to copy into it.

The conftests of the folders that need them take the fixtures from here. One server serves a whole
folder of tests; each test that asks for `database` finds it without checkpoints.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import psycopg
import pytest
import pytest_asyncio

from cluster.postgres import EmbeddedPostgres
from consensus.block import encode_transaction
from storage.checkpoint import CheckpointStore
from tests.storage.builders import Author, make_genesis

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from consensus.block import Block


class Chain:
    """A growing chain of one member, as the source of a checkpointer and of a comparison.

    Only what is committed is handed out. Two chains of one name share their genesis.
    """

    def __init__(self, name: str = "test", *, seed: int = 7) -> None:
        genesis = make_genesis(name=name)
        self.cluster_id = genesis.hash
        self.blocks = [genesis]
        self.commit_index = 0
        self._author = Author(genesis=genesis)
        self._author.random.seed(seed)
        self._grown = asyncio.Condition()

    def transaction(self, payload: object, *, user_id: str = "alice") -> bytes:
        """Encode a transaction with an id of its own."""
        return encode_transaction(
            transaction_id=self._author.random.randbytes(16),
            user_id=user_id,
            kind="deposit",
            payload=payload,
        )

    def add(self, transactions: Sequence[bytes]) -> Block:
        """Seal a block and commit it."""
        self.blocks.append(self._author.seal(transactions))
        self.commit_index += 1
        return self.blocks[-1]

    def grow(self, *, blocks: int, transactions: int = 3) -> None:
        """Add blocks of that many ordinary transactions each."""
        for _ in range(blocks):
            self.add(
                [self.transaction({"amount": n, "memo": "Grüße"}) for n in range(transactions)]
            )

    async def commit(self, *, blocks: int, transactions: int = 3) -> None:
        """Grow, and wake whoever waits for it."""
        async with self._grown:
            self.grow(blocks=blocks, transactions=transactions)
            self._grown.notify_all()

    async def wait_committed(self, beyond: int) -> int:
        """As a node does."""
        async with self._grown:
            await self._grown.wait_for(lambda: self.commit_index > beyond)
        return self.commit_index

    async def committed_blocks(self, first: int, max_bytes: int) -> list[Block]:
        """As a node does."""
        if not 0 <= first <= self.commit_index:
            raise LookupError(first)
        found: list[Block] = []
        size_bytes = 0
        for block in self.blocks[first : self.commit_index + 1]:
            size_bytes += block.size_bytes
            if found and size_bytes > max_bytes:
                break
            found.append(block)
        return found


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """Run a PostgreSQL for all tests that ask for it; its DSN."""
    with TemporaryDirectory(prefix="bitnexus-test-") as folder, asyncio.Runner() as runner:
        # Nobody needs the data afterwards: no time for a shutdown that keeps them.
        server = EmbeddedPostgres(Path(folder) / "postgres", stop_timeout_s=0)
        yield runner.run(server.start())
        runner.run(server.stop())


@pytest.fixture
def database(postgres: str) -> str:
    """Empty the database of checkpoints; its DSN."""
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("DROP SCHEMA IF EXISTS bitnexus CASCADE")
    return postgres


@pytest.fixture
def chain() -> Chain:
    """A chain that holds its genesis block alone."""
    return Chain()


@pytest_asyncio.fixture
async def store(database: str, chain: Chain) -> AsyncIterator[CheckpointStore]:
    """A store of the chain's cluster with its tables made, holding the lock."""
    async with await CheckpointStore.connect(database, cluster_id=chain.cluster_id) as store:
        assert await store.try_lock()
        await store.ensure_schema()
        yield store
