"""The calls that read: history, receipts, blocks, cluster, health and metrics."""

from __future__ import annotations

import uuid
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from consensus.block import Header, encode_transaction
from node.api.answers import time_text
from node.api.cursor import CursorError, decode_cursor, encode_cursor
from node.api.reads import MAX_PAGE_BYTES
from node.api.routes import ROUTES
from node.outcomes import CheckpointStatus, NodeFailedError
from storage.recent import Place
from tests.node.api_fixture import TRANSACTIONS, Stage, problem_of, stage

__all__ = ["stage"]

ID = "0190a5d0-c8e2-7cc0-8a9b-1d2e3f405162"
READS = [route for route in ROUTES if route.method == "GET"]
CHANGES = {(route.method, route.path) for route in ROUTES if route.method != "GET"}


def path_of(path: str) -> str:
    """A path of the table with something that is there in the place of each parameter."""
    return path.format(user_id="alice", id=ID, index="0", name="none.css")


# History


@pytest.mark.asyncio
async def test_a_history_is_newest_first(stage: Stage) -> None:
    """Each row is as it was sent, with its place; rows of others are not in it."""
    await stage.record(
        payload={"amount": 5, "memo": "caf\N{LATIN SMALL LETTER E WITH ACUTE}"}, id=ID
    )
    await stage.record("bob")
    await stage.record(payload=[1.5, None])
    page = (await stage.get(f"{TRANSACTIONS}/alice")).json()
    assert (None, 3) == (page["next"], page["read_index"])
    assert [3, 1] == [row["index"] for row in page["transactions"]]
    assert {
        "id": ID,
        "user_id": "alice",
        "kind": "deposit",
        "payload": {"amount": 5, "memo": "caf\N{LATIN SMALL LETTER E WITH ACUTE}"},
        "index": 1,
        "position": 0,
        "timestamp": "2023-11-14T22:13:21.000000Z",
    } == page["transactions"][1]


@pytest.mark.parametrize(("order", "sign"), [("desc", -1), ("asc", 1)])
@pytest.mark.asyncio
async def test_pages_follow_each_other(stage: Stage, order: str, sign: int) -> None:
    """Every row is on one page, also where rows of one block fall on two; no page is empty."""
    body = {"transactions": [{"user_id": "alice", "kind": "k", "payload": n} for n in range(3)]}
    for _ in range(2):
        await stage.http.post(TRANSACTIONS, json=body)
    seen: list[tuple[int, int]] = []
    parameters = {"limit": "2", "order": order}
    for expected_pages_left in (2, 1, 0):
        page = (await stage.get(f"{TRANSACTIONS}/alice", **parameters)).json()
        seen += [(row["index"], row["position"]) for row in page["transactions"]]
        assert (expected_pages_left > 0) == (page["next"] is not None)
        parameters["after"] = page["next"]
    places = [(index, position) for index in (1, 2) for position in range(3)]
    assert places[::sign] == seen


@pytest.mark.asyncio
async def test_a_user_without_transactions_has_an_empty_history(stage: Stage) -> None:
    """200, for nobody can say which users there are."""
    page = (await stage.get(f"{TRANSACTIONS}/nobody")).json()
    assert {"transactions": [], "next": None, "read_index": 0} == page


USERS = [
    "alice/bob",
    "a b",
    "a+b",
    "100%",
    "%41",
    "?limit=1",
    "#1",
    "a&b=c",
    "..",
    ".",
    "\N{SNOWMAN}\N{GRINNING FACE}",
    "\N{LATIN SMALL LETTER E WITH ACUTE}",
    "e\N{COMBINING ACUTE ACCENT}",
    "<script>alert(1)</script>",
    " ",
    "a\r\nx: y",
    "u" * 256,
]


