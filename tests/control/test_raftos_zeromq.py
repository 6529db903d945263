"""raftos behind our real ZeroMQ sockets: it works there, and the checkers see what it breaks.

Three nodes in one loop, each with a `node.transport.Transport` of its own in place of its UDP
socket. What raftos draws by lot, how long it waits for a leader, is given by the test, so that who
stands for election and when is a script. Nothing sleeps: each step waits for what it needs to see.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
import pytest_asyncio

from cluster.checker import Fate
from consensus.ready import Role
from node.lane import Lane
from tests.control.raftos_history import History
from tests.control.raftos_node import Address, Disk, RaftosNode, id_of
from tests.control.raftos_watch import RaftosView, Watch
from tests.node.transport_members import Member, soon, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from consensus.messages import MemberId

pytestmark = [pytest.mark.control, pytest.mark.asyncio]

AT_ONCE_S = 0.02
NEVER_S = 3_600.0
PATIENT_LEADERS = 1_000
"""A leader does without answers for so many heartbeats: no busy machine deposes it."""
LAST_WORD = b"nothing follows"


class Lots:
    """raftos' `random`: the next to draw waits that long, everybody else for ever."""

    def __init__(self) -> None:
        self.next_s = NEVER_S

    def uniform(self, _low: float, _high: float) -> float:
        """Seconds without a leader after which a node stands for election, or gives up."""
        drawn_s, self.next_s = self.next_s, NEVER_S
        return drawn_s


class Station(Member):
    """One machine: a transport that stays, and a raftos that starts and stops."""

    def __init__(self, number: int, cluster: Cluster, folder: Path) -> None:
        super().__init__()
        self.raft_address: Address = ("node", number)
        self.disk = Disk(folder / str(number))
        self.view: RaftosView | None = None
        self._node: RaftosNode | None = None
        self._cluster = cluster

    def start(self, *, stands_after_s: float = NEVER_S) -> None:
        """Start raftos on what is on the disk; so long does it wait for a leader."""
        cluster = self._cluster
        cluster.lots.next_s = stands_after_s
        self._node = RaftosNode(
            cluster.raftos,
            address=self.raft_address,
            others=tuple(each.raft_address for each in cluster.stations if each is not self),
            folder=self.disk.folder,
            carry=self._carry,
        )
        self._node.start()
        self.view = RaftosView(self._node.state)

    def stop(self) -> None:
        """Kill raftos; what it wrote is in its files."""
        if self._node is not None:
            self._node.stop()
        self._node = self.view = None

    def cut_power(self) -> None:
        """Kill it and everything that was not written back."""
        self.stop()
        self.disk.cut_power()

    def leads(self) -> bool:
        """Whether it thinks so."""
        return self.view is not None and self.view.role is Role.LEADER

    def holds(self, names: set[str]) -> bool:
        """Whether all of these are in its state machine."""
        assert self._node is not None, "it runs"
        machine = self._node.state.state_machine
        return all(machine.exists(name) for name in names)

    async def write(self) -> None:
        """A client writes something new here, and raftos says that it is committed."""
        assert self._node is not None, "it runs"
        assert self.view is not None, "it runs"
        write = await self._cluster.history.write(self._node, self.view)
        assert Fate.ACKNOWLEDGED == write.fate

    def on_message(self, member: MemberId, payload: bytes) -> None:
        """A peer's message goes to raftos, or while it does not run into the inbox."""
        if self._node is None:
            super().on_message(member, payload)
        else:
            self._node.receive(self._cluster.by_member[member].raft_address, payload)

    def _carry(self, destination: Address, raw: bytes) -> None:
        message = self._cluster.raftos.config.serializer.unpack(raw)
        self._cluster.watch.leaves(id_of(self.raft_address), id_of(destination), message)
        self.transport.send(self._cluster.by_address[destination].id, Lane.CONTROL, raw)


