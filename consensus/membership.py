"""The members of a cluster, and the genesis from which everything about a cluster follows.

The genesis file names the cluster and its first members. Block 0 is a function of that file alone,
and its hash is the cluster id: whoever holds the file can make the block and check the chain from
its first byte. Relies on `consensus.block` and `consensus.merkle`, and on PyNaCl to tell a public
key from 32 bytes that are none.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from ipaddress import AddressValueError, IPv6Address
from typing import TYPE_CHECKING

import msgspec
from nacl.bindings import crypto_core_ed25519_is_valid_point

from consensus.block import (
    FORMAT_VERSION,
    HASH_BYTES,
    MAX_TIMESTAMP_US,
    SIGNATURE_BYTES,
    TRANSACTION_ID_BYTES,
    ZERO_HASH,
    Block,
    Header,
    InvalidBlockError,
    InvalidTransactionError,
    Rule,
    assemble_block,
    check_transaction,
    encode_transaction,
)
from consensus.merkle import EMPTY_ROOT, transactions_root

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_MEMBERS = 9
MAX_ADDRESS_BYTES = 255
GENESIS_KIND = "genesis"
CLUSTER_USER_ID = "cluster"

_NAME = re.compile(r"[a-z0-9-]{1,63}")
# A name or an IPv4 address, or an IPv6 address in brackets; then a port. libzmq takes no name that
# begins with another character.
_ADDRESS = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9._-]*|\[([0-9A-Fa-f:.]+)\]):([0-9]{1,5})")
_CREATED = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z")
_PUBLIC_KEY_HEX = re.compile(rf"[0-9a-f]{{{2 * HASH_BYTES}}}")
_MAX_PORT = 65_535
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class GenesisError(ValueError):
    """A genesis that cannot be used.

    `path` is the JSON path of what is wrong, such as `$.members[1].peer`; `detail` says what.
    """

    def __init__(self, path: str, detail: str) -> None:
        super().__init__(f"{path}: {detail}")
        self.path = path
        self.detail = detail


class Member(msgspec.Struct, frozen=True):
    """One member: its Ed25519 key, and where its peers and its clients reach it (host:port)."""

    name: str
    public_key: bytes
    peer: str
    http: str


class Genesis(msgspec.Struct, frozen=True):
    """What a cluster starts from. Members are kept in the order of their names."""

    name: str
    created_us: int
    members: tuple[Member, ...]

    def __post_init__(self) -> None:
        """Sort the members, so that the order in a file does not make another cluster."""
        ordered = tuple(sorted(self.members, key=lambda member: member.name))
        msgspec.structs.force_setattr(self, "members", ordered)

    def validate(self) -> None:
        """Check names, time, keys and addresses; raises GenesisError naming the JSON path."""
        _validate(self.name, self.created_us, self.members)


class _MemberDocument(msgspec.Struct, forbid_unknown_fields=True):
    """A member in the genesis file; the key in hex."""

    name: str
    public_key: str
    peer: str
    http: str


class _GenesisDocument(msgspec.Struct, forbid_unknown_fields=True):
    """The genesis file; the time as RFC 3339 in UTC with microseconds."""

    name: str
    created: str
    members: list[_MemberDocument]


def genesis_block(genesis: Genesis) -> Block:
    """Make block 0, whose hash is the cluster id; raises GenesisError for an invalid genesis.

    It is not signed, for nobody could vouch for a signer before there is a cluster: it is checked
    by its hash.
    """
    genesis.validate()
    transaction = _genesis_transaction(genesis)
    header = Header(
        version=FORMAT_VERSION,
        cluster_id=ZERO_HASH,
        index=0,
        term=0,
        previous_hash=ZERO_HASH,
        transactions_root=transactions_root([transaction]),
        transaction_count=1,
        history_root=EMPTY_ROOT,
        timestamp_us=genesis.created_us,
        sealer=ZERO_HASH,
        nonce=0,
    )
    return assemble_block(header, bytes(SIGNATURE_BYTES), [transaction])


def genesis_of(block: Block) -> Genesis:
    """Return the genesis that a block 0 was made from.

    Raises InvalidBlockError for any block that is not exactly what `genesis_block` makes.
    """
    if block.index != 0:
        raise InvalidBlockError(Rule.INDEX, f"{block.index}, not the genesis block's 0")
    if len(block.transactions) != 1:
        raise InvalidBlockError(Rule.COUNT, f"{len(block.transactions)}, not 1")
    try:
        transaction = check_transaction(block.transactions[0])
        genesis = Genesis(*_from_document(msgspec.msgpack.decode(transaction.payload)))
        expected = genesis_block(genesis)
    except (InvalidTransactionError, GenesisError) as error:
        raise InvalidBlockError(Rule.ENCODING, str(error)) from None
    if block != expected:
        raise InvalidBlockError(Rule.ENCODING, "not the block that its own document makes")
    return genesis


def load_genesis(text: str) -> Genesis:
    """Read a genesis file; raises GenesisError naming the JSON path of the first fault.

    Nothing is forgiven: unknown and duplicate keys, other spellings of a time or a key, and keys
    that are not points of the curve are refused.
    """
    try:
        document = json.loads(text, object_pairs_hook=_mark_duplicates)
    except (ValueError, RecursionError) as error:
        raise GenesisError("$", f"is not JSON: {error}") from None
    name, created_us, members = _from_document(document)
    for position, member in enumerate(members):
        if not crypto_core_ed25519_is_valid_point(member.public_key):
            path = f"$.members[{position}].public_key"
            raise GenesisError(path, "is not an Ed25519 public key")
    return Genesis(name, created_us, members)


def dump_genesis(genesis: Genesis) -> str:
    """Write a genesis file; `load_genesis` reads the same genesis back."""
    genesis.validate()
    return json.dumps(_to_document(genesis), indent=2, ensure_ascii=False) + "\n"


def check_members(members: Sequence[Member]) -> None:
    """Check how many they are, each by itself, and that no two share what must be one's own.

    Raises GenesisError, whose path counts them in the order given.
    """
    if not 1 <= len(members) <= MAX_MEMBERS:
        raise GenesisError("$.members", f"must be 1 to {MAX_MEMBERS} members, not {len(members)}")
    for position, member in enumerate(members):
        _check_member(f"$.members[{position}]", member)
    for field in ("name", "public_key", "peer"):
        _check_unique(field, [getattr(member, field) for member in members])


def _genesis_transaction(genesis: Genesis) -> bytes:
    """Make the only transaction of block 0; its id follows from its payload."""
    payload = _to_document(genesis)
    encoded = msgspec.msgpack.encode(payload, order="sorted")
    return encode_transaction(
        transaction_id=sha256(encoded).digest()[:TRANSACTION_ID_BYTES],
        user_id=CLUSTER_USER_ID,
        kind=GENESIS_KIND,
        payload=payload,
    )


def _to_document(genesis: Genesis) -> dict[str, object]:
    """Return the genesis as the JSON values of its file."""
    created = _EPOCH + timedelta(microseconds=genesis.created_us)
    members = [
        {
            "name": member.name,
            "public_key": member.public_key.hex(),
            "peer": member.peer,
            "http": member.http,
        }
        for member in genesis.members
    ]
    return {
        "name": genesis.name,
        "created": created.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "members": members,
    }


def _from_document(document: object) -> tuple[str, int, tuple[Member, ...]]:
    """Read and check a genesis file's JSON values: name, created_us and members, in its order.

    Raises GenesisError; for its paths the members must not be sorted yet.
    """
    try:
        parsed = msgspec.convert(document, _GenesisDocument)
    except (msgspec.ValidationError, UnicodeEncodeError) as error:
        # msgspec ends its message with the path: "Expected `str`, got `int` - at `$.name`".
        detail, _, path = str(error).partition(" - at `")
        raise GenesisError(path.rstrip("`") or "$", detail) from None
    members = tuple(
        Member(
            name=member.name,
            public_key=_parse_key(f"$.members[{position}].public_key", member.public_key),
            peer=member.peer,
            http=member.http,
        )
        for position, member in enumerate(parsed.members)
    )
    created_us = _parse_created(parsed.created)
    _validate(parsed.name, created_us, members)
    return parsed.name, created_us, members


def _mark_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Build a JSON object; a key that is there twice becomes an unknown field that says so.

    The parser does not know where in the file it is; the check for unknown fields does.
    """
    built: dict[str, object] = {}
    for key, value in pairs:
        built[f"{key}, given twice" if key in built else key] = value
    return built


