"""Clients that submit and read at any node, lose patience, try elsewhere, and reuse their ids.

Each does one thing after another and writes down when it asked and what it heard, for
`cluster.checker`. Answers are also shown to the watch at the moment the node makes them. Relies on
the shipped `Submission` and on a machine's read barrier.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from cluster.checker import Fate, Read, Row, Write
from cluster.simulation.faults import MICROS_PER_SECOND, Fault
from cluster.simulation.watch import Page
from consensus.block import encode_transaction, transaction_id
from node.outcomes import Receipt, Refusal, RefusalReason, Wait
from node.submissions import Submission
from storage.errors import DamagedBlockError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cluster.checker import Operation
    from cluster.simulation.events import EventQueue
    from cluster.simulation.faults import Scenario
    from cluster.simulation.machine import Machine
    from cluster.simulation.network import Network
    from cluster.simulation.record import Trace
    from cluster.simulation.watch import Watch
    from node.outcomes import Outcome
    from storage.recent import Place

USERS: Final = ("ada", "bob", "eve")
THINK_S: Final = 0.7
BURST_THINK_S: Final = 0.04
BURST_US: Final = 1_200_000
CURIOSITY: Final = 0.3
"""How often who heard of a commit looks at once whether another node knows of it."""
"""Clients are busy while something has just gone wrong: that is when it can be seen."""
TRAVEL_US: Final = 300
MAX_TRIES: Final = 4
PROBE_AGAIN_US: Final = 100_000
MAX_BATCH: Final = 6
REMEMBERED: Final = 40
"""A reused id is one of the latest so many."""
PAGES: Final = (3, 1_000_000)
FURTHER: Final = 0.5
"""How often a reader goes on with another page, and asks after an id."""
LOCAL: Final = 0.3
"""How often it first reads what the node has, however far behind that is."""


class Clients:
    """All clients of one run, and the history of what they did."""

    def __init__(
        self,
        *,
        scenario: Scenario,
        queue: EventQueue,
        trace: Trace,
        network: Network,
        machines: Sequence[Machine],
        watch: Watch,
    ) -> None:
        self.history: list[Operation] = []
        self.probes_open = 0
        self._queue = queue
        self._trace = trace
        self._network = network
        self._machines = machines
        self._watch = watch
        self._random = scenario.stream("clients")
        self._losses = scenario.stream("lost answers")
        self._lost_answers = scenario.rates().get(Fault.LOST_ANSWER, 0.0)
        self._known: list[tuple[str, bytes]] = []
        self._stopped = False
        self._burst_until_us = 0
        for client in range(scenario.clients):
            self._think(client)

    def burst(self) -> None:
        """Something went wrong: those who are thinking act soon, and all are quick for a while."""
        self._burst_until_us = self._queue.now_us + BURST_US

    def stop(self) -> None:
        """Nobody begins anything new; what is under way goes on, and no answer is lost."""
        self._stopped = True
        self._lost_answers = 0.0

    # What a client does next

    def _think(self, client: int) -> None:
        think_s = BURST_THINK_S if self._queue.now_us < self._burst_until_us else THINK_S
        pause_us = int(self._random.expovariate(1 / think_s) * MICROS_PER_SECOND)
        self._queue.after(pause_us, partial(self._act, client))

    def _act(self, client: int) -> None:
        if self._stopped:
            return
        draw = self._random.random()
        machine = self._anyone()
        if draw < 0.4:  # noqa: PLR2004 - this and the following are shares of what clients do
            self._read(client, machine, self._random.choice(USERS))
        elif draw < 0.8:  # noqa: PLR2004 - see above
            self._write(client, machine, [self._fresh()])
        elif draw < 0.88:  # noqa: PLR2004 - see above
            size = self._random.randrange(2, MAX_BATCH)
            self._write(client, machine, [self._fresh() for _ in range(size)])
        else:
            self._write(client, machine, [self._reused()])

    def _anyone(self) -> Machine:
        """A node whose address clients know."""
        return self._random.choice([m for m in self._machines if m.in_service])

    def _fresh(self) -> tuple[str, bytes]:
        user = self._random.choice(USERS)
        wanted = self._random.randbytes(16)
        known = (user, _transaction(wanted, user, self._random.getrandbits(30)))
        self._known.append(known)
        del self._known[:-REMEMBERED]
        return known

    def _reused(self) -> tuple[str, bytes]:
        """An id that was used before: with its content, or with other content."""
        if not self._known:
            return self._fresh()
        user, raw = self._random.choice(self._known)
        if self._random.random() < 0.5:  # noqa: PLR2004 - half of the time
            self._trace.coverage["ids reused with the same content"] += 1
            return user, raw
        self._trace.coverage["ids reused with other content"] += 1
        return user, _transaction(transaction_id(raw), user, self._random.getrandbits(30))

    # Writing

    def _write(
        self, client: int, machine: Machine, offers: list[tuple[str, bytes]], tries: int = 1
    ) -> None:
        _Attempt(self, client, machine, offers, tries).begin()

    def written(self, attempt: _Attempt) -> None:
        """An attempt is over: try what is unknown elsewhere, or go on with something else."""
        unknown = [
            offer
            for offer, write in zip(attempt.offers, attempt.writes, strict=True)
            if write.fate is Fate.UNKNOWN
        ]
        if self._stopped or attempt.tries == MAX_TRIES:
            self._think(attempt.client)
            return
        if not unknown:
            if self._random.random() < CURIOSITY:
                machine = self._anyone()
                self._read(attempt.client, machine, attempt.offers[0][0])
            else:
                self._think(attempt.client)
            return
        self._trace.coverage["retries elsewhere"] += 1
        again = partial(
            self._write,
            attempt.client,
            self._anyone(),
            unknown,
            attempt.tries + 1,
        )
        self._queue.after(20_000, again)

    def note_call(self, machine: Machine, submission: Submission) -> None:
        """A call has reached a node."""
        offered = ", ".join(wanted.hex()[:8] for wanted in submission.ids)
        self._say(machine, f"is offered {offered}")

    def fate_of(self, machine: Machine, raw: bytes, outcome: Outcome) -> Fate:
        """What an outcome means to the client, after a look at whether it is true."""
        if isinstance(outcome, Receipt):
            self._say(machine, f"acknowledges {outcome.id.hex()[:8]} at {outcome.index}")
            self._watch.acknowledged(machine, raw, outcome)
            return Fate.ACKNOWLEDGED
        if isinstance(outcome, Refusal):
            if outcome.reason is RefusalReason.CONFLICT:
                self._watch.refused_as_conflict(machine, outcome.id, raw)
                return Fate.CONFLICT
            if outcome.reason is RefusalReason.QUEUE_FULL:
                self._trace.coverage["queue full"] += 1
                # The real transport repeats nothing (ZeroMQ over TCP). Where this network did, the
                # leader may have taken one copy of a forward and refused the other.
                return Fate.UNKNOWN if self._network.repeated else Fate.REFUSED
        return Fate.UNKNOWN

    # Reading

    def _read(self, client: int, machine: Machine, user: str) -> None:
        now_us = self._queue.now_us
        limit = self._random.choice(PAGES)
        read = Read(client=client, invoke_us=now_us, user=user, limit=limit)
        self.history.append(read)
        patience_us = self._random.randrange(200_000, 3 * MICROS_PER_SECOND)
        arrive = partial(machine.call, partial(self._read_at, read))
        self._queue.after(self._random.randrange(1, TRAVEL_US), arrive)
        self._queue.after(patience_us, partial(self._read_over, read))

    def _read_at(self, read: Read, machine: Machine) -> None:
        if self._random.random() < LOCAL:
            self._read_locally(read.user, machine)
        known = len(self._watch.committed) - 1

        def answer(index: int) -> None:
            self._watch.may_read(machine, index, known)
            machine.answer(partial(self._answer_read, read, machine))

        number = machine.running.read(answer)
        patience_us = self._random.randrange(100_000, 3 * MICROS_PER_SECOND)
        self._queue.after(patience_us, partial(self._forget, machine, machine.life, number))

    def _read_locally(self, user: str, machine: Machine) -> None:
        """What is applied here, without asking anybody (`consistency=local`)."""
        try:
            self._look_further(machine, user, ())
        except DamagedBlockError:
            self._trace.coverage["reads refused: DamagedBlockError"] += 1

    def _forget(self, machine: Machine, life: int, number: int) -> None:
        """The node's own patience with a read is over."""
        if machine.life == life:
            machine.running.forget_read(number)

    def _answer_read(self, read: Read, machine: Machine) -> None:
        """The barrier is passed: look up, as the node does, and send the answer on its way."""
        try:
            rows = self._page(machine, Page(read.user, None, read.limit, newest_first=True))
            if self._random.random() < FURTHER:
                self._look_further(machine, read.user, rows)
        except DamagedBlockError:
            self._trace.coverage["reads refused: DamagedBlockError"] += 1
            return  # the client hears "unavailable", which tells it nothing
        self._trace.coverage["reads answered"] += 1
        delay_us = self._random.randrange(1, TRAVEL_US)
        if not self._is_lost():
            told = tuple(
                Row((place.index, place.position), transaction_id(raw), raw) for place, raw in rows
            )
            self._queue.after(delay_us, partial(self._heard_read, read, told))

    def _page(self, machine: Machine, page: Page) -> list[tuple[Place, bytes]]:
        """One page of a history, as `Node.history` makes it; raises DamagedBlockError."""
        assert machine.lookup is not None, "a machine that answers is up"
        places = machine.lookup.history(
            page.user, after=page.after, limit=page.limit, newest_first=page.newest_first
        )
        rows = []
        for place in places:
            block = machine.running.raft.log.recent_block(place.index)
            block = machine.chain.block(place.index) if block is None else block
            rows.append((place, block.transactions[place.position]))
        order = "newest" if page.newest_first else "oldest"
        after = "" if page.after is None else f" after {tuple(page.after)}"
        self._say(machine, f"answers with {len(rows)} rows of {page.user}, {order} first{after}")
        self._watch.page_read(machine, page, rows)
        return rows

    def _say(self, machine: Machine, text: str) -> None:
        """What a client hears, for whoever reads the trace."""
        if self._trace.is_readable:
            self._trace.line(self._queue.now_us, f"{machine.name} {text}")

    def _look_further(
        self, machine: Machine, user: str, rows: Sequence[tuple[Place, bytes]]
    ) -> None:
        """The next page of either order, from somewhere on, and the place of an id."""
        after = self._random.choice(rows)[0] if rows else None
        newest_first = self._random.random() < 0.5  # noqa: PLR2004 - half of the time
        page = Page(user, after, self._random.choice(PAGES), newest_first=newest_first)
        self._page(machine, page)
        if self._known:
            assert machine.lookup is not None, "a machine that answers is up"
            wanted = transaction_id(self._random.choice(self._known)[1])
            self._watch.looked_up(machine, wanted, machine.lookup.places([wanted])[0])
        self._trace.coverage["further pages and ids looked up"] += 1

    def _heard_read(self, read: Read, rows: tuple[Row, ...]) -> None:
        if read.rows is None and read.client >= 0:
            read.complete_us = self._queue.now_us
            read.rows = rows

    def _read_over(self, read: Read) -> None:
        if read.rows is None:
            self._trace.coverage["reads given up"] += 1
            read.client = -1 - read.client  # nobody listens any more
        self._think(read.client if read.client >= 0 else -1 - read.client)

    def _is_lost(self) -> bool:
        lost = self._lost_answers > 0.0 and self._losses.random() < self._lost_answers
        self._trace.faults[Fault.LOST_ANSWER] += lost
        return lost

    def answer(self, attempt: _Attempt, fates: list[tuple[Fate, Outcome]]) -> None:
        """An answer is on its way to the client, if it is not lost."""
        if not self._is_lost():
            delay_us = self._random.randrange(1, TRAVEL_US)
            self._queue.after(delay_us, partial(attempt.heard, fates))

    # When all is healed

    def probe(self, machines: Sequence[Machine]) -> None:
        """Ask each of these nodes for a read; `probes_open` falls as they are answered."""
        for machine in machines:
            self.probes_open += 1
            self._probe_read(machine, machine.life, [])

    def probe_writes(self, machines: Sequence[Machine]) -> None:
        """Record a transaction at each of them; `probes_open` falls as they are acknowledged."""
        for machine in machines:
            self.probes_open += 1
            self._probe_write(machine, self._fresh())

    def _probe_read(self, machine: Machine, life: int, answers: list[int]) -> None:
        """Asks, and asks again in a further life: a restart loses whoever waits."""

        def hear(read_index: int) -> None:
            self.probes_open -= not answers
            answers.append(read_index)

        def ask_again() -> None:
            if machine.life != life and not answers:
                self._probe_read(machine, machine.life, answers)
            elif not answers:
                self._queue.after(PROBE_AGAIN_US, ask_again)

        machine.call(lambda up: self._read_for(up, hear))
        ask_again()

    @staticmethod
    def _read_for(machine: Machine, hear: Callable[[int], None]) -> None:
        machine.running.read(hear)

    def _probe_write(self, machine: Machine, offer: tuple[str, bytes]) -> None:
        attempt = _Attempt(self, 0, machine, [offer], MAX_TRIES)
        attempt.probe = True
        attempt.begin()

    def probe_over(self, attempt: _Attempt) -> None:
        """A probe was answered: with a receipt it is done, otherwise it is sent once more."""
        if attempt.writes[0].fate is Fate.ACKNOWLEDGED:
            self._probed()
        else:
            again = partial(self._probe_write, attempt.machine, attempt.offers[0])
            self._queue.after(100_000, again)

    def _probed(self) -> None:
        self.probes_open -= 1

    def draw(self, start: int, stop: int) -> int:
        """A number of the clients' own stream."""
        return self._random.randrange(start, stop)

    def plan(self, delay_us: int, attempt: _Attempt, step: str) -> None:
        """Let a step of an attempt happen later."""
        self._queue.after(delay_us, getattr(attempt, step))

    @property
    def now_us(self) -> int:
        """The time by the world's clock, which histories are written in."""
        return self._queue.now_us


