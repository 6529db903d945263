"""Recognises the hot calls by the head of their request: a submit, a receipt, a history.

Clients send the same head again and again: one request line for all submits, and one block of
header fields for all requests whose bodies are of one length. So each is judged once and then
remembered: a hot request costs two look-ups instead of a parse. What is not plain here (another
method or version, an odd path, a field that asks for more, a fault of any kind) goes the whole way,
which also has the words for refusing it. Relies on httptools, the same parser, to judge.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import httptools

from node.api.body import check_lengths, check_type
from node.api.face import Asked
from node.api.json_input import MAX_AT_ONCE_BYTES, MAX_BODY_BYTES
from node.api.problems import ProblemError
from node.api.query import parse_query
from node.api.reads import read_history, read_receipt
from node.api.routes import ROUTES, SUBMIT_PATH
from node.api.submit import Options, read_options

if TYPE_CHECKING:
    from collections.abc import Callable

    from node.api.face import Handler
    from node.api.reply import Scope

MAX_LINE_BYTES: Final = 512
MAX_FIELDS_BYTES: Final = 2048
_REMEMBERED: Final = 1024
"""How many lines, and how many blocks of fields, are remembered: some 3 MiB if they are long."""

_LINE: Final = re.compile(
    rb"(?P<method>GET|POST) (?P<path>/[A-Za-z0-9._~!$&'()*+,;=:@/-]+)"
    rb"(?:\?(?P<query>[A-Za-z0-9._~=&-]*))? HTTP/1\.1"
)
_FIELDS_END: Final = b"\r\n\r\n"
_UNPLAIN: Final = frozenset({b"expect", b"transfer-encoding", b"content-encoding", b"upgrade"})
_SUBMIT_RAW_PATH: Final = SUBMIT_PATH.encode("ascii")


class ReadCall(NamedTuple):
    """A read: what answers it, and what was asked."""

    handler: Handler
    asked: Asked


HotCall: TypeAlias = Options | ReadCall


class HotHead(NamedTuple):
    """The head of a hot request, and how many bytes of head and body make up the whole."""

    call: HotCall
    head_bytes: int
    whole_bytes: int


class _Fields(NamedTuple):
    """What plain header fields say; `is_json` means that they fit a submit."""

    body_bytes: int
    is_json: bool


class HeadReader:
    """Reads the heads of the requests to one server."""

    def __init__(self, check_host: Callable[[Scope], None]) -> None:
        """`check_host` raises ProblemError for a request that is meant for another server."""
        self._check_host = check_host
        self._judged = lru_cache(maxsize=_REMEMBERED)(self._judge)

    def read(self, data: bytes) -> HotHead | None:
        """Read what begins with a request; None where it is no hot one, or its head goes on."""
        line_end = data.find(b"\r\n", 0, MAX_LINE_BYTES)
        if line_end < 0:
            return None
        call = read_line(data[:line_end])
        if call is None:
            return None
        head_bytes = data.find(_FIELDS_END, line_end, line_end + MAX_FIELDS_BYTES) + 4
        if head_bytes < line_end:
            return None
        fields = self._judged(data[line_end:head_bytes])
        if fields is None:
            return None
        is_fit = fields.is_json if type(call) is Options else fields.body_bytes == 0
        return HotHead(call, head_bytes, head_bytes + fields.body_bytes) if is_fit else None

    def _judge(self, block: bytes) -> _Fields | None:
        """Read a block of header fields, from the end of the line before it to the empty line."""
        headers = _parse_fields(block)
        if headers is None or not _UNPLAIN.isdisjoint(name for name, _ in headers):
            return None
        try:
            self._check_host({"headers": headers, "http_version": "1.1"})
        except ProblemError:
            return None
        lengths = [int(value) for name, value in headers if name == b"content-length"]
        body_bytes = lengths[0] if lengths else 0
        if body_bytes > MAX_AT_ONCE_BYTES:
            return None
        return _Fields(body_bytes, _is_submit(headers))


@lru_cache(maxsize=_REMEMBERED)
def read_line(line: bytes) -> HotCall | None:
    """Read a request line; None where it is not that of a hot call, or is at fault."""
    match = _LINE.fullmatch(line)
    if match is None:
        return None
    path, query = match["path"], match["query"] or b""
    try:
        if match["method"] == b"POST":
            return read_options(query) if path == _SUBMIT_RAW_PATH else None
        return _read_call(path.decode("ascii"), query)
    except ProblemError:
        return None


def _read_call(path: str, query: bytes) -> ReadCall | None:
    for route in ROUTES:
        if route.handler not in {read_history, read_receipt}:
            continue
        assert route.handler is not None
        prefix, _, parameter = route.path.rstrip("}").partition("{")
        part = path.removeprefix(prefix)
        if path.startswith(prefix) and part and "/" not in part:
            asked = Asked({parameter: part}, parse_query(query, route.parameters), {})
            return ReadCall(route.handler, asked)
    return None


class _Ear:
    """Hears what the parser finds."""

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.is_complete = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.is_complete = True


def _parse_fields(block: bytes) -> list[tuple[bytes, bytes]] | None:
    """Return the fields of a block that ends a head and lets the connection go on, or None."""
    ear = _Ear()
    parser = httptools.HttpRequestParser(ear)
    try:
        parser.feed_data(b"POST / HTTP/1.1" + block[:-1])
        if ear.is_complete:
            return None
        parser.feed_data(block[-1:])
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        return None
    if not ear.is_complete or not parser.should_keep_alive() or parser.should_upgrade():
        return None
    return ear.headers


def _is_submit(headers: list[tuple[bytes, bytes]]) -> bool:
    try:
        check_lengths(headers, limit_bytes=MAX_BODY_BYTES)
        check_type(headers)
    except ProblemError:
        return False
    return True
