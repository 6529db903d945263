"""`bitnexus submit` of one transaction, `transactions`, `receipt` and `block`.

Relies on `node.cli_client` for the calls and on `node.cli_output` for what people see.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Literal
from uuid import UUID

import msgspec
from msgspec import UNSET

from node.api.json_input import read_submission
from node.api.problems import ProblemError
from node.cli_client import call
from node.cli_errors import NO_INDEX, CommandError, ExitCode
from node.cli_output import one_line, print_fields, print_table, say, write_json
from node.uuid7 import new_transaction_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from node.api.shapes import BlockDetail, HistoryItem, Receipt, ReceiptLookup
    from node.client import LedgerClient

MAX_PAGE: Final = 1_000
_LATEST: Final = "latest"


def submit_one(
    urls: Sequence[str],
    *,
    user_id: str,
    kind: str,
    payload: str,
    transaction_id: str | None,
    timeout_s: float,
    as_json: bool,
) -> None:
    """Record one transaction and show its receipt. `payload` is JSON text."""
    identifier = None if transaction_id is None else parse_id(transaction_id, "--id")
    value = _read_payload(payload)

    async def work(ledger: LedgerClient) -> Receipt:
        return await ledger.record_transaction(
            user_id=user_id, kind=kind, payload=value, transaction_id=identifier
        )

    receipt = call(urls, work, timeout_s=timeout_s)
    if as_json:
        write_json(receipt)
    else:
        say(f"recorded {receipt.id}  {_place_text(receipt)}  {receipt.timestamp}")


def show_transactions(
    urls: Sequence[str],
    user_id: str,
    *,
    limit: int | None,
    after: str | None,
    oldest_first: bool,
    local: bool,
    timeout_s: float,
    as_json: bool,
) -> None:
    """Show a user's transactions; without a limit all of them."""

    async def work(ledger: LedgerClient) -> tuple[list[HistoryItem], str | None, int]:
        items: list[HistoryItem] = []
        following = after
        while True:
            left = MAX_PAGE if limit is None else limit - len(items)
            page = await ledger.history_page(
                user_id,
                limit=min(left, MAX_PAGE),
                after=following,
                order="asc" if oldest_first else "desc",
                consistency="local" if local else "linearizable",
            )
            items += page.transactions
            following = page.next
            if following is None or len(items) == limit:
                return items, following, page.read_index

    items, following, read_index = call(urls, work, timeout_s=timeout_s)
    if as_json:
        write_json({"transactions": items, "next": following, "read_index": read_index})
        return
    if not items:
        say(f"{user_id} has no transactions")
        return
    rows = [
        (
            item.timestamp,
            f"{item.index}/{item.position}",
            item.kind,
            item.id,
            one_line(item.payload),
        )
        for item in items
    ]
    print_table(("time", "block", "kind", "id", "payload"), rows, right="block")
    if following is not None:
        say(f"more: --limit, --all or --after {following}")


def show_receipt(
    urls: Sequence[str], transaction_id: str, *, timeout_s: float, as_json: bool
) -> ExitCode:
    """Show what is known of an id; the exit code tells committed, pending and unknown apart."""
    identifier = parse_id(transaction_id, "ID")

    async def work(ledger: LedgerClient) -> ReceiptLookup:
        return await ledger.receipt(identifier)

    lookup = call(urls, work, timeout_s=timeout_s)
    if as_json:
        write_json(lookup)
    elif lookup.receipt is UNSET:
        say(f"{identifier} is {lookup.status}")
    else:
        receipt = lookup.receipt
        print_fields(
            [
                ("id", receipt.id),
                ("status", lookup.status),
                ("place", _place_text(receipt)),
                ("hash", receipt.block_hash),
                ("time", receipt.timestamp),
            ]
        )
    codes = {"committed": ExitCode.OK, "pending": ExitCode.UNKNOWN_FATE}
    return codes.get(lookup.status, ExitCode.NOT_FOUND)


def show_block(urls: Sequence[str], index: str, *, timeout_s: float, as_json: bool) -> None:
    """Show a committed block with its transactions."""
    wanted = _parse_index(index)

    async def work(ledger: LedgerClient) -> BlockDetail:
        return await ledger.block(wanted)

    block = call(urls, work, timeout_s=timeout_s)
    if as_json:
        write_json(block)
        return
    print_fields(
        [
            ("index", str(block.index)),
            ("hash", block.hash),
            ("previous hash", block.previous_hash),
            ("transactions root", block.transactions_root),
            ("history root", block.history_root),
            ("term", str(block.term)),
            ("time", block.timestamp),
            ("sealer", block.sealer),
            ("nonce", str(block.nonce)),
            ("signature", block.signature),
            ("cluster id", block.cluster_id),
            ("version", str(block.version)),
            ("size", f"{block.size_bytes} bytes"),
            ("transactions", str(block.transaction_count)),
        ]
    )
    if block.transactions:
        say("")
        rows = [
            (str(position), one.user_id, one.kind, one.id, one_line(one.payload))
            for position, one in enumerate(block.transactions)
        ]
        print_table(("position", "user", "kind", "id", "payload"), rows, right="position")


def parse_id(text: str, what: str) -> UUID:
    """A transaction id. Raises CommandError."""
    try:
        return UUID(text)
    except ValueError as error:
        raise CommandError(f"{what}: {text!r} is no UUID", ExitCode.USAGE) from error


def _parse_index(text: str) -> int | Literal["latest"]:
    if text == _LATEST:
        return "latest"
    if not (text.isascii() and text.isdigit()):
        raise CommandError(f"{text!r} {NO_INDEX}", ExitCode.USAGE)
    return int(text)


def _read_payload(text: str) -> object:
    """The value of `--payload`, refused where the ledger's own rules for JSON refuse it."""
    raw = text.encode("utf-8", "surrogateescape")
    try:
        value: object = msgspec.json.decode(raw)
        probe = b'{"user_id": "u", "kind": "k", "payload": ' + raw + b"}"
        asyncio.run(read_submission(probe, new_transaction_id))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CommandError(f"--payload: is not JSON: {error}", ExitCode.REFUSED) from error
    except ProblemError as error:
        detail = error.problem.detail.replace("$.payload", "$", 1)
        raise CommandError(f"--payload: {detail}", ExitCode.REFUSED) from error
    return value


def _place_text(receipt: Receipt) -> str:
    return f"block {receipt.index} position {receipt.position}"
