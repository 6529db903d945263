"""What a supervisor asks of a node: its view of the cluster, by one plain HTTP request.

Made for polling processes that may not be there yet: every failure is "no view". Relies on the
standard library's HTTP client, which costs nothing to import, and on the shape of
`GET /api/v1/cluster`.
"""

from __future__ import annotations

import http.client
from http import HTTPStatus
from typing import Final

import msgspec

from node.config import split_address, url_of

_PATH: Final = "/api/v1/cluster"


class MemberView(msgspec.Struct, frozen=True):
    """A member as one node sees it."""

    name: str
    role: str


class ClusterView(msgspec.Struct, frozen=True):
    """The cluster as `node` sees it; `leader` is a name."""

    node: str
    leader: str | None
    term: int
    members: tuple[MemberView, ...]

    @property
    def is_leader(self) -> bool:
        """Whether the node that tells this leads."""
        return self.leader == self.node

    def role_of(self, name: str) -> str:
        """The role of a member, as this node sees it."""
        return next((member.role for member in self.members if member.name == name), "unknown")


def fetch_view(address: str, *, timeout_s: float) -> ClusterView | None:
    """The view of the node whose HTTP is at `address`; None where none comes in time."""
    place = url_of(address).removeprefix("http://")
    connection = http.client.HTTPConnection(*split_address(place), timeout=timeout_s)
    try:
        connection.request("GET", _PATH)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != HTTPStatus.OK:
            return None
        return msgspec.json.decode(body, type=ClusterView)
    except (OSError, http.client.HTTPException, msgspec.DecodeError):
        return None
    finally:
        connection.close()
