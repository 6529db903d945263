"""Who the members are, and the one change that a block of kind `membership` makes to that.

Such a block holds one transaction and nothing else. Its payload names the change and the member,
and lists all members after it, so that anyone can read from one block who was a member from there
on, and check against the membership before it that nothing else was changed. Changes are made one
server at a time (Ongaro's dissertation, §4.1): any two majorities before and after share a voter.
Relies on the members of `consensus.membership` and on blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum, unique
from functools import cached_property
from typing import TYPE_CHECKING, Final, assert_never

import msgspec
from nacl.bindings import crypto_core_ed25519_is_valid_point

from consensus.block import (
    HASH_BYTES,
    TRANSACTION_ID_BYTES,
    InvalidBlockError,
    InvalidTransactionError,
    Rule,
    check_transaction,
    decode_transaction,
    encode_transaction,
    transaction_id,
)
from consensus.membership import CLUSTER_USER_ID, GenesisError, Member, check_members

if TYPE_CHECKING:
    from consensus.block import Block
    from consensus.membership import Genesis
    from consensus.messages import MemberId

MEMBERSHIP_KIND: Final = "membership"


@unique
class ChangeKind(StrEnum):
    """What a change does to one member."""

    ADD = "add"
    """A new member learns: it is sent all blocks and counts in no majority."""
    PROMOTE = "promote"
    """A learner becomes a voter."""
    REMOVE = "remove"
    """A member is one no longer, and its key never is again."""
    MOVE = "move"
    """A member has other addresses."""
    RECOVER = "recover"
    """One member goes on alone, without the consent of the others: the lost quorum is given up."""


@unique
class ChangeRefusal(StrEnum):
    """Why a change of membership, or a transfer of leadership, is not made."""

    NOT_LEADER = "not-leader"
    TRANSFER_UNDER_WAY = "transfer-under-way"
    CHANGE_UNDER_WAY = "change-under-way"
    NO_COMMIT_IN_TERM = "no-commit-in-term"
    UNKNOWN_MEMBER = "unknown-member"
    INVALID = "invalid-change"
    FORMER_MEMBER = "former-member"
    NOT_CAUGHT_UP = "not-caught-up"
    NO_QUORUM = "no-quorum"


class ChangeError(ValueError):
    """A change that is not made; nothing has happened. `detail` is for people."""

    def __init__(self, reason: ChangeRefusal, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Change:
    """One change. `member` says who the member is after it; for REMOVE, who it was before."""

    kind: ChangeKind
    member: Member


@dataclass(frozen=True)
class Membership:
    """The members at one place of the chain, by name in ascending order."""

    members: tuple[Member, ...]
    learners: frozenset[MemberId] = frozenset()

    @classmethod
    def of_genesis(cls, genesis: Genesis) -> Membership:
        """All members of a genesis vote."""
        return cls(genesis.members)

    @cached_property
    def keys(self) -> frozenset[MemberId]:
        """The members' ids."""
        return frozenset(member.public_key for member in self.members)

    @cached_property
    def voters(self) -> frozenset[MemberId]:
        """Those that majorities are made of."""
        return self.keys - self.learners

    def named(self, name: str) -> Member:
        """The member of that name.

        Raises:
            ChangeError: there is none.
        """
        for member in self.members:
            if member.name == name:
                return member
        raise ChangeError(ChangeRefusal.UNKNOWN_MEMBER, f"{name} is not a member")

    def after(self, change: Change) -> Membership:
        """The membership once `change` is made.

        Raises:
            ChangeError: it makes no sense here.
        """
        match change.kind:
            case ChangeKind.ADD:
                return self._with(change.member, self.learners | {change.member.public_key})
            case ChangeKind.PROMOTE:
                return self._promoted(self._known(change.member))
            case ChangeKind.REMOVE:
                return self._without(self._known(change.member))
            case ChangeKind.MOVE:
                return self._moved(change.member)
            case ChangeKind.RECOVER:
                return Membership((self._known(change.member),))
            case _:
                assert_never(change.kind)

    def _known(self, member: Member) -> Member:
        if member not in self.members:
            raise ChangeError(ChangeRefusal.UNKNOWN_MEMBER, f"{member.name} is not a member")
        return member

    def _with(self, member: Member, learners: frozenset[MemberId]) -> Membership:
        if not crypto_core_ed25519_is_valid_point(member.public_key):
            detail = f"{member.name}: not an Ed25519 public key"
            raise ChangeError(ChangeRefusal.INVALID, detail)
        return _checked(Membership(_ordered((*self.members, member)), learners))

    def _promoted(self, member: Member) -> Membership:
        if member.public_key not in self.learners:
            raise ChangeError(ChangeRefusal.INVALID, f"{member.name} votes already")
        return Membership(self.members, self.learners - {member.public_key})

    def _without(self, member: Member) -> Membership:
        rest = tuple(other for other in self.members if other != member)
        after = Membership(rest, self.learners - {member.public_key})
        if not after.voters:
            raise ChangeError(ChangeRefusal.NO_QUORUM, f"{member.name} is the last voter")
        return after

    def _moved(self, member: Member) -> Membership:
        before = self.named(member.name)
        if before == member or before.public_key != member.public_key:
            detail = f"{member.name}: a move changes addresses and nothing else"
            raise ChangeError(ChangeRefusal.INVALID, detail)
        rest = (other for other in self.members if other != before)
        return _checked(Membership(_ordered((*rest, member)), self.learners))


