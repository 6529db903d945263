"""Who may open a connection to this node: the answers of ZAP, the ZeroMQ Authentication Protocol.

libzmq asks once for each connection, after the CURVE handshake has proved that the other side owns
its key (RFC 27/ZAP, RFC 26/CURVEZMQ). Pure: frames in, frames out; the transport owns the socket.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from zmq.utils import z85

from node.identity import curve_public_z85

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from consensus.messages import MemberId

ZAP_ENDPOINT: Final = "inproc://zeromq.zap.01"
ZAP_DOMAIN: Final = b"peers"
_VERSION: Final = b"1.0"
_FIXED_FRAMES: Final = 6


class ZapAnswer(NamedTuple):
    """The frames of an answer, in their order on the wire."""

    version: bytes
    request_id: bytes
    status_code: bytes
    status_text: bytes
    user_id: bytes
    metadata: bytes

    @property
    def admitted(self) -> bool:
        """Whether the connection may go on."""
        return self.status_code == b"200"


class ZapGate:
    """Admits the CURVE keys of the members it was given, and no other."""

    def __init__(self) -> None:
        self._user_ids: dict[bytes, bytes] = {}

    def admit_only(self, members: Iterable[MemberId]) -> None:
        """Admit these members from now on. Connections that are open already stay open.

        Raises `IdentityError` where a member id is no Ed25519 public key.
        """
        self._user_ids = {
            z85.decode(curve_public_z85(member)): user_id(member).encode() for member in members
        }

    def answer(self, request: Sequence[bytes]) -> ZapAnswer:
        """Answer one request; an admitted connection carries its member's User-Id."""
        assert len(request) >= _FIXED_FRAMES, "libzmq alone asks, in the form of RFC 27"
        version, request_id, _domain, _address, _routing_id, mechanism = request[:_FIXED_FRAMES]
        assert version == _VERSION, f"libzmq speaks ZAP {version!r}"
        credentials = request[_FIXED_FRAMES:]
        admitted = None
        if mechanism == b"CURVE" and len(credentials) == 1:
            admitted = self._user_ids.get(credentials[0])
        if admitted is None:
            return ZapAnswer(_VERSION, request_id, b"400", b"not a member", b"", b"")
        return ZapAnswer(_VERSION, request_id, b"200", b"OK", admitted, b"")


def user_id(member: MemberId) -> str:
    """Return the User-Id on a member's connections: its id in hex."""
    return member.hex()
