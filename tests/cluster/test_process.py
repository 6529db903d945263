"""One supervised process: restarts with back-off, permanent ends, stops, logs."""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from cluster.process import (
    Backoff,
    ProcessState,
    Program,
    SupervisedProcess,
    describe_exit,
    last_lines,
    rotate_log,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

_WAIT = "print('up', flush=True); signal.pause()"
SLEEP = f"import signal; {_WAIT}"
STUBBORN = f"import signal; signal.signal(15, signal.SIG_IGN); {_WAIT}"
GRACEFUL = f"import os, signal; signal.signal(15, lambda *_: os._exit(7)); {_WAIT}"
DEADLINE_S = 10.0


def quick_backoff() -> Backoff:
    """A back-off that tests need not wait for."""
    return Backoff(first_s=0.01, limit_s=0.02)


class Fixture:
    """A supervised one-line Python program and what was reported of it."""

    def __init__(self, folder: Path, source: str, **program: object) -> None:
        self.reports: list[str] = []
        self.log = folder / "log"
        command = (sys.executable, "-I", "-S", "-c", source)
        self.process = SupervisedProcess(
            Program(name="node1", command=command, log=self.log, **program),  # type: ignore[arg-type]  # a table of cases
            report=self.reports.append,
            backoff=quick_backoff(),
        )

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition that the event loop makes true."""
        async with asyncio.timeout(DEADLINE_S):
            while not condition():  # noqa: ASYNC110 - the output of another process
                await asyncio.sleep(0.005)

    async def until_up(self, times: int = 1) -> None:
        """Wait until the program has said so often that it is up."""
        await self.until(lambda: last_lines(self.log, 9).count("up") >= times)


@asynccontextmanager
async def supervised(folder: Path, source: str, **program: object) -> AsyncIterator[Fixture]:
    """A started process that is stopped in the end."""
    fixture = Fixture(folder, source, **program)
    await fixture.process.start()
    try:
        yield fixture
    finally:
        await fixture.process.stop(deadline_s=DEADLINE_S)


def test_backoff_doubles_up_to_its_limit() -> None:
    """Each death waits twice as long as the last, never above the limit."""
    backoff = Backoff(first_s=0.2, limit_s=1.0, healthy_s=60.0)
    delays = [backoff.delay_after(uptime_s=1.0) for _ in range(5)]
    assert delays == [0.2, 0.4, 0.8, 1.0, 1.0]


def test_a_minute_of_health_resets_the_backoff() -> None:
    """A run of `healthy_s` or more starts from the first delay again."""
    backoff = Backoff(first_s=0.2, limit_s=10.0, healthy_s=60.0)
    uptimes = [1.0, 1.0, 59.9, 60.0, 1.0]
    assert [backoff.delay_after(uptime_s=s) for s in uptimes] == [0.2, 0.4, 0.8, 0.2, 0.4]


@pytest.mark.asyncio
async def test_a_killed_process_comes_back(tmp_path: Path) -> None:
    """SIGKILL is followed by a new process and one line that says why and where its log is."""
    async with supervised(tmp_path, SLEEP) as fixture:
        await fixture.until_up()
        first = fixture.process.pid
        await fixture.process.kill()
        await fixture.until_up(times=2)
        assert fixture.process.state is ProcessState.RUNNING
        assert fixture.process.starts == 2
        assert fixture.process.pid != first
        log = tmp_path / "log"
        assert fixture.reports == [
            f"node1 was killed by SIGKILL: it is started again in 0.01 s (log: {log})"
        ]


@pytest.mark.asyncio
async def test_a_process_that_keeps_dying_waits_longer(tmp_path: Path) -> None:
    """The delays in the reports are those of the back-off."""
    async with supervised(tmp_path, "raise SystemExit(1)") as fixture:
        await fixture.until(lambda: len(fixture.reports) >= 3)
        delays = [line.split(" in ")[1].split(" s ")[0] for line in fixture.reports[:3]]
        assert delays == ["0.01", "0.02", "0.02"]


@pytest.mark.asyncio
async def test_no_restart_leaves_it_dead(tmp_path: Path) -> None:
    """Without restart one line is said and nothing is started."""
    async with supervised(tmp_path, SLEEP, restart=False) as fixture:
        await fixture.until_up()
        await fixture.process.kill()
        assert fixture.process.state is ProcessState.DEAD
        assert fixture.process.exit_code == -signal.SIGKILL
        assert fixture.reports == [
            f"node1 was killed by SIGKILL: left dead as asked (log: {tmp_path / 'log'})"
        ]


@pytest.mark.asyncio
async def test_what_is_dead_can_be_started_again(tmp_path: Path) -> None:
    """A process that stayed dead starts anew when asked to."""
    async with supervised(tmp_path, SLEEP, restart=False) as fixture:
        await fixture.until_up()
        await fixture.process.kill()
        await fixture.process.start()
        await fixture.until_up(times=2)
        assert fixture.process.state is ProcessState.RUNNING


@pytest.mark.asyncio
async def test_a_permanent_exit_code_is_not_tried_again(tmp_path: Path) -> None:
    """A program that says another start is useless is believed."""
    source = "raise SystemExit(3)"
    async with supervised(tmp_path, source, permanent_codes={3}) as fixture:
        await fixture.process.wait_dead()
        assert (fixture.process.state, fixture.process.starts) == (ProcessState.DEAD, 1)
        expected = "node1 ended with exit code 3: another start would end the same way"
        assert fixture.reports == [f"{expected} (log: {tmp_path / 'log'})"]


@pytest.mark.asyncio
async def test_a_stop_is_graceful_and_final(tmp_path: Path) -> None:
    """SIGTERM comes first; what ends by it is not reported and does not come back."""
    async with supervised(tmp_path, GRACEFUL) as fixture:
        await fixture.until_up()
        await fixture.process.stop(deadline_s=DEADLINE_S)
        assert (fixture.process.exit_code, fixture.process.starts) == (7, 1)
        assert (fixture.process.state, fixture.process.pid) == (ProcessState.STOPPED, None)
        assert fixture.reports == []


@pytest.mark.asyncio
async def test_what_ignores_the_stop_is_killed_at_the_deadline(tmp_path: Path) -> None:
    """A process that does not end in time gets SIGKILL, and one line says so."""
    async with supervised(tmp_path, STUBBORN) as fixture:
        await fixture.until_up()
        await fixture.process.stop(deadline_s=0.01)
        assert fixture.process.exit_code == -signal.SIGKILL
        assert fixture.reports == ["node1 did not stop within 0.01 s and is killed"]


@pytest.mark.asyncio
async def test_a_second_thought_ends_a_stop_at_once(tmp_path: Path) -> None:
    """`kill_now` while a stop waits makes the stop return, long before its deadline."""
    async with supervised(tmp_path, STUBBORN) as fixture:
        await fixture.until_up()
        stopping = asyncio.create_task(fixture.process.stop(deadline_s=1_000.0))
        await asyncio.sleep(0)
        fixture.process.kill_now()
        async with asyncio.timeout(DEADLINE_S):
            await stopping
        assert fixture.process.exit_code == -signal.SIGKILL


@pytest.mark.asyncio
async def test_a_stop_during_the_backoff_ends_it(tmp_path: Path) -> None:
    """A stop does not wait for a start that will not come."""
    fixture = Fixture(tmp_path, "raise SystemExit(1)")
    fixture.process._backoff = Backoff(first_s=1_000.0, limit_s=1_000.0)
    await fixture.process.start()
    await fixture.until(lambda: fixture.process.state is ProcessState.WAITING)
    async with asyncio.timeout(DEADLINE_S):
        await fixture.process.stop(deadline_s=DEADLINE_S)
    assert (fixture.process.starts, fixture.process.state) == (1, ProcessState.STOPPED)


@pytest.mark.asyncio
async def test_a_start_that_fails_is_tried_again(tmp_path: Path) -> None:
    """Where the log cannot be opened for a while, the process comes back when it can."""
    async with supervised(tmp_path, SLEEP) as fixture:
        await fixture.until_up()
        fixture.log.unlink()
        fixture.log.mkdir()
        await fixture.process.kill()
        await fixture.until(lambda: any("could not be started" in r for r in fixture.reports))
        fixture.log.rmdir()
        await fixture.until(lambda: fixture.process.state is ProcessState.RUNNING)
        assert "node1 could not be started: Is a directory" in fixture.reports[1]


@pytest.mark.asyncio
async def test_a_process_leads_a_session_of_its_own(tmp_path: Path) -> None:
    """The terminal's Ctrl-C does not reach it, and standard input is empty."""
    source = "import os, sys; print(os.getsid(0) == os.getpid(), sys.stdin.read() == '')"
    async with supervised(tmp_path, source, restart=False) as fixture:
        await fixture.process.wait_dead()
        assert last_lines(fixture.log, 2) == ("True True",)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (0, "ended with exit code 0"),
        (11, "ended with exit code 11"),
        (-9, "was killed by SIGKILL"),
        (-77, "was killed by signal 77"),
    ],
)
def test_an_exit_is_put_into_words(code: int, expected: str) -> None:
    """A signal is named, an exit code is a number."""
    assert describe_exit(code) == expected


