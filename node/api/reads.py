"""The handlers of the calls that read the ledger: history, receipts, blocks and the cluster.

Reads are linearizable unless `consistency=local` is asked for: the node first has its leader
confirm an index and waits until it has applied that. Relies on `answers` for the shapes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from uuid import UUID

import msgspec

from consensus.block import MAX_USER_ID_BYTES
from node.api.answers import (
    block_detail,
    block_summary,
    cluster_answer,
    history_item,
    lookup_answer,
    members_answer,
)
from node.api.cursor import CursorError, decode_cursor, encode_cursor
from node.api.problems import ProblemError, ProblemKind, fault_error, make_problem
from node.api.query import Choice, Parameter, Query, Text, Whole
from node.api.reply import json_reply
from node.api.shapes import BlockPage, HistoryPage
from node.api.submit import TIMEOUT

if TYPE_CHECKING:
    from node.api.face import Asked, Face
    from node.api.interface import LedgerNode
    from node.api.reply import Reply
    from node.outcomes import HistoryRow
    from storage.recent import Place

MAX_PAGE_ROWS: Final = 1000
MAX_PAGE_BYTES: Final = 4 << 20
"""Where a page ends however few rows it has: 1,000 rows could be 64 MiB."""
MAX_BLOCK_PAGE: Final = 100

_PIECE_ROWS: Final = 250
_OK: Final = 200
_MAX_INDEX_DIGITS: Final = 19

_CONSISTENCY: Final = Choice(
    "consistency",
    ("linearizable", "local"),
    "linearizable sees everything acknowledged before the call; local sees what this node has",
)
HISTORY_PARAMETERS: Final[tuple[Parameter, ...]] = (
    Whole("limit", 1, MAX_PAGE_ROWS, 100, "The most transactions in the answer"),
    Text("after", "The `next` of the page before"),
    Choice("order", ("desc", "asc"), "desc is newest first"),
    _CONSISTENCY,
    TIMEOUT,
)
RECEIPT_PARAMETERS: Final[tuple[Parameter, ...]] = (_CONSISTENCY, TIMEOUT)
BLOCKS_PARAMETERS: Final[tuple[Parameter, ...]] = (
    Whole("first", 0, (1 << 63) - 1, None, "The first index; without it the last blocks are given"),
    Whole("limit", 1, MAX_BLOCK_PAGE, 20, "The most blocks in the answer"),
)


async def read_history(face: Face, asked: Asked) -> Reply:
    """Answer with a page of a user's transactions."""
    query, user_id = asked.query, asked.path["user_id"]
    _check_user_id(user_id)
    after = _read_cursor(query.text("after"), user_id)
    read_index = await _barrier(face.node, query)
    limit = query.whole("limit")
    rows = await _read_rows(
        face.node, user_id, after, limit=limit, newest_first=query.choice("order") == "desc"
    )
    shown = _within_bytes(rows[:limit])
    has_more = len(shown) < len(rows)
    page = HistoryPage(
        transactions=[history_item(row) for row in shown],
        next=encode_cursor(shown[-1].place, user_id) if has_more else None,
        read_index=read_index,
    )
    return json_reply(_OK, page)


async def read_receipt(face: Face, asked: Asked) -> Reply:
    """Answer with what is known of an id."""
    try:
        # As strict as in a submit: UUID() by itself takes braces, signs and digits of any script.
        identifier = msgspec.convert(asked.path["id"], UUID)
    except msgspec.ValidationError:
        raise fault_error(ProblemKind.INVALID_REQUEST, "path.id", "is not a UUID") from None
    await _barrier(face.node, asked.query)
    return json_reply(_OK, lookup_answer(await face.node.receipt_status(identifier.bytes)))


async def read_block(face: Face, asked: Asked) -> Reply:
    """Answer with one block and its transactions."""
    text = asked.path["index"]
    if text == "latest":
        index = face.node.applied_index
    elif text.isascii() and text.isdigit() and len(text) <= _MAX_INDEX_DIGITS:
        index = int(text)
    else:
        detail = "must be a whole number, or latest"
        raise fault_error(ProblemKind.INVALID_REQUEST, "path.index", detail)
    return json_reply(_OK, block_detail(await face.node.block(index)))


async def read_blocks(face: Face, asked: Asked) -> Reply:
    """Answer with a run of blocks without their transactions, in ascending order."""
    last_index = face.node.applied_index
    limit = asked.query.whole("limit")
    first = asked.query.optional_whole("first")
    if first is None:
        first = max(0, last_index - limit + 1)
    indexes = range(first, min(first + limit - 1, last_index) + 1)
    blocks = [block_summary(await face.node.block(index)) for index in indexes]
    return json_reply(_OK, BlockPage(blocks=blocks, last_index=last_index))


def read_cluster(face: Face, _asked: Asked) -> Reply:
    """Answer with the cluster as this node sees it."""
    return json_reply(_OK, cluster_answer(face.node.status()))


def read_members(face: Face, _asked: Asked) -> Reply:
    """Answer with the members alone, as this node sees them."""
    return json_reply(_OK, members_answer(face.node.status()))


async def _barrier(node: LedgerNode, query: Query) -> int:
    """Return the index the read is at least as new as; raises NoLeaderError."""
    if query.choice("consistency") == "local":
        return node.applied_index
    return await node.read_barrier(timeout_s=query.whole("timeout_ms") / 1000)


def _check_user_id(user_id: str) -> None:
    if not user_id:
        raise ProblemError(make_problem(ProblemKind.NOT_FOUND, "there is no user without an id"))
    # The look-up's keys can hold neither, so no such user can have a transaction.
    if "\0" in user_id:
        detail = "must not contain a NUL character"
        raise fault_error(ProblemKind.INVALID_REQUEST, "path.user_id", detail)
    if len(user_id.encode()) > MAX_USER_ID_BYTES:
        detail = f"has more than {MAX_USER_ID_BYTES} bytes"
        raise fault_error(ProblemKind.INVALID_REQUEST, "path.user_id", detail)


def _read_cursor(text: str | None, user_id: str) -> Place | None:
    if text is None:
        return None
    try:
        return decode_cursor(text, user_id)
    except CursorError as error:
        raise fault_error(ProblemKind.INVALID_REQUEST, "query.after", str(error)) from None


async def _read_rows(
    node: LedgerNode, user_id: str, after: Place | None, *, limit: int, newest_first: bool
) -> list[HistoryRow]:
    """Return up to one row more than the limit, so that the end of the history shows.

    Read in pieces, so that neither the loop nor memory is taken by a page that will be cut.
    """
    rows: list[HistoryRow] = []
    size_bytes = 0
    while len(rows) <= limit and size_bytes <= MAX_PAGE_BYTES:
        wanted = min(_PIECE_ROWS, limit + 1 - len(rows))
        piece = await node.history(user_id, after=after, limit=wanted, newest_first=newest_first)
        rows += piece
        size_bytes += sum(len(row.transaction) for row in piece)
        if len(piece) < wanted:
            break
        after = piece[-1].place
    return rows


def _within_bytes(rows: list[HistoryRow]) -> list[HistoryRow]:
    """Cut a page after the row that fills it; the first row is always in it."""
    size_bytes = 0
    for count, row in enumerate(rows, 1):
        size_bytes += len(row.transaction)
        if size_bytes > MAX_PAGE_BYTES:
            return rows[:count]
    return rows
