"""Who of a cluster's members still runs, asked one by one from outside.

For a person about to give them up: whoever answers under the cluster's id is not gone. Silence
proves nothing. Relies on each node's HTTP face.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

import httpx
import msgspec

from node.api.shapes import Cluster

if TYPE_CHECKING:
    from collections.abc import Sequence

    from consensus.membership import Member

ASK_TIMEOUT_S: Final = 2.0


def who_answers(members: Sequence[Member], cluster_id: bytes) -> tuple[Member, ...]:
    """Return those at whose HTTP address a node of that cluster answers, in their order."""
    if not members:
        return ()
    with ThreadPoolExecutor(max_workers=len(members)) as askers:
        answers = askers.map(lambda member: _answers(member, cluster_id), members)
        return tuple(m for m, is_there in zip(members, answers, strict=True) if is_there)


def _answers(member: Member, cluster_id: bytes) -> bool:
    url = f"http://{member.http}/api/v1/cluster"
    try:
        response = httpx.get(url, timeout=ASK_TIMEOUT_S, trust_env=False)
        told = msgspec.json.decode(response.content, type=Cluster)
    except (httpx.HTTPError, httpx.InvalidURL, msgspec.MsgspecError):
        return False
    return told.cluster_id == cluster_id.hex()
