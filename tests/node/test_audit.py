"""The audit of a chain: what holds passes, and whatever is planted is found at its index."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
import pytest

from consensus.block import (
    Block,
    assemble_block,
    encode_transaction,
    tip_after,
    transaction_id,
)
from consensus.membership import genesis_of
from consensus.merkle import CompactRange
from consensus.ready import HardState
from node.api.answers import block_detail
from node.api.shapes import BlockDetail
from node.audit import (
    ChainAuditor,
    Finding,
    Step,
    audit_index,
    audit_store,
    check_told_block,
)
from storage.errors import BlockNotFoundError, DamagedBlockError
from storage.memory import MemoryChain
from storage.recent import Place
from tests.storage.builders import Author, make_genesis, make_transaction

if TYPE_CHECKING:
    from collections.abc import Sequence

    from consensus.block import Tip


class SpoilableChain(MemoryChain):
    """A chain whose blocks can be changed behind its back, as a disk or an attacker does."""

    def __init__(self, genesis: Block) -> None:
        super().__init__(genesis)
        self.damaged: set[int] = set()
        self.false_tip: Tip | None = None
        self.false_terms: list[tuple[int, int]] | None = None

    def plant(self, block: Block) -> None:
        """Put a block in the place of the one at its index."""
        self._blocks[block.index] = block

    def block(self, index: int) -> Block:
        """Return the block, or find it damaged."""
        if index in self.damaged:
            raise DamagedBlockError(index, "its body is not what was saved")
        return super().block(index)

    def tip(self, index: int) -> Tip:
        """Return the tip, or a false one."""
        return self.false_tip or super().tip(index)

    def term_starts(self) -> list[tuple[int, int]]:
        """Return where terms start, or what is planted."""
        return super().term_starts() if self.false_terms is None else self.false_terms


class Ledger:
    """A chain of a few blocks by one author, and the author to seal more."""

    def __init__(self) -> None:
        self.author = Author()
        self.chain = SpoilableChain(self.author.genesis)
        self.save(self.author.seal(term=1))
        for _ in range(3):
            self.save(self.author.seal_for("alice", "bob", term=1))
        self.save(self.author.seal(term=3))
        self.save(self.author.seal_for("carol", term=3))

    def save(self, block: Block, *, commit: bool = True) -> None:
        """Save a block, committed or not."""
        commit_index = block.index if commit else self.chain.hard_state.commit_index
        state = HardState(term=block.term, commit_index=commit_index)
        self.chain.save(hard_state=state, truncate_from=None, blocks=[block])

    def finding(self) -> Finding | None:
        """What an audit finds; every step before the last one holds."""
        steps = list(audit_store(self.chain))
        assert all(step.finding is None for step in steps[:-1])
        return steps[-1].finding


@pytest.fixture
def ledger() -> Ledger:
    """A chain of seven blocks that holds."""
    return Ledger()


def test_a_chain_that_holds_is_walked_whole(ledger: Ledger) -> None:
    """Each block is a step of its own, with its number of transactions."""
    steps = list(audit_store(ledger.chain))
    assert steps == [Step(index, count) for index, count in enumerate([1, 0, 2, 2, 2, 0, 1])]


def test_the_genesis_given_is_the_one_trusted(ledger: Ledger) -> None:
    """A chain that holds in itself is refused where another genesis was expected."""
    own = genesis_of(ledger.author.genesis)
    assert all(step.finding is None for step in audit_store(ledger.chain, genesis=own))
    other = genesis_of(make_genesis(name="other"))
    (step,) = audit_store(ledger.chain, genesis=other)
    assert step.index == 0
    assert step.finding is not None
    assert step.finding.what.startswith("cluster: ")


def test_a_block_zero_that_is_no_genesis_is_found(ledger: Ledger) -> None:
    """Genesis is recomputed from its own document."""
    genesis = ledger.author.genesis
    header = msgspec.structs.replace(genesis.header, timestamp_us=1)
    ledger.chain.plant(assemble_block(header, genesis.signature, genesis.transactions))
    finding = ledger.finding()
    assert finding is not None
    assert (finding.index, finding.what.split(":")[0]) == (0, "encoding")


def resigned(ledger: Ledger, place: int, /, **fields: object) -> Block:
    """The block at an index with other header fields, signed anew by the member itself."""
    block = ledger.chain.block(place)
    header = msgspec.structs.replace(block.header, **fields)
    unsigned = assemble_block(header, block.signature, block.transactions)
    signature = ledger.author._sealer._signing_key.sign(unsigned.hash).signature
    return assemble_block(header, signature, block.transactions)


@pytest.mark.parametrize(
    ("rule", "fields"),
    [
        ("version", {"version": 2}),
        ("cluster", {"cluster_id": bytes(32)}),
        ("index", {"index": 4}),
        ("previous_hash", {"previous_hash": bytes(32)}),
        ("term", {"term": 0}),
        ("timestamp", {"timestamp_us": 0}),
        ("count", {"transaction_count": 3}),
        ("transactions_root", {"transactions_root": bytes(32)}),
        ("history_root", {"history_root": bytes(32)}),
        ("sealer", {"sealer": bytes(32)}),
    ],
)
def test_each_broken_rule_is_found_though_a_member_signed_it(
    ledger: Ledger, rule: str, fields: dict[str, object]
) -> None:
    """No rule rests on the word of the member that sealed the block."""
    block = resigned(ledger, 3, **fields)
    ledger.chain._blocks[3] = block
    finding = ledger.finding()
    assert finding is not None
    assert (finding.index, finding.what.split(":")[0]) == (3, rule)


def test_a_changed_signature_is_found(ledger: Ledger) -> None:
    """One bit is enough."""
    block = ledger.chain.block(3)
    signature = bytes([block.signature[0] ^ 1]) + block.signature[1:]
    ledger.chain.plant(replace(block, signature=signature))
    finding = ledger.finding()
    assert finding is not None
    assert (finding.index, finding.what.split(":")[0]) == (3, "signature")


def test_a_block_resealed_whole_breaks_the_next_link(ledger: Ledger) -> None:
    """A member that rewrites a block of its own is betrayed by the block after it."""
    ledger.chain.plant(resigned(ledger, 3, nonce=1))
    finding = ledger.finding()
    assert finding is not None
    assert (finding.index, finding.what.split(":")[0]) == (4, "previous_hash")


def test_a_damaged_block_is_found(ledger: Ledger) -> None:
    """What the store itself finds damaged is the finding."""
    ledger.chain.damaged.add(4)
    expected = Finding(4, "its body is not what was saved")
    assert ledger.finding() == expected
    assert str(expected) == "block 4: its body is not what was saved"


def test_an_id_that_is_there_twice_is_found(ledger: Ledger) -> None:
    """Ids are unique over the whole chain; the second one is named."""
    again = ledger.chain.block(2).transactions[0]
    fresh = make_transaction(ledger.author.random)
    ledger.save(ledger.author.seal([fresh, again], term=3))
    expected = f"transaction 1: id: {transaction_id(again).hex()} is in the chain already"
    assert ledger.finding() == Finding(7, expected)


def test_bytes_that_are_no_transaction_are_found(ledger: Ledger) -> None:
    """A member may seal what it likes; the audit reads every byte."""
    raw = make_transaction(ledger.author.random)
    ledger.save(ledger.author.seal([raw + b"\x00"], term=3))
    finding = ledger.finding()
    assert finding is not None
    assert (finding.index, finding.what.split(":")[0]) == (7, "transaction 0")


def test_a_second_genesis_is_found(ledger: Ledger) -> None:
    """The kind of the genesis document stands in block 0 alone."""
    raw = encode_transaction(transaction_id=bytes(16), user_id="x", kind="genesis", payload={})
    ledger.save(ledger.author.seal([raw], term=3))
    expected = "transaction 0: kind: genesis stands in block 0 alone"
    assert ledger.finding() == Finding(7, expected)


def test_a_false_history_tree_is_found(ledger: Ledger) -> None:
    """The nodes kept for proofs must be those of the blocks."""
    tip = ledger.chain.tip(6)
    history = CompactRange.EMPTY
    for number in range(tip.index + 1):
        history = history.append(bytes([number]) * 32)
    ledger.chain.false_tip = replace(tip, history=history)
    expected = Finding(6, "history: the stored tree is not that of the blocks")
    assert ledger.finding() == expected


def test_false_term_starts_are_found(ledger: Ledger) -> None:
    """Elections replicate by them, so they must be what the blocks say."""
    ledger.chain.false_terms = [(0, 0), (1, 1), (6, 3)]
    expected = Finding(6, "terms: where they start is not what the blocks say")
    assert ledger.finding() == expected


def test_a_hard_state_behind_the_chain_is_found(ledger: Ledger) -> None:
    """A member whose term is below its own block's has forgotten a promise."""
    ledger.chain.hard_state = HardState(term=2, commit_index=6)
    expected = Finding(6, "term: the node is in 2, behind its block")
    assert ledger.finding() == expected


