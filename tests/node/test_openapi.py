"""The OpenAPI document: valid, complete, and true of what is answered."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from node.api.routes import ROUTES, SUBMIT_ROUTE
from node.outcomes import Refusal, RefusalReason
from tests.node.api_fixture import TRANSACTIONS, Stage, stage

__all__ = ["stage"]

ID = "0190a5d0-c8e2-7cc0-8a9b-1d2e3f405162"
GOOD = b'{"user_id":"alice","kind":"k","payload":{"a":[1,2.5,null]},"id":"%s"}' % ID.encode()
BATCH = b'{"transactions":[%s,{"user_id":"mallory","kind":"k","payload":1}]}' % GOOD
REFUSED = b'{"transactions":[{"user_id":"mallory","kind":"k","payload":1}]}'


async def document_of(stage: Stage) -> Any:
    """The document as it is served."""
    return (await stage.get("/openapi.json")).json()


@pytest.mark.asyncio
async def test_the_document_is_valid(stage: Stage) -> None:
    """By the OpenAPI 3.1 schema, references included."""
    OpenAPIV31SpecValidator(await document_of(stage)).validate()


@pytest.mark.asyncio
async def test_every_route_is_in_the_document(stage: Stage) -> None:
    """With its parameters, its body and each of its answers; and nothing else is."""
    document = await document_of(stage)
    listed = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    assert {(route.method, route.path) for route in ROUTES} == listed
    for route in ROUTES:
        operation = document["paths"][route.path][route.method.lower()]
        names = [name for name, _ in route.path_parameters]
        assert all(f"{{{name}}}" in route.path for name in names)
        names += [parameter.name for parameter in route.parameters]
        assert names == [parameter["name"] for parameter in operation.get("parameters", [])]
        assert {str(answer.status) for answer in route.answers} == set(operation["responses"])
        assert bool(route.body) == ("requestBody" in operation)


def test_operations_have_names_of_their_own() -> None:
    """Generated clients make a function of each."""
    names = [route.operation_id for route in ROUTES]
    assert len(set(names)) == len(names)


CALLS = [
    ("POST", TRANSACTIONS, TRANSACTIONS, GOOD, 201),
    ("POST", TRANSACTIONS, TRANSACTIONS, b'{"transactions":[%s]}' % GOOD, 201),
    ("POST", TRANSACTIONS, TRANSACTIONS + "?wait=accepted", GOOD, 202),
    ("POST", TRANSACTIONS, TRANSACTIONS, BATCH, 207),
    ("POST", TRANSACTIONS, TRANSACTIONS, b"{", 400),
    ("POST", TRANSACTIONS, TRANSACTIONS, b"{}", 422),
    ("POST", TRANSACTIONS, TRANSACTIONS, REFUSED, 409),
    ("GET", TRANSACTIONS + "/{user_id}", TRANSACTIONS + "/alice", b"", 200),
    ("GET", TRANSACTIONS + "/{user_id}", TRANSACTIONS + "/alice?limit=0", b"", 400),
    ("GET", "/api/v1/ledger/receipts/{id}", f"/api/v1/ledger/receipts/{ID}", b"", 200),
    ("GET", "/api/v1/ledger/blocks", "/api/v1/ledger/blocks", b"", 200),
    ("GET", "/api/v1/ledger/blocks/{index}", "/api/v1/ledger/blocks/latest", b"", 200),
    ("GET", "/api/v1/ledger/blocks/{index}", "/api/v1/ledger/blocks/9", b"", 404),
    ("GET", "/api/v1/cluster", "/api/v1/cluster", b"", 200),
    ("GET", "/livez", "/livez", b"", 200),
    ("GET", "/readyz", "/readyz", b"", 200),
]


@pytest.mark.parametrize(("method", "path", "target", "body", "status"), CALLS)
@pytest.mark.asyncio
async def test_answers_are_as_the_document_says(
    stage: Stage, method: str, path: str, target: str, body: bytes, status: int
) -> None:
    """The status is listed, and the JSON fits the schema listed for it."""
    stage.node.refusals[b"mallory"] = Refusal(b"", RefusalReason.CONFLICT, "for a test")
    if method == "GET":
        await stage.post(GOOD)
    headers = {"content-type": "application/json"} if body else {}
    response = await stage.http.request(method, target, content=body, headers=headers)
    assert status == response.status_code
    document = await document_of(stage)
    content = document["paths"][path][method.lower()]["responses"][str(status)]["content"]
    schema = content[response.headers["content-type"]]["schema"]
    # References are looked up in the document.
    OAS31Validator({**schema, "components": document["components"]}).validate(response.json())


@pytest.mark.asyncio
async def test_the_schema_of_a_body_refuses_what_is_refused(stage: Stage) -> None:
    """A client that checks before it sends finds the same faults."""
    document = await document_of(stage)
    operation = document["paths"][SUBMIT_ROUTE.path]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    check = OAS31Validator({**schema, "components": document["components"]})
    assert check.is_valid(json.loads(GOOD))
    assert check.is_valid(json.loads(BATCH))
    for bad in (b"{}", b"[]", b'{"transactions":[]}', GOOD.replace(b'"kind"', b'"sort"')):
        assert not check.is_valid(json.loads(bad))
