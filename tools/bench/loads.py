"""Loads by programs in C, and what they print: wrk for HTTP, h2load for gRPC, pgbench for SQL.

A client in Python would need more of the machine than the servers under measurement. Each run
gives one `Load`; an answer that is an error ends the run. Relies on the programs being installed.
"""

from __future__ import annotations

import asyncio
import math
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cluster.bench.errors import BenchError
from cluster.bench.figures import Measure
from cluster.bench.timings import percentile
from cluster.bench.wrk import parse_output
from tools.bench.peer import Reading
from tools.bench.servers import Server, cpu_ms

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping, Sequence
    from pathlib import Path

_LOG_FIELDS: Final = 3
_CONNECTED_IN_A_SECOND: Final = 100


@dataclass(frozen=True, slots=True)
class Load:
    """What one run measured."""

    count: int
    """Acknowledged requests."""
    per_s: float
    p50_ms: float
    p99_ms: float


def latencies(load: Load, *, note: str = "") -> list[Reading]:
    """The readings of clients that wait for each answer one after another."""
    return [
        Reading(Measure.P50_MS, load.p50_ms, note),
        Reading(Measure.P99_MS, load.p99_ms, note),
    ]


def throughput(load: Load, *, batch: int = 1, note: str = "") -> list[Reading]:
    """The readings of many clients, each request of `batch` transactions."""
    return [
        Reading(Measure.PER_S, load.per_s * batch, note),
        Reading(Measure.P50_MS, load.p50_ms, note),
        Reading(Measure.P99_MS, load.p99_ms, note),
    ]


async def with_cpu(
    servers: Sequence[Server], running: Awaitable[Load], *, note: str = ""
) -> list[Reading]:
    """The readings of many clients, and the CPU of all servers meanwhile."""
    before_ms = cpu_ms(servers)
    load = await running
    used_ms = (cpu_ms(servers) - before_ms) / load.count * 1_000
    return [*throughput(load, note=note), Reading(Measure.CPU_MS_PER_1000, used_ms, note)]


def summary(times_ms: Sequence[float], seconds: float) -> Load:
    """The load of which these are all requests' times."""
    if not times_ms:
        raise BenchError("no request was answered")
    ordered = sorted(times_ms)
    count = len(ordered)
    return Load(count, count / seconds, percentile(ordered, 0.5), percentile(ordered, 0.99))


async def wrk(
    url: str, script: Path, *, clients: int, seconds: int, environment: Mapping[str, str]
) -> Load:
    """Load one address with the requests of a script, which may read `environment`."""
    command = ("wrk", "-t1", f"-c{clients}", f"-d{seconds}", "--timeout", "30s", "--latency")
    output = await output_of(*command, "-s", str(script), url, environment=environment)
    found = parse_output(output)
    return Load(found.requests, found.per_s, found.p50_ms, found.p99_ms)


async def h2load(url: str, frame: Path, *, clients: int, seconds: int, log: Path) -> Load:
    """POST a gRPC frame again and again; what the answers' trailers say is not looked at."""
    output = await output_of(
        *("h2load", "-D", str(seconds), "-c", str(clients), "-m", "1", "-d", str(frame)),
        *("-H", "content-type: application/grpc", "-H", "te: trailers"),
        *("--log-file", str(log), url),
    )
    return parse_h2load(output, _text_of(log), seconds=seconds)


def parse_h2load(output: str, log: str, *, seconds: int) -> Load:
    """Read what h2load printed and logged. Raises BenchError where a request failed."""
    failed, errored = _found(r"requests: .* (\d+) failed, (\d+) errored", output)
    if (failed, errored) != ("0", "0"):
        raise BenchError(f"h2load: {failed} requests failed, {errored} of them without an answer")
    rows = [line.split("\t") for line in log.splitlines()]
    return summary([int(row[2]) / 1_000 for row in rows if row[1] == "200"], seconds)


async def pgbench(
    program: Path, script: Path, *, clients: int, seconds: int, folder: Path, dsn: str
) -> Load:
    """Run a script of SQL in a loop, each client on a connection of its own.

    The time it takes them to connect, one after another, counts for nothing but `-T`: some more is
    asked for, and the rate is without it.
    """
    length_s = seconds + math.ceil(clients / _CONNECTED_IN_A_SECOND)
    prefix = folder / f"pgbench-{os.urandom(4).hex()}"
    output = await output_of(
        *(str(program), "-n", "-M", "prepared", "-c", str(clients), "-T", str(length_s)),
        *("-f", str(script), "-l", f"--log-prefix={prefix}", dsn),
    )
    return parse_pgbench(output, "".join(map(_text_of, _logs_of(prefix))))


def parse_pgbench(output: str, log: str) -> Load:
    """Read what pgbench printed and logged. Raises BenchError where a transaction failed."""
    if int(_found(r"number of failed transactions: (\d+)", output)[0]):
        raise BenchError(f"pgbench: {' | '.join(output.splitlines()[-5:])}")
    rows = [line.split() for line in log.splitlines()]
    times_ms = [int(row[2]) / 1_000 for row in rows if len(row) >= _LOG_FIELDS]
    per_s = float(_found(r"tps = ([\d.]+)", output)[0])
    return summary(times_ms, len(times_ms) / per_s)


def parse_answer(answer: str) -> Load:
    """Read a node program's own answer: `COUNT ELAPSED_US P50_US P99_US`. Raises BenchError."""
    try:
        count, elapsed_us, p50_us, p99_us = map(int, answer.split())
    except ValueError:
        raise BenchError(f"a node answered: {answer[:200]}") from None
    if not count:
        raise BenchError("no request was answered")
    return Load(count, count / elapsed_us * 1_000_000, p50_us / 1_000, p99_us / 1_000)


async def output_of(*command: str, environment: Mapping[str, str] | None = None) -> str:
    """What a program prints. Raises BenchError, with its last line, where it fails."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **(environment or {})},
    )
    try:
        output, errors = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    if process.returncode != 0:
        words = " | ".join((errors or output).decode(errors="replace").splitlines()[-2:])
        raise BenchError(f"{command[0].rpartition('/')[2]}: {words}")
    return output.decode()


def _logs_of(prefix: Path) -> list[Path]:
    """What pgbench logged: a file for each of its threads."""
    return list(prefix.parent.glob(f"{prefix.name}.*"))


def _text_of(path: Path) -> str:
    return path.read_text(encoding="ascii")


def _found(pattern: str, text: str) -> tuple[str, ...]:
    match = re.search(pattern, text)
    if match is None:
        raise BenchError(f"no {pattern!r} in: {' | '.join(text.splitlines()[-5:])}")
    return match.groups()
