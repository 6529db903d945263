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
    from collections.abc import Sequence
    from collections.abc import Set as AbstractSet
    from random import Random

    from consensus.messages import MemberId
    from node.effects import Serving
    from storage.contract import Chain

MAX_RANGE_BLOCKS: Final = 64
"""Blocks of one answer; to verify them takes a few milliseconds of the loop."""
MAX_RANGE_BYTES: Final = 1 << 20
FIRST_RANGE_BLOCKS: Final = 4
"""The first range, before an answer has told how large blocks are and how long they take."""
MAX_LATE: Final = 64
"""Ranges given up whose answer is still taken when it comes."""
RANGES_IN_FLIGHT: Final = 4
PATIENCE_US: Final = 2_000_000
"""An answer that takes longer is taken for lost, and another member is asked."""
FIRST_PATIENCE_US: Final = 500_000
"""The same for a member's first answer: most of those that a new node is told of may be gone."""
SHUN_US: Final = 1_000_000
"""Who has not got the blocks is asked again after this long."""
SILENCE_SHUN_US: Final = 2 * PATIENCE_US
"""Who did not answer is asked again after this long, and after each further time twice as long.

Longer than to wait for another one: else two members that are gone, one of them shunned while the
other is waited for, would keep this one from ever asking the leader.
"""
MAX_SHUN_US: Final = 64_000_000


@dataclass(frozen=True, slots=True)
class _Asked:
    """A range that is on its way."""

    through: int
    target: MemberId
    due_us: int


