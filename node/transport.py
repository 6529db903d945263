"""Messages between members: who may send, who has sent, and what is dropped.

One PULL receives from every peer. For each peer two PUSHes send, one for each `Lane`, so that a
heartbeat never queues behind blocks. Messages are one-way: an answer leaves through the other
side's PUSH. Delivery is what Raft asks for and no more: in order within a lane, at most once, and
lost when a queue is full or a connection breaks.

CURVE is always on. Its keys come from the members given to `set_peers`; who sent a message is the
User-Id that `node.zap` put on the authenticated connection. A peer that cannot be connected to,
whatever its address says, is told of and tried again; it stops nothing. Relies on `node.route` for
where peers are, on `node.link` for sending and on `node.zmq_loop` for reading.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog
import zmq

from node.identity import curve_public_z85
from node.lane import Lane
from node.link import HANDSHAKE_MS, Link, LinkSettings
from node.route import AddressError, Resolver, Route, look_up, split_address
from node.zap import ZAP_DOMAIN, ZAP_ENDPOINT, ZapGate, user_id
from node.zmq_loop import FailureGuard, Monitor, Reader, SocketHub, cause_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from consensus.messages import MemberId
    from node.identity import Identity
    from node.route import LookUp

_log = structlog.get_logger("node")
CLUSTER_ID_BYTES: Final = 32
"""A message is one frame: the cluster id, then the payload. Each frame is encrypted for itself."""
MAX_PAYLOAD_BYTES: Final = 4 * 1024 * 1024
"""The most one message may carry: the limit "peer frame" of the design."""
_CURVE_OVERHEAD_BYTES: Final = 33
"""What a CURVE MESSAGE adds to a frame: name 8, nonce 8, authenticator 16, flags 1 (RFC 26)."""
_MAX_FRAME_BYTES: Final = CLUSTER_ID_BYTES + MAX_PAYLOAD_BYTES + _CURVE_OVERHEAD_BYTES
_RECEIVE_HIGH_WATER_MARK: Final = 64
"""Messages held for each connection before TCP pushes back on the peer."""
_BACKLOG: Final = 512
_REFUSALS: Final = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL


class TransportError(Exception):
    """The transport cannot listen; the message says why."""


_LANES: Final = {
    Lane.CONTROL: LinkSettings(high_water_mark=256, heartbeat_ms=250, heartbeat_timeout_ms=1_000),
    # A ping waits behind the blocks before it, on a slow network for seconds.
    Lane.BULK: LinkSettings(high_water_mark=64, heartbeat_ms=1_000, heartbeat_timeout_ms=10_000),
}


@dataclass(slots=True)
class TransportCounters:
    """What happened since the start. Bytes are payload bytes."""

    sent: int = 0
    sent_bytes: int = 0
    received: int = 0
    received_bytes: int = 0
    dropped_full: int = 0
    """Not sent: the lane's queue is full."""
    dropped_disconnected: int = 0
    """Not sent: the lane has no connection."""
    dropped_unknown: int = 0
    """Not sent: the addressee is no peer."""
    refused_keys: int = 0
    """Connections refused: the key on the other side is no peer's."""
    refused_handshakes: int = 0
    """Connections refused earlier: no CURVE, meant for another server, or silent for too long."""
    refused_senders: int = 0
    """Messages dropped: their sender is a peer no longer."""
    wrong_cluster: int = 0
    """Messages dropped: they name another cluster, or none."""
    malformed: int = 0
    """Messages dropped: they have more than one part."""
    connects: int = 0
    """Connections made to peers, each lane for itself."""
    disconnects: int = 0
    """Connections to peers lost, each lane for itself."""
    unusable: int = 0
    """Tries to connect that failed on this side: no such name, no socket, or no address at all."""


@dataclass(slots=True)
class _Peer:
    """A peer's address and the links to it."""

    address: str
    route: Route
    links: dict[Lane, Link]
    is_logged: bool = False
    """Whether its being unusable was logged since it was last connected."""

    @property
    def connected(self) -> bool:
        return all(link.connected for link in self.links.values())

    @property
    def obstacle(self) -> str | None:
        """Why there is a lane that cannot even be tried."""
        if self.connected:
            return None
        found = (self.route.obstacle, *(link.obstacle for link in self.links.values()))
        return next((cause for cause in found if cause is not None), None)

    def open(self) -> None:
        self.route.open()
        self.follow()

    def follow(self) -> None:
        for link in self.links.values():
            link.follow()

    def close(self) -> None:
        self.route.close()
        for link in self.links.values():
            link.close()