def test_a_tail_replaced_during_the_walk_is_left_out(ledger: Ledger) -> None:
    """A new leader may replace what is not committed; that is no fault of the chain."""
    fork_tip = ledger.author.tip
    ledger.save(ledger.author.seal_for("dora", term=3), commit=False)
    ledger.save(ledger.author.seal_for("dora", term=3), commit=False)
    walk = audit_store(ledger.chain)
    steps = [next(walk) for _ in range(8)]
    ledger.author.tip = fork_tip
    others = [ledger.author.seal(term=4), ledger.author.seal(term=4)]
    ledger.chain.save(hard_state=HardState(4, None, 6), truncate_from=7, blocks=others)
    steps += walk
    assert [step.index for step in steps] == list(range(8))
    assert all(step.finding is None for step in steps)


def test_a_tail_cut_off_during_the_walk_is_left_out(ledger: Ledger) -> None:
    """As above, where the new tail is shorter."""
    for _ in range(2):
        ledger.save(ledger.author.seal_for("dora", term=3), commit=False)
    walk = audit_store(ledger.chain)
    steps = [next(walk) for _ in range(8)]
    ledger.chain.save(hard_state=HardState(4, None, 6), truncate_from=7, blocks=[])
    assert list(walk) == []
    assert all(step.finding is None for step in steps)


