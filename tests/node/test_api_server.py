"""The server itself: binding, stopping, and clients that do not speak HTTP."""

from __future__ import annotations

import asyncio
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from node.api import server as server_module
from node.api.server import ApiServer, ListenError
from tests.node.api_fixture import PROBLEM, TRANSACTIONS, Stage, problem_of, stage
from tests.node.fake_ledger import FakeNode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["stage"]

BEGUN = (
    b"POST /api/v1/ledger/transactions HTTP/1.1\r\nContent-Type: application/json\r\n"
    b"Content-Length: 100\r\n\r\n{"
)
LIVE = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
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
    request = method + b" " + target + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
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
        if isinstance(connection, server_module._Protocol)
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
    writer.write(
        b"POST /api/v1/ledger/transactions HTTP/1.1\r\nContent-Type: application/json\r\n" + begun
    )
    answer = await reader.readuntil(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")
    writer.close()
    await writer.wait_closed()


@pytest.mark.asyncio
async def test_requests_on_one_connection_are_answered_in_order(stage: Stage) -> None:
    """HTTP/1.1 pipelining (RFC 9112 §9.3.2)."""
    last = b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
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
