"""The cursor of a user's history: where a page ended, as text that means nothing to a client.

Base64url of the place and a checksum over place and user, so that one that was altered, or belongs
to another user, is refused rather than read as another place. It guards against mistakes and hides
nothing. Relies on `storage.recent` for the place.
"""

from __future__ import annotations

import base64
import binascii
import struct
import zlib
from typing import Final

from storage.recent import Place

_PLACE: Final = struct.Struct(">QI")
_CHECKSUM: Final = struct.Struct(">I")
_TEXT_LENGTH: Final = 22
_PADDING: Final = "=="


class CursorError(ValueError):
    """A cursor that this service did not make for this user."""


def encode_cursor(place: Place, user_id: str) -> str:
    """Return the cursor of a place in a user's history."""
    raw = _PLACE.pack(place.index, place.position)
    return base64.urlsafe_b64encode(raw + _checksum(raw, user_id)).decode("ascii").rstrip("=")


def decode_cursor(text: str, user_id: str) -> Place:
    """Return the place of a cursor; raises CursorError."""
    if len(text) != _TEXT_LENGTH or not text.isascii():
        raise CursorError("is not a cursor")
    try:
        raw = base64.b64decode(text + _PADDING, altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise CursorError("is not a cursor") from error
    place, checksum = raw[: _PLACE.size], raw[_PLACE.size :]
    # The last character has spare bits: encoded anew, the text must be the same.
    if encode_cursor(Place(*_PLACE.unpack(place)), user_id) != text:
        raise CursorError("is not a cursor of this user")
    assert checksum == _checksum(place, user_id)
    return Place(*_PLACE.unpack(place))


def _checksum(place: bytes, user_id: str) -> bytes:
    return _CHECKSUM.pack(zlib.crc32(user_id.encode(), zlib.crc32(place)))
