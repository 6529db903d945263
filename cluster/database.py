"""The embedded PostgreSQL of a local cluster, kept running between `start` and `stop`.

The ledger does without it for hours, so its end is no end of the cluster: it is reported and the
server started again with back-off. Relies on `cluster.postgres` for the server itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import TYPE_CHECKING

from cluster.postgres import EmbeddedPostgres
from cluster.postgres_programs import PostgresError
from cluster.process import describe_exit

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cluster.process import Backoff


class KeptDatabase:
    """One PostgreSQL server, started again when it ends by itself."""

    def __init__(
        self, data_dir: Path, *, restart: bool, backoff: Backoff, report: Callable[[str], None]
    ) -> None:
        """Keep its data under `data_dir`; say each death to `report`, one line each."""
        self.dsn: str | None = None
        self._server = EmbeddedPostgres(data_dir)
        self._restart = restart
        self._backoff = backoff
        self._report = report
        self._stop_asked = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._server.pid

    async def start(self) -> str:
        """Start it and return its connection string, which stays the same until `stop`.

        Raises:
            PostgresError: it does not come up.
        """
        self.dsn = await self._server.start()
        self._watch = asyncio.create_task(self._keep_running(), name="watch PostgreSQL")
        return self.dsn

    async def stop(self) -> None:
        """End it for good; everything committed is kept."""
        self._stop_asked.set()
        if self._watch is not None:
            if self.pid is not None:
                await self._server.stop()
            await self._watch  # a start that is under way is not disturbed, but is the last
            self._watch = None
        await self._server.stop()

    def kill_now(self) -> None:
        """End it without its usual care, and do not wait: its next start recovers from its log."""
        self._stop_asked.set()
        if self.pid is not None:
            os.kill(self.pid, signal.SIGQUIT)

    async def _keep_running(self) -> None:
        clock = asyncio.get_running_loop().time
        started = clock()
        while True:
            status = await self._server.wait()
            if self._stop_asked.is_set():
                return
            trouble = f"PostgreSQL {describe_exit(status)}"
            if not self._restart:
                self._report(f"{trouble}: left dead as asked")
                return
            delay_s = self._backoff.delay_after(uptime_s=clock() - started)
            self._report(f"{trouble}: it is started again in {delay_s:g} s")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop_asked.wait(), delay_s)
            if self._stop_asked.is_set():
                return
            started = clock()
            try:
                await self._server.start()
            except PostgresError as error:
                self._report(f"PostgreSQL does not come back: {error}")
            if self._stop_asked.is_set():
                return
