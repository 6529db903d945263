"""Changes of the membership that were sealed here and are not known to be committed.

Relies on blocks being applied in order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from consensus.block import Block


class OpenChanges:
    """Whoever waits for the fate of a change."""

    def __init__(self) -> None:
        """Nobody waits."""
        self._open: list[tuple[Block, Callable[[bool], None]]] = []

    def add(self, block: Block, on_settled: Callable[[bool], None]) -> None:
        """`on_settled` hears once whether `block` is in the chain for good."""
        self._open.append((block, on_settled))

    def settle(self, applied: Block) -> None:
        """Takes the next applied block: a change in another block of that index is lost."""
        settled = [waiting for waiting in self._open if waiting[0].index <= applied.index]
        if settled:
            self._open = [waiting for waiting in self._open if waiting not in settled]
        for block, on_settled in settled:
            on_settled(block.hash == applied.hash)
