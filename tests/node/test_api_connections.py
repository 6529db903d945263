"""Connections to the HTTP face that ask for nothing, read nothing, or are too many."""

from __future__ import annotations

import asyncio
import contextlib
import resource
from typing import TYPE_CHECKING

import pytest

from node.outcomes import Receipt
from tests.node.api_fixture import stage
from tests.node.test_api_express import LIVE, Line, submit

if TYPE_CHECKING:
    from collections.abc import Callable

    from node.outcomes import Outcome
    from tests.node.api_fixture import Stage

__all__ = ["stage"]


@pytest.mark.asyncio
async def test_connections_leave_descriptors_to_the_node(stage: Stage) -> None:
    """One too many is turned away and costs the others nothing; where one goes there is room."""
    line = await Line(stage).open()
    express = line.end._express
    assert 0 < express.max_connections <= resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4
    express.max_connections = 1
    reader, writer = await asyncio.open_connection(stage.server.host, stage.server.port)
    with contextlib.suppress(ConnectionResetError):
        async with asyncio.timeout(5):
            assert b"" == await reader.read()
    writer.close()
    assert (await line.ask(submit())).startswith(b"HTTP/1.1 201 ")
    await line.close()
    await line.end.gone
    line = await Line(stage).open()
    assert (await line.ask(submit())).startswith(b"HTTP/1.1 201 ")
    await line.close()


@pytest.mark.asyncio
@pytest.mark.parametrize("request_bytes", [submit(), LIVE], ids=["short", "whole"])
async def test_empty_lines_keep_no_connection(stage: Stage, request_bytes: bytes) -> None:
    """They begin no request, so the connection is as idle as before."""
    line = await Line(stage).open()
    await line.ask(request_bytes)
    line.end.data_received(b"\r\n")
    assert line.end.timeout_keep_alive_task is None
    assert (await line.ask(submit())).startswith(b"HTTP/1.1 201 ")
    line.end.data_received(b"\r\n")
    line.end.close_if_idle_since(asyncio.get_running_loop().time() + 1)
    assert line.end.transport.is_closing()
    await line.close()


@pytest.mark.asyncio
@pytest.mark.parametrize("is_closing", [False, True])
async def test_who_does_not_read_is_cut_off(stage: Stage, *, is_closing: bool) -> None:
    """To close waits until the client has read, which it need not ever do."""
    line = await Line(stage).open()
    now = asyncio.get_running_loop().time()
    line.reader._transport.pause_reading()  # type: ignore[attr-defined] # asyncio's own
    while not line.end.flow.write_paused:
        line.end.transport.write(bytes(1 << 20))
    if is_closing:
        line.end.transport.close()
    line.end.abort_if_unread_since(now - 1)
    assert not line.end.gone.done()
    line.end.abort_if_unread_since(asyncio.get_running_loop().time() + 1)
    await line.end.gone
    await line.close()


@pytest.mark.asyncio
async def test_outcomes_that_come_after_a_fault_answer_no_other_request(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node failed in the middle of a call, and still tells what became of it."""
    late: list[Callable[[list[Outcome]], None]] = []

    def fail(*_: object, on_done: Callable[[list[Outcome]], None], **__: object) -> None:
        late.append(on_done)
        raise ZeroDivisionError

    line = await Line(stage).open()
    with monkeypatch.context() as broken:
        broken.setattr(stage.node, "begin_submit", fail)
        assert (await line.ask(submit())).startswith(b"HTTP/1.1 500 ")
    stage.faults.clear()
    stage.node.gate = asyncio.Event()
    line.end.data_received(submit())
    (answer_late,) = late
    answer_late([Receipt(bytes(16), 666, 0, bytes(32), 0)])
    stage.node.gate.set()
    answer = await line.answer()
    assert answer.startswith(b"HTTP/1.1 201 ")
    assert b"666" not in answer
    await line.close()
