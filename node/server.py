"""One node: what is opened for it, and the calls that the faces and embedding programs make.

`Node` opens the data folder, joins the cluster and answers calls; `node.loop` carries everything
between sockets, disk and the replica. Reads of old blocks take a thread, so that the loop never
waits for a disk. Faults: a client's is answered, ours stops the node (`failed`, `wait_ended`).
"""

from __future__ import annotations

import asyncio
import random
import secrets
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final, Self

import structlog

from consensus.block import (
    RESERVED_KINDS,
    InvalidTransactionError,
    Sealer,
    encode_transaction,
)
from consensus.changes import ChangeError
from consensus.leadership import RaftConfig
from consensus.membership import genesis_block
from consensus.raft import Raft
from node.administration import Administration
from node.calls import Calls
from node.checkpointer import Checkpointer
from node.config import LOCK_FILE
from node.folder_lock import FolderLock
from node.futures import cancelled, resolver
from node.indexer import Indexer
from node.loop import TICKS_PER_HEARTBEAT, MemberLoop
from node.mempool import QueueLimits
from node.outcomes import (
    ClusterStatus,
    HistoryRow,
    NodeFailedError,
    NoLeaderError,
    Outcome,
    Receipt,
    ReceiptStatus,
    Refusal,
    RefusedError,
    TransactionState,
    Wait,
)
from node.replica import PIPELINE_BLOCKS, Replica
from node.standing import check_name, load_standing, open_chain
from node.status import AppliedBlocks, cluster_status, node_metrics
from node.transport import Transport
from node.uuid7 import new_transaction_id
from storage.errors import BlockNotFoundError
from storage.index import IndexStore
from storage.recent import Lookup, RecentIndex

if TYPE_CHECKING:
    import uuid
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from consensus.block import Block
    from node.config import NodeConfig
    from node.submissions import Submission
    from storage.recent import Place

_log = structlog.get_logger("node")
MICROS_PER_MILLI: Final = 1_000


