"""Checkpoints in a real PostgreSQL: exactly once, in order, and never overwritten."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString

import msgspec
import psycopg
import pytest
from psycopg.types.json import Jsonb

from consensus.block import assemble_block, decode_transaction
from storage.checkpoint import (
    CheckpointClusterError,
    CheckpointMismatchError,
    CheckpointMovedError,
    CheckpointStore,
    Progress,
)
from storage.checkpoint_rows import UnstorableBlockError, payload_json, transaction_slices
from storage.checkpoint_schema import SCHEMA_VERSION, CheckpointSchemaError
from tests.postgres_fixture import Chain

pytestmark = pytest.mark.postgres


async def fetch(store: CheckpointStore, query: LiteralString) -> list[tuple[Any, ...]]:
    """Return the rows of a query."""
    return await (await store.connection.execute(query)).fetchall()


async def counts(store: CheckpointStore) -> tuple[int, int]:
    """Return how many blocks and transactions are stored."""
    query: LiteralString = (
        "SELECT (SELECT count(*) FROM bitnexus.blocks),"
        " (SELECT count(*) FROM bitnexus.transactions)"
    )
    [(blocks, transactions)] = await fetch(store, query)
    return blocks, transactions


@pytest.mark.asyncio
async def test_every_table_and_column_says_what_it_is(store: CheckpointStore) -> None:
    """A reader with nothing but psql finds a comment on each, on partitions made later too."""
    await fetch(store, "SELECT bitnexus.make_partitions(4096)")
    query: LiteralString = """
        SELECT c.relname, a.attname, obj_description(c.oid), col_description(c.oid, a.attnum)
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
        WHERE c.relnamespace = 'bitnexus'::regnamespace AND c.relkind IN ('r', 'p')
    """
    columns = await fetch(store, query)
    ranged = {
        f"{name}{part}" for name in ("blocks", "transactions") for part in ("", "_0", "_4096")
    }
    assert {"schema_version", "checkpoint", "partitions", *ranged} == {row[0] for row in columns}
    assert [] == [row[:2] for row in columns if not (row[2] and row[3])]


@pytest.mark.asyncio
async def test_there_is_no_progress_before_the_first_block(store: CheckpointStore) -> None:
    """Tables without blocks are no progress, and making them again changes nothing."""
    await store.ensure_schema()
    assert await store.progress() is None


@pytest.mark.asyncio
async def test_there_is_no_progress_without_tables(database: str, chain: Chain) -> None:
    """A stand-by may look before any writer has made the tables."""
    async with await CheckpointStore.connect(database, cluster_id=chain.cluster_id) as store:
        assert await store.progress() is None


@pytest.mark.asyncio
async def test_append_stores_every_field_and_moves_the_progress(
    store: CheckpointStore, chain: Chain
) -> None:
    """The columns hold the header, hash, signature, and each transaction with its raw bytes."""
    block = chain.add([chain.transaction({"amount": 5}, user_id="Zoë")])
    await store.append(chain.blocks)

    assert Progress(1, block.hash) == await store.progress()
    header = block.header
    sealed_at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=header.timestamp_us)
    expected = (*msgspec.structs.astuple(header), block.hash, block.signature, sealed_at)
    query: LiteralString = """
        SELECT version, cluster_id, index, term, previous_hash, transactions_root,
        transaction_count, history_root, timestamp_us, sealer, nonce, hash, signature, sealed_at
        FROM bitnexus.blocks WHERE index = 1
    """
    assert [expected] == await fetch(store, query)
    raw = block.transactions[0]
    transaction_id = decode_transaction(raw).id
    query = """
        SELECT uuid_send(id), block_index, position, user_id, kind, payload, raw
        FROM bitnexus.transactions WHERE block_index = 1
    """
    assert [(transaction_id, 1, 0, "Zoë", "deposit", {"amount": 5}, raw)] == await fetch(
        store, query
    )


@pytest.mark.asyncio
async def test_appending_the_same_blocks_again_changes_nothing(
    store: CheckpointStore, chain: Chain
) -> None:
    """A writer that does not know that its commit went through copies nothing twice."""
    chain.grow(blocks=3)
    await store.append(chain.blocks)
    with pytest.raises(CheckpointMovedError):
        await store.append(chain.blocks[1:])
    assert (4, 10) == await counts(store)


@pytest.mark.asyncio
async def test_a_gap_is_refused(store: CheckpointStore, chain: Chain) -> None:
    """Blocks that do not follow the progress are not stored."""
    chain.grow(blocks=3)
    await store.append(chain.blocks[:2])
    with pytest.raises(CheckpointMovedError):
        await store.append(chain.blocks[3:])
    assert (2, 4) == await counts(store)


@pytest.mark.asyncio
async def test_another_chain_is_refused(store: CheckpointStore, chain: Chain) -> None:
    """A block whose parent is not the last one stored is a mismatch, and nothing is changed."""
    other = Chain(seed=8)
    chain.grow(blocks=1)
    other.grow(blocks=2)
    await store.append(chain.blocks)
    with pytest.raises(CheckpointMismatchError, match="differs from the chain at block 1"):
        await store.append(other.blocks[2:])
    assert (2, 4) == await counts(store)
    assert Progress(1, chain.blocks[1].hash) == await store.progress()


@pytest.mark.asyncio
async def test_rows_beyond_the_progress_are_never_overwritten(
    store: CheckpointStore, chain: Chain
) -> None:
    """A planted row in the way is a mismatch; the whole append is undone."""
    chain.grow(blocks=2)
    await store.append(chain.blocks[:2])
    await store.connection.execute(
        "INSERT INTO bitnexus.transactions"
        " SELECT gen_random_uuid(), 2, 1, user_id, kind, payload, raw"
        " FROM bitnexus.transactions WHERE block_index = 1 AND position = 1"
    )
    with pytest.raises(CheckpointMismatchError, match="transactions_0_pkey"):
        await store.append(chain.blocks[2:])
    assert Progress(1, chain.blocks[1].hash) == await store.progress()
    assert (2, 5) == await counts(store)


@pytest.mark.asyncio
async def test_of_two_writers_at_once_one_wins(
    store: CheckpointStore, database: str, chain: Chain
) -> None:
    """Even without the lock, the guarded move lets one writer through and stores nothing twice."""
    chain.grow(blocks=20)
    async with await CheckpointStore.connect(database, cluster_id=chain.cluster_id) as other:
        results = await asyncio.gather(
            store.append(chain.blocks), other.append(chain.blocks), return_exceptions=True
        )
    assert [CheckpointMovedError] == [type(result) for result in results if result is not None]
    assert (21, 61) == await counts(store)


@pytest.mark.asyncio
async def test_the_lock_has_one_holder_and_ends_with_its_connection(
    store: CheckpointStore, database: str, chain: Chain
) -> None:
    """A second writer waits until the first gives the lock back or is gone."""
    async with await CheckpointStore.connect(database, cluster_id=chain.cluster_id) as other:
        assert not await other.try_lock()
        await store.unlock()
        assert await other.try_lock()
    async with asyncio.timeout(10):  # the server notices a moment later that it is gone
        while not await store.try_lock():
            pass


@pytest.mark.asyncio
async def test_a_database_of_another_cluster_is_refused(
    store: CheckpointStore, database: str, chain: Chain
) -> None:
    """One database holds one cluster."""
    other = Chain("other")
    async with await CheckpointStore.connect(database, cluster_id=other.cluster_id) as wrong:
        with pytest.raises(CheckpointClusterError, match="belongs to cluster"):
            await wrong.ensure_schema()
        with pytest.raises(CheckpointClusterError):
            await wrong.progress()


@pytest.mark.asyncio
async def test_tables_of_another_version_are_refused(store: CheckpointStore) -> None:
    """A newer program's tables are left alone."""
    newer = SCHEMA_VERSION + 1
    await store.connection.execute(
        "INSERT INTO bitnexus.schema_version (version) VALUES (%s)", (newer,)
    )
    with pytest.raises(CheckpointSchemaError, match=f"version {newer}; this program uses"):
        await store.progress()


