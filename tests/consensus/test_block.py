"""Blocks: sealed, decoded and verified, and each rule broken on real bytes.

A forged block breaks one rule and is otherwise right: its roots are computed anew and a member
signs it, so that only the rule under test can refuse it.
"""

from __future__ import annotations

from hashlib import sha256
from random import Random
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.signing import SigningKey

from consensus.block import (
    FORMAT_VERSION,
    MAX_BLOCK_BYTES,
    MAX_BLOCK_TRANSACTIONS,
    MAX_TIMESTAMP_US,
    ZERO_HASH,
    Block,
    Header,
    InvalidBlockError,
    Rule,
    Sealer,
    Tip,
    assemble_block,
    block_from_parts,
    check_content,
    decode_block,
    encode_transaction,
    tip_after,
    verify_block,
)
from consensus.membership import Genesis, Member, genesis_block
from consensus.merkle import CompactRange, leaf_hash, root_of_leaves, transactions_root

if TYPE_CHECKING:
    from collections.abc import Sequence

PROPERTY = settings(deadline=None, derandomize=True, database=None)
KEYS = [SigningKey(bytes([number]) * 32) for number in (1, 2, 3)]
SEALERS = frozenset(bytes(key.verify_key) for key in KEYS)
STRANGER = SigningKey(bytes([9]) * 32)
CREATED_US = 1_700_000_000_000_000

GENESIS = genesis_block(
    Genesis(
        name="test",
        created_us=CREATED_US,
        members=tuple(
            Member(f"node-{n}", bytes(key.verify_key), f"127.0.0.1:700{n}", f"127.0.0.1:800{n}")
            for n, key in enumerate(KEYS)
        ),
    )
)
CLUSTER_ID = GENESIS.hash


def transaction(number: int) -> bytes:
    """Make a small transaction."""
    return encode_transaction(
        transaction_id=number.to_bytes(16),
        user_id="alice",
        kind="deposit",
        payload={"amount": number},
    )


TRANSACTIONS = [transaction(number) for number in range(5)]


def make_sealer(seed: int = 1) -> Sealer:
    """Make the sealer of the first member."""
    return Sealer(KEYS[0], CLUSTER_ID, Random(seed))


def make_parent() -> Tip:
    """Return the tip of a chain of three blocks, the last of term 4."""
    sealer, tip = make_sealer(), tip_after(None, GENESIS)
    for term in (2, 4):
        block = sealer.seal(tip, term=term, transactions=TRANSACTIONS[:term], wall_us=CREATED_US)
        tip = tip_after(tip, block)
    return tip


PARENT = make_parent()


def fields_of(transactions: Sequence[bytes]) -> dict[str, Any]:
    """Return the fields of a right header for the block after `PARENT`."""
    return {
        "version": FORMAT_VERSION,
        "cluster_id": CLUSTER_ID,
        "index": PARENT.index + 1,
        "term": PARENT.term,
        "previous_hash": PARENT.hash,
        "transactions_root": transactions_root(transactions),
        "transaction_count": len(transactions),
        "history_root": PARENT.history.root(),
        "timestamp_us": PARENT.timestamp_us,
        "sealer": bytes(KEYS[1].verify_key),
        "nonce": 7,
    }


def forge(
    transactions: Sequence[bytes] = TRANSACTIONS, *, key: SigningKey = KEYS[1], **changes: Any
) -> bytes:
    """Encode a block after `PARENT` with some header fields changed, signed as it then is."""
    header_bytes = msgspec.msgpack.encode(list({**fields_of(transactions), **changes}.values()))
    body = msgspec.msgpack.encode(list(transactions))
    return pack(header_bytes, body, key=key)


def pack(header_bytes: bytes, body: bytes, *, key: SigningKey = KEYS[1]) -> bytes:
    """Sign a header and put the three parts of a block together."""
    signature = key.sign(sha256(header_bytes).digest()).signature
    return msgspec.msgpack.encode([header_bytes, signature, body])


