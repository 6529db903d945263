"""Between callbacks and coroutines. Relies on asyncio alone."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Value = TypeVar("Value")


async def cancelled(task: asyncio.Task[None]) -> None:
    """Ends a task; its failure, if any, was taken by its done callback."""
    task.cancel()
    await asyncio.wait({task})


def resolver(future: asyncio.Future[Value]) -> Callable[[Value], None]:
    """A callback that resolves the future, unless its waiter has given up."""

    def resolve(value: Value) -> None:
        if not future.done():
            future.set_result(value)

    return resolve