def _parse_created(text: str) -> int:
    """Read an RFC 3339 time in UTC with microseconds, as microseconds since 1970."""
    if not _CREATED.fullmatch(text):
        raise GenesisError("$.created", "must be written as 2025-01-31T12:00:00.000000Z")
    try:
        created = datetime.fromisoformat(text)
    except ValueError as error:
        raise GenesisError("$.created", str(error)) from None
    return (created - _EPOCH) // _MICROSECOND


def _parse_key(path: str, text: str) -> bytes:
    """Read a public key in lower-case hex."""
    if not _PUBLIC_KEY_HEX.fullmatch(text):
        raise GenesisError(path, f"must be {2 * HASH_BYTES} lower-case hex digits")
    return bytes.fromhex(text)


def _validate(name: str, created_us: int, members: Sequence[Member]) -> None:
    """Check names, time, keys and addresses; paths count the members in the order given."""
    _check_name("$.name", name)
    if not 0 <= created_us <= MAX_TIMESTAMP_US:
        raise GenesisError("$.created", "must be from the year 1970 to 9999")
    check_members(members)


def _check_unique(field: str, values: list[object]) -> None:
    """Check that no two members share a field."""
    for position, value in enumerate(values):
        first = values.index(value)
        if first != position:
            detail = f"is also that of $.members[{first}]"
            raise GenesisError(f"$.members[{position}].{field}", detail)


def _check_name(path: str, name: str) -> None:
    """Check the name of a cluster or of a member."""
    if not _NAME.fullmatch(name):
        raise GenesisError(path, "must be 1 to 63 of a-z, 0-9 and -")


def _check_member(path: str, member: Member) -> None:
    """Check what can be told of a member by itself."""
    _check_name(f"{path}.name", member.name)
    if len(member.public_key) != HASH_BYTES:
        raise GenesisError(f"{path}.public_key", f"must be {HASH_BYTES} bytes")
    _check_address(f"{path}.peer", member.peer)
    _check_address(f"{path}.http", member.http)


def _check_address(path: str, address: str) -> None:
    """Check an address of the form host:port."""
    match = _ADDRESS.fullmatch(address)
    if match is None or len(address) > MAX_ADDRESS_BYTES:
        raise GenesisError(path, "must be host:port")
    if match[1] is not None and not _is_ipv6(match[1]):
        raise GenesisError(path, "must have an IPv6 address in its brackets")
    if not 1 <= int(match[2]) <= _MAX_PORT:
        raise GenesisError(path, f"must have a port from 1 to {_MAX_PORT}")


def _is_ipv6(host: str) -> bool:
    try:
        IPv6Address(host)
    except AddressValueError:
        return False
    return True
