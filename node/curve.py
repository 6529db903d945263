"""The server's side of CurveZMQ (RFC 26): boxes, cookie and nonces, for one connection.

    client: HELLO      proves that it knows the server's key
    server: WELCOME    a transient key, and a cookie that holds its secret half
    client: INITIATE   the cookie back, and a vouch that it owns its own long-term key
    server: READY      from here on both sides send MESSAGE under the transient keys

Pure: bytes in, bytes out; entropy is handed in. Between HELLO and INITIATE nothing of the keys is
kept but the one that opens the cookie. That one is the connection's own: under a cookie key that
connections share, a recorded handshake could be replayed on another one, with all its messages.
Relies on PyNaCl's bindings of libsodium.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Final, NamedTuple

import nacl.exceptions
from nacl.bindings import (
    crypto_box_afternm,
    crypto_box_beforenm,
    crypto_box_open_afternm,
    crypto_scalarmult_base,
    crypto_secretbox,
    crypto_secretbox_open,
)

if TYPE_CHECKING:
    from collections.abc import Callable

KEY_BYTES: Final = 32
BOX_OVERHEAD_BYTES: Final = 16
"""What a box is longer than what is in it: its authenticator."""
HELLO: Final = b"\x05HELLO"
INITIATE: Final = b"\x08INITIATE"
MESSAGE: Final = b"\x07MESSAGE"
HELLO_BYTES: Final = 200
MESSAGE_OVERHEAD_BYTES: Final = len(MESSAGE) + 8 + BOX_OVERHEAD_BYTES + 1
"""Name, nonce, authenticator and flags: what a MESSAGE is longer than what it carries."""
INITIATE_OVERHEAD_BYTES: Final = 257
"""What an INITIATE is longer than its metadata."""

_WELCOME: Final = b"\x07WELCOME"
_READY: Final = b"\x05READY"
_COOKIE_BYTES: Final = 96
_VOUCH_BOX_BYTES: Final = 80
_LONG_NONCE_BYTES: Final = 16
_SHORT_NONCE_BYTES: Final = 8
_HELLO_VERSION: Final = b"\x01\x00"
_HELLO_SIGNATURE: Final = bytes(64)
_LAST_NONCE: Final = 2**64 - 1


class CurveError(Exception):
    """What a peer sent is not what the holder of the right keys would send."""


class ReplayedError(CurveError):
    """A nonce that does not ascend: the peer's own or somebody's copy of what it sent before."""


class Keys(NamedTuple):
    """A Curve25519 key pair, 32 bytes each."""

    public: bytes
    secret: bytes

    @classmethod
    def of(cls, secret: bytes) -> Keys:
        """The pair of a secret key."""
        return cls(crypto_scalarmult_base(secret), secret)


class Initiation(NamedTuple):
    """What an INITIATE proved: whose connection it is, and what the client says of itself."""

    client_key: bytes
    metadata: bytes


class CurveServer:
    """One connection's handshake, and after it its messages. The calls come in that order."""

    def __init__(self, keys: Keys, entropy: Callable[[int], bytes]) -> None:
        """`keys` are the server's long-term pair; `entropy` gives that many random bytes."""
        self._keys = keys
        self._entropy = entropy
        self._cookie_key = b""
        self._shared = b""
        self._peer_nonce = 0
        self._own_nonce = 0

    def welcome(self, hello: bytes) -> bytes:
        """The WELCOME that answers a HELLO. Raises CurveError."""
        if len(hello) != HELLO_BYTES or not hello.startswith(HELLO + _HELLO_VERSION):
            raise CurveError("not a HELLO of CurveZMQ 1.0")
        transient, nonce, box = hello[80:112], hello[112:120], hello[120:]
        shared = _shared_key(transient, self._keys.secret)
        if _opened(box, b"CurveZMQHELLO---" + nonce, shared) != _HELLO_SIGNATURE:
            raise CurveError("the HELLO's box does not hold 64 zeros")
        self._peer_nonce = int.from_bytes(nonce, "big")
        own = Keys.of(self._entropy(KEY_BYTES))
        self._cookie_key = self._entropy(KEY_BYTES)
        cookie_nonce = self._entropy(_LONG_NONCE_BYTES)
        cookie = cookie_nonce + crypto_secretbox(
            transient + own.secret, b"COOKIE--" + cookie_nonce, self._cookie_key
        )
        long_nonce = self._entropy(_LONG_NONCE_BYTES)
        box = crypto_box_afternm(own.public + cookie, b"WELCOME-" + long_nonce, shared)
        return _WELCOME + long_nonce + box

    def initiation(self, initiate: bytes) -> Initiation:
        """What an INITIATE proves. Raises CurveError."""
        if len(initiate) < INITIATE_OVERHEAD_BYTES or not initiate.startswith(INITIATE):
            raise CurveError("not an INITIATE")
        cookie, nonce, box = initiate[9:105], initiate[105:113], initiate[113:]
        transient, own_secret = self._open_cookie(cookie)
        self._note_nonce(nonce)
        shared = _shared_key(transient, own_secret)
        content = _opened(box, b"CurveZMQINITIATE" + nonce, shared)
        client_key, rest = content[:KEY_BYTES], content[KEY_BYTES:]
        vouch_nonce, rest = rest[:_LONG_NONCE_BYTES], rest[_LONG_NONCE_BYTES:]
        vouch_box, metadata = rest[:_VOUCH_BOX_BYTES], rest[_VOUCH_BOX_BYTES:]
        vouch = _opened(vouch_box, b"VOUCH---" + vouch_nonce, _shared_key(client_key, own_secret))
        # That it vouches for this server too keeps another one from passing it on as its own.
        if not hmac.compare_digest(vouch, transient + self._keys.public):
            raise CurveError("the vouch is not for this connection")
        self._shared = shared
        return Initiation(client_key, metadata)

    def ready(self, metadata: bytes) -> bytes:
        """The READY that ends the handshake."""
        nonce = self._next_nonce()
        return _READY + nonce + self._sealed(metadata, b"CurveZMQREADY---" + nonce)

    def opened(self, message: bytes | memoryview) -> bytes:
        """The flags and the content of a MESSAGE. Raises CurveError."""
        if len(message) < MESSAGE_OVERHEAD_BYTES or message[:8] != MESSAGE:
            raise CurveError("not a MESSAGE")
        nonce = bytes(message[8:16])
        self._note_nonce(nonce)
        # The bindings only ever join it to their padding, for which any buffer will do.
        return _opened(message[16:], b"CurveZMQMESSAGEC" + nonce, self._shared)

    def message(self, content: bytes) -> bytes:
        """The MESSAGE that carries flags and content."""
        nonce = self._next_nonce()
        return MESSAGE + nonce + self._sealed(content, b"CurveZMQMESSAGES" + nonce)

    def _open_cookie(self, cookie: bytes) -> tuple[bytes, bytes]:
        """The client's transient public key, and our transient secret one; a cookie works once."""
        assert len(cookie) == _COOKIE_BYTES
        key, self._cookie_key = self._cookie_key, b""
        nonce = b"COOKIE--" + cookie[:_LONG_NONCE_BYTES]
        try:
            content = crypto_secretbox_open(cookie[_LONG_NONCE_BYTES:], nonce, key)
        except nacl.exceptions.CryptoError as error:
            raise CurveError("the cookie is not this connection's") from error
        return content[:KEY_BYTES], content[KEY_BYTES:]

    def _note_nonce(self, nonce: bytes) -> None:
        number = int.from_bytes(nonce, "big")
        if number <= self._peer_nonce:
            raise ReplayedError("the nonce does not ascend")
        self._peer_nonce = number

    def _next_nonce(self) -> bytes:
        assert self._own_nonce < _LAST_NONCE, "at a million a second that takes 580,000 years"
        self._own_nonce += 1
        return self._own_nonce.to_bytes(_SHORT_NONCE_BYTES, "big")

    def _sealed(self, content: bytes, nonce: bytes) -> bytes:
        return crypto_box_afternm(content, nonce, self._shared)


def _shared_key(public: bytes, secret: bytes) -> bytes:
    try:
        return crypto_box_beforenm(public, secret)
    except nacl.exceptions.CryptoError as error:  # a point of small order
        raise CurveError("not a public key") from error


def _opened(box: bytes | memoryview, nonce: bytes, shared: bytes) -> bytes:
    try:
        return crypto_box_open_afternm(box, nonce, shared)  # type: ignore[arg-type] # see `opened`
    except nacl.exceptions.CryptoError as error:
        raise CurveError("a box that was not made with the right keys") from error
