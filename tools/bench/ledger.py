"""Figures of a local three-node cluster: `python -m tools.bench [--seconds S] [--rounds N]`.

Starts a fresh cluster on free ports, loads it over HTTP with wrk (Debian's package `wrk`), and
prints the median of the rounds: sequential submits through the leader and through a follower, 64
concurrent single submits, batches of 1,000, the time from `kill -9` of the leader to the next
acknowledged write, and a node's memory after 100,000 transactions. Every acknowledgement means: on
the disks of a majority, fsynced. Absolute times are this machine's; compare figures of one run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

import httpx

from cluster.folder import Shape
from cluster.local import ClusterOptions, LocalCluster

SUBMIT: Final = "/api/v1/ledger/transactions"
TRANSACTION: Final = {
    "user_id": "user-4711",
    "kind": "deposit",
    "payload": {"amount": 12_345, "currency": "EUR", "memo": "benchmark transaction"},
}
BATCH: Final = 1_000
FAILOVERS: Final = 10
MEMORY_AFTER: Final = 100_000
UNITS_MS: Final = {"us": 0.001, "ms": 1.0, "s": 1_000.0}
WRK_SCRIPT: Final = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = io.open(os.getenv("BENCH_BODY")):read("*a")
"""


@dataclass(frozen=True, slots=True)
class Load:
    """What one run of wrk measured."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float


class Bench:
    """One cluster, and the load on it."""

    def __init__(self, cluster: LocalCluster, folder: Path, *, seconds: int, rounds: int) -> None:
        """Loads `cluster` for `seconds` a run; wrk's files go into `folder`."""
        self._cluster = cluster
        self._folder = folder
        self._seconds = seconds
        self._rounds = rounds
        self.figures: dict[str, float] = {}

    async def run(self) -> None:
        """Measures everything, in the order of the printed table."""
        leader, follower = await self._leader_and_follower()
        single = self._body("single.json", TRANSACTION)
        batch = self._body("batch.json", {"transactions": [TRANSACTION] * BATCH})
        await self._measure_memory(leader, _bytes_of(batch))
        for name, url in (("leader", leader), ("follower", follower)):
            loads = [await self._wrk(url, single, connections=1) for _ in range(self._rounds)]
            self.figures[f"sequential through the {name}, p50 ms"] = median(
                load.p50_ms for load in loads
            )
            self.figures[f"sequential through the {name}, p99 ms"] = median(
                load.p99_ms for load in loads
            )
        for connections in (64, 256):
            loads = [
                await self._wrk(leader, single, connections=connections)
                for _ in range(self._rounds)
            ]
            self.figures[f"{connections} clients, submits/s"] = median(
                load.requests_per_s for load in loads
            )
            self.figures[f"{connections} clients, p99 ms"] = median(load.p99_ms for load in loads)
        loads = [await self._wrk(leader, batch, connections=8) for _ in range(self._rounds)]
        self.figures["batches of 1,000, transactions/s"] = BATCH * median(
            load.requests_per_s for load in loads
        )
        await self._measure_failover()

    async def _leader_and_follower(self) -> tuple[str, str]:
        leader = await self._cluster.leader()
        urls = dict(zip(self._cluster.names, self._cluster.urls, strict=True))
        follower = next(name for name in urls if name != leader)
        assert leader is not None, "a cluster that is up has a leader"
        return urls[leader], urls[follower]

    def _body(self, name: str, document: object) -> Path:
        file = self._folder / name
        file.write_text(json.dumps(document), encoding="utf-8")
        return file

    async def _wrk(self, url: str, body: Path, *, connections: int) -> Load:
        """One run of wrk; any answer but 2xx is an error of the benchmark."""
        script = self._folder / "post.lua"
        script.write_text(WRK_SCRIPT, encoding="utf-8")
        command = ("wrk", "-t1", f"-c{connections}", f"-d{self._seconds}", "--latency")
        process = await asyncio.create_subprocess_exec(
            *command,
            "-s",
            str(script),
            url + SUBMIT,
            stdout=asyncio.subprocess.PIPE,
            env={"BENCH_BODY": str(body), "PATH": "/usr/local/bin:/usr/bin:/bin"},
        )
        output = (await process.communicate())[0].decode()
        if process.returncode != 0 or "Non-2xx" in output:
            raise RuntimeError(f"wrk: {output}")
        return Load(
            requests_per_s=float(_found(r"Requests/sec:\s+([\d.]+)", output)[0]),
            p50_ms=_latency_ms("50", output),
            p99_ms=_latency_ms("99", output),
        )

    async def _measure_memory(self, leader: str, body: bytes) -> None:
        async with httpx.AsyncClient(timeout=30) as client:
            for _ in range(MEMORY_AFTER // BATCH):
                await _post(client, leader, body)
        name = await self._cluster.leader()
        assert name is not None, "a cluster that is up has a leader"
        pid = self._cluster.node(name).pid
        assert pid is not None, "the leader runs"
        self.figures["node's own memory after 100,000 transactions, MiB"] = _memory_mib(pid)

    async def _measure_failover(self) -> None:
        """`kill -9` of the leader until a survivor acknowledges a write sent right after it."""
        body = json.dumps(TRANSACTION).encode()
        times_ms = []
        async with httpx.AsyncClient(timeout=30) as client:
            for _ in range(FAILOVERS):
                _, survivor = await self._leader_and_follower()
                await _post(client, survivor, body)
                leader = await self._cluster.leader()
                assert leader is not None, "a cluster that is up has a leader"
                started = time.perf_counter()
                await self._cluster.kill(leader)
                await _post(client, survivor, body)
                times_ms.append(1_000 * (time.perf_counter() - started))
                await self._wait_until_all_run(client)
        self.figures["failover, p50 ms"] = median(times_ms)
        self.figures["failover, worst ms"] = max(times_ms)

    async def _wait_until_all_run(self, client: httpx.AsyncClient) -> None:
        for url in self._cluster.urls:
            while True:
                try:
                    if (await client.get(f"{url}/readyz")).is_success:
                        break
                except httpx.TransportError:
                    pass
                await asyncio.sleep(0.05)


def _bytes_of(file: Path) -> bytes:
    return file.read_bytes()


def _memory_mib(pid: int) -> float:
    """Anonymous memory of a process: its own, without mapped files and the page cache."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(_found(r"RssAnon:\s+(\d+) kB", status)[0]) / 1024


async def _post(client: httpx.AsyncClient, url: str, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    response = await client.post(url + SUBMIT, content=body, headers=headers)
    response.raise_for_status()


def _found(pattern: str, text: str) -> tuple[str, ...]:
    match = re.search(pattern, text)
    if match is None:
        raise RuntimeError(f"no {pattern!r} in: {text}")
    return match.groups()


def _latency_ms(percent: str, output: str) -> float:
    number, unit = _found(rf"{percent}%\s+([\d.]+)(us|ms|s)", output)
    return float(number) * UNITS_MS[unit]


async def measure(*, seconds: int, rounds: int) -> dict[str, float]:
    """All figures of a fresh cluster, by name."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = ClusterOptions(data_dir=folder / "data", shape=Shape(nodes=3, http_port=0))
        async with LocalCluster(options) as cluster:
            bench = Bench(cluster, folder, seconds=seconds, rounds=rounds)
            await bench.run()
            return bench.figures


def main() -> int:
    """Measure, and print a table, or JSON with `--json`."""
    parser = argparse.ArgumentParser(description="Figures of a local three-node cluster.")
    parser.add_argument("--seconds", type=int, default=5, help="length of each run of wrk")
    parser.add_argument("--rounds", type=int, default=3, help="runs of which the median counts")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    if shutil.which("wrk") is None:
        print("tools.bench needs wrk: install Debian's package `wrk`", file=sys.stderr)
        return 1
    figures = asyncio.run(measure(seconds=arguments.seconds, rounds=arguments.rounds))
    if arguments.json:
        print(json.dumps(figures, indent=2))
        return 0
    for name, figure in figures.items():
        print(f"{name:52} {figure:12,.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
