"""The command line of a node and its clients: every command, its options and their help.

The work is in `node.cli_*`, imported only by the command that needs it, so that a command starts
quickly. `bitnexus` is this and `up` (`cluster.cli`); `python -m node.cli` is this alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from node import VERSION
from node.cli_archive import backup, export, join_url, refuse_idle_cluster_id
from node.cli_checkpoint import checkpoint_app
from node.cli_errors import CommandError, ExitCode
from node.cli_group import IndexCommand, OneLineGroup
from node.cli_member import member_app, transfer_leadership
from node.cli_nodes import JsonOption, NodeOption, TimeoutOption, node_urls

app = typer.Typer(
    cls=OneLineGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
node_app = typer.Typer(
    cls=OneLineGroup, no_args_is_help=True, help="Set up and run one node of a cluster."
)
app.add_typer(node_app, name="node", rich_help_panel="A node of your own")


FileOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help=(
            "Record every line of a file, or of standard input if it is -: one transaction as a "
            "JSON object with user_id, kind, payload and, so that the run can be repeated, id."
        ),
    ),
]
InFlightOption = Annotated[
    int,
    typer.Option(
        metavar="N",
        min=1,
        max=64,
        help="With --file: batches under way at a time; 1 keeps the order of the lines.",
    ),
]
ClientsOption = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="Open a client port (ZeroMQ under CURVE) here."),
]
ClientKeyOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY",
        help="With --clients: let in the client with this CURVE public key; may be repeated.",
    ),
]
InsecureClientsOption = Annotated[
    bool,
    typer.Option(
        "--insecure-clients",
        help="With --clients: let every client in on an address others can reach.",
    ),
]
JoinOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="Join a running cluster: the HTTP address of any of its nodes."
    ),
]
FromBackupOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER", help="Begin with the blocks of this backup, once all are verified."
    ),
]
_LEDGER = "The ledger"
_OPERATION = "Operation"


def _show_version(asked: bool) -> None:  # noqa: FBT001 - typer's way to call it
    if asked:
        typer.echo(f"bitnexus {VERSION}")
        raise typer.Exit


@app.callback()
def bitnexus(
    *,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """BitNexus Ledger: a small replicated ledger. Every command takes --json for machines."""
    assert not version, "the version is shown before anything else"


@app.command(rich_help_panel=_LEDGER)
def submit(
    *,
    user: Annotated[str | None, typer.Option(help="Whose transaction it is.")] = None,
    kind: Annotated[str | None, typer.Option(help="What it is, such as deposit.")] = None,
    payload: Annotated[
        str | None, typer.Option(metavar="JSON", help="Its content: any JSON value.")
    ] = None,
    transaction_id: Annotated[
        str | None,
        typer.Option(
            "--id", metavar="UUID", help="Its id, which makes a retry safe. (default: a new one)"
        ),
    ] = None,
    file: FileOption = None,
    in_flight: InFlightOption = 8,
    node: NodeOption = None,
    timeout: TimeoutOption = 30.0,
    as_json: JsonOption = False,
) -> None:
    """Record one transaction, or every line of a file, and show where it stands in the chain.

    With --json the receipt, or one object for each line in the order of the lines.
    """
    urls = node_urls(node, may_be_ports=True)
    if file is not None:
        if (user, kind, payload, transaction_id) != (None, None, None, None):
            raise CommandError("--file stands alone: each line says it all", ExitCode.USAGE)
        from node.cli_submit import submit_file  # noqa: PLC0415 - see the top

        submit_file(urls, file, in_flight=in_flight, timeout_s=timeout, as_json=as_json)
        return
    if user is None or kind is None or payload is None:
        raise CommandError("needs --user, --kind and --payload, or --file", ExitCode.USAGE)
    from node.cli_ledger import submit_one  # noqa: PLC0415 - see the top

    submit_one(
        urls,
        user_id=user,
        kind=kind,
        payload=payload,
        transaction_id=transaction_id,
        timeout_s=timeout,
        as_json=as_json,
    )


@app.command(rich_help_panel=_LEDGER)
def transactions(
    user: Annotated[str, typer.Argument(help="Whose transactions.")],
    *,
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="How many at most.")] = 20,
    show_all: Annotated[bool, typer.Option("--all", help="All of them, however many.")] = False,
    after: Annotated[
        str | None, typer.Option(metavar="CURSOR", help="Go on where an earlier page ended.")
    ] = None,
    oldest_first: Annotated[
        bool, typer.Option("--oldest-first", help="From the oldest on, not the newest.")
    ] = False,
    local: Annotated[
        bool,
        typer.Option("--local", help="What the node asked knows, which may lag, without a leader."),
    ] = False,
    node: NodeOption = None,
    timeout: TimeoutOption = 10.0,
    as_json: JsonOption = False,
) -> None:
    """Show the transactions of a user, newest first."""
    from node.cli_ledger import show_transactions  # noqa: PLC0415 - see the top

    show_transactions(
        node_urls(node),
        user,
        limit=None if show_all else limit,
        after=after,
        oldest_first=oldest_first,
        local=local,
        timeout_s=timeout,
        as_json=as_json,
    )


@app.command(rich_help_panel=_LEDGER)
def receipt(
    transaction_id: Annotated[str, typer.Argument(metavar="ID", help="A transaction's id.")],
    *,
    node: NodeOption = None,
    timeout: TimeoutOption = 10.0,
    as_json: JsonOption = False,
) -> None:
    """Show whether a transaction is committed, and where it stands in the chain."""
    from node.cli_ledger import show_receipt  # noqa: PLC0415 - see the top

    urls = node_urls(node, may_be_ports=True)
    code = show_receipt(urls, transaction_id, timeout_s=timeout, as_json=as_json)
    raise typer.Exit(code)


@app.command(rich_help_panel=_LEDGER, cls=IndexCommand)
def block(
    index: Annotated[str, typer.Argument(metavar="N|latest", help="Which block; genesis is 0.")],
    *,
    node: NodeOption = None,
    timeout: TimeoutOption = 10.0,
    as_json: JsonOption = False,
) -> None:
    """Show a committed block: its header, hash, signature and transactions."""
    from node.cli_ledger import show_block  # noqa: PLC0415 - see the top

    show_block(node_urls(node), index, timeout_s=timeout, as_json=as_json)


@app.command(rich_help_panel=_OPERATION)
def status(
    *,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it anew every second until Ctrl-C.")
    ] = False,
    node: NodeOption = None,
    timeout: TimeoutOption = 2.0,
    as_json: JsonOption = False,
) -> None:
    """Show every node: its role, how far it is, and what it raises alarm about."""
    from node.cli_status import show_status  # noqa: PLC0415 - see the top

    code = show_status(node_urls(node), watch=watch, timeout_s=timeout, as_json=as_json)
    raise typer.Exit(code)


@app.command(rich_help_panel=_OPERATION)
def verify(
    *,
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Walk the chain on disk in a node's folder; the node may run."),
    ] = None,
    node: NodeOption = None,
    postgres: Annotated[
        str | None,
        typer.Option(metavar="DSN", help="With --data-dir: compare PostgreSQL with that chain."),
    ] = None,
    genesis: Annotated[
        Path | None,
        typer.Option(
            help="Trust this genesis file. (default: the folder's, or what the node tells)"
        ),
    ] = None,
    timeout: TimeoutOption = 10.0,
    as_json: JsonOption = False,
) -> None:
    """Walk chains block by block, computing every hash, root and signature anew.

    With --data-dir a chain on disk and its index, with --node or without either the chains that
    nodes tell. Ends at the first block that does not hold, names it, and exits with code 19.
    """
    from node.cli_verify import show_verdicts, verify_all  # noqa: PLC0415 - see the top

    if data_dir is None and postgres is not None:
        raise CommandError("--postgres needs --data-dir to compare with", ExitCode.USAGE)
    verdicts = verify_all(
        data_dir=data_dir,
        urls=node_urls(node) if node or data_dir is None else [],
        postgres_dsn=postgres,
        genesis_file=genesis,
        timeout_s=timeout,
    )
    show_verdicts(verdicts, as_json=as_json)


app.add_typer(member_app, name="member", rich_help_panel=_OPERATION)
app.add_typer(checkpoint_app, name="checkpoint", rich_help_panel=_OPERATION)
app.command("transfer-leadership", rich_help_panel=_OPERATION)(transfer_leadership)
app.command("backup", rich_help_panel=_OPERATION)(backup)
app.command("export", rich_help_panel=_OPERATION)(export)


@node_app.command("init")
def node_init(  # noqa: PLR0913 - one argument for each option
    *,
    data_dir: Annotated[Path, typer.Option(help="The node's folder; absent or empty.")],
    name: Annotated[str, typer.Option(help="The node's name: 1 to 63 of a-z, 0-9 and -.")],
    peer: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where the other nodes reach this one.")
    ],
    http: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where clients reach it.")],
    postgres: Annotated[
        str | None,
        typer.Option(metavar="DSN", help="Where checkpoints go, as libpq connection string."),
    ] = None,
    insecure_http: Annotated[
        bool,
        typer.Option("--insecure-http", help="Allow plain HTTP on an address others can reach."),
    ] = False,
    clients: ClientsOption = None,
    client_key: ClientKeyOption = None,
    insecure_clients: InsecureClientsOption = False,
    join: JoinOption = None,
    cluster_id: Annotated[
        str | None,
        typer.Option(metavar="HEX", help="With --join or --from-backup: refuse another cluster."),
    ] = None,
    from_backup: FromBackupOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a node's folder: its secret key, its node.toml, and member.json to hand to the others.

    Refuses to overwrite anything. Next: `bitnexus node genesis` with every node's member.json, or
    with --join, where the cluster runs already, `bitnexus member add` with this one's.
    """
    from node.cli_init import NewNode  # noqa: PLC0415 - see the top
    from node.cli_new_node import make_node, make_restored_node  # noqa: PLC0415 - see the top

    refuse_idle_cluster_id(cluster_id, join, from_backup)
    if clients is None and (client_key or insecure_clients):
        detail = "--client-key and --insecure-clients are for --clients"
        raise CommandError(detail, ExitCode.USAGE)
    new = NewNode(
        data_dir=data_dir,
        name=name,
        peer=peer,
        http=http,
        postgres_dsn=postgres,
        insecure_http=insecure_http,
        client_bind=clients,
        client_keys=tuple(client_key or ()),
        insecure_clients=insecure_clients,
    )
    url = join_url(join)
    if from_backup is None:
        make_node(new, join_url=url, cluster_id=cluster_id, as_json=as_json)
        return
    from node.cli_restore import open_backup  # noqa: PLC0415 - see the top

    source = open_backup(from_backup)
    make_restored_node(new, source, join_url=url, cluster_id=cluster_id, as_json=as_json)


