"""Random walks through what the network could do next, without any sense of time.

Where `test_raft_random.py` lives through plausible storms, a walk delivers, repeats and loses any
message at any moment, lets any save end or any member crash, and lets any clock run out: elections
follow one another so closely that logs contradict each other again and again, as in figure 8 of
the Raft paper, and members come and go meanwhile. `Network` checks every invariant after every
event. A failure prints its seed; to see it:

    BITNEXUS_RAFT_WALKS=4711:1 pytest tests/consensus/test_raft_walks.py
"""

from __future__ import annotations

import os
from collections import Counter
from contextlib import suppress
from random import Random

import pytest

from consensus.changes import ChangeError, ChangeKind
from consensus.leadership import RaftConfig
from consensus.ready import Role
from tests.consensus.raft_chains import NAMES, name_of, transaction
from tests.consensus.raft_network import Network

DEFAULT_WALKS = "1:200"
STEPS = 400
MAX_BAG = 40

QUICK = RaftConfig(heartbeat_us=1, election_min_us=3, election_max_us=5)
"""So few microseconds that a single tick may let any timeout run out."""


class Walk:
    """One cluster from its seed, and what may happen to it next."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        size = self.random.choice([3, 3, 4, 5])
        self.network = Network(size, seed=seed, config=QUICK)
        self.count = 0
        self.actions = (
            [self.deliver] * 30
            + [self.finish_save] * self.random.choice([4, 12])
            + [self.tick] * self.random.choice([2, 5, 10])
            + [self.propose] * 4
            + [self.read] * 3
            + [self.repeat] * self.random.randrange(4)
            + [self.lose] * self.random.randrange(8)
            + [self.crash] * self.random.randrange(2)
            + [self.restart] * 3
            + [self.campaign] * self.random.choice([1, 2, 4])
            + [self.talk] * 2
            + [self.change] * self.random.choice([0, 2, 4])
            + [self.transfer]
            + [self.look_around] * 2
        )

    def step(self) -> None:
        """One random event, and only so many messages in the bag."""
        self.random.choice(self.actions)()
        while len(self.network.bag) > MAX_BAG:
            self.lose()

    def deliver(self) -> None:
        """Any message arrives."""
        if self.network.bag:
            self.network.deliver_one(self.random.choice(self.network.bag))

    def repeat(self) -> None:
        """Any message arrives, and will arrive once more."""
        if self.network.bag:
            self.network.deliver_one(self.random.choice(self.network.bag), keep=True)

    def lose(self) -> None:
        """Any message is lost."""
        if self.network.bag:
            self.network.bag.remove(self.random.choice(self.network.bag))

    def finish_save(self) -> None:
        """Any save under way ends."""
        saving = [name for name in self.network.up if self.network.hosts[name].save is not None]
        if saving:
            self.network.finish_save(self.random.choice(saving))

    def tick(self) -> None:
        """Any member's clock moves, perhaps beyond its timeouts."""
        if self.network.up:
            self.network.now_us += self.random.randrange(4)
            self.network.tick(self.random.choice(self.network.up))

    def campaign(self) -> None:
        """Any member runs out of patience and talks to some of the others about it."""
        if self.network.up:
            name = self.random.choice(self.network.up)
            self.network.now_us += QUICK.election_max_us
            self.network.tick(name)
            self.talk(name)

    def talk(self, first: str | None = None) -> None:
        """Some members hear and answer one another for a while; the others hear nothing."""
        up = self.network.up
        names = {first or "", *self.random.sample(up, self.random.randint(0, len(up)))}
        for name in sorted(names.intersection(up)):
            self.network.advance(name)  # so that none of them sticks to a leader that is silent
        for _ in range(self.random.randrange(8)):
            for name in sorted(names.intersection(up)):
                if self.network.hosts[name].save is not None and self.random.random() < 0.8:
                    self.network.finish_save(name)
            for envelope in list(self.network.bag):
                if {envelope.source, envelope.target} <= names:
                    self.network.deliver_one(envelope)

    def propose(self) -> None:
        """Any leader, deposed or not, seals a block."""
        leaders = [n for n in self.network.up if self.network[n].may_propose]
        if leaders:
            leader = self.random.choice(leaders)
            for _ in range(self.random.randint(1, 3)):
                self.count += 1
                self.network.propose(leader, transaction(self.count))

    def change(self) -> None:
        """Any leader, deposed or not, makes a change of any kind, if it may."""
        leaders = [n for n in self.network.up if self.network.role(n) is Role.LEADER]
        if not leaders:
            return
        leader = self.random.choice(leaders)
        membership = self.network[leader].log.roster.latest
        kind = self.random.choice([ChangeKind.ADD, ChangeKind.PROMOTE, ChangeKind.REMOVE])
        subject = self.random.choice(NAMES[:6])
        if kind is ChangeKind.PROMOTE and membership.learners:
            subject = name_of(min(membership.learners))
        try:
            self.network.change(leader, kind, subject)
        except ChangeError:
            return
        if subject not in self.network.hosts:
            self.network.join(subject)

    def transfer(self) -> None:
        """Any leader hands over to whoever is closest."""
        for name in self.network.up:
            if self.network.role(name) is Role.LEADER:
                with suppress(ChangeError):
                    self.network.transfer(name)

    def look_around(self) -> None:
        """Any member fetches what another has committed."""
        if self.network.up:
            self.network.look_around(self.random.choice(self.network.up))

    def read(self) -> None:
        """Any member asks for a read; its tokens begin anew with each of its lives."""
        if self.network.up:
            name = self.random.choice(self.network.up)
            self.network.read(name, len(self.network.hosts[name].read_floors) + 1)

    def crash(self) -> None:
        """Any member crashes, before or after its save became durable."""
        if self.network.up:
            crash = self.random.choice([self.network.crash, self.network.crash_after_save])
            crash(self.random.choice(self.network.up))

    def restart(self) -> None:
        """Any member that is down starts again, with some of what it applied."""
        down = sorted(set(self.network.hosts) - set(self.network.up))
        if down:
            name = self.random.choice(down)
            host = self.network.hosts[name]
            applied_index = self.random.randint(host.start_applied, host.applied_index)
            self.network.start(name, applied_index=applied_index)


def run_walk(seed: int) -> Network:
    """One walk; an assertion of any kind names the seed and shows the end of the trace."""
    walk = Walk(seed)
    try:
        for _ in range(STEPS):
            walk.step()
    except AssertionError as error:
        end = "\n".join(walk.network.trace[-60:])
        raise AssertionError(f"walk {seed}: {error}\n{end}") from error
    return walk.network


def _seeds() -> range:
    first, _, count = os.environ.get("BITNEXUS_RAFT_WALKS", DEFAULT_WALKS).partition(":")
    return range(int(first), int(first) + int(count))


@pytest.mark.timeout(0)  # the number of walks is the caller's to choose
def test_random_walks() -> None:
    """No walk breaks an invariant or changes a committed block."""
    networks = [run_walk(seed) for seed in _seeds()]
    assert max(network.commit_index for network in networks) > 0
    changes = sum((network.committed_changes() for network in networks), Counter[ChangeKind]())
    kinds = {ChangeKind.ADD, ChangeKind.PROMOTE, ChangeKind.REMOVE}
    assert len(networks) < 100 or kinds == changes.keys(), "too calm"
