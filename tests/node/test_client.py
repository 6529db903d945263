"""The Python client: against the real HTTP face, call by call."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from consensus.block import InvalidTransactionError
from node.client import (
    BatchError,
    ConflictError,
    LedgerClient,
    NewTransaction,
    NotFoundError,
    Receipt,
    RejectedError,
)
from node.outcomes import Refusal, RefusalReason
from tests.node.api_fixture import Stage, stage
from tests.node.test_api_reads import USERS

__all__ = ["stage"]

ID = uuid.UUID("0190a5d0-c8e2-7cc0-8a9b-1d2e3f405162")


def record(client: LedgerClient, **changes: Any) -> Any:
    """Record one transaction."""
    return client.record_transaction(
        **{"user_id": "alice", "kind": "deposit", "payload": {"amount": 5}, **changes}
    )


@pytest.mark.asyncio
async def test_a_transaction_is_recorded_and_read(stage: Stage) -> None:
    """Its receipt, its history, its block and the cluster, by every call of the client."""
    async with LedgerClient([stage.server.url]) as client:
        receipt = await record(client)
        assert (1, 0) == (receipt.index, receipt.position)
        assert 7 == uuid.UUID(receipt.id).version
        found = await client.receipt(uuid.UUID(receipt.id))
        assert ("committed", receipt) == (found.status, found.receipt)
        page = await client.history_page("alice", limit=5)
        assert [{"amount": 5}] == [item.payload for item in page.transactions]
        block = await client.block("latest")
        assert block == await client.block(1)
        assert receipt.block_hash == block.hash
        blocks = await client.blocks(first=1, limit=1)
        assert ([1], 1) == ([one.index for one in blocks.blocks], blocks.last_index)
        assert [0, 1] == [one.index for one in (await client.blocks()).blocks]
        assert "node1" == (await client.cluster()).leader


@pytest.mark.asyncio
async def test_the_same_id_again_is_the_same_receipt(stage: Stage) -> None:
    """And with other content a conflict."""
    async with LedgerClient([stage.server.url]) as client:
        first = await record(client, transaction_id=ID)
        assert first == await record(client, transaction_id=ID)
        with pytest.raises(ConflictError) as caught:
            await record(client, transaction_id=ID, payload=2)
        assert 409 == caught.value.problem.status


@pytest.mark.asyncio
async def test_a_history_is_read_page_by_page(stage: Stage) -> None:
    """All rows, in the order asked for, whatever the page size."""
    async with LedgerClient([stage.server.url]) as client:
        new = [NewTransaction(user_id="alice", kind="k", payload=number) for number in range(5)]
        receipts = await client.record_transactions(new)
        assert list(range(5)) == [receipt.position for receipt in receipts]
        newest = [item.payload async for item in client.transactions("alice", page_size=2)]
        assert [4, 3, 2, 1, 0] == newest
        oldest = client.transactions("alice", page_size=5, order="asc", consistency="local")
        assert [0, 1, 2, 3, 4] == [item.payload async for item in oldest]
        assert [] == [item async for item in client.transactions("nobody")]


@pytest.mark.asyncio
async def test_any_user_is_found(stage: Stage) -> None:
    """Slashes, dots, percent signs and letters of every script reach the node as they are."""
    async with LedgerClient([stage.server.url]) as client:
        for user in USERS:
            await record(client, user_id=user, payload=user)
            page = await client.history_page(user)
            assert [user] == [item.payload for item in page.transactions]


@pytest.mark.asyncio
async def test_what_is_refused_for_good_is_not_tried_again(stage: Stage) -> None:
    """A reserved kind, a bad parameter, a block that is not there: each its own error."""
    async with LedgerClient([stage.server.url]) as client:
        with pytest.raises(RejectedError, match=r"\$\.kind") as caught:
            await record(client, kind="genesis")
        assert "$.kind" == caught.value.problem.errors[0].path
        with pytest.raises(RejectedError, match="limit"):
            await client.history_page("alice", limit=0)
        with pytest.raises(NotFoundError, match="ends at 0"):
            await client.block(7)
    assert [] == stage.node.submits


@pytest.mark.parametrize("payload", [float("nan"), {1: "x"}, (1,), 2**64, {"a": "\0"}])
@pytest.mark.asyncio
async def test_what_json_would_change_is_never_sent(stage: Stage, payload: object) -> None:
    """NaN would become null, an int key text and a tuple a list, without a word."""
    async with LedgerClient([stage.server.url]) as client:
        with pytest.raises(InvalidTransactionError):
            await record(client, payload=payload)
        with pytest.raises(InvalidTransactionError):
            await client.record_transactions(
                [NewTransaction(user_id="a", kind="k", payload=payload)]
            )
    assert [] == stage.node.submits


@pytest.mark.asyncio
async def test_a_batch_may_be_rejected_as_a_whole(stage: Stage) -> None:
    """Nothing of it is recorded, and the place of the fault is told."""
    new = [NewTransaction(user_id="a", kind=kind, payload=1) for kind in ("k", "genesis")]
    async with LedgerClient([stage.server.url]) as client:
        with pytest.raises(RejectedError, match=r"\$\.transactions\[1\]\.kind"):
            await client.record_transactions(new)
    assert [] == stage.node.submits


@pytest.mark.asyncio
async def test_an_empty_batch_is_no_call(stage: Stage) -> None:
    """No receipts for no transactions."""
    async with LedgerClient([stage.server.url]) as client:
        assert [] == await client.record_transactions([])
    assert [] == stage.node.submits


@pytest.mark.asyncio
async def test_a_batch_of_which_one_is_refused(stage: Stage) -> None:
    """The error has the outcome of each, in order; the others are recorded."""
    stage.node.refusals[b"mallory"] = Refusal(b"", RefusalReason.CONFLICT, "for a test")
    new = [NewTransaction(user_id=user, kind="k", payload=1) for user in ("a", "mallory", "b")]
    async with LedgerClient([stage.server.url]) as client:
        with pytest.raises(BatchError, match="1 of 3") as caught:
            await client.record_transactions(new)
    kinds = [type(outcome) for outcome in caught.value.outcomes]
    assert [Receipt, ConflictError, Receipt] == kinds


@pytest.mark.parametrize(
    "urls", [[], ["127.0.0.1:8001"], ["ftp://x"], ["http://"], ["http://x:y"], ["http://x/?a=1"]]
)
def test_bad_urls_are_refused_at_once(urls: list[str]) -> None:
    """With the URL in the message."""
    with pytest.raises(ValueError, match="URL"):
        LedgerClient(urls)


@pytest.mark.parametrize(("timeout_s", "attempt_timeout_s"), [(0, 1), (1, -1)])
def test_bad_timeouts_are_refused_at_once(timeout_s: float, attempt_timeout_s: float) -> None:
    """A call must have some time."""
    with pytest.raises(ValueError, match="above 0"):
        LedgerClient(
            ["http://127.0.0.1:1"], timeout_s=timeout_s, attempt_timeout_s=attempt_timeout_s
        )
