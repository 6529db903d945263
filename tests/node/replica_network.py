"""Replicas of one cluster in one process, in virtual time: no sockets, disks, threads or clocks.

Messages travel in the order sent, one hop a step; saves complete when `settle` comes to them. Each
member's chain is `MemoryChain` and its index a dictionary, so a restart forgets what was not saved.
"""

from __future__ import annotations

import uuid
from collections import deque
from random import Random
from typing import TYPE_CHECKING

from nacl.signing import SigningKey

from consensus.block import Sealer, encode_transaction
from consensus.leadership import RaftConfig
from consensus.membership import Genesis, Member, genesis_block
from consensus.messages import decode_message, encode_message
from consensus.raft import Raft
from node.catchup import serve
from node.mempool import QueueLimits
from node.outcomes import Outcome, Wait
from node.replica import Replica
from node.submissions import Submission
from storage.memory import MemoryChain
from storage.recent import Lookup, Place, RecentIndex, ids_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from consensus.block import Block
    from consensus.messages import AnyMessage, MemberId
    from consensus.ready import Save

GENESIS_US = 1_700_000_000_000_000
TICK_US = 10_000


class EmptyIndex:
    """An index store that holds nothing: everything applied stays in `RecentIndex`."""

    def places(self, ids: Sequence[bytes]) -> list[Place | None]:
        """Nothing is known."""
        return [None] * len(ids)

    def history(
        self, user_id: str, *, after: Place | None, limit: int, newest_first: bool
    ) -> list[Place]:
        """Nothing is known."""
        return []


class Seat:
    """One member: what survives a crash (key and chain), and the replica that runs now."""

    def __init__(self, key: SigningKey, chain: MemoryChain) -> None:
        """Not started yet."""
        self.key = key
        self.member = bytes(key.verify_key)
        self.chain = chain
        self.replica: Replica | None = None
        self.save: Save | None = None


