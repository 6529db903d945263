"""Does a chain hold? Every block walked from genesis, every rule computed anew.

Trusts nothing that is stored beside the blocks: hashes, roots, the history, signatures and the
uniqueness of ids all come from the bytes themselves, and who may have sealed a block from the
members that genesis names and from the changes that the blocks before it made to them.
`ChainAuditor` checks block after block wherever they come from, `audit_store` walks a store and
compares what the store has derived. Relies on the rules of `consensus`; prints and opens nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

import msgspec

from consensus.block import (
    Block,
    Header,
    InvalidBlockError,
    InvalidTransactionError,
    Rule,
    Tip,
    block_from_parts,
    check_transaction,
    encode_transaction,
    tip_after,
    transaction_id,
    verify_block,
)
from consensus.changes import ChangeKind, recorded_change
from consensus.membership import GENESIS_KIND, Genesis, genesis_block
from consensus.roster import Roster
from storage.errors import BlockNotFoundError, DamagedBlockError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Protocol

    from node.api.shapes import BlockDetail
    from storage.contract import Chain
    from storage.recent import Place

    class Places(Protocol):
        """The look-up of ids that is derived from the chain."""

        @property
        def applied_index(self) -> int:
            """The last index it covers."""
            ...

        def places(self, ids: Sequence[bytes]) -> list[Place | None]:
            """Where each id stands."""
            ...


@dataclass(frozen=True, slots=True)
class Finding:
    """The first thing that is wrong, and the index of the block where it shows."""

    index: int
    what: str

    def __str__(self) -> str:
        return f"block {self.index}: {self.what}"


@dataclass(frozen=True, slots=True)
class MemberChange:
    """A lawful change of the membership, as the block at `index` records it."""

    index: int
    kind: ChangeKind
    member: str
    members: tuple[str, ...]
    """Who is a member from there on, by name; learners say so."""
    timestamp_us: int


@dataclass(frozen=True, slots=True)
class Step:
    """One block walked. A finding ends the walk; a step without one is a block that holds."""

    index: int
    transactions: int
    finding: Finding | None = None
    change: MemberChange | None = None


class ChainAuditor:
    """Checks the blocks of one chain in their order, from genesis on.

    Remembers every id it has seen, some 100 bytes of memory for each transaction.
    """

    def __init__(self, genesis: Genesis | None = None) -> None:
        """Trust `genesis` if it is given, else the genesis that block 0 holds."""
        self.tip: Tip | None = None
        self.term_starts: list[tuple[int, int]] = []
        self.changes: list[MemberChange] = []
        self._expected = None if genesis is None else genesis_block(genesis)
        self._cluster_id = b""
        self._roster: Roster | None = None
        self._seen: set[bytes] = set()

    @property
    def next_index(self) -> int:
        """The index of the block to be checked next."""
        return 0 if self.tip is None else self.tip.index + 1

    def change_at(self, index: int) -> MemberChange | None:
        """The change that the block checked last has made, if that is the one at `index`."""
        is_there = bool(self.changes) and self.changes[-1].index == index
        return self.changes[-1] if is_there else None

    def check(self, block: Block) -> Finding | None:
        """Check the next block. After a finding the auditor is of no further use."""
        index = self.next_index
        try:
            tip = self._begin(block) if self.tip is None else self._follow(self.tip, block)
        except InvalidBlockError as error:
            return Finding(index, f"{error.rule}: {error.detail}")
        for position, raw in enumerate(block.transactions):
            what = self._check_transaction(raw, index)
            if what is not None:
                return Finding(index, f"transaction {position}: {what}")
        if self.tip is None or self.tip.term != tip.term:
            self.term_starts.append((index, tip.term))
        self.tip = tip
        self._note_change(block)
        return None

    def _begin(self, block: Block) -> Tip:
        roster = Roster(block)
        if self._expected is not None and block.hash != self._expected.hash:
            detail = f"{block.hash.hex()}, not {self._expected.hash.hex()} of the genesis given"
            raise InvalidBlockError(Rule.CLUSTER, detail)
        self._cluster_id = block.hash
        self._roster = roster
        return tip_after(None, block)

    def _follow(self, tip: Tip, block: Block) -> Tip:
        roster = self._members()
        after = verify_block(
            tip,
            block,
            cluster_id=self._cluster_id,
            sealers=roster.electors(tip.index + 1),
        )
        roster.verify(block)
        return after

    def _members(self) -> Roster:
        assert self._roster is not None, "block 0 says who the first members are"
        return self._roster

    def _note_change(self, block: Block) -> None:
        if not self._members().append(block):
            return
        change = recorded_change(block).change
        latest = self._members().latest
        self.changes.append(
            MemberChange(
                index=block.index,
                kind=change.kind,
                member=change.member.name,
                members=tuple(
                    f"{one.name} (learner)" if one.public_key in latest.learners else one.name
                    for one in latest.members
                ),
                timestamp_us=block.timestamp_us,
            )
        )

    def _check_transaction(self, raw: bytes, index: int) -> str | None:
        try:
            transaction = check_transaction(raw)
        except InvalidTransactionError as error:
            return str(error)
        if index > 0 and transaction.kind == GENESIS_KIND:
            return f"kind: {transaction.kind} stands in block 0 alone"
        if transaction.id in self._seen:
            return f"id: {transaction.id.hex()} is in the chain already"
        self._seen.add(transaction.id)
        return None


def audit_store(chain: Chain, *, genesis: Genesis | None = None) -> Iterator[Step]:
    """Walk a chain store, of a stopped or of a running node, and compare what it has derived.

    Ends with the first finding. The walk goes to the block that is last when it begins. Blocks
    that are not committed may be replaced by a new leader meanwhile: such a tail is left out.

    Raises:
        StorageError: the store as a whole cannot be read.
    """
    auditor = ChainAuditor(genesis)
    last_index = chain.last_index
    while auditor.next_index <= last_index:
        index = auditor.next_index
        parent = auditor.tip
        try:
            block = chain.block(index)
            finding, count = auditor.check(block), len(block.transactions)
        except DamagedBlockError as error:
            finding, count = Finding(index, error.what), 0
        except BlockNotFoundError:
            finding, count = Finding(index, "is missing from the store"), 0
        if finding is not None and _was_replaced(chain, parent):
            return
        yield Step(index, count, finding, auditor.change_at(index))
        if finding is not None:
            return
    finding = _compare_derived(chain, auditor)
    if finding is not None:
        yield Step(finding.index, 0, finding)


def audit_index(chain: Chain, index: Places) -> Iterator[Step]:
    """Compare the look-up of ids with the chain that it is derived from.

    Walk the chain with `audit_store` first: this trusts it. Ends with the first finding.

    Raises:
        StorageError: the chain or the index cannot be read.
    """
    last_index = index.applied_index
    if last_index > chain.last_index:
        what = f"the index is applied beyond the chain, up to {last_index}"
        yield Step(chain.last_index, 0, Finding(chain.last_index, what))
        return
    for number in range(last_index + 1):
        block = chain.block(number)
        found = index.places([transaction_id(raw) for raw in block.transactions])
        finding = None
        for position, place in enumerate(found):
            if place != (number, position):
                where = "nowhere" if place is None else f"at {tuple(place)}"
                what = f"transaction {position}: the index has it {where}"
                finding = Finding(number, what)
                break
        yield Step(number, len(found), finding)
        if finding is not None:
            return


def rebuild_block(detail: BlockDetail) -> Block:
    """The block that a node's JSON tells of, encoded anew from its fields.

    The caller compares its hash with the one in the JSON (`check_told_block`) and checks it as any
    other block: neither the node nor JSON is trusted.

    Raises:
        InvalidBlockError: the fields make no block.
    """
    try:
        transactions = [
            encode_transaction(
                transaction_id=UUID(told.id).bytes,
                user_id=told.user_id,
                kind=told.kind,
                payload=told.payload,
            )
            for told in detail.transactions
        ]
        header = Header(
            version=detail.version,
            cluster_id=bytes.fromhex(detail.cluster_id),
            index=detail.index,
            term=detail.term,
            previous_hash=bytes.fromhex(detail.previous_hash),
            transactions_root=bytes.fromhex(detail.transactions_root),
            transaction_count=detail.transaction_count,
            history_root=bytes.fromhex(detail.history_root),
            timestamp_us=detail.timestamp_us,
            sealer=bytes.fromhex(detail.sealer),
            nonce=detail.nonce,
        )
        # As a block from anywhere, not as one of our own: nothing about it is known to be true.
        return block_from_parts(
            msgspec.msgpack.encode(header),
            bytes.fromhex(detail.signature),
            msgspec.msgpack.encode(transactions),
        )
    except (ValueError, OverflowError) as error:
        if isinstance(error, InvalidBlockError):
            raise
        raise InvalidBlockError(Rule.ENCODING, str(error)) from error


def check_told_block(auditor: ChainAuditor, detail: BlockDetail) -> Finding | None:
    """Check the next block as a node's JSON tells it."""
    index = auditor.next_index
    try:
        block = rebuild_block(detail)
    except InvalidBlockError as error:
        return Finding(index, f"{error.rule}: {error.detail}")
    if block.hash.hex() != detail.hash:
        return Finding(index, f"hash: the node tells {detail.hash}, its fields {block.hash.hex()}")
    return auditor.check(block)


