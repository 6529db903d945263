"""The command `bitnexus`: what one node's command line has, and what is done with many nodes.

Relies on `node.cli` for what speaks to one node.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cluster.cli_bench import bench_app
from cluster.simulation.faults import Fault
from node.cli import app
from node.cli_errors import CommandError, ExitCode
from node.cli_nodes import JsonOption

if TYPE_CHECKING:
    from cluster.local import ClusterOptions

__all__ = ["app", "main"]

app.add_typer(bench_app, name="bench", rich_help_panel="A local cluster")

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
ClientPortOption = Annotated[
    int | None,
    typer.Option(
        metavar="P",
        help=(
            "Client ports (ZeroMQ) of the nodes on P, P+1, ... of loopback; 0 takes free ones. "
            "(default: 9001, or free ones where HTTP has them)"
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
def up(  # noqa: PLR0913 - one argument for each option
    *,
    nodes: NodesOption = None,
    data_dir: DataDirOption = Path("data"),
    http_port: HttpPortOption = None,
    http_host: HttpHostOption = None,
    client_port: ClientPortOption = None,
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
        client_port=client_port,
    )
    raise typer.Exit(_run(options, as_json=as_json))


SeedsOption = Annotated[
    str, typer.Option(metavar="FIRST:END", help="The seeds to run, END not included; or one seed.")
]
ReplayOption = Annotated[
    int | None,
    typer.Option(metavar="SEED", help="Run one seed again and write its trace to a file."),
]
SimulatedNodesOption = Annotated[
    int, typer.Option("--nodes", min=3, max=9, help="Nodes of the simulated cluster.")
]
MinutesOption = Annotated[
    float, typer.Option(min=0.001, max=600, help="Simulated minutes under faults, for each seed.")
]
ProfileOption = Annotated[
    Literal["calm", "chaos", "disk", "network", "membership"],
    typer.Option(help="Which kinds of faults."),
]
ClientsOption = Annotated[int, typer.Option(min=1, max=100, help="Clients at work at once.")]
WithoutOption = Annotated[
    list[Fault] | None,
    typer.Option(metavar="KIND", help="A kind of fault to leave out; may be given many times."),
]
WorkersOption = Annotated[
    int | None, typer.Option(min=1, help="Processes. (default: one for each core)")
]
TraceDirOption = Annotated[
    Path, typer.Option(file_okay=False, exists=True, help="Where traces are written.")
]


@app.command(rich_help_panel="A local cluster")
def simulate(  # noqa: PLR0913 - one argument for each option
    *,
    seeds: SeedsOption = "0:100",
    replay: ReplayOption = None,
    nodes: SimulatedNodesOption = 5,
    minutes: MinutesOption = 1.0,
    profile: ProfileOption = "chaos",
    clients: ClientsOption = 6,
    without: WithoutOption = None,
    workers: WorkersOption = None,
    trace_dir: TraceDirOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Try to break whole clusters in virtual time: seeded faults, every event checked.

    The same seed gives the same run. Exit code 1 where a rule was broken: the first failing seed is
    made small, its trace is written for a person to read, and the command is shown that gives the
    small run again. KIND is a fault's name in the summary.
    """
    from cluster.cli_simulate import SimulateOptions, run_simulate  # noqa: PLC0415 - as above

    options = SimulateOptions(
        seeds=seeds,
        replay=replay,
        nodes=nodes,
        minutes=minutes,
        profile=profile,
        clients=clients,
        without=tuple(without or ()),
        workers=workers,
        trace_dir=trace_dir,
        as_json=as_json,
    )
    raise typer.Exit(run_simulate(options))


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
