"""The administrative calls of a ledger held in memory: the core's own rules, at once or never.

What is refused, lost or slow is set by the test. Relies on `consensus.changes`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from consensus.changes import (
    Change,
    ChangeError,
    ChangeKind,
    ChangeRefusal,
    change_transaction,
)
from consensus.membership import Member
from node.administration import MadeChange

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.node.fake_ledger import FakeNode


class FakeAdministration:
    """What `node.api.interface.ClusterCalls` asks for."""

    def __init__(self, node: FakeNode) -> None:
        self._node = node
        self.calls: list[str] = []
        """Each call in words: `add node4`."""
        self.timeouts_s: list[float] = []
        self.faults: list[Exception] = []
        """Each is raised by one call, in their order."""
        self.looks_to_promote: int | None = None
        """A learner votes once its cluster was looked at so often after it was added."""
        self.on_look: Callable[[], None] | None = None

    async def add(self, member: Member, *, timeout_s: float) -> MadeChange:
        """Add a learner."""
        return self._make(f"add {member.name}", Change(ChangeKind.ADD, member), timeout_s)

    async def promote(self, name: str, *, timeout_s: float) -> MadeChange:
        """Make a learner a voter."""
        return self._named(ChangeKind.PROMOTE, name, timeout_s)

    async def remove(self, name: str, *, timeout_s: float) -> MadeChange:
        """Remove a member."""
        return self._named(ChangeKind.REMOVE, name, timeout_s)

    async def move(
        self, name: str, *, peer: str | None, http: str | None, timeout_s: float
    ) -> MadeChange:
        """Give a member other addresses."""
        what = f"move {name} peer={peer} http={http}"
        self._begin(what, timeout_s)
        before = self._node.membership.named(name)
        after = Member(name, before.public_key, peer or before.peer, http or before.http)
        return self._seal(Change(ChangeKind.MOVE, after))

    async def transfer_leadership(self, to: str | None = None, *, timeout_s: float) -> str:
        """Hand over to a member, or to the next one by name."""
        self._begin(f"transfer {to}", timeout_s)
        others = [one.name for one in self._node.membership.members if one != self._node.member]
        if to is not None:
            self._node.membership.named(to)
        elif not others:
            raise ChangeError(ChangeRefusal.NO_QUORUM, "no other voter is in contact")
        self._node.leader = to or others[0]
        return self._node.leader

    def look(self) -> None:
        """The cluster is looked at."""
        if self.on_look is not None:
            self.on_look()
        if self.looks_to_promote is None or not self._node.membership.learners:
            return
        self.looks_to_promote -= 1
        if self.looks_to_promote <= 0:
            (learner,) = self._node.membership.learners
            members = self._node.membership.members
            member = next(one for one in members if one.public_key == learner)
            self._seal(Change(ChangeKind.PROMOTE, member))

    def _named(self, kind: ChangeKind, name: str, timeout_s: float) -> MadeChange:
        self._begin(f"{kind} {name}", timeout_s)
        return self._seal(Change(kind, self._node.membership.named(name)))

    def _make(self, what: str, change: Change, timeout_s: float) -> MadeChange:
        self._begin(what, timeout_s)
        return self._seal(change)

    def _begin(self, what: str, timeout_s: float) -> None:
        self.calls.append(what)
        self.timeouts_s.append(timeout_s)
        if self.faults:
            raise self.faults.pop(0)
        if self._node.leader != self._node.name:
            raise ChangeError(ChangeRefusal.NOT_LEADER, "this node does not lead")

    def _seal(self, change: Change) -> MadeChange:
        after = self._node.membership.after(change)
        change_id = len(self._node.blocks).to_bytes(16, "big")
        self._node.seal([change_transaction(change, self._node.membership, change_id=change_id)])
        self._node.membership = after
        block = self._node.blocks[-1]
        return MadeChange(block.index, block.hash, after)
