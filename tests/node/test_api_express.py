"""The short way of hot requests: what it answers, in what order, and how it ends."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

import pytest

from node.api import server as server_module
from node.api.express import ExpressProtocol
from node.outcomes import Receipt, Refusal, RefusalReason
from tests.node.api_fixture import TRANSACTIONS, Stage, stage

if TYPE_CHECKING:
    from collections.abc import Callable

    from node.outcomes import Outcome
    from node.submissions import Submission as Call

__all__ = ["stage"]

GOOD = b'{"user_id":"alice","kind":"deposit","payload":1}'
ID = b"0190a5d0-c8e2-7cc0-8a9b-1d2e3f405162"
WITH_ID = b'{"id":"%b","user_id":"alice","kind":"deposit","payload":1}' % ID
HOST = b"Host: localhost\r\n"
LIVE = b"GET /livez HTTP/1.1\r\n" + HOST + b"\r\n"
HISTORY = b"GET " + TRANSACTIONS.encode() + b"/alice HTTP/1.1\r\n" + HOST + b"\r\n"
RECEIPT = b"GET /api/v1/ledger/receipts/" + ID + b" HTTP/1.1\r\n" + HOST + b"\r\n"
STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")


def submit(body: bytes = GOOD, fields: bytes = b"") -> bytes:
    """A submit as clients send it."""
    line = b"POST " + TRANSACTIONS.encode() + b" HTTP/1.1\r\n"
    plain = b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(body)
    return line + HOST + plain + fields + b"\r\n" + body


async def until(condition: Callable[[], object]) -> None:
    """Let the loop turn until something is so."""
    for _ in range(100_000):
        if condition():
            return
        await asyncio.sleep(0)
    pytest.fail("it never came to be so")


class Line:
    """One connection to the server, and the server's end of it."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    async def open(self) -> Line:
        """Connect."""
        host, port = self._stage.server.host, self._stage.server.port
        self.reader, self.writer = await asyncio.open_connection(host, port)
        running = self._stage.server._server
        assert running is not None
        await until(lambda: len(running.server_state.connections) == 1)
        (end,) = running.server_state.connections
        assert isinstance(end, ExpressProtocol)
        self.end = end
        return self

    async def ask(self, request: bytes) -> bytes:
        """Send a request and read its answer, which is JSON or a problem."""
        self.writer.write(request)
        return await self.answer()

    async def answer(self) -> bytes:
        """Read one answer."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        assert length is not None
        return head + await self.reader.readexactly(int(length[1]))

    async def close(self) -> None:
        """Hang up."""
        self.writer.close()
        await self.writer.wait_closed()

    @property
    def went_short(self) -> bool:
        """Whether nothing on this connection went the whole way so far."""
        return self.end.cycle is None


class Ear:
    """A transport that remembers what is written to it."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.writes: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Pass on."""
        self.writes.append(data)
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


@pytest.mark.asyncio
async def test_each_answer_is_one_segment(stage: Stage) -> None:
    """Receipts, batches, reads and problems: a second write would be a second system call."""
    line = await Line(stage).open()
    ear = Ear(line.end.transport)
    line.end.transport = ear  # type: ignore[assignment] # all that the protocol needs of one
    batch = b'{"transactions":[' + GOOD + b"," + GOOD + b"]}"
    requests = [submit(WITH_ID), submit(batch), submit(b"{}"), RECEIPT, HISTORY]
    answers = [await line.ask(request) for request in requests]
    assert [b"201", b"201", b"422", b"200", b"200"] == STATUS.findall(b"".join(answers))
    assert answers == ear.writes
    assert line.went_short
    await line.close()


@pytest.mark.parametrize("request_bytes", [submit(WITH_ID), submit(b"{}"), RECEIPT, HISTORY])
@pytest.mark.asyncio
async def test_both_ways_give_the_same_answer(stage: Stage, request_bytes: bytes) -> None:
    """Status, every field with Date, and body: a client cannot tell which way it went."""
    await stage.record(id=ID.decode())
    await stage.http.aclose()
    line = await Line(stage).open()
    short = await line.ask(request_bytes)
    assert line.went_short
    whole = await line.ask(request_bytes.replace(HOST, HOST + b"Content-Encoding: identity\r\n"))
    assert not line.went_short

    def parts(answer: bytes) -> tuple[bytes, list[bytes], bytes]:
        head, _, body = re.sub(rb"\d\d GMT", b"xx GMT", answer).partition(b"\r\n\r\n")
        status, *fields = head.split(b"\r\n")
        return status, sorted(fields), body

    assert parts(whole) == parts(short)
    assert any(field.startswith(b"date: ") for field in parts(short)[1])
    await line.close()


