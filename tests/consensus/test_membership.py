"""The genesis file, the block it makes, and the file and blocks that are refused."""

from __future__ import annotations

import copy
import json
from typing import Any

import msgspec
import pytest
from nacl.signing import SigningKey

from consensus.block import (
    MAX_TIMESTAMP_US,
    ZERO_HASH,
    Block,
    InvalidBlockError,
    Rule,
    assemble_block,
    check_transaction,
    decode_block,
    encode_transaction,
)
from consensus.membership import (
    MAX_MEMBERS,
    Genesis,
    GenesisError,
    Member,
    dump_genesis,
    genesis_block,
    genesis_of,
    load_genesis,
)
from consensus.merkle import transactions_root

CREATED_US = 1_738_324_800_000_001


def key(number: int) -> bytes:
    """Return the public key of the numbered member."""
    return bytes(SigningKey(bytes([number]) * 32).verify_key)


def member(number: int) -> Member:
    """Make a member whose name, key and addresses follow from its number."""
    return Member(
        name=f"node-{number}",
        public_key=key(number),
        peer=f"127.0.0.1:{7000 + number}",
        http=f"127.0.0.1:{8000 + number}",
    )


GENESIS = Genesis(name="test", created_us=CREATED_US, members=(member(1), member(2), member(3)))
BLOCK = genesis_block(GENESIS)


def document() -> dict[str, Any]:
    """Return the values of a right genesis file."""
    return {
        "name": "test",
        "created": "2025-01-31T12:00:00.000001Z",
        "members": [
            {
                "name": f"node-{number}",
                "public_key": key(number).hex(),
                "peer": f"127.0.0.1:{7000 + number}",
                "http": f"127.0.0.1:{8000 + number}",
            }
            for number in (1, 2, 3)
        ],
    }


# --- the file -----------------------------------------------------------------------------------


def test_a_file_is_read() -> None:
    """Names, time, keys and addresses arrive as they were written."""
    assert GENESIS == load_genesis(json.dumps(document()))


def test_what_is_written_is_read_back() -> None:
    """Writing and reading a file changes nothing, and the file is plain JSON for people."""
    text = dump_genesis(GENESIS)

    assert document() == json.loads(text)
    assert GENESIS == load_genesis(text)
    assert text == dump_genesis(load_genesis(text))
    assert text.endswith("}\n")


@pytest.mark.parametrize(
    ("created_us", "created"),
    [
        (0, "1970-01-01T00:00:00.000000Z"),
        (999_999, "1970-01-01T00:00:00.999999Z"),
        (CREATED_US, "2025-01-31T12:00:00.000001Z"),
        (MAX_TIMESTAMP_US, "9999-12-31T23:59:59.999999Z"),
    ],
)
def test_every_microsecond_survives(created_us: int, created: str) -> None:
    """The time of creation has its microseconds in the file, to the end of the calendar."""
    genesis = Genesis("test", created_us, GENESIS.members)
    text = dump_genesis(genesis)

    assert created == json.loads(text)["created"]
    assert genesis == load_genesis(text)


def test_the_order_of_members_makes_no_difference() -> None:
    """Members are sorted by name, so the same file in another order is the same cluster."""
    shuffled = document()
    shuffled["members"].reverse()

    genesis = load_genesis(json.dumps(shuffled))

    assert ["node-1", "node-2", "node-3"] == [member.name for member in genesis.members]
    assert BLOCK == genesis_block(genesis)


@pytest.mark.parametrize(
    "address",
    ["localhost:1", "node_1.example.org:65535", "[::1]:7001", "10.0.0.1:7001", "a" * 250 + ":7001"],
)
def test_addresses_may_have_each_of_their_forms(address: str) -> None:
    """Names, IPv4 addresses and IPv6 addresses in brackets are addresses."""
    changed = document()
    changed["members"][0]["peer"] = address

    assert address == load_genesis(json.dumps(changed)).members[0].peer


def test_a_cluster_may_have_one_member_or_nine() -> None:
    """The smallest and the largest cluster are read back like any other."""
    for count in (1, MAX_MEMBERS):
        members = tuple(member(number) for number in range(1, count + 1))
        genesis = Genesis("test", CREATED_US, members)

        assert genesis == load_genesis(dump_genesis(genesis))


