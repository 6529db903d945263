"""Servers under measurement: spoken to, told apart by how they end, and never left behind."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING

import pytest

from cluster.bench.errors import BenchError
from cluster.bench.processes import cpu_s
from tools.bench import servers
from tools.bench.servers import Server, cpu_ms, first_acknowledged, free_ports, wait_until

if TYPE_CHECKING:
    from pathlib import Path

ECHO = "import sys\nfor line in sys.stdin: print(line.upper(), end='', flush=True)"
BUSY_PARENT = """
import subprocess, sys
subprocess.run([sys.executable, '-c', 'for _ in range(5_000_000): pass'])
print('done', flush=True)
sys.stdin.read()
"""


async def python(script: str, folder: Path) -> Server:
    """A server that is a script."""
    command = [sys.executable, "-c", script]
    return await Server.start("script", command, folder=folder, is_spoken_to=True)


@pytest.mark.asyncio
async def test_a_server_answers_and_is_killed(tmp_path: Path) -> None:
    """It leads a session of its own and is gone when `kill` returns."""
    server = await python(ECHO, tmp_path)
    assert "HELLO" == await server.ask("hello")
    await server.kill()

    assert not os.path.exists(f"/proc/{server.pid}")  # noqa: ASYNC240, PTH110 - procfs waits for no disk
    await server.kill()


@pytest.mark.asyncio
async def test_a_server_that_ends_is_told_by_its_log(tmp_path: Path) -> None:
    """Who asks it hears why."""
    server = await python("import sys; sys.exit('the disk is full')", tmp_path)

    with pytest.raises(BenchError, match="script ended with exit code 1: the disk is full"):
        await server.ask("hello")


@pytest.mark.asyncio
async def test_waiting_ends_with_a_dead_server_or_in_time(tmp_path: Path) -> None:
    """Nobody waits for what cannot come."""

    async def never() -> bool:
        return False

    server = await python("import sys; sys.exit('no port')", tmp_path)
    with pytest.raises(BenchError, match="no port"):
        await wait_until(never, [server], what="it serves")
    with pytest.raises(BenchError, match="it serves: not after 0 s"):
        await wait_until(never, [], what="it serves", timeout_s=0)


@pytest.mark.asyncio
async def test_cpu_counts_children_that_have_ended(tmp_path: Path) -> None:
    """What a process for each connection used is not lost with the connection."""
    server = await python(BUSY_PARENT, tmp_path)
    try:
        assert server._process.stdout is not None
        assert b"done\n" == await server._process.stdout.readline()
        assert 1_000 * cpu_s([server.pid]) + 50 <= cpu_ms([server])
    finally:
        await server.kill()


@pytest.mark.asyncio
async def test_the_first_acknowledged_attempt_counts() -> None:
    """Attempts that hang or fail cost no more than the next one takes to begin."""
    begun: list[int] = []

    async def attempt() -> bool:
        begun.append(len(begun))
        match begun[-1]:
            case 0:
                await asyncio.Event().wait()
            case 1:
                return False
        return True

    took_ms = await first_acknowledged(attempt)

    assert [0, 1, 2] == begun
    assert 20 <= took_ms < 5_000


@pytest.mark.asyncio
async def test_no_acknowledgement_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failover that never ends is not waited for for ever."""
    monkeypatch.setattr(servers, "FAILOVER_DEADLINE_S", 0.05)

    async def attempt() -> bool:
        return False

    with pytest.raises(BenchError, match=r"no write was acknowledged within 0\.05 s"):
        await first_acknowledged(attempt)


def test_free_ports_differ() -> None:
    """No two servers are given the same."""
    assert 20 == len(set(free_ports(20)))
