"""`bitnexus verify` of chains whose members changed: on disk, told by nodes, and in PostgreSQL."""

from __future__ import annotations

import asyncio
from contextlib import closing
from typing import TYPE_CHECKING

import psycopg
import pytest

from consensus.changes import ChangeKind
from consensus.membership import dump_genesis, genesis_of
from consensus.ready import HardState
from node.cli_errors import ExitCode
from storage.chain import ChainStore
from storage.checkpoint import CheckpointStore
from storage.rows import encode_changes
from tests.node.cli_stage import run, serving
from tests.node.fake_ledger import FakeNode
from tests.postgres_fixture import database, postgres
from tests.storage.chain_folder import edit
from tests.storage.society import Society

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["database", "postgres"]


@pytest.fixture
def society() -> Society:
    """Three members, of whom the second was replaced by a fourth."""
    society = Society(3)
    society.record()
    society.change(ChangeKind.REMOVE, 2)
    society.change(ChangeKind.ADD, 4)
    society.record()
    return society


def folder_of(society: Society, folder: Path) -> Path:
    """A node's data folder with the society's blocks, all committed."""
    (folder / "genesis.json").write_text(dump_genesis(genesis_of(society.genesis)))
    store = ChainStore.open(folder / "chain", genesis=society.genesis, reserve_bytes=0)
    with closing(store) as chain:
        state = HardState(society.tip.term, None, society.tip.index)
        chain.save(hard_state=state, truncate_from=None, blocks=society.blocks[1:])
    return folder


def node_of(society: Society) -> FakeNode:
    """A node that tells the society's blocks."""
    node = FakeNode()
    node.cluster_id = society.genesis.hash
    node.blocks = list(society.blocks)
    return node


MEMBERS = "members: n1, n3, n4 (learner); changed in blocks 2 (remove n2), 3 (add n4) of"


def test_the_members_of_a_chain_on_disk_are_shown(tmp_path: Path, society: Society) -> None:
    """Who they are at its end, and where that changed."""
    result = run("verify", "--data-dir", folder_of(society, tmp_path))
    assert (0, "") == (result.code, result.stderr)
    assert f"{MEMBERS} {tmp_path / 'chain'}" in result.stdout.splitlines()
    assert "BREAK" not in result.stdout


def test_the_members_that_a_node_tells_are_followed(society: Society) -> None:
    """The same over HTTP; a break is shown there, too."""
    society.change(ChangeKind.RECOVER, 3, by=3, term=2)
    with serving(node_of(society)) as (url,):
        result = run("verify", "--node", url)
        document = run("verify", "--node", url, "--json").document
    assert (0, "") == (result.code, result.stderr)
    assert f"BREAK AT BLOCK 5 of {url}: at 2025-" in result.stdout
    (verdict,) = document["verdicts"]
    assert ["remove", "add", "recover"] == [change["kind"] for change in verdict["changes"]]


def test_a_forged_change_that_a_node_tells_is_named(society: Society) -> None:
    """A member signed it, and it is unlawful all the same."""
    society.seal([society.change_bytes(ChangeKind.RECOVER, 3)], by=1)
    with serving(node_of(society)) as (url,):
        result = run("verify", "--node", url)
    assert ExitCode.VERIFY_FAILED == result.code
    assert result.error.startswith(f"{url}: block 5: membership: ")


def test_a_list_of_changes_that_lacks_one_is_named(tmp_path: Path, society: Society) -> None:
    """With a digest that fits, so that the store itself cannot tell."""
    folder = folder_of(society, tmp_path)
    edit(folder / "chain", "meta", b"changes", lambda _: encode_changes([2]))
    result = run("verify", "--data-dir", folder)
    assert ExitCode.VERIFY_FAILED == result.code
    assert "block 3: membership: the store's list of changes lacks this block" in result.error


@pytest.mark.postgres
def test_changes_are_compared_in_postgresql(
    tmp_path: Path, society: Society, database: str
) -> None:
    """They are rows as all others; one that was tampered with is named by its block."""

    async def checkpoint() -> None:
        cluster_id = society.genesis.hash
        async with await CheckpointStore.connect(database, cluster_id=cluster_id) as store:
            assert await store.try_lock()
            await store.ensure_schema()
            await store.append(society.blocks)

    asyncio.run(checkpoint())
    folder = folder_of(society, tmp_path)
    assert 0 == run("verify", "--data-dir", folder, "--postgres", database).code
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "UPDATE bitnexus.transactions SET user_id = 'eve' WHERE kind = 'membership'"
            " AND block_index = 3"
        )
    result = run("verify", "--data-dir", folder, "--postgres", database)
    assert ExitCode.VERIFY_FAILED == result.code
    assert "PostgreSQL: block 3: " in result.error
