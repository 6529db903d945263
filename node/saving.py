"""The thread that saves: one durable write at a time, beside the loop.

A thread of its own, with a queue, instead of an executor: that makes two futures and takes three
turns of the loop for each save, and a save is what every acknowledgement waits for. Relies on
`storage.contract.Chain.save`, and on an event loop for being heard.
"""

from __future__ import annotations

import asyncio
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING

from node.zmq_loop import FailureGuard

if TYPE_CHECKING:
    from collections.abc import Callable

    from consensus.ready import Save
    from storage.contract import Chain


class SavingThread:
    """Carries out saves, in the order given. Its callbacks come on the loop that starts it."""

    def __init__(
        self,
        chain: Chain,
        *,
        on_saved: Callable[[Save], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        """`on_saved` hears of each save that is durable, `on_failure` of the first that failed.

        After that one nothing more is saved: what is on the disk is not known.
        """
        self._chain = chain
        self._on_saved = on_saved
        self._on_failure = on_failure
        self._wanted: SimpleQueue[Save | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Wait for saves from now on."""
        loop = asyncio.get_running_loop()
        # Whoever must not lose the save under way calls `close`; nobody waits for a thread that
        # an interpreter at its end has left behind.
        self._thread = threading.Thread(target=self._work, args=(loop,), name="saver", daemon=True)
        self._thread.start()

    def save(self, save: Save) -> None:
        """Have it done; never waits."""
        self._wanted.put(save)

    async def close(self) -> None:
        """Return when what was asked for has ended; harmless where nothing was started."""
        if self._thread is not None:
            self._wanted.put(None)
            await asyncio.to_thread(self._thread.join)

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        def fail(fault: BaseException) -> None:
            loop.call_soon_threadsafe(self._on_failure, fault)

        guard = FailureGuard(fail)
        while not guard.failed and (save := self._wanted.get()) is not None:
            with guard:
                self._chain.save(
                    hard_state=save.hard_state,
                    truncate_from=save.truncate_from,
                    blocks=save.blocks,
                )
                loop.call_soon_threadsafe(self._on_saved, save)
