"""One supervised program: started, watched, started again with back-off, stopped within a deadline.

The program leads a session of its own, so that a Ctrl-C in the terminal reaches the supervisor
alone, and the kernel kills it when the supervisor dies, however that dies (`cluster.child`). Its
output goes straight to a file: a dead supervisor breaks no pipe. Relies on asyncio.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections import deque
from dataclasses import dataclass
from enum import StrEnum, unique
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

_CHILD: Final = Path(__file__).with_name("child.py")
_KEPT_LOGS: Final = 5
_MAX_LOG_BYTES: Final = 16 << 20


@unique
class ProcessState(StrEnum):
    """Where a supervised program stands."""

    STOPPED = "stopped"
    """Not started yet, or stopped by us."""
    RUNNING = "running"
    WAITING = "waiting"
    """Died, and will be started again after the back-off."""
    DEAD = "dead"
    """Died, and stays so: `--no-restart`, or it said that trying again is useless."""


class Backoff:
    """How long to wait before the next start: doubling, and short again after a time of health."""

    def __init__(
        self, *, first_s: float = 0.2, limit_s: float = 10.0, healthy_s: float = 60.0
    ) -> None:
        """Wait `first_s` at first and never above `limit_s`; a run of `healthy_s` resets it."""
        assert 0 < first_s <= limit_s
        self._first_s = first_s
        self._limit_s = limit_s
        self._healthy_s = healthy_s
        self._next_s = first_s

    def delay_after(self, *, uptime_s: float) -> float:
        """Seconds to wait after a run that lasted `uptime_s`."""
        if uptime_s >= self._healthy_s:
            self._next_s = self._first_s
        delay_s = self._next_s
        self._next_s = min(self._next_s * 2, self._limit_s)
        return delay_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What to run, where its output goes, and when running it again is of no use."""

    name: str
    command: Sequence[str]
    log: Path
    restart: bool = True
    permanent_codes: Collection[int] = ()
    """Exit codes by which the program says that the next start would end the same way."""


class SupervisedProcess:
    """Keeps one `Program` running between `start` and `stop`."""

    def __init__(
        self,
        program: Program,
        *,
        report: Callable[[str], None],
        backoff: Backoff | None = None,
    ) -> None:
        """Report each death as one line to `report`."""
        self.program = program
        self.state = ProcessState.STOPPED
        self.exit_code: int | None = None
        """Of the last run; negative is a signal's number."""
        self.starts = 0
        self._report = report
        self._backoff = backoff or Backoff()
        self._process: asyncio.subprocess.Process | None = None
        self._stop_asked = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._process.pid if self._process is not None else None

    async def start(self) -> None:
        """Start the program and keep it running. `program.command` begins with a path.

        Raises:
            OSError: the log cannot be written, or the system allows no further process.
        """
        assert self._watch is None or self._watch.done(), "it is being kept running already"
        self._stop_asked = asyncio.Event()
        started = asyncio.get_running_loop().time()
        process = await self._spawn()
        self._watch = asyncio.create_task(
            self._keep_running(process, started), name=f"watch {self.program.name}"
        )

    async def kill(self) -> None:
        """Kill it at once, as a crash would, and return when it is gone. It may come back."""
        process = self._process
        if process is not None:
            _send(process, signal.SIGKILL)
            await process.wait()
            if not self.program.restart:
                await self.wait_dead()

    async def stop(self, *, deadline_s: float) -> None:
        """Ask it to end, kill it after `deadline_s`, and return when it is gone for good."""
        self._stop_asked.set()
        if self._watch is None:
            return
        if self._process is not None:
            _send(self._process, signal.SIGTERM)
        _, late = await asyncio.wait({self._watch}, timeout=deadline_s)
        if late:
            self._report(f"{self.program.name} did not stop within {deadline_s:g} s and is killed")
            await self.kill()
        await self._watch
        self._watch = None
        self.state = ProcessState.STOPPED

    def kill_now(self) -> None:
        """Kill it without waiting, and do not start it again: the last resort of an exit."""
        self._stop_asked.set()
        if self._process is not None:
            _send(self._process, signal.SIGKILL)

    async def wait_dead(self) -> None:
        """Return when it is down and nothing will start it again."""
        assert self._watch is not None, "it was started"
        await asyncio.wait({self._watch})

    async def _keep_running(self, first: asyncio.subprocess.Process, started: float) -> None:
        clock = asyncio.get_running_loop().time
        process: asyncio.subprocess.Process | None = first
        trouble = ""
        while True:
            if process is not None:
                self.exit_code = await process.wait()
                self._process = None
                if not self._comes_back():
                    return
                trouble = describe_exit(self.exit_code)
            await self._wait_before_start(trouble, uptime_s=clock() - started)
            if self._stop_asked.is_set():
                return
            started = clock()
            try:
                process = await self._spawn()
            except OSError as error:  # no process or no disk left: both may come back
                process, trouble = None, f"could not be started: {error.strerror}"

    async def _wait_before_start(self, trouble: str, *, uptime_s: float) -> None:
        delay_s = self._backoff.delay_after(uptime_s=uptime_s)
        self.state = ProcessState.WAITING
        self._report(
            f"{self.program.name} {trouble}: it is started again in {delay_s:g} s "
            f"(log: {self.program.log})"
        )
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop_asked.wait(), delay_s)

    def _comes_back(self) -> bool:
        """Decide after a death; a death that stays is said in one line."""
        if self._stop_asked.is_set():
            return False
        assert self.exit_code is not None
        is_permanent = self.exit_code in self.program.permanent_codes
        if self.program.restart and not is_permanent:
            return True
        self.state = ProcessState.DEAD
        reason = "another start would end the same way" if is_permanent else "left dead as asked"
        self._report(
            f"{self.program.name} {describe_exit(self.exit_code)}: {reason} "
            f"(log: {self.program.log})"
        )
        return False

    async def _spawn(self) -> asyncio.subprocess.Process:
        rotate_log(self.program.log, only_above_bytes=_MAX_LOG_BYTES)
        with self.program.log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", str(_CHILD), str(os.getpid())),
                *self.program.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._process = process
        self.starts += 1
        self.state = ProcessState.RUNNING
        if self._stop_asked.is_set():  # asked while it was being started
            _send(process, signal.SIGTERM)
        return process


def describe_exit(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def rotate_log(log: Path, *, only_above_bytes: int = 0) -> None:
    """Move a log that is larger than that to `log.1`, and so on; the oldest is dropped."""
    if not log.exists() or log.stat().st_size <= only_above_bytes:
        return
    for number in range(_KEPT_LOGS, 0, -1):
        older = log.with_name(f"{log.name}.{number}")
        newer = log.with_name(f"{log.name}.{number - 1}") if number > 1 else log
        if newer.exists():
            newer.replace(older)


def last_lines(log: Path, count: int) -> tuple[str, ...]:
    """The last lines of a log, without line ends; none if there is no log."""
    try:
        with log.open(encoding="utf-8", errors="replace") as stream:
            return tuple(line.rstrip() for line in deque(stream, maxlen=count))
    except FileNotFoundError:
        return ()


def _send(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # it ended by itself just now
        process.send_signal(number)
