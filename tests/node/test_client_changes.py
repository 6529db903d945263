"""The client's calls that change the cluster: sent on to the leader, never made twice blindly."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import pytest
from nacl.signing import SigningKey

from consensus.changes import ChangeError, ChangeRefusal, Membership
from consensus.membership import Member
from node.client import (
    ChangeRefusedError,
    LedgerClient,
    NotFoundError,
    ProtocolError,
    RejectedError,
    UnavailableError,
    UnknownChangeFateError,
)
from tests.node.api_fixture import Stage, stage
from tests.node.scripted_node import Answer, HangUp, ScriptedNode, Seen, Silence
from tests.node.test_client_retries import problem

if TYPE_CHECKING:
    from tests.node.scripted_node import Step

__all__ = ["stage"]

MEMBERS = "/api/v1/cluster/members"
KEY = bytes(SigningKey(b"4" * 32).verify_key).hex()
NODE2 = Member("node2", bytes(SigningKey(b"2" * 32).verify_key), "127.0.0.1:7002", "127.0.0.1:8002")
REMOVED = Answer(200, {"index": 3, "block_hash": "ab" * 32, "members": []})
NO_LEADER = problem(503, "no-leader")


def sent_to(url: str, path: str = f"{MEMBERS}/node2?timeout_ms=1") -> Answer:
    """The answer of a node that does not lead."""
    return Answer(307, problem(307, "not-leader").body, {"location": url + path})


@pytest.mark.asyncio
async def test_every_change_by_its_call(stage: Stage) -> None:
    """A member is added, promoted, moved and removed, and the leadership handed over."""
    async with LedgerClient([stage.server.url]) as ledger:
        added = await ledger.add_member(name="node4", public_key=KEY, peer="h:1", http="h:2")
        assert (1, ["leader", "learner"]) == (added.index, [one.role for one in added.members])
        promoted = await ledger.promote_member("node4")
        assert ["leader", "follower"] == [one.role for one in promoted.members]
        moved = await ledger.move_member("node4", http="h:3")
        assert ("h:1", "h:3") == (moved.members[1].peer, moved.members[1].http)
        moved = await ledger.move_member("node4", peer="h:4")
        assert ("h:4", "h:3") == (moved.members[1].peer, moved.members[1].http)
        listed = await ledger.members()
        assert (moved.members, "node1") == (listed.members, listed.leader)
        assert ["node1"] == [one.name for one in (await ledger.remove_member("node4")).members]
        stage.node.membership = Membership((stage.node.member, NODE2))
        assert "node2" == await ledger.transfer_leadership()
        stage.node.leader = "node1"
        assert "node2" == await ledger.transfer_leadership("node2")
    assert [
        "add node4",
        "promote node4",
        "move node4 peer=None http=h:3",
        "move node4 peer=h:4 http=None",
        "remove node4",
        "transfer None",
        "transfer node2",
    ] == stage.node.administration.calls


@pytest.mark.asyncio
async def test_refusals_have_types(stage: Stage) -> None:
    """By reason, unknown members apart; bad input is rejected as everywhere."""
    async with LedgerClient([stage.server.url]) as ledger:
        with pytest.raises(NotFoundError, match="node9 is not a member"):
            await ledger.remove_member("node9")
        with pytest.raises(ChangeRefusedError, match="node1 votes already") as caught:
            await ledger.promote_member("node1")
        assert ("invalid-change", 422) == (caught.value.reason, caught.value.problem.status)
        stage.node.administration.faults = [ChangeError(ChangeRefusal.NO_QUORUM, "too few")]
        with pytest.raises(ChangeRefusedError, match="too few") as caught:
            await ledger.remove_member("node1")
        assert ("no-quorum", 409) == (caught.value.reason, caught.value.problem.status)
        with pytest.raises(RejectedError, match=r"\$\.peer"):
            await ledger.move_member("node1", peer="nowhere")


@pytest.mark.asyncio
async def test_the_leader_is_given_all_the_time_there_is(stage: Stage) -> None:
    """What one node is given before the next is tried is no bound here."""
    async with LedgerClient([stage.server.url], attempt_timeout_s=0.5, timeout_s=20) as ledger:
        with pytest.raises(NotFoundError):
            await ledger.remove_member("node9")
        with pytest.raises(NotFoundError):
            await ledger.remove_member("node9", timeout_s=7)
    first, second = stage.node.administration.timeouts_s
    assert 19 < first <= 20
    assert 6 < second <= 7


@pytest.mark.asyncio
async def test_the_call_follows_to_the_leader() -> None:
    """With the same method and body, and the time that is left now."""
    async with ScriptedNode(Answer(200, {"leader": "node2"})) as leader:
        path = "/api/v1/cluster/transfer-leadership?timeout_ms=1"
        async with (
            ScriptedNode(sent_to(leader.url, path)) as follower,
            LedgerClient([follower.url], timeout_s=20) as ledger,
        ):
            assert "node2" == await ledger.transfer_leadership("node2")
    (seen,) = leader.seen
    assert ("POST", {"to": "node2"}) == (seen.method, seen.json)
    assert int(seen.query["timeout_ms"]) > 19_000


@pytest.mark.asyncio
async def test_a_leader_that_cannot_be_reached_is_asked_for_elsewhere() -> None:
    """Nothing was sent to it, so the call may begin anew: it leads no more, or moved."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nowhere = f"http://127.0.0.1:{taken.getsockname()[1]}"
    async with (
        ScriptedNode(sent_to(nowhere)) as first,
        ScriptedNode(REMOVED) as second,
        LedgerClient([first.url, second.url]) as ledger,
    ):
        assert 3 == (await ledger.remove_member("node2")).index


