"""The embedded PostgreSQL is kept running; the server itself is played by a script here."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cluster import database
from cluster.database import KeptDatabase
from cluster.postgres_programs import PostgresError
from cluster.process import Backoff

if TYPE_CHECKING:
    from collections.abc import Callable

DEADLINE_S = 10.0


class ScriptedServer:
    """Stands for `EmbeddedPostgres`: ends when the test says so, and fails to start on demand."""

    last: ScriptedServer

    def __init__(self, data_dir: Path) -> None:
        ScriptedServer.last = self
        self.data_dir = data_dir
        self.starts = 0
        self.failures = 0
        self.gate: asyncio.Event | None = None
        self.pid: int | None = None
        self._ended = asyncio.Event()
        self._status = 0

    async def start(self) -> str:
        """Start, unless a failure is due."""
        if self.failures:
            self.failures -= 1
            raise PostgresError("no room")
        self.starts += 1
        if self.gate is not None:
            await self.gate.wait()
        self.pid = 4_000_000 + self.starts
        self._ended.clear()
        return "host=here"

    async def wait(self) -> int:
        """Wait for the end."""
        await self._ended.wait()
        return self._status

    async def stop(self) -> None:
        """End it in good order."""
        self.end(0)

    def end(self, status: int) -> None:
        """End it with a status."""
        self._status = status
        self.pid = None
        self._ended.set()


class Stage:
    """A kept database on a scripted server, and what is reported of it."""

    def __init__(self, *, restart: bool = True, backoff: Backoff | None = None) -> None:
        self.reports: list[str] = []
        self.kept = KeptDatabase(
            Path("/data"),
            restart=restart,
            backoff=backoff or Backoff(first_s=0.01, limit_s=0.02),
            report=self.reports.append,
        )
        self.server = ScriptedServer.last

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for what the loop makes true."""
        async with asyncio.timeout(DEADLINE_S):
            while not condition():  # noqa: ASYNC110 - a plain count has no event
                await asyncio.sleep(0.001)


@pytest.fixture(autouse=True)
def _scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "EmbeddedPostgres", ScriptedServer)


@pytest.mark.asyncio
async def test_a_server_that_ends_is_started_again() -> None:
    """It keeps its connection string, and one line says what happened."""
    stage = Stage()
    assert await stage.kept.start() == "host=here"
    stage.server.end(-signal.SIGKILL)
    await stage.until(lambda: stage.server.starts == 2)
    assert (stage.kept.dsn, stage.kept.pid) == ("host=here", stage.server.pid)
    assert stage.reports == ["PostgreSQL was killed by SIGKILL: it is started again in 0.01 s"]
    await stage.kept.stop()
    assert stage.kept.pid is None


@pytest.mark.asyncio
async def test_a_server_that_cannot_start_is_tried_again() -> None:
    """Each failure is said; the ledger goes on meanwhile."""
    stage = Stage()
    await stage.kept.start()
    stage.server.failures = 2
    stage.server.end(1)
    await stage.until(lambda: stage.server.starts == 2)
    assert stage.reports.count("PostgreSQL does not come back: no room") == 2
    await stage.kept.stop()


@pytest.mark.asyncio
async def test_without_restart_it_is_left_dead() -> None:
    """As a node is."""
    stage = Stage(restart=False)
    await stage.kept.start()
    stage.server.end(1)
    await stage.until(lambda: bool(stage.reports))
    assert stage.reports == ["PostgreSQL ended with exit code 1: left dead as asked"]
    await stage.kept.stop()
    assert stage.server.starts == 1


@pytest.mark.asyncio
async def test_a_stop_during_the_backoff_ends_it() -> None:
    """Nothing is started after a stop."""
    stage = Stage(backoff=Backoff(first_s=1_000.0, limit_s=1_000.0))
    await stage.kept.start()
    stage.server.end(1)
    await stage.until(lambda: bool(stage.reports))
    async with asyncio.timeout(DEADLINE_S):
        await stage.kept.stop()
    assert stage.server.starts == 1


@pytest.mark.asyncio
async def test_a_stop_during_a_start_waits_for_it_and_ends_it() -> None:
    """A server that comes up while the cluster goes down does not outlive it."""
    stage = Stage()
    await stage.kept.start()
    stage.server.gate = asyncio.Event()
    stage.server.end(1)
    await stage.until(lambda: stage.server.starts == 2)
    stopping = asyncio.create_task(stage.kept.stop())
    await asyncio.sleep(0)
    stage.server.gate.set()
    async with asyncio.timeout(DEADLINE_S):
        await stopping
    assert (stage.server.starts, stage.kept.pid) == (2, None)


@pytest.mark.asyncio
async def test_the_first_start_fails_loudly() -> None:
    """A database that never came up is the caller's to know."""
    stage = Stage()
    stage.server.failures = 1
    with pytest.raises(PostgresError, match="no room"):
        await stage.kept.start()
    await stage.kept.stop()


@pytest.mark.asyncio
async def test_a_forced_end_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """An immediate shutdown is asked for, and nothing is started again."""
    sent: list[tuple[int, int]] = []
    stage = Stage()
    await stage.kept.start()
    pid = stage.kept.pid

    def kill(target: int, number: int) -> None:
        sent.append((target, number))
        stage.server.end(-number)

    monkeypatch.setattr("cluster.database.os.kill", kill)
    stage.kept.kill_now()
    stage.kept.kill_now()
    await stage.kept.stop()
    assert sent == [(pid, signal.SIGQUIT)]
    assert (stage.server.starts, stage.reports) == (1, [])
