"""The comparison of PostgreSQL with the chain finds what was planted, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, LiteralString

import pytest
from psycopg.sql import SQL, Identifier

from storage.checkpoint import CheckpointStore, Progress
from storage.checkpoint_compare import Comparison, Difference, DifferenceKind, compare
from storage.checkpoint_schema import CheckpointSchemaError

if TYPE_CHECKING:
    from tests.postgres_fixture import Chain

pytestmark = pytest.mark.postgres

CHANGED, EXTRA, MISSING = DifferenceKind.CHANGED, DifferenceKind.EXTRA, DifferenceKind.MISSING

ODD_PAYLOADS = [
    None,
    True,
    0,
    -(1 << 63),
    (1 << 64) - 1,
    1.0,
    -0.0,
    0.1,
    1e15,
    1e16,
    1e19,
    1e22,
    1e300,
    1.7976931348623157e308,
    5e-324,
    -2.5e-7,
    "",
    '\u0001 \\u0000 \\ " / \u2028 \U0001f600',
    [],
    {},
    {"": {"b": [1, [2.0, [None, False]]], "a": "ä", "aa": "Ä", "B": 1e20}},
    ["x" * 60_000],
    [{"n": n} for n in range(300)],
]


@pytest.mark.asyncio
async def test_every_payload_a_transaction_may_hold_is_stored(
    store: CheckpointStore, chain: Chain
) -> None:
    """Limits of numbers, odd text and deep nesting reach jsonb and compare equal."""
    chain.add([chain.transaction(payload) for payload in ODD_PAYLOADS])
    await store.append(chain.blocks)
    expected = Comparison(1, 1, 2, 1 + len(ODD_PAYLOADS), None)
    assert expected == await compare(store, chain, through=1)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("column", "changed"),
    [
        ("id", "gen_random_uuid()"),
        ("user_id", "user_id || ' '"),
        ("kind", "'gift'"),
        ("raw", "raw || '\\x00'"),
        ("raw", "set_byte(raw, 30, 0)"),
        ("payload", """payload || '{"amount": 7}'"""),
        ("payload", """payload || '{"amount": "1"}'"""),
        ("payload", """payload || '{"amount": true}'"""),  # true == 1 in Python
        ("payload", """payload || '{"amount": 1.0}'"""),  # 1.0 == 1 in Python
        ("payload", """payload || '{"more": null}'"""),
        ("payload", "payload - 'memo'"),
        ("payload", "'[]'"),
        ("payload", "repeat('9', 9000)::jsonb"),  # more digits than json reads
        ("payload", "(repeat('[', 6000) || repeat(']', 6000))::jsonb"),  # deeper than json reads
    ],
)
async def test_a_changed_column_of_a_transaction_is_named(
    store: CheckpointStore, chain: Chain, column: LiteralString, changed: LiteralString
) -> None:
    """Each column is derived anew from the bytes in the chain."""
    chain.grow(blocks=4)
    await store.append(chain.blocks)
    query = SQL("UPDATE bitnexus.transactions SET {} = {} WHERE block_index = 2 AND position = 1")
    await store.connection.execute(query.format(Identifier(column), SQL(changed)))
    difference = (await compare(store, chain, through=4)).difference
    assert Difference(CHANGED, 2, 1, column) == difference
    assert f"block 2, transaction 1: changed in column {column}" == str(difference)


NUMBERS = ("version", "term", "transaction_count", "timestamp_us", "nonce")
HASHES = ("cluster_id", "previous_hash", "transactions_root", "history_root", "sealer", "hash")


@pytest.mark.asyncio
@pytest.mark.parametrize("column", [*NUMBERS, *HASHES, "signature"])
async def test_a_changed_column_of_a_block_is_named(
    store: CheckpointStore, chain: Chain, column: str
) -> None:
    """Every field of the header, the hash and the signature."""
    chain.grow(blocks=4)
    await store.append(chain.blocks)
    changed = SQL("{0} + 1") if column in NUMBERS else SQL("{0} || '\\x00'")
    query = SQL("UPDATE bitnexus.blocks SET {} = {} WHERE index = 4")
    name = Identifier(column)
    await store.connection.execute(query.format(name, changed.format(name)))
    assert (
        Difference(CHANGED, 4, None, column) == (await compare(store, chain, through=4)).difference
    )


@pytest.mark.asyncio
async def test_a_derived_time_is_compared_too(store: CheckpointStore, chain: Chain) -> None:
    """No UPDATE reaches it, but whoever owns the tables may derive it in another way."""
    chain.grow(blocks=2)
    await store.append(chain.blocks)
    await store.connection.execute(
        "ALTER TABLE bitnexus.blocks ALTER COLUMN sealed_at SET EXPRESSION AS"
        " (timestamptz '2020-01-01 00:00:00+00')"
    )
    difference = (await compare(store, chain, through=2)).difference
    assert Difference(CHANGED, 0, None, "sealed_at") == difference


COPY_OF_A_ROW: LiteralString = """
    INSERT INTO bitnexus.transactions
    SELECT gen_random_uuid(), {}, {}, user_id, kind, payload, raw
    FROM bitnexus.transactions WHERE block_index = 2 AND position = 2
