"""The tables of the checkpoints on a real PostgreSQL: steps, partitions, indexes and grants."""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING, Any, LiteralString

import psycopg
import pytest
from psycopg import AsyncConnection, errors

from node.checkpointer import Checkpointer
from storage import checkpoint
from storage.checkpoint import CheckpointMismatchError, CheckpointStore, Progress, prepare
from storage.checkpoint_compare import Comparison, Difference, DifferenceKind, compare
from storage.checkpoint_rows import BLOCK_COLUMNS
from storage.checkpoint_schema import (
    SCHEMA_VERSION,
    STEPS,
    CheckpointSchemaError,
    installed_version,
)
from tests.storage.builders import ROOT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.postgres_fixture import Chain

pytestmark = pytest.mark.postgres

START_US = 1_759_276_800_000_000
"""The first of October 2025."""
NARROWEST, WIDEST = 4096, 262144
"""Blocks of a partition, as `make_partitions` has them."""
RANGES: LiteralString = "SELECT first_index, end_index FROM bitnexus.partitions ORDER BY 1"


async def fetch(store: CheckpointStore, query: LiteralString) -> list[tuple[Any, ...]]:
    """Return the rows of a query."""
    return await (await store.connection.execute(query)).fetchall()


# Steps


async def install_version_1(store: CheckpointStore, chain: Chain) -> None:
    """Make the tables as the first version had them, and copy the chain as that did."""
    connection, tip = store.connection, chain.blocks[-1]
    async with connection.transaction(), connection.cursor() as cursor:
        await cursor.execute(STEPS[0].read_bytes())
        await cursor.execute(
            "INSERT INTO bitnexus.checkpoint (cluster_id, index, hash) VALUES (%s, %s, %s)",
            (chain.cluster_id, tip.index, tip.hash),
        )
        await checkpoint._copy_blocks(cursor, chain.blocks)
        await checkpoint._copy_transactions(cursor, chain.blocks)


@pytest.mark.asyncio
async def test_version_1_becomes_the_newest_with_its_rows(database: str, chain: Chain) -> None:
    """They stand in the first partition, equal to the chain; what follows goes into the next."""
    chain.grow(blocks=NARROWEST + 3, transactions=1)
    async with await CheckpointStore.connect(database, cluster_id=chain.cluster_id) as store:
        await install_version_1(store, chain)
        assert 1 == await installed_version(store.connection)
        last = chain.commit_index
        expected = Comparison(last, last, last + 1, last + 1, None)
        assert expected == await compare(store, chain, through=last)

        assert await store.try_lock()
        await store.ensure_schema()
        assert SCHEMA_VERSION == await installed_version(store.connection)
        assert expected == await compare(store, chain, through=last)
        chain.grow(blocks=1)
        await store.append(chain.blocks[-1:])
        assert [(0, last + 1), (last + 1, last + 1 + WIDEST)] == await fetch(store, RANGES)
        expected = Comparison(last + 1, last + 1, last + 2, last + 4, None)
        assert expected == await compare(store, chain, through=last + 1)


@pytest.mark.asyncio
async def test_a_row_planted_in_version_1_is_found_in_the_newest(
    database: str, chain: Chain
) -> None:
    """Rows that should not be there stand in no step's way, and are not taken for the chain's."""
    chain.grow(blocks=2)
    async with await CheckpointStore.connect(database, cluster_id=chain.cluster_id) as store:
        await install_version_1(store, chain)
        await store.connection.execute(
            "INSERT INTO bitnexus.transactions SELECT gen_random_uuid(), 9000, 0, user_id, kind,"
            " payload, raw FROM bitnexus.transactions WHERE block_index = 2 AND position = 0"
        )
        await store.ensure_schema()
        difference = (await compare(store, chain, through=2)).difference
    assert Difference(DifferenceKind.EXTRA, 9000, 0) == difference


@pytest.mark.asyncio
async def test_a_step_that_fails_changes_nothing(database: str, chain: Chain) -> None:
    """All that are due are one transaction: the version before stays as it was."""
    chain.grow(blocks=2)
    async with await CheckpointStore.connect(database, cluster_id=chain.cluster_id) as store:
        await install_version_1(store, chain)
        await store.connection.execute("CREATE TABLE bitnexus.partitions ()")
        with pytest.raises(errors.DuplicateTable):
            await store.ensure_schema()
        assert 1 == await installed_version(store.connection)
        assert Comparison(2, 2, 3, 7, None) == await compare(store, chain, through=2)


