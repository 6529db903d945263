"""The embedded node with real parts: sockets, LMDB, the index process; one and three members."""

from __future__ import annotations

import asyncio
import socket
import uuid
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from consensus.block import InvalidTransactionError, encode_transaction
from node.config import ConfigError
from node.folder_lock import DataFolderInUseError
from node.identity import create_identity
from node.outcomes import (
    NodeFailedError,
    NoLeaderError,
    Receipt,
    RefusalReason,
    RefusedError,
    TransactionState,
    Wait,
)
from node.server import Node
from node.submissions import Submission
from storage.errors import BlockNotFoundError, StorageFailedError
from tests.node.real_nodes import cluster_folders, start_all
from tests.node.transport_members import until

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.asyncio
async def test_direct_call_records_and_answers_the_history(tmp_path: Path) -> None:
    """The seed's direct `record_transaction` call, in one process, on a cluster of one."""
    async with Node(cluster_folders(tmp_path, 1)[0]) as node:
        receipt = await node.record_transaction(user_id="ada", kind="note", payload={"n": 1})
        rows = await node.history("ada", after=None, limit=10, newest_first=True)
        block = await node.block(receipt.index)
        assert [(receipt.index, receipt.position)] == [row.place for row in rows]
        assert receipt.block_hash == block.hash
        assert rows[0].transaction == block.transactions[receipt.position]
        assert TransactionState.COMMITTED is (await node.receipt_status(receipt.id)).state


@pytest.mark.asyncio
async def test_every_member_takes_transactions_and_answers_for_all(tmp_path: Path) -> None:
    """Any of three nodes takes a transaction; after a barrier each knows all of them."""
    async with AsyncExitStack() as stack:
        nodes = await start_all(stack, cluster_folders(tmp_path, 3))
        receipts = await asyncio.gather(
            *(
                node.record_transaction(user_id="ada", kind="note", payload={"n": n})
                for n, node in enumerate(nodes * 5)
            )
        )
        for node in nodes:
            assert await node.read_barrier(timeout_s=5) >= max(one.index for one in receipts)
            rows = await node.history("ada", after=None, limit=100, newest_first=False)
            assert sorted((one.index, one.position) for one in receipts) == [r.place for r in rows]
        status = nodes[0].status()
        assert {"leader": 1, "follower": 2} == {
            role: [one.role for one in status.members].count(role)
            for role in ("leader", "follower")
        }


@pytest.mark.asyncio
async def test_restart_resumes_the_chain_and_remembers_ids(tmp_path: Path) -> None:
    """After a stop and a start a retry gets the first receipt, and the history is whole."""
    config = cluster_folders(tmp_path, 1)[0]
    one = uuid.uuid4()
    async with Node(config) as node:
        first = await node.record_transaction(
            user_id="ada", kind="note", payload=1, transaction_id=one
        )
    async with Node(config) as node:
        again = await node.record_transaction(
            user_id="ada", kind="note", payload=1, transaction_id=one
        )
        assert first == again
        with pytest.raises(RefusedError, match="conflict"):
            await node.record_transaction(user_id="ada", kind="note", payload=2, transaction_id=one)
        rows = await node.history("ada", after=None, limit=10, newest_first=True)
        assert [(first.index, first.position)] == [row.place for row in rows]


@pytest.mark.asyncio
async def test_a_lone_member_of_three_answers_unknown(tmp_path: Path) -> None:
    """Without a majority nothing is acknowledged, no read is linearizable, and it says so."""
    async with Node(cluster_folders(tmp_path, 3)[0]) as node:
        with pytest.raises(RefusedError) as refused:
            await node.record_transaction(user_id="ada", kind="n", payload=1, timeout_s=0.2)
        assert RefusalReason.UNKNOWN is refused.value.refusal.reason
        with pytest.raises(NoLeaderError):
            await node.read_barrier(timeout_s=0.2)
        assert not node.ready


@pytest.mark.asyncio
async def test_a_peer_that_cannot_be_connected_to_is_an_alarm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A member of the chain whose name nobody knows stops neither a start nor the others' work."""
    known = socket.getaddrinfo

    def resolve(host: str, *args: Any, **kinds: Any) -> Any:
        if host == "gone.test":
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return known(host, *args, **kinds)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    *configs, gone = cluster_folders(tmp_path, 3, hosts=("127.0.0.1", "127.0.0.1", "gone.test"))
    async with AsyncExitStack() as stack:
        nodes = await start_all(stack, configs)
        receipt = await nodes[0].record_transaction(user_id="ada", kind="note", payload=1)
        await until(lambda: all(node.alarms for node in nodes))
        address = next(
            one.member.peer for one in nodes[0].status().members if one.member.name == gone.name
        )
        alarm = f"peer {address} cannot be connected to: no such name"
        assert [(alarm,)] * 2 == [node.status().alarms for node in nodes]
        assert 1 == nodes[0].metrics["alarms"]
        assert await nodes[1].read_barrier(timeout_s=5) >= receipt.index


