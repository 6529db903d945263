"""`bitnexus checkpoint`, and `prepare`: tables in PostgreSQL for nodes that may not make theirs.

Relies on `storage.checkpoint` for the work.
"""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from node.cli_errors import CommandError, ExitCode
from node.cli_group import OneLineGroup
from node.cli_nodes import JsonOption
from node.cli_output import say, write_json

checkpoint_app = typer.Typer(
    cls=OneLineGroup, no_args_is_help=True, help="Look after the copy of the chain in PostgreSQL."
)


@checkpoint_app.callback()
def checkpoint() -> None:
    """Look after the copy of the chain in PostgreSQL."""


@checkpoint_app.command()
def prepare(
    *,
    postgres: Annotated[
        str, typer.Option(metavar="DSN", help="The database, as the owner of its tables.")
    ],
    role: Annotated[
        str | None,
        typer.Option(help="The nodes' role: it gets the right to add rows, and no other."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make the tables of the checkpoints, or bring them up to date, and grant what nodes need.

    A node does the first by itself where its role may. This is for nodes whose role may only add
    rows. It may be run again at any time.
    """
    import psycopg  # noqa: PLC0415 - a fifth of a second that only this command needs

    from storage.checkpoint import prepare as prepare_tables  # noqa: PLC0415 - as above
    from storage.checkpoint_schema import (  # noqa: PLC0415 - as above
        SCHEMA_VERSION,
        CheckpointError,
    )

    try:
        asyncio.run(prepare_tables(postgres, role=role))
    except (psycopg.Error, CheckpointError) as error:
        raise CommandError(f"PostgreSQL: {error}", ExitCode.POSTGRES) from error
    if as_json:
        write_json({"version": SCHEMA_VERSION, "role": role})
    else:
        granted = f"; {role} may add rows, and nothing else" if role else ""
        say(f"the tables are of version {SCHEMA_VERSION}{granted}")
