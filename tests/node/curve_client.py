"""A client of CurveZMQ made by hand, without I/O: what it sends can be wrong wherever a test likes.

Written from RFC 23, 26 and 37, and against libzmq, not against `node.curve`. Relies on PyNaCl.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from nacl.bindings import (
    crypto_box,
    crypto_box_afternm,
    crypto_box_beforenm,
    crypto_box_open,
    crypto_box_open_afternm,
    crypto_scalarmult_base,
)

MORE, LONG, COMMAND = 1, 2, 4
DEALER = b"\x0bSocket-Type\x00\x00\x00\x06DEALER"


def greeting(*, major: int = 3, minor: int = 1, mechanism: bytes = b"CURVE") -> bytes:
    """64 bytes, as a client has them."""
    signature = b"\xff" + bytes(8) + b"\x7f"
    return signature + bytes((major, minor)) + mechanism.ljust(20, b"\0") + bytes(32)


def frame(body: bytes, flags: int = 0) -> bytes:
    """One frame; long where it must be."""
    if len(body) < 256 and not flags & LONG:
        return bytes((flags, len(body))) + body
    return bytes((flags | LONG,)) + len(body).to_bytes(8, "big") + body


def frames(data: bytes) -> list[tuple[int, bytes]]:
    """Flags and bodies of whole frames."""
    found = []
    while data:
        header = 9 if data[0] & LONG else 2
        size = int.from_bytes(data[1:header], "big")
        assert len(data) >= header + size, "half a frame"
        found.append((data[0], data[header : header + size]))
        data = data[header + size :]
    return found


@dataclass
class CurveClient:
    """One connection's client. The calls come in the order of the handshake."""

    server_key: bytes
    secret: bytes = b"c" * 32
    transient: bytes = b"t" * 32
    nonce: int = 0
    shared: bytes = b""
    cookie: bytes = b""
    server_transient: bytes = b""
    faults: dict[str, bytes] = field(default_factory=dict)
    """Parts to send instead of the right ones."""

    @property
    def public_key(self) -> bytes:
        """The long-term one."""
        return crypto_scalarmult_base(self.secret)

    def _next(self) -> bytes:
        self.nonce += 1
        return self.nonce.to_bytes(8, "big")

    def hello(self) -> bytes:
        """The HELLO frame."""
        nonce = self._next()
        box = crypto_box(bytes(64), b"CurveZMQHELLO---" + nonce, self.server_key, self.transient)
        body = b"\x05HELLO\x01\x00" + bytes(72) + crypto_scalarmult_base(self.transient)
        return frame(body + nonce + self.faults.get("hello box", box), COMMAND)

    def take_welcome(self, data: bytes) -> None:
        """Read the WELCOME frame."""
        ((flags, body),) = frames(data)
        assert (COMMAND, b"\x07WELCOME", 168) == (flags, body[:8], len(body))
        nonce = b"WELCOME-" + body[8:24]
        content = crypto_box_open(body[24:], nonce, self.server_key, self.transient)
        self.server_transient, self.cookie = content[:32], content[32:]
        self.shared = crypto_box_beforenm(self.server_transient, self.transient)

    def initiate(self, metadata: bytes = DEALER) -> bytes:
        """The INITIATE frame."""
        vouched = crypto_scalarmult_base(self.transient) + self.server_key
        vouch = self.faults.get("vouch", vouched)
        vouch_box = crypto_box(vouch, b"VOUCH---" + b"v" * 16, self.server_transient, self.secret)
        nonce = self._next()
        content = self.faults.get("client key", self.public_key) + b"v" * 16 + vouch_box + metadata
        box = crypto_box_afternm(content, b"CurveZMQINITIATE" + nonce, self.shared)
        cookie = self.faults.get("cookie", self.cookie)
        return frame(b"\x08INITIATE" + cookie + nonce + box, COMMAND)

    def take_ready(self, data: bytes) -> bytes:
        """Read the READY frame; the metadata."""
        ((flags, body),) = frames(data)
        assert (COMMAND, b"\x05READY") == (flags, body[:6])
        return crypto_box_open_afternm(body[14:], b"CurveZMQREADY---" + body[6:14], self.shared)

    def message(self, content: bytes, inner: int = 0, flags: int = 0) -> bytes:
        """The frame of a MESSAGE that carries content under the flags `inner`."""
        nonce = self._next()
        box = crypto_box_afternm(
            bytes((inner,)) + content, b"CurveZMQMESSAGEC" + nonce, self.shared
        )
        return frame(b"\x07MESSAGE" + nonce + box, flags)

    def opened(self, data: bytes) -> list[tuple[int, bytes]]:
        """Inner flags and contents of whole MESSAGE frames."""
        found = []
        for flags, body in frames(data):
            assert flags in {0, LONG}
            assert body.startswith(b"\x07MESSAGE")
            nonce = b"CurveZMQMESSAGES" + body[8:16]
            content = crypto_box_open_afternm(body[16:], nonce, self.shared)
            found.append((content[0], content[1:]))
        return found