"""


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("block_index", "position"), [(2, 3), (2, -1), (4, 3), (5, 0), (7, 0), (-1, 0)]
)
async def test_an_extra_transaction_is_named(
    store: CheckpointStore, chain: Chain, block_index: int, position: int
) -> None:
    """In the middle, at the end of a block, and where no block is."""
    chain.grow(blocks=4)
    await store.append(chain.blocks)
    await store.connection.execute(SQL(COPY_OF_A_ROW).format(block_index, position))
    difference = (await compare(store, chain, through=4)).difference
    assert Difference(EXTRA, block_index, position) == difference


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("plant", "difference"),
    [
        (
            "DELETE FROM bitnexus.transactions WHERE block_index = 3 AND position = 2",
            Difference(MISSING, 3, 2),
        ),
        (
            "DELETE FROM bitnexus.transactions WHERE block_index = 4 AND position = 1",
            Difference(MISSING, 4, 1),
        ),
        (
            "UPDATE bitnexus.transactions SET position = 9 WHERE block_index = 3 AND position = 2",
            Difference(MISSING, 3, 2),
        ),
        ("DELETE FROM bitnexus.blocks WHERE index = 3", Difference(MISSING, 3, None)),
        ("UPDATE bitnexus.blocks SET index = 5 WHERE index = 4", Difference(MISSING, 4, None)),
        ("UPDATE bitnexus.blocks SET index = -1 WHERE index = 3", Difference(EXTRA, -1, None)),
        (
            "UPDATE bitnexus.checkpoint SET hash = decode(repeat('ab', 32), 'hex')",
            Difference(CHANGED, 4, None, "checkpoint.hash"),
        ),
        (
            "UPDATE bitnexus.checkpoint SET index = 3",
            Difference(CHANGED, 3, None, "checkpoint.hash"),
        ),
        (
            """
            UPDATE bitnexus.checkpoint
            SET index = 3, hash = (SELECT hash FROM bitnexus.blocks WHERE index = 3)
            """,
            Difference(EXTRA, 4, None),
        ),
    ],
)
async def test_the_first_wrong_row_is_named(
    store: CheckpointStore, chain: Chain, plant: LiteralString, difference: Difference
) -> None:
    """Missing and extra rows, and a progress that is not where the rows end."""
    chain.grow(blocks=4)
    await store.append(chain.blocks)
    assert (await compare(store, chain, through=4)).difference is None
    await store.connection.execute(plant)
    assert difference == (await compare(store, chain, through=4)).difference


@pytest.mark.asyncio
async def test_compare_covers_what_both_sides_have(store: CheckpointStore, chain: Chain) -> None:
    """A chain that is behind, or ahead of PostgreSQL, is compared as far as both go."""
    chain.grow(blocks=4)
    await store.append(chain.blocks)
    heard: list[int] = []
    shorter = await compare(store, chain, through=2, on_block=heard.append)
    assert Comparison(2, 4, 3, 7, None) == shorter
    assert [0, 1, 2] == heard
    chain.grow(blocks=4)
    assert Comparison(4, 4, 5, 13, None) == await compare(store, chain, through=8)


@pytest.mark.asyncio
async def test_compare_reads_more_rows_than_it_holds(store: CheckpointStore, chain: Chain) -> None:
    """Rows come in several fetches, and blocks in several reads, without a seam."""
    chain.grow(blocks=5, transactions=400)
    await store.append(chain.blocks)
    assert Comparison(5, 5, 6, 2001, None) == await compare(store, chain, through=5)


@pytest.mark.asyncio
async def test_compare_without_tables_is_an_error(database: str, chain: Chain) -> None:
    """No checkpoints at all are not the same as equal ones."""
    async with await CheckpointStore.connect(database, cluster_id=chain.cluster_id) as store:
        with pytest.raises(CheckpointSchemaError, match="no checkpoints"):
            await compare(store, chain, through=0)


@pytest.mark.asyncio
async def test_rows_without_any_progress_are_extra(store: CheckpointStore, chain: Chain) -> None:
    """Whatever stands in tables that nothing was copied to was planted."""
    await store.append(chain.blocks)
    await store.connection.execute("UPDATE bitnexus.checkpoint SET index = -1")
    difference = (await compare(store, chain, through=0)).difference
    assert Difference(EXTRA, 0, None) == difference
    assert "block 0: extra" == str(difference)


class BusyStore(CheckpointStore):
    """A store beside which another writer commits between any two reads."""

    writer: CheckpointStore
    chain: Chain

    async def progress(self) -> Progress | None:
        """Let the writer go on as soon as the progress is read."""
        found = await super().progress()
        self.chain.grow(blocks=1)
        await self.writer.append(self.chain.blocks[-1:])
        return found


@pytest.mark.asyncio
async def test_compare_sees_one_moment(store: CheckpointStore, database: str, chain: Chain) -> None:
    """What is copied meanwhile is neither missing nor extra."""
    chain.grow(blocks=3)
    await store.append(chain.blocks)
    async with await BusyStore.connect(database, cluster_id=chain.cluster_id) as busy:
        busy.writer, busy.chain = store, chain
        assert Comparison(3, 3, 4, 10, None) == await compare(busy, chain, through=9)