def verify(raw: bytes) -> Tip:
    """Decode and verify a block after `PARENT`, as a follower does."""
    return verify_block(PARENT, decode_block(raw), cluster_id=CLUSTER_ID, sealers=SEALERS)


def verify_and_return(block: Block) -> Block:
    """Send a block through its bytes and every rule."""
    raw = block.encode()
    verify(raw)
    return decode_block(raw)


def rule_of(raw: bytes) -> Rule:
    """Verify a block that must be refused, and return the rule it breaks."""
    with pytest.raises(InvalidBlockError) as caught:
        verify(raw)
    assert f"{caught.value.rule}: {caught.value.detail}" == str(caught.value)
    return caught.value.rule


HEADER_BYTES, SIGNATURE, BODY = msgspec.msgpack.decode(forge())


# --- sealing and verifying ----------------------------------------------------------------------


def test_a_forged_block_without_changes_is_right() -> None:
    """The forger's blocks pass when nothing is changed, so each refusal below is for its change."""
    raw = forge()

    tip = verify(raw)

    assert PARENT.index + 1 == tip.index
    assert decode_block(raw).hash == tip.hash


def test_a_sealed_block_follows_its_parent() -> None:
    """A seal fills in every field of the header, and the block passes every rule."""
    sealer = make_sealer()

    block = sealer.seal(PARENT, term=7, transactions=TRANSACTIONS, wall_us=CREATED_US + 5)

    expected = Header(
        version=1,
        cluster_id=CLUSTER_ID,
        index=3,
        term=7,
        previous_hash=PARENT.hash,
        transactions_root=transactions_root(TRANSACTIONS),
        transaction_count=5,
        history_root=PARENT.history.root(),
        timestamp_us=CREATED_US + 5,
        sealer=sealer.public_key,
        nonce=Random(1).getrandbits(64),
    )
    assert expected == block.header
    assert tuple(TRANSACTIONS) == block.transactions
    assert (3, 7) == (block.index, block.term)
    assert (PARENT.hash, CREATED_US + 5) == (block.previous_hash, block.timestamp_us)
    assert len(block.header_bytes) + 64 + len(block.body) == block.size_bytes
    assert tip_after(PARENT, block) == verify(block.encode())


def test_a_block_may_be_empty() -> None:
    """A new leader seals an empty block of its own term; its root is that of no leaves."""
    block = make_sealer().seal(PARENT, term=5, transactions=[], wall_us=0)

    assert sha256(b"").digest() == block.header.transactions_root
    assert () == verify_and_return(block).transactions


def test_a_timestamp_never_falls() -> None:
    """A clock that runs behind its parent's block is overruled, and one that runs ahead is not."""
    sealer = make_sealer()
    late = sealer.seal(PARENT, term=4, transactions=[], wall_us=PARENT.timestamp_us - 1)
    early = sealer.seal(PARENT, term=4, transactions=[], wall_us=PARENT.timestamp_us + 1)

    assert PARENT.timestamp_us == verify_and_return(late).timestamp_us
    assert PARENT.timestamp_us + 1 == verify_and_return(early).timestamp_us


def test_no_two_seals_share_a_hash() -> None:
    """The same transactions sealed again at the same place and time make another block."""
    sealer = make_sealer()
    blocks = [sealer.seal(PARENT, term=4, transactions=[], wall_us=0) for _ in range(3)]

    assert 3 == len({block.hash for block in blocks})


def test_the_largest_block_is_allowed() -> None:
    """As many transactions as a block may hold, and as many bytes, pass every rule."""
    many = [b"t"] * MAX_BLOCK_TRANSACTIONS
    large = [bytes(MAX_BLOCK_BYTES - 6)]  # after a mark for the list, and one with a length
    for transactions in (many, large):
        block = make_sealer().seal(PARENT, term=4, transactions=transactions, wall_us=0)

        assert tuple(transactions) == verify_and_return(block).transactions


