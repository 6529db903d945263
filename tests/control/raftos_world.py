"""raftos in the simulator: its nodes behind our network and our nemesis, in virtual time, by seed.

The network, the nemesis, the profiles of faults and the trace are those of `cluster.simulation`, as
they are. Left out are only the faults that strike what raftos does not have or cannot be made to
feel here: a save it would wait for, a clock of its own, blocks to forge, a leader's first moment.
A crash is a power cut.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast
from unittest import mock

from cluster.simulation.clock import Clock
from cluster.simulation.events import EventQueue
from cluster.simulation.faults import MICROS_PER_SECOND, Fault, Scenario
from cluster.simulation.nemesis import Nemesis
from cluster.simulation.network import Network
from cluster.simulation.record import Trace
from consensus.ready import Role
from node.lane import Lane
from tests.control.raftos_history import History
from tests.control.raftos_node import Address, Disk, RaftosNode, id_of
from tests.control.raftos_watch import RaftosView, Watch
from tests.control.virtual_time import VirtualLoop

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from cluster.checker import Fate
    from cluster.simulation.machine import Machine
    from consensus.messages import MemberId
    from tests.control.raftos_watch import Finding

WRITE_BACK_US = 5 * MICROS_PER_SECOND
"""How often the kernel makes the files durable: kinder than Linux, which waits up to 30 s."""
SETTLE_S = 6
"""After the faults: some elections, of 0.75 to 2.25 s each."""
THINK_S = 0.3
FIRST_PORT = 7001
DATAGRAM_US = 2_000
"""What taking one datagram in costs a machine, file accesses included."""
INBOX = 64
"""How many datagrams a socket holds; what comes beyond that is lost. raftos' answers and appends
call forth each other: a follower that lags gets one more endless exchange with each heartbeat."""
FOR_RAFTOS = frozenset(
    {
        Fault.LOSS,
        Fault.DELAY,
        Fault.REORDER,
        Fault.DUPLICATE,
        Fault.REPLAY,
        Fault.CRASH_ONE,
        Fault.CRASH_MAJORITY,
        Fault.CRASH_ALL,
        Fault.PARTITION,
        Fault.ONE_WAY,
        Fault.LINK,
        Fault.FLAP,
        Fault.SWIZZLE,
        Fault.SLOW_NETWORK,
    }
)
NOT_FOR_RAFTOS = tuple(kind for kind in Fault if kind not in FOR_RAFTOS)


@dataclass(frozen=True, slots=True)
class Result:
    """What a run came to: what the checkers said, by rule, and how much there was to see."""

    trace_hash: str
    findings: dict[str, Finding]
    fates: Counter[Fate]
    elections: int
    faults: Counter[str]
    errors: Counter[str]
    """What raftos raised where nobody caught it, by type."""


def scenario(seed: int, profile: str, *, nodes: int = 3, seconds: float = 20.0) -> Scenario:
    """A scenario of the simulator's, as far as it can be played with raftos."""
    return Scenario(
        seed=seed, nodes=nodes, seconds=seconds, profile=profile, clients=1, without=NOT_FOR_RAFTOS
    )


def simulate(raftos: Any, scenario: Scenario, folder: Path) -> Result:
    """Let faults rage for the scenario's time, mend everything, and ask what is left."""
    world = _World(raftos, scenario, folder)
    with (
        mock.patch.object(raftos.state, "random", scenario.stream("raftos")),
        asyncio.Runner(loop_factory=world.make_loop) as runner,
    ):
        runner.run(world.run())
    return world.result()