@pytest.mark.asyncio
async def test_a_node_that_takes_no_part_says_so_once(tmp_path: Path) -> None:
    """In its own log, where whoever wonders looks first; it is not ready from then on."""
    async with Node(cluster_folders(tmp_path, 1)[0]) as node:
        await node.read_barrier(timeout_s=5)
        assert (None, True) == (node.obstacle, node.ready)
        with capture_logs() as logs:
            node._raft.alarm = "CORRUPT: planted"
            assert ("CORRUPT: planted", False) == (node.obstacle, node.ready)
            await until(lambda: bool(logs))
            for _ in range(3):
                node._loop._pump()
    said = {"event": "takes_no_part", "log_level": "error", "reason": "CORRUPT: planted"}
    assert [said] == [one for one in logs if one["event"] == "takes_no_part"]


@pytest.mark.asyncio
async def test_stop_answers_whoever_waits(tmp_path: Path) -> None:
    """A node that stops answers "unknown" to its waiting clients instead of hanging."""
    node = Node(cluster_folders(tmp_path, 3)[0])
    await node.start()
    call = asyncio.create_task(node.record_transaction(user_id="ada", kind="n", payload=1))
    await asyncio.sleep(0)
    await node.stop()
    with pytest.raises(RefusedError, match="unknown"):
        await call
    with pytest.raises(NodeFailedError):
        await node.record_transaction(user_id="ada", kind="n", payload=1)


@pytest.mark.asyncio
async def test_failed_save_stops_the_node_and_acknowledges_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fails is never tried again: the caller hears "unknown", the owner the cause."""
    node = Node(cluster_folders(tmp_path, 1)[0])
    await node.start()
    await node.record_transaction(user_id="ada", kind="n", payload=1)

    def fail(**_: object) -> None:
        raise StorageFailedError(tmp_path, OSError(5, "Input/output error"))

    monkeypatch.setattr(node._chain, "save", fail)
    with pytest.raises(RefusedError, match="unknown"):
        await node.record_transaction(user_id="ada", kind="n", payload=2)
    with pytest.raises(NodeFailedError, match="Input/output error"):
        await node.wait_ended()
    assert not node._loop._running, "a leader whose disk failed must fall silent"
    await node.stop()


@pytest.mark.asyncio
async def test_broken_invariant_stops_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception in our own code is never logged and passed over."""
    node = Node(cluster_folders(tmp_path, 1)[0])
    await node.start()

    def broken() -> None:
        raise AssertionError("planted")

    monkeypatch.setattr(node._replica, "pump", broken)
    with pytest.raises(NodeFailedError, match="planted"):
        await node.wait_ended()
    await node.stop()


@pytest.mark.asyncio
async def test_death_of_the_index_process_stops_the_node(tmp_path: Path) -> None:
    """Without its index a node must not go on answering."""
    node = Node(cluster_folders(tmp_path, 1)[0])
    await node.start()
    process = node._indexer._process
    assert process is not None
    process.kill()
    with pytest.raises(NodeFailedError):
        await node.wait_ended()
    await node.stop()


@pytest.mark.asyncio
async def test_invalid_and_reserved_transactions_are_refused_before_anything(
    tmp_path: Path,
) -> None:
    """The direct call checks what the HTTP face checks; nothing is recorded."""
    async with Node(cluster_folders(tmp_path, 1)[0]) as node:
        for kind, payload in (("membership", {}), ("genesis", {}), ("note", float("nan"))):
            with pytest.raises(InvalidTransactionError):
                await node.record_transaction(user_id="ada", kind=kind, payload=payload)
        await node.record_transaction(user_id="ada", kind="note", payload=1)
        assert 1 == node.metrics["transactions_applied_total"]


@pytest.mark.asyncio
async def test_accepted_commits_later_without_a_waiter(tmp_path: Path) -> None:
    """`accepted` is answered before the commit, which follows."""
    async with Node(cluster_folders(tmp_path, 1)[0]) as node:
        await node.read_barrier(timeout_s=5)
        raw = encode_transaction(
            transaction_id=bytes(15) + b"\x01", user_id="ada", kind="n", payload=1
        )
        before = node.applied_index
        await node.submit([raw], wait=Wait.ACCEPTED, timeout_s=5)
        await node._loop.wait_applied(before)
        (outcome,) = await node.submit([raw], timeout_s=5)
        assert isinstance(outcome, Receipt)
        assert before + 1 == outcome.index


@pytest.mark.asyncio
async def test_blocks_beyond_the_chain_are_not_found(tmp_path: Path) -> None:
    """Genesis is there; what is not applied is not."""
    async with Node(cluster_folders(tmp_path, 1)[0]) as node:
        assert node.cluster_id == (await node.block(0)).hash
        for index in (-1, node.applied_index + 10):
            with pytest.raises(BlockNotFoundError):
                await node.block(index)