@node_app.command("rejoin")
def node_rejoin(
    *,
    data_dir: Annotated[Path, typer.Option(help="The folder of a node that was away.")],
    node: Annotated[
        str,
        typer.Option("--node", metavar="URL", help="The HTTP address of a node of the cluster."),
    ],
    as_json: JsonOption = False,
) -> None:
    """Tell a node who the members are now, where so many moved meanwhile that it finds none."""
    from node.cli_new_node import rejoin  # noqa: PLC0415 - see the top

    rejoin(data_dir, node_urls([node])[0], as_json=as_json)


@node_app.command("genesis")
def node_genesis(
    *,
    members: Annotated[list[Path], typer.Argument(help="The member.json of each node.")],
    cluster: Annotated[str, typer.Option(help="The cluster's name: 1 to 63 of a-z, 0-9 and -.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The file to write; never overwritten.")
    ] = Path("genesis.json"),
    as_json: JsonOption = False,
) -> None:
    """Make the genesis file of a new cluster; a copy of it goes into each node's folder."""
    from node.cli_init import cluster_id, make_genesis  # noqa: PLC0415 - see the top
    from node.cli_output import say, write_json  # noqa: PLC0415 - see the top

    genesis = make_genesis(cluster, members, output)
    names = [member.name for member in genesis.members]
    identifier = cluster_id(genesis)
    if as_json:
        write_json({"cluster_id": identifier, "file": str(output.absolute()), "members": names})
        return
    say(f"{output} begins the cluster {identifier} of {', '.join(names)}")
    say("next: put a copy into the data folder of each node, then `bitnexus node run` there")