@pytest.mark.parametrize("user", USERS)
@pytest.mark.asyncio
async def test_any_user_is_found_by_the_exact_id(stage: Stage, user: str) -> None:
    """Percent-encoding is undone once and nothing else is."""
    await stage.record(user)
    encoded = quote(user, safe="").replace(".", "%2E")
    page = (await stage.get(f"{TRANSACTIONS}/{encoded}")).json()
    assert [user] == [row["user_id"] for row in page["transactions"]]


@pytest.mark.asyncio
async def test_plus_is_itself_in_a_path(stage: Stage) -> None:
    """A plus sign stands for a space in forms, never here."""
    await stage.record("a b")
    page = (await stage.get(f"{TRANSACTIONS}/a+b")).json()
    assert [] == page["transactions"]


@pytest.mark.parametrize(
    ("encoded", "status", "name"),
    [
        ("", 404, "not-found"),
        ("a/b", 404, "not-found"),
        ("%FF", 400, "invalid-request"),
        ("%ED%A0%80", 400, "invalid-request"),
        ("%zz", 400, "invalid-request"),
        ("%4", 400, "invalid-request"),
        ("a%00b", 400, "invalid-request"),
        ("u" * 257, 400, "invalid-request"),
        (quote("\N{SNOWMAN}" * 86), 400, "invalid-request"),
    ],
)
@pytest.mark.asyncio
async def test_what_is_no_user_id_is_refused(
    stage: Stage, encoded: str, status: int, name: str
) -> None:
    """404 for none at all; 400 for what no user id can be."""
    target = stage.http.build_request("GET", f"{TRANSACTIONS}/x")
    target.url = target.url.copy_with(raw_path=f"{TRANSACTIONS}/{encoded}".encode())
    problem_of(await stage.http.send(target), status, name)


@pytest.mark.parametrize(
    ("parameters", "path"),
    [
        ({"limit": "0"}, "query.limit"),
        ({"limit": "1001"}, "query.limit"),
        ({"limit": "ten"}, "query.limit"),
        ({"order": "up"}, "query.order"),
        ({"consistency": "eventual"}, "query.consistency"),
        ({"timeout_ms": "0"}, "query.timeout_ms"),
        ({"after": ""}, "query.after"),
        ({"after": "1"}, "query.after"),
        ({"after": "A" * 22}, "query.after"),
        ({"after": "\N{SNOWMAN}" * 22}, "query.after"),
        ({"after": "*" * 22}, "query.after"),
        ({"before": "1"}, "query.before"),
    ],
)
@pytest.mark.asyncio
async def test_a_bad_history_parameter_is_named(
    stage: Stage, parameters: dict[str, str], path: str
) -> None:
    """400 naming the parameter."""
    response = await stage.get(f"{TRANSACTIONS}/alice", **parameters)
    problem = problem_of(response, 400, "invalid-request")
    assert [path] == [fault["path"] for fault in problem["errors"]]


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**32 - 1), st.text(min_size=1, max_size=8))
def test_a_cursor_comes_back(index: int, position: int, user: str) -> None:
    """Any place of any user."""
    user = user.encode("utf-8", "replace").decode()
    place = Place(index, position)
    assert place == decode_cursor(encode_cursor(place, user), user)


@given(st.integers(0, 21), st.sampled_from("AQgwz09-_+/= \n\N{SNOWMAN}"))
def test_a_cursor_that_was_altered_is_refused(at: int, letter: str) -> None:
    """One letter, wherever it is; also the spare bits of the last one."""
    cursor = encode_cursor(Place(7, 3), "alice")
    altered = cursor[:at] + letter + cursor[at + 1 :]
    if altered != cursor:
        with pytest.raises(CursorError):
            decode_cursor(altered, "alice")


def test_a_cursor_of_another_user_is_refused() -> None:
    """It would skip rows without a word."""
    with pytest.raises(CursorError, match="of this user"):
        decode_cursor(encode_cursor(Place(7, 3), "bob"), "alice")