def put(path: str, value: object) -> str:
    """Write the right file with one value changed; the path is written as the errors write it."""
    changed: Any = document()
    steps = path.replace("[", ".").replace("]", "").split(".")[1:]
    place = changed
    for step in steps[:-1]:
        place = place[int(step)] if step.isdigit() else place[step]
    last = int(steps[-1]) if steps[-1].isdigit() else steps[-1]
    place[last] = value
    return json.dumps(changed)


@pytest.mark.parametrize(
    ("path", "value", "detail"),
    [
        ("$.name", "", "must be 1 to 63 of a-z, 0-9 and -"),
        ("$.name", "Test", "must be 1 to 63 of a-z, 0-9 and -"),
        ("$.name", "test\n", "must be 1 to 63 of a-z, 0-9 and -"),
        ("$.name", "a" * 64, "must be 1 to 63 of a-z, 0-9 and -"),
        ("$.name", 7, "Expected `str`, got `int`"),
        ("$.name", float("nan"), "Expected `str`, got `float`"),
        ("$.created", None, "Expected `str`, got `null`"),
        ("$.created", "2025-01-31", "must be written as"),
        ("$.created", "2025-01-31T12:00:00Z", "must be written as"),
        ("$.created", "2025-01-31T12:00:00.000001+00:00", "must be written as"),
        ("$.created", "2025-01-31T12:00:00.000001Z\n", "must be written as"),
        ("$.created", "2025-01-31T12:00:00.00000\u0661Z", "must be written as"),
        ("$.created", "2025-02-30T12:00:00.000001Z", "day is out of range"),
        ("$.created", "2025-01-31T23:59:60.000000Z", "second must be in"),
        ("$.created", "1969-12-31T23:59:59.999999Z", "must be from the year 1970 to 9999"),
        ("$.created", "0000-01-01T00:00:00.000000Z", "year"),
        ("$.members", {}, "Expected `array`, got `object`"),
        ("$.members", [], "must be 1 to 9 members, not 0"),
        ("$.members[1]", None, "Expected `object`, got `null`"),
        ("$.members[1].name", "node 2", "must be 1 to 63 of a-z, 0-9 and -"),
        ("$.members[1].name", "node-1", "is also that of $.members[0]"),
        ("$.members[2].public_key", key(1).hex(), "is also that of $.members[0]"),
        ("$.members[1].public_key", key(2).hex().upper(), "must be 64 lower-case hex digits"),
        ("$.members[1].public_key", key(2).hex()[:-2], "must be 64 lower-case hex digits"),
        ("$.members[1].public_key", key(2).hex() + "00", "must be 64 lower-case hex digits"),
        ("$.members[1].public_key", "02" + "00" * 31, "is not an Ed25519 public key"),
        ("$.members[1].public_key", "00" * 32, "is not an Ed25519 public key"),
        ("$.members[2].peer", "127.0.0.1:7001", "is also that of $.members[0]"),
        ("$.members[0].peer", "127.0.0.1", "must be host:port"),
        ("$.members[0].peer", ":7001", "must be host:port"),
        ("$.members[0].peer", "::1:7001", "must be host:port"),
        ("$.members[0].peer", "_raft.example.org:7001", "must be host:port"),
        ("$.members[0].peer", "-n:7001", "must be host:port"),
        ("$.members[0].peer", ".n:7001", "must be host:port"),
        ("$.members[0].peer", "[...]:7001", "must have an IPv6 address in its brackets"),
        ("$.members[0].http", "[::1::2]:7001", "must have an IPv6 address in its brackets"),
        ("$.members[0].peer", "tcp://127.0.0.1:7001", "must be host:port"),
        ("$.members[0].peer", "127.0.0.1:\uff17\uff10\uff10\uff11", "must be host:port"),
        ("$.members[0].peer", "a" * 251 + ":7001", "must be host:port"),
        ("$.members[0].peer", "127.0.0.1:0", "must have a port from 1 to 65535"),
        ("$.members[0].http", "127.0.0.1:65536", "must have a port from 1 to 65535"),
        ("$.members[0].http", "127.0.0.1:8001\n", "must be host:port"),
    ],
)
def test_a_file_is_refused_with_the_path_of_its_fault(
    path: str, value: object, detail: str
) -> None:
    """The error names where in the file the fault is, and what it is."""
    with pytest.raises(GenesisError) as caught:
        load_genesis(put(path, value))

    assert path == caught.value.path
    assert detail in caught.value.detail
    assert f"{caught.value.path}: {caught.value.detail}" == str(caught.value)


