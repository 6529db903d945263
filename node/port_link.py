"""The client's end of a client port: one DEALER to one node, for any number of calls at once.

What calls want to send within one turn of the loop leaves in one message. A link connects when it
is first used, and again after it broke; whatever breaks it ends every call that is under way, and
each hears whether its request may have reached the node. libzmq is told to queue nothing for a
connection that is not there, so "not sent" is certain. Relies on `node.zmq_loop` for the socket.
"""

from __future__ import annotations

import asyncio
import re
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, urlsplit

import zmq
from zmq.utils import z85

from node.config import join_address
from node.identity import IdentityError, curve_public_z85
from node.port_messages import (
    DECODE_ERRORS,
    MAX_MESSAGE_BYTES,
    MAX_REQUESTS,
    Submit,
    decode_answers,
    encode_requests,
)
from node.zmq_loop import FailureGuard, Monitor, Reader, SocketHub

if TYPE_CHECKING:
    from collections.abc import Callable

    from node.port_messages import LookUp, PortOutcome

CONNECT_S: Final = 2.0
"""How long a connection may take, handshake included."""
SCHEME: Final = "tcp://"

_HEX_KEY: Final = re.compile("[0-9a-f]{64}")
_HEARTBEAT_MS: Final = 5_000
_SILENT_MS: Final = 15_000
_REQUEST_BYTES: Final = 64
"""What stands around the transactions of a request, at most."""
_PREFIX_BYTES: Final = 5
_FAILED: Final = (
    zmq.EVENT_CLOSED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
)
_WORDS: Final[dict[int, str]] = {
    zmq.EVENT_CLOSED: "cannot be connected to",
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "does not let this client's key in",
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: "broke off the handshake: has it another key?",
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: "does not speak CURVE as a node does",
}


class LinkError(Exception):
    """No answer; `may_be_recorded` is False where the node has heard nothing of the request."""

    def __init__(self, detail: str, *, may_be_recorded: bool) -> None:
        super().__init__(detail)
        self.may_be_recorded = may_be_recorded


@dataclass(frozen=True, slots=True)
class PortAddress:
    """Where a node's client port is, and the Ed25519 key by which the node is known."""

    host: str
    port: int
    public_key: bytes

    @classmethod
    def of(cls, url: str) -> PortAddress:
        """The address in `tcp://host:port?key=<64 hex digits>`; raises ValueError."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
            query = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
        except ValueError as error:
            raise ValueError(f"{url!r} is not a URL: {error}") from error
        key = query.pop("key", "")
        is_whole = parts.scheme == "tcp" and host and port and not parts.path.strip("/")
        if not is_whole or query or parts.fragment or not _HEX_KEY.fullmatch(key):
            raise ValueError(
                f"{url!r} is not a node's client port, tcp://HOST:PORT?key=<its public key in hex>"
            )
        assert host is not None
        assert port is not None
        try:
            curve_public_z85(bytes.fromhex(key))
        except IdentityError as error:
            raise ValueError(f"{url!r}: {error}") from error
        return cls(host, port, bytes.fromhex(key))

    def __str__(self) -> str:
        """The address as people know it, without the key."""
        return SCHEME + join_address(self.host, self.port)


@dataclass(slots=True)
class _Call:
    """A request on its way, and who waits for its answer."""

    request: Submit | LookUp
    answer: asyncio.Future[tuple[PortOutcome, ...]]
    is_sent: bool = False


class PortLink:
    """One node's port. Lives on one asyncio loop; `client_secret` is the client's CURVE key."""

    def __init__(self, address: PortAddress, client_secret: bytes) -> None:
        """Nothing is opened before the first call."""
        self.address = address
        self._client_secret = client_secret
        self._calls: dict[int, _Call] = {}
        self._unsent: dict[int, _Call] = {}
        self._last_number = 0
        self._connection: _Connection | None = None
        self._connecting = asyncio.Lock()

    async def ask(
        self, make: Callable[[int], Submit | LookUp], timeout_s: float
    ) -> tuple[PortOutcome, ...]:
        """The outcomes that answer the request `make(number)`. Raises LinkError."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        if self._connection is None:
            await self._connect(min(CONNECT_S, timeout_s))
        self._last_number += 1
        number = self._last_number
        call = _Call(make(number), loop.create_future())
        self._calls[number] = self._unsent[number] = call
        timer = loop.call_at(deadline, self._expire, number)
        if len(self._unsent) == 1:
            loop.call_soon(self._send)
        try:
            return await call.answer
        finally:
            timer.cancel()
            self._calls.pop(number, None)
            self._unsent.pop(number, None)

    def close(self) -> None:
        """Closes the connection; calls under way end."""
        self._break("was closed by this client")

    async def _connect(self, timeout_s: float) -> None:
        """Opens a socket to where the node is; names are looked up beside the loop."""
        async with self._connecting:
            if self._connection is not None:
                return
            loop = asyncio.get_running_loop()
            try:
                async with asyncio.timeout(timeout_s):
                    found = await loop.getaddrinfo(
                        self.address.host, self.address.port, type=socket.SOCK_STREAM
                    )
            except (OSError, TimeoutError) as error:
                detail = f"{self.address}: its name was not found: {type(error).__name__} {error}"
                raise LinkError(detail, may_be_recorded=False) from error
            place = found[0][4]
            self._connection = _Connection(
                SCHEME + join_address(str(place[0]), self.address.port),
                server_key=curve_public_z85(self.address.public_key),
                secret_key=z85.encode(self._client_secret),
                link=self,
            )

    # What the connection calls

    def take(self, message: bytes) -> None:
        """Hands answers to those who wait for them; others are of calls that gave up."""
        try:
            answers = decode_answers(message)
        except DECODE_ERRORS as error:
            self._break(f"is no ledger: {error}")
            return
        for answer in answers:
            call = self._calls.get(answer.number)
            if call is not None and not call.answer.done():
                call.answer.set_result(answer.outcomes)

    def broken(self, event: int) -> None:
        """The connection is not to be had, or is gone."""
        self._break(_WORDS.get(event, "closed the connection"))

    def failed(self, error: BaseException) -> None:
        """A fault of our own ends the connection; whoever waits hears of it."""
        self._break(f"could not be served: {error!r}")

    def send_unsent(self) -> None:
        """There may be room in the socket."""
        if self._unsent:
            self._send()

    # Small parts

    def _send(self) -> None:
        while self._unsent and self._connection is not None:
            calls = self._next_calls()
            if not self._connection.send(calls):
                return
            for call in calls:
                call.is_sent = True
                self._unsent.pop(call.request.number, None)

    def _next_calls(self) -> list[_Call]:
        """What fits into one message, at least one."""
        calls: list[_Call] = []
        size_bytes = 0
        for call in self._unsent.values():
            size_bytes += _size_bytes(call.request)
            if calls and (size_bytes > MAX_MESSAGE_BYTES or len(calls) == MAX_REQUESTS):
                break
            calls.append(call)
        return calls

    def _expire(self, number: int) -> None:
        call = self._calls.get(number)
        if call is not None and not call.answer.done():
            detail = f"{self.address} did not answer in time"
            call.answer.set_exception(LinkError(detail, may_be_recorded=call.is_sent))

    def _break(self, words: str) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        connection.close()
        for call in self._calls.values():
            if not call.answer.done():
                detail = f"{self.address} {words}"
                call.answer.set_exception(LinkError(detail, may_be_recorded=call.is_sent))
        self._unsent.clear()