@pytest.mark.asyncio
async def test_a_database_in_another_encoding_is_refused(postgres: str, chain: Chain) -> None:
    """Only UTF-8 holds every text that a transaction may have."""
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("CREATE DATABASE latin ENCODING LATIN1 TEMPLATE template0")
    async with await CheckpointStore.connect(
        f"{postgres} dbname=latin", cluster_id=chain.cluster_id
    ) as store:
        with pytest.raises(CheckpointSchemaError, match="LATIN1"):
            await store.ensure_schema()


@pytest.mark.asyncio
async def test_a_connection_lost_in_the_middle_leaves_nothing(
    store: CheckpointStore, database: str, chain: Chain
) -> None:
    """What a broken append had copied is gone, and the same append then goes through."""
    chain.grow(blocks=100, transactions=20)
    append = asyncio.create_task(store.append(chain.blocks))
    pid = store.connection.info.backend_pid
    async with await CheckpointStore.connect(database, cluster_id=chain.cluster_id) as other:
        await other.connection.execute("SELECT pg_terminate_backend(%s)", (pid,))
        with pytest.raises(psycopg.OperationalError):
            await append
        assert (0, 0) == await counts(other)
        await other.append(chain.blocks)
        assert (101, 2001) == await counts(other)


@pytest.mark.asyncio
async def test_a_block_that_the_tables_cannot_hold_is_named(
    store: CheckpointStore, chain: Chain
) -> None:
    """A term beyond 63 bits cannot be stored; it fails before anything is changed."""
    header = msgspec.structs.replace(chain.blocks[0].header, term=1 << 63)
    block = assemble_block(header, bytes(64), chain.blocks[0].transactions)
    with pytest.raises(UnstorableBlockError, match="block from 0 on"):
        await store.append([block])
    assert (0, 0) == await counts(store)


