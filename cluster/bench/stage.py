"""A ledger to be measured: a cluster of real processes in a folder of its own, and who leads it.

Relies on `cluster.local`; asks the nodes over HTTP, as an operator would.
"""

from __future__ import annotations

import asyncio
import http.client
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from cluster.bench.connection import Connection, make_post
from cluster.bench.errors import BenchError
from cluster.bench.processes import with_children
from cluster.folder import FREE_PORT, Shape
from cluster.local import ClusterOptions, LocalCluster
from cluster.process import Backoff

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

SUBMIT_PATH: Final = "/api/v1/ledger/transactions"
USER: Final = "user-4711"
BATCH: Final = 1_000
_HTTP_OK: Final = 200
_HTTP_CREATED: Final = 201
_METRIC_PREFIX: Final = "bitnexus_"
_ASK_TIMEOUT_S: Final = 5.0
_POLL_S: Final = 0.02
_REST_TIMEOUT_S: Final = 60.0
_QUEUES: Final = ("transactions_queued", "transactions_waiting")


def transaction(memo: str = "benchmark transaction") -> dict[str, object]:
    """A transaction to submit, without an id: the node makes one."""
    payload = {"amount": 12_345, "currency": "EUR", "memo": memo}
    return {"user_id": USER, "kind": "deposit", "payload": payload}


def single_body() -> bytes:
    """The body that submits one transaction."""
    return json.dumps(transaction()).encode()


def batch_body(count: int = BATCH) -> bytes:
    """The body that submits so many at once."""
    return json.dumps({"transactions": [transaction()] * count}).encode()


class Stage:
    """A running cluster."""

    def __init__(self, cluster: LocalCluster) -> None:
        """Look at a cluster that is up."""
        self.cluster = cluster
        self.urls = dict(zip(cluster.names, cluster.urls, strict=True))

    async def leader(self) -> str:
        """The name of the node that leads now."""
        return (await self.cluster.wait_for_leader(timeout_s=_REST_TIMEOUT_S)).node

    async def leader_url(self) -> str:
        """Where the leader's HTTP is."""
        return self.urls[await self.leader()]

    async def follower_url(self) -> str:
        """Where the HTTP of one that does not lead is; the cluster has several nodes."""
        leader = await self.leader()
        return next(url for name, url in self.urls.items() if name != leader)

    def processes(self, name: str) -> list[int]:
        """The processes of a node that runs."""
        pid = self.cluster.node(name).pid
        if pid is None:
            raise BenchError(f"{name} does not run")
        return with_children([pid])

    def all_processes(self) -> list[int]:
        """The processes of all nodes."""
        return [pid for name in self.urls for pid in self.processes(name)]

    async def metrics(self, name: str) -> dict[str, float]:
        """What a node tells at /metrics; raises OSError and BenchError."""
        text = await asyncio.to_thread(_get, f"{self.urls[name]}/metrics")
        return parse_metrics(text)

    async def is_ready(self, name: str) -> bool:
        """Whether a node answers, follows a leader and has applied what is committed."""
        try:
            await asyncio.to_thread(_get, f"{self.urls[name]}/readyz")
        except (OSError, BenchError):
            return False
        return True

    async def rest(self) -> None:
        """Wait until every node is ready and nobody's transaction is under way.

        Raises:
            BenchError: they do not come to rest.
        """
        try:
            async with asyncio.timeout(_REST_TIMEOUT_S):
                for name in self.urls:
                    while not await self._is_at_rest(name):  # noqa: ASYNC110 - another process
                        await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise BenchError(f"the nodes do not rest after {_REST_TIMEOUT_S:g} s") from None

    async def _is_at_rest(self, name: str) -> bool:
        if not await self.is_ready(name):
            return False
        metrics = await self.metrics(name)
        return not any(metrics[queue] for queue in _QUEUES)

    async def fill(self, transactions: int) -> None:
        """Record so many, in batches, one after the other."""
        url = await self.leader_url() + SUBMIT_PATH
        await asyncio.to_thread(_fill, url, transactions)


@asynccontextmanager
async def running(options: ClusterOptions) -> AsyncIterator[Stage]:
    """A cluster that runs within the block; its folder may hold it already."""
    async with LocalCluster(options) as cluster:
        yield Stage(cluster)


def options_for(
    data_dir: Path,
    *,
    nodes: int,
    heartbeat_ms: int | None = None,
    election_timeout_ms: tuple[int, int] | None = None,
) -> ClusterOptions:
    """Nodes on free ports, started again at once when they are killed, without a database."""
    return ClusterOptions(
        data_dir=data_dir,
        shape=Shape(nodes=nodes, http_port=FREE_PORT),
        heartbeat_ms=heartbeat_ms,
        election_timeout_ms=election_timeout_ms,
        backoff=lambda: Backoff(first_s=0.1, limit_s=0.1),
    )


def parse_metrics(text: str) -> dict[str, float]:
    """The numbers without labels in Prometheus's text format, by the node's names for them."""
    numbers = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name.startswith(_METRIC_PREFIX) and "{" not in name:
            numbers[name.removeprefix(_METRIC_PREFIX)] = float(value)
    return numbers


def submit_until_answered(url: str, body: bytes) -> None:
    """Record what a body holds through one node, which has found a leader by then.

    Raises:
        OSError, BenchError: it is not recorded.
    """
    with Connection(url) as connection:
        answer = connection.exchange(make_post(url, body))
    if answer.status != _HTTP_CREATED:
        raise BenchError(f"a submit was answered with {answer.status}: {answer.body[:200]!r}")


def _fill(url: str, transactions: int) -> None:
    for done in range(0, transactions, BATCH):
        submit_until_answered(url, batch_body(min(BATCH, transactions - done)))


def _get(url: str) -> str:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=_ASK_TIMEOUT_S)
    try:
        connection.request("GET", parts.path)
        answer = connection.getresponse()
        body = answer.read().decode()
    except http.client.HTTPException as error:
        raise BenchError(f"{url} gave no answer: {error!r}") from error
    finally:
        connection.close()
    if answer.status != _HTTP_OK:
        raise BenchError(f"{url} answered {answer.status}")
    return body
