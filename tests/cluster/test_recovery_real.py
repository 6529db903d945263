"""Nodes that lost their chain or their majority, with real sockets and real disks."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest

from consensus.changes import ChangeKind
from node.catchup import CatchUp
from node.outcomes import LostChainError
from node.server import Node
from tests.cluster.member_stage import CHANGE_S, Load, Town, until, voters
from tests.node.cli_stage import run
from tests.node.real_nodes import free_ports

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio]


async def test_a_node_whose_chain_is_gone_comes_back_as_a_new_one(tmp_path: Path) -> None:
    """It is refused under its old key; removed and made anew, it learns and votes again."""
    async with Town(tmp_path) as town:
        await town.start()
        load = Load(town)
        await load.record()
        leader = await town.leader()
        lost = next(name for name in town.nodes if name != leader)
        await town.stop(lost)
        shutil.rmtree(town.configs[lost].chain_dir)
        with pytest.raises(LostChainError, match=f"member remove {lost}"):
            await Node(town.configs[lost]).start()
        await town.change(lambda admin: admin.remove(lost, timeout_s=CHANGE_S))
        (town.configs[lost].data_dir).rename(tmp_path / "old")
        await town.join(lost)
        await load.record()
        assert 3 == len(voters(town.nodes[lost]))
        await town.check(load.receipts)


def recover(town: Town, name: str) -> None:
    """Have a stopped node go on alone."""
    folder = town.configs[name].data_dir
    (folder / "node.toml").write_text(f'name = "{name}"\nhttp_port = {free_ports(1)[0]}\n')
    result = run("node", "recover", "--unsafe", "--yes", "--data-dir", folder)
    assert (0, "") == (result.code, result.stderr)


async def test_one_of_three_goes_on_alone_and_the_others_cannot_interfere(tmp_path: Path) -> None:
    """It leads, others are added, and a majority that comes back after all changes nothing."""
    async with Town(tmp_path / "new") as town, Town(tmp_path / "old") as old:
        await town.start()
        load = Load(town)
        for _ in range(5):
            await load.record()
        await town.same_height()
        await town.stop(*list(town.nodes))
        recover(town, "node1")
        await town.start("node1")
        alone = town.nodes["node1"]
        await load.record()
        # The other two come back, elect a leader, and record in the incarnation given up.
        old.configs = {name: town.configs[name] for name in ("node2", "node3")}
        await old.start()
        others = Load(old)
        await others.record()
        assert await town.stays_quiet()
        assert alone._transport.counters.wrong_cluster > 0
        # They are known no longer; a new node joins what goes on.
        await town.join("node4")
        await load.record()
        assert {"node1", "node4"} == {
            member.name for member in alone.administration.membership.members
        }
        await town.check(load.receipts)
        for wanted in others.receipts:
            assert (await alone.receipt_status(wanted)).receipt is None
        assert town.nodes["node4"].status().incarnation == alone.status().incarnation
        assert alone.cluster_id != alone.status().incarnation
        folder = alone.config.data_dir
        await town.stop("node4", "node1")
    result = run("verify", "--data-dir", folder, "--json")
    assert (0, "") == (result.code, result.stderr)
    changes = result.document["verdicts"][0]["changes"]
    assert [ChangeKind.RECOVER, ChangeKind.ADD, ChangeKind.PROMOTE] == [
        change["kind"] for change in changes
    ]
    assert "BREAK AT BLOCK" in run("verify", "--data-dir", folder).stdout


def take_ten(
    catch_up: CatchUp, commit_index: int, max_bytes: int, *, take: Any = CatchUp.take
) -> Any:
    """Takes what has arrived, until some ten blocks are there."""
    return take(catch_up, commit_index, max_bytes) if commit_index < 10 else None


async def test_a_node_that_joins_may_restart_before_it_has_come_to_the_break(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its invitation says which incarnation it belongs to until its own chain does."""
    async with Town(tmp_path) as town:
        await town.start()
        load = Load(town)
        await town.join("node4")
        for _ in range(20):
            await load.record()
        height = await town.same_height()
        await town.stop(*list(town.nodes))
        recover(town, "node1")
        await town.start("node1")
        await load.record()
        assert await town.same_height() > height
        member = town.invite("node5")
        await town.change(lambda admin: admin.add(member, timeout_s=CHANGE_S))
        with monkeypatch.context() as patched:
            patched.setattr("node.catchup.MAX_RANGE_BLOCKS", 4)
            patched.setattr(CatchUp, "take", take_ten)
            half = Node(town.configs["node5"])
            await half.start()
            await until(half, lambda node: node.applied_index >= 10)
            await half.stop()
        # It knows of a change, but not of the break.
        roster = half._raft.log.roster
        assert (True, half.cluster_id) == (roster.latest_index > 0, roster.incarnation)
        await town.start("node5")
        await until(town.nodes["node5"], lambda node: member.public_key in voters(node))
        await town.check(load.receipts)
