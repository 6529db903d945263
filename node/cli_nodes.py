"""The options that every command speaking to nodes shares, and the nodes that they name.

Relies on typer alone.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import urlsplit

import typer

from node.cli_errors import CommandError, ExitCode
from node.client_keys import parse_key

DEFAULT_NODES: Final = (
    "http://127.0.0.1:8001",
    "http://127.0.0.1:8002",
    "http://127.0.0.1:8003",
)
"""Where `bitnexus up` puts its nodes by default."""
NODES_VARIABLE: Final = "BITNEXUS_NODES"
CLIENT_KEY_VARIABLE: Final = "BITNEXUS_CLIENT_KEY"
"""A file with the client's secret CURVE key, for its owner alone to read."""
_PORT_SCHEME: Final = "tcp://"
_OTHERS: Final = 0o077

NodeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--node",
        metavar="URL",
        help=(
            "A node's HTTP address; may be repeated, any node will do. To submit, or to look a "
            "receipt up, also its client port: tcp://HOST:PORT?key=<its public key>. "
            f"(default: {NODES_VARIABLE}, separated by commas, "
            f"or {DEFAULT_NODES[0]} to {DEFAULT_NODES[-1].rpartition(':')[2]})"
        ),
        show_default=False,
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Machine output: JSON on stdout and nothing else.")
]
TimeoutOption = Annotated[
    float,
    typer.Option("--timeout", metavar="SECONDS", min=0.001, help="How long to wait for an answer."),
]


def node_urls(given: list[str] | None, *, may_be_ports: bool = False) -> list[str]:
    """The nodes to speak to: those given, else the environment's, else a local cluster's.

    Raises:
        CommandError: one is no HTTP address, nor, where that will do, a client port's.
    """
    urls = given or _environment_urls() or list(DEFAULT_NODES)
    return [_checked(url, may_be_ports=may_be_ports) for url in urls]


def client_key() -> bytes | None:
    """This client's secret key for client ports that let only some in, if it was given one.

    Raises:
        CommandError: the file cannot be read, is open to others, or holds no key.
    """
    name = os.environ.get(CLIENT_KEY_VARIABLE, "")
    if not name:
        return None
    try:
        file = Path(name)
        if file.stat().st_mode & _OTHERS:
            raise CommandError(
                f"{file} can be read by others: chmod 600 it, and make a new key", ExitCode.CONFIG
            )
        return parse_key(file.read_text(encoding="utf-8").strip())
    except OSError as error:
        raise CommandError(f"{name}: {error.strerror}", ExitCode.CONFIG) from error
    except ValueError as error:
        raise CommandError(f"{name}: {error}", ExitCode.CONFIG) from error


def _environment_urls() -> list[str]:
    text = os.environ.get(NODES_VARIABLE, "")
    return [url.strip() for url in text.split(",") if url.strip()]


def _checked(url: str, *, may_be_ports: bool) -> str:
    if url.startswith(_PORT_SCHEME):
        if not may_be_ports:
            detail = f"{url} is a client port: this command needs a node's HTTP address"
            raise CommandError(detail, ExitCode.USAGE)
        from node.port_link import PortAddress  # noqa: PLC0415 - brings ZeroMQ

        try:
            PortAddress.of(url)
        except ValueError as error:
            raise CommandError(str(error), ExitCode.USAGE) from error
        return url
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in {"http", "https"} and bool(parts.hostname)
        is_good = is_good and parts.port != 0 and not (parts.query or parts.fragment)
    except ValueError:
        is_good = False
    if not is_good:
        raise CommandError(
            f"{url!r} is no node's address, as in {DEFAULT_NODES[0]}", ExitCode.USAGE
        )
    return url.rstrip("/")
