"""Backups of nodes that run, and clusters that come back from them, with real sockets and disks."""

from __future__ import annotations

import asyncio
import shutil
import sys
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from consensus.block import transaction_id
from node.config import load_config
from node.server import Node
from storage.chain import ChainStore
from storage.checkpoint import CheckpointStore
from tests.cluster.member_stage import PATIENCE_S, Load, Town, voters
from tests.node.archive_stage import NEW_NODE, chain_of
from tests.node.cli_stage import run
from tests.node.real_nodes import free_ports
from tests.postgres_fixture import database, postgres
from tests.storage.builders import ROOT

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from consensus.block import Block

__all__ = ["database", "postgres"]

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio]


async def bitnexus(*arguments: object) -> None:
    """Run a command as a process of its own: LMDB lets one process open a chain only once."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "cluster.cli", *map(str, arguments)),
        cwd=ROOT,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await process.communicate()
    assert (0, b"") == (process.returncode, errors)


async def test_a_backup_under_load_makes_a_member_that_fetches_only_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds all that was acknowledged before; the restored node votes and has the same chain."""
    saved: dict[Path, list[int]] = {}

    def save(store: ChainStore, *, save: Any = ChainStore.save, **what: Any) -> None:
        indexes = saved.setdefault(store._environment.path, [])
        indexes += [block.index for block in what["blocks"]]
        save(store, **what)

    async with Town(tmp_path / "town") as town:
        await town.start()
        async with Load(town) as load:
            for _ in range(100):
                await load.record()
            leader = await town.leader()
            follower = next(name for name in town.nodes if name != leader)
            await asked_for_backup(town, follower, tmp_path / "b")
        backup = chain_of(tmp_path / "b")
        monkeypatch.setattr(ChainStore, "save", save)
        await town.join("node4", tmp_path / "b")
        await load.record()
        node = town.nodes["node4"]
        indexes = saved[node.config.chain_dir]
        assert [*range(len(backup), len(backup) + len(indexes))] == indexes
        assert backup == [(await node.block(index)).encode() for index in range(len(backup))]
        await town.check(load.receipts)


async def asked_for_backup(town: Town, name: str, output: Path) -> None:
    """Back a running node up; what its disk knew to be committed must be in it."""
    node = town.nodes[name]
    before = node._chain.hard_state.commit_index
    await bitnexus("backup", "--data-dir", node.config.data_dir, "--output", output)
    assert len(chain_of(output)) > before > 0
    assert node.applied_index > before


@pytest.fixture
def checkpointed(monkeypatch: pytest.MonkeyPatch) -> asyncio.Queue[int]:
    """How far PostgreSQL has come, each time it has."""
    queue: asyncio.Queue[int] = asyncio.Queue()

    async def append(
        store: CheckpointStore, blocks: Sequence[Block], *, append: Any = CheckpointStore.append
    ) -> None:
        await append(store, blocks)
        queue.put_nowait(blocks[-1].index)

    monkeypatch.setattr(CheckpointStore, "append", append)
    return queue


@pytest.mark.postgres
async def test_a_cluster_that_lost_every_chain_goes_on_from_postgresql_and_one_key(
    tmp_path: Path, database: str, checkpointed: asyncio.Queue[int]
) -> None:
    """Nothing that was checkpointed is lost, and the old members' keys are of no use any more."""
    async with Town(tmp_path / "town") as town:
        config = town.configs["node1"]
        town.configs["node1"] = msgspec.structs.replace(config, postgres_dsn=database)
        await town.start()
        load = Load(town)
        for _ in range(10):
            await load.record()
        height = await town.same_height()
        async with asyncio.timeout(PATIENCE_S):
            while await checkpointed.get() < height:
                pass
        await town.stop(*list(town.nodes))
        chain = chain_of(config.data_dir)[: height + 1]
        for lost in town.configs.values():
            shutil.rmtree(lost.chain_dir)
        restored = tmp_path / "n7"
        arguments = ("--data-dir", restored, *NEW_NODE)
        await bitnexus("checkpoint", "restore", "--postgres", database, *arguments)
        assert chain == chain_of(restored)[: height + 1]
        await reads_alone(restored, load)
        assert 0 == run("backup", "--data-dir", restored, "--output", tmp_path / "b").code
        text = f'name = "node1"\nhttp_port = {free_ports(1)[0]}\n'
        (config.data_dir / "node.toml").write_text(text)
        source = ("--data-dir", config.data_dir, "--from-backup", tmp_path / "b")
        assert 0 == run("node", "recover", "--unsafe", "--yes", *source).code
        town.configs["node1"] = config
        await town.start("node1")
        await load.record()
        await town.join("node5", tmp_path / "b")
        await load.record()
        assert 2 == len(voters(town.nodes["node1"]))
        await town.check(load.receipts)


async def reads_alone(folder: Path, load: Load) -> None:
    """A restored node without a cluster answers what its chain has, and leads nothing."""
    async with Node(load_config(folder)) as node:
        height = len(load.receipts)
        rows = await node.history("user0", after=None, limit=height, newest_first=False)
        assert [*load.receipts] == [transaction_id(row.transaction) for row in rows]
        assert node.status().leader is None
