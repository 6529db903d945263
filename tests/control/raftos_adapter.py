"""raftos 0.2.6 on today's Python: the known-bad control that the ledger is compared with.

`patched_raftos()` gives the library with the patches below, each with its reason. They touch how it
calls asyncio and msgpack, never what its leader, candidate and follower do. As a program, `python
-m tests.control.raftos_adapter NODE --cluster NODE NODE NODE --log-path FOLDER`, it is one node of
a cluster on UDP: it takes commands as JSON lines on stdin, answers on stdout, and ends with stdin.

Relies on the `control` requirements, which `./tools/dev test` installs. Its datagrams travel in the
clear: raftos encrypts them only where an optional library is installed.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import importlib
import json
import logging
import sys
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

HEARTBEAT_S = 0.15
"""Twice as fast as its default, so that an election takes a second or two and not three."""
POLL_S = 0.01


class ControlNotInstalledError(Exception):
    """raftos is not in this environment."""


def patched_raftos() -> Any:
    """The library, patched; raises ControlNotInstalledError where it is not installed."""
    # It warns at import that it will not encrypt, which is what is wanted here.
    logging.getLogger("raftos").setLevel(logging.ERROR)
    try:
        raftos = importlib.import_module("raftos")
        msgpack = importlib.import_module("msgpack")
    except ImportError as error:
        raise ControlNotInstalledError(
            "raftos 0.2.6 is not installed: `./tools/dev test` installs it from "
            "requirements-control.lock, without its dependencies"
        ) from error
    if not isinstance(raftos.server.asyncio, AsyncioWithLoopArgument):
        raftos.server.asyncio = AsyncioWithLoopArgument("asyncio")
        raftos.state.asyncio = AsyncioWithErrorInFutures("asyncio")
        patch_serializer(raftos, msgpack)
        patch_locks(raftos)
        patch_log(raftos)
    return raftos


class AsyncioWithLoopArgument(ModuleType):
    """asyncio as `raftos.server` expects it: Python 3.10 took away the `loop` of a queue."""

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    @staticmethod
    def Queue(*, loop: asyncio.AbstractEventLoop) -> asyncio.Queue[Any]:  # noqa: N802 - its name
        """A queue of the running loop, which is the only one there is."""
        assert loop is asyncio.get_running_loop(), "a node lives in one loop"
        return asyncio.Queue()


class AsyncioWithErrorInFutures(ModuleType):
    """asyncio as `raftos.state` expects it: Python 3.8 moved the error that it catches.

    Without this a follower breaks off at every entry that it applies, in the middle of a message.
    """

    futures = SimpleNamespace(InvalidStateError=asyncio.InvalidStateError)

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)


def patch_serializer(raftos: Any, msgpack: Any) -> None:
    """Decode text as before: msgpack 1.0 took away `encoding`, and asks before other keys."""

    def unpack(data: bytes) -> Any:
        return msgpack.unpackb(data, use_list=True, raw=False, strict_map_key=False)

    raftos.serializers.MessagePackSerializer.unpack = staticmethod(unpack)


def patch_locks(raftos: Any) -> None:
    """Lock with `async with`: Python 3.9 took away `with await lock`."""

    def locking(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        @functools.wraps(method)
        async def locked(self: Any, *args: Any, **kwargs: Any) -> Any:
            async with self.lock:
                return await method(self, *args, **kwargs)

        return locked

    replicator = raftos.replicator
    for container, names in (
        (replicator.ReplicatedDict, ("update", "pop", "delete")),
        (replicator.ReplicatedList, ("append", "extend")),
    ):
        for name in names:
            setattr(container, name, locking(getattr(container, name).__wrapped__))


def patch_log(raftos: Any) -> None:
    """Read a log's lines without their line ends.

    As published it hands them over with the entry, and msgpack refuses them as extra data, also
    the msgpack of its time: no log is read back, and every fifth write of a running node fails.
    That a line may end in the middle of an entry is left as it is.
    """

    def read(self: Any) -> list[Any]:
        with open(self.filename, "rb") as file:  # noqa: PTH123 - the name is a string of its own
            return [self.serializer.unpack(line.removesuffix(b"\n")) for line in file]

    log = raftos.state.Log
    log.read_as_published = log.read
    log.read = read


def configure(raftos: Any, *, log_path: str) -> None:
    """Set the library up, for the whole process: its configuration is global."""
    raftos.configure(
        {
            "log_path": log_path,
            "heartbeat_interval": HEARTBEAT_S,
            "cryptor": importlib.import_module("raftos.cryptors").DummyCryptor,
        }
    )


async def answer(raftos: Any, command: dict[str, Any]) -> dict[str, Any]:
    """Do one command: `leader`, `update` (of a replicated dict, at the leader) or `applied`."""
    match command["do"]:
        case "leader":
            await raftos.state.State.wait_for_election_success()
            return {"leader": raftos.get_leader()}
        case "update":
            try:
                await raftos.ReplicatedDict(name=command["name"]).update(command["values"])
            except raftos.exceptions.NotALeaderException as error:
                return {"error": str(error)}
            return {"updated": command["name"]}
        case "applied":
            return {"applied": await applied(raftos, command["name"], command["values"])}
    raise ValueError(f"unknown command {command}")


async def applied(raftos: Any, name: str, values: dict[str, Any]) -> dict[str, Any]:
    """Wait until this node's own state machine holds these values under that name."""
    (node,) = raftos.server.Node.nodes
    machine = node.state.state_machine
    while not machine.exists(name) or machine[name] != values:  # noqa: ASYNC110 - it tells nobody
        await asyncio.sleep(POLL_S)
    return values


async def serve(address: str, *, cluster: list[str], log_path: str) -> None:
    """Run one node until stdin ends."""
    raftos = patched_raftos()
    configure(raftos, log_path=log_path)
    await raftos.register(address, cluster=cluster)
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    while line := await reader.readline():
        print(json.dumps(await answer(raftos, json.loads(line))), flush=True)  # noqa: T201 - to the test
    raftos.stop()


def main() -> None:
    """The command line of one node."""
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("--cluster", nargs="+", required=True)
    parser.add_argument("--log-path", required=True)
    arguments = parser.parse_args()
    node = serve(arguments.address, cluster=arguments.cluster, log_path=arguments.log_path)
    asyncio.run(node)


if __name__ == "__main__":
    main()
