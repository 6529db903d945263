"""One sending connection to one peer: a PUSH that is opened anew whenever it breaks.

libzmq tries again by itself while nobody listens at the endpoint. Once there was a connection and
it broke, this module does: libzmq would reconnect after some faults, but gives up for ever after
others (a refused key, bytes that are no ZMTP), and its events do not tell which. A fresh socket
also holds nothing stale. Where the peer's name has several endpoints, they are tried in turn. A
link that cannot even be opened is tried later: it is no reason to stop. Relies on `node.zmq_loop`,
and on `node.route` for endpoints, which libzmq reads without asking anybody.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import zmq

from node.zmq_loop import Monitor, SocketHub, cause_of

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from node.identity import Identity
    from node.route import Route

HANDSHAKE_MS: Final = 1_000
"""How long the other side may take to prove its key: hundreds of silent connections cost little."""
_CONNECT_MS: Final = 2_000
_RECONNECT_MS: Final = 20
_RECONNECT_MAX_MS: Final = 500
_MAX_ANSWER_BYTES: Final = 4 * 1024
"""The most a peer may send back: handshakes and pongs, never a message."""
_EVENTS: Final = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """How a link behaves."""

    high_water_mark: int
    """Messages that may wait for the network."""
    heartbeat_ms: int
    heartbeat_timeout_ms: int
    """Silence after which either side drops the connection."""


class Link:
    """Sends to one peer, encrypted for one key, and keeps the connection up."""

    def __init__(
        self,
        hub: SocketHub,
        *,
        settings: LinkSettings,
        route: Route,
        server_key: bytes,
        identity: Identity,
        on_change: Callable[[Link], None],
        on_obstacle: Callable[[str], None],
    ) -> None:
        """Open nothing yet: see `follow`.

        `on_change` hears when `connected` turned true, and when it turned false because the
        connection broke: not when this side closes it. `on_obstacle` hears each time that no socket
        can be had, or none for this endpoint, with the cause.
        """
        self._hub = hub
        self._settings = settings
        self._route = route
        self._server_key = server_key
        self._identity = identity
        self._on_change = on_change
        self._on_obstacle = on_obstacle
        self._endpoint: str | None = None
        self._retry_ms = _RECONNECT_MS
        self._retry: asyncio.TimerHandle | None = None
        self._push: zmq.Socket[bytes] | None = None
        self._monitor: Monitor | None = None
        self.connected = False
        self.obstacle: str | None = None

    def follow(self) -> None:
        """Connect where the route leads, unless this is connected or being tried already."""
        if self.connected or self._endpoint in self._route.endpoints or not self._route.endpoints:
            return
        self.close()
        self._endpoint = self._route.endpoints[0]
        self._open()

    def send(self, message: bytes) -> bool:
        """Queue a message; False where there is no connection or no room."""
        push = self._push
        if push is None:
            return False
        if _queue(push, message):
            return True
        # News of a connection, or of room, waits in the socket's mailbox. Sending looks there once
        # a millisecond at most, reading EVENTS always.
        return bool(int(push.getsockopt(zmq.EVENTS)) & zmq.POLLOUT) and _queue(push, message)

    def close(self) -> None:
        """Close; what is queued is lost. Harmless when repeated."""
        self.connected = False
        if self._retry is not None:
            self._retry.cancel()
        if self._monitor is not None:
            self._monitor.close()
        if self._push is not None:
            self._push.close()
        self._retry = self._monitor = self._push = None

    def _open(self) -> None:
        """Begin to connect to the endpoint; where that cannot be, later to the next one."""
        assert self._endpoint is not None, "a route leads somewhere"
        events = _EVENTS | zmq.EVENT_CONNECT_RETRIED if self._route.changes else _EVENTS
        try:
            self._push = _push(self._hub, self._settings, self._identity)
            self._push.setsockopt(zmq.CURVE_SERVERKEY, self._server_key)
            self._push.setsockopt(zmq.IPV6, self._endpoint.startswith("["))
            self._monitor = Monitor(self._hub, self._push, events, self._on_event)
            self._push.connect(f"tcp://{self._endpoint}")
        except zmq.ZMQError as error:
            self._give_up()
            self.obstacle = cause_of(error)
            self._on_obstacle(self.obstacle)
        else:
            self.obstacle = None

    def _on_event(self, event: int) -> None:
        was_connected = self.connected
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self.connected = True
            self._retry_ms = _RECONNECT_MS
            self._route.reached()
        elif event == zmq.EVENT_DISCONNECTED:
            self._give_up()
        else:
            self._on_nobody_there()
        if self.connected != was_connected:
            self._on_change(self)

    def _on_nobody_there(self) -> None:
        """Libzmq tries one endpoint again by itself; it knows neither another nor another name."""
        if len(self._route.endpoints) > 1:
            self._give_up()
        else:
            self._route.refresh()

    def _give_up(self) -> None:
        """Close, and try again later: where it was connected, or else the next endpoint."""
        if not self.connected:
            self._endpoint = _following(self._endpoint, self._route.endpoints)
        self.close()
        self._retry = self._hub.call_later(self._retry_ms / 1_000, self._open)
        self._retry_ms = min(2 * self._retry_ms, _RECONNECT_MAX_MS)
        self._route.refresh()


def _following(endpoint: str | None, endpoints: tuple[str, ...]) -> str:
    """The next one in turn; the first where this is the last, or is known no more."""
    if endpoint not in endpoints:
        return endpoints[0]
    return endpoints[(endpoints.index(endpoint) + 1) % len(endpoints)]


def _push(hub: SocketHub, settings: LinkSettings, identity: Identity) -> zmq.Socket[bytes]:
    push = hub.socket(zmq.PUSH)
    push.setsockopt(zmq.CURVE_PUBLICKEY, identity.curve_public_z85)
    push.setsockopt(zmq.CURVE_SECRETKEY, identity.curve_secret_z85)
    push.setsockopt(zmq.IMMEDIATE, 1)  # nothing waits for a peer that is not there
    push.setsockopt(zmq.SNDHWM, settings.high_water_mark)
    push.setsockopt(zmq.RCVHWM, 1)
    push.setsockopt(zmq.MAXMSGSIZE, _MAX_ANSWER_BYTES)
    push.setsockopt(zmq.CONNECT_TIMEOUT, _CONNECT_MS)
    push.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    push.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
    push.setsockopt(zmq.RECONNECT_IVL_MAX, _RECONNECT_MAX_MS)
    push.setsockopt(zmq.HEARTBEAT_IVL, settings.heartbeat_ms)
    push.setsockopt(zmq.HEARTBEAT_TIMEOUT, settings.heartbeat_timeout_ms)
    push.setsockopt(zmq.HEARTBEAT_TTL, settings.heartbeat_timeout_ms)
    return push


def _queue(push: zmq.Socket[bytes], message: bytes) -> bool:
    try:
        push.send(message, zmq.DONTWAIT)
    except zmq.Again:
        return False
    return True