@pytest.mark.asyncio
async def test_a_page_ends_before_it_is_too_large(stage: Stage) -> None:
    """A limit of 1,000 rows of 60 kB gives a page of some megabytes, and a cursor to go on."""
    raws = [
        encode_transaction(
            transaction_id=uuid.uuid4().bytes, user_id="alice", kind="k", payload="x" * 60_000
        )
        for _ in range(300)
    ]
    for first in range(0, 300, 15):
        stage.node.seal(raws[first : first + 15])
    total = 0
    parameters = {"limit": "1000"}
    pages = 0
    while True:
        page = (await stage.get(f"{TRANSACTIONS}/alice", **parameters)).json()
        total += len(page["transactions"])
        pages += 1
        assert len(page["transactions"]) * 60_000 <= MAX_PAGE_BYTES + 60_100
        if page["next"] is None:
            break
        parameters["after"] = page["next"]
    assert (300, 5) == (total, pages)


@pytest.mark.parametrize("path", [f"{TRANSACTIONS}/alice", f"/api/v1/ledger/receipts/{ID}"])
@pytest.mark.asyncio
async def test_linearizable_reads_need_a_leader(stage: Stage, path: str) -> None:
    """503 that says what else to do; local reads go on."""
    stage.node.leader = None
    response = await stage.get(path, timeout_ms="1500")
    detail = problem_of(response, 503, "no-leader")["detail"]
    assert "within 1.5 s" in detail
    assert "consistency=local" in detail
    assert "1" == response.headers["retry-after"]
    assert (await stage.get(path, consistency="local")).status_code == 200


# Receipts


@pytest.mark.asyncio
async def test_a_receipt_is_found(stage: Stage) -> None:
    """Committed with the receipt; pending and unknown without."""
    receipt = await stage.record(id=ID)
    found = (await stage.get(f"/api/v1/ledger/receipts/{ID}")).json()
    assert {"status": "committed", "receipt": receipt} == found
    other = uuid.uuid4()
    found = (await stage.get(f"/api/v1/ledger/receipts/{other}")).json()
    assert {"status": "unknown"} == found
    stage.node.pending.add(other.bytes)
    found = (await stage.get(f"/api/v1/ledger/receipts/{other}")).json()
    assert {"status": "pending"} == found


@pytest.mark.parametrize("text", ["7", ID + "0", "%FF", "zz90a5d0-c8e2-7cc0-8a9b-1d2e3f405162"])
@pytest.mark.asyncio
async def test_what_is_no_id_is_refused(stage: Stage, text: str) -> None:
    """400 naming it."""
    response = await stage.get(f"/api/v1/ledger/receipts/{text}")
    problem = problem_of(response, 400, "invalid-request")
    assert ["path.id"] == [fault["path"] for fault in problem["errors"]]


# Blocks


@pytest.mark.asyncio
async def test_a_block_shows_every_field_of_its_header(stage: Stage) -> None:
    """By its own name, with hash, signature and transactions beside."""
    await stage.record(payload={"n": 2**64 - 1}, id=ID)
    shown = (await stage.get("/api/v1/ledger/blocks/1")).json()
    block = stage.node.blocks[1]
    for name in Header.__struct_fields__:
        value = getattr(block.header, name)
        assert shown[name] == (value.hex() if isinstance(value, bytes) else value)
    assert (block.hash.hex(), block.signature.hex()) == (shown["hash"], shown["signature"])
    assert shown["timestamp"] == time_text(block.timestamp_us)
    transaction = {"id": ID, "user_id": "alice", "kind": "deposit", "payload": {"n": 2**64 - 1}}
    assert [transaction] == shown["transactions"]


@pytest.mark.asyncio
async def test_latest_is_the_last_block(stage: Stage) -> None:
    """The same as by its index."""
    await stage.record()
    latest = await stage.get("/api/v1/ledger/blocks/latest")
    assert (await stage.get("/api/v1/ledger/blocks/1")).json() == latest.json()