@pytest.mark.parametrize(
    "transactions", [[b""] * (MAX_BLOCK_TRANSACTIONS + 1), [bytes(MAX_BLOCK_BYTES - 5)]]
)
def test_nobody_seals_more_than_a_block_may_hold(transactions: list[bytes]) -> None:
    """A leader that gathers too much is wrong in itself and stops."""
    with pytest.raises(AssertionError):
        make_sealer().seal(PARENT, term=4, transactions=transactions, wall_us=0)


def test_nobody_seals_for_an_earlier_term() -> None:
    """A leader whose log ends in a later term than its own is impossible."""
    with pytest.raises(AssertionError):
        make_sealer().seal(PARENT, term=3, transactions=[], wall_us=0)


def test_the_tip_covers_the_history() -> None:
    """After each block, the history is the tree over the hashes of all blocks so far."""
    sealer, tip = make_sealer(), tip_after(None, GENESIS)
    leaves = [leaf_hash(GENESIS.hash)]
    for number in range(1, 9):
        assert root_of_leaves(leaves) == tip.history.root()
        block = sealer.seal(tip, term=number, transactions=[], wall_us=0)
        assert root_of_leaves(leaves) == block.header.history_root
        tip = tip_after(tip, block)
        leaves.append(leaf_hash(block.hash))
        assert (number, number, block.hash) == (tip.index, tip.term, tip.hash)


def test_a_tip_is_the_end_of_its_own_history() -> None:
    """A tip whose history ends elsewhere, or a block that skips one, is our own mistake."""
    block = make_sealer().seal(PARENT, term=4, transactions=[], wall_us=0)

    with pytest.raises(AssertionError):
        tip_after(None, block)
    with pytest.raises(AssertionError):
        Tip(index=1, term=1, hash=ZERO_HASH, timestamp_us=0, history=CompactRange.EMPTY)


# --- each rule ----------------------------------------------------------------------------------


def test_rule_version() -> None:
    """A header of another format version is refused."""
    assert Rule.VERSION is rule_of(forge(version=FORMAT_VERSION + 1))
    assert Rule.VERSION is rule_of(forge(version=0))


def test_rule_cluster() -> None:
    """A block of another cluster is refused."""
    assert Rule.CLUSTER is rule_of(forge(cluster_id=bytes(31) + b"\x01"))


@pytest.mark.parametrize("index", [0, 1, 2, 4, 2**64 - 1])
def test_rule_index(index: int) -> None:
    """An index that does not follow the parent's is refused."""
    assert Rule.INDEX is rule_of(forge(index=index))


def test_rule_previous_hash() -> None:
    """A block that names another parent is refused."""
    assert Rule.PREVIOUS_HASH is rule_of(forge(previous_hash=GENESIS.hash))


def test_rule_term() -> None:
    """A term below the parent's is refused; one above it is not."""
    assert Rule.TERM is rule_of(forge(term=PARENT.term - 1))
    assert 2**64 - 1 == verify(forge(term=2**64 - 1)).term


def test_rule_timestamp() -> None:
    """A time before the parent's is refused, and one that no calendar can show."""
    assert Rule.TIMESTAMP is rule_of(forge(timestamp_us=PARENT.timestamp_us - 1))
    assert Rule.TIMESTAMP is rule_of(forge(timestamp_us=MAX_TIMESTAMP_US + 1))
    assert MAX_TIMESTAMP_US == verify(forge(timestamp_us=MAX_TIMESTAMP_US)).timestamp_us


@pytest.mark.parametrize("count", [0, 4, 6, 2**64 - 1])
def test_rule_count(count: int) -> None:
    """A header that counts other than the transactions there are is refused."""
    assert Rule.COUNT is rule_of(forge(transaction_count=count))


@pytest.mark.parametrize(
    "others",
    [
        [*TRANSACTIONS[:4], transaction(9)],
        [*TRANSACTIONS[1:], TRANSACTIONS[0]],
        [*TRANSACTIONS[:4], TRANSACTIONS[3]],
    ],
)
def test_rule_transactions_root(others: list[bytes]) -> None:
    """A root over other transactions, or in another order, is refused."""
    assert Rule.TRANSACTIONS_ROOT is rule_of(forge(transactions_root=transactions_root(others)))


