"""Which members clients would take for one another."""

from __future__ import annotations

import pytest

from consensus.membership import Member
from node.http_place import share_http


@pytest.mark.parametrize(
    ("peer", "http", "other_peer", "other_http", "expected"),
    [
        ("a:1", "ledger:80", "b:1", "ledger:80", True),
        ("a:1", "ledger:80", "a:2", "ledger:81", False),
        ("a:1", "127.0.0.1:80", "a:2", "127.0.0.1:80", True),
        ("a:1", "127.0.0.1:80", "b:1", "127.0.0.1:80", False),
        ("[::1]:1", "0.0.0.0:80", "[::1]:2", "0.0.0.0:80", True),
        ("[fd00::1]:1", "[::]:80", "[fd00::2]:1", "[::]:80", False),
        ("a:1", "h:80", "nowhere", "h:80", True),
    ],
)
def test_one_http_address_is_one_place(
    peer: str, http: str, other_peer: str, other_http: str, *, expected: bool
) -> None:
    """But for a loopback or wildcard address, which every machine has for itself."""
    one = Member("n1", bytes(32), peer, http)
    other = Member("n2", bytes(32), other_peer, other_http)
    assert expected == share_http(one, other)
