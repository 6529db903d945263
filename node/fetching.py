"""A member's side of `node.catchup`: what it fetches, what it serves, and with whom it talks.

Relies on the core for what is committed here and for taking what arrives; pure.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from consensus.messages import BlocksReply
from node.catchup import MAX_RANGE_BLOCKS, RANGES_IN_FLIGHT, CatchUp
from node.effects import Envelope, Serving
from node.lane import Lane

if TYPE_CHECKING:
    from collections.abc import Mapping

    from consensus.changes import Membership
    from consensus.membership import Member
    from consensus.messages import BlocksRequest, MemberId
    from consensus.raft import Raft

MAX_UNSAVED_BLOCKS: Final = MAX_RANGE_BLOCKS * RANGES_IN_FLIGHT
"""Beyond these, the disk is what everything waits for: nothing more is asked for."""
MAX_SERVINGS: Final = RANGES_IN_FLIGHT
"""Ranges that are being read for one peer; whoever asks for more asks again."""
SLICE_BYTES: Final = 256 << 10
"""Blocks taken in one turn of the loop: verifying them takes some ten milliseconds."""
MAX_FORMER: Final = 9
"""Removed members that are kept in contact, the latest ones, so that they can be told."""


class Fetching:
    """What this member asks for and serves."""

    def __init__(self, raft: Raft, seeds: Mapping[MemberId, Member], seeds_index: int) -> None:
        """`seeds` were members when `seeds_index` was committed; see `peers`."""
        self._raft = raft
        self._seeds = {key: seed for key, seed in seeds.items() if key != raft.member}
        self._seeds_index = seeds_index
        self._reading: Counter[MemberId] = Counter()
        self._memberships: list[Membership] = []
        self._catch_up = CatchUp(election_max_us=raft.config.election_max_us, random=raft.random)
        self._envelopes: list[Envelope] = []
        self._servings: list[Serving] = []

    @property
    def peers(self) -> dict[MemberId, Member]:
        """Whom to have connections with, and where.

        The members of the latest membership, and who was removed, in order to be told. A member
        that moves is looked for where it was until that is committed: before, nobody moves. Seeds
        besides: until this chain has come as far as they were told of, what it says of them may be
        out of date, and theirs counts; after that, they are for when nobody else leads or answers.
        """
        roster = self._raft.log.roster
        gone = roster.former(self._raft.log.last_index)
        latest = sorted(gone.values(), key=lambda one: one[1])[-MAX_FORMER:]
        spare = {member.public_key: member for member, _ in latest}
        spare |= {key: seed for key, seed in self._seeds.items() if key not in gone}
        before = roster.at(self._raft.log.commit_index)
        members = {member.public_key: member for member in roster.latest.members}
        members |= {one.public_key: one for one in before.members if one.public_key in members}
        taken = {member.peer for member in members.values()}
        peers = {key: one for key, one in spare.items() if one.peer not in taken} | members
        if self._is_behind_seeds:
            peers |= self._seeds
        peers.pop(self._raft.member, None)
        return peers

    @property
    def _is_behind_seeds(self) -> bool:
        return self._raft.log.commit_index < self._seeds_index

    def note_members(self) -> bool:
        """Whether the latest or the committed membership is another than at the last call."""
        log = self._raft.log
        before, self._memberships = self._memberships, [log.roster.latest]
        if log.roster.latest_index > log.commit_index:
            self._memberships.append(log.roster.at(log.commit_index))
        return self._memberships != before

    def go_on(self, now_us: int) -> bool:
        """Takes what has arrived, one answer in a turn of the loop, and asks for more.

        True where more may be there for the next turn.
        """
        log, catch_up = self._raft.log, self._catch_up
        if self._raft.alarm is not None or self._catch_up.rests(
            log.commit_index, self._raft.fetch_through, self._raft.leader
        ):
            return False
        fetched = catch_up.take(log.commit_index, SLICE_BYTES)
        if fetched is not None:
            self._raft.take_fetched(fetched.term, fetched.first, fetched.blocks)
            if log.commit_index < fetched.last_index:
                catch_up.shun(fetched.source, now_us)
        catch_up.target_index = max(catch_up.target_index, self._raft.fetch_through)
        if log.last_index - log.saved_index < MAX_UNSAVED_BLOCKS and self._raft.leadership is None:
            self._ask(now_us)
        return fetched is not None

    def on_request(self, source: MemberId, request: BlocksRequest) -> None:
        """Serves committed blocks; who was a member is told of its removal, and no more."""
        log = self._raft.log
        through = min(log.commit_index, log.saved_index)
        gone = log.roster.former(through).get(source)
        if gone is not None:
            through = gone[1]
        count = min(request.through, through) - request.first + 1
        if request.first < 1 or count < 1:
            reply = BlocksReply(self._raft.durable_term, request.first, through, ())
            self._envelopes.append(Envelope(source, Lane.CONTROL, reply))
        elif self._reading[source] < MAX_SERVINGS:
            self._reading[source] += 1
            count = min(count, MAX_RANGE_BLOCKS)
            term = self._raft.durable_term
            self._servings.append(Serving(source, request.first, count, term, through))

    def served(self, target: MemberId) -> None:
        """What was read for a peer has left, or could not be read."""
        self._reading[target] -= 1

    def on_reply(self, source: MemberId, reply: BlocksReply, now_us: int) -> None:
        """Keeps what was asked for, for its turn."""
        self._catch_up.arrived(source, reply, now_us)

    def heard(self, peer: MemberId) -> None:
        """`peer` has said something."""
        self._catch_up.heard(peer)

    def reachable(self, peer: MemberId) -> None:
        """The connection to `peer` is there (again)."""
        self._catch_up.reachable(peer)

    def unreachable(self, peer: MemberId) -> None:
        """The connection to `peer` broke."""
        self._catch_up.unreachable(peer)

    def take_envelopes(self) -> list[Envelope]:
        """What to send now."""
        envelopes, self._envelopes = self._envelopes, []
        return envelopes

    def take_servings(self) -> tuple[Serving, ...]:
        """What to read and send now."""
        servings, self._servings = tuple(self._servings), []
        return servings

    def _ask(self, now_us: int) -> None:
        # A change that is not committed may be undone by the very blocks that are asked for.
        log = self._raft.log
        keys = log.roster.latest.keys | log.roster.at(log.commit_index).keys
        if self._is_behind_seeds or self._raft.leader is None:
            keys |= self._seeds.keys()
        for target, request in self._catch_up.requests(
            now_us=now_us,
            commit_index=self._raft.log.commit_index,
            leader=self._raft.leader,
            peers=keys - {self._raft.member},
        ):
            self._envelopes.append(Envelope(target, Lane.CONTROL, request))
