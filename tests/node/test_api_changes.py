"""The calls that change the cluster: what they do, and whom they refuse or send elsewhere."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx
import msgspec
import pytest
from nacl.signing import SigningKey

from consensus.changes import ChangeError, ChangeRefusal, Membership
from consensus.membership import Member
from node.outcomes import NodeFailedError, NoLeaderError, UnknownChangeError
from tests.node.api_fixture import Stage, problem_of, stage

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["stage"]

MEMBERS = "/api/v1/cluster/members"
TRANSFER = "/api/v1/cluster/transfer-leadership"
KEY = bytes(SigningKey(b"4" * 32).verify_key)
NODE4 = {"name": "node4", "public_key": KEY.hex(), "peer": "10.0.0.4:7001", "http": "10.0.0.4:8001"}
NODE2 = Member("node2", bytes(SigningKey(b"2" * 32).verify_key), "127.0.0.1:7002", "127.0.0.1:8002")
CALLS: Sequence[tuple[str, str, Any]] = [
    ("POST", MEMBERS, NODE4),
    ("DELETE", MEMBERS + "/node2", None),
    ("PATCH", MEMBERS + "/node2", {"http": "h:1"}),
    ("POST", MEMBERS + "/node2/promote", None),
    ("POST", TRANSFER, {"to": "node2"}),
]


def lead_elsewhere(stage: Stage, **changes: str) -> None:
    """Let node2 lead, at other addresses than its own where that is said."""
    leader = msgspec.structs.replace(NODE2, **changes)
    stage.node.membership = Membership((stage.node.member, leader))
    stage.node.leader = "node2"


async def call(stage: Stage, method: str, path: str, body: Any, **headers: str) -> httpx.Response:
    """Make one of the calls."""
    return await stage.http.request(method, path, json=body, headers=headers)


async def roles(stage: Stage) -> dict[str, str]:
    """The members and their roles, as they are listed."""
    listed = (await stage.get(MEMBERS)).json()
    return {member["name"]: member["role"] for member in listed["members"]}


@pytest.mark.asyncio
async def test_members_are_listed(stage: Stage) -> None:
    """Who sees them so, who leads, and each as in the cluster's state."""
    listed = (await stage.get(MEMBERS)).json()
    cluster = (await stage.get("/api/v1/cluster")).json()
    assert {"node": "node1", "leader": "node1", "members": cluster["members"]} == listed


@pytest.mark.asyncio
async def test_a_member_is_added_promoted_moved_and_removed(stage: Stage) -> None:
    """Each answer names the block that records the change, and all members after it."""
    added = await call(stage, "POST", MEMBERS, NODE4)
    assert (201, 1) == (added.status_code, added.json()["index"])
    assert stage.node.blocks[1].hash.hex() == added.json()["block_hash"]
    leader, learner = added.json()["members"]
    assert ("node1", "leader") == (leader["name"], leader["role"])
    assert NODE4 | {"role": "learner", "match_index": 0} == learner
    assert {"node1": "leader", "node4": "learner"} == await roles(stage)

    promoted = await call(stage, "POST", MEMBERS + "/node4/promote", None)
    assert (200, 2) == (promoted.status_code, promoted.json()["index"])
    assert ["leader", "follower"] == [one["role"] for one in promoted.json()["members"]]

    moved = await call(stage, "PATCH", MEMBERS + "/node4", {"http": "[::1]:9"})
    assert ("10.0.0.4:7001", "[::1]:9") == (
        moved.json()["members"][1]["peer"],
        moved.json()["members"][1]["http"],
    )
    removed = await call(stage, "DELETE", MEMBERS + "/node4", None)
    assert (200, 4) == (removed.status_code, removed.json()["index"])
    assert ["node1"] == [one["name"] for one in removed.json()["members"]]


@pytest.mark.parametrize(("body", "to"), [(None, "None"), ({}, "None"), ({"to": "node2"}, "node2")])
@pytest.mark.asyncio
async def test_the_leadership_is_handed_over(stage: Stage, body: Any, to: str) -> None:
    """To whom is asked for, or to whoever is closest; the answer is who leads then."""
    stage.node.membership = Membership((stage.node.member, NODE2))
    response = await call(stage, "POST", TRANSFER, body)
    assert (200, {"leader": "node2"}) == (response.status_code, response.json())
    assert [f"transfer {to}"] == stage.node.administration.calls


