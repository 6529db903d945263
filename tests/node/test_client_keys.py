"""The text of clients' keys: as ZeroMQ's own tools write them, or in hex."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zmq.utils import z85

from node.client_keys import key_text, parse_key

RFC_32 = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"


@given(key=st.binary(min_size=32, max_size=32))
def test_a_key_is_read_in_both_forms(key: bytes) -> None:
    """Z85 as pyzmq has it, and hex in either case."""
    text = z85.encode(key).decode()
    assert (key, text) == (parse_key(text), key_text(key))
    assert key == parse_key(key.hex()) == parse_key(key.hex().upper())


def test_the_key_of_the_rfc() -> None:
    """RFC 26 shows a server's public key in both."""
    expected = "8e0bdd697628b91d8f245587ee95c5b04d48963f79259877b49cd9063aead3b7"
    assert expected == parse_key("JTKVSB%%)wK0E.X)V>+}o?pNmC{O&4W4b!Ni{Lh6").hex()


@pytest.mark.parametrize(
    "text", ["", "x", RFC_32[:-1], RFC_32 + "0", "~" * 40, "#" * 40, "é" * 40, "0" * 63, "g" * 64]
)
def test_what_is_no_key_is_refused(text: str) -> None:
    """Another length, another alphabet, or a group beyond 32 bits."""
    with pytest.raises(ValueError, match=r".+"):
        parse_key(text)
