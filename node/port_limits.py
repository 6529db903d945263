"""What a client may ask of the client port, and why a connection is dropped that asks for more.

Times are in seconds. Relies on nothing but the largest message; `node.client_port` keeps to it.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from enum import StrEnum, unique
from typing import TYPE_CHECKING

from node.port_messages import MAX_MESSAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True, kw_only=True)
class PortLimits:
    """The limits of one port, checked when made."""

    connections: int = 1_024
    connections_per_source: int = 512
    """From one IPv4 address, or one IPv6 network of 64 bits."""
    handshake_s: float = 2.0
    arrival_s: float = 30.0
    """How long one message may take to arrive: one that never ends must not hold memory."""
    ping_after_s: float = 15.0
    """A client that was silent so long is asked for a sign of life (ZMTP 3.1)."""
    silent_s: float = 45.0
    unpinged_silent_s: float = 600.0
    """The same for a client of ZMTP 3.0, which knows no PING."""
    unread_s: float = 30.0
    """How long a client may leave answers unread once its network's buffers are full."""
    unanswered_requests: int = 1_024
    """Beyond this nothing more is read from a connection until some are answered."""
    unanswered_transactions: int = 20_000
    """The same, in transactions; two of the largest batches."""
    large_bytes: int = 64 << 10
    """A message beyond this needs room among all that are arriving or waiting, `large_total`."""
    large_total_bytes: int = 64 << 20
    unsent_bytes: int = 4 << 20
    """Answers that may wait for one client to read them."""
    unsent_total_bytes: int = 64 << 20
    """Answers that may wait for clients that do not read, in all."""
    tick_s: float = 0.25
    """How often the times are looked at; they are kept to within this."""
    turn_s: float = 0.005
    """How long the port may hold the loop at a time; heartbeats are due every 50 ms."""
    stop_s: float = 5.0
    """How long a stop waits for answers that are under way; then they are "unknown"."""

    def __post_init__(self) -> None:
        """Assert that no limit makes another one senseless."""
        assert self.large_total_bytes > MAX_MESSAGE_BYTES + self.large_bytes
        assert self.ping_after_s < self.silent_s <= self.unpinged_silent_s
        assert self.unanswered_requests > 0
        assert self.unanswered_transactions > 0


@unique
class Dropped(StrEnum):
    """Why a connection was dropped whose ZMTP was in order; see `node.zmtp.Fault` for the rest."""

    HANDSHAKE_TIME = "handshake_time"
    """It took too long to say who it is."""
    CROWDED_OUT = "crowded_out"
    """It had not said who it is when there was no room left."""
    ARRIVAL_TIME = "arrival_time"
    """A message took too long to arrive."""
    SILENT = "silent"
    """No sign of life."""
    UNREAD = "unread"
    """It does not read its answers."""
    UNDECODABLE = "undecodable"
    """A message that is no list of requests."""
    NODE_FAULT = "node_fault"
    """A fault of our own, which the log has."""


class LargeRoom:
    """The room for large messages of all connections, given in the order of asking.

    Who has to wait reads nothing more meanwhile, so that what is held stays within the limit, give
    or take what one read brings.
    """

    def __init__(self, limit_bytes: int) -> None:
        """`limit_bytes` is more than any one message needs."""
        self._limit_bytes = limit_bytes
        self._held: dict[object, int] = {}
        self._waiting: dict[object, tuple[int, Callable[[], None]]] = {}
        self.used_bytes = 0

    def hold(self, who: object, size_bytes: int, on_room: Callable[[], None]) -> bool:
        """Holds so much for `who` instead of what it held; False: later, by a call of `on_room`."""
        self._waiting.pop(who, None)
        more = size_bytes - self._held.get(who, 0)
        is_free = self.used_bytes + more <= self._limit_bytes and not self._waiting
        if more > 0 and not is_free:
            self._waiting[who] = (size_bytes, on_room)
            return False
        self._set(who, size_bytes)
        if more < 0:
            self._serve()
        return True

    def leave(self, who: object) -> None:
        """`who` needs nothing any more."""
        self._waiting.pop(who, None)
        self._set(who, 0)
        self._serve()

    def _set(self, who: object, size_bytes: int) -> None:
        self.used_bytes += size_bytes - self._held.pop(who, 0)
        if size_bytes:
            self._held[who] = size_bytes

    def _serve(self) -> None:
        while self._waiting:
            who, (size_bytes, on_room) = next(iter(self._waiting.items()))
            if self.used_bytes + size_bytes - self._held.get(who, 0) > self._limit_bytes:
                return
            del self._waiting[who]
            self._set(who, size_bytes)
            on_room()


def source_of(host: str) -> str:
    """What counts as one source of connections: an IPv4 address, or an IPv6 network of 64 bits."""
    address = ipaddress.ip_address(host)
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            return address.packed[:8].hex()
        address = address.ipv4_mapped
    return str(address)
