"""The commands that keep a chain safe and bring it back: `backup`, `checkpoint restore`, `export`.

Options and help; the work is in modules imported only by the command that needs them. Relies on
typer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from node.cli_checkpoint import checkpoint_app
from node.cli_errors import CommandError, ExitCode
from node.cli_nodes import JsonOption, node_urls

SourceFolderOption = Annotated[
    Path, typer.Option("--data-dir", help="The folder of a node, running or not, or a backup.")
]


def backup(
    *,
    data_dir: SourceFolderOption,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The folder to make; never overwritten.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Copy the committed blocks of a node, verifying each, while it runs or when it is stopped.

    The backup holds no key and no votes: it makes new nodes (`bitnexus node init --from-backup`),
    and can be verified and exported like a data folder.
    """
    from node.cli_backup import back_up  # noqa: PLC0415 - see the top

    back_up(data_dir, output, as_json=as_json)


def export(
    *,
    data_dir: SourceFolderOption,
    what: Annotated[
        Literal["blocks", "transactions"], typer.Option(help="What each line is.")
    ] = "transactions",
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The file to write; never overwritten.")
    ],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where an earlier run of the same ended.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write the committed chain as JSON lines, one for each block or each transaction, in order.

    Interrupted and resumed, or run again later, it comes to the same bytes as in one run.
    """
    from node.cli_export import export_chain  # noqa: PLC0415 - see the top

    export_chain(data_dir, output, what=what, may_resume=resume, as_json=as_json)


@checkpoint_app.command("restore")
def checkpoint_restore(
    *,
    postgres: Annotated[
        str, typer.Option(metavar="DSN", help="The database, as libpq connection string.")
    ],
    data_dir: Annotated[Path, typer.Option(help="The new node's folder; absent or empty.")],
    name: Annotated[str, typer.Option(help="The new node's name: 1 to 63 of a-z, 0-9 and -.")],
    peer: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where the other nodes reach this one.")
    ],
    http: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where clients reach it.")],
    insecure_http: Annotated[
        bool,
        typer.Option("--insecure-http", help="Allow plain HTTP on an address others can reach."),
    ] = False,
    join: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Join a running cluster: the HTTP address of any of its nodes."
        ),
    ] = None,
    cluster_id: Annotated[
        str | None, typer.Option(metavar="HEX", help="Refuse another cluster.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a new node's folder with the whole chain, from PostgreSQL alone, verifying every block.

    It has a key of its own. Ends at the first row that does not hold, names its block, exits with
    code 19, and leaves nothing.
    """
    from node.cli_init import NewNode  # noqa: PLC0415 - see the top
    from node.cli_new_node import make_restored_node  # noqa: PLC0415 - see the top
    from node.cli_restore import open_postgres  # noqa: PLC0415 - see the top

    new = NewNode(data_dir=data_dir, name=name, peer=peer, http=http, insecure_http=insecure_http)
    make_restored_node(
        new,
        open_postgres(postgres),
        join_url=join_url(join),
        cluster_id=cluster_id,
        as_json=as_json,
    )


def join_url(given: str | None) -> str | None:
    """The address of the node to join by, if there is one; raises CommandError."""
    return None if given is None else node_urls([given])[0]


def refuse_idle_cluster_id(
    cluster_id: str | None, join: str | None, from_backup: Path | None
) -> None:
    """Raise CommandError where a cluster id is given and nothing to compare it with."""
    if cluster_id is not None and join is None and from_backup is None:
        raise CommandError("--cluster-id is for --join and --from-backup", ExitCode.USAGE)
