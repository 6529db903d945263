"""The commands that change the cluster: what they do, what they say, and how they end."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

import pytest
from nacl.signing import SigningKey

from consensus.changes import ChangeError, ChangeRefusal, Membership
from consensus.membership import Member
from node import cli_members
from node.cli_errors import ExitCode
from node.outcomes import UnknownChangeError
from tests.node.cli_stage import Result, run, serving
from tests.node.fake_ledger import FakeNode

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from node.administration import MadeChange

KEY = bytes(SigningKey(b"4" * 32).verify_key).hex()
NODE2 = Member("node2", bytes(SigningKey(b"2" * 32).verify_key), "127.0.0.1:7002", "127.0.0.1:8002")
NODE4 = {"name": "node4", "public_key": KEY, "peer": "127.0.0.1:7004", "http": "127.0.0.1:8004"}
OPTIONS = ("--public-key", KEY, "--peer", NODE4["peer"], "--http", NODE4["http"])


class Stage(NamedTuple):
    """A ledger in memory, its address, and the new node's member.json."""

    node: FakeNode
    url: str
    file: Path

    def run(self, *arguments: object) -> Result:
        """Run a command against it."""
        return run(*arguments, "--node", self.url)

    @property
    def calls(self) -> list[str]:
        """What the node was asked to change."""
        return self.node.administration.calls


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    """Two members, of which the one that answers leads."""
    monkeypatch.setattr(cli_members, "POLL_S", 0.0)
    monkeypatch.setattr(cli_members, "LOOK_TIMEOUT_S", 0.05)
    file = tmp_path / "member.json"
    file.write_text(json.dumps(NODE4))
    node = FakeNode()
    node.membership = Membership((node.member, NODE2))
    with serving(node) as (url,):
        yield Stage(node, url, file)


def table(result: Result) -> list[list[str]]:
    """The rows of the table that ends what a command says, as words."""
    lines = [line.split() for line in result.stdout.splitlines()]
    header = lines.index("name role peer http saved public key".split())
    return lines[header + 1 :]


def test_members_are_listed(stage: Stage) -> None:
    """Name, role, addresses, what each has saved, and its key."""
    stage.run("member", "add", "node4", *OPTIONS)
    result = stage.run("member", "list")
    key = stage.node.member.public_key.hex()
    assert (0, "") == (result.code, result.stderr)
    assert [
        ["node1", "leader", "127.0.0.1:7001", "127.0.0.1:8001", "1", key],
        ["node2", "follower", "127.0.0.1:7002", "127.0.0.1:8002", "1", NODE2.public_key.hex()],
        ["node4", "learner", "127.0.0.1:7004", "127.0.0.1:8004", "0", KEY],
    ] == table(result)
    stage.node.leader = "node2"
    assert "-" == table(stage.run("member", "list"))[2][4]


def test_machines_are_told_the_members(stage: Stage) -> None:
    """As the node tells them."""
    document = stage.run("member", "list", "--json").document
    assert ("node1", "node1") == (document["node"], document["leader"])
    assert ["node1", "node2"] == [member["name"] for member in document["members"]]


@pytest.mark.parametrize("by_file", [True, False])
def test_a_member_is_added(stage: Stage, *, by_file: bool) -> None:
    """By the file that its own node wrote, or field by field."""
    arguments = ("--file", stage.file) if by_file else ("node4", *OPTIONS)
    result = stage.run("member", "add", *arguments)
    assert (0, "") == (result.code, result.stderr)
    assert "node4 is added and learns, by block 1" == result.stdout.splitlines()[0]
    assert ["node4", "learner"] == table(result)[2][:2]
    added = stage.node.membership.named("node4")
    assert NODE4 == {
        "name": added.name,
        "public_key": added.public_key.hex(),
        "peer": added.peer,
        "http": added.http,
    }


def test_machines_are_told_the_change(stage: Stage) -> None:
    """The block that records it, and the members after it."""
    document = stage.run("member", "add", "--file", stage.file, "--json").document
    assert (1, stage.node.blocks[1].hash.hex()) == (document["index"], document["block_hash"])
    assert NODE4 | {"role": "learner", "match_index": 0} == document["members"][2]