def test_a_committed_block_that_is_gone_is_found(ledger: Ledger) -> None:
    """Nobody may cut off what is committed."""
    walk = audit_store(ledger.chain)
    for _ in range(5):
        next(walk)
    del ledger.chain._blocks[4:]
    (step,) = walk
    assert step.finding == Finding(5, "is missing from the store")


class Index:
    """A look-up of ids as a table."""

    def __init__(self, ledger: Ledger) -> None:
        self.applied_index = ledger.chain.last_index
        self.table = {
            transaction_id(raw): Place(number, position)
            for number in range(self.applied_index + 1)
            for position, raw in enumerate(ledger.chain.block(number).transactions)
        }

    def places(self, ids: Sequence[bytes]) -> list[Place | None]:
        """Where each id stands."""
        return [self.table.get(key) for key in ids]


def test_an_index_that_holds_is_walked_as_far_as_it_reaches(ledger: Ledger) -> None:
    """An index may lag behind its chain; what it covers must be right."""
    index = Index(ledger)
    index.applied_index = 4
    expected = [Step(number, count) for number, count in enumerate([1, 0, 2, 2, 2])]
    assert list(audit_index(ledger.chain, index)) == expected


@pytest.mark.parametrize(
    ("place", "where"), [(None, "nowhere"), (Place(2, 1), "at (2, 1)"), (Place(3, 0), "at (3, 0)")]
)
def test_a_false_place_is_found(ledger: Ledger, place: Place | None, where: str) -> None:
    """An id that the index has elsewhere or not at all is named by its block."""
    index = Index(ledger)
    key = transaction_id(ledger.chain.block(3).transactions[1])
    if place is None:
        del index.table[key]
    else:
        index.table[key] = place
    *_, last = audit_index(ledger.chain, index)
    assert last.finding == Finding(3, f"transaction 1: the index has it {where}")