def test_rule_history_root() -> None:
    """A root over another history is refused."""
    longer = PARENT.history.append(leaf_hash(ZERO_HASH))

    assert Rule.HISTORY_ROOT is rule_of(forge(history_root=longer.root()))
    assert Rule.HISTORY_ROOT is rule_of(forge(history_root=CompactRange.EMPTY.root()))


def test_rule_sealer() -> None:
    """A block that is rightly signed, but by nobody of the cluster, is refused."""
    stranger = bytes(STRANGER.verify_key)

    assert Rule.SEALER is rule_of(forge(sealer=stranger, key=STRANGER))
    assert Rule.SEALER is rule_of(forge(sealer=ZERO_HASH))


def test_rule_signature() -> None:
    """A signature by another key, even another member's, or over another hash is refused."""
    other_nonce = msgspec.msgpack.encode(list({**fields_of(TRANSACTIONS), "nonce": 8}.values()))
    flipped = SIGNATURE[:-1] + bytes([SIGNATURE[-1] ^ 1])

    assert Rule.SIGNATURE is rule_of(forge(key=KEYS[2]))
    assert Rule.SIGNATURE is rule_of(forge(key=STRANGER))
    assert Rule.SIGNATURE is rule_of(msgspec.msgpack.encode([other_nonce, SIGNATURE, BODY]))
    assert Rule.SIGNATURE is rule_of(msgspec.msgpack.encode([HEADER_BYTES, flipped, BODY]))
    assert Rule.SIGNATURE is rule_of(msgspec.msgpack.encode([HEADER_BYTES, bytes(64), BODY]))


@pytest.mark.parametrize(
    "transactions",
    [
        [b""] * (MAX_BLOCK_TRANSACTIONS + 1),
        [bytes(MAX_BLOCK_BYTES - 5)],
        [bytes(64 * 1024)] * 16,
        [bytes(MAX_BLOCK_BYTES)] * 2,
    ],
    ids=["count", "body", "sum", "frame"],
)
def test_rule_size(transactions: list[bytes]) -> None:
    """A body of too many bytes or of too many transactions is refused."""
    assert Rule.SIZE is rule_of(forge(transactions))


# --- the encoding -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xc0",
        b"\x93",
        forge()[:-1],
        forge() + b"\xc0",
        b"\xdc\x00\x03" + forge()[1:],
        b"\x93\xc5\x00" + forge()[2:],
        msgspec.msgpack.encode([HEADER_BYTES, SIGNATURE]),
        msgspec.msgpack.encode([HEADER_BYTES, SIGNATURE, BODY, b""]),
        msgspec.msgpack.encode([HEADER_BYTES, SIGNATURE[:-1], BODY]),
        msgspec.msgpack.encode([HEADER_BYTES, SIGNATURE + b"\x00", BODY]),
        msgspec.msgpack.encode([HEADER_BYTES, SIGNATURE, None]),
        msgspec.msgpack.encode(["", SIGNATURE, BODY]),
        b"\x91" * 5_000,
    ],
)
def test_a_frame_in_another_encoding_is_refused(raw: bytes) -> None:
    """A frame that is cut, padded, misspelt or mistyped breaks the rule ENCODING."""
    assert Rule.ENCODING is rule_of(raw)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc0",
        b"\x80",
        b"\x91\xa1a",
        b"\x91\x01",
        b"\x91\xc4\x02a",
        b"\x90\x90",
        b"\xdd\xff\xff\xff\xff",
        b"\xdc\x00\x01\xc4\x01a",
        b"\x91\xc5\x00\x01a",
    ],
)
def test_a_body_in_another_encoding_is_refused(body: bytes) -> None:
    """A body that is not the canonical array of byte strings breaks the rule ENCODING."""
    assert Rule.ENCODING is rule_of(pack(HEADER_BYTES, body))