@pytest.mark.asyncio
async def test_answers_of_both_ways_come_in_turn(stage: Stage) -> None:
    """What comes while a hot request waits is read no further, and answered after it."""
    stage.node.gate = asyncio.Event()
    line = await Line(stage).open()
    line.end.data_received(submit(WITH_ID))
    line.end.data_received(LIVE + submit()[:20])
    assert line.end.flow.read_paused
    line.end.data_received(submit()[20:] + RECEIPT)
    stage.node.gate.set()
    answers = [await line.answer() for _ in range(4)]
    assert [b"201", b"200", b"201", b"200"] == STATUS.findall(b"".join(answers))
    assert [ID in answer for answer in answers] == [True, False, False, True]
    assert b'"live"' in answers[1]
    await until(lambda: not line.end.flow.read_paused)
    assert (await line.ask(submit(WITH_ID))).startswith(b"HTTP/1.1 201 ")
    await line.close()


@pytest.mark.asyncio
async def test_reading_goes_on_after_the_turn_of_what_was_held(stage: Stage) -> None:
    """Also where nothing on the connection goes the whole way."""
    stage.node.gate = asyncio.Event()
    line = await Line(stage).open()
    line.end.data_received(submit())
    line.end.data_received(RECEIPT)
    stage.node.gate.set()
    answers = [await line.answer() for _ in range(2)]
    answers.append(await line.ask(RECEIPT))
    assert [b"201", b"200", b"200"] == STATUS.findall(b"".join(answers))
    assert line.went_short
    await line.close()


@pytest.mark.asyncio
async def test_a_hot_request_after_a_slow_one_waits_for_its_turn(stage: Stage) -> None:
    """As long as the application answers, nothing overtakes it."""
    stage.node.gate = asyncio.Event()
    line = await Line(stage).open()
    line.end.data_received(submit(WITH_ID, b"Content-Encoding: identity\r\n"))
    line.end.data_received(RECEIPT)
    for _ in range(20):
        await asyncio.sleep(0)
    stage.node.gate.set()
    answers = [await line.answer() for _ in range(2)]
    assert [b"201", b"200"] == STATUS.findall(b"".join(answers))
    assert (await line.ask(HISTORY)).startswith(b"HTTP/1.1 200 ")
    await line.close()


@pytest.mark.parametrize("piece_bytes", [1, 7, len(GOOD)])
@pytest.mark.asyncio
async def test_a_body_in_pieces_goes_the_short_way(stage: Stage, piece_bytes: int) -> None:
    """Many clients send the head alone first."""
    line = await Line(stage).open()
    whole = submit()
    line.end.data_received(whole[: -len(GOOD)])
    for at in range(len(whole) - len(GOOD), len(whole), piece_bytes):
        assert stage.node.recorded == 0
        line.end.data_received(whole[at : at + piece_bytes])
    assert (await line.answer()).startswith(b"HTTP/1.1 201 ")
    assert line.went_short
    await line.close()


@pytest.mark.asyncio
async def test_a_body_that_more_follows_goes_the_whole_way(stage: Stage) -> None:
    """Whatever was kept of it: the parser sees all of it, once."""
    line = await Line(stage).open()
    line.end.data_received(submit()[:-5])
    line.end.data_received(submit()[-5:] + LIVE)
    answers = await line.answer() + await line.answer()
    assert [b"201", b"200"] == STATUS.findall(answers)
    assert (not line.went_short, 1) == (True, stage.node.recorded)
    await line.close()


