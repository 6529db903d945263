"""A cluster of Raft members in one process, for tests: no socket, no thread, no clock, no luck.

A `Network` holds one `Host` for each member: a durable chain that survives a crash, and the `Raft`
that does not. Messages lie in a bag until a test delivers, drops or repeats them, and a save is
under way until a test finishes it; `run` does all of that by virtual time instead, under a
`Weather` that says how long each message and each save takes. After *every* event the invariants of
`consensus.invariants` are checked, and beyond them what only the whole network can see: nothing
leaves before it is durable, and what is committed is durable on a majority and never changes.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from random import Random
from typing import TYPE_CHECKING

from consensus.changes import Change, recorded_change
from consensus.invariants import Snapshot, check_cluster, check_state, check_step
from consensus.leadership import RaftConfig
from consensus.messages import AppendReply, PreVoteReply, PreVoteRequest, encode_message
from consensus.quorum import majority_of
from consensus.raft import Raft
from consensus.ready import HardState, Role
from tests.consensus.raft_chains import (
    NAMES,
    DurableChain,
    genesis_of_size,
    log_of_terms,
    member_id,
    member_of,
    name_of,
    sealer_of,
)
from tests.consensus.raft_host import Host, describe_save
from tests.consensus.raft_mail import MILLISECOND_US, Envelope, Weather, describe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from consensus.block import Block
    from consensus.changes import ChangeKind
    from consensus.messages import MemberId, RaftMessage
    from consensus.ready import Ready

WALL_US = 1_700_000_000_000_000
STUCK = 20_000
"""More events than this at one instant can only be a loop."""


class Network:
    """Members, and all that lies between them. See the module's text."""

    def __init__(
        self,
        size: int = 3,
        *,
        seed: int = 0,
        config: RaftConfig | None = None,
        weather: Weather | None = None,
        logs: Mapping[str, Sequence[int]] | None = None,
        states: Mapping[str, HardState] | None = None,
    ) -> None:
        """Members start with chains of the terms in `logs` and in the durable `states`.

        Where no state is given, a member is in the term of its last block and has not voted.
        """
        self.size = size
        self.seed = seed
        self.config = config or RaftConfig()
        self.weather = weather or Weather()
        self.now_us = 0
        self.bag: list[Envelope] = []
        self.cut: set[tuple[str, str]] = set()
        self.leaders: dict[int, MemberId] = {}
        self.committed: dict[int, bytes] = {0: genesis_of_size(size).hash}
        self.commit_index = 0
        self.trace: list[str] = []
        self.hosts: dict[str, Host] = {}
        for name in NAMES[:size]:
            terms = tuple((logs or {}).get(name, ()))
            state = (states or {}).get(name) or HardState(term=terms[-1] if terms else 0)
            blocks = log_of_terms(size, terms)
            self.committed |= {
                block.index: block.hash for block in blocks[: state.commit_index + 1]
            }
            self.commit_index = max(self.commit_index, state.commit_index)
            self.hosts[name] = Host(name, DurableChain(blocks, state))
            self.start(name)

    def __getitem__(self, name: str) -> Raft:
        """The running member called `name`."""
        return self.hosts[name].running

    def role(self, name: str) -> Role:
        """The role of a running member."""
        return self[name].role

    @property
    def up(self) -> list[str]:
        """The names of the members that run."""
        return [name for name, host in self.hosts.items() if host.raft is not None]

    @property
    def leader(self) -> str | None:
        """The leader of the highest term, if there is one."""
        leaders = [name for name in self.up if self[name].role is Role.LEADER]
        return max(leaders, key=lambda name: self[name].term, default=None)

    def committed_changes(self) -> Counter[ChangeKind]:
        """What was changed by the longest committed chain of a running member."""
        if not self.up:
            return Counter()
        log = max((self[name].log for name in self.up), key=lambda log: log.commit_index)
        indexes = [i for i in log.roster.change_indexes if i <= log.commit_index]
        return Counter(recorded_change(log.block(index)).change.kind for index in indexes)

    # Starting and crashing

    def start(self, name: str, *, applied_index: int = 0) -> Raft:
        """Starts a member from its durable chain; what it applied before is given."""
        host = self.hosts[name]
        assert host.raft is None, f"{name} runs already"
        host.starts += 1
        host.applied, host.reads, host.read_floors = [], {}, {}
        host.start_applied = applied_index
        host.raft = Raft(
            config=self.config,
            member=member_id(name),
            cluster_id=genesis_of_size(self.size).hash,
            sealer=sealer_of(name, self.size, seed=f"{self.seed} {name} {host.starts}"),
            chain=host.chain,
            hard_state=host.chain.hard_state,
            applied_index=applied_index,
            random=Random(f"{self.seed} {name} {host.starts} timeouts"),
        )
        if self.now_us or host.starts > 1:
            self.say(f"{name} starts")
        self.tick(name)
        return host.raft

    def join(self, name: str) -> None:
        """A machine that genesis does not know starts with genesis alone, as a member to be."""
        self.hosts[name] = Host(name, DurableChain([genesis_of_size(self.size)], HardState()))
        self.start(name)

    def crash(self, name: str) -> None:
        """Takes away all that is not durable; a save that was under way did not happen."""
        host = self.hosts[name]
        host.raft, host.save = None, None
        self.say(f"{name} crashes")

    def crash_after_save(self, name: str) -> None:
        """Crashes a member between the end of its save and the news of it."""
        host = self.hosts[name]
        if host.save is not None:
            host.chain.save(host.save)
        self.crash(name)

    # Events

    def tick(self, name: str) -> None:
        """Tells one member the time."""
        with self.event(name) as raft:
            raft.tick(self.now_us, WALL_US + self.now_us)

    def advance(self, name: str) -> None:
        """Moves one member's clock without letting a timeout run out."""
        self[name].advance(self.now_us, WALL_US + self.now_us)

    def step(self, name: str, source: str, message: RaftMessage) -> None:
        """Hands one message to a member."""
        with self.event(name) as raft:
            raft.step(member_id(source), message)
        self._fetch(name)

    def propose(self, name: str, *transactions: bytes) -> Block:
        """Has the leader seal a block."""
        self.advance(name)
        with self.event(name) as raft:
            block = raft.propose(transactions)
            self.say(f"{name} seals block {block.index}/{block.term}")
        return block

    def change(self, name: str, kind: ChangeKind, subject: str) -> Block:
        """Has the leader change one member; raises ChangeError where it does not."""
        self.advance(name)
        with self.event(name) as raft:
            known = {member.name: member for member in raft.log.roster.latest.members}
            member = known.get(subject) or member_of(subject)
            block = raft.change_membership(Change(kind, member))
            self.say(f"{name} seals block {block.index}/{block.term}: {kind} {subject}")
        return block

    def transfer(self, name: str, target: str | None = None) -> str:
        """Has the leader hand over; to whom. Raises ChangeError where it does not."""
        self.advance(name)
        with self.event(name) as raft:
            chosen = name_of(raft.transfer_leadership(member_id(target) if target else None))
            self.say(f"{name} hands over to {chosen}")
        return chosen

    def read(self, name: str, token: int) -> None:
        """Asks a member for a read, and notes what that read may not miss."""
        self.hosts[name].read_floors[token] = self.commit_index
        with self.event(name) as raft:
            raft.read(token)

    def unreachable(self, name: str, peer: str) -> None:
        """Tells a member that its connection to a peer broke."""
        self.advance(name)
        with self.event(name) as raft:
            raft.unreachable(member_id(peer))

    def finish_save(self, name: str) -> None:
        """The save under way becomes durable, and the member hears of it."""
        host = self.hosts[name]
        assert host.save is not None, f"{name} saves nothing"
        save, host.save = host.save, None
        host.chain.save(save)
        self.say(f"{name} has saved")
        with self.event(name) as raft:
            raft.saved(save)

    def deliver_one(self, envelope: Envelope, *, keep: bool = False) -> None:
        """Delivers one message of the bag, or leaves a copy of it there for later."""
        if not keep:
            self.bag.remove(envelope)
        source, target = envelope.source, envelope.target
        message = envelope.message
        if target not in self.up or (source, target) in self.cut:
            self.say(f"{source} ✗ {target}  {describe(message)}")
            return
        self.say(f"{source} → {target}  {describe(message)}")
        self.step(target, source, message)

    # Convenience for scenarios

    def sent(
        self, source: str, target: str | None = None, kind: type | None = None
    ) -> list[RaftMessage]:
        """The messages of one member that lie in the bag."""
        return [e.message for e in self._select(source, target, kind)]

    def deliver(
        self, source: str | None = None, target: str | None = None, kind: type | None = None
    ) -> int:
        """Delivers the messages that lie in the bag now, of that kind and way; how many."""
        chosen = self._select(source, target, kind)
        for envelope in chosen:
            self.deliver_one(envelope)
        return len(chosen)

    def drop(
        self, source: str | None = None, target: str | None = None, kind: type | None = None
    ) -> int:
        """Loses the messages that lie in the bag now, of that kind and way; how many."""
        chosen = self._select(source, target, kind)
        for envelope in chosen:
            self.bag.remove(envelope)
            self.say(f"{envelope.source} ✗ {envelope.target}  {describe(envelope.message)}")
        return len(chosen)

    def finish_saves(self, names: Iterable[str] | None = None) -> int:
        """Finishes the saves that are under way; how many."""
        saving = [n for n in names or self.up if self.hosts[n].save is not None]
        for name in saving:
            self.finish_save(name)
        return len(saving)

    def settle(self, among: str | None = None) -> None:
        """Delivers and saves among those members, without time passing, until all is quiet."""
        names = [name for name in among or NAMES if name in self.up]
        for _ in range(STUCK):
            done = self.finish_saves(names)
            for envelope in list(self.bag):
                if envelope.source in names and envelope.target in names:
                    self.deliver_one(envelope)
                    done += 1
            if not done:
                return
        raise AssertionError("the network never falls quiet")

    def stand(self, name: str) -> None:
        """Makes `name` a candidate that saved its vote, as if it had won the pre-vote.

        An election timeout passes for it alone.
        """
        raft = self[name]
        self.now_us += self.config.election_max_us
        raft._patience.due_us = self.now_us
        self.tick(name)
        others = sorted(name_of(voter) for voter in raft.voters - {raft.member})
        needed = majority_of(len(raft.voters)) - (raft.member in raft.voters)
        for other in others[:needed]:
            self.step(name, other, PreVoteReply(raft.term + 1, granted=True))
        self.drop(name, kind=PreVoteRequest)
        self.finish_save(name)

    def elect(self, name: str, among: str | None = None) -> None:
        """Lets `name` win an election that only those members notice."""
        voters = [other for other in among or self.up if other != name]
        for other in voters:
            # Out of contact with the old leader, but too patient to stand as well.
            raft = self[other]
            raft._patience.heard_us = self.now_us - self.config.election_min_us
            raft._patience.due_us = self.now_us + 2 * self.config.election_max_us
        self.stand(name)
        for other in voters:
            self.tick(other)
        self.settle("".join([name, *voters]))
        assert self[name].role is Role.LEADER, f"{name} was not elected"

    # Virtual time

    def run(self, duration_us: int, until: Callable[[], bool] | None = None) -> bool:
        """Lets events happen in the order of their times; whether `until` came true."""
        end_us = self.now_us + duration_us
        at_once = 0
        while until is None or not until():
            due_us, event = self._next_event()
            if due_us > end_us:
                self.now_us = end_us
                return False
            at_once = at_once + 1 if due_us <= self.now_us else 0
            assert at_once < STUCK, "time stands still"
            self.now_us = max(self.now_us, due_us)
            event()
        return True

    def _next_event(self) -> tuple[int, Callable[[], None]]:
        best: tuple[int, Callable[[], None]] = (1 << 62, lambda: None)
        for envelope in self.bag:
            if envelope.due_us < best[0]:
                best = (envelope.due_us, lambda e=envelope: self._arrive(e))  # type: ignore[misc]  # mypy cannot infer a lambda with a default
        for name in self.up:
            host = self.hosts[name]
            if host.save is not None and host.save_due_us < best[0]:
                best = (host.save_due_us, lambda n=name: self._end_save(n))  # type: ignore[misc]  # as above
            wake_us = host.running.wake_us()
            if wake_us < best[0]:
                best = (wake_us, lambda n=name: self.tick(n))  # type: ignore[misc]  # as above
        return best

    def _arrive(self, envelope: Envelope) -> None:
        if envelope.target in self.up:
            self.advance(envelope.target)
        self.deliver_one(envelope)

    def _end_save(self, name: str) -> None:
        self.advance(name)
        self.finish_save(name)

    def _fetch(self, name: str) -> None:
        """A member that was asked to fetch does so at once, from the first that it can reach."""
        if self[name].fetch_through > self[name].log.commit_index:
            self.look_around(name)

    def look_around(self, name: str) -> bool:
        """A member fetches from the first that it can reach and that has more; whether it did.

        It asks whoever it likes, and needs no leader for that.
        """
        ours = self[name].log.commit_index
        for other in self.up:
            is_cut = self.cut & {(name, other), (other, name)}
            if not is_cut and self[other].log.commit_index > ours:
                self.fetch(name, other)
                return True
        return False

    def fetch(self, name: str, source: str) -> None:
        """A member takes committed blocks from another, from the first that it lacks on."""
        log = self[source].log
        first = self[name].log.commit_index + 1
        count = log.commit_index + 1 - first
        blocks = log.blocks_from(first, max_blocks=count, max_bytes=1 << 20)
        self.say(f"{name} fetches blocks {first} to {blocks[-1].index} from {source}")
        with self.event(name) as raft:
            term = self[source].durable_term
            raft.take_fetched(term, first, [block.encode() for block in blocks])

    # What is checked after every event

    @contextmanager
    def event(self, name: str) -> Iterator[Raft]:
        """One event of one member: its input, all that comes out of it, and every check."""
        raft = self[name]
        before = Snapshot.of(raft)
        yield raft
        self._check(name, before)
        if self.weather.is_busy(name):
            return
        for _ in range(STUCK):
            before = Snapshot.of(raft)
            ready = raft.ready()
            self._check(name, before)
            if not ready:
                return
            self._take(self.hosts[name], ready)
        raise AssertionError(f"{name} is never done")

    def _check(self, name: str, before: Snapshot) -> None:
        raft = self[name]
        after = Snapshot.of(raft)
        check_state(raft)
        check_step(before, after)
        if after != before:
            check_cluster([self[other] for other in self.up], self.leaders)
        for index in range(before.commit_index + 1, after.commit_index + 1):
            digest = raft.log.hash_at(index)
            assert self.committed.setdefault(index, digest) == digest, f"two blocks {index}"
        if after.commit_index > self.commit_index:
            self.commit_index = after.commit_index
            self._check_durable(raft)
        changes = [i for i in raft.log.roster.change_indexes if i > self.commit_index]
        assert len(changes) <= 1, "one change at a time (dissertation §4.1)"
        self._say_changes(name, before, after)

    def _check_durable(self, first: Raft) -> None:
        """Who commits a block first led until then, and its voters are those in force."""
        index = first.log.commit_index
        holders = sum(
            name_of(voter) in self.hosts
            and self.hosts[name_of(voter)].chain.holds(index, self.committed[index])
            for voter in first.voters
        )
        needed = majority_of(len(first.voters))
        assert holders >= needed, f"block {index} is committed on {holders} of {needed} disks"

    def _take(self, host: Host, ready: Ready) -> None:
        for outgoing in ready.messages:
            host.check_before_send(outgoing.message, outgoing.target)
            if isinstance(outgoing.message, AppendReply):
                self._check_match(host, outgoing.message)
            raw = encode_message(outgoing.message)
            target = name_of(outgoing.target)
            for delay_us in self.weather.delays_us(host.name, target):
                self.bag.append(Envelope(host.name, target, raw, self.now_us + delay_us))
        if ready.save is not None:
            assert host.save is None, "one save at a time"
            host.save = ready.save
            host.save_due_us = self.now_us + self.weather.save_us(host.name)
            self.say(f"    {host.name} saves {describe_save(ready.save)}")
        for block in ready.committed:
            assert block.index == host.applied_index + 1, "blocks are applied in order"
            assert host.chain.holds(block.index, self.committed[block.index])
            assert block.hash == self.committed[block.index], "only committed blocks are applied"
            host.applied.append(block)
        for read in ready.reads:
            host.check_read(read.token, read.read_index, commit_index=self.commit_index)

    def _check_match(self, host: Host, reply: AppendReply) -> None:
        name = name_of(self.leaders[reply.term]) if reply.term in self.leaders else None
        leader = self.hosts[name].raft if name is not None else None
        if leader is not None and leader.role is Role.LEADER and leader.term == reply.term:
            digest = leader.log.hash_at(reply.match_index)
            assert host.chain.holds(reply.match_index, digest), "it acknowledges another block"

    # The trace

    def say(self, text: str) -> None:
        """Adds a line to the trace, with the time in milliseconds."""
        self.trace.append(f"{self.now_us / MILLISECOND_US:9.3f}  {text}")

    def _say_changes(self, name: str, before: Snapshot, after: Snapshot) -> None:
        if (before.term, before.role) != (after.term, after.role):
            self.say(f"    {name} is {after.role} of term {after.term}")
        if after.vote not in {None, before.vote}:
            self.say(f"    {name} votes for {name_of(after.vote)}")
        if before.commit_index != after.commit_index:
            self.say(f"    {name} commits {after.commit_index}")

    def _select(self, source: str | None, target: str | None, kind: type | None) -> list[Envelope]:
        return [
            e
            for e in self.bag
            if source in {None, e.source}
            and target in {None, e.target}
            and (kind is None or isinstance(e.message, kind))
        ]
