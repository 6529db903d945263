"""The server itself: binding, stopping, and clients that do not speak HTTP."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from node.api import server as server_module
from node.api.protocol import LedgerProtocol
from node.api.server import ApiServer, ListenError
from tests.node.api_fixture import PROBLEM, TRANSACTIONS, Stage, problem_of, stage
from tests.node.fake_ledger import FakeNode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["stage"]

SUBMIT_HEAD = (
    b"POST /api/v1/ledger/transactions HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Type: application/json\r\n"
)
BEGUN = SUBMIT_HEAD + b"Content-Length: 100\r\n\r\n{"
LIVE = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
GOOD = b'{"user_id":"alice","kind":"deposit","payload":1}'


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until something is so."""
    for _ in range(100_000):
        if condition():
            return
        await asyncio.sleep(0)
    pytest.fail("it never came to be so")


async def speak(stage: Stage, request: bytes) -> bytes:
    """Send raw bytes and read to the end of the connection."""
    reader, writer = await asyncio.open_connection(stage.server.host, stage.server.port)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


@pytest.mark.asyncio
async def test_a_port_in_use_is_one_clear_line() -> None:
    """The error names the address and what is wrong."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ListenError) as caught:
            await ApiServer(FakeNode(), "127.0.0.1", port).start()
    assert f"HTTP address 127.0.0.1 port {port} is in use by another process" == str(caught.value)


@pytest.mark.asyncio
async def test_an_address_of_another_machine_is_one_clear_line() -> None:
    """203.0.113.1 is set aside for documentation (RFC 5737)."""
    with pytest.raises(ListenError, match=r"203\.0\.113\.1 port 0 is not an address of this"):
        await ApiServer(FakeNode(), "203.0.113.1", 0).start()


@pytest.mark.asyncio
async def test_the_port_is_free_after_a_stop() -> None:
    """The same port can be listened on again at once; stopping twice does no harm."""
    first = ApiServer(FakeNode(), "127.0.0.1", 0)
    await first.start()
    await first.stop()
    await first.stop()
    second = ApiServer(FakeNode(), "127.0.0.1", first.port)
    await second.start()
    await second.stop()


@pytest.mark.asyncio
async def test_it_listens_on_ipv6() -> None:
    """The URL has the address in brackets."""
    server = ApiServer(FakeNode(), "::1", 0)
    await server.start()
    assert f"http://[::1]:{server.port}" == server.url
    await server.stop()


@pytest.mark.asyncio
async def test_signals_are_left_to_the_node() -> None:
    """What happens at SIGTERM and SIGINT is the same while the server runs and after."""
    signals = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in signals]
    server = ApiServer(FakeNode(), "127.0.0.1", 0)
    await server.start()
    assert before == [signal.getsignal(number) for number in signals]
    await server.stop()
    assert before == [signal.getsignal(number) for number in signals]


@pytest.mark.asyncio
async def test_a_stop_lets_requests_end(stage: Stage) -> None:
    """What was under way is answered; nothing new is taken."""
    stage.node.gate = asyncio.Event()
    waiting = asyncio.ensure_future(stage.post(GOOD))
    await stage.get("/livez")
    stopping = asyncio.ensure_future(stage.server.stop())
    await asyncio.sleep(0)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(stage.server.host, stage.server.port)
    assert not stopping.done()
    stage.node.gate.set()
    response = await waiting
    assert (201, "close") == (response.status_code, response.headers["connection"])
    await stopping


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda stage: stage.post(GOOD), "unknown"),
        (lambda stage: stage.get(f"{TRANSACTIONS}/alice"), "unavailable"),
    ],
)
@pytest.mark.asyncio
async def test_a_stop_does_not_wait_for_ever(
    stage: Stage,
    monkeypatch: pytest.MonkeyPatch,
    call: Callable[[Stage], Awaitable[object]],
    name: str,
) -> None:
    """At the deadline a submit hears that its fate is unknown, and a read that it got nothing."""
    monkeypatch.setattr(server_module, "STOP_TIMEOUT_S", 0.01)
    stage.node.gate = asyncio.Event()
    entered = asyncio.Event()

    async def never(**_: object) -> int:
        entered.set()
        await asyncio.Event().wait()
        raise AssertionError

    async def never_submit(*_: object, **__: object) -> int:
        return await never()

    monkeypatch.setattr(stage.node, "read_barrier", never)
    monkeypatch.setattr(stage.node, "submit", never_submit)
    waiting = asyncio.ensure_future(call(stage))
    await entered.wait()
    await stage.server.stop()
    problem_of(await waiting, 503, name)  # type: ignore[arg-type] # both calls give a response


@pytest.mark.asyncio
async def test_a_fault_in_the_servers_own_ticking_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without ticks there is no Date and no end to slow requests: the owner must hear of it."""
    faults: list[BaseException] = []
    told = asyncio.Event()

    def hear(fault: BaseException) -> None:
        faults.append(fault)
        told.set()

    async def fail(*_: object) -> bool:
        raise ZeroDivisionError

    monkeypatch.setattr(server_module._Server, "on_tick", fail)
    server = ApiServer(FakeNode(), "127.0.0.1", 0, on_failure=hear)
    await server.start()
    await told.wait()
    assert [ZeroDivisionError] == [type(fault) for fault in faults]
    await server.stop()


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET /livez HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        b"FROB / HTTP/1.1\r\n\r\n",
    ],
)
@pytest.mark.asyncio
async def test_what_is_not_http_is_refused(stage: Stage, request_bytes: bytes) -> None:
    """400 as problem details, and the connection is closed."""
    answer = await speak(stage, request_bytes)
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert f"content-type: {PROBLEM}\r\n".encode() in answer
    assert b"urn:bitnexus:problem:invalid-request" in answer


