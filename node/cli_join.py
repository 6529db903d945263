"""What `bitnexus node init --join URL` learns of a running cluster, over HTTP and without trust.

The genesis is rebuilt from block 0 and must make the very cluster id that the node tells; whether
that is the cluster which was meant is for a person, or for `--cluster-id`, to say. Relies on
`node.client` and on the audit's way to rebuild a block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from consensus.block import InvalidBlockError
from consensus.membership import GenesisError, Member, check_members, genesis_of
from node.audit import rebuild_block
from node.cli_client import call
from node.cli_errors import CommandError, ExitCode
from node.cli_init import Introduction
from node.standing import Invitation

if TYPE_CHECKING:
    from node.api.shapes import BlockDetail, Cluster
    from node.client import LedgerClient
    from node.rebuild import Head


def introduce(url: str, *, cluster_id: str | None, timeout_s: float) -> Introduction:
    """Ask the node at `url` for its cluster; `cluster_id`, in hex, refuses every other one.

    Raises:
        CommandError: no answer, another cluster, or an answer that contradicts itself.
    """

    async def ask(ledger: LedgerClient) -> tuple[Cluster, BlockDetail]:
        return await ledger.cluster(), await ledger.block(0)

    cluster, detail = call([url], ask, timeout_s=timeout_s)
    try:
        first = rebuild_block(detail)
        genesis = genesis_of(first)
        members = tuple(
            Member(one.name, bytes.fromhex(one.public_key), one.peer, one.http)
            for one in cluster.members
        )
        check_members(members)
        invitation = Invitation(bytes.fromhex(cluster.incarnation), cluster.commit_index, members)
    except (InvalidBlockError, GenesisError, ValueError) as error:
        raise CommandError(f"{url} tells no genesis: {error}", ExitCode.VERIFY_FAILED) from error
    found = first.hash.hex()
    if found != cluster.cluster_id:
        detail_text = f"{url} says it is of cluster {cluster.cluster_id}, its block 0 makes {found}"
        raise CommandError(detail_text, ExitCode.VERIFY_FAILED)
    if cluster_id is not None and found != cluster_id.lower():
        raise CommandError(f"{url} is of cluster {found}, not {cluster_id}", ExitCode.OTHER_CLUSTER)
    return Introduction(genesis, invitation)


def refuse_other_chain(url: str, head: Head, *, timeout_s: float) -> None:
    """Ask the node at `url` whether the cluster's chain is the one that `head` ends.

    It is not where the cluster has gone on without some of those blocks: a node that holds them
    would take it for an attacker.

    Raises:
        CommandError: it is not, or the node does not know yet, or gives no answer.
    """

    async def ask(ledger: LedgerClient) -> tuple[Cluster, BlockDetail | None]:
        cluster = await ledger.cluster()
        if cluster.applied_index < head.index:
            return cluster, None
        return cluster, await ledger.block(head.index)

    cluster, found = call([url], ask, timeout_s=timeout_s)
    if found is None:
        detail = f"{url} has come to block {cluster.applied_index}, and what is restored to"
        what = f"{detail} {head.index}: ask a node that has all of it"
        raise CommandError(what, ExitCode.REFUSED)
    if found.hash != head.hash.hex():
        detail = f"block {head.index} of {url} is {found.hash}, not {head.hash.hex()}: the cluster"
        raise CommandError(f"{detail} has gone on without it", ExitCode.OTHER_CLUSTER)
