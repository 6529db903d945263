"""Members of a real cluster come, go, fail, move and come back: real sockets and real disks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from consensus.changes import ChangeError, ChangeRefusal
from tests.cluster.member_stage import CHANGE_S, Load, Town, key_of, says_removed, until, voters
from tests.node.real_nodes import free_ports

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio]


async def test_members_join_die_are_replaced_and_leave(tmp_path: Path) -> None:
    """A cluster outlives its first members one by one, under load, and loses nothing."""
    async with Town(tmp_path) as town:
        await town.start()
        async with Load(town) as load:
            # A fourth learns, and votes by itself once it has caught up.
            await town.join("node4")
            assert 4 == len(voters(town.nodes["node4"]))
        # With one of four down, nothing is committed without the new one.
        leader = await town.leader()
        dead = next(name for name in ("node1", "node2", "node3") if name != leader)
        dead_key = key_of(town.nodes[dead])
        await town.stop(dead)
        await load.record()
        # The dead one is replaced.
        await town.change(lambda admin: admin.remove(dead, timeout_s=CHANGE_S))
        async with Load(town, receipts=load.receipts):
            await town.join("node5")
        assert dead_key not in voters(town.nodes["node5"])
        # It was down when it was removed: it learns that, says so, and disturbs nobody.
        await town.start(dead)
        removed = town.nodes.pop(dead)
        try:
            await until(removed, says_removed)
            assert await town.stays_quiet()
            with pytest.raises(ChangeError) as refused:
                await town.nodes[await town.leader()].administration.add(
                    removed._standing.member(removed._raft.log), timeout_s=CHANGE_S
                )
            assert ChangeRefusal.FORMER_MEMBER is refused.value.reason
        finally:
            await removed.stop()
        await _lead_and_leave(town, load)
        await town.check(load.receipts)


async def _lead_and_leave(town: Town, load: Load) -> None:
    """The newest member leads when asked to, removes itself, and is quiet from then on."""
    old = town.nodes[await town.leader()]
    if old is not town.nodes["node5"]:
        assert "node5" == await old.administration.transfer_leadership("node5", timeout_s=CHANGE_S)
    await load.record()
    await town.change(lambda admin: admin.remove("node5", timeout_s=CHANGE_S))
    gone = town.nodes.pop("node5")
    try:
        await town.leader()
        await load.record()
        assert await town.stays_quiet()
        await until(gone, says_removed)
    finally:
        await gone.stop()


async def test_who_was_down_during_everything_and_has_moved_catches_up(tmp_path: Path) -> None:
    """A member comes back at another port, after changes that it knows nothing of."""
    async with Town(tmp_path) as town:
        await town.start()
        load = Load(town)
        leader = await town.leader()
        away = next(name for name in town.nodes if name != leader)
        await town.stop(away)
        await town.join("node4")
        peer = f"127.0.0.1:{free_ports(1)[0]}"
        await town.change(lambda admin: admin.move(away, peer=peer, http=None, timeout_s=CHANGE_S))
        await load.record()
        town.bind(away, peer)
        await town.start(away)
        height = await town.same_height()
        assert voters(town.nodes[away]) == voters(town.nodes["node4"])
        # It is one of the majority again: with another one down, nothing is recorded without it.
        await town.stop(next(name for name in town.nodes if name not in {away, "node4"}))
        await load.record()
        assert await town.same_height() > height
        await town.check(load.receipts)