@pytest.mark.parametrize("fields", [b"Content-Encoding: identity\r\n", b"Expect: y\r\n"])
@pytest.mark.asyncio
async def test_what_looks_like_a_request_within_a_body_is_body(stage: Stage, fields: bytes) -> None:
    """A body may come in a segment of its own and hold anything, a whole hot request too."""
    line = await Line(stage).open()
    whole = submit(submit(), fields)
    line.end.data_received(whole[: -len(submit())])
    line.end.data_received(submit())
    assert (await line.answer()).startswith(b"HTTP/1.1 400 ")
    assert (await line.ask(RECEIPT)).startswith(b"HTTP/1.1 200 ")
    assert [] == stage.node.submits
    await line.close()


@pytest.mark.asyncio
async def test_what_looks_like_a_request_within_a_head_is_head(stage: Stage) -> None:
    """A header may be cut anywhere, and what comes next may look like a whole hot request."""
    line = await Line(stage).open()
    line.end.data_received(b"GET /livez HTTP/1.1\r\nX: ")
    line.end.data_received(submit())
    answer = await line.answer()
    assert (b"200", True) == (STATUS.findall(answer)[0], b'"live"' in answer)
    assert [] == stage.node.submits
    await line.close()


@pytest.mark.asyncio
async def test_what_comes_after_a_refusal_is_dropped(stage: Stage) -> None:
    """A body that was too slow is recorded no more."""
    line = await Line(stage).open()
    line.end.data_received(submit()[:-5])
    line.end.refuse_if_begun_before(asyncio.get_running_loop().time() + 1)
    line.end.data_received(submit()[-5:])
    line.end.data_received(submit())
    assert [b"408"] == STATUS.findall(await line.reader.read())
    assert [] == stage.node.submits
    await line.close()


@pytest.mark.asyncio
async def test_a_client_that_does_not_read_is_waited_for(stage: Stage) -> None:
    """While its answers pile up, the next one goes the whole way, which waits."""
    line = await Line(stage).open()
    line.end.pause_writing()
    line.end.data_received(submit())
    assert not line.went_short
    line.end.resume_writing()
    assert (await line.answer()).startswith(b"HTTP/1.1 201 ")
    await line.close()


@pytest.mark.asyncio
async def test_a_submit_whose_client_is_gone_is_abandoned(stage: Stage) -> None:
    """Nobody waits for it any more, and no answer is made."""
    stage.node.gate = asyncio.Event()
    line = await Line(stage).open()
    line.end.data_received(submit())
    (call,) = stage.node.calls.values()
    await line.close()
    await line.end.gone
    await until(call.done)
    assert (True, 0) == (call.cancelled(), stage.node.recorded)
    assert "201" not in (await stage.get("/metrics")).text


