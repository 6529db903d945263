"""The options that every command speaking to nodes shares, and the nodes that they name.

Relies on typer alone.
"""

from __future__ import annotations

import os
from typing import Annotated, Final
from urllib.parse import urlsplit

import typer

from node.cli_errors import CommandError, ExitCode

DEFAULT_NODES: Final = (
    "http://127.0.0.1:8001",
    "http://127.0.0.1:8002",
    "http://127.0.0.1:8003",
)
"""Where `bitnexus up` puts its nodes by default."""
NODES_VARIABLE: Final = "BITNEXUS_NODES"

NodeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--node",
        metavar="URL",
        help=(
            "A node's HTTP address; may be repeated, any node will do. "
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


def node_urls(given: list[str] | None) -> list[str]:
    """The nodes to speak to: those given, else the environment's, else a local cluster's.

    Raises:
        CommandError: one is no HTTP address.
    """
    urls = given or _environment_urls() or list(DEFAULT_NODES)
    return [_checked(url) for url in urls]


def _environment_urls() -> list[str]:
    text = os.environ.get(NODES_VARIABLE, "")
    return [url.strip() for url in text.split(",") if url.strip()]


def _checked(url: str) -> str:
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
