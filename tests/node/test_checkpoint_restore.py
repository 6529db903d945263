"""`bitnexus checkpoint restore`: a data folder from PostgreSQL's rows alone, every byte of it."""

from __future__ import annotations

import asyncio
import signal
from hashlib import sha256
from typing import TYPE_CHECKING

import msgspec
import psycopg
import pytest

from consensus.block import encode_transaction
from consensus.changes import ChangeKind
from node.cli_errors import ExitCode
from node.config import load_config
from node.identity import is_unused
from storage.checkpoint import CheckpointStore, _copy_blocks, _copy_transactions
from tests.node.archive_stage import NEW_NODE, bytes_of, chain_of, interrupt
from tests.node.cli_stage import run
from tests.storage.society import Society

if TYPE_CHECKING:
    from pathlib import Path

    from consensus.block import Block
    from tests.node.cli_stage import Result

pytestmark = pytest.mark.postgres

BLOCKS = 60
BAD = 30
PAYLOADS: tuple[object, ...] = (
    {"b": [1, -1, 2**63, None, True], "a": 1e300},
    "Grüße\n",
    -(2**63),
    0.1,
    {},
    [],
)
"""What JSON does not give back as it was: the bytes must come from elsewhere."""


@pytest.fixture(scope="module")
def society() -> Society:
    """A chain with changes of the members, empty blocks, and payloads of all kinds."""
    society = Society(3)
    for number in range(1, BLOCKS - 1):
        raws = [
            encode_transaction(
                transaction_id=society.random.randbytes(16),
                user_id=f"Zoë {number}",
                kind="note",
                payload=payload,
            )
            for payload in PAYLOADS[: number % (len(PAYLOADS) + 1)]
        ]
        society.seal(raws, by=number % 3 + 1, term=1 + number // 20)
    society.change(ChangeKind.REMOVE, 3, term=9)
    society.change(ChangeKind.ADD, 4, term=9)
    return society


@pytest.fixture
def filled(database: str, society: Society) -> str:
    """A database with checkpoints of the chain; its DSN."""

    async def fill() -> None:
        async with await CheckpointStore.connect(
            database, cluster_id=society.genesis.hash
        ) as store:
            await store.ensure_schema()
            await store.append(society.blocks)

    asyncio.run(fill())
    return database


def restore(folder: Path, dsn: str, *options: object) -> Result:
    """Run it."""
    arguments = ("--postgres", dsn, "--data-dir", folder, *NEW_NODE)
    return run("checkpoint", "restore", *arguments, *options)


def test_the_chain_comes_back_byte_for_byte(tmp_path: Path, filled: str, society: Society) -> None:
    """In a folder that a new node can run on; the database then agrees with it."""
    result = restore(tmp_path / "n7", filled, "--json")
    assert (0, "", BLOCKS, society.tip.hash.hex()) == (
        result.code,
        result.stderr,
        result.document["through"],
        result.document["hash"],
    )
    assert bytes_of(society.blocks) == chain_of(tmp_path / "n7")
    assert is_unused(load_config(tmp_path / "n7").identity_file)
    assert 0 == run("verify", "--data-dir", tmp_path / "n7", "--postgres", filled).code


def test_what_the_cursor_counts_comes_back(tmp_path: Path, filled: str, society: Society) -> None:
    """Rows beyond the cursor were never checkpoints; they are left where they are."""
    with psycopg.connect(filled, autocommit=True) as connection:
        connection.execute(
            "UPDATE bitnexus.checkpoint SET index = %s, hash = %s",
            (BLOCKS - 5, society.blocks[BLOCKS - 5].hash),
        )
    assert 0 == restore(tmp_path / "n7", filled).code
    assert bytes_of(society.blocks[: BLOCKS - 4]) == chain_of(tmp_path / "n7")


CHANGES = {
    "transaction": "UPDATE bitnexus.transactions SET raw = set_byte(raw, 40, 1 # get_byte(raw, 40))"
    " WHERE block_index = 30 AND position = 1",
    "transaction gone": "DELETE FROM bitnexus.transactions WHERE block_index = 30 AND position = 0",
    "transactions swapped": "UPDATE bitnexus.transactions SET position = position + 100"
    " WHERE block_index = 30 AND position = 0",
    "transaction planted": "INSERT INTO bitnexus.transactions SELECT gen_random_uuid(), 30, 99,"
    " user_id, kind, payload, raw FROM bitnexus.transactions WHERE block_index = 31 LIMIT 1",
    "block gone": "DELETE FROM bitnexus.blocks WHERE index = 30",
    "block and its transactions gone": "WITH gone AS (DELETE FROM bitnexus.transactions"
    " WHERE block_index = 30) DELETE FROM bitnexus.blocks WHERE index = 30",
    "hash": "UPDATE bitnexus.blocks SET hash = set_byte(hash, 0, 1 # get_byte(hash, 0))"
    " WHERE index = 30",
    "signature": "UPDATE bitnexus.blocks SET signature ="
    " set_byte(signature, 0, 1 # get_byte(signature, 0)) WHERE index = 30",
    "short signature": "UPDATE bitnexus.blocks SET signature = 'x' WHERE index = 30",
    "term": "UPDATE bitnexus.blocks SET term = term + 1 WHERE index = 30",
    "negative term": "UPDATE bitnexus.blocks SET term = -1 WHERE index = 30",
    "nonce": "UPDATE bitnexus.blocks SET nonce = 18446744073709551616 WHERE index = 30",
    "time": "UPDATE bitnexus.blocks SET timestamp_us = timestamp_us + 1 WHERE index = 30",
    "sealer": "UPDATE bitnexus.blocks SET sealer = set_byte(sealer, 0, 1 # get_byte(sealer, 0))"
    " WHERE index = 30",
    "history": "UPDATE bitnexus.blocks SET history_root ="
    " set_byte(history_root, 0, 1 # get_byte(history_root, 0)) WHERE index = 30",
}
"""What is done to the rows of block 30."""


def test_a_changed_row_is_refused_with_its_block(
    tmp_path: Path, filled: str, society: Society
) -> None:
    """Whatever it is that was changed, nothing is made."""
    named = {}
    for name, statement in CHANGES.items():
        execute(filled, statement)
        result = restore(tmp_path / "n7", filled)
        named[name] = (result.code, result.error.split(": ")[:2])
        asyncio.run(repair(filled, society.blocks[BAD]))
    expected = (ExitCode.VERIFY_FAILED, ["PostgreSQL does not hold", f"block {BAD}"])
    assert dict.fromkeys(CHANGES, expected) == named
    assert [] == list(tmp_path.iterdir())


def execute(dsn: str, statement: str, *values: object) -> None:
    """Change some rows behind the back of the checkpoints."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        assert connection.execute(statement.encode(), values or None).rowcount > 0


async def repair(dsn: str, block: Block) -> None:
    """Put the rows of a block back."""
    async with (
        await psycopg.AsyncConnection.connect(dsn) as connection,
        connection.cursor() as cursor,
    ):
        await cursor.execute("DELETE FROM bitnexus.blocks WHERE index = %s", (block.index,))
        await cursor.execute(
            "DELETE FROM bitnexus.transactions WHERE block_index = %s", (block.index,)
        )
        await _copy_blocks(cursor, [block])
        await _copy_transactions(cursor, [block])


def test_a_forger_who_makes_the_hash_anew_lacks_the_signature(
    tmp_path: Path, filled: str, society: Society
) -> None:
    """What the row says of itself is true, and no member has signed it."""
    header = msgspec.structs.replace(society.blocks[BAD].header, nonce=1)
    forged = sha256(msgspec.msgpack.encode(header)).digest()
    execute(filled, "UPDATE bitnexus.blocks SET nonce = 1, hash = %s WHERE index = 30", forged)
    result = restore(tmp_path / "n7", filled)
    assert (ExitCode.VERIFY_FAILED, True) == (result.code, "block 30: signature: " in result.error)


def test_the_last_block_must_be_the_one_that_the_cursor_names(tmp_path: Path, filled: str) -> None:
    """A tail that was cut off together with its rows would not show otherwise."""
    execute(filled, "UPDATE bitnexus.checkpoint SET index = index - 1")
    result = restore(tmp_path / "n7", filled)
    assert (ExitCode.VERIFY_FAILED, True) == (result.code, f"block {BLOCKS - 1}: " in result.error)
    execute(filled, "UPDATE bitnexus.checkpoint SET index = index + 2")
    result = restore(tmp_path / "n7", filled)
    assert f"PostgreSQL does not hold: block {BLOCKS + 1}: is missing" == result.error


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_restore_leaves_no_folder(
    tmp_path: Path, filled: str, society: Society, number: signal.Signals
) -> None:
    """Nothing stands at its place; the same command then makes all of it."""
    arguments = ("--postgres", filled, "--data-dir", tmp_path / "n7", *NEW_NODE)
    code = interrupt(number, "checkpoint", "restore", *arguments)
    assert code == (ExitCode.INTERRUPTED if number is signal.SIGINT else -signal.SIGKILL)
    assert not (tmp_path / "n7").exists()
    assert 0 == restore(tmp_path / "n7", filled).code
    assert bytes_of(society.blocks) == chain_of(tmp_path / "n7")
    assert ExitCode.ALREADY_THERE == restore(tmp_path / "n7", filled).code
    assert ["n7"] == [entry.name for entry in tmp_path.iterdir()]


def test_a_database_without_checkpoints_is_told_so(tmp_path: Path, database: str) -> None:
    """Nor is a password told where it cannot be reached."""
    result = restore(tmp_path / "n7", database)
    assert (ExitCode.POSTGRES, "PostgreSQL: the database holds no checkpoints") == (
        result.code,
        result.error,
    )
    result = restore(tmp_path / "n7", f"host={tmp_path} user=u password=secret dbname=d")
    assert (ExitCode.POSTGRES, False) == (result.code, "secret" in result.error)
    assert [] == list(tmp_path.iterdir())


def test_another_cluster_than_the_one_meant_is_refused(tmp_path: Path, filled: str) -> None:
    """The rows are consistent whoever wrote them."""
    result = restore(tmp_path / "n7", filled, "--cluster-id", "ab" * 32)
    assert (ExitCode.OTHER_CLUSTER, False) == (result.code, (tmp_path / "n7").exists())