@pytest.mark.asyncio
async def test_what_a_node_says_to_nobody_is_not_answered(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An abandoned call hears that its fate is unknown, which is no fault."""
    stage.node.gate = asyncio.Event()
    line = await Line(stage).open()
    line.end.data_received(submit())
    (call,) = stage.node.calls
    told: list[Call] = []

    def abandon(gone: Call) -> None:
        told.append(gone)
        gone.settle(0, Refusal(gone.ids[0], RefusalReason.UNKNOWN, "for a test"))

    monkeypatch.setattr(stage.node, "abandon", abandon)
    await line.close()
    await line.end.gone
    assert ([call], []) == (told, stage.faults)
    assert 'status="503"' not in (await stage.get("/metrics")).text


@pytest.mark.asyncio
async def test_a_read_whose_client_is_gone_is_given_up(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It no longer waits for a leader."""
    ended = asyncio.Event()

    async def wait(**_: object) -> int:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    monkeypatch.setattr(stage.node, "read_barrier", wait)
    line = await Line(stage).open()
    line.writer.write(RECEIPT)
    await until(lambda: line.end.answered() is not None)
    await asyncio.sleep(0)
    await line.close()
    await ended.wait()


@pytest.mark.asyncio
async def test_a_fault_in_answering_stays_with_its_request(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the node, which calls back, nor the connection suffers from it."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    line = await Line(stage).open()
    with monkeypatch.context() as broken:
        broken.setattr("node.api.express.submit_reply", fail)
        answer = await line.ask(submit())
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b"urn:bitnexus:problem:internal" in answer
    (call,) = stage.node.calls.values()
    await call
    assert [ZeroDivisionError] == [type(fault) for fault in stage.faults]
    stage.faults.clear()
    assert (await line.ask(submit())).startswith(b"HTTP/1.1 201 ")
    assert line.went_short
    await line.close()


@pytest.mark.asyncio
async def test_a_node_may_answer_at_once(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before `begin_submit` returns; a call that comes too late to be abandoned is not."""
    receipt = Receipt(bytes(16), 1, 0, bytes(32), 0)

    def begin(*_: object, on_done: Callable[[list[Outcome]], None], **__: object) -> None:
        on_done([receipt])

    abandoned: list[object] = []
    monkeypatch.setattr(stage.node, "begin_submit", begin)
    monkeypatch.setattr(stage.node, "abandon", abandoned.append)
    line = await Line(stage).open()
    assert (await line.ask(submit())).startswith(b"HTTP/1.1 201 ")
    await line.close()
    await line.end.gone
    assert [] == abandoned


@pytest.mark.asyncio
async def test_a_stop_takes_what_has_begun_to_arrive(stage: Stage) -> None:
    """A body of which a part is here is waited for, and answered as the last one."""
    line = await Line(stage).open()
    line.end.data_received(submit()[:-5])
    stopping = asyncio.ensure_future(stage.server.stop())
    await until(lambda: not line.went_short)
    line.end.data_received(submit()[-5:])
    answer = await line.reader.read()
    assert [b"201"] == STATUS.findall(answer)
    assert b"\r\nconnection: close\r\n" in answer
    await stopping
    await line.close()


@pytest.mark.asyncio
async def test_a_connection_ends_with_the_answer_under_way(stage: Stage) -> None:
    """It does not wait for the others when the server stops."""
    stage.node.gate = asyncio.Event()
    line = await Line(stage).open()
    line.end.data_received(submit())
    line.end.shutdown()
    stage.node.gate.set()
    answer = await line.reader.read()
    assert ([b"201"], True) == (STATUS.findall(answer), b"\r\nconnection: close\r\n" in answer)
    await line.close()


@pytest.mark.asyncio
async def test_the_time_of_an_answer_is_that_of_its_second(stage: Stage) -> None:
    """What is made once for many answers is made again when the server's Date changes."""
    line = await Line(stage).open()
    for date in (b"one", b"two"):
        line.end.server_state.default_headers = [(b"date", date)]
        assert b"\r\ndate: %b\r\n" % date in await line.ask(RECEIPT)
    await line.close()


@pytest.mark.asyncio
async def test_a_stop_abandons_what_it_answers(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the deadline: one answer, the last one, and the node is told."""
    monkeypatch.setattr(server_module, "STOP_TIMEOUT_S", 0.01)
    stage.node.gate = asyncio.Event()
    line = await Line(stage).open()
    line.end.data_received(submit())
    await stage.server.stop()
    answer = await line.reader.read()
    assert [b"503"] == STATUS.findall(answer)
    assert b"urn:bitnexus:problem:unknown" in answer
    assert b"\r\nconnection: close\r\n" in answer
    (call,) = stage.node.calls.values()
    await until(call.done)
    assert call.cancelled()
    await line.close()


@pytest.mark.asyncio
async def test_an_idle_connection_is_closed(stage: Stage) -> None:
    """Not while a request is under way, and not before its time."""
    stage.node.gate = asyncio.Event()
    stage.node.gate.set()
    line = await Line(stage).open()
    await line.ask(submit())
    now = asyncio.get_running_loop().time()
    line.end.close_if_idle_since(now - 1)
    stage.node.gate.clear()
    line.end.data_received(submit())
    line.end.close_if_idle_since(now + 1)
    assert not line.end.transport.is_closing()
    stage.node.gate.set()
    assert (await line.answer()).startswith(b"HTTP/1.1 201 ")
    line.end.close_if_idle_since(now + 1)
    assert b"" == await line.reader.read()
    await line.close()


@pytest.mark.asyncio
async def test_answers_are_counted(stage: Stage) -> None:
    """By their status, as those that go the whole way."""
    line = await Line(stage).open()
    for request in (submit(), submit(), submit(b"{}"), HISTORY):
        await line.ask(request)
    await line.close()
    text = (await stage.get("/metrics")).text
    found = dict(re.findall(r'\{status="(\d+)"\} (\d+)', text))
    assert {"201": "2", "422": "1"} == {code: found[code] for code in ("201", "422")}
