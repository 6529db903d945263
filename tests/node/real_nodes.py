"""Data folders of real clusters, and nodes that run on them in the test's own process.

Relies on free ports, and on the node as it is: sockets, LMDB, the index process.
"""

from __future__ import annotations

import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

from consensus.membership import Genesis, Member, dump_genesis
from node.config import NodeConfig
from node.identity import create_identity
from node.server import Node

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AsyncExitStack
    from pathlib import Path

    from node.identity import Identity


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def cluster_folders(
    base: Path, size: int, *, hosts: Sequence[str] = ("127.0.0.1",) * 9
) -> list[NodeConfig]:
    """The set-up data folders of a new cluster; `hosts` are those of the peer addresses."""
    identities: dict[str, Identity] = {}
    for number in range(1, size + 1):
        folder = base / f"node{number}"
        folder.mkdir()
        identities[folder.name] = create_identity(folder / "identity.key")
    members = tuple(
        Member(
            name=name,
            public_key=identity.public_key,
            peer=f"{host}:{port}",
            http=f"127.0.0.1:{port}",
        )
        for (name, identity), host, port in zip(
            identities.items(), hosts[:size], free_ports(size), strict=True
        )
    )
    text = dump_genesis(Genesis(name="test", created_us=1_700_000_000_000_000, members=members))
    for name in identities:
        (base / name / "genesis.json").write_text(text, encoding="utf-8")
    return [NodeConfig(data_dir=base / name, name=name, http_port=0) for name in identities]


async def start_all(stack: AsyncExitStack, configs: list[NodeConfig]) -> list[Node]:
    """Starts every node; they stop with the stack."""
    nodes = [Node(config) for config in configs]
    for node in nodes:
        await stack.enter_async_context(node)
    return nodes
