"""Whole lives of small clusters under random faults, each from one seed, by virtual time.

Three and five members lose, delay, repeat and reorder messages, are cut off both ways or one way,
save slowly, crash before, during and after a save, and start again, while blocks are sealed, reads
asked, leaderships handed over, and members added, promoted and removed. `Network` checks every
invariant after every event. Then all faults end, and whoever is a member must agree on one head
within five virtual seconds. A failure prints its seed; to see it:

    BITNEXUS_RAFT_SEEDS=4711:1 pytest tests/consensus/test_raft_random.py

The variable is `first:count`; without it a fixed range of seeds is run.
"""

from __future__ import annotations

import os
from collections import Counter
from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING

import pytest

from consensus.changes import ChangeError, ChangeKind
from consensus.ready import Role
from tests.consensus.raft_chains import NAMES, name_of, transaction
from tests.consensus.raft_mail import MILLISECOND_US, SECOND_US, Weather
from tests.consensus.raft_network import Network

if TYPE_CHECKING:
    from consensus.raft import Raft

DEFAULT_SEEDS = "1:130"
FAULTY_EVENTS = 60


class Storm(Weather):
    """Random delays, losses, repetitions and slow saves; `calm` ends them all."""

    def __init__(self, random: Random) -> None:
        super().__init__()
        self._random = random
        self.is_calm = False
        self.loss = random.choice([0.0, 0.02, 0.2])
        self.repeat = random.choice([0.0, 0.1])
        self.slow_messages = random.choice([0.0, 0.05, 0.2])
        self.slow_saves = random.choice([0.0, 0.05, 0.2])
        self.busy = random.choice([0.0, 0.3])

    def delays_us(self, source: str, target: str) -> list[int]:
        """No copy, one or two, each now and then so late that a term has ended."""
        if self.is_calm:
            return super().delays_us(source, target)
        random = self._random
        copies = 0 if random.random() < self.loss else 1 + (random.random() < self.repeat)
        return [self._delay() for _ in range(copies)]

    def save_us(self, name: str) -> int:
        """Mostly a quick disk, now and then one that stalls beyond an election."""
        if self.is_calm:
            return super().save_us(name)
        if self._random.random() < self.slow_saves:
            return self._random.randrange(900 * MILLISECOND_US)
        return self._random.randrange(100, 8 * MILLISECOND_US)

    def is_busy(self, name: str) -> bool:
        """Often enough, several messages are taken before anything is handed out."""
        return not self.is_calm and self._random.random() < self.busy

    def _delay(self) -> int:
        if self._random.random() < self.slow_messages:
            return self._random.randrange(1_500 * MILLISECOND_US)
        return self._random.randrange(100, 6 * MILLISECOND_US)