class _Connection:
    """A DEALER of one connection: where that ends, so does this."""

    def __init__(
        self, address: str, *, server_key: bytes, secret_key: bytes, link: PortLink
    ) -> None:
        self._link = link
        guard = FailureGuard(link.failed)
        self._hub = SocketHub(asyncio.get_running_loop(), guard)
        self._socket = self._hub.socket(zmq.DEALER)
        self._socket.curve_serverkey = server_key
        self._socket.curve_secretkey = secret_key
        self._socket.curve_publickey = zmq.curve_public(secret_key)
        for option, value in (
            (zmq.IMMEDIATE, 1),
            (zmq.RECONNECT_IVL, -1),
            (zmq.HANDSHAKE_IVL, int(CONNECT_S * 1_000)),
            (zmq.HEARTBEAT_IVL, _HEARTBEAT_MS),
            (zmq.HEARTBEAT_TIMEOUT, _SILENT_MS),
            (zmq.IPV6, 1),
        ):
            self._socket.setsockopt(option, value)
        self._monitor = Monitor(self._hub, self._socket, _FAILED, self._on_event)
        self._reader = Reader(self._hub, self._socket, self._read_one)
        self._socket.connect(address)

    def send(self, calls: list[_Call]) -> bool:
        """Sends requests in one message; False where there is no connection or no room yet."""
        is_sent = bool(self._events() & zmq.POLLOUT)
        if is_sent:
            message = encode_requests([call.request for call in calls])
            self._socket.send(message, zmq.DONTWAIT)
        if self._events() & zmq.POLLIN:
            # Whatever uses the socket takes its edge: nobody else would tell of what is there.
            self._reader.wake()
        return is_sent

    def _events(self) -> int:
        events = self._socket.getsockopt(zmq.EVENTS)
        assert isinstance(events, int)
        return events

    def close(self) -> None:
        """Closes it; what is unsent is dropped."""
        self._reader.close()
        self._monitor.close()
        self._socket.close()
        self._hub.context.term()

    def _read_one(self) -> bool:
        try:
            message = self._socket.recv(zmq.DONTWAIT)
        except zmq.Again:
            self._link.send_unsent()
            return False
        self._link.take(message)
        return True

    def _on_event(self, event: int) -> None:
        # Answers that came before the end are read first.
        while self._is_current() and self._read_one():
            pass
        if self._is_current():
            self._link.broken(event)

    def _is_current(self) -> bool:
        return not self._socket.closed


def _size_bytes(request: Submit | LookUp) -> int:
    if not isinstance(request, Submit):
        return _REQUEST_BYTES
    transactions = request.transactions
    return _REQUEST_BYTES + sum(map(len, transactions)) + _PREFIX_BYTES * len(transactions)
