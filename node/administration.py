"""Calls that change the cluster itself: its members, and who leads.

Only the leader can make them; elsewhere they are refused as `not-leader`, and whoever asked goes to
the leader. Relies on the loop for taking them to the replica and for waiting.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from consensus.changes import Change, ChangeError, ChangeKind, ChangeRefusal
from consensus.membership import Member
from node.http_place import share_http
from node.outcomes import NoLeaderError, UnknownChangeError

if TYPE_CHECKING:
    from consensus.block import Block
    from consensus.changes import Membership
    from node.loop import MemberLoop
    from node.replica import Replica


@dataclass(frozen=True, slots=True)
class MadeChange:
    """A change of the membership that is committed: the block that records it, and its members."""

    index: int
    block_hash: bytes
    membership: Membership


class Administration:
    """The administrative calls of one running node. Every one may raise ChangeError.

    Raises of all changes besides: UnknownChangeError, where no answer came within `timeout_s`, or
    the leadership was lost meanwhile; the change may be made all the same.
    """

    def __init__(self, loop: MemberLoop, replica: Replica) -> None:
        """Calls go through `loop` alone."""
        self._loop = loop
        self._replica = replica

    @property
    def membership(self) -> Membership:
        """The membership that is in force here."""
        return self._replica.raft.log.roster.latest

    async def add(self, member: Member, *, timeout_s: float) -> MadeChange:
        """Adds a learner. It becomes a voter by itself once it has caught up."""
        self._refuse_follower()
        self._refuse_taken(member)
        return await self._make(Change(ChangeKind.ADD, member), timeout_s)

    async def promote(self, name: str, *, timeout_s: float) -> MadeChange:
        """Makes a learner that has caught up a voter now."""
        return await self._make(self._change(ChangeKind.PROMOTE, name), timeout_s)

    async def remove(self, name: str, *, timeout_s: float) -> MadeChange:
        """Removes a member, this one as well: then it hands over first to be done."""
        return await self._make(self._change(ChangeKind.REMOVE, name), timeout_s)

    async def move(
        self, name: str, *, peer: str | None, http: str | None, timeout_s: float
    ) -> MadeChange:
        """Gives a member other addresses; None keeps the one it has."""
        self._refuse_follower()
        before = self.membership.named(name)
        after = Member(name, before.public_key, peer or before.peer, http or before.http)
        self._refuse_taken(after, but=name)
        return await self._make(Change(ChangeKind.MOVE, after), timeout_s)

    async def transfer_leadership(self, to: str | None = None, *, timeout_s: float) -> str:
        """Hands over to the voter `to`, or to whoever is closest; returns who leads then.

        Raises:
            NoLeaderError: nobody else took over within `timeout_s`.
        """
        self._refuse_follower()
        target = self.membership.named(to).public_key if to is not None else None
        raft = self._replica.raft
        self._loop.transfer_leadership(target)
        try:
            async with asyncio.timeout(timeout_s):
                while (leader := raft.leader) in {None, raft.member}:
                    await self._loop.wait_leader_news()
        except TimeoutError as error:
            raise NoLeaderError(f"nobody took over within {timeout_s:g} s") from error
        # Its own removal may be the latest change here: then only the one before knows it.
        roster = raft.log.roster
        former = [member for member, _ in roster.former(roster.latest_index).values()]
        return next(m.name for m in (*roster.latest.members, *former) if m.public_key == leader)

    def _change(self, kind: ChangeKind, name: str) -> Change:
        self._refuse_follower()
        return Change(kind, self.membership.named(name))

    def _refuse_follower(self) -> None:
        """A follower's chain may be behind: what it does not know is for the leader to say."""
        if self._replica.raft.leadership is None:
            raise ChangeError(ChangeRefusal.NOT_LEADER, "this node does not lead")

    def _refuse_taken(self, member: Member, *, but: str | None = None) -> None:
        """The core refuses it as well, but for `http`, and cannot say whose it is."""
        for one in self.membership.members:
            if one.name == but:
                continue
            for what in ("name", "public_key", "peer"):
                if getattr(one, what) == getattr(member, what):
                    raise _taken(what, one)
            if share_http(one, member):
                raise _taken("http", one)

    async def _make(self, change: Change, timeout_s: float) -> MadeChange:
        settled: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def settle(is_committed: bool) -> None:  # noqa: FBT001 - a future's value
            if not settled.done():
                settled.set_result(is_committed)

        block: Block = self._loop.change_membership(change, settle)
        membership = self.membership
        try:
            is_committed = await asyncio.wait_for(settled, timeout_s)
        except TimeoutError as error:
            raise UnknownChangeError(
                f"block {block.index} with the change is not committed within {timeout_s:g} s; "
                "it may be later"
            ) from error
        if not is_committed:
            raise UnknownChangeError("another leader took over, and the change is not made")
        return MadeChange(block.index, block.hash, membership)


def _taken(what: str, one: Member) -> ChangeError:
    return ChangeError(ChangeRefusal.INVALID, f"{what}: is that of the member {one.name}")
