"""`bitnexus submit --file`: many transactions, in batches, through all the nodes at once.

Several batches are under way at a time, each begun at another node; a batch goes on to the next
node when one fails, and keeps its ids. Results come out in the order of the lines. What has an id
of its own is never recorded twice, so an interrupted run is taken up by running it again. Relies on
`node.client` and on `node.cli_lines`.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from consensus.block import InvalidTransactionError
from node.api.shapes import Receipt
from node.cli_client import code_of, error_text
from node.cli_errors import CommandError, ExitCode
from node.cli_lines import Line, LineError, batches, count_lines, open_lines
from node.cli_nodes import client_key
from node.cli_output import progress_bar, say, write_json
from node.client import LedgerClient
from node.client_errors import BatchError, LedgerClientError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from typing import BinaryIO

Refused = LedgerClientError | InvalidTransactionError

_SHOWN_REFUSALS: Final = 20
_WORST_FIRST: Final = (ExitCode.UNKNOWN_FATE, ExitCode.UNREACHABLE, ExitCode.REFUSED)
"""Of several codes the first gives the exit code: what is unknown must be asked again."""


@dataclass(slots=True)
class Summary:
    """What became of all lines. `codes` are those of the refusals."""

    recorded: int = 0
    refused: int = 0
    first_index: int | None = None
    last_index: int | None = None
    codes: set[ExitCode] = field(default_factory=set)
    line_error: LineError | None = None

    def note(self, outcome: Receipt | Refused) -> None:
        """Count one outcome."""
        if not isinstance(outcome, Receipt):
            self.refused += 1
            self.codes.add(code_of(outcome))
            return
        self.recorded += 1
        self.first_index = min(outcome.index, self.first_index or outcome.index)
        self.last_index = max(outcome.index, self.last_index or 0)


def submit_file(
    urls: Sequence[str], file: Path, *, in_flight: int, timeout_s: float, as_json: bool
) -> None:
    """Record every line of a file, and show what became of each or of all.

    Raises:
        CommandError: not every line has a receipt; the code says why.
    """
    with open_lines(file) as stream:
        total = count_lines(stream)
        with progress_bar("submit", total=total) as move:
            run = _Run(urls, in_flight=in_flight, timeout_s=timeout_s, as_json=as_json, move=move)
            summary = asyncio.run(run.submit_all(stream))
    text = _summary_text(summary)
    if not as_json:
        say(text)
    if summary.line_error is not None:
        raise CommandError(f"{file}: {summary.line_error}; {text}", ExitCode.INPUT)
    if summary.codes:
        worst = next((code for code in _WORST_FIRST if code in summary.codes), ExitCode.FAILED)
        raise CommandError(
            f"{text}; run again to take up what is left: an id is never recorded twice", worst
        )


class _Run:
    """One file on its way: batches wait in a short queue, workers take them."""

    def __init__(
        self,
        urls: Sequence[str],
        *,
        in_flight: int,
        timeout_s: float,
        as_json: bool,
        move: Callable[[int], None],
    ) -> None:
        self._urls = urls
        self._in_flight = in_flight
        self._timeout_s = timeout_s
        self._as_json = as_json
        self._move = move
        self._summary = Summary()
        self._queue: asyncio.Queue[tuple[int, list[Line]] | None] = asyncio.Queue(in_flight)
        self._done: dict[int, list[tuple[Line, Receipt | Refused]]] = {}
        self._next_shown = 0
        self._finished = 0
        self._is_hopeless = False

    async def submit_all(self, stream: BinaryIO) -> Summary:
        """Read, send and show until the end, or until no node can be reached."""
        key = client_key()
        async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
            for number in range(self._in_flight):
                # Each worker begins at another node, so that all have their share.
                first = number % len(self._urls)
                urls = [*self._urls[first:], *self._urls[:first]]
                client = LedgerClient(urls, timeout_s=self._timeout_s, client_key=key)
                group.create_task(self._work(await stack.enter_async_context(client)))
            await self._read(stream)
            for _ in range(self._in_flight):
                await self._queue.put(None)
        return self._summary

    async def _read(self, stream: BinaryIO) -> None:
        number = 0
        try:
            async for batch in batches(stream):
                await self._queue.put((number, batch))
                number += 1
                if self._is_hopeless:
                    return
        except LineError as error:
            self._summary.line_error = error
            if error.lines:
                await self._queue.put((number, error.lines))

    async def _work(self, client: LedgerClient) -> None:
        while (item := await self._queue.get()) is not None:
            number, batch = item
            outcomes = await self._submit(client, batch)
            self._done[number] = list(zip(batch, outcomes, strict=True))
            self._show_done()

    async def _submit(self, client: LedgerClient, batch: list[Line]) -> Sequence[Receipt | Refused]:
        if self._is_hopeless:
            return [UnavailableError("not sent: no node could be reached")] * len(batch)
        try:
            return await client.record_transactions([line.transaction for line in batch])
        except BatchError as error:
            self._is_hopeless = all(isinstance(one, UnavailableError) for one in error.outcomes)
            return error.outcomes
        except (LedgerClientError, InvalidTransactionError) as error:
            return [error] * len(batch)

    def _show_done(self) -> None:
        """Show the outcomes whose turn it is."""
        while (outcomes := self._done.pop(self._next_shown, None)) is not None:
            self._next_shown += 1
            for line, outcome in outcomes:
                self._summary.note(outcome)
                self._show(line, outcome)
            self._finished += len(outcomes)
            self._move(self._finished)

    def _show(self, line: Line, outcome: Receipt | Refused) -> None:
        if self._as_json:
            write_json(_outcome_document(line, outcome))
        elif not isinstance(outcome, Receipt) and self._summary.refused <= _SHOWN_REFUSALS:
            say(f"line {line.number}: {outcome}")


def _outcome_document(line: Line, outcome: Receipt | Refused) -> dict[str, object]:
    if isinstance(outcome, Receipt):
        return {"line": line.number, "receipt": outcome}
    return {
        "line": line.number,
        "id": line.transaction.id,
        "error": error_text(outcome),
        "exit_code": int(code_of(outcome)),
    }


def _summary_text(summary: Summary) -> str:
    text = f"{summary.recorded:,} recorded"
    if summary.first_index is not None:
        text += f" in blocks {summary.first_index} to {summary.last_index}"
    if summary.refused:
        text += f", {summary.refused:,} without a receipt"
    return text