class Life:
    """One cluster from its seed: `live` runs it through its faults, `heal` demands progress."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.storm = Storm(self.random)
        size = self.random.choice([1, 2, 3, 3, 3, 4, 5, 5])
        self.network = Network(size, seed=seed, weather=self.storm)
        self.transactions = 0
        self.tokens: dict[tuple[str, int], int] = {}

    def live(self) -> None:
        """Random faults and random load."""
        actions = [self.seal] * 6 + [self.seal_many] * 2 + [self.ask_read] * 6
        actions += [self.crash] * 2 + [self.restart] * 3 + [self.cut] * 2 + [self.mend] * 2
        actions += [self.break_connection] + [self.rivalry] * 2
        actions += [self.change] * self.random.choice([0, 2, 6]) + [self.transfer, self.look_around]
        for _ in range(FAULTY_EVENTS):
            pause_us = self.random.choice([5, 20, 100, 600]) * MILLISECOND_US
            self.network.run(self.random.randrange(pause_us))
            self.random.choice(actions)()

    def heal(self) -> None:
        """Ends all faults; every member must apply a new block and answer a read."""
        network = self.network
        self.storm.is_calm = True
        network.cut.clear()
        for name in sorted(set(network.hosts) - set(network.up)):
            self.start(name)
        for name in sorted(self.named() - network.hosts.keys()):
            network.join(name)
        # What was slow while the storm raged ends soon, and may still depose a leader.
        soon_us = network.now_us + 300 * MILLISECOND_US
        for host in network.hosts.values():
            host.save_due_us = min(host.save_due_us, soon_us)
        for envelope in network.bag:
            envelope.due_us = min(envelope.due_us, soon_us)
        network.run(300 * MILLISECOND_US)
        before = network.commit_index
        end_us = network.now_us + 5 * SECOND_US
        while network.now_us < end_us and not self.is_one(before):
            self.seal()
            self.look_around()
            network.run(200 * MILLISECOND_US, lambda: self.is_one(before))
        assert self.is_one(before), "no progress"
        self.check_reads()

    def is_one(self, beyond: int) -> bool:
        """Whether all members have applied one head, beyond what was committed, and one leads."""
        hosts = [self.network.hosts[name] for name in self.members()]
        leaders = {host.running.leader for host in hosts}
        heads = {host.running.log.last_tip.hash for host in hosts}
        ends = {host.running.log.last_index for host in hosts}
        applied = {host.applied_index for host in hosts}
        is_led = len(leaders) == 1 and None not in leaders
        return is_led and len(heads) == 1 and applied == ends and min(ends) > beyond

    def named(self) -> set[str]:
        """Who is a member in any log."""
        rosters = [self.network[name].log.roster for name in self.network.up]
        return {name_of(key) for roster in rosters for key in roster.latest.keys}

    def members(self) -> list[str]:
        """Who is a member by the longest committed chain, voter or learner."""
        raft = max((self.network[name] for name in self.network.up), key=_commit_index)
        return sorted(name_of(key) for key in raft.log.roster.at(raft.log.commit_index).keys)

    def check_reads(self) -> None:
        """Once all is well, a read is answered from every member, in about a round trip."""
        for name in self.members():
            token = self.next_token(name)
            self.network.read(name, token)
            reads = self.network.hosts[name].reads
            self.network.run(50 * MILLISECOND_US)
            assert reads.get(token) is not None, f"no answer to a read of {name}"

    # Actions

    def seal(self) -> None:
        """A leader, if there is one, seals a block; a deposed one that does not know it as well."""
        leaders = [n for n in self.network.up if self.network[n].may_propose]
        if leaders:
            self.transactions += 1
            size_bytes = self.random.choice([10, 10, 10, 5_000])
            block = transaction(self.transactions, size_bytes=size_bytes)
            self.network.propose(self.random.choice(leaders), block)

    def seal_many(self) -> None:
        """More blocks at once than may be in flight."""
        for _ in range(self.random.randrange(40)):
            self.seal()

    def change(self) -> None:
        """A leader makes a change of any kind, if it makes sense; a new member's machine starts."""
        leaders = [n for n in self.network.up if self.network[n].role is Role.LEADER]
        if not leaders:
            return
        kinds = [ChangeKind.ADD, ChangeKind.ADD, ChangeKind.PROMOTE, ChangeKind.REMOVE]
        kind, subject = self.random.choice(kinds), self.random.choice(NAMES[:7])
        try:
            self.network.change(self.random.choice(leaders), kind, subject)
        except ChangeError:
            return
        if subject not in self.network.hosts and self.random.random() < 0.9:
            self.network.join(subject)

    def transfer(self) -> None:
        """A leader hands over to any member, or to whoever is closest."""
        leaders = [n for n in self.network.up if self.network[n].role is Role.LEADER]
        if leaders:
            target = self.random.choice([None, *self.network.hosts])
            with suppress(ChangeError):
                self.network.transfer(self.random.choice(leaders), target)

    def look_around(self) -> None:
        """Members that hear of no leader fetch what others have committed."""
        for name in self.network.up:
            if self.network[name].leader is None:
                self.network.look_around(name)

    def ask_read(self) -> None:
        """Any member asks for a read."""
        if self.network.up:
            name = self.victim(self.network.up)
            self.network.read(name, self.next_token(name))

    def rivalry(self) -> None:
        """A leader is cut off and goes on sealing and reading, while others elect another."""
        leader = self.network.leader
        if leader is None:
            return
        names = list(self.network.hosts)
        side = {leader, *self.random.sample(names, self.random.randrange((len(names) + 1) // 2))}
        self.network.cut = {(s, t) for s in names for t in names if (s in side) != (t in side)}
        for _ in range(self.random.randrange(30)):
            self.network.run(self.random.randrange(50 * MILLISECOND_US))
            for name in self.network.up:
                if self.network.role(name) is Role.LEADER:
                    self.seal()
                    self.random.choice([self.seal, self.seal, self.change])()
                    self.network.read(name, self.next_token(name))
        self.random.choice([self.mend, self.crash, self.cut])()

    def next_token(self, name: str) -> int:
        """Tokens rise from call to call, and begin anew when a member starts."""
        life = (name, self.network.hosts[name].starts)
        self.tokens[life] = self.tokens.get(life, 0) + 1
        return self.tokens[life]

    def crash(self) -> None:
        """A member loses all that is not durable, before or after its save became durable."""
        if self.network.up:
            name = self.victim(self.network.up)
            self.random.choice([self.network.crash, self.network.crash_after_save])(name)

    def victim(self, names: list[str]) -> str:
        """Some member, and rather the leader than another."""
        leader = self.network.leader
        if leader is not None and self.random.random() < 0.5:
            return leader
        return self.random.choice(names)

    def restart(self) -> None:
        """A member that is down starts again."""
        down = sorted(set(self.network.hosts) - set(self.network.up))
        if down:
            self.start(self.random.choice(down))

    def start(self, name: str) -> None:
        """Its applied index is any that it may have made durable of what it was handed."""
        host = self.network.hosts[name]
        applied_index = self.random.randint(host.start_applied, host.applied_index)
        self.network.start(name, applied_index=applied_index)

    def cut(self) -> None:
        """Cuts the network in two, or single links one way."""
        names = list(self.network.hosts)
        if self.random.random() < 0.5:
            side = {
                self.victim(names),
                *self.random.sample(names, self.random.randrange(3) % len(names)),
            }
            self.network.cut = {(s, t) for s in names for t in names if (s in side) != (t in side)}
        else:
            for _ in range(self.random.randrange(1, 4)):
                link = (self.victim(names), self.random.choice(names))
                self.network.cut.add(self.random.choice([link, link[::-1]]))

    def mend(self) -> None:
        """The network is whole again."""
        self.network.cut.clear()

    def break_connection(self) -> None:
        """A member believes that it lost a peer, rightly or not."""
        if self.network.up:
            name = self.random.choice(self.network.up)
            self.network.unreachable(name, self.random.choice(list(self.network.hosts)))


def run_seed(seed: int) -> Network:
    """One whole life; an assertion of any kind names the seed and shows the end of the trace."""
    life = Life(seed)
    try:
        life.live()
        life.heal()
    except AssertionError as error:
        end = "\n".join(life.network.trace[-60:])
        raise AssertionError(f"seed {seed}: {error}\n{end}") from error
    return life.network


def _commit_index(raft: Raft) -> int:
    return raft.log.commit_index


def _seeds() -> range:
    first, _, count = os.environ.get("BITNEXUS_RAFT_SEEDS", DEFAULT_SEEDS).partition(":")
    return range(int(first), int(first) + int(count))


@pytest.mark.timeout(0)  # the number of seeds is the caller's to choose
def test_random_faults() -> None:
    """No seed breaks an invariant, loses a committed block, or keeps a healed cluster from work."""
    networks = [run_seed(seed) for seed in _seeds()]
    changes = sum((network.committed_changes() for network in networks), Counter[ChangeKind]())
    kinds = {ChangeKind.ADD, ChangeKind.PROMOTE, ChangeKind.REMOVE}
    assert len(networks) < 100 or kinds == changes.keys(), "too calm"