@node_app.command("run")
def node_run(
    *,
    data_dir: Annotated[Path, typer.Option(help="The node's folder, with node.toml in it.")],
    as_json: JsonOption = False,
) -> None:
    """Run a node until SIGTERM or Ctrl-C. It says what happens as key=value lines on stderr.

    The exit code says why it ended; --json says it as one line of JSON on stdout, too.
    """
    from node.cli_output import write_json  # noqa: PLC0415 - see the top
    from node.cli_run import run_node  # noqa: PLC0415 - see the top

    try:
        run_node(data_dir)
    except CommandError as error:
        if as_json:
            write_json({"exit_code": int(error.exit_code), "error": str(error)})
        raise
    if as_json:
        write_json({"exit_code": int(ExitCode.OK), "error": None})


@node_app.command("recover")
def node_recover(
    *,
    data_dir: Annotated[Path, typer.Option(help="The folder of the node that goes on alone.")],
    unsafe: Annotated[
        bool, typer.Option("--unsafe", help="Needed: what only the others had recorded is lost.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do it. Without, only what it would do is shown.")
    ] = False,
    from_backup: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="The chain is gone, the key is not: go on with the blocks of this backup.",
        ),
    ] = None,
    insist: Annotated[
        bool,
        typer.Option(
            "--although-they-answer", help="Do it while others still answer: two ledgers may be."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Go on with one stopped node of a cluster that has lost its majority for good.

    Recorded transactions may be lost, so only when the other nodes will never run again. Of the
    nodes that are left take the one whose last block has the highest term, and only among equals
    the one with the longest chain. Without --yes nothing is changed.
    """
    if not unsafe:
        raise CommandError(
            "this may lose recorded transactions: say --unsafe, and see README, "
            '"When a majority is gone for good"',
            ExitCode.USAGE,
        )
    from node.cli_recover import Wish, recover_node  # noqa: PLC0415 - see the top

    wish = Wish(is_meant=yes, is_insisted=insist)
    recover_node(data_dir, wish, backup=from_backup, as_json=as_json)


def main() -> None:
    """Run the command line and leave the process with its exit code."""
    app(prog_name="python -m node.cli")


if __name__ == "__main__":
    main()
