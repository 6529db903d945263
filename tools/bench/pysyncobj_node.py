"""One PySyncObj node of the benchmark: `python -m tools.bench.pysyncobj_node SELF OTHER OTHER ...`.

Replicates a list of transactions and takes commands as lines on stdin: `status` says who leads and
how many others are connected, `load CLIENTS SECONDS BATCH` answers `COUNT ELAPSED_US P50_US
P99_US`, `fill COUNT BATCH` keeps so many transactions, and `put` writes until a write is
acknowledged. Its clients are this process's own calls, which is how the library is used. Ends with
stdin. Relies on `pysyncobj` being importable.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import threading
import time
from typing import TYPE_CHECKING, Final, Protocol

from cluster.bench.timings import percentile
from tools.bench.peer import CONTENT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ATTEMPT_EVERY_S: Final = 0.02
GIVE_UP_S: Final = 30.0


class ReplicatedList(Protocol):
    """What of the library's list is used."""

    def extend(
        self, other: list[object], *, callback: Callable[[object, int | None], None]
    ) -> None:
        """Append them all, and tell when that is committed, or the reason why it is not."""
        ...


class Node(Protocol):
    """What of the library's node is used."""

    def getStatus(self) -> Mapping[str, object]:  # noqa: N802 - the library's name
        """How it is."""
        ...


class Clients:
    """So many clients, each of which calls again when it has its answer."""

    def __init__(self, ledger: ReplicatedList, *, count: int, batch: int) -> None:
        """Each call appends `batch` transactions to `ledger`."""
        self._ledger = ledger
        # Read one by one, since pickle writes an object only once that comes many times.
        self._batch = [json.loads(CONTENT) for _ in range(batch)]
        self._success = importlib.import_module("pysyncobj").FAIL_REASON.SUCCESS
        self._count = count
        self._open = threading.Semaphore(0)
        self._until = 0.0
        self._calls_left: int | None = None
        self._failures: set[int | None] = set()
        self.times_us: list[float] = []

    def run(self, *, seconds: float, calls: int | None = None) -> float:
        """Run for so long, or for so many calls; the seconds it took."""
        started = time.perf_counter()
        self._until, self._calls_left = started + seconds, calls
        for _ in range(self._count):
            self._call()
        for _ in range(self._count):
            self._open.acquire()
        if self._failures:
            raise RuntimeError(f"calls failed for the reasons {self._failures}")
        return time.perf_counter() - started

    def _call(self) -> None:
        begun = time.perf_counter()
        is_over = begun >= self._until if self._calls_left is None else self._calls_left <= 0
        if is_over or self._failures:
            self._open.release()
            return
        if self._calls_left is not None:
            self._calls_left -= 1

        def answered(_: object, reason: int | None) -> None:
            if reason == self._success:
                self.times_us.append(1_000_000 * (time.perf_counter() - begun))
            else:
                self._failures.add(reason)
            self._call()

        self._ledger.extend(self._batch, callback=answered)


def load(ledger: ReplicatedList, clients: int, seconds: int, batch: int) -> str:
    """Load the node for so long."""
    load = Clients(ledger, count=clients, batch=batch)
    elapsed_s = load.run(seconds=seconds)
    ordered = sorted(load.times_us)
    numbers = (
        *(len(ordered), 1_000_000 * elapsed_s),
        *(percentile(ordered, fraction) for fraction in (0.5, 0.99)),
    )
    return " ".join(str(round(number)) for number in numbers)


def put(ledger: ReplicatedList) -> str:
    """Write every 20 ms until the first write is acknowledged."""
    success = importlib.import_module("pysyncobj").FAIL_REASON.SUCCESS
    acknowledged = threading.Event()

    def answered(_: object, reason: int | None) -> None:
        if reason == success:
            acknowledged.set()

    deadline = time.monotonic() + GIVE_UP_S
    while time.monotonic() < deadline:
        ledger.extend([json.loads(CONTENT)], callback=answered)
        if acknowledged.wait(ATTEMPT_EVERY_S):
            return "acknowledged"
    return "given up"


def answer(node: Node, ledger: ReplicatedList, words: list[str]) -> str:
    """Do one command."""
    match words:
        case ["status"]:
            status = node.getStatus()
            connected = [
                value for key, value in status.items() if key.startswith("partner_node_status")
            ]
            return f"{status['leader']} {len([each for each in connected if each])}"
        case ["load", clients, seconds, batch]:
            return load(ledger, int(clients), int(seconds), int(batch))
        case ["fill", count, batch]:
            calls = int(count) // int(batch)
            Clients(ledger, count=1, batch=int(batch)).run(seconds=0, calls=calls)
            return "filled"
        case ["put"]:
            return put(ledger)
    raise ValueError(f"unknown command {words}")


def main() -> None:
    """The command line of one node."""
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("others", nargs="+")
    parser.add_argument("--journal", required=True)
    parser.add_argument("--heartbeat-ms", type=int)
    parser.add_argument("--election-ms", type=int, nargs=2)
    parser.add_argument("--tick-ms", type=int, default=50)
    parser.add_argument("--unbatched", action="store_true")
    arguments = parser.parse_args()
    library = importlib.import_module("pysyncobj")
    settings: dict[str, object] = {
        "journalFile": arguments.journal,
        "autoTickPeriod": arguments.tick_ms / 1_000,
        "appendEntriesUseBatch": not arguments.unbatched,
        # How soon a restarted node is spoken to again; plays no part in what is measured.
        "connectionRetryTime": 0.2,
    }
    if arguments.heartbeat_ms is not None:
        settings["appendEntriesPeriod"] = arguments.heartbeat_ms / 1_000
        low_ms, high_ms = arguments.election_ms
        settings["raftMinTimeout"], settings["raftMaxTimeout"] = low_ms / 1_000, high_ms / 1_000
    ledger = importlib.import_module("pysyncobj.batteries").ReplList()
    node = library.SyncObj(
        arguments.address,
        arguments.others,
        conf=library.SyncObjConf(**settings),
        consumers=[ledger],
    )
    for line in sys.stdin:
        print(answer(node, ledger, line.split()), flush=True)
    node.destroy()


if __name__ == "__main__":
    main()