def test_rows_come_in_slices_of_bounded_work(chain: Chain) -> None:
    """Neither many small transactions nor few large ones make a slice that stalls the loop."""
    chain.add([chain.transaction(n) for n in range(1_000)])
    chain.add([chain.transaction("x" * 60_000) for _ in range(10)])
    slices = list(transaction_slices(chain.blocks[1:2]))
    assert 4 == len(slices)
    large = list(transaction_slices(chain.blocks[2:]))
    assert max(map(len, large)) < 3 * 2 * 61_000
    # Slices are cut from the same rows, however they are cut.
    assert 1_000 == b"".join(slices).count(b"\x00\x07\x00\x00\x00\x10")


def test_json_is_what_the_payload_says(chain: Chain) -> None:
    """Numbers stay numbers: no float becomes text, no integer a float."""
    raw = chain.transaction({"b": 1.0, "a": (1 << 64) - 1, "c": "ü"})
    expected = '{"a":18446744073709551615,"b":1.0,"c":"ü"}'.encode()
    assert expected == payload_json(decode_transaction(raw).payload)


@pytest.mark.asyncio
async def test_a_payload_can_be_queried_as_json(store: CheckpointStore, chain: Chain) -> None:
    """The point of jsonb: numbers add up in SQL."""
    chain.add([chain.transaction({"amount": amount}) for amount in (1, 2.5)])
    await store.append(chain.blocks)
    query: LiteralString = (
        "SELECT sum((payload->>'amount')::numeric)::text FROM bitnexus.transactions"
        " WHERE kind = 'deposit' AND payload @> '{}'"
    )
    assert [("3.5",)] == await fetch(store, query)
    cursor = await store.connection.execute(
        "SELECT position FROM bitnexus.transactions WHERE payload = %s", (Jsonb({"amount": 2.5}),)
    )
    assert [(1,)] == await cursor.fetchall()
