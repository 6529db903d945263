"""The known-bad control: raftos runs on today's Python, and its log breaks on a newline byte.

Relies on the adapter beside it, which holds every patch, and on the `control` requirements. Where
they are not installed these tests fail and say what to run: a missing control controls nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.control import raftos_adapter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.control

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 15.0
CLUSTERS = 4
"""So many clusters may try. One whose leader falls with an entry not yet committed never commits
again: raftos stops counting at the first entry of an older term, however far the log has come."""

NEWLINES = [
    pytest.param(1, {"memo": "two\nlines"}, id="newline in a text"),
    pytest.param(1, {"digest": b"\x01\n\x02"}, id="newline in bytes"),
    pytest.param(1, {"amount": 10}, id="the number ten"),
    pytest.param(1, {"amount": 0x0A00}, id="a number with that byte"),
    pytest.param(10, {"amount": 1}, id="the tenth term"),
    pytest.param(1, {"parts": [9, 10, 11]}, id="ten in a list"),
]


class ControlNode:
    """One raftos node in a process of its own, spoken to over its pipes."""

    def __init__(self, address: str, process: asyncio.subprocess.Process) -> None:
        self.address = address
        self._process = process

    @classmethod
    async def start(cls, address: str, cluster: list[str], folder: Path) -> ControlNode:
        """Start the node; its log and state machine go into the folder."""
        command = ["-m", raftos_adapter.__name__, address, "--log-path", str(folder)]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, *command, "--cluster", *cluster),
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        return cls(address, process)

    async def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send one command and wait for its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
        line = await self._process.stdout.readline()
        assert line, f"{self.address} is gone: {await self.last_words()}"
        reply: dict[str, Any] = json.loads(line)
        return reply

    async def last_words(self) -> str:
        """What the node left on stderr when it ended by itself."""
        _, errors = await self._process.communicate()
        return errors.decode()

    async def stop(self) -> None:
        """End the node, whatever state it is in."""
        with contextlib.suppress(ProcessLookupError):  # it may have ended by itself
            self._process.kill()
        await self._process.communicate()


def free_addresses(count: int) -> list[str]:
    """Addresses for that many nodes, free a moment ago: raftos must be told them beforehand."""
    with contextlib.ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            for _ in range(count)
        ]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]


@contextlib.asynccontextmanager
async def three_nodes(folder: Path) -> AsyncIterator[dict[str, ControlNode]]:
    """A cluster of three, by address."""
    addresses = free_addresses(3)
    async with contextlib.AsyncExitStack() as stack:
        nodes = {}
        for address in addresses:
            nodes[address] = await ControlNode.start(address, addresses, folder)
            stack.push_async_callback(nodes[address].stop)
        yield nodes


async def update_at_leader(nodes: dict[str, ControlNode], values: dict[str, Any]) -> None:
    """Find the leader that all three agree on and update there; again where it fell meanwhile."""
    while True:
        leader, *others = [(await node.ask("leader"))["leader"] for node in nodes.values()]
        if leader is None or {leader} != set(others):
            continue
        reply = await nodes[leader].ask("update", name="accounts", values=values)
        if "error" not in reply:
            return


async def replicates(folder: Path, *, updates: int) -> bool:
    """Whether a new cluster takes the updates and every node applies the last of them in time."""
    expected: dict[str, Any] = {}
    try:
        async with asyncio.timeout(TIMEOUT_S), three_nodes(folder) as nodes:
            for number in range(updates):
                expected[f"account-{number}"] = 100 + number
                await update_at_leader(nodes, expected)
            for node in nodes.values():
                reply = await node.ask("applied", name="accounts", values=expected)
                assert {"applied": expected} == reply
    except TimeoutError:
        return False
    return True


@pytest.mark.asyncio
async def test_three_nodes_elect_a_leader_and_replicate(raftos: Any, tmp_path: Path) -> None:
    """Three processes on UDP agree on a dict, over more writes than go between its re-readings.

    No more than that is asked: under load its logs end up with entries twice, or out of order.
    """
    updates = raftos.state.Log.UPDATE_CACHE_EVERY + 2
    for attempt in range(CLUSTERS):  # each in a folder of its own, which its log makes
        if await replicates(tmp_path / str(attempt), updates=updates):
            return
    pytest.fail(f"none of {CLUSTERS} clusters replicated {updates} updates")


def test_an_entry_without_a_newline_byte_reads_back(raftos: Any) -> None:
    """The control works where it can: a reopened log gives its entries back."""
    raftos.state.Log("node:1").write(1, {"memo": "one line", "amount": 11})

    reopened = raftos.state.Log("node:1")
    assert [{"term": 1, "command": {"memo": "one line", "amount": 11}}] == reopened.cache


@pytest.mark.parametrize(("term", "command"), NEWLINES)
def test_the_log_does_not_survive_a_newline_byte(
    raftos: Any, term: int, command: dict[str, Any]
) -> None:
    """A line ends at any byte 0x0a, and so in the middle of an entry: the log cannot be opened."""
    raftos.state.Log("node:1").write(term, command)

    with pytest.raises(ValueError, match="Unpack failed: incomplete input"):
        raftos.state.Log("node:1")


def test_one_such_entry_takes_the_others_with_it(raftos: Any) -> None:
    """What was written before and after the newline is lost with it."""
    log = raftos.state.Log("node:1")
    for memo in ("before", "the\nbreak", "after"):
        log.write(1, {"memo": memo})

    with pytest.raises(ValueError, match="Unpack failed: incomplete input"):
        raftos.state.Log("node:1")


def test_as_published_no_log_reads_back(raftos: Any) -> None:
    """Why the adapter patches the reading: the line end itself is refused, after any entry."""
    log = raftos.state.Log("node:1")
    log.write(1, {"memo": "one line"})

    with pytest.raises(ValueError, match="received extra data"):
        log.read_as_published()


@pytest.mark.asyncio
async def test_a_node_with_such_a_log_does_not_start_again(raftos: Any, tmp_path: Path) -> None:
    """One acknowledged newline keeps a restarted node down for good."""
    address, *others = free_addresses(3)
    raftos.state.Log(address).write(1, {"memo": "two\nlines"})

    async with asyncio.timeout(TIMEOUT_S):
        node = await ControlNode.start(address, [address, *others], tmp_path)
        errors = await node.last_words()

    assert "Unpack failed: incomplete input" in errors
