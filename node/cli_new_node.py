"""What `bitnexus node init` and `node rejoin` do with a folder, and which commands come next.

Relies on `node.cli_init` for the folder, and on `node.cli_join` where the cluster runs already.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from consensus.membership import GenesisError
from node.cli_errors import CommandError, ExitCode
from node.cli_init import cluster_id as genesis_id
from node.cli_init import init_node, replace_invitation
from node.cli_output import say, write_json
from node.config import ConfigError, load_config
from node.identity import IdentityError
from node.standing import JOIN_FILE, MEMBER_FILE, load_standing

if TYPE_CHECKING:
    from pathlib import Path

    from consensus.membership import Member
    from node.cli_init import Introduction, NewNode
    from node.cli_restore import Source
    from node.rebuild import Head
    from node.standing import Standing


ASK_S: Final = 10.0
"""How long the node of a running cluster may take to answer."""


def make_node(new: NewNode, *, join_url: str | None, cluster_id: str | None, as_json: bool) -> None:
    """Make the folder of `new` and say what comes next; `cluster_id` refuses another cluster.

    Raises:
        CommandError: nothing was made, or not all of it could be written.
    """
    cluster = None
    if join_url is not None:
        from node.cli_join import introduce  # noqa: PLC0415 - brings the HTTP client

        cluster = introduce(join_url, cluster_id=cluster_id, timeout_s=ASK_S)
    member = init_node(new, cluster)
    _tell(new, member, cluster, join_url=join_url, head=None, as_json=as_json)


def make_restored_node(
    new: NewNode, source: Source, *, join_url: str | None, cluster_id: str | None, as_json: bool
) -> None:
    """As `make_node`, with a chain that begins with the blocks of `source`, each verified.

    Raises:
        CommandError: nothing was made; the first block that does not hold is named.
    """
    from node.cli_restore import (  # noqa: PLC0415 - brings the audit
        make_restored,
        refuse_other_cluster,
    )

    refuse_other_cluster(source, cluster_id)
    cluster = None
    if join_url is not None:
        from node.cli_join import introduce, refuse_other_chain  # noqa: PLC0415 - HTTP client

        expected = source.head.cluster_id.hex()
        cluster = introduce(join_url, cluster_id=expected, timeout_s=ASK_S)
        refuse_other_chain(join_url, source.head, timeout_s=ASK_S)
    made = make_restored(new, source, cluster)
    _tell(new, made.member, made.cluster, join_url=join_url, head=source.head, as_json=as_json)


def _tell(
    new: NewNode,
    member: Member,
    cluster: Introduction | None,
    *,
    join_url: str | None,
    head: Head | None,
    as_json: bool,
) -> None:
    """Say what was made, and which commands come next."""
    file = new.data_dir / MEMBER_FILE
    if as_json:
        made: dict[str, object] = {
            "name": member.name,
            "public_key": member.public_key.hex(),
            "peer": member.peer,
            "http": member.http,
            "data_dir": str(new.data_dir.absolute()),
            "member_file": str(file.absolute()),
        }
        made |= {} if cluster is None else _cluster_document(cluster)
        write_json(
            made if head is None else made | {"through": head.index, "hash": head.hash.hex()}
        )
        return
    say(f"{new.data_dir} is made for {member.name}, public key {member.public_key.hex()}")
    if head is not None:
        say(f"its chain holds through block {head.index}, {head.hash.hex()}")
    if cluster is None:
        say(f"next: hand {file} to whoever runs `bitnexus node genesis`,")
        say(f"      put the genesis.json you get into {new.data_dir},")
        say(f"      then `bitnexus node run --data-dir {new.data_dir}`")
        return
    _say_joining(new.data_dir, file, join_url, cluster)


def rejoin(data_dir: Path, url: str, *, as_json: bool) -> None:
    """Tell the node of a folder anew who the members are and where, as the node at `url` knows.

    Raises:
        CommandError: a file of the folder is missing or wrong, no answer, another cluster, or one
            that this node is no member of.
    """
    from node.cli_join import introduce  # noqa: PLC0415 - brings the HTTP client

    standing = _standing_of(data_dir)
    expected = genesis_id(standing.genesis)
    cluster = introduce(url, cluster_id=expected, timeout_s=ASK_S)
    members = cluster.invitation.members
    if standing.identity.public_key not in {member.public_key for member in members}:
        detail = (
            f"{data_dir} is of no member of this cluster: to come back, make a new folder "
            f"(`bitnexus node init --join {url}`) and add that one"
        )
        raise CommandError(detail, ExitCode.REFUSED)
    replace_invitation(data_dir, cluster.invitation)
    if as_json:
        write_json(_cluster_document(cluster))
        return
    say(f"{data_dir / JOIN_FILE} names {', '.join(member.name for member in members)}")
    say("it holds from the next start of the node until its chain has come that far")


def _standing_of(data_dir: Path) -> Standing:
    try:
        config = load_config(data_dir)
        try:
            return load_standing(config)
        except GenesisError as error:
            raise CommandError(f"{config.genesis_file}: {error}", ExitCode.CONFIG) from error
    except (ConfigError, IdentityError) as error:
        raise CommandError(str(error), ExitCode.CONFIG) from error


def _cluster_document(cluster: Introduction) -> dict[str, object]:
    return {
        "cluster_id": genesis_id(cluster.genesis),
        "incarnation": cluster.invitation.incarnation.hex(),
        "cluster": cluster.genesis.name,
        "members": [member.name for member in cluster.invitation.members],
    }


def _say_joining(data_dir: Path, file: Path, join_url: str | None, cluster: Introduction) -> None:
    names = ", ".join(member.name for member in cluster.invitation.members)
    if join_url is None:
        say(f"it is of the cluster {cluster.genesis.name} of {names}, whose id is")
        say(f"      {genesis_id(cluster.genesis)}")
        say("      compare that with what you know it should be; it is no member, and reads alone")
        say(f"next: bitnexus verify --data-dir {data_dir}, or bitnexus export, or see README,")
        say('      "Backups", for how to go on')
        return
    say(f"it joins the cluster {cluster.genesis.name} of {names}, whose id is")
    say(f"      {genesis_id(cluster.genesis)}")
    say("      compare that with what another node's `bitnexus status --json` shows")
    say(f"next: bitnexus node run --data-dir {data_dir}")
    say(f"      bitnexus member add --file {file} --node {join_url}")
