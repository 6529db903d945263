"""Three members of one cluster in this process: the shipped replicas, without sockets and disks.

Messages are encoded, travel in the order sent and are decoded; saves go to memory. Time stands
still but for elections. So what a transaction costs here is CPU time and nothing else, and the same
each time. Relies on `node.replica` and on `storage.memory`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Final

from nacl.signing import SigningKey

from consensus.block import Sealer
from consensus.leadership import RaftConfig
from consensus.membership import Genesis, Member, genesis_block
from consensus.messages import decode_message, encode_message
from consensus.raft import Raft
from node.mempool import QueueLimits
from node.replica import Replica
from storage.memory import MemoryChain
from storage.recent import Lookup, RecentIndex

if TYPE_CHECKING:
    from collections.abc import Sequence

    from consensus.block import Block
    from consensus.messages import MemberId
    from consensus.ready import Save
    from storage.recent import Place

SIZE: Final = 3
_START_US: Final = 1_700_000_000_000_000
_TICK_US: Final = 10_000
_ELECTION_TICKS: Final = 1_000


class NothingIndexed:
    """An index store that holds nothing: what is recent is answered from memory alone."""

    def places(self, ids: Sequence[bytes]) -> list[Place | None]:
        """Know none of them."""
        return [None] * len(ids)

    def history(
        self, user_id: str, *, after: Place | None, limit: int, newest_first: bool
    ) -> list[Place]:
        """Know nobody."""
        del user_id, after, limit, newest_first
        return []


@dataclass(slots=True)
class Seat:
    """One member, its chain, and the save that it has under way."""

    replica: Replica
    chain: MemoryChain
    save: Save | None = None


class Members:
    """A cluster that is driven by hand."""

    def __init__(self, *, seed: int = 1) -> None:
        """Start all members and elect one of them."""
        random = Random(seed)
        keys = [SigningKey(random.randbytes(32)) for _ in range(SIZE)]
        members = tuple(
            Member(
                name=f"node{number}",
                public_key=bytes(key.verify_key),
                peer=f"127.0.0.1:{7000 + number}",
                http=f"127.0.0.1:{8000 + number}",
            )
            for number, key in enumerate(keys, start=1)
        )
        genesis = genesis_block(Genesis(name="bench", created_us=_START_US, members=members))
        self._seats = {bytes(key.verify_key): _seat(key, genesis, random) for key in keys}
        self._wire: deque[tuple[MemberId, MemberId, bytes]] = deque()
        self._now_us = 0
        self.leader = self._elect()

    def settle(self) -> None:
        """Carry everything that is under way to its end, without time passing."""
        is_busy = True
        while is_busy:
            pumped = [self._pump(member) for member in self._seats]
            is_busy = any(pumped)
            while self._wire:
                source, target, raw = self._wire.popleft()
                self._seats[target].replica.receive(source, decode_message(raw))
            for seat in self._seats.values():
                _finish_save(seat)

    def forget_applied(self) -> None:
        """Let the index answer for all that is applied, as a node does when it is flushed."""
        for seat in self._seats.values():
            seat.replica.flushed(seat.replica.applied_index)

    def _elect(self) -> Replica:
        for _ in range(_ELECTION_TICKS):
            self._now_us += _TICK_US
            for seat in self._seats.values():
                seat.replica.tick(self._now_us, _START_US + self._now_us)
            self.settle()
            for seat in self._seats.values():
                if seat.replica.raft.leadership is not None and seat.replica.applied_index > 0:
                    return seat.replica
        raise AssertionError("healthy members elect a leader")

    def _pump(self, member: MemberId) -> bool:
        """Let a member go on; whether it had anything to do."""
        seat = self._seats[member]
        effects = seat.replica.pump()
        for target, _, message in effects.envelopes:
            self._wire.append((member, target, encode_message(message)))
        if effects.save is not None:
            assert seat.save is None, "one save is in flight"
            seat.save = effects.save
        return bool(effects.envelopes) or effects.save is not None or effects.more


def _seat(key: SigningKey, genesis: Block, random: Random) -> Seat:
    chain = MemoryChain(genesis)
    recent = RecentIndex()
    raft = Raft(
        config=RaftConfig(),
        member=bytes(key.verify_key),
        cluster_id=genesis.hash,
        sealer=Sealer(key, genesis.hash, random),
        chain=chain,
        hard_state=chain.hard_state,
        applied_index=0,
        random=random,
    )
    lookup = Lookup(NothingIndexed(), recent)
    replica = Replica(raft=raft, recent=recent, lookup=lookup, limits=QueueLimits())
    replica.tick(0, _START_US)
    return Seat(replica, chain)


def _finish_save(seat: Seat) -> None:
    if seat.save is None:
        return
    save, seat.save = seat.save, None
    seat.chain.save(
        hard_state=save.hard_state, truncate_from=save.truncate_from, blocks=save.blocks
    )
    seat.replica.saved(save)