@dataclass(frozen=True, slots=True)
class RecordedChange:
    """What a block of kind `membership` says."""

    change: Change
    membership: Membership


class _MemberDocument(msgspec.Struct, forbid_unknown_fields=True):
    """A member in the payload; the key in hex, the role `voter` or `learner`."""

    name: str
    public_key: str
    peer: str
    http: str
    role: str


class _ChangeDocument(msgspec.Struct, forbid_unknown_fields=True):
    """The payload of a transaction of kind `membership`."""

    change: str
    member: _MemberDocument
    members: list[_MemberDocument]


def change_transaction(change: Change, before: Membership, *, change_id: bytes) -> bytes:
    """The transaction that records `change`; raises ChangeError where it makes no sense."""
    after = before.after(change)
    described = before if change.kind is ChangeKind.REMOVE else after
    payload = {
        "change": change.kind.value,
        "member": _to_document(change.member, described),
        "members": [_to_document(member, after) for member in after.members],
    }
    return encode_transaction(
        transaction_id=change_id,
        user_id=CLUSTER_USER_ID,
        kind=MEMBERSHIP_KIND,
        payload=payload,
    )


def holds_change(block: Block) -> bool:
    """Whether a block is one of those that change the membership."""
    if len(block.transactions) != 1 or block.index == 0:
        return False
    return block.transactions[0].startswith(_MARK, _MARK_OFFSET)


def hides_change(block: Block) -> bool:
    """Whether a block of which `holds_change` is false has a transaction of that kind all the same.

    The bytes are looked through as a whole first: what is not there need not be decoded.
    """
    if _KIND not in block.body:
        return False
    return any(_has_that_kind(raw) for raw in block.transactions if _KIND in raw)


def recorded_change(block: Block) -> RecordedChange:
    """What a block says of which `holds_change` is true; raises InvalidBlockError.

    Whether the change follows from the membership before it is for `check_change` to say.
    """
    try:
        transaction = check_transaction(block.transactions[0])
        document = msgspec.msgpack.decode(transaction.payload, type=_ChangeDocument)
        kind = ChangeKind(document.change)
        learners = [_from_document(member) for member in document.members if _learns(member)]
        members = tuple(_from_document(member) for member in document.members)
        subject = _from_document(document.member)
    except (InvalidTransactionError, msgspec.DecodeError, ValueError) as error:
        raise InvalidBlockError(Rule.MEMBERSHIP, str(error)) from None
    membership = Membership(members, frozenset(member.public_key for member in learners))
    return RecordedChange(Change(kind, subject), membership)


def check_change(block: Block, recorded: RecordedChange, before: Membership) -> None:
    """Check that a block records one lawful change of `before`; raises InvalidBlockError.

    The bytes must be those that `change_transaction` makes, so that a change has one spelling.
    """
    try:
        expected = change_transaction(
            recorded.change, before, change_id=transaction_id(block.transactions[0])
        )
    except ChangeError as error:
        raise InvalidBlockError(Rule.MEMBERSHIP, error.detail) from None
    if block.transactions[0] != expected:
        raise InvalidBlockError(Rule.MEMBERSHIP, "not what its own change makes of the members")


_KIND: Final = msgspec.msgpack.encode(MEMBERSHIP_KIND)
_MARK: Final = msgspec.msgpack.encode(CLUSTER_USER_ID) + _KIND
_MARK_OFFSET: Final = 3 + TRANSACTION_ID_BYTES
"""User and kind follow the id, which follows the heads of the array and of the id."""
_VOTER: Final = "voter"
_LEARNER: Final = "learner"


def _has_that_kind(raw: bytes) -> bool:
    """What is no transaction at all is none of that kind either."""
    try:
        return decode_transaction(raw).kind == MEMBERSHIP_KIND
    except InvalidTransactionError:
        return False


def _checked(membership: Membership) -> Membership:
    """A membership whose members have been checked; raises ChangeError."""
    try:
        check_members(membership.members)
    except GenesisError as error:
        raise ChangeError(ChangeRefusal.INVALID, str(error)) from None
    return membership


def _ordered(members: tuple[Member, ...]) -> tuple[Member, ...]:
    return tuple(sorted(members, key=lambda member: member.name))


def _to_document(member: Member, membership: Membership) -> dict[str, object]:
    return {
        "name": member.name,
        "public_key": member.public_key.hex(),
        "peer": member.peer,
        "http": member.http,
        "role": _LEARNER if member.public_key in membership.learners else _VOTER,
    }


def _from_document(document: _MemberDocument) -> Member:
    public_key = bytes.fromhex(document.public_key)
    if len(public_key) != HASH_BYTES:
        raise ValueError(f"{document.name}: a public key has {HASH_BYTES} bytes")
    return Member(document.name, public_key, document.peer, document.http)


def _learns(document: _MemberDocument) -> bool:
    if document.role not in {_VOTER, _LEARNER}:
        raise ValueError(f"{document.name}: no such role: {document.role}")
    return document.role == _LEARNER