@pytest.mark.parametrize(
    ("index", "status", "name"),
    [
        ("1", 404, "not-found"),
        ("9" * 19, 404, "not-found"),
        ("9" * 20, 400, "invalid-request"),
        ("-1", 400, "invalid-request"),
        ("first", 400, "invalid-request"),
        ("%D9%A1", 400, "invalid-request"),
    ],
)
@pytest.mark.asyncio
async def test_a_block_that_is_not_there(stage: Stage, index: str, status: int, name: str) -> None:
    """404 beyond the end, 400 for what is no index."""
    problem_of(await stage.get(f"/api/v1/ledger/blocks/{index}"), status, name)


@pytest.mark.asyncio
async def test_a_damaged_block_is_never_shown(stage: Stage) -> None:
    """503 that sends the reader to another node."""
    stage.node.damaged.add(0)
    problem = problem_of(await stage.get("/api/v1/ledger/blocks/0"), 503, "unavailable")
    assert "ask another node" in problem["detail"]


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, [0, 1, 2, 3]),
        ({"limit": "2"}, [2, 3]),
        ({"first": "1", "limit": "2"}, [1, 2]),
        ({"first": "3"}, [3]),
        ({"first": "4"}, []),
    ],
)
@pytest.mark.asyncio
async def test_blocks_come_in_order(
    stage: Stage, parameters: dict[str, str], expected: list[int]
) -> None:
    """The last ones, or from an index on; without their transactions."""
    for _ in range(3):
        await stage.record()
    page = (await stage.get("/api/v1/ledger/blocks", **parameters)).json()
    assert expected == [block["index"] for block in page["blocks"]]
    assert 3 == page["last_index"]
    assert all("transactions" not in block for block in page["blocks"])


# Cluster, health and metrics


@pytest.mark.asyncio
async def test_the_cluster_is_shown(stage: Stage) -> None:
    """The members with their roles, how far it fetches, the alarms, and how PostgreSQL is."""
    stage.node.alarms = ("NOSPACE",)
    stage.node.checkpoint = CheckpointStatus(-1, 1, 0, "connection refused")
    stage.node.catching_up_to = 70
    member = {
        "name": "node1",
        "public_key": stage.node.member.public_key.hex(),
        "role": "leader",
        "peer": "127.0.0.1:7001",
        "http": "127.0.0.1:8001",
        "match_index": 0,
    }
    assert {
        "cluster_id": stage.node.cluster_id.hex(),
        "incarnation": stage.node.cluster_id.hex(),
        "name": "test",
        "node": "node1",
        "role": "leader",
        "leader": "node1",
        "term": 1,
        "last_index": 0,
        "commit_index": 0,
        "applied_index": 0,
        "catching_up_to": 70,
        "members": [member],
        "alarms": ["NOSPACE"],
        "checkpoint": {
            "index": -1,
            "lag_blocks": 1,
            "rows_per_second": 0,
            "last_error": "connection refused",
        },
    } == (await stage.get("/api/v1/cluster")).json()


@pytest.mark.asyncio
async def test_a_node_is_ready_with_a_leader_and_nothing_left_to_apply(stage: Stage) -> None:
    """Live all the while; not ready without a leader, behind, or stopped."""
    assert {"status": "ready"} == (await stage.get("/readyz")).json()
    stage.node.leader = None
    assert "no leader" in problem_of(await stage.get("/readyz"), 503, "unavailable")["detail"]
    stage.node.leader, stage.node.commit_ahead = "node1", 2
    assert "2 blocks" in problem_of(await stage.get("/readyz"), 503, "unavailable")["detail"]
    assert {"status": "live"} == (await stage.get("/livez")).json()
    stage.node.commit_ahead, stage.node.obstacle = 0, "REMOVED: block 7"
    removed = problem_of(await stage.get("/readyz"), 503, "unavailable")
    assert "REMOVED: block 7" == removed["detail"]
    stage.node.failed = NodeFailedError("disk")
    assert "disk" in problem_of(await stage.get("/readyz"), 503, "unavailable")["detail"]
    assert "disk" in problem_of(await stage.get("/livez"), 503, "unavailable")["detail"]