class Transport:
    """Sends to and receives from the peers of one member. Lives on one asyncio loop.

    Callbacks are synchronous and run on the loop. An exception in one of them, or in the transport
    itself, is a fault of our own: it is handed to `on_failure`, once, and nothing is delivered any
    more.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        cluster_id: bytes,
        bind: str,
        on_message: Callable[[MemberId, bytes], None],
        on_disconnect: Callable[[MemberId], None],
        on_failure: Callable[[BaseException], None],
        on_connect: Callable[[MemberId], None] | None = None,
        look_up: LookUp = look_up,
    ) -> None:
        """Open nothing yet: see `start`.

        Args:
            identity: the keys of this member.
            cluster_id: 32 bytes, the hash of the genesis block.
            bind: where to listen, as "host:port"; port 0 takes a free one, see `address`.
            on_message: a peer's message arrived.
            on_disconnect: the control connection to a peer broke, as when its process dies; never
                called for a connection that this side closes.
            on_failure: takes the exception that must stop the node.
            on_connect: both lanes to a peer are open, for the first time or again.
            look_up: finds the numbers of peers' names; called in threads, where it may block.
        """
        assert len(cluster_id) == CLUSTER_ID_BYTES
        self.counters = TransportCounters()
        self._identity = identity
        self._cluster_id = cluster_id
        self._bind = bind
        self._on_message = on_message
        self._on_disconnect = on_disconnect
        self._on_connect = on_connect
        self._look_up = look_up
        self._guard = FailureGuard(on_failure)
        self._gate = ZapGate()
        self._addresses: dict[MemberId, str] = {}
        self._members: dict[str, MemberId] = {}  # by User-Id
        self._peers: dict[MemberId, _Peer] = {}
        self._hub: SocketHub | None = None
        self._pull: zmq.Socket[bytes] | None = None
        self._sockets = ExitStack()

    @property
    def address(self) -> str:
        """Where this transport listens, as "host:port". Only while it is started."""
        assert self._pull is not None, "not started"
        return self._pull.getsockopt_string(zmq.LAST_ENDPOINT).removeprefix("tcp://")

    @property
    def connected(self) -> frozenset[MemberId]:
        """The peers to which both lanes are open."""
        return frozenset(member for member, peer in self._peers.items() if peer.connected)

    @property
    def unusable(self) -> dict[MemberId, str]:
        """The peers that cannot be connected to for a cause on this side, each with a line on it.

        A peer that is merely not there is none of them.
        """
        causes = {member: peer.obstacle for member, peer in self._peers.items()}
        return {
            member: f"peer {self._peers[member].address} cannot be connected to: {cause}"
            for member, cause in causes.items()
            if cause is not None
        }

    def set_peers(self, peers: Mapping[MemberId, str]) -> None:
        """Make these the peers, each with its address "host:port": whom to send to and hear from.

        Connections to new peers are opened, to those with another address opened anew, to all
        others closed. What a former peer still sends is dropped, though its connection is open.
        Before `start` the peers are only noted. An address that cannot be used makes its peer one
        of the `unusable`, no more. Raises `IdentityError` for an id that is no Ed25519 key.
        """
        assert self._identity.public_key not in peers, "a member is no peer of itself"
        self._gate.admit_only(peers)
        self._members = {user_id(member): member for member in peers}
        self._addresses = dict(peers)
        if self._hub is not None:
            self._connect(self._hub)

    async def start(self) -> None:
        """Listen, and connect to the peers. Raises `TransportError` where it cannot listen."""
        assert self._hub is None, "already started"
        host, port, family = await _resolve(self._bind)
        async with AsyncExitStack() as undo:
            undo.push_async_callback(self.close)
            hub = SocketHub(asyncio.get_running_loop(), self._guard)
            self._hub = hub
            self._resolver = Resolver(hub, self._look_up)
            self._open_gate(hub)
            self._open_pull(hub, host, port, ipv6=family == socket.AF_INET6)
            self._connect(hub)
            undo.pop_all()

    async def close(self) -> None:
        """Close every connection at once; what is still queued is lost. Harmless when repeated."""
        hub, self._hub, self._pull = self._hub, None, None
        for peer in self._peers.values():
            peer.close()
        self._peers.clear()
        self._sockets.close()
        if hub is not None:
            await asyncio.to_thread(hub.context.term)  # waits for libzmq's threads

    def send(self, member: MemberId, lane: Lane, payload: bytes) -> bool:
        """Queue a message of at most `MAX_PAYLOAD_BYTES`; never waits.

        False where it was dropped, and counted: no such peer, no connection, or a full queue.
        """
        assert len(payload) <= MAX_PAYLOAD_BYTES, "the peer would cut the connection"
        peer = self._peers.get(member)
        if peer is None:
            self.counters.dropped_unknown += 1
            return False
        link = peer.links[lane]
        if link.send(self._cluster_id + payload):
            self.counters.sent += 1
            self.counters.sent_bytes += len(payload)
            return True
        if link.connected:
            self.counters.dropped_full += 1
        else:
            self.counters.dropped_disconnected += 1
        return False

    def _open_gate(self, hub: SocketHub) -> None:
        gate = hub.socket(zmq.REP)
        self._sockets.callback(gate.close)
        gate.bind(ZAP_ENDPOINT)
        self._sockets.callback(Reader(hub, gate, partial(self._answer_gate, gate)).close)

    def _answer_gate(self, gate: zmq.Socket[bytes]) -> bool:
        try:
            request = gate.recv_multipart(zmq.DONTWAIT)
        except zmq.Again:
            return False
        answer = self._gate.answer(request)
        if not answer.admitted:
            self.counters.refused_keys += 1
        gate.send_multipart(answer, zmq.DONTWAIT)
        return True

    def _open_pull(self, hub: SocketHub, host: str, port: int, *, ipv6: bool) -> None:
        pull = hub.socket(zmq.PULL)
        self._sockets.callback(pull.close)
        pull.setsockopt(zmq.CURVE_SERVER, 1)
        pull.setsockopt(zmq.CURVE_SECRETKEY, self._identity.curve_secret_z85)
        pull.setsockopt(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
        pull.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # otherwise: no gate, and everyone is let in
        pull.setsockopt(zmq.MAXMSGSIZE, _MAX_FRAME_BYTES)
        pull.setsockopt(zmq.RCVHWM, _RECEIVE_HIGH_WATER_MARK)
        pull.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        pull.setsockopt(zmq.BACKLOG, _BACKLOG)
        pull.setsockopt(zmq.IPV6, ipv6)
        self._sockets.callback(Monitor(hub, pull, _REFUSALS, self._on_refusal).close)
        try:
            pull.bind(f"tcp://[{host}]:{port}" if ipv6 else f"tcp://{host}:{port}")
        except zmq.ZMQError as error:
            raise TransportError(
                f"cannot listen for peers on {self._bind}: {cause_of(error)}"
            ) from error
        self._sockets.callback(Reader(hub, pull, partial(self._receive, pull)).close)
        self._pull = pull

    def _on_refusal(self, _event: int) -> None:
        self.counters.refused_handshakes += 1

    def _receive(self, pull: zmq.Socket[bytes]) -> bool:
        """Take one message in. A peer's fault is dropped and counted. False when there is none."""
        try:
            frame = pull.recv(zmq.DONTWAIT, copy=False)
        except zmq.Again:
            return False
        if frame.more:
            self.counters.malformed += 1
            _skip_rest(pull)
            return True
        member = self._members.get(str(frame.get("User-Id")))
        raw = frame.bytes
        if member is None:
            self.counters.refused_senders += 1
        elif not raw.startswith(self._cluster_id):
            self.counters.wrong_cluster += 1
        else:
            self._deliver(member, raw[CLUSTER_ID_BYTES:])
        return True

    def _deliver(self, member: MemberId, payload: bytes) -> None:
        self.counters.received += 1
        self.counters.received_bytes += len(payload)
        self._on_message(member, payload)

    def _connect(self, hub: SocketHub) -> None:
        """Make the connections match the addresses."""
        for member, peer in tuple(self._peers.items()):
            if self._addresses.get(member) != peer.address:
                del self._peers[member]
                peer.close()
        for member, address in self._addresses.items():
            if member not in self._peers:
                self._peers[member] = self._peer(hub, member, address)
                self._peers[member].open()

    def _peer(self, hub: SocketHub, member: MemberId, address: str) -> _Peer:
        on_obstacle = partial(self._on_obstacle, member)
        route = Route(
            hub,
            self._resolver,
            address,
            on_endpoints=partial(self._follow, member),
            on_obstacle=on_obstacle,
        )
        links = {
            lane: Link(
                hub,
                settings=settings,
                route=route,
                server_key=curve_public_z85(member),
                identity=self._identity,
                on_change=partial(self._on_change, member, lane),
                on_obstacle=on_obstacle,
            )
            for lane, settings in _LANES.items()
        }
        return _Peer(address, route, links)

    def _follow(self, member: MemberId) -> None:
        self._peers[member].follow()

    def _on_obstacle(self, member: MemberId, cause: str) -> None:
        self.counters.unusable += 1
        peer = self._peers[member]
        if not peer.connected and not peer.is_logged:
            peer.is_logged = True
            _log.warning("peer_unusable", address=peer.address, cause=cause)

    def _on_change(self, member: MemberId, lane: Lane, link: Link) -> None:
        if not link.connected:
            self.counters.disconnects += 1
            if lane is Lane.CONTROL:
                self._on_disconnect(member)
            return
        self.counters.connects += 1
        peer = self._peers[member]
        if peer.connected:
            peer.is_logged = False
            if self._on_connect is not None:
                self._on_connect(member)


def _skip_rest(pull: zmq.Socket[bytes]) -> None:
    while pull.getsockopt(zmq.RCVMORE):
        pull.recv(zmq.DONTWAIT)


async def _resolve(bind: str) -> tuple[str, int, int]:
    """Look up "host:port", as libzmq listens on numbers only: host, port and address family."""
    try:
        host, port = split_address(bind)
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except AddressError as error:
        raise TransportError(f"{bind}: {error}") from error
    except (OSError, ValueError) as error:
        raise TransportError(f"cannot listen for peers on {bind}: {cause_of(error)}") from error
    family, _kind, _protocol, _name, address = found[0]
    return str(address[0]), port, family
