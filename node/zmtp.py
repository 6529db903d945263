"""The server's side of one ZeroMQ connection, without I/O: ZMTP 3.0 and 3.1 under CURVE alone.

    session = Session(keys, allows=..., entropy=os.urandom)
    send(session.take_output())           # the greeting
    for message in session.receive(data): # whole, opened messages of one frame each
        ...
    send(session.take_output())           # WELCOME, READY, PONG, and what `queue` was given

Bytes come in and go out in any portions. Whatever is not as RFC 23, 37 and 26 have it, or beyond
the limits here, raises ZmtpError; the connection must then be closed, after what is in the output
was sent. Nothing is kept for a peer before its limits are checked: a frame's size is judged by its
header, and a message of several parts is refused at the first part that announces another.

Who a peer is says its authenticated key; an identity that it claims is not even read. The peer must
be a DEALER. Relies on `node.curve` for what is secret.
"""

from __future__ import annotations

from enum import Enum, StrEnum, auto, unique
from typing import TYPE_CHECKING, Final

from node.curve import (
    HELLO_BYTES,
    INITIATE_OVERHEAD_BYTES,
    MESSAGE_OVERHEAD_BYTES,
    CurveError,
    CurveServer,
    ReplayedError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from node.curve import Keys

MAX_METADATA_BYTES: Final = 1024
"""What a client may say of itself in the handshake."""

_GREETING_BYTES: Final = 64
_SIGNATURE_BYTES: Final = 10
_MAJOR: Final = 3
_MINOR: Final = 1
_MECHANISM: Final = b"CURVE".ljust(20, b"\0")
GREETING: Final = (
    b"\xff" + bytes(8) + b"\x7f" + bytes((_MAJOR, _MINOR)) + _MECHANISM + b"\x01" + bytes(31)
)
assert len(GREETING) == _GREETING_BYTES

# Flags of a frame (RFC 23), and of what a MESSAGE carries (RFC 26): there MORE and COMMAND = 2.
_MORE: Final = 0x01
_LONG: Final = 0x02
_COMMAND: Final = 0x04
_INNER_COMMAND: Final = 0x02
_SHORT_HEADER: Final = 2
_LONG_HEADER: Final = 9
_MAX_SHORT: Final = 255

_PING: Final = b"\x04PING"
_PONG: Final = b"\x04PONG"
_MAX_CONTEXT_BYTES: Final = 16
_TENTHS_PER_S: Final = 10
_SOCKET_TYPE: Final = b"socket-type"
_OWN_METADATA: Final = b"\x0bSocket-Type" + len(b"ROUTER").to_bytes(4, "big") + b"ROUTER"


@unique
class Fault(StrEnum):
    """Why a connection is dropped: the peer's doing, all of them."""

    GREETING = "greeting"
    """It does not speak ZMTP 3."""
    MECHANISM = "mechanism"
    """It would speak without CURVE."""
    FRAME = "frame"
    """Flags or sizes that the protocol does not have, or a command out of turn."""
    TOO_LARGE = "too_large"
    """A frame beyond the limit."""
    HANDSHAKE = "handshake"
    """It does not know the server's key, or does not own its own."""
    KEY = "key"
    """Its key is not among those that are let in."""
    METADATA = "metadata"
    """It is no DEALER, or says who it is in a way that cannot be read."""
    MULTIPART = "multipart"
    """A message of more than one part."""
    FORGED = "forged"
    """A message that was not made with the connection's keys."""
    REPLAYED = "replayed"
    """A nonce that does not ascend."""


class ZmtpError(Exception):
    """The connection must be closed; `fault` says why."""

    def __init__(self, fault: Fault, detail: str = "") -> None:
        super().__init__(f"{fault}: {detail}" if detail else str(fault))
        self.fault = fault


class _State(Enum):
    GREETING = auto()
    HELLO = auto()
    INITIATE = auto()
    OPEN = auto()
    CLOSED = auto()


class Session:
    """One connection. Times are none of its business, but `ttl_s` is what the peer asked for."""

    def __init__(
        self,
        keys: Keys,
        *,
        allows: Callable[[bytes], bool],
        entropy: Callable[[int], bytes],
        max_message_bytes: int,
    ) -> None:
        """`allows` says whether the client with that public key (32 bytes) is let in."""
        self.client_key: bytes | None = None
        """Whose connection it is, once that is proved."""
        self.ttl_s: float | None = None
        """The peer wants to be given up after so much silence, by its last PING (RFC 37)."""
        self.speaks_ping = False
        self.frames_taken = 0
        self._allows = allows
        self._curve = CurveServer(keys, entropy)
        self._max_message_bytes = max_message_bytes
        self._state = _State.GREETING
        self._buffer = bytearray()
        self._expected_bytes = 0
        self._output: list[bytes] = [GREETING]

    @property
    def is_open(self) -> bool:
        """Whether the handshake is done and nothing was wrong since."""
        return self._state is _State.OPEN

    @property
    def buffered_bytes(self) -> int:
        """What has arrived of a frame that is not complete."""
        return len(self._buffer)

    @property
    def expected_bytes(self) -> int:
        """How long the frame is that has begun to arrive, its header included; 0 for none."""
        return self._expected_bytes

    def receive(self, data: bytes) -> list[bytes]:
        """Takes what arrived; the messages that are complete now. Raises ZmtpError."""
        if self._state is _State.CLOSED:
            return []
        if self._buffer:
            self._buffer += data
            source: bytes | bytearray = self._buffer
        else:
            source = data
        messages: list[bytes] = []
        try:
            with memoryview(source) as view:
                used = self._take_all(view, messages)
        except ZmtpError:
            self._state = _State.CLOSED
            self._buffer = bytearray()
            raise
        if source is self._buffer:
            del self._buffer[:used]
        else:
            self._buffer += data[used:]
        return messages

    def queue(self, message: bytes) -> None:
        """A message of one frame for the peer; only while the session is open."""
        assert self._state is _State.OPEN, "messages follow the handshake"
        self._queue_inner(0, message)

    def queue_ping(self) -> None:
        """Asks the peer for a sign of life; only while open, of a peer that speaks ZMTP 3.1."""
        assert self._state is _State.OPEN
        assert self.speaks_ping
        self._queue_inner(_INNER_COMMAND, _PING + bytes(2))

    def take_output(self) -> bytes:
        """What must be sent now, in this order; empty for nothing."""
        if not self._output:
            return b""
        output = self._output[0] if len(self._output) == 1 else b"".join(self._output)
        self._output.clear()
        return output

    # Greeting and frames

    def _take_all(self, view: memoryview, messages: list[bytes]) -> int:
        """Handles all that is complete; how many bytes that was."""
        used = 0
        if self._state is _State.GREETING:
            used = self._take_greeting(view)
            if not used:
                return 0
        while True:
            header, size, flags = self._read_header(view, used)
            self._expected_bytes = header + size if header else 0
            end = used + header + size
            if not header or end > len(view):
                return used
            self._expected_bytes = 0
            self.frames_taken += 1
            self._take_frame(flags, view[used + header : end], messages)
            used = end

    def _take_greeting(self, view: memoryview) -> int:
        """Judges a greeting as far as it is there, so that other protocols are dropped at once."""
        if len(view) and view[0] != GREETING[0]:
            raise ZmtpError(Fault.GREETING, "no ZMTP signature")
        if len(view) >= _SIGNATURE_BYTES and view[_SIGNATURE_BYTES - 1] != GREETING[9]:
            raise ZmtpError(Fault.GREETING, "no ZMTP signature")
        if len(view) > _SIGNATURE_BYTES and view[_SIGNATURE_BYTES] < _MAJOR:
            raise ZmtpError(Fault.GREETING, "older than ZMTP 3")
        if len(view) < _GREETING_BYTES:
            return 0
        if view[12:32] != _MECHANISM:
            raise ZmtpError(Fault.MECHANISM)
        # A peer of a later major version speaks as we do, RFC 23 §3.2, and knows PING.
        self.speaks_ping = view[10] > _MAJOR or view[11] >= _MINOR
        self._state = _State.HELLO
        return _GREETING_BYTES

    def _read_header(self, view: memoryview, start: int) -> tuple[int, int, int]:
        """The lengths of a frame's header and of its body, and its flags; zeros while not known."""
        there = len(view) - start
        if there < _SHORT_HEADER:
            return 0, 0, 0
        flags = view[start]
        if flags not in {0, _LONG, _COMMAND, _LONG | _COMMAND}:
            fault = Fault.MULTIPART if flags in {_MORE, _LONG | _MORE} else Fault.FRAME
            raise ZmtpError(fault, f"flags {flags:#04x}")
        if not flags & _LONG:
            header, size = _SHORT_HEADER, view[start + 1]
        elif there < _LONG_HEADER:
            return 0, 0, 0
        else:
            header, size = _LONG_HEADER, int.from_bytes(view[start + 1 : start + 9], "big")
        if size > self._max_frame_bytes():
            raise ZmtpError(Fault.TOO_LARGE, f"a frame of {size} bytes")
        return header, size, flags

    def _max_frame_bytes(self) -> int:
        match self._state:
            case _State.HELLO:
                return HELLO_BYTES
            case _State.INITIATE:
                return INITIATE_OVERHEAD_BYTES + MAX_METADATA_BYTES
            case _:
                return self._max_message_bytes + MESSAGE_OVERHEAD_BYTES

    def _take_frame(self, flags: int, body: memoryview, messages: list[bytes]) -> None:
        if self._state is _State.OPEN:
            # RFC 26 has MESSAGE as a command; libzmq sends it without the flag. Both will do.
            self._take_message(body, messages)
        elif not flags & _COMMAND:
            raise ZmtpError(Fault.FRAME, "a message before the handshake is done")
        elif self._state is _State.HELLO:
            self._take_hello(bytes(body))
        else:
            assert self._state is _State.INITIATE
            self._take_initiate(bytes(body))

    # The handshake

    def _take_hello(self, body: bytes) -> None:
        try:
            welcome = self._curve.welcome(body)
        except CurveError as error:
            raise ZmtpError(Fault.HANDSHAKE, str(error)) from error
        self._output.append(_frame(_COMMAND, welcome))
        self._state = _State.INITIATE

    def _take_initiate(self, body: bytes) -> None:
        try:
            client_key, metadata = self._curve.initiation(body)
        except ReplayedError as error:
            raise ZmtpError(Fault.REPLAYED, str(error)) from error
        except CurveError as error:
            raise ZmtpError(Fault.HANDSHAKE, str(error)) from error
        if not self._allows(client_key):
            # 400, as a ZAP handler would have it (RFC 27): libzmq tells its user so.
            self._output.append(_frame(_COMMAND, b"\x05ERROR\x03400"))
            raise ZmtpError(Fault.KEY, client_key.hex())
        if _properties(metadata).get(_SOCKET_TYPE) != b"DEALER":
            raise ZmtpError(Fault.METADATA, "a client is a DEALER")
        self.client_key = client_key
        self._output.append(_frame(_COMMAND, self._curve.ready(_OWN_METADATA)))
        self._state = _State.OPEN

    # Messages

    def _take_message(self, body: memoryview, messages: list[bytes]) -> None:
        try:
            content = self._curve.opened(body)
        except ReplayedError as error:
            raise ZmtpError(Fault.REPLAYED, str(error)) from error
        except CurveError as error:
            raise ZmtpError(Fault.FORGED, str(error)) from error
        flags = content[0]
        if flags == 0:
            messages.append(content[1:])
        elif flags == _INNER_COMMAND:
            self._take_command(content[1:])
        else:
            fault = Fault.MULTIPART if flags == _MORE else Fault.FRAME
            raise ZmtpError(fault, f"flags {flags:#04x} in a MESSAGE")

    def _take_command(self, body: bytes) -> None:
        """PING and PONG (RFC 37); a DEALER sends no other command."""
        if body.startswith(_PING) and 0 <= len(body) - 7 <= _MAX_CONTEXT_BYTES:
            ttl = int.from_bytes(body[5:7], "big")
            self.ttl_s = ttl / _TENTHS_PER_S if ttl else None
            self._queue_inner(_INNER_COMMAND, _PONG + body[7:])
        elif not body.startswith(_PONG) or len(body) - len(_PONG) > _MAX_CONTEXT_BYTES:
            raise ZmtpError(Fault.FRAME, "a command that a DEALER does not send")

    def _queue_inner(self, flags: int, content: bytes) -> None:
        self._output.append(_frame(0, self._curve.message(bytes((flags,)) + content)))


def _frame(flags: int, body: bytes) -> bytes:
    if len(body) <= _MAX_SHORT:
        return bytes((flags, len(body))) + body
    return bytes((flags | _LONG,)) + len(body).to_bytes(8, "big") + body


def _properties(metadata: bytes) -> dict[bytes, bytes]:
    """The properties of a handshake by their names, in lower case. Raises ZmtpError."""
    found: dict[bytes, bytes] = {}
    place = 0
    while place < len(metadata):
        name_end = place + 1 + metadata[place]
        value_start = name_end + 4
        value_end = value_start + int.from_bytes(metadata[name_end:value_start], "big")
        if name_end == place + 1 or value_end > len(metadata) or value_start > len(metadata):
            raise ZmtpError(Fault.METADATA, "a property that does not end")
        found[metadata[place + 1 : name_end].lower()] = metadata[value_start:value_end]
        place = value_end
    return found
