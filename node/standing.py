"""Who a node is, and what it was told of its cluster before its chain can tell.

Read once at the start from the data folder: the identity, the genesis, and for a node that joins a
running cluster `join.json`, which names members to ask for blocks. Relies on the configuration.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from consensus.block import HASH_BYTES
from consensus.membership import Genesis, GenesisError, Member, check_members, load_genesis
from node.config import ConfigError
from node.identity import Identity, IdentityError, is_unused, load_identity, mark_used
from node.outcomes import LostChainError
from storage.chain import ChainStore
from storage.errors import StorageError, StoreMissingError

if TYPE_CHECKING:
    from pathlib import Path

    from consensus.block import Block
    from consensus.log import Log
    from consensus.roster import Roster
    from node.config import NodeConfig

JOIN_FILE: Final = "join.json"
MEMBER_FILE: Final = "member.json"


class _MemberDocument(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    public_key: str
    peer: str
    http: str

    def member(self) -> Member:
        return Member(self.name, bytes.fromhex(self.public_key), self.peer, self.http)


class _JoinDocument(msgspec.Struct, forbid_unknown_fields=True):
    incarnation: str
    index: int
    members: list[_MemberDocument]


@dataclass(frozen=True, slots=True)
class Invitation:
    """What a node was told when it joined: the cluster's incarnation, and who was a member.

    `index` was committed then: what a chain that has not come so far says of them may be old.
    """

    incarnation: bytes
    index: int
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class Standing:
    """A node's identity, its cluster's genesis, and its invitation where it has one."""

    identity: Identity
    genesis: Genesis
    invitation: Invitation | None
    own: Member | None
    """Itself as its folder has it; None where only the genesis names it."""

    def incarnation(self, roster: Roster) -> bytes:
        """The incarnation of the cluster that this node belongs to.

        A chain that has not come as far as the invitation does not know it yet.
        """
        invitation = self.invitation
        if invitation is not None and invitation.incarnation not in roster.incarnations:
            return invitation.incarnation
        return roster.incarnation

    @property
    def seeds(self) -> dict[bytes, Member]:
        """The members that the invitation names, by key."""
        members = self.invitation.members if self.invitation else ()
        return {member.public_key: member for member in members}

    @property
    def seeds_index(self) -> int:
        """How far the cluster had committed when the invitation was made."""
        return self.invitation.index if self.invitation else 0

    def member(self, log: Log) -> Member:
        """This node as the chain has it, or as its own folder has it before it is a member.

        Raises:
            ConfigError: neither knows it.
        """
        key, roster = self.identity.public_key, log.roster
        if log.commit_index < self.seeds_index and key in self.seeds:
            return self.seeds[key]
        for member in roster.latest.members:
            if member.public_key == key:
                return member
        former = roster.former(roster.latest_index).get(key)
        known = former[0] if former else self.own
        if known is None or known.public_key != key:
            detail = "this identity is not a member, and no member.json says where it would listen"
            raise ConfigError(file=None, key="identity_file", detail=detail)
        return known


def load_standing(config: NodeConfig) -> Standing:
    """Read all of it from the data folder.

    Raises:
        ConfigError: a file is missing or wrong.
        GenesisError, IdentityError: that file is wrong.
    """
    identity = load_identity(config.identity_file)
    genesis = load_genesis(_read(config.genesis_file, "genesis_file"))
    join, own = config.data_dir / JOIN_FILE, config.data_dir / MEMBER_FILE
    return Standing(
        identity=identity,
        genesis=genesis,
        invitation=load_invitation(join) if join.exists() else None,
        own=_load_member(own) if own.exists() else None,
    )


def open_chain(config: NodeConfig, genesis: Block) -> ChainStore:
    """Open the node's chain, or begin one under a key that no node has run under.

    A restored chain is taken up under such a key alone, too: it remembers nobody's votes.

    Raises:
        LostChainError: there is no chain, or only a restored one, and there has been one.
        StorageError: the chain cannot be opened.
        IdentityError: that the key is in use cannot be written down.
    """
    key = config.identity_file
    try:
        chain = ChainStore.open(
            config.chain_dir,
            genesis=genesis,
            map_bytes=config.map_bytes,
            may_create=is_unused(key),
        )
    except StoreMissingError as error:
        raise _lost_chain(config, "the chain is gone") from error
    try:
        if chain.is_restored:
            if not is_unused(key):
                raise _lost_chain(config, "the chain was restored from a backup")
            chain.take_up()
        mark_used(key)
    except (IdentityError, LostChainError, StorageError):
        chain.close()
        raise
    return chain


def _lost_chain(config: NodeConfig, what: str) -> LostChainError:
    name = config.name
    return LostChainError(
        f"{config.chain_dir}: {what}, and {name} has run under this identity "
        "before: it would have forgotten its votes. Make a new data folder (`bitnexus node "
        "init --join`) with another name and other addresses, and run `bitnexus member replace "
        f"{name} --file`; or, to keep both, first `bitnexus member remove "
        f"{name}`, then make the folder and add that node"
    )


def load_invitation(file: Path) -> Invitation:
    """Read `join.json`; raises ConfigError."""
    try:
        document = msgspec.json.decode(_read(file, JOIN_FILE), type=_JoinDocument)
        members = tuple(member.member() for member in document.members)
        check_members(members)
        incarnation = bytes.fromhex(document.incarnation)
    except (msgspec.DecodeError, GenesisError, ValueError) as error:
        raise ConfigError(file=file, key="", detail=str(error)) from error
    if len(incarnation) != HASH_BYTES:
        raise ConfigError(file=file, key="incarnation", detail="must be 64 hex digits")
    return Invitation(incarnation, document.index, members)


def dump_invitation(invitation: Invitation) -> str:
    """Write `join.json`; `load_invitation` reads the same back."""
    document = {
        "incarnation": invitation.incarnation.hex(),
        "index": invitation.index,
        "members": [json.loads(dump_member(member)) for member in invitation.members],
    }
    return json.dumps(document, indent=2) + "\n"


def dump_member(member: Member) -> str:
    """Write `member.json`: what the others must know of a node."""
    document = {
        "name": member.name,
        "public_key": member.public_key.hex(),
        "peer": member.peer,
        "http": member.http,
    }
    return json.dumps(document, indent=2) + "\n"


def _load_member(file: Path) -> Member:
    try:
        member = msgspec.json.decode(_read(file, MEMBER_FILE), type=_MemberDocument).member()
        check_members((member,))
    except (msgspec.DecodeError, GenesisError, ValueError) as error:
        raise ConfigError(file=file, key="", detail=str(error)) from error
    return member


def _read(file: Path, key: str) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(file=None, key=key, detail=f"{file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(file=None, key=key, detail=f"{file}: is not UTF-8 text") from error


def check_name(config: NodeConfig, own: Member) -> None:
    """Check that a node is called in its configuration as in the cluster; raises ConfigError."""
    if own.name != config.name:
        detail = f"{config.name} is called {own.name} in the cluster"
        raise ConfigError(file=None, key="name", detail=detail)
