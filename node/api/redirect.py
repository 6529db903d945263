"""Sends a client on to the node that leads.

The address is the leader's own word, from the membership: `host:port` as clients reach it. A
wildcard is every address of that machine, and no client can go there, so another name of the same
machine stands in. Relies on what the node knows of its cluster.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from node.api.host import host_name
from node.api.problems import ProblemKind, make_problem, problem_reply
from node.config import is_loopback, join_address, split_address
from node.http_place import is_unspecified, share_http

if TYPE_CHECKING:
    from consensus.membership import Member
    from node.api.reply import Reply, Scope
    from node.outcomes import ClusterStatus

_RETRY_AFTER_S: Final = 1


def leader_reply(status: ClusterStatus, scope: Scope) -> Reply:
    """Return 307 to the same call at the leader, or 503 where no leader can be reached."""
    members = {seen.member.name: seen.member for seen in status.members}
    leader = None if status.leader is None else members.get(status.leader)
    if leader is None or leader.name == status.node:
        detail = "no leader is known here; ask again"
        problem = make_problem(ProblemKind.NO_LEADER, detail, retry_after_s=_RETRY_AFTER_S)
        return problem_reply(problem)
    address = _reachable(leader, own=members.get(status.node), reached_as=host_name(scope))
    if address is None:
        detail = f"{leader.name} leads, and takes HTTP from its own machine alone: ask there"
        problem = make_problem(ProblemKind.UNAVAILABLE, detail, retry_after_s=_RETRY_AFTER_S)
        return problem_reply(problem)
    own = members.get(status.node)
    if own is not None and share_http(leader, own):
        shared = f"its address {address} is this node's own"
        detail = f"{leader.name} leads, but {shared}; ask it with --node"
        problem = make_problem(ProblemKind.UNAVAILABLE, detail, retry_after_s=_RETRY_AFTER_S)
        return problem_reply(problem)
    target = scope["raw_path"]
    if scope["query_string"]:
        target += b"?" + scope["query_string"]
    location = f"{scope['scheme']}://{address}".encode("ascii") + target
    detail = f"{leader.name} leads, and its address is {address}"
    problem = make_problem(ProblemKind.NOT_LEADER, detail)
    return problem_reply(problem, ((b"location", location),))


def _reachable(leader: Member, *, own: Member | None, reached_as: str | None) -> str | None:
    """Return where a client of this node reaches the leader; None where it cannot.

    Peers on loopback, or on this node's own host, are on this very machine.
    """
    host, port = split_address(leader.http)
    peer_host = split_address(leader.peer)[0]
    is_here = is_loopback(peer_host) or (
        own is not None and split_address(own.peer)[0] == peer_host
    )
    if is_unspecified(host):
        host = reached_as if is_here and reached_as is not None else peer_host
    elif is_loopback(host) and not is_here:
        return None
    return join_address(host, port)
