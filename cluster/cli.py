"""The command `bitnexus`: what one node's command line has, and `up`, a cluster in one command.

Relies on `node.cli` for all but `up`.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from node.cli import app
from node.cli_errors import CommandError, ExitCode
from node.cli_nodes import JsonOption

if TYPE_CHECKING:
    from cluster.local import ClusterOptions

__all__ = ["app", "main"]


NodesOption = Annotated[
    int | None,
    typer.Option(help="How many nodes, 1 to 9. (default: 3, or as the folder has it)"),
]
DataDirOption = Annotated[
    Path, typer.Option(help="The cluster's folder; made where there is none.")
]
HttpPortOption = Annotated[
    int | None,
    typer.Option(
        metavar="P",
        help=(
            "HTTP of the nodes on P, P+1, ...; 0 takes free ports and keeps them. "
            "(default: 8001, or as the folder has it)"
        ),
    ),
]
HttpHostOption = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help=(
            "The address HTTP listens on; another than loopback needs --insecure-http. "
            "(default: 127.0.0.1, or as the folder has it)"
        ),
    ),
]
PostgresOption = Annotated[
    str,
    typer.Option(
        metavar="embedded|none|DSN",
        help="Checkpoints: a PostgreSQL of our own, none, or a connection string.",
    ),
]
HeartbeatOption = Annotated[
    int | None,
    typer.Option(
        metavar="MS",
        help="The leader's heartbeat; elections start after 6 to 12 of them. (default: 50)",
    ),
]
InsecureHttpOption = Annotated[
    bool,
    typer.Option(
        "--insecure-http",
        help="Allow plain HTTP, without any access control, where others can reach it.",
    ),
]
NoRestartOption = Annotated[bool, typer.Option("--no-restart", help="Leave a node dead that dies.")]


@app.command(rich_help_panel="A local cluster")
def up(  # noqa: PLR0913 - an argument for each option
    *,
    nodes: NodesOption = None,
    data_dir: DataDirOption = Path("data"),
    http_port: HttpPortOption = None,
    http_host: HttpHostOption = None,
    postgres: PostgresOption = "embedded",
    heartbeat_ms: HeartbeatOption = None,
    insecure_http: InsecureHttpOption = False,
    no_restart: NoRestartOption = False,
    as_json: JsonOption = False,
) -> None:
    """Start a local cluster with PostgreSQL checkpoints, and keep it running until Ctrl-C.

    The same command on the same folder resumes the same chain. A node that dies is started again.
    The number of nodes and their addresses are fixed when the folder is made.
    """
    from cluster.folder import Shape  # noqa: PLC0415 - not for the other commands
    from cluster.local import ClusterOptions  # noqa: PLC0415 - as above

    options = ClusterOptions(
        data_dir=data_dir,
        shape=Shape(nodes=nodes, http_host=http_host, http_port=http_port),
        postgres=_checked_postgres(postgres),
        restart=not no_restart,
        insecure_http=insecure_http,
        heartbeat_ms=heartbeat_ms,
    )
    raise typer.Exit(_run(options, as_json=as_json))


def main() -> None:
    """Run the command line and leave the process with its exit code."""
    app(prog_name="bitnexus")


def _run(options: ClusterOptions, *, as_json: bool) -> ExitCode:
    from cluster.cli_up import Voice, run_up  # noqa: PLC0415 - not for the other commands
    from cluster.errors import ClusterError  # noqa: PLC0415 - as above

    try:
        return asyncio.run(run_up(options, Voice(sys.stdout, as_json=as_json)))
    except ClusterError as error:
        for line in error.details:
            typer.echo(line, err=True)
        raise CommandError(str(error), error.code) from error


def _checked_postgres(value: str) -> str:
    """One of the two words, or a connection string that libpq can read."""
    import psycopg  # noqa: PLC0415 - not for the other commands

    if value in {"embedded", "none"}:
        return value
    try:
        psycopg.conninfo.conninfo_to_dict(value)
    except psycopg.ProgrammingError as error:
        raise CommandError(
            f"--postgres is embedded, none or a connection string: {error}", ExitCode.USAGE
        ) from error
    return value


if __name__ == "__main__":
    main()
