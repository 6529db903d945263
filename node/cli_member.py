"""The commands `bitnexus member …` and `bitnexus transfer-leadership`: options and help.

The work is in `node.cli_members`, imported only by the command that needs it. Relies on typer.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from node.cli_errors import CommandError, ExitCode
from node.cli_group import OneLineGroup
from node.cli_nodes import JsonOption, NodeOption, TimeoutOption, node_urls

if TYPE_CHECKING:
    from node.api.shapes import NewMember

member_app = typer.Typer(
    cls=OneLineGroup, no_args_is_help=True, help="See and change the members of a cluster."
)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The member's name.")]
PeerOption = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="Where the other nodes reach it.")
]
HttpOption = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="Where clients reach it.")
]
MemberFileOption = Annotated[
    Path, typer.Option("--file", metavar="FILE", help="The member.json that `node init` wrote.")
]
WaitOption = Annotated[
    bool, typer.Option("--wait", help="Wait until it has caught up and votes, showing how far.")
]
WaitTimeoutOption = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS",
        min=0.001,
        help="With --wait: how long at most, then exit code 25. (default: until it votes)",
        show_default=False,
    ),
]


@member_app.command("list")
def member_list(
    *, node: NodeOption = None, timeout: TimeoutOption = 10.0, as_json: JsonOption = False
) -> None:
    """Show the members, their roles and addresses, and, asked at the leader, what each has saved.

    A learner is sent all blocks and does not vote yet.
    """
    from node.cli_members import show_members  # noqa: PLC0415 - see the top

    show_members(node_urls(node), timeout_s=timeout, as_json=as_json)


@member_app.command("add")
def member_add(  # noqa: PLR0913 - one for each option
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Its name; or all of it by --file.")
    ] = None,
    *,
    public_key: Annotated[
        str | None, typer.Option(metavar="HEX", help="Its public key, 64 hex digits.")
    ] = None,
    peer: PeerOption = None,
    http: HttpOption = None,
    file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The member.json that `node init` wrote, for all four."),
    ] = None,
    wait: WaitOption = False,
    wait_timeout: WaitTimeoutOption = None,
    node: NodeOption = None,
    timeout: TimeoutOption = 30.0,
    as_json: JsonOption = False,
) -> None:
    """Add a member: it is sent all blocks first, and votes by itself once it has caught up.

    Start its node before or after; it cannot catch up while it does not run. With --wait, --json
    tells the change first, and the member once it votes.
    """
    from node.cli_members import add, wait_promoted  # noqa: PLC0415 - see the top

    _check_wait(wait=wait, wait_timeout=wait_timeout)
    new = _newcomer(name, public_key, peer, http, file)
    urls = node_urls(node)
    add(urls, new, timeout_s=timeout, as_json=as_json)
    if wait:
        wait_promoted(
            urls, new.name, timeout_s=timeout, wait_timeout_s=wait_timeout, as_json=as_json
        )


@member_app.command("promote")
def member_promote(
    name: NameArgument,
    *,
    node: NodeOption = None,
    timeout: TimeoutOption = 30.0,
    as_json: JsonOption = False,
) -> None:
    """Make a learner that has caught up a voter now; it becomes one by itself as well."""
    from node.cli_members import promote  # noqa: PLC0415 - see the top

    promote(node_urls(node), name, timeout_s=timeout, as_json=as_json)


@member_app.command("move")
def member_move(
    name: NameArgument,
    *,
    peer: PeerOption = None,
    http: HttpOption = None,
    node: NodeOption = None,
    timeout: TimeoutOption = 30.0,
    as_json: JsonOption = False,
) -> None:
    """Tell the cluster other addresses of a member; what is not given stays as it is.

    Then change node.toml on its machine, where it says them too, and start it there.
    """
    from node.cli_members import move  # noqa: PLC0415 - see the top

    if peer is None and http is None:
        raise CommandError("needs --peer, --http, or both", ExitCode.USAGE)
    move(node_urls(node), name, peer=peer, http=http, timeout_s=timeout, as_json=as_json)


@member_app.command("remove")
def member_remove(
    name: NameArgument,
    *,
    node: NodeOption = None,
    timeout: TimeoutOption = 30.0,
    as_json: JsonOption = False,
) -> None:
    """Remove a member for good, running or dead. Its key never comes back; stop its node then."""
    from node.cli_members import remove  # noqa: PLC0415 - see the top

    remove(node_urls(node), name, timeout_s=timeout, as_json=as_json)


@member_app.command("replace")
def member_replace(
    old: Annotated[str, typer.Argument(metavar="OLD", help="The member that goes.")],
    *,
    file: MemberFileOption,
    wait: WaitOption = False,
    wait_timeout: WaitTimeoutOption = None,
    node: NodeOption = None,
    timeout: TimeoutOption = 30.0,
    as_json: JsonOption = False,
) -> None:
    """Remove the member OLD, then add the new one of FILE, which learns and then votes.

    For a node that is dead for good or has lost its disk: so the majority never grows by one that
    cannot vote. A node that still runs is better replaced the other way round, `member add --wait`
    first and `member remove` then, so that the cluster is never smaller in between.
    """
    from node.cli_members import (  # noqa: PLC0415 - see the top
        read_member,
        replace,
        wait_promoted,
    )

    _check_wait(wait=wait, wait_timeout=wait_timeout)
    new, urls = read_member(file), node_urls(node)
    replace(urls, old, new, timeout_s=timeout, as_json=as_json)
    if wait:
        wait_promoted(
            urls, new.name, timeout_s=timeout, wait_timeout_s=wait_timeout, as_json=as_json
        )


def transfer_leadership(
    *,
    to: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Which voter. (default: whoever is closest)"),
    ] = None,
    node: NodeOption = None,
    timeout: TimeoutOption = 10.0,
    as_json: JsonOption = False,
) -> None:
    """Let another member lead, before the leader's machine is stopped or serviced."""
    from node.cli_members import transfer  # noqa: PLC0415 - see the top

    transfer(node_urls(node), to, timeout_s=timeout, as_json=as_json)


def _check_wait(*, wait: bool, wait_timeout: float | None) -> None:
    if wait_timeout is not None and not wait:
        raise CommandError("--wait-timeout needs --wait", ExitCode.USAGE)


def _newcomer(
    name: str | None, public_key: str | None, peer: str | None, http: str | None, file: Path | None
) -> NewMember:
    """Return the new member as the options or the file describe it; raises CommandError."""
    from node.api.shapes import NewMember  # noqa: PLC0415 - see the top
    from node.cli_members import read_member  # noqa: PLC0415 - see the top

    if file is not None:
        if (name, public_key, peer, http) != (None, None, None, None):
            raise CommandError("--file stands alone: it says it all", ExitCode.USAGE)
        return read_member(file)
    if name is None or public_key is None or peer is None or http is None:
        detail = "needs NAME, --public-key, --peer and --http, or --file"
        raise CommandError(detail, ExitCode.USAGE)
    return NewMember(name=name, public_key=public_key, peer=peer, http=http)