class ReplicaNetwork:
    """A cluster of `size` replicas; the caller decides what is cut, held back and crashed."""

    def __init__(self, size: int = 3, *, seed: int = 1, limits: QueueLimits | None = None) -> None:
        """Starts every member; no time has passed."""
        self.random = Random(seed)
        self.limits = limits or QueueLimits()
        keys = [SigningKey(self.random.randbytes(32)) for _ in range(size)]
        members = tuple(
            Member(
                name=f"node{number}",
                public_key=bytes(key.verify_key),
                peer=f"127.0.0.1:{7000 + number}",
                http=f"127.0.0.1:{8000 + number}",
            )
            for number, key in enumerate(keys, start=1)
        )
        self.genesis = genesis_block(Genesis(name="test", created_us=GENESIS_US, members=members))
        self.now_us = 0
        self.cut: set[tuple[MemberId, MemberId]] = set()
        self.held: Callable[[AnyMessage], bool] = lambda _message: False
        self.saves_held: set[MemberId] = set()
        self.lost: list[AnyMessage] = []
        self._wire: deque[tuple[MemberId, MemberId, bytes]] = deque()
        self.seats = {bytes(key.verify_key): Seat(key, MemoryChain(self.genesis)) for key in keys}
        for seat in self.seats.values():
            self.start(seat.member)

    def start(self, member: MemberId) -> Replica:
        """Starts a member from what its chain holds."""
        seat = self.seats[member]
        recent = RecentIndex()
        sealer = Sealer(seat.key, self.genesis.hash, self.random)
        raft = Raft(
            config=RaftConfig(),
            member=member,
            cluster_id=self.genesis.hash,
            sealer=sealer,
            chain=seat.chain,
            hard_state=seat.chain.hard_state,
            applied_index=0,
            random=self.random,
        )
        seat.replica = Replica(
            raft=raft, recent=recent, lookup=Lookup(EmptyIndex(), recent), limits=self.limits
        )
        seat.replica.tick(self.now_us, GENESIS_US + self.now_us)
        return seat.replica

    def crash(self, member: MemberId) -> None:
        """Ends a member; a save under way is lost."""
        seat = self.seats[member]
        seat.replica = None
        seat.save = None

    def isolate(self, member: MemberId) -> None:
        """Cuts a member off, both ways."""
        for other in self.seats:
            if other != member:
                self.cut |= {(member, other), (other, member)}

    def heal(self) -> None:
        """Every link works again."""
        self.cut.clear()

    @property
    def running(self) -> list[Replica]:
        """The replicas that run."""
        return [seat.replica for seat in self.seats.values() if seat.replica is not None]

    @property
    def leader(self) -> Replica:
        """The leader of the highest term."""
        leaders = [replica for replica in self.running if replica.raft.leadership is not None]
        return max(leaders, key=lambda replica: replica.raft.term)

    def followers(self) -> list[Replica]:
        """Everyone who runs and does not lead."""
        return [replica for replica in self.running if replica is not self.leader]

    def settle(self) -> None:
        """Runs messages and saves to their end, without time passing."""
        for _ in range(100_000):
            if not self._pump_all() and not self._deliver() and not self._save_one():
                return
        raise AssertionError("the network never comes to rest")

    def run_for(self, duration_us: int) -> None:
        """Lets time pass, tick by tick."""
        for _ in range(duration_us // TICK_US):
            self.now_us += TICK_US
            for replica in self.running:
                replica.tick(self.now_us, GENESIS_US + self.now_us)
            self.settle()

    def elect(self) -> Replica:
        """Runs until there is a leader that everyone who runs follows."""
        for _ in range(100):
            self.run_for(100_000)
            known = {replica.raft.leader for replica in self.running}
            if any(known == {r.raft.member} for r in self.running if r.raft.leadership):
                return self.leader
        raise AssertionError("no leader within ten seconds")

    def submit(
        self, replica: Replica, *transactions: bytes, wait: Wait = Wait.COMMITTED
    ) -> list[Outcome]:
        """Submits; the list is filled once every outcome is there."""
        outcomes: list[Outcome] = []
        self.last_submission = Submission(transactions, wait=wait, on_done=outcomes.extend)
        replica.submit(self.last_submission)
        return outcomes

    def chain_of(self, replica: Replica) -> list[Block]:
        """The committed blocks that a replica has applied, genesis first."""
        return [replica.raft.log.block(index) for index in range(replica.applied_index + 1)]

    def committed_ids(self, replica: Replica) -> list[bytes]:
        """The ids in those blocks, but for genesis."""
        return [one for block in self.chain_of(replica)[1:] for one in ids_of(block)]

    def _pump_all(self) -> bool:
        busy = False
        for seat in self.seats.values():
            if seat.replica is None:
                continue
            effects = seat.replica.pump()
            for target, _lane, message in effects.envelopes:
                self._wire.append((seat.member, target, encode_message(message)))
            for serving in effects.servings:
                reply = encode_message(serve(seat.chain, serving))
                self._wire.append((seat.member, serving.target, reply))
                busy = True
            for one in effects.recorded:
                one.settle(seat.chain.block(one.place.index))
            if effects.save is not None:
                assert seat.save is None, "one save in flight"
                seat.save = effects.save
            busy = busy or bool(effects.envelopes) or effects.save is not None or effects.more
        return busy

    def _deliver(self) -> bool:
        if not self._wire:
            return False
        source, target, raw = self._wire.popleft()
        message = decode_message(raw)
        receiver = self.seats[target].replica
        if receiver is None or (source, target) in self.cut or self.held(message):
            self.lost.append(message)
        else:
            receiver.receive(source, message)
        return True

    def _save_one(self) -> bool:
        for seat in self.seats.values():
            if seat.save is None or seat.replica is None or seat.member in self.saves_held:
                continue
            save, seat.save = seat.save, None
            seat.chain.save(
                hard_state=save.hard_state, truncate_from=save.truncate_from, blocks=save.blocks
            )
            seat.replica.saved(save)
            return True
        return False


def transaction(number: int, payload: object = None, *, user_id: str = "ada") -> bytes:
    """Canonical bytes of a transaction whose id is `number`."""
    return encode_transaction(
        transaction_id=uuid.UUID(int=number).bytes,
        user_id=user_id,
        kind="note",
        payload=number if payload is None else payload,
    )
