"""The HTTP face of a node held in memory, on a free port, and an HTTP client to speak to it."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import pytest_asyncio

from node.api.server import ApiServer
from tests.node.fake_ledger import FakeNode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TRANSACTIONS = "/api/v1/ledger/transactions"
PROBLEM = "application/problem+json"


@dataclass
class Stage:
    """A node, its face, and a client of it."""

    node: FakeNode
    server: ApiServer
    http: httpx.AsyncClient
    faults: list[BaseException] = field(default_factory=list)

    async def record(self, user_id: str = "alice", payload: object = 1, **members: Any) -> Any:
        """Record one transaction and return its receipt."""
        body = {"user_id": user_id, "kind": "deposit", "payload": payload, **members}
        response = await self.http.post(TRANSACTIONS, json=body)
        assert 201 == response.status_code
        return response.json()

    async def post(self, body: bytes, query: str = "", **headers: str) -> httpx.Response:
        """Post raw bytes as JSON."""
        all_headers = {"content-type": "application/json", **headers}
        return await self.http.post(f"{TRANSACTIONS}{query}", content=body, headers=all_headers)

    async def get(self, path: str, **parameters: str) -> httpx.Response:
        """Get a path."""
        return await self.http.get(path, params=parameters)


@pytest_asyncio.fixture
async def stage() -> AsyncIterator[Stage]:
    """A fresh node behind its face; whatever was left undone is ended."""
    node = FakeNode()
    faults: list[BaseException] = []
    server = ApiServer(node, "127.0.0.1", 0, on_fault=faults.append)
    await server.start()
    try:
        # A context that trusts nobody takes no time to make, and TLS is not spoken here.
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        async with httpx.AsyncClient(base_url=server.url, trust_env=False, verify=tls) as http:
            yield Stage(node, server, http, faults)
    finally:
        await server.stop()
    assert [] == faults


def problem_of(response: httpx.Response, status: int, name: str) -> Any:
    """Check that an answer is problem details of a kind, and return it."""
    assert (status, PROBLEM) == (response.status_code, response.headers["content-type"])
    problem = response.json()
    assert (status, f"urn:bitnexus:problem:{name}") == (problem["status"], problem["type"])
    assert problem["title"]
    assert problem["detail"]
    return problem