@pytest.mark.parametrize(("method", "path", "body"), CALLS)
@pytest.mark.asyncio
async def test_the_time_allowed_is_the_clients(
    stage: Stage, method: str, path: str, body: Any
) -> None:
    """In milliseconds, 10 s where nothing is said."""
    stage.node.membership = Membership((stage.node.member, NODE2), frozenset({NODE2.public_key}))
    await call(stage, method, path + "?timeout_ms=250", body)
    await call(stage, method, path, body)
    assert [0.25, 10.0] == stage.node.administration.timeouts_s
    problem_of(await call(stage, method, path + "?timeout_ms=0", body), 400, "invalid-request")


@pytest.mark.parametrize(("method", "path", "body"), CALLS)
@pytest.mark.asyncio
async def test_a_node_that_does_not_lead_sends_the_client_on(
    stage: Stage, method: str, path: str, body: Any
) -> None:
    """307 to the same path and query, at the leader's address."""
    lead_elsewhere(stage)
    response = await call(stage, method, path + "?timeout_ms=7", body)
    problem_of(response, 307, "not-leader")
    assert f"http://127.0.0.1:8002{path}?timeout_ms=7" == response.headers["location"]
    without_query = await call(stage, method, path, body)
    assert f"http://127.0.0.1:8002{path}" == without_query.headers["location"]


@pytest.mark.parametrize(
    ("peer", "http", "expected"),
    [
        ("10.0.0.2:7001", "ledger.example:80", "ledger.example:80"),
        ("10.0.0.2:7001", "0.0.0.0:8001", "10.0.0.2:8001"),
        ("[fd00::2]:7001", "[::]:8001", "[fd00::2]:8001"),
        ("127.0.0.1:7002", "0.0.0.0:8002", "localhost:8002"),
        ("127.0.0.1:7002", "[::]:8002", "localhost:8002"),
    ],
)
@pytest.mark.asyncio
async def test_a_wildcard_is_no_address_to_go_to(
    stage: Stage, peer: str, http: str, expected: str
) -> None:
    """The peer address's host is the same machine, or the name this machine was reached by."""
    lead_elsewhere(stage, peer=peer, http=http)
    host = f"localhost:{httpx.URL(stage.server.url).port}"
    response = await call(stage, "POST", TRANSFER, {}, host=host)
    assert f"http://{expected}{TRANSFER}" == response.headers["location"]


@pytest.mark.asyncio
async def test_nobody_is_sent_to_another_machines_loopback(stage: Stage) -> None:
    """There the client would find itself, or this very node again."""
    lead_elsewhere(stage, peer="10.0.0.2:7001", http="127.0.0.1:8001")
    problem = problem_of(await call(stage, "POST", TRANSFER, {}), 503, "unavailable")
    assert "node2 leads" in problem["detail"]


@pytest.mark.asyncio
async def test_nobody_is_sent_in_a_circle(stage: Stage) -> None:
    """Where the leader has this node's own address the client would come back at once."""
    lead_elsewhere(stage, http=stage.node.member.http)
    problem = problem_of(await call(stage, "POST", TRANSFER, {}), 503, "unavailable")
    expected = "node2 leads, but its address 127.0.0.1:8001 is this node's own; ask it with --node"
    assert expected == problem["detail"]


@pytest.mark.parametrize("leader", [None, "node1", "node9"])
@pytest.mark.asyncio
async def test_without_a_known_leader_there_is_nowhere_to_go(
    stage: Stage, leader: str | None
) -> None:
    """503 with Retry-After, also where this node has just stopped leading."""
    stage.node.administration.faults = [ChangeError(ChangeRefusal.NOT_LEADER, "not any more")]
    stage.node.leader = leader
    response = await call(stage, "POST", TRANSFER, {})
    problem_of(response, 503, "no-leader")
    assert "1" == response.headers["retry-after"]


