"""Is a request meant for this server? A guard against pages that rebind their name to this machine.

While plain HTTP is open to this machine alone, that is the only access control there is. A web page
whose name was made to point here (DNS rebinding) comes with its own name in Host, and is refused.
Relies on RFC 9112 §3.2: an HTTP/1.1 request has exactly one Host.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from node.api.problems import ProblemError, ProblemKind, fault_error, make_problem
from node.config import is_loopback

if TYPE_CHECKING:
    from node.api.reply import Scope

_HOST: Final = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]/@ ]+)(:[0-9]{0,5})?")


def refuse_other_origin(scope: Scope) -> None:
    """Raise ProblemError for a change that a web page of another origin asks for.

    A browser lets any page send such a call where it needs no leave (a POST without a body), and
    names the page's origin with it. Programs that are no browser send none.
    """
    origins = [value for name, value in scope["headers"] if name == b"origin"]
    hosts = [value for name, value in scope["headers"] if name == b"host"]
    # Without its scheme: a proxy in front may speak TLS, and nobody else's page has this host.
    sites = [origin.partition(b"://")[2].lower() for origin in origins]
    if sites and sites != [host.lower() for host in hosts]:
        detail = "Origin names another site than Host"
        raise ProblemError(make_problem(ProblemKind.CROSS_ORIGIN, detail))


def host_name(scope: Scope) -> str | None:
    """Return the name by which the client reached this server, without port and brackets."""
    hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
    match = _HOST.fullmatch(hosts[0]) if hosts else None
    return None if match is None else match[1].strip("[]")


class HostCheck:
    """Checks the Host of each request."""

    def __init__(self, listening_on: str) -> None:
        """`listening_on` is the address of the server. On any but loopback every name will do."""
        self._is_local = is_loopback(listening_on)
        self._own = listening_on.lower()
        self._is_ours = lru_cache(maxsize=256)(self._names_us)

    def __call__(self, scope: Scope) -> None:
        """Raise ProblemError for a request without one Host, or with that of another server."""
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1 and not (scope["http_version"] == "1.0" and not hosts):
            raise fault_error(ProblemKind.INVALID_REQUEST, "header.Host", "must be there once")
        if hosts and not self._is_ours(hosts[0]):
            problem = make_problem(ProblemKind.MISDIRECTED, "Host does not name this server")
            raise ProblemError(problem)

    def _names_us(self, host: bytes) -> bool:
        match = _HOST.fullmatch(host.decode("latin-1"))
        if match is None:
            return False
        name = match[1].strip("[]").lower()
        return not self._is_local or name == self._own or is_loopback(name)
