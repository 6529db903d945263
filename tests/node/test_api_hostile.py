"""Requests that are meant to do harm: each is refused, and the node goes on for everyone else."""

from __future__ import annotations

import asyncio
import sys

import pytest

from node.api.host import HostCheck
from node.api.problems import ProblemError
from tests.node.api_fixture import TRANSACTIONS, Stage, problem_of, stage

__all__ = ["stage"]

TRANSACTION = b'{"user_id":"u","kind":"k","payload":1}'
CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(TRANSACTION), TRANSACTION)


async def answer_to(stage: Stage, request: bytes) -> bytes:
    """The whole of what the server sends before it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", stage.server.port)
    writer.write(request)
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


def submit_request(*headers: bytes, version: bytes = b"1.1", body: bytes = TRANSACTION) -> bytes:
    """A submit with these headers and no others."""
    lines = [b"POST " + TRANSACTIONS.encode() + b" HTTP/" + version, *headers]
    return b"\r\n".join([*lines, b"Connection: close", b"", body])


@pytest.mark.parametrize("path", [b"/livez", TRANSACTIONS.encode()])
@pytest.mark.parametrize("version", [b"0.9", b"2.0"])
@pytest.mark.asyncio
async def test_other_versions_of_http_are_refused(
    stage: Stage, path: bytes, version: bytes
) -> None:
    """505 on every path, and no fault of ours: one such line once stopped the node."""
    request = b"GET " + path + b" HTTP/" + version + b"\r\nHost: localhost\r\n\r\n"
    assert (await answer_to(stage, request)).startswith(b"HTTP/1.1 505 ")
    assert 200 == (await stage.get("/livez")).status_code


@pytest.mark.parametrize("is_batch", [False, True])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
@pytest.mark.asyncio
async def test_every_depth_beyond_the_limit_is_refused(
    stage: Stage, is_batch: bool, opening: str, closing: str
) -> None:
    """422 also just below the interpreter's own limit, where one more frame is too many."""
    limit = sys.getrecursionlimit()
    for depth in (33, *range(limit - 90, limit + 10)):
        payload = opening * depth + "1" + closing * depth
        body = f'{{"user_id":"u","kind":"k","payload":{payload}}}'
        if is_batch:
            body = f'{{"transactions":[{body}]}}'
        problem = problem_of(await stage.post(body.encode()), 422, "invalid-content")
        assert "deep" in problem["detail"], depth
    assert [] == stage.node.submits


@pytest.mark.parametrize(
    ("hosts", "status"),
    [
        ([b"localhost"], 201),
        ([b"LOCALHOST:8001"], 201),
        ([b"127.0.0.1:1"], 201),
        ([b"127.8.7.6"], 201),
        ([b"[::1]:8001"], 201),
        ([b"evil.example"], 421),
        ([b"evil.example:80"], 421),
        ([b"localhost.evil.example"], 421),
        ([b"127.0.0.1.evil.example"], 421),
        ([b"localhost@evil.example"], 421),
        ([b""], 421),
        ([b"localhost", b"localhost"], 400),
        ([], 400),
    ],
)
@pytest.mark.asyncio
async def test_requests_for_another_host_are_refused(
    stage: Stage, hosts: list[bytes], status: int
) -> None:
    """A page that rebinds its name to this machine cannot read or write the ledger."""
    request = submit_request(
        *(b"Host: " + host for host in hosts),
        b"Content-Type: application/json",
        b"Content-Length: %d" % len(TRANSACTION),
    )
    assert (await answer_to(stage, request)).startswith(b"HTTP/1.1 %d " % status)
    assert (1 if status == 201 else 0) == len(stage.node.submits)


def test_a_server_for_others_takes_every_name() -> None:
    """Behind an address that others reach, names are theirs to choose."""
    scope = {"headers": [(b"host", b"ledger.example")], "http_version": "1.1"}
    HostCheck("0.0.0.0")(scope)  # noqa: S104 - the case of --insecure-http
    with pytest.raises(ProblemError):
        HostCheck("127.0.0.1")(scope)


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ([b"Transfer-Encoding: chunked", b"Content-Type: application/json"], CHUNKED, 201),
        ([b"Transfer-Encoding: gzip, chunked", b"Content-Type: application/json"], CHUNKED, 415),
        (
            [
                b"Content-Length: %d" % len(TRANSACTION),
                b"Content-Type: text/plain",
                b"Content-Type: application/json",
            ],
            TRANSACTION,
            415,
        ),
    ],
)
@pytest.mark.asyncio
async def test_ambiguous_bodies_are_refused(
    stage: Stage, headers: list[bytes], body: bytes, status: int
) -> None:
    """What another program in between could read in another way is not recorded."""
    request = submit_request(b"Host: localhost", *headers, body=body)
    assert (await answer_to(stage, request)).startswith(b"HTTP/1.1 %d " % status)


@pytest.mark.parametrize(
    "text",
    [
        "%2B0000000000000000000000000000000",
        "%7B00000000-0000-0000-0000-000000000000%7D",
        "urn:uuid:00000000-0000-0000-0000-000000000000",
        "%EF%BC%90" * 32,
    ],
)
@pytest.mark.asyncio
async def test_receipt_ids_are_as_strict_as_those_submitted(stage: Stage, text: str) -> None:
    """What a submit would refuse as an id is no id to ask for either."""
    response = await stage.http.get(f"/api/v1/ledger/receipts/{text}")
    problem_of(response, 400, "invalid-request")