@pytest.mark.asyncio
async def test_nodes_that_send_a_call_in_a_circle_are_left() -> None:
    """For a moment each may take the other for the leader."""

    def around(_: Seen) -> Answer:
        return sent_to(circle.url)

    circle = ScriptedNode(*[around] * 4)
    async with (
        circle,
        ScriptedNode(REMOVED) as other,
        LedgerClient([circle.url, other.url]) as ledger,
    ):
        assert 3 == (await ledger.remove_member("node2")).index


@pytest.mark.asyncio
async def test_a_circle_that_does_not_end_is_told_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two nodes of one address, say: the words of the last that sends it on do not help alone."""

    def around(_: Seen) -> Answer:
        return sent_to(circle.url)

    monkeypatch.setattr("node.client_nodes._FIRST_PAUSE_S", 100.0)  # beyond the call's time
    circle = ScriptedNode(*[around] * 4)
    async with circle, LedgerClient([circle.url], timeout_s=20) as ledger:
        with pytest.raises(
            UnavailableError, match=r"not-leader, but another node answers there; .* --node"
        ):
            await ledger.remove_member("node2")


@pytest.mark.parametrize(
    "location", ["", "ftp://h/x", "http://h/elsewhere", f"http://h{MEMBERS}/node3"]
)
@pytest.mark.asyncio
async def test_a_call_becomes_no_other_call_on_its_way(location: str) -> None:
    """Only the node may be another one."""
    async with (
        ScriptedNode(Answer(307, b"", {"location": location})) as node,
        LedgerClient([node.url]) as ledger,
    ):
        with pytest.raises(ProtocolError):
            await ledger.remove_member("node2")


@pytest.mark.parametrize("step", [NO_LEADER, problem(503, "unavailable"), problem(408, "too-slow")])
@pytest.mark.asyncio
async def test_what_is_certainly_not_made_is_asked_for_again(step: Step) -> None:
    """At the next node."""
    async with (
        ScriptedNode(step) as first,
        ScriptedNode(REMOVED) as second,
        LedgerClient([first.url, second.url]) as ledger,
    ):
        assert 3 == (await ledger.remove_member("node2")).index


@pytest.mark.parametrize(
    "step",
    [
        HangUp(),
        Silence(),
        problem(503, "unknown"),
        problem(500, "internal"),
        Answer(502),
        Answer(504, b"<html>"),
    ],
)
@pytest.mark.asyncio
async def test_what_may_be_made_is_not_asked_for_again(
    step: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its fate is unknown, and whoever asked must look."""
    monkeypatch.setattr("node.client_nodes._GRACE_S", 0.0)
    async with (
        ScriptedNode(step) as first,
        ScriptedNode() as second,
        LedgerClient([first.url, second.url], timeout_s=0.5) as ledger,
    ):
        with pytest.raises(UnknownChangeFateError, match="may be made"):
            await ledger.remove_member("node2")
    assert [] == second.seen


@pytest.mark.parametrize("reason", ["change-under-way", "no-commit-in-term", "transfer-under-way"])
@pytest.mark.asyncio
async def test_a_refusal_that_passes_is_waited_out(reason: str) -> None:
    """At the node that leads; at the deadline the refusal is the answer."""
    refusal = problem(409, "change-refused", reason=reason)
    async with (
        ScriptedNode(refusal, refusal, REMOVED, refusal) as node,
        LedgerClient([node.url]) as ledger,
    ):
        pauses: list[float] = []

        async def note(pause_s: float) -> None:
            pauses.append(pause_s)

        ledger._nodes.sleep = note  # type: ignore[assignment]  # time stands still here
        assert 3 == (await ledger.remove_member("node2")).index
        assert 2 == len(pauses)
        with pytest.raises(ChangeRefusedError) as caught:
            await ledger.remove_member("node2", timeout_s=0.1)
    assert reason == caught.value.reason


@pytest.mark.asyncio
async def test_without_any_leader_the_call_ends_in_time() -> None:
    """Nothing is changed then, and the reason is told."""
    async with (
        ScriptedNode(NO_LEADER) as node,
        LedgerClient([node.url], timeout_s=0.02) as ledger,
    ):
        with pytest.raises(UnavailableError, match="scripted no-leader"):
            await asyncio.wait_for(ledger.remove_member("node2"), 5)