def test_logs_rotate_and_the_oldest_is_dropped(tmp_path: Path) -> None:
    """Each rotation moves every log one place on; five old ones are kept."""
    log = tmp_path / "log"
    for run in range(1, 8):
        log.write_text(f"run {run}\n")
        rotate_log(log)
    assert not log.exists()
    kept = [(tmp_path / f"log.{n}").read_text() for n in range(1, 6)]
    assert kept == [f"run {run}\n" for run in (7, 6, 5, 4, 3)]
    assert not (tmp_path / "log.6").exists()


def test_an_empty_or_small_log_stays(tmp_path: Path) -> None:
    """Nothing is moved that is not above the limit."""
    log = tmp_path / "log"
    rotate_log(log)
    log.touch()
    rotate_log(log)
    log.write_text("12345")
    rotate_log(log, only_above_bytes=5)
    assert [file.name for file in tmp_path.iterdir()] == ["log"]


def test_the_last_lines_of_a_log(tmp_path: Path) -> None:
    """They come without line ends; bytes that are no text do no harm; no log is no lines."""
    log = tmp_path / "log"
    assert last_lines(log, 3) == ()
    log.write_bytes(b"one\ntwo\n\xff\nfour")
    assert last_lines(log, 3) == ("two", "\ufffd", "four")