@pytest.mark.parametrize(
    "target", [b"/livez?\xff", b"/api/v1/ledger/transactions?wait=\xff", b"/livez?a=%ff"]
)
@pytest.mark.asyncio
async def test_a_query_that_is_no_text_is_refused(stage: Stage, target: bytes) -> None:
    """400, whichever layer sees it first."""
    method = b"POST" if b"transactions" in target else b"GET"
    request = method + b" " + target + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    answer = await speak(stage, request)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert PROBLEM.encode() in answer


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"POST /api/v1/ledger/transactions HTTP/1.1\r\nContent-Le",
        BEGUN,
    ],
)
@pytest.mark.asyncio
async def test_a_request_that_never_ends_is_refused(stage: Stage, begun: bytes) -> None:
    """408 and the end of the connection, wherever in the request the client stopped."""
    reader, writer = await asyncio.open_connection(stage.server.host, stage.server.port)
    writer.write(begun)
    # An answer on another connection means that the server has had its turn with this one.
    idle_reader, idle_writer = await asyncio.open_connection(stage.server.host, stage.server.port)
    idle_writer.write(LIVE)
    assert (await idle_reader.readuntil(b'"live"}')).startswith(b"HTTP/1.1 200 OK")
    running = stage.server._server
    assert running is not None
    await until(lambda: len(running.server_state.connections) == 2)
    now = asyncio.get_running_loop().time()
    refused = [
        connection
        for connection in running.server_state.connections
        if isinstance(connection, LedgerProtocol)
    ]
    for connection in refused:
        connection.refuse_if_begun_before(now + 1)
    answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert b"urn:bitnexus:problem:too-slow" in answer
    writer.close()
    await writer.wait_closed()
    # The other connection was idle between two requests, which is no fault.
    idle_writer.write(LIVE)
    assert (await idle_reader.readuntil(b'"live"}')).startswith(b"HTTP/1.1 200 OK")
    idle_writer.close()
    await idle_writer.wait_closed()
    assert 0 == stage.node.recorded


