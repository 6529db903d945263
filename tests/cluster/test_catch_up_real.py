"""A member that is far behind fetches from all who have the blocks, and the leader leads on."""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from node.fetching import Fetching
from node.server import Node
from tests.cluster.member_stage import Load, Town, key_of, until

if TYPE_CHECKING:
    from pathlib import Path

    from consensus.messages import BlocksReply, MemberId

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio]

BLOCKS = 400


async def test_far_behind_it_fetches_from_others_than_the_leader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is in the leader's memory; status says how far to go; nobody holds an election."""
    served: Counter[MemberId] = Counter()
    targets: set[int | None] = set()
    on_reply = Fetching.on_reply

    def noted(self: Fetching, source: MemberId, reply: BlocksReply, now_us: int) -> None:
        served[source] += len(reply.blocks)
        targets.add(behind.status().catching_up_to)
        on_reply(self, source, reply, now_us)

    async with Town(tmp_path) as town:
        await town.start()
        load = Load(town)
        leader = await town.leader()
        away = next(name for name in town.nodes if name != leader)
        await town.stop(away)
        for _ in range(BLOCKS):
            await load.record()
        await town.stop(*list(town.nodes))
        await town.start(*(name for name in town.configs if name != away))
        lead = town.nodes[await town.leader()]
        height, term = await lead.read_barrier(timeout_s=5), lead._raft.term
        monkeypatch.setattr(Fetching, "on_reply", noted)
        behind = Node(town.configs[away])
        await behind.start()
        town.nodes[away] = behind
        await until(behind, lambda node: node.applied_index >= height)
        elsewhere = served.total() - served[key_of(lead)]
        sys.stdout.write(f"{elsewhere} of {served.total()} blocks were not the leader's\n")
        assert elsewhere > BLOCKS // 2
        assert any(target is not None and target >= BLOCKS for target in targets)
        await load.record()
        await town.same_height()
        assert behind.status().catching_up_to is None
        assert (term, True) == (lead._raft.term, lead._raft.leadership is not None)
        await town.check(load.receipts)
