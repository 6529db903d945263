"""Which heads of requests are hot, and that all others are left to the parser's own way."""

from __future__ import annotations

import pytest

from node.api.heads import (
    MAX_FIELDS_BYTES,
    MAX_LINE_BYTES,
    HeadReader,
    HotHead,
    ReadCall,
    read_line,
)
from node.api.host import HostCheck
from node.api.json_input import MAX_AT_ONCE_BYTES
from node.api.submit import Options
from node.outcomes import Wait

SUBMIT = b"POST /api/v1/ledger/transactions HTTP/1.1\r\n"
RECEIPT = b"GET /api/v1/ledger/receipts/0190a5d0-c8e2-7cc0-8a9b-1d2e3f405162 HTTP/1.1\r\n"
HOST = b"Host: localhost\r\n"
JSON = b"Content-Type: application/json\r\n"
LENGTH = b"Content-Length: 5\r\n"
PLAIN = HOST + JSON + LENGTH


def read(data: bytes) -> HotHead | None:
    """What a fresh reader of a server on loopback makes of the beginning of a request."""
    return HeadReader(HostCheck("127.0.0.1")).read(data)


def test_a_plain_submit_is_hot() -> None:
    """How it wants to be answered, and where its body begins and ends, whatever comes after."""
    head = SUBMIT + PLAIN + b"\r\n"
    expected = HotHead(Options(Wait.COMMITTED, 10.0), len(head), len(head) + 5)
    assert [expected] * 3 == [read(head), read(head + b"{}"), read(head + b"{    }GET / ")]


def test_a_head_that_was_judged_is_not_judged_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only its bytes count: the second time the parser is not asked."""
    reader = HeadReader(HostCheck("127.0.0.1"))
    first = reader.read(SUBMIT + PLAIN + b"\r\n")
    monkeypatch.setattr("node.api.heads._parse_fields", None)
    assert first == reader.read(SUBMIT + PLAIN + b"\r\n{")
    assert first is not None


@pytest.mark.parametrize(
    ("target", "part", "limit"),
    [
        (b"transactions/alice", "alice", 100),
        (b"transactions/a+b@c:d,e?limit=7&order=asc", "a+b@c:d,e", 7),
    ],
)
def test_a_plain_history_is_hot(target: bytes, part: str, limit: int) -> None:
    """The user and the parameters are read as the whole way would."""
    head = read(b"GET /api/v1/ledger/" + target + b" HTTP/1.1\r\n" + HOST + b"\r\n")
    assert head is not None
    assert isinstance(head.call, ReadCall)
    assert ({"user_id": part}, limit) == (
        head.call.asked.path,
        head.call.asked.query.whole("limit"),
    )
    assert head.head_bytes == head.whole_bytes


@pytest.mark.parametrize(
    "line",
    [
        b"POST /api/v1/ledger/transactions HTTP/1.0",
        b"POST /api/v1/ledger/transactions HTTP/2.0",
        b"POST  /api/v1/ledger/transactions HTTP/1.1",
        b"POST /api/v1/ledger/transactions HTTP/1.1 ",
        b"POST /api/v1/ledger/transactions",
        b"PUT /api/v1/ledger/transactions HTTP/1.1",
        b"post /api/v1/ledger/transactions HTTP/1.1",
        b"POST /api/v1/ledger/transactions/ HTTP/1.1",
        b"POST /api/v1/ledger/transactions/alice HTTP/1.1",
        b"POST /api/v1/ledger/transactions?wait=maybe HTTP/1.1",
        b"POST /api/v1/ledger/transactions?wait=%61ccepted HTTP/1.1",
        b"POST http://localhost/api/v1/ledger/transactions HTTP/1.1",
        b"GET /api/v1/ledger/transactions HTTP/1.1",
        b"GET /api/v1/ledger/transactions/ HTTP/1.1",
        b"GET /api/v1/ledger/transactions/a/b HTTP/1.1",
        b"GET /api/v1/ledger/transactions/a%2Fb HTTP/1.1",
        b"GET /api/v1/ledger/transactions/a#b HTTP/1.1",
        b"GET /api/v1/ledger/transactions/\xc3\xa4 HTTP/1.1",
        b"GET /api/v1/ledger/transactions/alice?limit=0 HTTP/1.1",
        b"HEAD /api/v1/ledger/transactions/alice HTTP/1.1",
        b"GET /livez HTTP/1.1",
        b"",
    ],
)
def test_other_lines_go_the_whole_way(line: bytes) -> None:
    """Other calls, methods and versions, whatever is encoded, and parameters at fault."""
    assert read_line(line) is None


@pytest.mark.parametrize(
    "fields",
    [
        JSON + LENGTH,
        HOST + HOST + JSON + LENGTH,
        b"Host: evil.example\r\n" + JSON + LENGTH,
        HOST + LENGTH,
        HOST + b"Content-Type: text/plain\r\n" + LENGTH,
        HOST + JSON + JSON + LENGTH,
        HOST + JSON + b"Content-Length: 5\r\nContent-Length: 5\r\n",
        HOST + JSON + b"Content-Length: x\r\n",
        HOST + JSON + b"Content-Length: %d\r\n" % (MAX_AT_ONCE_BYTES + 1),
        HOST + JSON + b"Transfer-Encoding: chunked\r\n",
        PLAIN + b"Transfer-Encoding: chunked\r\n",
        PLAIN + b"Content-Encoding: gzip\r\n",
        PLAIN + b"Expect: 100-continue\r\n",
        PLAIN + b"Connection: close\r\n",
        PLAIN + b"Connection: keep-alive, close\r\n",
        PLAIN + b"Connection: Upgrade\r\nUpgrade: h2c\r\n",
        PLAIN + b"X: a\r\n b\r\n",
        PLAIN + b"X: a\nY: b\r\n",
        PLAIN + b"X : a\r\n",
        PLAIN + b"X: a\x00b\r\n",
        PLAIN + b"X: " + b"x" * MAX_FIELDS_BYTES + b"\r\n",
    ],
)
def test_other_fields_go_the_whole_way(fields: bytes) -> None:
    """What asks for more, what is at fault, what is long, and what is meant for another server."""
    assert read(SUBMIT + PLAIN + b"\r\n") is not None
    assert read(SUBMIT + fields + b"\r\n") is None


def test_a_read_with_a_body_goes_the_whole_way() -> None:
    """Its type does not matter, its length does."""
    assert read(RECEIPT + HOST + b"\r\n") is not None
    assert read(RECEIPT + HOST + b"Content-Type: text/plain\r\n\r\n") is not None
    assert read(RECEIPT + PLAIN + b"\r\n") is None


@pytest.mark.parametrize("end", [1, 10, len(SUBMIT), len(SUBMIT) + 9, -1])
def test_a_head_in_pieces_goes_the_whole_way(end: int) -> None:
    """Only the parser waits for the rest of a head."""
    assert read((SUBMIT + PLAIN + b"\r\n")[:end]) is None


def test_a_long_line_is_not_remembered() -> None:
    """What is remembered is bounded in bytes too."""
    path = b"/api/v1/ledger/transactions/" + b"u" * (MAX_LINE_BYTES - 43)
    line = b"GET " + path + b" HTTP/1.1\r\n"
    assert len(line) == MAX_LINE_BYTES
    assert read(line + HOST + b"\r\n") is not None
    assert read(line.replace(b"/u", b"/uu") + HOST + b"\r\n") is None