@pytest.mark.parametrize(
    ("reason", "status", "kind", "retry_after"),
    [
        (ChangeRefusal.TRANSFER_UNDER_WAY, 409, "change-refused", "1"),
        (ChangeRefusal.CHANGE_UNDER_WAY, 409, "change-refused", "1"),
        (ChangeRefusal.NO_COMMIT_IN_TERM, 409, "change-refused", "1"),
        (ChangeRefusal.FORMER_MEMBER, 409, "change-refused", None),
        (ChangeRefusal.NOT_CAUGHT_UP, 409, "change-refused", None),
        (ChangeRefusal.NO_QUORUM, 409, "change-refused", None),
        (ChangeRefusal.UNKNOWN_MEMBER, 404, "unknown-member", None),
        (ChangeRefusal.INVALID, 422, "invalid-change", None),
    ],
)
@pytest.mark.asyncio
async def test_a_refusal_has_its_reason(
    stage: Stage, reason: ChangeRefusal, status: int, kind: str, retry_after: str | None
) -> None:
    """For programs one word, for people the detail; Retry-After where it passes by itself."""
    for method, path, body in CALLS:
        stage.node.administration.faults = [ChangeError(reason, "for a test")]
        response = await call(stage, method, path, body)
        problem = problem_of(response, status, kind)
        assert (reason.value, "for a test") == (problem["reason"], problem["detail"])
        assert retry_after == response.headers.get("retry-after")


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (UnknownChangeError("block 7 with the change is late"), "unknown", "unknown: block 7"),
        (NodeFailedError("the disk is gone"), "unavailable", "the disk is gone"),
    ],
)
@pytest.mark.asyncio
async def test_a_change_may_stay_open(
    stage: Stage, fault: Exception, kind: str, words: str
) -> None:
    """What is not known is never called failed."""
    for method, path, body in CALLS:
        stage.node.administration.faults = [fault]
        problem = problem_of(await call(stage, method, path, body), 503, kind)
        assert words in problem["detail"]


@pytest.mark.asyncio
async def test_a_handover_that_takes_too_long_stays_open(stage: Stage) -> None:
    """Another's election may still be under way."""
    stage.node.administration.faults = [NoLeaderError("nobody took over within 1 s")]
    problem = problem_of(await call(stage, "POST", TRANSFER, {}), 503, "unknown")
    assert "nobody took over" in problem["detail"]


