"""A member's side of `node.catchup`: what it fetches, what it serves, and with whom it talks.

Relies on the core for what is committed here and for taking what arrives; pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from consensus.messages import BlocksReply
from node.catchup import MAX_RANGE_BLOCKS, RANGES_IN_FLIGHT, CatchUp
from node.effects import Envelope, Serving
from node.lane import Lane

if TYPE_CHECKING:
    from collections.abc import Collection

    from consensus.membership import Member
    from consensus.messages import BlocksRequest, MemberId
    from consensus.raft import Raft

MAX_UNSAVED_BLOCKS: Final = MAX_RANGE_BLOCKS * RANGES_IN_FLIGHT
"""Beyond these, the disk is what everything waits for: nothing more is asked for."""
MAX_SERVINGS: Final = 8
"""Ranges served in one turn of the loop; whoever asked for more asks again."""
MAX_FORMER: Final = 9
"""Removed members that are kept in contact, the latest ones, so that they can be told."""


class Fetching:
    """What this member asks for and serves."""

    def __init__(self, raft: Raft, seeds: Collection[MemberId]) -> None:
        """`seeds` are whom to ask as long as the own chain does not name this member."""
        self._raft = raft
        self._seeds = frozenset(seeds)
        self._catch_up = CatchUp(election_max_us=raft.config.election_max_us, random=raft.random)
        self._envelopes: list[Envelope] = []
        self._servings: list[Serving] = []

    @property
    def peers(self) -> dict[MemberId, Member | None]:
        """Whom to have connections with, and what the chain says of them.

        The members of the latest membership; who was removed, in order to be told; and seeds, of
        which the chain may not know yet: those have no member here. Nor has a seed of a node that
        joins, for its chain may end before that seed moved.
        """
        roster = self._raft.log.roster
        peers: dict[MemberId, Member | None] = dict.fromkeys(self._seeds)
        taken = {member.peer for member in roster.latest.members}
        former = roster.former(self._raft.log.last_index).values()
        latest = sorted(former, key=lambda gone: gone[1])[-MAX_FORMER:]
        peers |= {gone.public_key: gone for gone, _ in latest if gone.peer not in taken}
        peers |= {member.public_key: member for member in roster.latest.members}
        if (
            self._raft.member
            not in roster.latest.keys | roster.former(self._raft.log.last_index).keys()
        ):
            peers |= dict.fromkeys(self._seeds)
        peers.pop(self._raft.member, None)
        return peers

    def go_on(self, now_us: int) -> bool:
        """Takes what has arrived, one answer in a turn of the loop, and asks for more.

        True where more may be there for the next turn.
        """
        log, catch_up = self._raft.log, self._catch_up
        fetched = catch_up.take(log.commit_index)
        if fetched is not None:
            self._raft.take_fetched(fetched.first, fetched.blocks)
            if log.commit_index < fetched.last_index:
                catch_up.shun(fetched.source, now_us)
        catch_up.target_index = max(catch_up.target_index, self._raft.fetch_through)
        if log.last_index - log.saved_index < MAX_UNSAVED_BLOCKS and self._raft.leadership is None:
            self._ask(now_us)
        return fetched is not None

    def heard(self, source: MemberId) -> None:
        """A peer has sent something, or is connected: it lives, and may be asked."""
        self._catch_up.heard(source)

    def on_request(self, source: MemberId, request: BlocksRequest) -> None:
        """Serves committed blocks; who was a member is told of its removal, and no more."""
        log = self._raft.log
        through = min(log.commit_index, log.saved_index)
        gone = log.roster.former(through).get(source)
        if gone is not None:
            through = gone[1]
        count = min(request.through, through) - request.first + 1
        if request.first < 1 or count < 1:
            reply = BlocksReply(request.first, through, ())
            self._envelopes.append(Envelope(source, Lane.CONTROL, reply))
        elif len(self._servings) < MAX_SERVINGS:
            count = min(count, MAX_RANGE_BLOCKS)
            self._servings.append(Serving(source, request.first, count, through))

    def on_reply(self, source: MemberId, reply: BlocksReply, now_us: int) -> None:
        """Keeps what was asked for, for its turn."""
        self._catch_up.arrived(source, reply, now_us)

    def take_envelopes(self) -> list[Envelope]:
        """What to send now."""
        envelopes, self._envelopes = self._envelopes, []
        return envelopes

    def take_servings(self) -> tuple[Serving, ...]:
        """What to read and send now."""
        servings, self._servings = tuple(self._servings), []
        return servings

    def _ask(self, now_us: int) -> None:
        keys = self._raft.log.roster.latest.keys
        others = keys | self._seeds
        for target, request in self._catch_up.requests(
            now_us=now_us,
            commit_index=self._raft.log.commit_index,
            leader=self._raft.leader,
            peers=(keys if self._raft.member in keys else others) - {self._raft.member},
            seeds=others - {self._raft.member},
        ):
            self._envelopes.append(Envelope(target, Lane.CONTROL, request))