def test_a_member_is_promoted_moved_and_removed(stage: Stage) -> None:
    """Each says what was done, and by which block."""
    stage.run("member", "add", "--file", stage.file)
    promoted = stage.run("member", "promote", "node4")
    assert "node4 votes, by block 2" == promoted.stdout.splitlines()[0]
    moved = stage.run("member", "move", "node4", "--peer", "h:1")
    assert "node4 has moved, by block 3" == moved.stdout.splitlines()[0]
    assert ["h:1", NODE4["http"]] == table(moved)[2][2:4]
    moved = stage.run("member", "move", "node4", "--http", "h:2")
    assert ["h:1", "h:2"] == table(moved)[2][2:4]
    removed = stage.run("member", "remove", "node4")
    assert "node4 is removed, by block 5" == removed.stdout.splitlines()[0]
    assert ["node1", "node2"] == [row[0] for row in table(removed)]
    assert {0} == {promoted.code, moved.code, removed.code}


def test_the_leadership_is_handed_over(stage: Stage) -> None:
    """To the member named, or to whoever is closest."""
    result = stage.run("transfer-leadership")
    assert (0, "node2 leads\n", "") == (result.code, result.stdout, result.stderr)
    stage.node.leader = "node1"
    document = stage.run("transfer-leadership", "--to", "node2", "--json").document
    assert {"leader": "node2"} == document
    assert ["transfer None", "transfer node2"] == stage.calls


def test_the_leader_makes_the_change() -> None:
    """Asked at a follower, the command goes on to the leader by itself."""
    leader, follower = FakeNode(), FakeNode()
    with serving(leader, follower) as (at_leader, at_follower):
        address = at_leader.removeprefix("http://")
        both = Member("node1", leader.member.public_key, "127.0.0.1:7001", address)
        leader.membership = follower.membership = Membership((both, NODE2))
        follower.name, follower.leader = "node2", "node1"
        result = run("member", "remove", "node2", "--node", at_follower)
    assert (0, "") == (result.code, result.stderr)
    assert ["remove node2"] == leader.administration.calls
    assert ["node1"] == [one.name for one in leader.membership.members]


@pytest.mark.parametrize("command", ["add", "replace"])
def test_a_wait_ends_when_the_member_votes(stage: Stage, command: str) -> None:
    """However often the cluster has to be looked at."""
    stage.node.administration.looks_to_promote = 7
    old = ["node2"] if command == "replace" else []
    result = stage.run("member", command, *old, "--file", stage.file, "--wait")
    assert (0, "") == (result.code, result.stderr)
    assert "node4 has caught up and votes" == result.stdout.splitlines()[-1]
    assert frozenset() == stage.node.membership.learners


def test_machines_are_told_of_the_change_and_then_of_the_vote(stage: Stage) -> None:
    """One line each."""
    stage.node.administration.looks_to_promote = 5
    result = stage.run("member", "add", "--file", stage.file, "--wait", "--json")
    change, member = result.documents
    assert (1, "node4", "follower") == (change["index"], member["name"], member["role"])


@pytest.mark.parametrize("is_away", [False, True])
def test_a_wait_asks_the_leader_how_far_the_member_is(
    monkeypatch: pytest.MonkeyPatch, *, is_away: bool
) -> None:
    """A follower lags; where the leader does not answer, the follower's word has to do."""
    monkeypatch.setattr(cli_members, "POLL_S", 0.0)
    monkeypatch.setattr(cli_members, "LOOK_TIMEOUT_S", 0.05 if is_away else 5.0)
    leader, follower = FakeNode(), FakeNode()
    with serving(leader, follower) as (at_leader, at_follower):
        address = "127.0.0.1:1" if is_away else at_leader.removeprefix("http://")
        first = Member("node1", leader.member.public_key, "127.0.0.1:7001", address)
        for node in (leader, follower):
            node.membership = Membership((first, NODE2), frozenset({NODE2.public_key}))
        follower.name, follower.leader = "node2", "node1"
        knows = follower if is_away else leader
        knows.administration.looks_to_promote = 3
        cli_members.wait_promoted(
            [at_follower], "node2", timeout_s=5, wait_timeout_s=None, as_json=False
        )
        assert frozenset() == knows.membership.learners