@pytest.mark.asyncio
async def test_of_two_that_migrate_at_once_one_does_it(database: str, chain: Chain) -> None:
    """The second waits for the lock and finds it done; neither fails."""
    chain.grow(blocks=2)
    async with (
        await CheckpointStore.connect(database, cluster_id=chain.cluster_id) as first,
        await CheckpointStore.connect(database, cluster_id=chain.cluster_id) as second,
    ):
        await install_version_1(first, chain)
        await asyncio.gather(first.ensure_schema(), second.ensure_schema())
        assert [(1,), (SCHEMA_VERSION,)] == await fetch(
            first, "SELECT version FROM bitnexus.schema_version ORDER BY 1"
        )
        assert Comparison(2, 2, 3, 7, None) == await compare(second, chain, through=2)


@pytest.mark.asyncio
async def test_nobody_migrates_while_another_has_the_lock(database: str, chain: Chain) -> None:
    """Whoever copies is not disturbed in the middle."""
    async with (
        await CheckpointStore.connect(database, cluster_id=chain.cluster_id) as writer,
        await CheckpointStore.connect(database, cluster_id=chain.cluster_id) as second,
    ):
        assert await writer.try_lock()
        await second.connection.execute("SET lock_timeout = '50ms'")
        with pytest.raises(errors.LockNotAvailable):
            await second.ensure_schema()
        assert await installed_version(writer.connection) is None


# Partitions


@pytest.mark.asyncio
async def test_rows_find_a_partition_made_in_their_own_transaction(
    store: CheckpointStore, chain: Chain
) -> None:
    """Where the rows are undone so is the partition, and the same append then goes through."""
    chain.grow(blocks=NARROWEST + 1, transactions=1)
    await store.append(chain.blocks[:NARROWEST])
    await store.connection.execute(
        "ALTER TABLE bitnexus.transactions ADD CONSTRAINT planted CHECK (block_index < 4097)"
    )
    with pytest.raises(CheckpointMismatchError, match="planted"):
        await store.append(chain.blocks[NARROWEST:])
    assert [(0, NARROWEST)] == await fetch(store, RANGES)
    await store.connection.execute("ALTER TABLE bitnexus.transactions DROP CONSTRAINT planted")
    await store.append(chain.blocks[NARROWEST:])
    assert [(0, NARROWEST), (NARROWEST, NARROWEST + WIDEST)] == await fetch(store, RANGES)
    assert [(NARROWEST,), (2,)] == await fetch(
        store, "SELECT count(*) FROM bitnexus.blocks GROUP BY tableoid ORDER BY 1 DESC"
    )


@pytest.mark.asyncio
async def test_a_partition_is_as_wide_as_the_blocks_before_suggest(store: CheckpointStore) -> None:
    """About ten million rows each, however full the blocks are, within bounds."""
    zeros = "decode(repeat('00', 32), 'hex')"
    values = {"index": "n", "nonce": "0", "timestamp_us": "n", "transaction_count": "500"}
    numbers = {"version": "1", "term": "1"}
    row = ", ".join((values | numbers).get(column, zeros) for column in BLOCK_COLUMNS)
    await store.connection.execute(
        f"INSERT INTO bitnexus.blocks ({', '.join(BLOCK_COLUMNS)})"  # noqa: S608 - our own names
        f" SELECT {row} FROM generate_series(0, {NARROWEST - 1}) AS n"
    )
    await fetch(store, f"SELECT bitnexus.make_partitions({NARROWEST})")
    assert [(0, NARROWEST), (NARROWEST, NARROWEST + 20_000)] == await fetch(store, RANGES)


@pytest.mark.asyncio
async def test_a_reader_holds_up_no_partition(
    store: CheckpointStore, database: str, chain: Chain
) -> None:
    """A long query, or `verify`, has every table open while the next partition is made."""
    await store.append(chain.blocks)
    async with await AsyncConnection.connect(database) as reader:
        await reader.execute("SELECT * FROM bitnexus.blocks, bitnexus.transactions")
        await store.connection.execute("SET lock_timeout = '50ms'")
        await fetch(store, f"SELECT bitnexus.make_partitions({NARROWEST})")
    assert 2 == len(await fetch(store, RANGES))


@pytest.mark.asyncio
async def test_no_partition_is_made_far_beyond_the_last(store: CheckpointStore) -> None:
    """Whoever may call it cannot fill the database with empty tables by one call."""
    with pytest.raises(errors.RaiseException, match="too far beyond"):
        await fetch(store, f"SELECT bitnexus.make_partitions({NARROWEST + WIDEST})")


# Queries