@pytest.mark.parametrize(
    "begun",
    [
        b"Content-Length: 9000000\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n" + (b"100000\r\n" + b" " * (1 << 20) + b"\r\n") * 9,
    ],
    ids=["by its length", "by its chunks"],
)
@pytest.mark.asyncio
async def test_a_body_too_large_is_refused_before_its_end(stage: Stage, begun: bytes) -> None:
    """413 as soon as it is sure, without waiting for the rest or keeping it."""
    reader, writer = await asyncio.open_connection(stage.server.host, stage.server.port)
    writer.write(SUBMIT_HEAD + begun)
    answer = await reader.readuntil(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")
    writer.close()
    await writer.wait_closed()


@pytest.mark.asyncio
async def test_requests_on_one_connection_are_answered_in_order(stage: Stage) -> None:
    """HTTP/1.1 pipelining (RFC 9112 §9.3.2)."""
    last = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    answer = await speak(stage, LIVE + last)
    assert 2 == answer.count(b"HTTP/1.1 200 OK")
    assert answer.index(b'"live"') < answer.index(b'"ready"')


@pytest.mark.asyncio
async def test_a_client_that_leaves_does_no_harm(stage: Stage) -> None:
    """A connection closed in the middle of a body is no fault of ours."""
    _, writer = await asyncio.open_connection(stage.server.host, stage.server.port)
    writer.write(BEGUN)
    assert 200 == (await stage.get("/livez")).status_code
    writer.close()
    await writer.wait_closed()
    assert 201 == (await stage.post(GOOD)).status_code
    assert 1 == stage.node.recorded


CHUNKED = SUBMIT_HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
SMALL_CHUNKS = b"".join(b"1\r\n%c\r\n" % byte for byte in GOOD.ljust(40_000))
LONG = b"x" * 100_000
STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")


async def connection_of(stage: Stage) -> LedgerProtocol:
    """Return the server's end of the one connection there is."""
    running = stage.server._server
    assert running is not None
    await until(lambda: len(running.server_state.connections) == 1)
    (connection,) = running.server_state.connections
    assert isinstance(connection, LedgerProtocol)
    return connection


async def feed(stage: Stage, parts: list[bytes]) -> bytes:
    """Hand the parts to the server's end one by one and read to the end of the connection."""
    reader, writer = await asyncio.open_connection(stage.server.host, stage.server.port)
    connection = await connection_of(stage)
    for part in parts:
        connection.data_received(part)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /" + LONG,
        b"GET /livez HTTP/1.1\r\nX: " + LONG,
        b"GET /livez HTTP/1.1\r\nX: " + LONG + b"\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n" + b"X: y\r\n" * 20_000,
        CHUNKED + b"1;" + LONG,
        CHUNKED + b"1\r\n{\r\n0\r\nX: " + LONG,
    ],
    ids=["target", "header", "whole header", "many headers", "chunk extension", "trailer"],
)
@pytest.mark.parametrize("part_bytes", [1000, 1 << 20], ids=["in parts", "at once"])
@pytest.mark.asyncio
async def test_what_is_no_body_is_limited(
    stage: Stage, request_bytes: bytes, part_bytes: int
) -> None:
    """431 (RFC 6585 §5) wherever it is and however it comes, once; nothing more is parsed."""
    request_bytes += b"\r\n\r\n" + LIVE
    starts = range(0, len(request_bytes), part_bytes)
    answer = await feed(stage, [request_bytes[at : at + part_bytes] for at in starts])
    assert answer.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
    assert f"content-type: {PROBLEM}\r\n".encode() in answer
    assert b"\r\nconnection: close\r\n" in answer
    assert b"urn:bitnexus:problem:head-too-large" in answer
    assert [b"431"] == STATUS.findall(answer)
    assert 0 == stage.node.recorded


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX: "
        + b"x" * 60_000
        + b"\r\n\r\n",
        LIVE * 5000 + b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        SUBMIT_HEAD + b"Connection: close\r\nContent-Length: 200000\r\n\r\n" + GOOD.ljust(200_000),
        CHUNKED.replace(b"\r\n", b"\r\nConnection: close\r\n", 1) + SMALL_CHUNKS + b"0\r\n\r\n",
    ],
    ids=["a long header", "many requests", "a long body", "many small chunks"],
)
@pytest.mark.asyncio
async def test_the_limit_hits_nothing_else(stage: Stage, request_bytes: bytes) -> None:
    """What is body, and what belongs to other requests on the connection, does not count."""
    answer = await feed(stage, [request_bytes])
    assert answer.startswith(b"HTTP/1.1 20")
    assert b"HTTP/1.1 4" not in answer


