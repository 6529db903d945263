"""A cluster of real nodes in the test's own process, whose members come, go, fail and come back.

Waits are for events of the nodes' own loops, bounded by PATIENCE_S. Relies on real nodes.
"""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self

from consensus.block import transaction_id
from consensus.changes import ChangeError, ChangeRefusal
from node.cli_init import Introduction, NewNode, init_node
from node.cli_restore import make_restored, open_backup
from node.config import NodeConfig, load_config
from node.outcomes import NodeFailedError, RefusedError
from node.server import Node
from node.standing import Invitation, load_standing
from tests.node.real_nodes import cluster_folders, free_ports

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable
    from pathlib import Path
    from types import TracebackType

    from consensus.membership import Member
    from node.administration import Administration, MadeChange
    from node.outcomes import Receipt

PATIENCE_S: Final = 20.0
CHANGE_S: Final = 5.0
QUIET_S: Final = 1.3
"""Two election timeouts: whoever meant to disturb the others would have done so."""
_LATER: Final = frozenset(
    {
        ChangeRefusal.NOT_LEADER,
        ChangeRefusal.NO_COMMIT_IN_TERM,
        ChangeRefusal.CHANGE_UNDER_WAY,
        ChangeRefusal.TRANSFER_UNDER_WAY,
        ChangeRefusal.NO_QUORUM,
    }
)
"""Refusals that pass: a leader was just elected, or has not heard from all yet."""


class Town:
    """The nodes that run, by name, and the folders of all."""

    def __init__(self, base: Path, size: int = 3) -> None:
        """Folders for `size` first members; nothing runs."""
        self._base = base
        base.mkdir(exist_ok=True)
        self.configs = {config.name: config for config in cluster_folders(base, size)}
        self.nodes: dict[str, Node] = {}

    async def start(self, *names: str) -> None:
        """Start nodes, all first members without names."""

        async def start_one(name: str) -> None:
            node = Node(self.configs[name])
            await node.start()
            self.nodes[name] = node

        async with asyncio.TaskGroup() as group:
            for name in names or tuple(self.configs):
                group.create_task(start_one(name))

    async def stop(self, *names: str) -> None:
        """Stop nodes gracefully."""
        for name in names:
            await self.nodes.pop(name).stop()

    def invite(self, name: str, backup: Path | None = None) -> Member:
        """Make the folder of a node that joins, from what a running node knows; its member.

        With a backup its chain begins with the backup's blocks.
        """
        asked = next(iter(self.nodes.values()))
        status = asked.status()
        peer, http = free_ports(2)
        new = NewNode(
            data_dir=self._base / name,
            name=name,
            peer=f"127.0.0.1:{peer}",
            http=f"127.0.0.1:{http}",
        )
        genesis = load_standing(asked.config).genesis
        members = tuple(one.member for one in status.members)
        invitation = Invitation(status.incarnation, status.commit_index, members)
        cluster = Introduction(genesis, invitation)
        if backup is None:
            member = init_node(new, cluster)
        else:
            member = make_restored(new, open_backup(backup), cluster).member
        self.configs[name] = load_config(new.data_dir)
        return member

    def bind(self, name: str, peer: str) -> None:
        """Have a node listen at another address from its next start on."""
        config = self.configs[name]
        self.configs[name] = NodeConfig(
            data_dir=config.data_dir, name=name, http_port=0, peer_bind=peer
        )

    async def join(self, name: str, backup: Path | None = None) -> None:
        """A new node runs, is added, and is waited for until it votes."""
        member = self.invite(name, backup)
        await self.start(name)
        await self.change(lambda admin: admin.add(member, timeout_s=CHANGE_S))
        await until(self.nodes[name], lambda node: member.public_key in voters(node))

    async def change(self, work: Callable[[Administration], Awaitable[MadeChange]]) -> MadeChange:
        """Make a change at whoever leads, as soon as it may be made."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                node = self.nodes[await self.leader()]
                try:
                    return await work(node.administration)
                except ChangeError as error:
                    if error.reason not in _LATER:
                        raise
                # A heartbeat's time, in which nothing need happen that could be waited for.
                await asyncio.sleep(node.config.heartbeat_ms / 1_000)

    async def leader(self) -> str:
        """The running node that leads, as soon as there is one."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                for name, node in self.nodes.items():
                    if node._raft.leadership is not None:
                        return name
                await first_of(node._loop.wait_leader_news() for node in self.nodes.values())

    async def stays_quiet(self) -> bool:
        """Whether nobody hears of another leader for a while, and no term rises."""
        terms = {name: node._raft.term for name, node in self.nodes.items()}
        try:
            async with asyncio.timeout(QUIET_S):
                await first_of(node._loop.wait_leader_news() for node in self.nodes.values())
        except TimeoutError:
            return terms == {name: node._raft.term for name, node in self.nodes.items()}
        return False

    async def same_height(self) -> int:
        """Wait until every running node has applied what a barrier covers; how far that is."""
        leader = self.nodes[await self.leader()]
        index = await leader.read_barrier(timeout_s=PATIENCE_S)
        for node in self.nodes.values():
            await until(node, lambda node: node.applied_index >= index)
        return index

    async def check(self, receipts: dict[bytes, Receipt]) -> None:
        """Every node has the same chain, in which every receipt is true and no id is twice."""
        index = await self.same_height()
        chains = [
            [(await node.block(number)).encode() for number in range(index + 1)]
            for node in self.nodes.values()
        ]
        assert all(chains[0] == chain for chain in chains)
        found: dict[bytes, tuple[int, int]] = {}
        for number in range(1, index + 1):
            block = await next(iter(self.nodes.values())).block(number)
            for position, raw in enumerate(block.transactions):
                assert transaction_id(raw) not in found
                found[transaction_id(raw)] = (number, position)
        assert {one.id: (one.index, one.position) for one in receipts.values()} == {
            key: found[key] for key in receipts
        }

    async def __aenter__(self) -> Self:
        """Nothing runs yet."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop everything, all at once: nobody is left to hand over to."""
        async with asyncio.TaskGroup() as group:
            for node in self.nodes.values():
                group.create_task(node.stop())


