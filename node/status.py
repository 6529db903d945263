"""What others see of a node: the cluster's status, and the blocks that the checkpointer copies.

Relies on the core's public state; changes nothing.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Protocol

from node.outcomes import ClusterStatus, MemberStatus
from storage.errors import BlockNotFoundError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from consensus.block import Block
    from consensus.membership import Member
    from consensus.raft import Raft
    from node.loop import MemberLoop
    from node.replica import Replica
    from node.transport import TransportCounters
    from storage.contract import Chain


def cluster_status(
    name: str,
    node: str,
    raft: Raft,
    *,
    cluster_id: bytes,
    incarnation: bytes,
    alarms: tuple[str, ...],
) -> ClusterStatus:
    """The cluster called `name` as the member `node` sees it."""
    membership = raft.log.roster.latest
    leader = next((m.name for m in membership.members if m.public_key == raft.leader), None)
    commit_index = raft.log.commit_index
    return ClusterStatus(
        cluster_id=cluster_id,
        incarnation=incarnation,
        name=name,
        node=node,
        role=raft.role.value,
        leader=leader,
        term=raft.term,
        last_index=raft.log.last_index,
        commit_index=commit_index,
        applied_index=raft.log.applied_index,
        catching_up_to=raft.fetch_through if raft.fetch_through > commit_index else None,
        members=tuple(_member_status(member, raft) for member in membership.members),
        alarms=alarms,
    )


def _member_status(member: Member, raft: Raft) -> MemberStatus:
    match_index = None
    if raft.leadership is not None:
        progress = raft.leadership.followers.get(member.public_key)
        match_index = progress.match_index if progress else raft.log.saved_index
    if member.public_key in raft.log.roster.latest.learners:
        role = "learner"
    else:
        role = "leader" if member.public_key == raft.leader else "follower"
    return MemberStatus(member, role, match_index)


def node_metrics(
    replica: Replica, loop: MemberLoop, transport: TransportCounters
) -> dict[str, int]:
    """Counters and gauges of a running member, by name.

    `loop_stall_worst_us` is of the time since this was last asked for: it is for one reader.
    """
    raft = replica.raft
    return {
        "term": raft.term,
        "is_leader": int(raft.leadership is not None),
        "last_index": raft.log.last_index,
        "commit_index": raft.log.commit_index,
        "applied_index": replica.applied_index,
        "transactions_applied_total": replica.transactions_applied,
        "blocks_sealed_total": replica.blocks_sealed,
        "transactions_queued": replica.load.queued,
        "transactions_waiting": replica.load.waiting,
        "peer_messages_dropped_total": (raft.dropped + replica.dropped + loop.dropped).total(),
        "loop_stall_worst_us": loop.take_worst_stall_us(),
        "peer_messages_sent_total": transport.sent,
        "peer_bytes_sent_total": transport.sent_bytes,
    }


class Applied(Protocol):
    """How far a member has applied its chain."""

    @property
    def applied_index(self) -> int:
        """The last index applied."""
        ...

    async def wait_applied(self, beyond: int) -> int:
        """Waits until more than `beyond` is applied; how far that is."""
        ...


class AppliedBlocks:
    """What the checkpointer copies: the blocks that this node has applied, read beside the loop."""

    def __init__(
        self,
        applied: Applied,
        chain: Chain,
        *,
        in_thread: Callable[
            [Callable[[], list[Block]]], Awaitable[list[Block]]
        ] = asyncio.to_thread,
    ) -> None:
        """Reads `chain` by `in_thread`, as far as `applied` has come."""
        self._applied = applied
        self._chain = chain
        self._in_thread = in_thread

    @property
    def commit_index(self) -> int:
        """The last applied index."""
        return self._applied.applied_index

    async def wait_committed(self, beyond: int) -> int:
        """Waits until more than `beyond` is applied; how far that is."""
        return await self._applied.wait_applied(beyond)

    async def committed_blocks(self, first: int, max_bytes: int) -> list[Block]:
        """Applied blocks from `first`, about `max_bytes` but at least one.

        Raises:
            BlockNotFoundError: nothing is applied there.
        """
        count = self.commit_index - first + 1
        if count <= 0:
            raise BlockNotFoundError(first, self.commit_index)
        return await self._in_thread(
            partial(self._chain.blocks, first, max_blocks=count, max_bytes=max_bytes)
        )