def test_an_index_beyond_its_chain_is_found(ledger: Ledger) -> None:
    """What is derived cannot know more than what it comes from."""
    index = Index(ledger)
    index.applied_index = 9
    (step,) = audit_index(ledger.chain, index)
    assert step.finding == Finding(6, "the index is applied beyond the chain, up to 9")


PAYLOADS: list[object] = [
    None,
    True,
    -(1 << 63),
    (1 << 64) - 1,
    1.0,
    -0.0,
    1e300,
    0.1,
    "ä😀\u2028",
    {"z": [], "a": {"b": [1, 2.5, None]}, "": "empty"},
]


def told(ledger: Ledger, index: int) -> BlockDetail:
    """A block as a client reads it off the wire."""
    raw = msgspec.json.encode(block_detail(ledger.chain.block(index)))
    return msgspec.json.decode(raw, type=BlockDetail)


def test_a_chain_told_in_json_is_the_same_chain(ledger: Ledger) -> None:
    """Every kind of payload comes out of JSON as the bytes that were hashed."""
    raws = [
        encode_transaction(
            transaction_id=bytes([number]) * 16, user_id="ü", kind="k", payload=payload
        )
        for number, payload in enumerate(PAYLOADS)
    ]
    ledger.save(ledger.author.seal(raws, term=3))
    auditor = ChainAuditor()
    findings = [check_told_block(auditor, told(ledger, index)) for index in range(8)]
    assert findings == [None] * 8
    assert auditor.tip == tip_after(ledger.chain.tip(6), ledger.chain.block(7))


@pytest.mark.parametrize(
    ("field", "value", "what"),
    [
        ("hash", "00" * 32, "hash: the node tells 0000"),
        ("nonce", 1, "hash: the node tells"),
        ("term", 2, "hash: the node tells"),
        ("transactions", [], "count: 0, not 2"),
        ("transaction_count", 1 << 64, "encoding: "),
        ("signature", "00", "encoding: "),
        ("previous_hash", "00", "encoding: "),
        ("sealer", "zz", "encoding: "),
    ],
)
def test_a_node_that_tells_another_block_is_found(
    ledger: Ledger, field: str, value: object, what: str
) -> None:
    """Each field is encoded anew: it must make the hash, and hold."""
    auditor = ChainAuditor()
    for index in range(3):
        assert check_told_block(auditor, told(ledger, index)) is None
    spoilt = msgspec.structs.replace(told(ledger, 3), **{field: value})
    finding = check_told_block(auditor, spoilt)
    assert finding is not None
    assert finding.index == 3
    assert finding.what.startswith(what)


@pytest.mark.parametrize(
    ("field", "value"),
    [("payload", {"amount": 1}), ("user_id", "eve"), ("kind", "gift")],
)
def test_a_node_that_tells_another_transaction_is_found(
    ledger: Ledger, field: str, value: object
) -> None:
    """The transactions root is recomputed from the JSON."""
    auditor = ChainAuditor()
    for index in range(3):
        check_told_block(auditor, told(ledger, index))
    detail = told(ledger, 3)
    first, *rest = detail.transactions
    changed = msgspec.structs.replace(first, **{field: value})
    finding = check_told_block(
        auditor, msgspec.structs.replace(detail, transactions=[changed, *rest])
    )
    assert finding == Finding(3, "transactions_root: not the root over the transactions")


def test_an_id_that_is_no_uuid_is_found(ledger: Ledger) -> None:
    """What makes no transaction at all is a finding too."""
    auditor = ChainAuditor()
    for index in range(3):
        check_told_block(auditor, told(ledger, index))
    detail = told(ledger, 3)
    changed = msgspec.structs.replace(detail.transactions[0], id="7")
    spoilt = msgspec.structs.replace(detail, transactions=[changed, *detail.transactions[1:]])
    finding = check_told_block(auditor, spoilt)
    assert finding is not None
    assert finding.what.startswith("encoding: ")


def test_a_block_not_found_is_an_error_of_its_own() -> None:
    """The walk relies on it: asking beyond the end raises, and does not return nothing."""
    chain = MemoryChain(make_genesis())
    with pytest.raises(BlockNotFoundError):
        chain.block(1)