async def until(node: Node, holds: Callable[[Node], bool]) -> None:
    """Wait until something holds at a node that comes with its blocks."""
    async with asyncio.timeout(PATIENCE_S):
        while not holds(node):
            await node._loop.wait_applied(node.applied_index)


def says_removed(node: Node) -> bool:
    """Whether a node's status tells a person that it was removed."""
    return any(alarm.startswith("REMOVED: ") for alarm in node.status().alarms)


def voters(node: Node) -> frozenset[bytes]:
    """Who votes, as far as a node knows."""
    return node.administration.membership.voters


def key_of(node: Node) -> bytes:
    """A node's key."""
    return node._raft.member


async def first_of(events: Iterable[Coroutine[None, None, None]]) -> None:
    """Wait for the first of several events."""
    tasks = [asyncio.ensure_future(event) for event in events]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


@dataclass
class Load:
    """Transactions recorded all the while at whichever nodes run, each retried until it is."""

    town: Town
    workers: int = 4
    receipts: dict[bytes, Receipt] = field(default_factory=dict)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _stopped: bool = False

    async def _work(self, number: int) -> None:
        while not self._stopped:
            await self.record(number)

    async def record(self, number: int = 0) -> None:
        """Record one transaction, whatever happens meanwhile."""
        wanted = uuid.uuid4()
        async with asyncio.timeout(PATIENCE_S):
            while True:
                nodes = list(self.town.nodes.values())
                node = nodes[(len(self.receipts) + number) % len(nodes)]
                try:
                    receipt = await node.record_transaction(
                        user_id=f"user{number}",
                        kind="note",
                        payload=number,
                        transaction_id=wanted,
                        timeout_s=2.0,
                    )
                except (RefusedError, NodeFailedError):
                    await asyncio.sleep(0)  # a node that has stopped refuses at once
                    continue
                self.receipts[wanted.bytes] = receipt
                return

    async def __aenter__(self) -> Self:
        """Begin."""
        self._tasks = [asyncio.create_task(self._work(n)) for n in range(self.workers)]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End with the transactions under way, recorded."""
        self._stopped = True
        if error is not None:
            for task in self._tasks:
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=error is not None)