class _Attempt:
    """One call of one client: transactions offered to one node, until answered or given up."""

    def __init__(
        self,
        clients: Clients,
        client: int,
        machine: Machine,
        offers: list[tuple[str, bytes]],
        tries: int,
    ) -> None:
        self.client = client
        self.machine = machine
        self.offers = offers
        self.tries = tries
        self.probe = False
        self.writes: list[Write] = []
        self._clients = clients
        self._life = -1
        self._is_over = False
        self._submission: Submission | None = None

    def begin(self) -> None:
        """Send the call, and wait as long as patience lasts."""
        clients = self._clients
        for user, raw in self.offers:
            wanted = transaction_id(raw)
            write = Write(
                client=self.client,
                invoke_us=clients.now_us,
                user=user,
                id=wanted,
                content=raw,
            )
            self.writes.append(write)
        clients.history += self.writes
        clients.plan(clients.draw(1, TRAVEL_US), self, "arrive")
        clients.plan(clients.draw(200_000, 3 * MICROS_PER_SECOND), self, "give_up")

    def arrive(self) -> None:
        """The call reaches the node, if it is up."""
        self.machine.call(self._submit)

    def give_up(self) -> None:
        """The client's time is up; the node's may be up as well, or it goes on alone."""
        if not self._is_over:
            self._is_over = True
            if self._clients.draw(0, 3) and self._life == self.machine.life:
                self.machine.call(self._expire)
            self._end()

    def heard(self, fates: list[tuple[Fate, Outcome]]) -> None:
        """The answer reached the client."""
        if self._is_over:
            return
        self._is_over = True
        for write, (fate, outcome) in zip(self.writes, fates, strict=True):
            write.fate = fate
            write.complete_us = self._clients.now_us
            if isinstance(outcome, Receipt):
                write.place = (outcome.index, outcome.position)
        self._end()

    def _submit(self, machine: Machine) -> None:
        self._life = machine.life
        is_hasty = not self.probe and not self._clients.draw(0, 20)
        self._submission = Submission(
            [raw for _, raw in self.offers],
            wait=Wait.ACCEPTED if is_hasty else Wait.COMMITTED,
            on_done=self._on_done,
        )
        self._clients.note_call(machine, self._submission)
        machine.running.submit(self._submission)

    def _on_done(self, outcomes: list[Outcome]) -> None:
        fates = [
            (self._clients.fate_of(self.machine, raw, outcome), outcome)
            for (_, raw), outcome in zip(self.offers, outcomes, strict=True)
        ]
        self.machine.answer(partial(self._clients.answer, self, fates))

    def _expire(self, machine: Machine) -> None:
        if machine.life == self._life and self._submission is not None:
            machine.running.expire(self._submission)

    def _end(self) -> None:
        if self.probe:
            self._clients.probe_over(self)
        else:
            self._clients.written(self)


def _transaction(wanted: bytes, user: str, amount: int) -> bytes:
    return encode_transaction(
        transaction_id=wanted, user_id=user, kind="note", payload={"amount": amount}
    )