def test_a_wait_has_an_end(stage: Stage) -> None:
    """Its own exit code: the member was added, and goes on learning."""
    result = stage.run("member", "add", "--file", stage.file, "--wait", "--wait-timeout", 0.1)
    assert ExitCode.NOT_PROMOTED == result.code
    assert "node4 does not vote after 0.1 s; it goes on learning" == result.error
    assert "node4" in [one.name for one in stage.node.membership.members]


def test_a_wait_ends_when_the_member_is_removed(stage: Stage) -> None:
    """By somebody else: it would never vote."""

    def remove() -> None:
        if len(stage.node.blocks) == 2:
            stage.node.membership = Membership((stage.node.member, NODE2))

    stage.node.administration.on_look = remove
    result = stage.run("member", "add", "--file", stage.file, "--wait")
    assert (ExitCode.NOT_FOUND, "node4 is no member any more") == (result.code, result.error)


def test_a_member_is_replaced(stage: Stage) -> None:
    """The old one goes first, so that the majority never counts one that cannot vote."""
    result = stage.run("member", "replace", "node2", "--file", stage.file)
    assert (0, "") == (result.code, result.stderr)
    assert ["remove node2", "add node4"] == stage.calls
    assert "node2 is removed; node4 is added and learns, by block 2" in result.stdout
    assert ["node1", "node4"] == [row[0] for row in table(result)]


def test_a_new_node_may_take_the_name_and_the_place_of_the_old_one(stage: Stage) -> None:
    """Only its key is new."""
    again = NODE4 | {"name": "node2", "peer": NODE2.peer, "http": NODE2.http}
    stage.file.write_text(json.dumps(again))
    assert 0 == stage.run("member", "replace", "node2", "--file", stage.file).code
    assert KEY == stage.node.membership.named("node2").public_key.hex()


@pytest.mark.parametrize(
    ("old", "changes", "code", "words"),
    [
        ("node9", {}, ExitCode.NOT_FOUND, "node9 is not a member; to add one alone"),
        ("node2", {"name": "node1"}, ExitCode.CHANGE_REFUSED, "node1 has the name or"),
        ("node2", {"peer": "127.0.0.1:7001"}, ExitCode.CHANGE_REFUSED, "node1 has the name or"),
        ("node2", {"http": "127.0.0.1:8001"}, ExitCode.CHANGE_REFUSED, "node1 has the HTTP"),
        ("node2", {"peer": "nowhere"}, ExitCode.INPUT, "node4 cannot be added: peer: must be"),
        ("node2", {"http": "h:0"}, ExitCode.INPUT, "node4 cannot be added: http: must have"),
        ("node2", {"public_key": "02" + "00" * 31}, ExitCode.INPUT, "not an Ed25519 public key"),
        (
            "node2",
            {"public_key": NODE2.public_key.hex()},
            ExitCode.CHANGE_REFUSED,
            "the key of node4 is that of node2",
        ),
    ],
)
def test_nothing_is_removed_for_one_that_cannot_be_added(
    stage: Stage, old: str, changes: dict[str, str], code: ExitCode, words: str
) -> None:
    """The new one is looked at first."""
    stage.file.write_text(json.dumps(NODE4 | changes))
    result = stage.run("member", "replace", old, "--file", stage.file)
    assert code == result.code
    assert words in result.error
    assert [] == stage.calls


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        (
            ChangeError(ChangeRefusal.FORMER_MEMBER, "was n7"),
            ExitCode.CHANGE_REFUSED,
            "node4 was not added (former-member: was n7); make a new folder (`bitnexus node init",
        ),
        (
            ChangeError(ChangeRefusal.NO_QUORUM, "too few"),
            ExitCode.CHANGE_REFUSED,
            "node4 was not added (no-quorum: too few); once that is mended, `bitnexus member add",
        ),
        (UnknownChangeError("late"), ExitCode.UNKNOWN_FATE, "node4 is not known to be added (the"),
    ],
)
def test_half_a_replacement_says_how_to_go_on(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, fault: Exception, code: ExitCode, words: str
) -> None:
    """The old one is gone, and the new one is not there, or may be: that is told apart."""
    administration = stage.node.administration

    async def add(_: Member, *, timeout_s: float) -> MadeChange:
        administration.calls.append(f"add within {timeout_s > 0}")
        raise fault

    monkeypatch.setattr(administration, "add", add)
    result = stage.run("member", "replace", "node2", "--file", stage.file)
    assert code == result.code
    assert f"node2 is removed, and {words}" in result.error
    assert ["remove node2", "add within True"] == stage.calls


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (ChangeRefusal.UNKNOWN_MEMBER, ExitCode.NOT_FOUND),
        (ChangeRefusal.INVALID, ExitCode.CHANGE_REFUSED),
        (ChangeRefusal.FORMER_MEMBER, ExitCode.CHANGE_REFUSED),
        (ChangeRefusal.NOT_CAUGHT_UP, ExitCode.CHANGE_REFUSED),
        (ChangeRefusal.NO_QUORUM, ExitCode.CHANGE_REFUSED),
    ],
)
@pytest.mark.parametrize(
    "arguments",
    [
        ("member", "add", "node4", *OPTIONS),
        ("member", "promote", "node2"),
        ("member", "move", "node2", "--http", "h:1"),
        ("member", "remove", "node2"),
        ("transfer-leadership",),
    ],
)
def test_a_refusal_has_its_exit_code(
    stage: Stage, arguments: tuple[str, ...], reason: ChangeRefusal, code: ExitCode
) -> None:
    """And the reason's word, and the leader's own."""
    stage.node.administration.faults = [ChangeError(reason, "for a test")]
    result = stage.run(*arguments)
    words = "for a test" if code is ExitCode.NOT_FOUND else f"{reason}: for a test"
    assert (code, words, "") == (result.code, result.error, result.stdout)