class Cluster:
    """Three stations, all connected, and everything that looks at them."""

    def __init__(self, raftos: Any, lots: Lots, folder: Path) -> None:
        self.raftos = raftos
        self.lots = lots
        self.watch = Watch(self._now_us)
        self.history = History(self._now_us)
        self.stations = [Station(number, self, folder) for number in (1, 2, 3)]
        self.by_member = {station.id: station for station in self.stations}
        self.by_address = {station.raft_address: station for station in self.stations}

    async def connect(self) -> None:
        """Start every transport, and wait until everyone is connected to everyone."""
        for station in self.stations:
            await station.transport.start()
        for station in self.stations:
            station.meet(*(each for each in self.stations if each is not station))
        for station in self.stations:
            assert {each.id for each in self.stations} - {station.id} == {
                await soon(station.ups.get()) for _ in range(2)
            }

    async def close(self) -> None:
        """End everything; no transport may have failed."""
        for station in self.stations:
            station.stop()
            await station.transport.close()
        for station in self.stations:
            station.nothing_failed()

    async def see(self, condition: Callable[[], bool]) -> None:
        """Let the loop go round until the condition holds, with the checkers looking every time."""

        def look_and_ask() -> bool:
            self.look()
            return condition()

        await until(look_and_ask)

    def look(self) -> None:
        """The checkers look at every node that runs."""
        self.watch.look(station.view for station in self.stations if station.view is not None)

    @staticmethod
    async def drain(source: Station, *targets: Station) -> None:
        """Wait until everything that `source` sent has arrived at targets that do not run."""
        for target in targets:
            assert source.send(target, LAST_WORD)
            while (source.id, LAST_WORD) != await soon(target.inbox.get()):
                pass

    @staticmethod
    def _now_us() -> int:
        return int(asyncio.get_running_loop().time() * 1_000_000)


@pytest_asyncio.fixture
async def cluster(raftos: Any, tmp_path: Path) -> AsyncIterator[Cluster]:
    """Three connected stations; raftos does not run yet."""
    lots = Lots()
    made = Cluster(raftos, lots, tmp_path)
    with (
        mock.patch.object(raftos.state, "random", lots),
        mock.patch.object(raftos.config, "step_down_missed_heartbeats", PATIENT_LEADERS),
    ):
        try:
            await made.connect()
            yield made
        finally:
            await made.close()


async def test_three_nodes_elect_and_replicate_over_zeromq(cluster: Cluster) -> None:
    """It works behind our sockets, and the checkers find nothing."""
    first, second, third = cluster.stations
    second.start()
    third.start()
    first.start(stands_after_s=AT_ONCE_S)
    await cluster.see(first.leads)

    for _ in range(7):
        await first.write()
    names = {f"entry {number}" for number in range(7)}
    await cluster.see(lambda: all(station.holds(names) for station in cluster.stations))

    cluster.watch.check_history(cluster.history.writes, first.view)
    assert {} == cluster.watch.findings


async def test_a_restart_over_zeromq_makes_two_leaders_in_one_term(cluster: Cluster) -> None:
    """The voter that elected one leader starts again, forgets that, and elects another."""
    first, voter, second = cluster.stations
    voter.start()
    first.start(stands_after_s=AT_ONCE_S)
    await cluster.see(first.leads)
    first.stop()
    voter.stop()
    await cluster.drain(first, voter, second)

    voter.start()
    second.start(stands_after_s=AT_ONCE_S)
    await cluster.see(second.leads)

    found = {finding.rule: finding.detail for finding in cluster.watch.findings.values()}
    assert {
        "a vote is kept": "node:2 voted for node:1 and node:3 in term 1",
        "Election Safety": "two leaders in term 1",
    } == found


async def test_a_power_cut_over_zeromq_loses_what_was_acknowledged(cluster: Cluster) -> None:
    """Two of three acknowledge, and lose it with everything else that nobody synced."""
    first, second, third = cluster.stations
    second.start()
    first.start(stands_after_s=AT_ONCE_S)
    await cluster.see(first.leads)
    for _ in range(3):
        await first.write()
    cluster.look()
    first.cut_power()
    second.cut_power()
    await cluster.drain(first, second, third)
    await cluster.drain(second, first)

    second.start()
    third.start()
    first.start(stands_after_s=AT_ONCE_S)
    await cluster.see(first.leads)

    cluster.watch.check_history(cluster.history.writes, first.view)
    assert {"acknowledged means present"} == set(cluster.watch.findings)