def test_a_path_counts_members_as_the_file_does() -> None:
    """Sorting the members does not move the fault to another place."""
    changed = document()
    changed["members"].reverse()
    changed["members"][0]["peer"] = "nowhere"

    with pytest.raises(GenesisError) as caught:
        load_genesis(json.dumps(changed))

    assert "$.members[0].peer" == caught.value.path


def test_too_many_members_are_refused() -> None:
    """A tenth member is one too many."""
    changed = document()
    changed["members"] = [
        {**changed["members"][0], "name": f"node-{number}"} for number in range(MAX_MEMBERS + 1)
    ]

    with pytest.raises(GenesisError, match=r"^\$\.members: must be 1 to 9 members, not 10"):
        load_genesis(json.dumps(changed))


@pytest.mark.parametrize(
    ("path", "field"), [("$", "extra"), ("$.members[1]", "role"), ("$.members[1]", "")]
)
def test_an_unknown_field_is_refused(path: str, field: str) -> None:
    """A misspelt or a later version's field is not passed over."""
    with pytest.raises(GenesisError) as caught:
        load_genesis(put(f"{path}.{field}", 1))

    assert (path, f"Object contains unknown field `{field}`") == (
        caught.value.path,
        caught.value.detail,
    )


@pytest.mark.parametrize(
    ("path", "field"), [("$", "name"), ("$", "members"), ("$.members[2]", "http")]
)
def test_a_missing_field_is_refused(path: str, field: str) -> None:
    """Every field must be there; none has a default."""
    changed: Any = document()
    del (changed if path == "$" else changed["members"][2])[field]

    with pytest.raises(GenesisError) as caught:
        load_genesis(json.dumps(changed))

    assert (path, f"Object missing required field `{field}`") == (
        caught.value.path,
        caught.value.detail,
    )


@pytest.mark.parametrize(
    ("path", "name"), [("$", '"name": "test"'), ("$.members[1]", '"name": "node-2"')]
)
def test_a_key_that_is_there_twice_is_refused(path: str, name: str) -> None:
    """Which of two values counts is not for the parser to choose, even where they are equal."""
    text = json.dumps(document()).replace(name, f"{name}, {name}")

    with pytest.raises(GenesisError) as caught:
        load_genesis(text)

    assert path == caught.value.path
    assert "`name, given twice`" in caught.value.detail


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "nothing",
        "\ufeff{}",
        "[" * 100_000,
        "1" * 5_000,
        "null",
        "[]",
        '"\\ud800"',
        '{"\\ud800": 1}',
        '{"name": "\\ud800"}',
        "{}\n{}",
    ],
)
def test_what_is_no_genesis_file_is_refused(text: str) -> None:
    """Whatever the text is, the error is the typed one, about the file as a whole."""
    with pytest.raises(GenesisError) as caught:
        load_genesis(text)

    assert "$" == caught.value.path


@pytest.mark.parametrize(
    ("genesis", "path"),
    [
        (Genesis("test", CREATED_US, ()), "$.members"),
        (Genesis("test", -1, GENESIS.members), "$.created"),
        (Genesis("test", MAX_TIMESTAMP_US + 1, GENESIS.members), "$.created"),
        (Genesis("", CREATED_US, GENESIS.members), "$.name"),
        (Genesis("test", CREATED_US, (member(1), member(1))), "$.members[1].name"),
        (
            Genesis("test", CREATED_US, (Member("a", bytes(31), "a:1", "a:2"),)),
            "$.members[0].public_key",
        ),
    ],
)
def test_an_invalid_genesis_is_neither_written_nor_sealed(genesis: Genesis, path: str) -> None:
    """A genesis made by a program is held to the rules of the file."""
    for use in (genesis_block, dump_genesis):
        with pytest.raises(GenesisError) as caught:
            use(genesis)

        assert path == caught.value.path