class RaftosMachine:
    """A machine that runs raftos or is down; to the nemesis it is one like ours."""

    def __init__(self, number: int, world: _World, folder: Path) -> None:
        self.number = number
        self.name = f"node{number + 1}"
        self.member: MemberId = self.name.encode()
        self.address: Address = (self.name, FIRST_PORT + number)
        self.life = 0
        self.clock = Clock(world.queue)
        self.crash_at = None
        self.on_crash: Callable[[RaftosMachine], None] = lambda _machine: None
        self.replica: RaftosNode | None = None
        self.view: RaftosView | None = None
        self._world = world
        self._busy_until_us = 0
        self.disk = Disk(folder / self.name)

    @property
    def running(self) -> RaftosMachine:
        """The nemesis asks `machine.running.raft` for the leadership."""
        return self

    @property
    def raft(self) -> RaftosView:
        """What the checkers see; the machine must be up."""
        assert self.view is not None, f"{self.name} is down"
        return self.view

    def start(self) -> None:
        """Boot from the disk. It stays down where raftos cannot read its own log."""
        assert self.replica is None, f"{self.name} runs already"
        self.life += 1
        world = self._world
        others = tuple(other.address for other in world.machines if other is not self)
        try:
            node = RaftosNode(
                world.raftos,
                address=self.address,
                others=others,
                folder=self.disk.folder,
                carry=self._carry,
            )
        except ValueError as error:
            world.watch.note("a log reads back", f"{self.name}: {error}")
            return
        node.start()
        self.replica, self.view = node, RaftosView(node.state)

    def crash(self, why: str) -> None:
        """The power is cut."""
        assert self.replica is not None, f"{self.name} is down"
        self._world.trace.event(self._world.queue.now_us, self.name, why.encode())
        self.replica.stop()
        self.replica = self.view = None
        self.life += 1
        self.disk.cut_power()
        self.on_crash(self)

    def write_back(self) -> None:
        """The kernel makes the files durable, again and again."""
        self.disk.write_back()
        self._world.queue.after(WRITE_BACK_US, self.write_back)

    def receive(self, source: RaftosMachine, raw: bytes) -> None:
        """A datagram arrives at the socket of the process that runs now, and waits its turn."""
        queue = self._world.queue
        start_us = max(queue.now_us, self._busy_until_us)
        if self.replica is None or start_us > queue.now_us + INBOX * DATAGRAM_US:
            return
        self._busy_until_us = start_us + DATAGRAM_US
        queue.at(self._busy_until_us, partial(self._take_in, self.replica, source, raw))

    def wake_up(self) -> None:
        """It is never paused."""

    def hint_reachable(self, peer: MemberId) -> None:
        """UDP tells nobody."""

    def hint_unreachable(self, peer: MemberId) -> None:
        """UDP tells nobody."""

    def _take_in(self, process: RaftosNode, source: RaftosMachine, raw: bytes) -> None:
        self._world.trace.event(self._world.queue.now_us, self.name, raw)
        asyncio.get_running_loop().call_soon(process.receive, source.address, raw)

    def _carry(self, destination: Address, raw: bytes) -> None:
        world = self._world
        target = destination[1] - FIRST_PORT
        message = world.raftos.config.serializer.unpack(raw)
        world.watch.leaves(id_of(self.address), id_of(destination), message)
        world.network.send(self.number, target, Lane.CONTROL, raw)


class _World:
    """Everything there is, made from a scenario."""

    def __init__(self, raftos: Any, scenario: Scenario, folder: Path) -> None:
        self.raftos = raftos
        self.scenario = scenario
        self.queue = EventQueue()
        self.trace = Trace()
        self.watch = Watch(lambda: self.queue.now_us)
        self.network = Network(
            queue=self.queue, trace=self.trace, scenario=scenario, deliver=self._deliver
        )
        self.machines = [RaftosMachine(number, self, folder) for number in range(scenario.nodes)]
        self.nemesis = Nemesis(
            scenario=scenario,
            queue=self.queue,
            trace=self.trace,
            network=self.network,
            machines=cast("Sequence[Machine]", self.machines),
            on_strike=lambda: None,
        )
        self.history = History(lambda: self.queue.now_us)
        self._errors: Counter[str] = Counter()

    def make_loop(self) -> VirtualLoop:
        """The loop of this world."""
        loop = VirtualLoop(self.queue, self._look)
        loop.set_exception_handler(self._on_error)
        return loop

    async def run(self) -> None:
        """The whole course."""
        for machine in self.machines:
            machine.start()
            self.queue.after(WRITE_BACK_US, machine.write_back)
        clients = [
            asyncio.create_task(self._client(number)) for number in range(self.scenario.clients)
        ]
        await asyncio.sleep(self.scenario.seconds)
        self.nemesis.stop()
        for client in clients:
            client.cancel()
        await asyncio.sleep(SETTLE_S)
        self.watch.check_history(self.history.writes, self._kept())

    def result(self) -> Result:
        """What there is to say."""
        return Result(
            trace_hash=self.trace.digest,
            findings=self.watch.findings,
            fates=Counter(write.fate for write in self.history.writes),
            elections=self.watch.elections,
            faults=self.trace.faults,
            errors=self._errors,
        )

    def _views(self) -> list[RaftosView]:
        return [machine.view for machine in self.machines if machine.view is not None]

    def _look(self) -> None:
        self.watch.look(self._views())

    def _deliver(self, source: int, target: int, raw: bytes) -> None:
        self.machines[target].receive(self.machines[source], raw)

    def _on_error(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """As with any asyncio program, what a callback raises is told and forgotten."""
        self._errors[type(context.get("exception")).__name__] += 1

    def _kept(self) -> RaftosView | None:
        """Whose log counts in the end: the leader's, and all of it, or the most up to date.

        raftos often cannot commit again what it committed once. That is not called lost here.
        """
        views = self._views()
        leaders = [view for view in views if view.role is Role.LEADER]
        if leaders:
            return max(leaders, key=lambda view: view.term)
        return max(views, key=lambda view: (view.log.last_term, view.log.last_index), default=None)

    async def _client(self, number: int) -> None:
        """Write one thing after another wherever somebody says that he leads."""
        random = self.scenario.stream(f"client {number}")
        while True:
            await asyncio.sleep(random.uniform(0.0, THINK_S))
            leaders = [
                m for m in self.machines if m.view is not None and m.raft.role is Role.LEADER
            ]
            if leaders:
                machine = random.choice(leaders)
                assert machine.replica is not None, "leaders run"
                await self.history.write(machine.replica, machine.raft, client=number)
