"""Runs a command's call of the ledger, and words what may go wrong with it.

Relies on `node.client`, which takes a moment to import: only commands that speak to nodes do so.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from consensus.block import InvalidTransactionError
from node.cli_errors import CommandError, ExitCode
from node.cli_nodes import client_key
from node.client import LedgerClient
from node.client_errors import (
    ChangeRefusedError,
    LedgerClientError,
    NotFoundError,
    RejectedError,
    UnavailableError,
    UnknownChangeFateError,
    UnknownOutcomeError,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

Value = TypeVar("Value")


def call(
    urls: Sequence[str], work: Callable[[LedgerClient], Awaitable[Value]], *, timeout_s: float
) -> Value:
    """What `work` returns, given a client of these nodes.

    Raises:
        CommandError: the call failed.
    """
    key = client_key()

    async def run() -> Value:
        async with LedgerClient(urls, timeout_s=timeout_s, client_key=key) as ledger:
            return await work(ledger)

    try:
        return asyncio.run(run())
    except (LedgerClientError, InvalidTransactionError) as error:
        raise command_error(error) from error


def command_error(error: LedgerClientError | InvalidTransactionError) -> CommandError:
    """The error as a command ends with it."""
    return CommandError(error_text(error), code_of(error))


def error_text(error: LedgerClientError | InvalidTransactionError) -> str:
    """The error in words, with what to do about it where that is known."""
    if isinstance(error, UnknownOutcomeError):
        return f"{error}; to find out, and to record it, run again with --id {error.transaction_id}"
    if isinstance(error, UnknownChangeFateError):
        return f"{error}; to find out: `bitnexus member list`"
    if isinstance(error, ChangeRefusedError):
        return f"{error.reason}: {error}"
    return str(error)


def code_of(error: LedgerClientError | InvalidTransactionError) -> ExitCode:
    """The exit code that tells this error from others."""
    match error:
        case UnknownOutcomeError() | UnknownChangeFateError():
            return ExitCode.UNKNOWN_FATE
        case UnavailableError():
            return ExitCode.UNREACHABLE
        case NotFoundError():
            return ExitCode.NOT_FOUND
        case ChangeRefusedError():
            return ExitCode.CHANGE_REFUSED
        case RejectedError() | InvalidTransactionError():
            return ExitCode.REFUSED
        case _:
            return ExitCode.FAILED
