"""Server processes under measurement: started tied to this process's life, watched, killed.

The kernel kills a server when this process ends, however that ends (`cluster.child`), and each
leads a session of its own, so that Ctrl-C reaches the benchmark alone. Relies on Linux: /proc.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from cluster import child
from cluster.bench.errors import BenchError
from cluster.bench.processes import own_memory_mib, with_children
from cluster.process import describe_exit, last_lines
from tools.bench.peer import ROOT

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

HOST: Final = "127.0.0.1"
POLL_S: Final = 0.02
ATTEMPT_EVERY_S: Final = 0.02
FAILOVER_DEADLINE_S: Final = 30.0
ASK_TIMEOUT_S: Final = 120.0
_TICK_MS: Final = 1_000 / os.sysconf("SC_CLK_TCK")
_STAT_TIMES: Final = slice(11, 15)
"""After the name in /proc/PID/stat: own user and system time, and those of ended children."""


class Server:
    """One process, from its start to its death; its output goes to a log, or is spoken to."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        """Use `start`."""
        self.name = name
        self._process = process
        self._log = log

    @classmethod
    async def start(
        cls,
        name: str,
        command: Sequence[str],
        *,
        folder: Path,
        environment: Mapping[str, str] | None = None,
        is_spoken_to: bool = False,
        launcher: Sequence[str] = (child.__file__, str(os.getpid())),
        cwd: Path = ROOT,
    ) -> Self:
        """Start `command`, whose first word is a path; `launcher` is what becomes it.

        One that is spoken to takes lines on stdin and answers on stdout (`ask`).
        """
        log = folder / f"{name}.log"
        pipe = asyncio.subprocess.PIPE
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", *launcher, *command),
                stdin=pipe if is_spoken_to else asyncio.subprocess.DEVNULL,
                stdout=pipe if is_spoken_to else output,
                stderr=output,
                cwd=cwd,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        return cls(name, process, log)

    @property
    def pid(self) -> int:
        """Its process id, also after its end."""
        return self._process.pid

    def check(self) -> None:
        """Raise BenchError, with the last words of its log, where it has ended."""
        if self._process.returncode is not None:
            words = " | ".join(last_lines(self._log, 3))
            raise BenchError(f"{self.name} {describe_exit(self._process.returncode)}: {words}")

    async def ask(self, line: str) -> str:
        """Say a line, wait for the answer. Raises BenchError where it ends or stays silent."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
            await self._process.stdin.drain()
            answer = await asyncio.wait_for(self._process.stdout.readline(), ASK_TIMEOUT_S)
        except TimeoutError:
            raise BenchError(f"{self.name} did not answer {line!r}") from None
        except ConnectionError:
            answer = b""
        if not answer:
            await self._process.wait()
            self.check()
        return answer.decode().rstrip()

    async def wait(self) -> int:
        """Wait for its end; its exit code, negative for a signal."""
        return await self._process.wait()

    async def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Kill it as a crash would and return when it is gone. Harmless when it is."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)
        await self._process.wait()


async def wait_until(
    is_so: Callable[[], Awaitable[bool]],
    servers: Iterable[Server],
    *,
    what: str,
    timeout_s: float = 30.0,
) -> None:
    """Poll until it is so. Raises BenchError after `timeout_s`, or where one of `servers` ended."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    while not await is_so():
        for server in servers:
            server.check()
        if asyncio.get_running_loop().time() > deadline:
            raise BenchError(f"{what}: not after {timeout_s:g} s")
        await asyncio.sleep(POLL_S)


async def first_acknowledged(attempt: Callable[[], Awaitable[bool]]) -> float:
    """Milliseconds until an attempt at a write is acknowledged, a new one begun every 20 ms.

    Whatever a server does with a request that got lost, it so costs 20 ms at most. Raises
    BenchError where none is acknowledged in time.
    """
    loop = asyncio.get_running_loop()
    started = loop.time()
    attempts: set[asyncio.Future[bool]] = set()
    try:
        while loop.time() < started + FAILOVER_DEADLINE_S:
            attempts.add(asyncio.ensure_future(attempt()))
            done, attempts = await asyncio.wait(
                attempts, timeout=ATTEMPT_EVERY_S, return_when=asyncio.FIRST_COMPLETED
            )
            if any(each.result() for each in done):
                return 1_000 * (loop.time() - started)
            if done:
                await asyncio.sleep(ATTEMPT_EVERY_S)
    finally:
        for each in attempts:
            each.cancel()
        await asyncio.gather(*attempts, return_exceptions=True)
    raise BenchError(f"no write was acknowledged within {FAILOVER_DEADLINE_S:g} s")


def free_ports(count: int) -> list[int]:
    """As many different TCP ports of the loopback address that nobody listens on just now."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((HOST, 0))
        return [probe.getsockname()[1] for probe in probes]


def cpu_ms(servers: Iterable[Server]) -> float:
    """CPU that the servers have used so far, with their children, also those that have ended.

    PostgreSQL has a process for each connection, which ends with it; so the sum of the living,
    which serves elsewhere, would lose most of it.
    """
    return sum(_ticks_ms(pid) for pid in with_children(server.pid for server in servers))


def memory_mib(server: Server) -> float:
    """Anonymous memory of a server and its children: no mapped files, no page cache."""
    return own_memory_mib(with_children([server.pid]))


def _ticks_ms(pid: int) -> float:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return _TICK_MS * sum(map(int, stat.rpartition(")")[2].split()[_STAT_TIMES]))
    return 0.0
