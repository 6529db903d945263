"""The OpenAPI document: valid, complete, and true of what is answered."""

from __future__ import annotations

import json
from typing import Any

import pytest
from nacl.signing import SigningKey
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from consensus.changes import ChangeError, ChangeRefusal, Membership
from consensus.membership import Member
from node.api.routes import ROUTES, SUBMIT_ROUTE
from node.outcomes import Refusal, RefusalReason, UnknownChangeError
from tests.node.api_fixture import TRANSACTIONS, Stage, stage

__all__ = ["stage"]

MEMBERS = "/api/v1/cluster/members"
TRANSFER = "/api/v1/cluster/transfer-leadership"
NODE2 = Member("node2", bytes(SigningKey(b"2" * 32).verify_key), "h:7002", "h:8002")
MEMBER = b'{"name":"node4","public_key":"%s","peer":"h:1","http":"h:2"}' % (
    bytes(SigningKey(b"4" * 32).verify_key).hex().encode()
)
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
        if route.body:
            assert route.is_body_required == operation["requestBody"]["required"]


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
    ("GET", MEMBERS, MEMBERS, b"", 200),
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


CHANGES = [
    ("POST", MEMBERS, MEMBERS, MEMBER, 201),
    ("DELETE", MEMBERS + "/{name}", MEMBERS + "/node2", b"", 200),
    ("PATCH", MEMBERS + "/{name}", MEMBERS + "/node2", b'{"peer":"h:1"}', 200),
    ("POST", MEMBERS + "/{name}/promote", MEMBERS + "/node2/promote", b"", 200),
    ("POST", TRANSFER, TRANSFER, b'{"to":"node2"}', 200),
]
FAULTS = [
    (None, None),
    (ChangeError(ChangeRefusal.NOT_LEADER, "for a test"), 307),
    (ChangeError(ChangeRefusal.UNKNOWN_MEMBER, "for a test"), 404),
    (ChangeError(ChangeRefusal.NO_QUORUM, "for a test"), 409),
    (ChangeError(ChangeRefusal.INVALID, "for a test"), 422),
    (UnknownChangeError("for a test"), 503),
]


@pytest.mark.parametrize(("method", "path", "target", "body", "status"), CHANGES)
@pytest.mark.parametrize(("fault", "fault_status"), FAULTS)
@pytest.mark.asyncio
async def test_changes_are_answered_as_the_document_says(
    stage: Stage,
    method: str,
    path: str,
    target: str,
    body: bytes,
    status: int,
    fault: Exception | None,
    fault_status: int | None,
) -> None:
    """Made, sent on to the leader, refused, or of unknown fate; with the headers it lists."""
    if (path, fault_status) == (MEMBERS, 404):
        return  # whoever is added is unknown
    learners = frozenset({NODE2.public_key}) if path.endswith("promote") else frozenset[bytes]()
    stage.node.membership = Membership((stage.node.member, NODE2), learners)
    if fault is not None:
        stage.node.administration.faults = [fault]
        stage.node.leader = "node2"
    headers = {"content-type": "application/json"} if body else {}
    response = await stage.http.request(method, target, content=body, headers=headers)
    assert (fault_status or status) == response.status_code
    document = await document_of(stage)
    listed = document["paths"][path][method.lower()]["responses"][str(response.status_code)]
    schema = listed["content"][response.headers["content-type"]]["schema"]
    OAS31Validator({**schema, "components": document["components"]}).validate(response.json())
    required = {name for name, one in listed.get("headers", {}).items() if one.get("required")}
    assert ({"Location"} if fault_status == 307 else set()) == required
    assert all(name in response.headers for name in required)


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
