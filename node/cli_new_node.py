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

    from node.cli_init import Introduction, NewNode
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
    file = new.data_dir / MEMBER_FILE
    if as_json:
        made = {
            "name": member.name,
            "public_key": member.public_key.hex(),
            "peer": member.peer,
            "http": member.http,
            "data_dir": str(new.data_dir.absolute()),
            "member_file": str(file.absolute()),
        }
        write_json(made if cluster is None else made | _cluster_document(cluster))
        return
    say(f"{new.data_dir} is made for {member.name}, public key {member.public_key.hex()}")
    if cluster is None or join_url is None:
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


def _say_joining(data_dir: Path, file: Path, join_url: str, cluster: Introduction) -> None:
    names = ", ".join(member.name for member in cluster.invitation.members)
    say(f"it joins the cluster {cluster.genesis.name} of {names}, whose id is")
    say(f"      {genesis_id(cluster.genesis)}")
    say("      compare that with what another node's `bitnexus status --json` shows")
    say(f"next: bitnexus node run --data-dir {data_dir}")
    say(f"      bitnexus member add --file {file} --node {join_url}")