def test_an_unknown_fate_says_where_to_look(stage: Stage) -> None:
    """The change may be made."""
    stage.node.administration.faults = [UnknownChangeError("block 1 is late")]
    result = stage.run("member", "remove", "node2")
    assert ExitCode.UNKNOWN_FATE == result.code
    assert "block 1 is late" in result.error
    assert "bitnexus member list" in result.error


def test_without_a_leader_nothing_is_changed(stage: Stage) -> None:
    """As with every command: no node can do it now."""
    stage.node.leader = None
    result = stage.run("member", "remove", "node2", "--timeout", 0.2)
    assert ExitCode.UNREACHABLE == result.code
    assert "no leader is known" in result.error


@pytest.mark.parametrize(
    "arguments",
    [
        ("add",),
        ("add", "node4"),
        ("add", "node4", *OPTIONS[:4]),
        ("add", "node4", "--file", "f"),
        ("add", *OPTIONS, "--wait-timeout", "1", "node4"),
        ("move", "node1"),
        ("replace", "node2"),
        ("replace", "node2", "--file", "f", "--wait-timeout", "1"),
        ("remove",),
    ],
)
def test_half_a_command_is_refused(stage: Stage, arguments: tuple[str, ...]) -> None:
    """One line says what is missing, and nothing is changed."""
    result = stage.run("member", *arguments)
    assert (ExitCode.USAGE, "") == (result.code, result.stdout)
    assert result.error
    assert [] == stage.calls


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"name": "node4"}', "\udcff"])
@pytest.mark.parametrize("command", [("add",), ("replace", "node2")])
def test_what_is_no_member_file_is_refused(
    stage: Stage, command: tuple[str, ...], text: str | None
) -> None:
    """Absent, not JSON, or not what `node init` writes; the file is named."""
    if text is None:
        stage.file.unlink()
    else:
        stage.file.write_bytes(text.encode("utf-8", "surrogateescape"))
    result = stage.run("member", *command, "--file", stage.file)
    assert ExitCode.INPUT == result.code
    assert str(stage.file) in result.error
    assert [] == stage.calls
