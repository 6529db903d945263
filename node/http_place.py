"""Whether two members are reached by clients at one address, so that a redirect could go wrong.

The chain does not forbid it: a loopback or wildcard address is another one on each machine. Relies
on the configuration's addresses.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from node.config import is_loopback, split_address

if TYPE_CHECKING:
    from consensus.membership import Member


def share_http(one: Member, other: Member) -> bool:
    """Whether clients that go to either arrive at the same place; `one` is well-formed."""
    if one.http != other.http:
        return False
    host = split_address(one.http)[0]
    if not is_loopback(host) and not is_unspecified(host):
        return True
    return one.peer.rpartition(":")[0] == other.peer.rpartition(":")[0]


def is_unspecified(host: str) -> bool:
    """Whether a host is a wildcard: every address of its machine."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