@pytest.mark.asyncio
async def test_metrics_are_what_prometheus_reads(stage: Stage) -> None:
    """The node's counters and gauges, and the answers of this face by status."""
    await stage.get("/nowhere")
    await stage.record()
    text = (await stage.get("/metrics")).text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    applied = families["bitnexus_transactions_applied"]
    assert ("counter", 7) == (applied.type, applied.samples[0].value)
    queue = families["bitnexus_queue"]
    assert ("gauge", 3) == (queue.type, queue.samples[0].value)
    answers = families["bitnexus_http_answers"].samples
    assert {"404": 1, "201": 1} == {sample.labels["status"]: sample.value for sample in answers}


# Every route alike


@pytest.mark.asyncio
async def test_head_is_get_without_the_body(stage: Stage) -> None:
    """The same status and headers, on every route."""
    for route in READS:
        path = path_of(route.path)
        get, head = await stage.http.get(path), await stage.http.head(path)
        assert (get.status_code, b"") == (head.status_code, head.content)
        assert get.headers["content-type"] == head.headers["content-type"]
        assert "nosniff" == get.headers["x-content-type-options"]
        if route.path != "/metrics":  # which counts the first of the two
            assert get.headers["content-length"] == head.headers["content-length"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "TRACE", "PROPFIND"])
@pytest.mark.asyncio
async def test_other_methods_are_refused(stage: Stage, method: str) -> None:
    """405 with Allow, on every route."""
    for route in READS:
        if (method, route.path) in CHANGES:
            continue
        response = await stage.http.request(method, path_of(route.path))
        problem_of(response, 405, "method-not-allowed")
        assert "GET" in response.headers["allow"]


@pytest.mark.asyncio
async def test_a_method_of_another_protocol_is_refused(stage: Stage) -> None:
    """400: the HTTP parser knows it and this face does not."""
    problem_of(await stage.http.request("PURGE", "/livez"), 400, "invalid-request")


@pytest.mark.asyncio
async def test_options_tell_what_works(stage: Stage) -> None:
    """Allow, on every route, and no permission for foreign origins."""
    for route in READS:
        response = await stage.http.options(path_of(route.path))
        others = sorted(method for method, path in CHANGES if path == route.path)
        allowed = ", ".join(["GET", "HEAD", *others])
        assert (200, allowed) == (response.status_code, response.headers["allow"])
        assert "access-control-allow-origin" not in response.headers


@pytest.mark.asyncio
async def test_unknown_parameters_are_refused(stage: Stage) -> None:
    """A misspelt parameter never goes unnoticed, on any route."""
    for route in READS:
        response = await stage.get(path_of(route.path), colour="red")
        problem = problem_of(response, 400, "invalid-request")
        assert "query.colour" == problem["errors"][0]["path"]


@pytest.mark.parametrize(
    "path", ["/nowhere", "/api/v1/ledger", "/livez/", "/api/v1/ledger/transactions/"]
)
@pytest.mark.asyncio
async def test_unknown_paths_are_not_found(stage: Stage, path: str) -> None:
    """404 as problem details."""
    problem_of(await stage.get(path), 404, "not-found")


@pytest.mark.asyncio
async def test_a_fault_of_our_own_in_a_read_is_answered_and_told(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """500, through Falcon as in front of it."""
    fault = ZeroDivisionError("a secret")

    def fail() -> None:
        raise fault

    monkeypatch.setattr(stage.node, "status", fail)
    assert "secret" not in problem_of(await stage.get("/api/v1/cluster"), 500, "internal")["detail"]
    assert [fault] == stage.faults
    stage.faults.clear()


@pytest.mark.parametrize("moment", [0, 1, 999_999, 1_700_000_000_123_456, 253_402_300_799_999_999])
def test_times_always_have_six_digits(moment: int) -> None:
    """Also on a whole second, and to the last microsecond of the year 9999."""
    text = time_text(moment)
    assert (27, "Z") == (len(text), text[-1])
    assert f"{moment % 1_000_000:06}" == text[20:26]