class Node:
    """A member of a cluster, embedded in this process: `async with Node(config) as node`."""

    def __init__(self, config: NodeConfig) -> None:
        """Nothing is opened before `start`."""
        self.config = config
        self.failed: BaseException | None = None
        self._ended = asyncio.Event()
        self._calls = Calls(offer=self._offer, expire=self._expire)
        self._running = False
        self._stop_asked = False
        self._life = asyncio.Lock()
        self._opened = AsyncExitStack()

    # Life

    async def start(self) -> None:
        """Opens the data folder, catches the index up, and joins the cluster.

        Raises:
            ConfigError, GenesisError, IdentityError: the node is not set up right.
            DataFolderInUseError: another process runs on the folder.
            StorageError: the chain cannot be opened.
            TransportError: the peer address cannot be bound.
            NodeFailedError: it was stopped, or failed, while it started.
        """
        async with self._life, AsyncExitStack() as opened:
            opened.enter_context(FolderLock(self.config.data_dir / LOCK_FILE))
            self._standing = load_standing(self.config)
            self._genesis_block = genesis_block(self._standing.genesis)
            self.cluster_id = self._genesis_block.hash
            await self._open_stores(opened)
            await self._join(opened)
            self._opened = opened.pop_all()

    async def stop(self) -> None:
        """Leaves the cluster and closes everything; whoever still waits hears "unknown".

        A leader hands over first, where another voter is in contact, so that nobody has to wait for
        an election timeout. A start that is under way ends with an error first. A node that has
        stopped stays so.
        """
        self._stop_asked = True
        try:
            async with self._life:
                await self._hand_over()
                await self._opened.aclose()
        finally:
            self._ended.set()

    async def wait_ended(self) -> None:
        """Returns once the node is stopped and everything closed.

        Raises:
            NodeFailedError: it failed, and takes no further part; `stop` closes what is open.
        """
        await self._ended.wait()
        if self.failed is not None:
            raise NodeFailedError(str(self.failed)) from self.failed

    async def __aenter__(self) -> Self:
        """Starts."""
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stops."""
        await self.stop()

    # Calls

    async def record_transaction(
        self,
        *,
        user_id: str,
        kind: str,
        payload: object,
        transaction_id: uuid.UUID | None = None,
        timeout_s: float = 10.0,
    ) -> Receipt:
        """Records one transaction and returns its receipt once it is committed.

        Raises:
            InvalidTransactionError: it breaks a rule; nothing is recorded.
            RefusedError: no receipt; its `refusal` says whether to retry with the same id.
        """
        if kind in RESERVED_KINDS:
            raise InvalidTransactionError("kind", f"{kind!r} is reserved for the cluster")
        raw = encode_transaction(
            transaction_id=transaction_id.bytes if transaction_id else new_transaction_id(),
            user_id=user_id,
            kind=kind,
            payload=payload,
        )
        (outcome,) = await self.submit([raw], wait=Wait.COMMITTED, timeout_s=timeout_s)
        if isinstance(outcome, Refusal):
            raise RefusedError(outcome)
        assert isinstance(outcome, Receipt), "a committed transaction has a receipt"
        return outcome

    async def submit(
        self, transactions: Sequence[bytes], *, wait: Wait = Wait.COMMITTED, timeout_s: float
    ) -> list[Outcome]:
        """Records canonical transactions, none of a reserved kind; an outcome each, in order.

        Never raises for one transaction's fate. What is open after `timeout_s` is unknown; what was
        accepted without waiting is offered to leaders no longer than that.

        Raises:
            NodeFailedError: this node does not run.
        """
        done: asyncio.Future[list[Outcome]] = asyncio.get_running_loop().create_future()
        call = self.begin_submit(
            transactions, wait=wait, timeout_s=timeout_s, on_done=resolver(done)
        )
        try:
            return await done
        except asyncio.CancelledError:
            self.abandon(call)
            raise

    def begin_submit(
        self,
        transactions: Sequence[bytes],
        *,
        wait: Wait,
        timeout_s: float,
        on_done: Callable[[list[Outcome]], None],
    ) -> Submission:
        """As `submit`, for callers that are no coroutine: `on_done` hears the outcomes once.

        It may be called before this returns. Raises NodeFailedError as `submit` does.
        """
        self._check_running()
        return self._calls.begin(transactions, wait=wait, timeout_s=timeout_s, on_done=on_done)

    def abandon(self, call: Submission) -> None:
        """The caller has gone; what has no outcome yet is unknown, and offered no longer."""
        self._calls.abandon(call)

    async def read_barrier(self, *, timeout_s: float) -> int:
        """An index that covers all that was committed before this call, once it is applied here.

        Raises:
            NoLeaderError: no leader confirmed it within `timeout_s`.
            NodeFailedError: this node does not run.
        """
        self._check_running()
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        number = self._loop.read(resolver(done))
        try:
            return await asyncio.wait_for(done, timeout_s)
        except TimeoutError as error:
            raise NoLeaderError(f"no leader confirmed the read within {timeout_s:g} s") from error
        finally:
            if number is not None:
                self._loop.forget_read(number)

    async def history(
        self, user_id: str, *, after: Place | None, limit: int, newest_first: bool
    ) -> list[HistoryRow]:
        """A user's applied transactions strictly beyond `after`, at most `limit`."""
        self._check_running()
        places = self._lookup.history(user_id, after=after, limit=limit, newest_first=newest_first)
        blocks = await self._blocks_at({place.index for place in places})
        return [
            HistoryRow(
                place,
                blocks[place.index].transactions[place.position],
                blocks[place.index].timestamp_us,
            )
            for place in places
        ]

    async def receipt_status(self, transaction_id: bytes) -> ReceiptStatus:
        """What this node knows of a transaction.

        Raises:
            DamagedBlockError: it is recorded in a block that is damaged on this disk.
        """
        self._check_running()
        place = self._lookup.places([transaction_id])[0]
        if place is None:
            is_pending = self._replica.is_pending(transaction_id)
            state = TransactionState.PENDING if is_pending else TransactionState.UNKNOWN
            return ReceiptStatus(state)
        block = (await self._blocks_at({place.index}))[place.index]
        receipt = Receipt(transaction_id, *place, block.hash, block.timestamp_us)
        return ReceiptStatus(TransactionState.COMMITTED, receipt)

    async def block(self, index: int) -> Block:
        """The committed block at `index`.

        Raises:
            BlockNotFoundError: nothing is committed there, as far as this node knows.
            DamagedBlockError: its bytes on disk are not what was sealed.
        """
        self._check_running()
        if not 0 <= index <= self.applied_index:
            raise BlockNotFoundError(index, self.applied_index)
        return (await self._blocks_at({index}))[index]

    @property
    def administration(self) -> Administration:
        """The calls that change the cluster; raises NodeFailedError where it does not run."""
        self._check_running()
        return self._administration

    def status(self) -> ClusterStatus:
        """The cluster as this node sees it."""
        return cluster_status(
            self._standing.genesis.name,
            self.config.name,
            self._raft,
            cluster_id=self.cluster_id,
            incarnation=self._standing.incarnation(self._raft.log.roster),
            alarms=self.alarms,
        )

    async def _hand_over(self) -> None:
        """Let another lead before this node leaves, if it leads and there is another."""
        if not self._running or self._raft.leadership is None:
            return
        timeout_s = self.config.election_timeout_max_ms / 1_000
        try:
            await self._administration.transfer_leadership(timeout_s=timeout_s)
        except (ChangeError, NoLeaderError) as error:
            _log.warning("leadership_not_handed_over", reason=str(error))

    # What the faces and the checkpointer look at

    @property
    def commit_index(self) -> int:
        """The last index known here to be committed."""
        return self._raft.log.commit_index

    @property
    def applied_index(self) -> int:
        """The last index whose transactions this node answers for."""
        return self._replica.applied_index

    @property
    def alarms(self) -> tuple[str, ...]:
        """What a person must look at."""
        checkpoint = self._checkpointer.alarm if self._checkpointer else None
        found = (self._replica.obstacle, checkpoint, self._indexer.obstacle)
        return (*(alarm for alarm in found if alarm), *self._transport.unusable.values())

    @property
    def obstacle(self) -> str | None:
        """Why this node takes no part at all though it runs: it is removed, or CORRUPT."""
        return self._replica.obstacle if self._running else None

    @property
    def is_full(self) -> bool:
        """Whether a submit would find no room: it need not even be read."""
        return self._running and self._replica.is_full

    @property
    def ready(self) -> bool:
        """Whether a leader is known and all but the last committed blocks are applied here."""
        if not self._running or self.obstacle is not None or self._raft.leader is None:
            return False
        return self.commit_index - self.applied_index <= PIPELINE_BLOCKS

    @property
    def metrics(self) -> dict[str, int]:
        """Counters and gauges by name, as plain numbers."""
        checkpointer = self._checkpointer
        return node_metrics(self._replica, self._loop, self._transport.counters) | {
            "indexed_index": self._index.applied_index,
            "checkpointed_index": checkpointer.checkpointed_index if checkpointer else -1,
            "alarms": len(self.alarms),
        }

    # Setting up

    async def _open_stores(self, opened: AsyncExitStack) -> None:
        """The chain, and its index caught up to what was known to be committed."""
        config = self.config
        self._chain = open_chain(config, self._genesis_block)
        opened.callback(self._chain.close)
        self._indexer = Indexer(on_applied=self._on_indexed, on_failure=self.fail)
        opened.push_async_callback(self._indexer.close)
        await self._indexer.start(config.data_dir)
        await self._indexer.catch_up(self._chain.hard_state.commit_index)
        self._index = IndexStore.open(config.index_dir, cluster_id=self.cluster_id, readonly=True)
        opened.callback(self._index.close)

    async def _join(self, opened: AsyncExitStack) -> None:
        """The core, the replica, and the peers; from here on the node takes part."""
        config = self.config
        recent = RecentIndex()
        self._lookup = Lookup(self._index, recent)
        seed = secrets.randbits(256)
        self._random = random.Random(seed)  # noqa: S311 - timeouts and nonces are no secrets
        self._raft = Raft(
            config=RaftConfig(
                heartbeat_us=config.heartbeat_ms * MICROS_PER_MILLI,
                election_min_us=config.election_timeout_min_ms * MICROS_PER_MILLI,
                election_max_us=config.election_timeout_max_ms * MICROS_PER_MILLI,
            ),
            member=self._standing.identity.public_key,
            cluster_id=self.cluster_id,
            sealer=Sealer(self._standing.identity.signing_key, self.cluster_id, self._random),
            chain=self._chain,
            hard_state=self._chain.hard_state,
            applied_index=self._index.applied_index,
            random=self._random,
        )
        self._replica = Replica(
            raft=self._raft,
            recent=recent,
            lookup=self._lookup,
            limits=QueueLimits(config.queue_transactions, config.queue_bytes),
            seeds=self._standing.seeds,
            seeds_index=self._standing.seeds_index,
        )
        self._loop = MemberLoop(
            replica=self._replica,
            chain=self._chain,
            tick_s=config.heartbeat_ms / 1_000 / TICKS_PER_HEARTBEAT,
            on_applied=self._indexer.request,
            on_members=self._connect_peers,
            on_failure=self.fail,
        )
        opened.push_async_callback(self._loop.close)
        self._administration = Administration(self._loop, self._replica)
        await self._open_transport(opened)
        if self.failed is not None or self._stop_asked:
            raise NodeFailedError("the node was stopped while it started") from self.failed
        self._running = True
        self._loop.start(self._transport.send)
        opened.callback(self._leave)
        self._start_checkpointer(opened)

    async def _open_transport(self, opened: AsyncExitStack) -> None:
        """The sockets to and from the peers, at the address that the chain has for this node."""
        config = self.config
        own = self._standing.member(self._raft.log)
        check_name(config, own)
        self._transport = Transport(
            identity=self._standing.identity,
            cluster_id=self._standing.incarnation(self._raft.log.roster),
            bind=config.peer_bind or own.peer,
            on_message=self._loop.receive,
            on_disconnect=self._loop.unreachable,
            on_connect=self._loop.reachable,
            on_failure=self.fail,
        )
        self._connect_peers()
        await self._transport.start()
        opened.push_async_callback(self._transport.close)

    def _start_checkpointer(self, opened: AsyncExitStack) -> None:
        dsn = self.config.postgres_dsn
        self._checkpointer: Checkpointer | None = None
        if dsn is not None:
            self._checkpointer = Checkpointer(
                dsn,
                AppliedBlocks(self._loop, self._chain),
                cluster_id=self.cluster_id,
                random=self._random,
            )
            task = asyncio.get_running_loop().create_task(self._checkpointer.run())
            task.add_done_callback(self._on_checkpointer_end)
            opened.push_async_callback(cancelled, task)

    def _connect_peers(self) -> None:
        """Connections follow the chain; of whom it does not know, the invitation tells."""
        peers = self._replica.fetching.peers
        self._transport.set_peers({key: member.peer for key, member in peers.items()})

    def _leave(self) -> None:
        """Takes no further part: the loop stops, and whoever waits hears "unknown"."""
        self._running = False
        self._loop.stop()
        self._calls.end_all()

    def _on_indexed(self, index: int) -> None:
        """The index process may report before this node has joined, and after it has left."""
        if self._running:
            self._loop.flushed(index)

    def _on_checkpointer_end(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.fail(error)

    # Small parts

    def fail(self, error: BaseException) -> None:
        """Stops taking part, for a fault of our own; the owner hears of it from `wait_ended`."""
        if self.failed is None:
            self.failed = error
        if self._running:
            self._loop.stop()
        self._running = False
        self._ended.set()
        asyncio.get_running_loop().call_soon(self._calls.end_all)

    def _check_running(self) -> None:
        if self.failed is not None:
            raise NodeFailedError(str(self.failed)) from self.failed
        if not self._running:
            raise NodeFailedError("the node is not running")

    def _offer(self, call: Submission) -> None:
        self._loop.submit(call)

    def _expire(self, call: Submission) -> None:
        self._replica.expire(call)

    async def _blocks_at(self, indexes: set[int]) -> dict[int, Block]:
        """What is in memory comes from there; the rest is read and verified in a thread."""
        recent, cached = self._raft.log.recent_block, self._chain.cached_block
        blocks = {index: recent(index) or cached(index) for index in indexes}
        if old := sorted(index for index, block in blocks.items() if block is None):
            read = await asyncio.to_thread(lambda: [self._chain.block(index) for index in old])
            blocks.update(zip(old, read, strict=True))
        return {index: block for index, block in blocks.items() if block is not None}