class Fetched(NamedTuple):
    """Encoded blocks from `first` on, and who sent them."""

    source: MemberId
    term: int
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
        self._late: dict[tuple[int, MemberId], int] = {}
        self._arrived: dict[int, Fetched] = {}
        self._shunned: dict[MemberId, int] = {}
        self._silent: dict[MemberId, int] = {}
        self._alive: set[MemberId] = set()
        self._unreached: set[MemberId] = set()
        self._answered: set[MemberId] = set()
        self._block_bytes: int | None = None
        self._orphan_since_us: int | None = None

    def rests(self, commit_index: int, fetch_through: int, leader: MemberId | None) -> bool:
        """Whether nothing is on its way or to be asked for, as nearly always."""
        if leader is None or self._asked or self._arrived:
            return False
        self._orphan_since_us = None
        return max(self.target_index, fetch_through) <= commit_index

    def requests(
        self,
        *,
        now_us: int,
        commit_index: int,
        leader: MemberId | None,
        peers: AbstractSet[MemberId],
    ) -> list[tuple[MemberId, BlocksRequest]]:
        """What to ask now, and whom; `commit_index` is how far this member has come."""
        self._forget_lost(now_us, commit_index)
        if self.target_index <= commit_index:
            return self._ask_around(now_us, commit_index, leader, peers)
        asked = []
        for first, through in self._open_ranges(commit_index):
            target = self._choose(now_us, leader, peers)
            if target is None:
                break
            asked.append((target, self._ask(target, first, through, now_us)))
        return asked

    def arrived(self, source: MemberId, reply: BlocksReply, now_us: int) -> bool:
        """Takes an answer; False where nobody asked for it, or it says nothing."""
        through = self._through(source, reply.first)
        if through is None:
            return False
        self._answered.add(source)
        self._unreached.discard(source)
        self.heard(source)
        self.target_index = max(self.target_index, reply.commit_index)
        if not reply.blocks:
            self.shun(source, now_us)
            return False
        self._block_bytes = max(1, sum(map(len, reply.blocks)) // len(reply.blocks))
        blocks = reply.blocks[: through - reply.first + 1]
        self._arrived[reply.first] = Fetched(source, reply.term, reply.first, blocks)
        return True

    def shun(self, member: MemberId, now_us: int) -> None:
        """That member has not got the blocks, or not the right ones: ask others for a while."""
        self._shunned[member] = now_us + SHUN_US
        for first in [first for first, one in self._arrived.items() if one.source == member]:
            del self._arrived[first]

    def heard(self, member: MemberId) -> None:
        """That member has said something: it is asked rather than others.

        Unless it spoke before and did not answer: it may be elsewhere than this member looks.
        """
        self._alive.add(member)
        if member in self._unreached:
            return
        if self._silent.pop(member, None) is not None:
            self._shunned.pop(member, None)

    def reachable(self, member: MemberId) -> None:
        """The connection to that member is there (again): what is asked of it arrives."""
        self._unreached.discard(member)
        self.heard(member)

    def unreachable(self, member: MemberId) -> None:
        """The connection broke, and what was asked of that member will not be answered."""
        self._alive.discard(member)
        for first in [first for first, asked in self._asked.items() if asked.target == member]:
            del self._asked[first]

    def take(self, commit_index: int, max_bytes: int) -> Fetched | None:
        """The next blocks in order, if they are there: at least one, about `max_bytes` at most."""
        fetched = self._arrived.pop(commit_index + 1, None)
        if fetched is None:
            return None
        count, size_bytes = 1, len(fetched.blocks[0])
        while count < len(fetched.blocks) and size_bytes < max_bytes:
            size_bytes += len(fetched.blocks[count])
            count += 1
        rest = fetched.blocks[count:]
        if rest:
            first = fetched.first + count
            self._arrived[first] = fetched._replace(first=first, blocks=rest)
        return fetched._replace(blocks=fetched.blocks[:count])

    def _through(self, source: MemberId, first: int) -> int | None:
        """How far that member was asked from `first` on; None where it was not, or it is here.

        An answer that comes late is taken all the same: over a slow link none comes in time.
        """
        asked = self._asked.get(first)
        if asked is not None and asked.target == source:
            del self._asked[first]
            return asked.through
        through = self._late.pop((first, source), None)
        if through is not None and first not in self._arrived:
            self._asked.pop(first, None)
            return through
        return None

    def _forget_lost(self, now_us: int, commit_index: int) -> None:
        """Ranges whose answer is overdue are open again; those left behind are of no use."""
        lost = [first for first, asked in self._asked.items() if now_us >= asked.due_us]
        for first in lost:
            self._late[first, self._asked[first].target] = self._asked[first].through
        while len(self._late) > MAX_LATE:
            del self._late[next(iter(self._late))]
        for target in sorted({self._asked.pop(first).target for first in lost}):
            shun_us, longest_us = SILENCE_SHUN_US, MAX_SHUN_US
            if target in self._alive:
                # It lives, so it is looked for again before long.
                self._unreached.add(target)
                shun_us, longest_us = SHUN_US, SILENCE_SHUN_US
            self._alive.discard(target)
            self._answered.discard(target)
            length_us = min(2 * self._silent.get(target, shun_us // 2), longest_us)
            self._silent[target] = length_us
            self._shunned[target] = now_us + length_us
        for known in (self._asked, self._arrived):
            for first in [first for first in known if first <= commit_index]:
                del known[first]

    def _open_ranges(self, commit_index: int) -> list[tuple[int, int]]:
        """The next ranges to ask for: what is neither here nor on its way, in order.

        Until the first answer has told how large the blocks are, one range is asked for.
        """
        size, limit = FIRST_RANGE_BLOCKS, 1
        if self._block_bytes is not None:
            size = max(1, min(MAX_RANGE_BLOCKS, MAX_RANGE_BYTES // self._block_bytes))
            limit = RANGES_IN_FLIGHT
        ranges: list[tuple[int, int]] = []
        first = commit_index + 1
        room = limit - len(self._asked) - len(self._arrived)
        if first not in self._asked and first not in self._arrived:
            room = max(1, room)  # without these nothing that is here can be taken
        while first <= self.target_index and len(ranges) < room:
            if first in self._arrived:
                first = self._arrived[first].last_index + 1
            elif first in self._asked:
                first = self._asked[first].through + 1
            else:
                through = min(first + size - 1, self.target_index, self._next_known(first) - 1)
                ranges.append((first, through))
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
        peers: AbstractSet[MemberId],
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
        target = self._choose(now_us, leader, peers)
        if target is None:
            return []
        return [(target, self._ask(target, first, through, now_us))]

    def _ask(self, target: MemberId, first: int, through: int, now_us: int) -> BlocksRequest:
        patience_us = PATIENCE_US if target in self._answered else FIRST_PATIENCE_US
        self._asked[first] = _Asked(through, target, now_us + patience_us)
        return BlocksRequest(first, through)

    def _choose(
        self, now_us: int, leader: MemberId | None, peers: AbstractSet[MemberId]
    ) -> MemberId | None:
        """Anyone who is alive and not shunned, then the leader, then whoever else is not shunned.

        The leader has enough to do; but of those that nothing was heard of, most may be gone. Who
        did not answer last time is asked one thing at a time, so that several are tried at once.
        """
        busy = {asked.target for asked in self._asked.values()} - self._answered
        willing = sorted(p for p in peers - busy if self._shunned.get(p, 0) <= now_us)
        alive = [peer for peer in willing if peer in self._alive and peer != leader]
        leading = [peer for peer in willing if peer == leader]
        choice = alive or leading or willing
        return self._random.choice(choice) if choice else None


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
    return BlocksReply(serving.term, serving.first, serving.commit_index, tuple(blocks))
