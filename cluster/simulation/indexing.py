"""The index process of a simulated machine: the shipped way of writing batches, in virtual time.

It writes what is applied, a moment behind, and says so another moment later; a crash may fall on
either side of a batch. Where it comes upon a damaged block it ends, and its node with it. Relies on
`node.indexer` for the order of writing and reporting, and on the disk for both stores.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from cluster.simulation.boundary import Boundary
from node.indexer import apply_through
from storage.errors import DamagedBlockError, NoSpaceError

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from cluster.simulation.disk import Disk
    from cluster.simulation.events import EventQueue
    from cluster.simulation.record import Trace

BEHIND: Final = 3
"""A batch leaves out fewer than so many of the blocks that are applied."""
REPORT_US: Final = 2_000
LATE_REPORT_US: Final = 500_000
"""How long a report takes, as a rule and at the most."""
LATE: Final = 0.1
"""How often it may take that long."""


class IndexProcess:
    """Writes one machine's index from its chain, both of which are on `disk`."""

    def __init__(
        self,
        disk: Disk,
        *,
        queue: EventQueue,
        random: Random,
        trace: Trace,
        crashes_at: Callable[[Boundary], bool],
    ) -> None:
        """`crashes_at` crashes the machine there, if it is to, and says whether it did."""
        self._disk = disk
        self._queue = queue
        self._random = random
        self._trace = trace
        self._crashes_at = crashes_at

    def catch_up(self, *, is_cut_short: bool) -> str:
        """Index what is known to be committed, or half of it; why it could not, if it could not."""
        chain, index = self._disk.chain, self._disk.index
        target = chain.hard_state.commit_index
        through = (index.applied_index + target) // 2 if is_cut_short else target
        try:
            apply_through(chain, index, through, report=lambda *_: None)
        except DamagedBlockError as error:
            return type(error).__name__
        return "" if index.applied_index >= through else NoSpaceError.__name__

    def flush(self, applied_index: int, on_written: Callable[[int], None]) -> None:
        """Write most of what is applied; `on_written` hears of it, if no crash comes before.

        Raises:
            DamagedBlockError: a block to be indexed is not what was saved.
        """
        index = self._disk.index
        through = applied_index - self._random.randrange(BEHIND)
        if through > index.applied_index and not self._crashes_at(Boundary.UNINDEXED):
            report = partial(self._report, on_written)
            apply_through(self._disk.chain, index, through, report=report)

    def _report(
        self, on_written: Callable[[int], None], word: str, index: int, _detail: str
    ) -> None:
        if word == "full":
            self._trace.coverage["index batches refused for want of room"] += 1
        if not self._crashes_at(Boundary.UNREPORTED):
            is_late = self._random.random() < LATE
            delay_us = self._random.randrange(LATE_REPORT_US if is_late else REPORT_US)
            self._queue.after(delay_us, partial(on_written, index))
