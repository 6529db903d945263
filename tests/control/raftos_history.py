"""What clients asked of raftos and heard, in the form that `cluster.checker` judges.

Relies on the checker's own types; `History` is the same in virtual and in real time.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from cluster.checker import Fate, Write

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.control.raftos_node import RaftosNode
    from tests.control.raftos_watch import RaftosView

PATIENCE_S = 3.0
"""After this a client gives up and does not know."""


class History:
    """Everything that was written, in the order in which it was offered."""

    def __init__(self, now_us: Callable[[], int]) -> None:
        self.writes: list[Write] = []
        self._now_us = now_us

    async def write(self, node: RaftosNode, view: RaftosView, *, client: int = 0) -> Write:
        """Offer something new to a node that leads, once, and keep what became of it.

        raftos tells no place, so it is looked up where raftos acknowledges. No text holds the byte
        of a newline, which its log would not survive.
        """
        name, value = f"entry {len(self.writes)}", f"by client {client}"
        write = Write(
            client=client,
            invoke_us=self._now_us(),
            user="everybody",
            id=name.encode(),
            content=value.encode(),
        )
        self.writes.append(write)
        try:
            async with asyncio.timeout(PATIENCE_S):
                await node.write(name, value)
        except (TimeoutError, ValueError):  # ValueError: it cannot read its own log, of term 10
            return write
        write.fate = Fate.ACKNOWLEDGED
        write.complete_us = self._now_us()
        write.place = next(((index, 0) for index, each, _ in view.entries() if each == name), None)
        return write