# --- the block ----------------------------------------------------------------------------------


def test_the_block_holds_the_document() -> None:
    """Block 0 is unsigned, stands before everything and records the file for all to see."""
    transaction = check_transaction(BLOCK.transactions[0])

    assert 1 == len(BLOCK.transactions)
    assert ("cluster", "genesis") == (transaction.user_id, transaction.kind)
    assert document() == msgspec.msgpack.decode(transaction.payload)
    assert (0, 0, CREATED_US) == (BLOCK.index, BLOCK.term, BLOCK.timestamp_us)
    assert ZERO_HASH == BLOCK.previous_hash
    assert ZERO_HASH == BLOCK.header.cluster_id
    assert ZERO_HASH == BLOCK.header.sealer
    assert bytes(64) == BLOCK.signature
    assert 0 == BLOCK.header.nonce


def test_the_block_gives_the_genesis_back() -> None:
    """Block 0, from its bytes alone, tells who the first members were."""
    assert GENESIS == genesis_of(decode_block(BLOCK.encode()))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("$.name", "other"),
        ("$.created", "2025-01-31T12:00:00.000002Z"),
        ("$.members[0].http", "127.0.0.1:9"),
        ("$.members[2].peer", "127.0.0.1:9"),
        ("$.members[1].public_key", key(9).hex()),
        ("$.members[1].name", "node-20"),
    ],
)
def test_every_part_of_the_file_is_in_the_cluster_id(path: str, value: str) -> None:
    """Files that differ in anything make clusters that never talk to each other."""
    assert genesis_block(load_genesis(put(path, value))).hash != BLOCK.hash


def block_of(payload: object, **changes: Any) -> Block:
    """Make a block 0 that is right in itself, around any payload."""
    fields: dict[str, Any] = {"transaction_id": bytes(16), "user_id": "cluster", "kind": "genesis"}
    transaction = encode_transaction(payload=payload, **fields)
    header = msgspec.structs.replace(
        BLOCK.header, transactions_root=transactions_root([transaction]), **changes
    )
    return assemble_block(header, bytes(64), [transaction])


def without(field: str) -> dict[str, Any]:
    """Return the document without a field."""
    changed = copy.deepcopy(document())
    del changed[field]
    return changed


@pytest.mark.parametrize(
    ("block", "rule", "detail"),
    [
        (block_of(document(), index=1), Rule.INDEX, "1, not the genesis block's 0"),
        (assemble_block(BLOCK.header, bytes(64), []), Rule.COUNT, "0, not 1"),
        (assemble_block(BLOCK.header, bytes(64), [b"noise"]), Rule.ENCODING, "transaction: "),
        (block_of(None), Rule.ENCODING, "$: Expected `object`, got `null`"),
        (block_of(without("name")), Rule.ENCODING, "$: Object missing required field `name`"),
        (block_of({**document(), "name": "A"}), Rule.ENCODING, "$.name: must be 1 to 63"),
        (block_of({**document(), "members": []}), Rule.ENCODING, "$.members: must be 1 to 9"),
        (block_of(document()), Rule.ENCODING, "not the block that its own document makes"),
        (
            assemble_block(
                msgspec.structs.replace(BLOCK.header, nonce=1), bytes(64), BLOCK.transactions
            ),
            Rule.ENCODING,
            "not the block that its own document makes",
        ),
        (
            assemble_block(BLOCK.header, b"\x01" * 64, BLOCK.transactions),
            Rule.ENCODING,
            "not the block that its own document makes",
        ),
    ],
)
def test_a_block_that_no_genesis_makes_is_refused(block: Block, rule: Rule, detail: str) -> None:
    """A block 0 that differs in one byte from what its document makes is no genesis."""
    with pytest.raises(InvalidBlockError) as caught:
        genesis_of(block)

    assert rule is caught.value.rule
    assert detail in caught.value.detail


def test_members_in_another_order_are_no_genesis() -> None:
    """The block has one spelling: its document lists the members by name."""
    unsorted = document()
    unsorted["members"].reverse()

    with pytest.raises(InvalidBlockError, match="not the block that its own document makes"):
        genesis_of(block_of(unsorted))