@pytest.mark.parametrize(
    "header_bytes",
    [
        b"",
        b"\x80",
        HEADER_BYTES[:-1],
        HEADER_BYTES + b"\xc0",
        b"\xdc\x00\x0b" + HEADER_BYTES[1:],
        b"\x9b\xcc\x01" + HEADER_BYTES[2:],
        b"\x9a" + HEADER_BYTES[1:-1],
        b"\x9c" + HEADER_BYTES[1:] + b"\x07",
    ],
)
def test_a_header_in_another_encoding_is_refused(header_bytes: bytes) -> None:
    """A header with a field too few or too many, or with a long form, breaks the rule ENCODING."""
    assert Rule.ENCODING is rule_of(pack(header_bytes, BODY))


@pytest.mark.parametrize("field", Header.__struct_fields__)
@pytest.mark.parametrize("value", [-1, None, "text", bytes(31), bytes(33), 1.0, [], True])
def test_a_header_with_a_field_of_another_type_is_refused(field: str, value: Any) -> None:
    """Numbers are not negative and hashes have 32 bytes; all else breaks the rule ENCODING."""
    assert Rule.ENCODING is rule_of(forge(**{field: value}))


def test_parts_as_they_are_stored_make_the_same_block() -> None:
    """Header, signature and body read back one by one make the block that travelled."""
    block = decode_block(forge())

    assert block == block_from_parts(block.header_bytes, block.signature, block.body)
    assert block == assemble_block(block.header, block.signature, block.transactions)


@pytest.mark.parametrize(
    ("signature", "body", "rule"),
    [
        (bytes(63), BODY, Rule.ENCODING),
        (bytes(65), BODY, Rule.ENCODING),
        (bytes(64), bytes(MAX_BLOCK_BYTES + 1), Rule.SIZE),
    ],
)
def test_parts_from_a_damaged_disk_are_refused(signature: bytes, body: bytes, rule: Rule) -> None:
    """Parts of the wrong length are refused before they are decoded."""
    with pytest.raises(InvalidBlockError) as caught:
        block_from_parts(HEADER_BYTES, signature, body)

    assert rule is caught.value.rule


def test_content_is_checked_by_itself() -> None:
    """A store checks a block that it reads back without its parent at hand."""
    check_content(decode_block(forge()))
    swapped = block_from_parts(HEADER_BYTES, SIGNATURE, msgspec.msgpack.encode([b""] * 5))
    emptied = block_from_parts(HEADER_BYTES, SIGNATURE, b"\x90")

    with pytest.raises(InvalidBlockError, match=r"^transactions_root: "):
        check_content(swapped)
    with pytest.raises(InvalidBlockError, match=r"^count: 0, not 5"):
        check_content(emptied)


def refused_or_unchanged(raw: bytes) -> bool:
    """Say whether bytes raise the typed error, or are the very bytes of the block they make."""
    try:
        block = decode_block(raw)
    except InvalidBlockError as error:
        return error.rule in {Rule.ENCODING, Rule.SIZE}
    return raw == block.encode()


@settings(PROPERTY, max_examples=300)
@given(st.binary(max_size=300))
def test_random_bytes_raise_only_the_typed_error(noise: bytes) -> None:
    """Noise, as a whole and as each part of a block, is refused or is exactly what it says."""
    assert refused_or_unchanged(noise)
    assert refused_or_unchanged(pack(noise, BODY))
    assert refused_or_unchanged(pack(HEADER_BYTES, noise))


@settings(PROPERTY, max_examples=300)
@given(at=st.floats(0, 1, exclude_max=True), noise=st.binary(min_size=1, max_size=3))
def test_mutated_blocks_are_never_accepted(at: float, noise: bytes) -> None:
    """A block with bytes overwritten, cut or slipped in is refused, whatever they are."""
    raw = forge()
    place = int(at * len(raw))
    after = raw[place:]
    for mutant in (noise + after[len(noise) :], noise + after, noise, b""):
        if mutant != after:
            assert refused_or_unchanged(raw[:place] + mutant)
            rule_of(raw[:place] + mutant)