@pytest.mark.asyncio
async def test_a_change_under_way_when_the_node_stops_is_unknown(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be committed all the same."""
    begun = asyncio.Event()

    async def never(name: str, *, timeout_s: float) -> None:
        begun.set()
        await asyncio.Event().wait()

    monkeypatch.setattr("node.api.server.STOP_TIMEOUT_S", 0)
    monkeypatch.setattr(stage.node.administration, "remove", never)
    asked = asyncio.ensure_future(call(stage, "DELETE", MEMBERS + "/node2", None))
    await begun.wait()
    await stage.server.stop()
    problem_of(await asked, 503, "unknown")


@pytest.mark.parametrize(
    ("body", "status", "kind", "path"),
    [
        (b"", 400, "invalid-json", "$"),
        (b"{", 400, "invalid-json", "$"),
        (b'{"name": NaN}', 400, "invalid-json", "$.name"),
        (b'{"name": "\xff"}', 400, "invalid-json", "$.name"),
        (b"[]", 422, "invalid-content", "$"),
        (b"{}", 422, "invalid-content", "$.name"),
        (b'{"name": "a", "name": "b"}', 422, "invalid-content", "$.name"),
        ({"colour": "red"}, 422, "invalid-content", "$.colour"),
        ({"role": "voter"}, 422, "invalid-content", "$.role"),
        ({"name": "Node 4"}, 422, "invalid-content", "$.name"),
        ({"name": "node4\n"}, 422, "invalid-content", "$.name"),
        ({"public_key": "ab"}, 422, "invalid-content", "$.public_key"),
        ({"public_key": KEY.hex().upper()}, 422, "invalid-content", "$.public_key"),
        ({"peer": "nowhere"}, 422, "invalid-content", "$.peer"),
        ({"http": "h:0"}, 422, "invalid-content", "$.http"),
        ({"http": ""}, 422, "invalid-content", "$.http"),
    ],
)
@pytest.mark.asyncio
async def test_what_is_no_member_is_refused(
    stage: Stage, body: Any, status: int, kind: str, path: str
) -> None:
    """With the place of the fault; the node is not asked."""
    raw = body if isinstance(body, bytes) else msgspec.json.encode(NODE4 | body)
    headers = {"content-type": "application/json"}
    response = await stage.http.post(MEMBERS, content=raw, headers=headers)
    assert path == problem_of(response, status, kind)["errors"][0]["path"]
    assert [] == stage.node.administration.calls


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({}, "$"),
        ({"peer": ""}, "$.peer"),
        ({"http": "h:99999"}, "$.http"),
        ({"name": "node5"}, "$.name"),
    ],
)
@pytest.mark.asyncio
async def test_what_is_no_move_is_refused(stage: Stage, body: Any, path: str) -> None:
    """There must be an address, it must be one, and nothing but addresses changes."""
    response = await call(stage, "PATCH", MEMBERS + "/node1", body)
    problem = problem_of(response, 422, "invalid-content")
    assert path == problem["errors"][0]["path"]
    assert [] == stage.node.administration.calls


@pytest.mark.parametrize("path", [MEMBERS, MEMBERS + "/node1", TRANSFER])
@pytest.mark.asyncio
async def test_a_body_must_say_that_it_is_json(stage: Stage, path: str) -> None:
    """A page of another origin may send anything else without leave."""
    method = "PATCH" if path.endswith("node1") else "POST"
    for headers in ({}, {"content-type": "text/plain"}):
        response = await stage.http.request(method, path, content=b"{}", headers=headers)
        problem_of(response, 415, "unsupported-media-type")
    assert [] == stage.node.administration.calls


@pytest.mark.asyncio
async def test_a_body_that_is_too_long_is_refused(stage: Stage) -> None:
    """Whether it says so or not."""
    long = b" " * 20_000

    async def parts() -> Any:
        yield long[:10_000]
        yield long[10_000:]

    for content in (long, parts()):
        response = await stage.http.post(
            TRANSFER, content=content, headers={"content-type": "application/json"}
        )
        problem_of(response, 413, "too-large")
    assert [] == stage.node.administration.calls


@pytest.mark.parametrize(
    ("method", "path"), [("DELETE", MEMBERS + "/node1"), ("POST", MEMBERS + "/node1/promote")]
)
@pytest.mark.asyncio
async def test_a_body_that_means_nothing_is_refused(stage: Stage, method: str, path: str) -> None:
    """Whoever sends one expects something of it."""
    problem_of(await call(stage, method, path, {"force": True}), 400, "invalid-request")
    assert [] == stage.node.administration.calls


@pytest.mark.parametrize(("method", "path", "body"), CALLS)
@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1"])
@pytest.mark.asyncio
async def test_a_page_of_another_origin_is_refused(
    stage: Stage, method: str, path: str, body: Any, origin: str
) -> None:
    """A browser names the origin; a page of this very node may, and so may any program."""
    stage.node.membership = Membership((stage.node.member, NODE2))
    response = await call(stage, method, path, body, origin=origin)
    problem_of(response, 403, "cross-origin")
    assert [] == stage.node.administration.calls
    await call(stage, method, path, body, origin=stage.server.url)
    assert 1 == len(stage.node.administration.calls)


@pytest.mark.asyncio
async def test_half_a_body_asks_for_nothing(stage: Stage) -> None:
    """What has come may mean something, and not what the client was about to ask for."""
    stage.node.membership = Membership((stage.node.member, NODE2))
    _, writer = await asyncio.open_connection(stage.server.host, stage.server.port)
    head = f"POST {TRANSFER} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    writer.write(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n")
    assert 200 == (await stage.get("/livez")).status_code
    writer.close()
    await writer.wait_closed()
    assert 200 == (await stage.get("/livez")).status_code
    await stage.server.stop()
    assert [] == stage.node.administration.calls
