"""The administrative calls of a real node, alone in its cluster, and of one that does not lead."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from nacl.signing import SigningKey

from consensus.changes import ChangeError, ChangeRefusal, Membership
from consensus.membership import Member
from node.administration import Administration
from node.server import Node
from tests.node.real_nodes import cluster_folders

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from pathlib import Path

KEY = bytes(SigningKey(b"4" * 32).verify_key)
NODE4 = Member("node4", KEY, "127.0.0.1:1", "127.0.0.1:1")


async def refusal(call: Awaitable[object]) -> tuple[ChangeRefusal, str]:
    """The reason and the words with which a call is refused."""
    with pytest.raises(ChangeError) as caught:
        await call
    return caught.value.reason, caught.value.detail


@pytest.mark.asyncio
async def test_a_change_is_answered_by_the_block_that_records_it(tmp_path: Path) -> None:
    """The members after it are those of the block, and of the node's status."""
    async with Node(cluster_folders(tmp_path, 1)[0]) as node:
        await node.read_barrier(timeout_s=5)
        calls = node.administration
        added = await calls.add(NODE4, timeout_s=5)
        assert added.block_hash == (await node.block(added.index)).hash
        assert [("node1", "leader"), ("node4", "learner")] == [
            (one.member.name, one.role) for one in node.status().members
        ]
        moved = await calls.move("node4", peer=None, http="127.0.0.1:2", timeout_s=5)
        after = Member("node4", KEY, "127.0.0.1:1", "127.0.0.1:2")
        assert (added.index + 1, after) == (moved.index, moved.membership.named("node4"))
        removed = await calls.remove("node4", timeout_s=5)
        assert ["node1"] == [one.name for one in removed.membership.members]


@pytest.mark.asyncio
async def test_a_refusal_says_whose_a_name_or_an_address_is(tmp_path: Path) -> None:
    """Rather than the place in a list of members that nobody sees."""
    async with Node(cluster_folders(tmp_path, 1)[0]) as node:
        await node.read_barrier(timeout_s=5)
        calls = node.administration
        await calls.add(NODE4, timeout_s=5)
        own = node.status().members[0].member
        for taken, what in (
            (NODE4, "name"),
            (Member("node5", KEY, "h:1", "h:1"), "public_key"),
            (Member("node5", bytes(32), "127.0.0.1:1", "h:1"), "peer"),
            (Member("node5", bytes(32), "127.0.0.1:3", "127.0.0.1:1"), "http"),
        ):
            expected = (ChangeRefusal.INVALID, f"{what}: is that of the member node4")
            assert expected == await refusal(calls.add(taken, timeout_s=5))
        assert (ChangeRefusal.INVALID, "peer: is that of the member node1") == await refusal(
            calls.move("node4", peer=own.peer, http=None, timeout_s=5)
        )
        assert (ChangeRefusal.INVALID, "http: is that of the member node1") == await refusal(
            calls.move("node4", peer=None, http=own.http, timeout_s=5)
        )


@pytest.mark.asyncio
async def test_a_follower_judges_nothing() -> None:
    """Its chain may be behind: a member that it does not know may be one all the same."""
    log = SimpleNamespace(roster=SimpleNamespace(latest=Membership((NODE4,))))
    replica = SimpleNamespace(raft=SimpleNamespace(leadership=None, log=log))
    calls = Administration(cast("Any", None), cast("Any", replica))
    for call in (
        calls.add(NODE4, timeout_s=1),
        calls.promote("node9", timeout_s=1),
        calls.remove("node9", timeout_s=1),
        calls.move("node9", peer="h:1", http=None, timeout_s=1),
        calls.transfer_leadership("node9", timeout_s=1),
    ):
        assert ChangeRefusal.NOT_LEADER is (await refusal(call))[0]