def _was_replaced(chain: Chain, parent: Tip | None) -> bool:
    """Whether the block last found good is gone: a new leader's log took the place of the tail."""
    if parent is None or parent.index <= chain.hard_state.commit_index:
        return False
    try:
        return chain.header(parent.index).hash != parent.hash
    except BlockNotFoundError:
        return True
    except StorageError:
        return False


def _compare_derived(chain: Chain, auditor: ChainAuditor) -> Finding | None:
    """Compare the history nodes, the terms and the hard state with the blocks just walked."""
    tip = auditor.tip
    if tip is None:
        return Finding(0, "the store has no block at all")
    if chain.hard_state.term < tip.term:
        return Finding(tip.index, f"term: the node is in {chain.hard_state.term}, behind its block")
    if chain.last_index != tip.index:
        return None  # the node runs: what it has derived is of a longer chain
    try:
        stored = chain.tip(tip.index)
    except DamagedBlockError as error:
        return Finding(error.index, error.what)
    if stored.history.root() != tip.history.root():
        return Finding(tip.index, "history: the stored tree is not that of the blocks")
    if chain.term_starts() != auditor.term_starts:
        return Finding(tip.index, "terms: where they start is not what the blocks say")
    return _compare_changes(chain, auditor, tip.index)


def _compare_changes(chain: Chain, auditor: ChainAuditor, last_index: int) -> Finding | None:
    """Compare the store's list of the blocks that change the members: a start reads only those."""
    walked = {change.index for change in auditor.changes}
    stored = {index for index in chain.change_indexes() if index <= last_index}
    if walked == stored:
        return None
    index = min(walked ^ stored)
    if index in walked:
        return Finding(index, "membership: the store's list of changes lacks this block")
    return Finding(index, "membership: the store lists this block as a change, and it is none")
