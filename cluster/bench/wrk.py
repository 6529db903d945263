"""Runs wrk, an HTTP load generator in C, and reads what it prints.

Each of its clients waits for an answer before it sends again. Relies on the program `wrk`.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cluster.bench.errors import BenchError

if TYPE_CHECKING:
    from pathlib import Path

MISSING: Final = "wrk is not installed: `apt-get install wrk` (Debian's package wrk)"
_MILLIS: Final = {"us": 0.001, "ms": 1.0, "s": 1_000.0, "m": 60_000.0}
_PATIENCE: Final = "--timeout=30s"
"""Longer than any stall: slow answers are to be measured, not to be errors."""
_SCRIPT: Final = """\
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = io.open(os.getenv("BENCH_BODY")):read("*a")
"""


@dataclass(frozen=True, slots=True)
class WrkLoad:
    """What one run of wrk measured."""

    requests: int
    per_s: float
    p50_ms: float
    p99_ms: float


class Wrk:
    """wrk, with its script and the bodies to send in a folder."""

    def __init__(self, program: str, folder: Path) -> None:
        """Use `find_wrk` instead."""
        self._program = program
        self._folder = folder

    async def post(self, url: str, body: bytes, *, clients: int, seconds: float) -> WrkLoad:
        """Post a body again and again; raises BenchError for any answer but success."""
        script, file = self._folder / "post.lua", self._folder / "body.json"
        script.write_text(_SCRIPT, encoding="ascii")
        file.write_bytes(body)
        return await self._run(
            url, clients, seconds, ("-s", str(script)), {"BENCH_BODY": str(file)}
        )

    async def get(self, url: str, *, clients: int, seconds: float) -> WrkLoad:
        """Get a URL again and again; raises BenchError for any answer but success."""
        return await self._run(url, clients, seconds, (), {})

    async def _run(
        self,
        url: str,
        clients: int,
        seconds: float,
        more: tuple[str, ...],
        environment: dict[str, str],
    ) -> WrkLoad:
        duration = f"-d{max(1, round(seconds))}"
        process = await asyncio.create_subprocess_exec(
            *(self._program, "-t1", f"-c{clients}", duration, "--latency", _PATIENCE, *more, url),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=environment,
        )
        output = (await process.communicate())[0].decode()
        if process.returncode != 0:
            raise BenchError(f"wrk ended with {process.returncode}: {' '.join(output.split())}")
        return parse_output(output)


def find_wrk(folder: Path) -> Wrk | None:
    """wrk, if it is installed; its files go into `folder`."""
    program = shutil.which("wrk")
    return None if program is None else Wrk(program, folder)


def parse_output(output: str) -> WrkLoad:
    """Read what `wrk --latency` prints; raises BenchError where a request failed."""
    for trouble in ("Non-2xx or 3xx responses", "Socket errors"):
        found = re.search(rf"{trouble}: (.*)", output)
        if found is not None:
            raise BenchError(f"wrk: {trouble.lower()}: {found[1]}")
    return WrkLoad(
        requests=int(_found(r"(\d+) requests in ", output)[0]),
        per_s=float(_found(r"Requests/sec:\s+([\d.]+)", output)[0]),
        p50_ms=_latency_ms("50", output),
        p99_ms=_latency_ms("99", output),
    )


def _latency_ms(percent: str, output: str) -> float:
    number, unit = _found(rf"\s{percent}%\s+([\d.]+)(us|ms|s|m)\b", output)
    return float(number) * _MILLIS[unit]


def _found(pattern: str, output: str) -> tuple[str, ...]:
    found = re.search(pattern, output)
    if found is None:
        raise BenchError(f"wrk printed no {pattern!r}: {' '.join(output.split())}")
    return found.groups()
