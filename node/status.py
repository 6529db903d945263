"""What others see of a node: the cluster's status, and the blocks that the checkpointer copies.

Relies on the core's public state; changes nothing.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from node.outcomes import ClusterStatus, MemberStatus
from storage.errors import BlockNotFoundError

if TYPE_CHECKING:
    from collections import Counter

    from consensus.block import Block
    from consensus.membership import Member
    from consensus.raft import Raft
    from node.loop import MemberLoop
    from node.replica import Replica
    from node.transport import TransportCounters
    from storage.chain import ChainStore


def cluster_status(
    name: str, node: str, cluster_id: bytes, raft: Raft, alarms: tuple[str, ...]
) -> ClusterStatus:
    """The cluster called `name` as the member `node` sees it."""
    membership = raft.log.roster.latest
    leader = next((m.name for m in membership.members if m.public_key == raft.leader), None)
    commit_index = raft.log.commit_index
    return ClusterStatus(
        cluster_id=cluster_id,
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
    replica: Replica, loop_dropped: Counter[str], transport: TransportCounters
) -> dict[str, int]:
    """Counters and gauges of a running member, by name."""
    raft = replica.raft
    return {
        "term": raft.term,
        "is_leader": int(raft.leadership is not None),
        "last_index": raft.log.last_index,
        "commit_index": raft.log.commit_index,
        "applied_index": replica.applied_index,
        "transactions_applied_total": replica.transactions_applied,
        "blocks_sealed_total": replica.blocks_sealed,
        "transactions_queued": replica.queued,
        "transactions_waiting": replica.waiting,
        "peer_messages_dropped_total": (raft.dropped + replica.dropped + loop_dropped).total(),
        "peer_messages_sent_total": transport.sent,
        "peer_bytes_sent_total": transport.sent_bytes,
    }


class AppliedBlocks:
    """What the checkpointer copies: the blocks that this node has applied, read beside the loop."""

    def __init__(self, loop: MemberLoop, chain: ChainStore) -> None:
        """Reads `chain`, as far as `loop` has come."""
        self._loop = loop
        self._chain = chain

    @property
    def commit_index(self) -> int:
        """The last applied index."""
        return self._loop.applied_index

    async def wait_committed(self, beyond: int) -> int:
        """Waits until more than `beyond` is applied; how far that is."""
        return await self._loop.wait_applied(beyond)

    async def committed_blocks(self, first: int, max_bytes: int) -> list[Block]:
        """Applied blocks from `first`, about `max_bytes` but at least one.

        Raises:
            BlockNotFoundError: nothing is applied there.
        """
        count = self.commit_index - first + 1
        if count <= 0:
            raise BlockNotFoundError(first, self.commit_index)
        return await asyncio.to_thread(
            self._chain.blocks, first, max_blocks=count, max_bytes=max_bytes
        )
