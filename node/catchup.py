"""How a member that is far behind gets its blocks: it fetches them, from whoever has them.

The leader sends from memory alone and tells a member that needs older blocks how far to fetch
(`Heartbeat.fetch_through`). That member asks for ranges of committed blocks, several at once and of
several members, those that do not lead first, and takes the answers in order; every block is
verified like a leader's. A member that hears of no leader asks around too: a new one learns so who
the members are, one that was removed learns that, and one that missed a change finds its way back.
Pure; time comes in as microseconds. Relies on what `Raft.take_fetched` makes of the blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from consensus.messages import BlocksReply, BlocksRequest
from storage.errors import DamagedBlockError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from random import Random

    from consensus.messages import MemberId
    from node.effects import Serving
    from storage.contract import Chain

MAX_RANGE_BLOCKS: Final = 64
"""Blocks of one answer; to verify them takes a few milliseconds of the loop."""
MAX_RANGE_BYTES: Final = 1 << 20
RANGES_IN_FLIGHT: Final = 4
PATIENCE_US: Final = 2_000_000
"""An answer that takes longer is taken for lost, and another member is asked."""
FIRST_PATIENCE_US: Final = 500_000
"""As above, for a member's first answer: most of those that a new node is told of may be gone."""
SHUN_US: Final = 1_000_000
"""Who did not answer, or has not got the blocks, is asked again after this long."""
SILENT_US: Final = 30_000_000
"""Who did not answer is asked after everybody else for this long, the leader included: the others
that this member knows of may all have left the cluster since."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """A range that is on its way."""

    through: int
    target: MemberId
    due_us: int


class Fetched(NamedTuple):
    """Encoded blocks from `first` on, and who sent them."""

    source: MemberId
    first: int
    blocks: tuple[bytes, ...]

    @property
    def last_index(self) -> int:
        """The index of the last block."""
        return self.first + len(self.blocks) - 1


class CatchUp:
    """The ranges that one member has asked for and not taken yet."""

    def __init__(self, *, election_max_us: int, random: Random) -> None:
        """Idle until `requests` finds something to ask for."""
        self.target_index = 0
        """How far others are known to have committed."""
        self._election_max_us = election_max_us
        self._random = random
        self._asked: dict[int, _Asked] = {}
        self._arrived: dict[int, Fetched] = {}
        self._shunned: dict[MemberId, int] = {}
        self._block_bytes: int | None = None
        self._silent: dict[MemberId, int] = {}
        self._tried: set[MemberId] = set()
        self._answered: set[MemberId] = set()
        self._orphan_since_us: int | None = None

    def requests(
        self,
        *,
        now_us: int,
        commit_index: int,
        leader: MemberId | None,
        peers: Collection[MemberId],
        seeds: Collection[MemberId] = (),
    ) -> list[tuple[MemberId, BlocksRequest]]:
        """What to ask now, and whom; `commit_index` is how far this member has come.

        `seeds` are asked where no peer answers: all those that the chain knows may have left.
        """
        self._forget_lost(now_us, commit_index)
        if self.target_index <= commit_index:
            return self._ask_around(now_us, commit_index, leader, (peers, seeds))
        asked = []
        for first, through in self._open_ranges(commit_index):
            target = self._choose(now_us, leader, (peers, seeds))
            if target is None:
                break
            asked.append((target, self._ask(target, first, through, now_us)))
        return asked

    def arrived(self, source: MemberId, reply: BlocksReply, now_us: int) -> bool:
        """Takes an answer; False where nobody asked for it, or it says nothing."""
        asked = self._asked.get(reply.first)
        if asked is None or asked.target != source:
            return False
        del self._asked[reply.first]
        self._answered.add(source)
        self.target_index = max(self.target_index, reply.commit_index)
        if not reply.blocks:
            self.shun(source, now_us)
            return False
        self._block_bytes = max(1, sum(map(len, reply.blocks)) // len(reply.blocks))
        blocks = reply.blocks[: asked.through - reply.first + 1]
        self._arrived[reply.first] = Fetched(source, reply.first, blocks)
        return True

    def heard(self, member: MemberId) -> None:
        """That member lives."""
        self._silent.pop(member, None)

    def shun(self, member: MemberId, now_us: int) -> None:
        """That member has not got the blocks, or not the right ones: ask others for a while."""
        self._shunned[member] = now_us + SHUN_US

    def take(self, commit_index: int) -> Fetched | None:
        """The next blocks in order, if they are there."""
        return self._arrived.pop(commit_index + 1, None)

    def _forget_lost(self, now_us: int, commit_index: int) -> None:
        """Ranges whose answer is overdue are open again; those left behind are of no use."""
        for first, asked in list(self._asked.items()):
            if now_us >= asked.due_us:
                del self._asked[first]
                self.shun(asked.target, now_us)
                self._silent[asked.target] = now_us + SILENT_US
                self._answered.discard(asked.target)
        for known in (self._asked, self._arrived):
            for first in [first for first in known if first <= commit_index]:
                del known[first]

    def _open_ranges(self, commit_index: int) -> list[tuple[int, int]]:
        """The next ranges to ask for: what is neither here nor on its way, in order.

        Until the first answer has told how large the blocks are, one range is asked for.
        """
        size, limit = MAX_RANGE_BLOCKS, 1
        if self._block_bytes is not None:
            size = max(1, min(size, MAX_RANGE_BYTES // self._block_bytes))
            limit = RANGES_IN_FLIGHT
        ranges = []
        first = commit_index + 1
        while first <= self.target_index and len(self._asked) + len(self._arrived) < limit:
            if first in self._arrived:
                first = self._arrived[first].last_index + 1
            elif first in self._asked:
                first = self._asked[first].through + 1
            else:
                through = min(first + size - 1, self.target_index, self._next_known(first) - 1)
                ranges.append((first, through))
                limit -= 1
                first = through + 1
        return ranges

    def _next_known(self, first: int) -> int:
        """The first range beyond `first` that is here or on its way."""
        beyond = [known for known in (*self._asked, *self._arrived) if known > first]
        return min(beyond, default=self.target_index + 1)

    def _ask_around(
        self,
        now_us: int,
        commit_index: int,
        leader: MemberId | None,
        known: Sequence[Collection[MemberId]],
    ) -> list[tuple[MemberId, BlocksRequest]]:
        """Without a leader for an election timeout: ask one member, and another after a while."""
        if leader is not None:
            self._orphan_since_us = None
            return []
        if self._orphan_since_us is None:
            self._orphan_since_us = now_us
        first, through = commit_index + 1, commit_index + MAX_RANGE_BLOCKS
        if now_us - self._orphan_since_us < self._election_max_us or first in self._asked:
            return []
        self._orphan_since_us = now_us
        target = self._choose(now_us, leader, known)
        if target is None:
            return []
        return [(target, self._ask(target, first, through, now_us))]

    def _ask(self, target: MemberId, first: int, through: int, now_us: int) -> BlocksRequest:
        patience_us = PATIENCE_US if target in self._tried else FIRST_PATIENCE_US
        self._tried.add(target)
        self._asked[first] = _Asked(through, target, now_us + patience_us)
        return BlocksRequest(first, through)

    def _choose(
        self, now_us: int, leader: MemberId | None, known: Sequence[Collection[MemberId]]
    ) -> MemberId | None:
        """Anyone who is not shunned: peers, the leader, seeds, then who was silent the longest.

        The leader has enough to do; but it is alive, which of the others nobody knows. Who did not
        answer last time is asked one thing at a time, so that several are tried at once.
        """
        busy = {asked.target for asked in self._asked.values()} - self._answered
        able = [
            sorted(p for p in group if self._shunned.get(p, 0) <= now_us and p not in busy)
            for group in known
        ]
        heard = [
            [p for p in group if p != leader and self._silent.get(p, 0) <= now_us] for group in able
        ]
        leading = [leader] if leader is not None and any(leader in group for group in able) else []
        for group in (heard[0], leading, *heard[1:]):
            if group:
                return self._random.choice(group)
        return min((p for group in able for p in group), key=self._silent.__getitem__, default=None)


def serve(chain: Chain, serving: Serving) -> BlocksReply:
    """Reads what a peer asked for; a block that is damaged here is for another member to serve."""
    try:
        blocks: Sequence[bytes] = [
            block.encode()
            for block in chain.blocks(
                serving.first, max_blocks=serving.count, max_bytes=MAX_RANGE_BYTES
            )
        ]
    except DamagedBlockError:
        blocks = ()
    return BlocksReply(serving.first, serving.commit_index, tuple(blocks))
