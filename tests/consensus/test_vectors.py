"""The golden vectors: bytes and hashes that never change within a format version.

The files in `tests/vectors` hold the reference vectors of certificate transparency, and a chain
whose every byte was made by code that shares nothing with the ledger. A difference here means that
nodes of two versions would not agree, or could not read their own chain.
"""

from __future__ import annotations

import json
import random
import uuid
from pathlib import Path
from typing import Any

import pytest
from nacl.signing import SigningKey

import consensus.block
from consensus.block import (
    Block,
    Sealer,
    check_transaction,
    decode_block,
    encode_transaction,
    tip_after,
    transaction_id,
    verify_block,
)
from consensus.membership import genesis_block, genesis_of, load_genesis
from consensus.merkle import (
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    root_of_leaves,
    transactions_root,
    verify_consistency,
    verify_inclusion,
)

VECTORS = Path(__file__).parent.parent / "vectors"


def load(name: str) -> Any:
    """Read one file of vectors."""
    return json.loads((VECTORS / name).read_text(encoding="utf-8"))


MERKLE = load("merkle.json")
TRANSACTIONS = load("transactions.json")["transactions"]
CHAIN = load("chain.json")

LEAF_HASHES = [leaf_hash(bytes.fromhex(leaf)) for leaf in MERKLE["leaves"]]
RECORDED = [bytes.fromhex(vector["bytes"]) for vector in TRANSACTIONS]


def unhex(hashes: list[str]) -> tuple[bytes, ...]:
    """Decode a list of hashes."""
    return tuple(bytes.fromhex(text) for text in hashes)


@pytest.mark.parametrize("size", range(9))
def test_roots_of_certificate_transparency(size: int) -> None:
    """The roots over the first leaves are those that RFC 6962's own code publishes."""
    leaves = [bytes.fromhex(leaf) for leaf in MERKLE["leaves"][:size]]

    assert MERKLE["roots"][size] == transactions_root(leaves).hex()
    assert MERKLE["roots"][size] == root_of_leaves(LEAF_HASHES[:size]).hex()


@pytest.mark.parametrize("vector", MERKLE["inclusion"])
def test_inclusion_proofs_of_certificate_transparency(vector: dict[str, Any]) -> None:
    """The published audit paths are the ones made here, and verify."""
    position, size = vector["position"], vector["size"]
    proof = unhex(vector["proof"])

    assert proof == inclusion_proof(LEAF_HASHES[:size], position)
    assert verify_inclusion(
        leaf=LEAF_HASHES[position],
        position=position,
        size=size,
        proof=proof,
        root=bytes.fromhex(MERKLE["roots"][size]),
    )


@pytest.mark.parametrize("vector", MERKLE["consistency"])
def test_consistency_proofs_of_certificate_transparency(vector: dict[str, Any]) -> None:
    """The published consistency proofs are the ones made here, and verify."""
    old_size, new_size = vector["old_size"], vector["new_size"]
    proof = unhex(vector["proof"])

    assert proof == consistency_proof(LEAF_HASHES[:new_size], old_size)
    assert verify_consistency(
        old_size=old_size,
        new_size=new_size,
        old_root=bytes.fromhex(MERKLE["roots"][old_size]),
        new_root=bytes.fromhex(MERKLE["roots"][new_size]),
        proof=proof,
    )


@pytest.mark.parametrize("vector", TRANSACTIONS, ids=lambda vector: str(vector["kind"]))
def test_transactions(vector: dict[str, Any]) -> None:
    """A transaction's canonical bytes and leaf hash are the golden ones."""
    identifier = uuid.UUID(vector["id"]).bytes

    raw = encode_transaction(
        transaction_id=identifier,
        user_id=vector["user_id"],
        kind=vector["kind"],
        payload=vector["payload"],
    )

    assert vector["bytes"] == raw.hex()
    assert vector["leaf"] == leaf_hash(raw).hex()
    assert identifier == transaction_id(raw)
    assert (vector["user_id"], vector["kind"]) == (
        check_transaction(raw).user_id,
        check_transaction(raw).kind,
    )


@pytest.mark.parametrize(
    ("limit", "value"),
    [
        ("FORMAT_VERSION", 1),
        ("MAX_TRANSACTION_BYTES", 65_536),
        ("MAX_BLOCK_TRANSACTIONS", 2_000),
        ("MAX_BLOCK_BYTES", 1_048_576),
        ("MAX_USER_ID_BYTES", 256),
        ("MAX_KIND_BYTES", 64),
        ("MAX_PAYLOAD_DEPTH", 32),
        ("MAX_TIMESTAMP_US", 253_402_300_799_999_999),
        ("RESERVED_KINDS", {"genesis", "membership"}),
    ],
)
def test_limits(limit: str, value: object) -> None:
    """The limits are rules too: a node with others would refuse what its peers accept."""
    assert value == getattr(consensus.block, limit)


def assert_golden(vector: dict[str, Any], block: Block) -> None:
    """Compare every part of a block with its vector, the parts before the whole."""
    assert vector["transactions_root"] == block.header.transactions_root.hex()
    assert vector["history_root"] == block.header.history_root.hex()
    assert vector["nonce"] == block.header.nonce
    assert vector["header"] == block.header_bytes.hex()
    assert vector["hash"] == block.hash.hex()
    assert vector["signature"] == block.signature.hex()
    assert vector["encoded"] == block.encode().hex()


def test_genesis() -> None:
    """The genesis file makes the golden block 0, whose hash is the cluster id."""
    genesis = load_genesis(json.dumps(CHAIN["genesis"]))

    block = genesis_block(genesis)

    assert_golden(CHAIN["blocks"][0], block)
    assert CHAIN["genesis_id"] == block.hash.hex()
    assert genesis == genesis_of(decode_block(bytes.fromhex(CHAIN["blocks"][0]["encoded"])))


def test_sealing() -> None:
    """With a fixed key, a fixed seed and fixed times, the golden blocks are sealed."""
    block = genesis_block(load_genesis(json.dumps(CHAIN["genesis"])))
    key = SigningKey(bytes.fromhex(CHAIN["signing_seed"]))
    sealer = Sealer(key, block.hash, random.Random(CHAIN["random_seed"]))
    tip = tip_after(None, block)
    for seal, vector in zip(CHAIN["seals"], CHAIN["blocks"][1:], strict=True):
        block = sealer.seal(
            tip,
            term=seal["term"],
            transactions=[RECORDED[position] for position in seal["transactions"]],
            wall_us=seal["wall_us"],
        )
        tip = tip_after(tip, block)

        assert_golden(vector, block)


def test_verifying() -> None:
    """The golden chain, read from its bytes alone, passes every rule."""
    chain = [decode_block(bytes.fromhex(vector["encoded"])) for vector in CHAIN["blocks"]]
    members = {member.public_key for member in genesis_of(chain[0]).members}
    tip = tip_after(None, chain[0])
    for block in chain[1:]:
        tip = verify_block(tip, block, cluster_id=chain[0].hash, sealers=members)

    assert len(CHAIN["blocks"]) - 1 == tip.index
    assert CHAIN["blocks"][-1]["hash"] == tip.hash.hex()