def readme_queries() -> list[str]:
    """The queries that people are told to use."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("\n## PostgreSQL\n")[1]
    return re.findall(r"```sql\n(.*?)```", text, re.DOTALL)


async def fill(store: CheckpointStore) -> None:
    """A block an hour with one transaction of one of 50 users, in the first two of three ranges.

    One of the users is Alice. The second range begins in the second half of March 2026.
    """
    zeros = "decode(repeat('00', 32), 'hex')"
    values = {"index": "n", "timestamp_us": f"{START_US} + n * 3600000000::bigint", "nonce": "0"}
    values |= dict.fromkeys(("version", "term", "transaction_count"), "1")
    row = ", ".join(values.get(column, zeros) for column in BLOCK_COLUMNS)
    script = f"""
        SELECT bitnexus.make_partitions({NARROWEST});
        SELECT bitnexus.make_partitions({NARROWEST + WIDEST});
        INSERT INTO bitnexus.blocks ({", ".join(BLOCK_COLUMNS)})
            SELECT {row} FROM generate_series(0, {2 * NARROWEST}) AS n;
        INSERT INTO bitnexus.transactions
            SELECT gen_random_uuid(), n, 0, CASE n % 50 WHEN 0 THEN 'alice' ELSE 'user' || n END,
                CASE n % 10 WHEN 0 THEN 'deposit' ELSE 'transfer' END, '{{"amount": 1}}', {zeros}
            FROM generate_series(0, {2 * NARROWEST}) AS n;
        ANALYZE;
    """  # noqa: S608 - our own names and numbers
    await store.connection.execute(script.encode())


def scans(plan: dict[str, Any]) -> Iterator[tuple[str, str | None]]:
    """Each table that was read in carrying out a plan, with the index it was read by."""
    if plan["Actual Loops"] == 0:
        return
    if "Relation Name" in plan:
        yield plan["Relation Name"], plan.get("Index Name")
    elif "Index Name" in plan:
        yield "", plan["Index Name"]
    for below in plan.get("Plans", ()):
        yield from scans(below)


async def read_by(store: CheckpointStore, query: str) -> tuple[set[str], set[str]]:
    """Carry out a query; the indexes it used, as those over all partitions, and its tables."""
    parents = dict(
        await fetch(
            store,
            "SELECT c.relname::text, p.relname::text FROM pg_inherits"
            " JOIN pg_class AS c ON c.oid = inhrelid JOIN pg_class AS p ON p.oid = inhparent",
        )
    )
    cursor = await store.connection.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {query}".encode())
    [(plan,)] = await cursor.fetchall()
    read = set(scans(plan[0]["Plan"]))
    return {parents[name] for _, name in read if name}, {table for table, _ in read if table}


@pytest.mark.asyncio
async def test_the_queries_of_the_readme_use_an_index_and_no_partition_in_vain(
    store: CheckpointStore,
) -> None:
    """A page of a history ends before the older ranges; a bounded time reads no other range."""
    await fill(store)
    found = [await read_by(store, query) for query in readme_queries()]
    every = {"transactions_0", "transactions_4096", "transactions_266240"}
    assert [
        ({"transactions_user_history"}, every - {"transactions_0"}),
        ({"transactions_id"}, every),
        ({"transactions_user_history", "blocks_pkey"}, {"transactions_0", "blocks_0"}),
        ({"transactions_kind_history"}, {"transactions_0"}),
        ({"blocks_pkey"}, {"blocks_0"}),
    ] == found


@pytest.mark.asyncio
async def test_a_block_is_found_by_its_time(store: CheckpointStore) -> None:
    """The first of that time or later, in whichever partition; beyond all where there is none."""
    await fill(store)
    query: LiteralString = """
        SELECT bitnexus.block_at(to_timestamp(0)), bitnexus.block_at(sealed_at),
            bitnexus.block_at(sealed_at + interval '1 microsecond'),
            bitnexus.block_at(sealed_at + interval '1 year')
        FROM bitnexus.blocks WHERE index = 5000
    """
    assert [(0, 5000, 5001, (1 << 63) - 1)] == await fetch(store, query)
    [(body,)] = await fetch(store, "SELECT prosrc FROM pg_proc WHERE proname = 'block_at'")
    indexes, _ = await read_by(store, body.replace("moment", "'2026-01-01 00:00+00'"))
    assert {"blocks_sealed_at"} == indexes


# Grants


@asynccontextmanager
async def as_node(database: str) -> AsyncIterator[str]:
    """A role that may copy and nothing else, while it lasts; its DSN."""
    with psycopg.connect(database, autocommit=True) as owner:
        owner.execute('CREATE ROLE "a node\'s" LOGIN')
        try:
            await prepare(database, role="a node's")
            yield f"{database} user='a node\\'s'"
        finally:
            owner.execute('DROP OWNED BY "a node\'s"')
            owner.execute('DROP ROLE "a node\'s"')


async def copy_all(dsn: str, chain: Chain) -> Checkpointer:
    """Run a checkpointer until all is copied, or an alarm is raised."""
    checkpointer = Checkpointer(dsn, chain, cluster_id=chain.cluster_id, random=Random(1))
    task = asyncio.create_task(checkpointer.run())
    async with asyncio.timeout(60):
        # Its attributes tell no event.
        while checkpointer.lag > 0 and checkpointer.alarm is None:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    return checkpointer


@pytest.mark.asyncio
async def test_a_role_that_may_only_add_rows_is_enough(database: str, chain: Chain) -> None:
    """It copies from genesis on, over the end of a partition, and reads all for a comparison."""
    chain.grow(blocks=NARROWEST + 1, transactions=1)
    last = chain.commit_index
    async with as_node(database) as dsn:
        checkpointer = await copy_all(dsn, chain)
        assert (None, last) == (checkpointer.alarm, checkpointer.checkpointed_index)
        async with await CheckpointStore.connect(dsn, cluster_id=chain.cluster_id) as store:
            expected = Comparison(last, last, last + 1, last + 1, None)
            assert expected == await compare(store, chain, through=last)
            with pytest.raises(errors.InsufficientPrivilege):
                await fetch(store, RANGES)


@pytest.mark.asyncio
async def test_such_a_role_changes_and_deletes_nothing(database: str, chain: Chain) -> None:
    """Neither in the tables nor in a partition, and it makes, changes and drops no table."""
    chain.grow(blocks=2)
    tables = ("blocks", "blocks_0", "transactions", "transactions_0", "partitions")
    forbidden = [
        f"{verb} bitnexus.{table}"
        for verb in ("DELETE FROM", "TRUNCATE")
        for table in (*tables, "checkpoint")
    ]
    forbidden += [f"DROP TABLE bitnexus.{table}" for table in (*tables, "schema_version")]
    forbidden += [
        "UPDATE bitnexus.blocks SET term = 2",
        "UPDATE bitnexus.transactions SET kind = 'gift'",
        "UPDATE bitnexus.transactions_0 SET kind = 'gift'",
        "UPDATE bitnexus.checkpoint SET cluster_id = hash",
        "UPDATE bitnexus.partitions SET made_at = now()",
        "INSERT INTO bitnexus.schema_version VALUES (3)",
        "INSERT INTO bitnexus.transactions_0 SELECT * FROM bitnexus.transactions",
        "CREATE TABLE bitnexus.mine ()",
        "ALTER TABLE bitnexus.blocks ADD COLUMN more text",
        "ALTER TABLE bitnexus.transactions DETACH PARTITION bitnexus.transactions_0",
        "CREATE TRIGGER t BEFORE INSERT ON bitnexus.blocks EXECUTE FUNCTION pg_notify()",
        "SELECT bitnexus.add_partition(4096, 4097)",
        "DROP FUNCTION bitnexus.block_at",
        "ALTER FUNCTION bitnexus.make_partitions SECURITY INVOKER",
    ]
    allowed = []
    async with as_node(database) as dsn:
        await copy_all(dsn, chain)
        async with await CheckpointStore.connect(dsn, cluster_id=chain.cluster_id) as store:
            for statement in forbidden:
                try:
                    await store.connection.execute(statement.encode())
                except errors.InsufficientPrivilege:
                    continue
                allowed.append(statement)
            assert [] == allowed
            assert Progress(2, chain.blocks[2].hash) == await store.progress()
            assert Comparison(2, 2, 3, 7, None) == await compare(store, chain, through=2)


@pytest.mark.asyncio
async def test_such_a_role_is_told_who_must_make_the_tables(database: str, chain: Chain) -> None:
    """Absent or of an older version: the alarm names the command."""
    async with as_node(database) as dsn:
        with psycopg.connect(database, autocommit=True) as owner:
            owner.execute("DROP SCHEMA bitnexus CASCADE")
        alarm = (await copy_all(dsn, chain)).alarm
        assert alarm is not None
        assert alarm.startswith("the tables are absent, and this role may not make version 2")
        assert "`bitnexus checkpoint prepare`" in alarm


@pytest.mark.asyncio
async def test_grants_need_a_role_that_they_can_bound(database: str) -> None:
    """An owner may do everything whatever is granted, and who is not there is made by a person."""
    with pytest.raises(CheckpointSchemaError, match="there is no role 'nobody'"):
        await prepare(database, role="nobody")
    with pytest.raises(CheckpointSchemaError, match="'postgres' owns the tables"):
        await prepare(database, role="postgres")