@pytest.mark.asyncio
async def test_after_an_early_answer_comes_no_other(stage: Stage) -> None:
    """An answer before the body closes the connection; a body that stalls then adds nothing."""
    reader, writer = await asyncio.open_connection(stage.server.host, stage.server.port)
    writer.write(BEGUN.replace(b"application/json", b"text/plain"))
    answer = await reader.readuntil(b"}")
    assert answer.startswith(b"HTTP/1.1 415 ")
    assert b"\r\nconnection: close\r\n" in answer
    connection = await connection_of(stage)
    connection.refuse_if_begun_before(asyncio.get_running_loop().time() + 1)
    # The server has said its last word, and hears the client out.
    assert b"" == await reader.read()
    assert not connection.transport.is_closing()
    writer.write(b" " * 99 + LIVE)
    await writer.drain()
    connection.close_if_lingering_since(asyncio.get_running_loop().time() + 1)
    await connection.gone
    writer.close()


@pytest.mark.asyncio
async def test_an_answer_that_has_begun_is_not_followed_by_a_timeout(stage: Stage) -> None:
    """The arrival timeout then only closes."""
    reader, writer = await asyncio.open_connection(stage.server.host, stage.server.port)
    stage.node.gate = asyncio.Event()
    writer.write(CHUNKED + b"5\r\n{")
    connection = await connection_of(stage)
    await until(lambda: connection.cycle is not None)
    await connection.cycle.send({"type": "http.response.start", "status": 200, "headers": []})
    connection.refuse_if_begun_before(asyncio.get_running_loop().time() + 1)
    assert [b"200"] == STATUS.findall(await reader.read())
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(
    ("rest", "status"),
    [
        (b"hello\r\n\r\n", b"400"),
        (b"CONNECT x:80 HTTP/1.1\r\n\r\n", b"501"),
        (b"GET /livez HTTP/1.1\r\nX: " + LONG, b"431"),
        (CHUNKED + b"no length\r\n", b"400"),
    ],
    ids=["no HTTP", "CONNECT", "long head", "bad chunk"],
)
@pytest.mark.asyncio
async def test_a_refusal_waits_for_its_turn(stage: Stage, rest: bytes, status: bytes) -> None:
    """What was asked before is answered before: else its client would take the refusal for it."""
    whole = SUBMIT_HEAD + b"Content-Length: %d\r\n\r\n" % len(GOOD) + GOOD
    answer = await feed(stage, [whole + LIVE + rest])
    assert [b"201", b"200", status] == STATUS.findall(answer)
    assert 1 == stage.node.recorded


@pytest.mark.asyncio
async def test_a_timeout_waits_for_its_turn(stage: Stage) -> None:
    """A second request that stalls does not take the answer of the first."""
    reader, writer = await asyncio.open_connection(stage.server.host, stage.server.port)
    stage.node.gate = asyncio.Event()
    whole = SUBMIT_HEAD + b"Content-Length: %d\r\n\r\n" % len(GOOD) + GOOD
    writer.write(whole + b"GET /li")
    connection = await connection_of(stage)
    await until(lambda: connection.cycle is not None)
    connection.refuse_if_begun_before(asyncio.get_running_loop().time() + 1)
    stage.node.gate.set()
    assert [b"201", b"408"] == STATUS.findall(await reader.read())
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(
    "request_bytes",
    [
        SUBMIT_HEAD
        + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
        + b"Content-Length: %d\r\n\r\n" % len(GOOD)
        + GOOD,
        LIVE.replace(b"\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n", 1),
        b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\r\n\r\n" + LIVE,
    ],
    ids=["h2c", "websocket", "CONNECT"],
)
@pytest.mark.asyncio
async def test_another_protocol_is_refused(
    stage: Stage, caplog: pytest.LogCaptureFixture, request_bytes: bytes
) -> None:
    """501, once, with nothing in the log: its body would be taken for that protocol and lost."""
    answer = await speak(stage, request_bytes)
    assert answer.startswith(b"HTTP/1.1 501 Not Implemented\r\n")
    assert b"Upgrade is not supported: send plain HTTP/1.1" in answer
    assert [b"501"] == STATUS.findall(answer)
    assert [] == caplog.messages
    assert 0 == stage.node.recorded


@pytest.mark.asyncio
async def test_answers_do_not_wait_for_acknowledgements(stage: Stage) -> None:
    """Connections have Nagle's algorithm off: most answers are sent in two parts."""
    assert 200 == (await stage.get("/livez")).status_code
    assert stage.server._server is not None
    (connection,) = stage.server._server.server_state.connections
    accepted = connection.transport.get_extra_info("socket")
    assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
