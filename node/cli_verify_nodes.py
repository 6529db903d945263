"""`bitnexus verify --node`: walks the chains that running nodes tell, and compares them.

Everything is computed anew from the JSON: canonical bytes, hashes, roots and signatures. A node can
hide nothing but what it does not tell. Relies on `node.audit` and `node.client`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from node.audit import ChainAuditor, Finding, check_told_block
from node.cli_client import command_error
from node.cli_output import progress_bar
from node.cli_verify import Verdict
from node.client import LedgerClient
from node.client_errors import LedgerClientError, NotFoundError, RejectedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from consensus.membership import Genesis
    from node.api.shapes import BlockDetail

_AHEAD: Final = 16
"""How many blocks are asked for at a time."""


def verify_nodes(
    urls: Sequence[str], *, genesis: Genesis | None, timeout_s: float
) -> list[Verdict]:
    """Verify the chain that each node tells, and that all tell the same one.

    Raises:
        CommandError: a node cannot be reached.
    """
    try:
        return asyncio.run(_verify_nodes(urls, genesis=genesis, timeout_s=timeout_s))
    except LedgerClientError as error:
        raise command_error(error) from error


async def _verify_nodes(
    urls: Sequence[str], *, genesis: Genesis | None, timeout_s: float
) -> list[Verdict]:
    verdicts: list[Verdict] = []
    hashes: list[bytes] = []
    for url in urls:
        async with LedgerClient([url], timeout_s=timeout_s) as ledger:
            last_index = (await ledger.cluster()).applied_index
            walk = _Walk(genesis, known_hashes=hashes)
            with progress_bar(f"verify {url}", total=last_index + 1) as move:
                verdicts.append(await walk.run(ledger, url, last_index, move))
            hashes = max(hashes, walk.hashes, key=len)
        if verdicts[-1].finding is not None:
            return verdicts
    return verdicts


class _Walk:
    """One node's chain, and the hashes of its blocks, to compare the next node's with."""

    def __init__(self, genesis: Genesis | None, *, known_hashes: list[bytes]) -> None:
        self.hashes: list[bytes] = []
        self._auditor = ChainAuditor(genesis)
        self._known_hashes = known_hashes
        self._transactions = 0

    async def run(
        self, ledger: LedgerClient, url: str, last_index: int, move: Callable[[int], None]
    ) -> Verdict:
        """Walk to `last_index` or to the first finding."""
        finding = None
        try:
            async for detail in _told_blocks(ledger, last_index):
                finding = self._check(detail)
                if finding is not None:
                    break
                self._transactions += detail.transaction_count
                move(detail.index + 1)
        except NotFoundError:
            finding = Finding(self._auditor.next_index, "the node does not tell this block")
        except RejectedError as error:
            finding = Finding(self._auditor.next_index, f"the node refuses to tell it: {error}")
        return Verdict(
            subject="node",
            where=url,
            through=self._auditor.next_index - 1,
            transactions=self._transactions,
            finding=finding,
            changes=tuple(self._auditor.changes),
        )

    def _check(self, detail: BlockDetail) -> Finding | None:
        index = self._auditor.next_index
        finding = check_told_block(self._auditor, detail)
        if finding is not None:
            return finding
        tip = self._auditor.tip
        assert tip is not None, "a block that holds is the tip"
        self.hashes.append(tip.hash)
        if index < len(self._known_hashes) and self._known_hashes[index] != tip.hash:
            what = (
                f"fork: another node tells {self._known_hashes[index].hex()}, {tip.hash.hex()} here"
            )
            return Finding(index, what)
        return None


async def _told_blocks(ledger: LedgerClient, last_index: int) -> AsyncIterator[BlockDetail]:
    """Blocks 0 to `last_index` in their order, some asked for at a time."""
    for first in range(0, last_index + 1, _AHEAD):
        indexes = range(first, min(first + _AHEAD, last_index + 1))
        for detail in await asyncio.gather(*(ledger.block(index) for index in indexes)):
            yield detail
