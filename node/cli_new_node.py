"""What `bitnexus node init` says of the folder it has made, and which commands come next.

Relies on `node.cli_init` for the folder, and on `node.cli_join` where the cluster runs already.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from node.cli_init import cluster_id as genesis_id
from node.cli_init import init_node
from node.cli_output import say, write_json
from node.standing import MEMBER_FILE

if TYPE_CHECKING:
    from pathlib import Path

    from node.cli_init import Introduction, NewNode


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