@pytest.mark.asyncio
async def test_one_process_on_a_data_folder(tmp_path: Path) -> None:
    """A second node on the same folder is refused, and the first goes on."""
    config = cluster_folders(tmp_path, 1)[0]
    async with Node(config) as node:
        with pytest.raises(DataFolderInUseError):
            await Node(config).start()
        await node.record_transaction(user_id="ada", kind="n", payload=1)


@pytest.mark.asyncio
async def test_identity_that_is_no_member_is_refused(tmp_path: Path) -> None:
    """A node whose key the genesis does not name says so in one line."""
    config = cluster_folders(tmp_path, 2)[0]
    (config.data_dir / "identity.key").unlink()
    create_identity(config.data_dir / "identity.key")
    with pytest.raises(ConfigError, match="is not a member"):
        await Node(config).start()


@pytest.mark.asyncio
async def test_stop_during_start_ends_the_start(tmp_path: Path) -> None:
    """A stop that comes while the node starts is not lost: the start fails and lets go of all."""
    config = cluster_folders(tmp_path, 1)[0]
    node = Node(config)
    starting = asyncio.create_task(node.start())
    await asyncio.sleep(0)
    await node.stop()
    with pytest.raises(NodeFailedError, match="stopped while it started"):
        await starting
    async with Node(config) as again:
        await again.record_transaction(user_id="ada", kind="n", payload=1)


@pytest.mark.asyncio
async def test_failure_during_start_ends_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that fails while it starts never takes part."""
    node = Node(cluster_folders(tmp_path, 1)[0])
    join = node._join

    async def fail_first(opened: AsyncExitStack) -> None:
        node.fail(OSError("planted"))
        await join(opened)

    monkeypatch.setattr(node, "_join", fail_first)
    with pytest.raises(NodeFailedError):
        await node.start()
    assert not node._running


@pytest.mark.asyncio
async def test_retries_of_old_transactions_are_answered_from_disk(tmp_path: Path) -> None:
    """A receipt of a block that left the memory is read in a thread, with the first content."""
    config = cluster_folders(tmp_path, 1)[0]
    one = uuid.uuid4()
    async with Node(config) as node:
        first = await node.record_transaction(
            user_id="ada", kind="note", payload=1, transaction_id=one
        )
        node._raft.log._recent.clear()
        again = await node.record_transaction(
            user_id="ada", kind="note", payload=1, transaction_id=one
        )
        assert first == again
        assert first == (await node.receipt_status(one.bytes)).receipt


@pytest.mark.asyncio
async def test_blocks_are_not_read_for_callers_who_gave_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Retries of old transactions that time out do not keep the reader busy."""
    config = cluster_folders(tmp_path, 1)[0]
    async with Node(config) as node:
        receipt = await node.record_transaction(user_id="ada", kind="note", payload=1)
        raw = (await node.block(receipt.index)).transactions[receipt.position]
        node._raft.log._recent.clear()
        read: list[int] = []
        monkeypatch.setattr(node._chain, "block", read.append)
        gave_up = Submission([raw], wait=Wait.COMMITTED, on_done=lambda _outcomes: None)
        node._replica.submit(gave_up)
        (asked,) = node._replica.pump().recorded
        node._replica.expire(gave_up)
        assert node._loop._read_block(receipt.index, [asked]) is None
        assert [] == read


@pytest.mark.asyncio
async def test_timed_out_reads_leave_nothing_behind(tmp_path: Path) -> None:
    """A member without a leader forgets the reads whose callers gave up."""
    async with Node(cluster_folders(tmp_path, 3)[0]) as node:
        for _ in range(20):
            with pytest.raises(NoLeaderError):
                await node.read_barrier(timeout_s=0.001)
        assert 0 == len(node._replica._barriers)


@pytest.mark.asyncio
async def test_messages_come_before_timeouts_after_a_stall(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loop that was held up reads its sockets first: its own pause is nobody's silence."""
    async with Node(cluster_folders(tmp_path, 1)[0]) as node:
        order: list[str] = []
        ticked = asyncio.Event()
        tick = node._replica.tick

        def noted_tick(now_us: int, wall_us: int) -> None:
            order.append("tick")
            ticked.set()
            tick(now_us, wall_us)

        monkeypatch.setattr(node._replica, "tick", noted_tick)
        node._loop._ticked -= 1.0
        node._loop._tick()
        asyncio.get_running_loop().call_soon(order.append, "message")
        await ticked.wait()
        assert ["message", "tick"] == order[:2]


@pytest.mark.asyncio
async def test_a_stall_of_the_loop_shows_once(tmp_path: Path) -> None:
    """A tick that comes half a second late is the worst stall, until somebody has read it."""
    async with Node(cluster_folders(tmp_path, 1)[0]) as node:
        node._loop._tick_due -= 0.5
        node._loop._tick()

        # It was not due yet.
        assert node.metrics["loop_stall_worst_us"] >= 400_000
        assert node.metrics["loop_stall_worst_us"] < 400_000
