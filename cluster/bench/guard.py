"""Fails when a submit costs more CPU than it used to: `python -m cluster.bench.guard [--renew]`.

The shipped path, from the connections of the leader through three replicas (`members`) to the
answers, is run in many short rounds, in turn with a reference loop of the standard library. The
least CPU time of each counts, which a busy machine hardly changes, and only their ratio is kept,
which a faster one hardly changes. It is compared with `guard.json`, where each version of Python
has its own; `--renew` writes it anew, for a change that is worth its price.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import sys
import time
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast
from urllib.parse import quote, urlsplit

import msgspec
import uvloop
from uvicorn.config import Config
from uvicorn.server import ServerState

from cluster.bench.members import Members
from cluster.bench.stage import SUBMIT_PATH, single_body, transaction
from node.api.app import Application
from node.api.express import Express, ExpressProtocol
from node.api.host import HostCheck
from node.calls import Calls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from node.api.interface import LedgerNode
    from node.outcomes import Outcome, Wait
    from node.submissions import Submission

BASELINE: Final = Path(__file__).with_name("guard.json")
MARGIN: Final = 0.20
ROUNDS: Final = 200
"""So short, a few milliseconds each, that some are never interrupted on a busy machine."""
CLIENTS: Final = 64
"""Transactions of a round, which are submitted at once."""
REFERENCE_STEPS: Final = 60
VERSION: Final = f"{sys.version_info.major}.{sys.version_info.minor}"
_DOCUMENT: Final = transaction()
_BODY: Final = single_body()
_REQUEST: Final = (
    b"POST %b HTTP/1.1\r\nHost: 127.0.0.1:8001\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (SUBMIT_PATH.encode(), len(_BODY), _BODY)
)
_CREATED: Final = b"HTTP/1.1 201 "
_NO_BASELINE: Final = 2


class Front:
    """What the HTTP face submits to: the leader of members that are driven by hand."""

    def __init__(self) -> None:
        """Elect the leader."""
        self._members = Members()
        self._calls = Calls(offer=self._offer, expire=self._members.leader.expire)
        self._offered: list[Submission] = []
        self.is_full = False

    def begin_submit(
        self,
        transactions: Sequence[bytes],
        *,
        wait: Wait,
        timeout_s: float,
        on_done: Callable[[list[Outcome]], None],
    ) -> Submission:
        """As `Node.begin_submit`; all under way is carried on once for each turn of the loop."""
        return self._calls.begin(transactions, wait=wait, timeout_s=timeout_s, on_done=on_done)

    def forget_applied(self) -> None:
        """See `Members.forget_applied`."""
        self._members.forget_applied()

    def _offer(self, submission: Submission) -> None:
        if not self._offered:
            asyncio.get_running_loop().call_soon(self._settle)
        self._offered.append(submission)

    def _settle(self) -> None:
        offered, self._offered = self._offered, []
        self._members.leader.submit(*offered)
        self._members.settle()


class Sink:
    """The transport of a connection whose client reads everything at once."""

    def __init__(self) -> None:
        """Nothing is written yet."""
        self.answers: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Take an answer."""
        self.answers.append(data)

    def get_extra_info(self, _name: str) -> None:
        """Nothing is known of the client."""


def connections_to(front: Front, loop: asyncio.AbstractEventLoop) -> list[ExpressProtocol]:
    """The server's ends of the clients' connections."""
    check_host = HostCheck("127.0.0.1")
    application = Application(cast("LedgerNode", front), check_host=check_host)
    express = Express(
        application.face,
        check_host=check_host,
        report=application.report,
        max_connections=CLIENTS,
    )
    config = Config(application, ws="none", lifespan="off", log_config=None, access_log=False)
    config.load()
    state = ServerState()
    connections = []
    for _ in range(CLIENTS):
        connection = ExpressProtocol(
            express, config=config, server_state=state, app_state={}, _loop=loop
        )
        connection.connection_made(cast("asyncio.Transport", Sink()))
        connections.append(connection)
    return connections


async def submit_round(connections: Sequence[ExpressProtocol]) -> None:
    """One round of submits: each of the clients has one under way, and it must be recorded."""
    for connection in connections:
        connection.data_received(_REQUEST)
    await asyncio.sleep(0)
    for connection in connections:
        answers = cast("Sink", connection.transport).answers
        assert [answer.startswith(_CREATED) for answer in answers] == [True], answers
        answers.clear()


def reference_round(steps: int = REFERENCE_STEPS) -> None:
    """What a submit is made of, by the standard library: parsing, hashing, objects by their ids.

    Much of it is Python, and of many lines, so that a cache that others use as well slows it down
    as it slows down a submit.
    """
    table: dict[uuid.UUID, tuple[str, object]] = {}
    for step in range(steps):
        text = json.dumps(_DOCUMENT, indent=1)  # with an indent, json writes in Python
        digest = hashlib.sha256(text.encode() + step.to_bytes(8, "big")).digest()
        identifier = uuid.UUID(bytes=digest[:16])
        path = quote(urlsplit(f"http://127.0.0.1:8001/receipts/{identifier}").path)
        table[identifier] = path, json.loads(text)
        if len(table) > CLIENTS:
            table.pop(next(iter(table)))


def measure_ratio(rounds: int = ROUNDS) -> float:
    """CPU time of a submit round in units of a reference round, the least of each over all."""
    submits, references = [], []
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        front = Front()
        connections = connections_to(front, runner.get_loop())
        with _no_collection():
            for _ in range(rounds):
                references.append(_cpu_ns_of(reference_round))
                submits.append(_cpu_ns_of(lambda: runner.run(submit_round(connections))))
                front.forget_applied()
    return min(submits) / min(references)


def is_regression(ratio: float, baseline: float) -> bool:
    """Whether a submit costs more than the margin allows."""
    return ratio > baseline * (1 + MARGIN)


def read_baselines() -> dict[str, float]:
    """The ratio kept for each version of Python."""
    return msgspec.json.decode(BASELINE.read_bytes(), type=dict[str, float])


def main(arguments: Sequence[str]) -> int:
    """Compare with the baseline, or renew it; the exit code is 1 for a regression."""
    ratio = measure_ratio()
    baselines = read_baselines()
    if list(arguments) == ["--renew"]:
        kept = dict(sorted((baselines | {VERSION: round(ratio, 3)}).items()))
        BASELINE.write_bytes(msgspec.json.format(msgspec.json.encode(kept), indent=2) + b"\n")
        return _say(f"the baseline of Python {VERSION} is now {ratio:.3f}", 0)
    if VERSION not in baselines:
        return _say(f"there is no baseline for Python {VERSION}: use --renew", _NO_BASELINE)
    baseline = baselines[VERSION]
    percent = 100 * (ratio / baseline - 1)
    words = f"a submit costs {ratio:.3f} references, {percent:+.1f} % beside {baseline:.3f}"
    if is_regression(ratio, baseline):
        return _say(f"{words}: more than {100 * MARGIN:.0f} % above", 1)
    return _say(words, 0)


def _cpu_ns_of(work: Callable[[], None]) -> int:
    """CPU time of this process for some work."""
    started = time.process_time_ns()
    work()
    return time.process_time_ns() - started


@contextmanager
def _no_collection() -> Iterator[None]:
    """Within the block nobody pauses to collect garbage, which would fall on some rounds alone."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _say(words: str, code: int) -> int:
    sys.stdout.write(f"{words}\n")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
