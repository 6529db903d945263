"""The keys by which clients of the client port are known: Curve25519, in Z85 or in hex.

Z85 (RFC 32) is what ZeroMQ's own tools print, 40 characters; hex are 64 digits. Relies on the
standard library alone: who reads a configuration need not load ZeroMQ.
"""

from __future__ import annotations

import base64
import re
from typing import Final

KEY_BYTES: Final = 32

_LOWER: Final = "abcdefghijklmnopqrstuvwxyz"
_UPPER: Final = _LOWER.upper()
_Z85: Final = "0123456789" + _LOWER + _UPPER + ".-:+=^!/*?&<>()[]{}@%$#"
_B85: Final = "0123456789" + _UPPER + _LOWER + "!#$%&()*+-;<=>?@^_`{|}~"
_TO_B85: Final = str.maketrans(_Z85, _B85)
_TO_Z85: Final = str.maketrans(_B85, _Z85)
_HEX: Final = re.compile("[0-9a-fA-F]{64}")
_Z85_CHARACTERS: Final = 40


def parse_key(text: str) -> bytes:
    """The 32 bytes of a key; raises ValueError where the text is no key."""
    if _HEX.fullmatch(text):
        return bytes.fromhex(text)
    if len(text) == _Z85_CHARACTERS and set(text) <= set(_Z85):
        # Base 85 of another alphabet; beyond 2^32 a group of five is a ValueError.
        return base64.b85decode(text.translate(_TO_B85))
    raise ValueError("is no key: 40 characters of Z85 or 64 hex digits")


def key_text(key: bytes) -> str:
    """A key in Z85."""
    assert len(key) == KEY_BYTES
    return base64.b85encode(key).decode("ascii").translate(_TO_Z85)
