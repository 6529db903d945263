"""The commands that read and write the ledger: what they show, and how they end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

import msgspec
import pytest

from consensus.block import encode_transaction
from consensus.changes import Membership
from node.cli_errors import ExitCode
from node.outcomes import ClusterStatus, MemberStatus, Refusal, RefusalReason
from tests.node.cli_stage import Result, run, serving
from tests.node.fake_ledger import FakeNode

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
ID = "0197f000-0000-7000-8000-000000000001"
NOWHERE = "http://127.0.0.1:1"


class Stage(NamedTuple):
    """A ledger in memory, and its address."""

    node: FakeNode
    url: str

    def run(self, *arguments: object) -> Result:
        """Run a command against it."""
        return run(*arguments, "--node", self.url)

    def record(self, user_id: str, count: int) -> None:
        """Record transactions of a user, one block each, with ids that count up."""
        for number in range(count):
            raw = encode_transaction(
                transaction_id=UUID(int=len(self.node.blocks)).bytes,
                user_id=user_id,
                kind="deposit",
                payload={"amount": number},
            )
            self.node.seal([raw])


@pytest.fixture
def stage() -> Iterator[Stage]:
    """A ledger with nothing but its genesis."""
    node = FakeNode()
    with serving(node) as (url,):
        yield Stage(node, url)


SUBMIT = ("submit", "--user", "alice", "--kind", "deposit", "--payload", '{"amount": 1.50}')


def test_submit_records_one_transaction(stage: Stage) -> None:
    """The line names the id, the place and the time of the block."""
    result = stage.run(*SUBMIT, "--id", ID)
    assert (result.code, result.stderr) == (0, "")
    assert result.stdout == f"recorded {ID}  block 1 position 0  2023-11-14T22:13:21.000000Z\n"
    expected = encode_transaction(
        transaction_id=UUID(ID).bytes, user_id="alice", kind="deposit", payload={"amount": 1.5}
    )
    assert stage.node.blocks[1].transactions == (expected,)


def test_submit_tells_machines_the_receipt(stage: Stage) -> None:
    """With --json stdout is the receipt alone."""
    result = stage.run(*SUBMIT, "--json", "--id", ID)
    assert result.document == {
        "id": ID,
        "index": 1,
        "position": 0,
        "block_hash": stage.node.blocks[1].hash.hex(),
        "timestamp": "2023-11-14T22:13:21.000000Z",
    }


def test_submit_makes_an_id_of_version_7(stage: Stage) -> None:
    """Without --id each call records a transaction of its own."""
    ids = {UUID(stage.run(*SUBMIT, "--json").document["id"]) for _ in range(2)}
    assert {identifier.version for identifier in ids} == {7}
    assert len(ids) == 2


def test_submit_again_with_the_same_id_gives_the_first_receipt(stage: Stage) -> None:
    """A retry records nothing."""
    first = stage.run(*SUBMIT, "--id", ID)
    assert stage.run(*SUBMIT, "--id", ID) == first
    assert len(stage.node.blocks) == 2


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"--payload": "{"}, ExitCode.REFUSED, "--payload: is not JSON"),
        ({"--payload": "NaN"}, ExitCode.REFUSED, "--payload: is not JSON"),
        ({"--payload": "1,2"}, ExitCode.REFUSED, "--payload: is not JSON"),
        ({"--payload": '1, "id": "x"'}, ExitCode.REFUSED, "--payload: is not JSON"),
        ({"--payload": '{"a": 1, "a": 2}'}, ExitCode.REFUSED, "--payload: $.a: is there twice"),
        ({"--payload": "[" * 40 + "]" * 40}, ExitCode.REFUSED, "--payload: $"),
        ({"--payload": "18446744073709551616"}, ExitCode.REFUSED, "--payload: "),
        ({"--user": ""}, ExitCode.REFUSED, "user_id: must not be empty"),
        ({"--kind": "k" * 65}, ExitCode.REFUSED, "kind: has more than 64 bytes"),
        ({"--kind": "genesis"}, ExitCode.REFUSED, "$.kind: genesis is recorded by the cluster"),
        ({"--id": "7"}, ExitCode.USAGE, "--id: '7' is no UUID"),
        ({"--timeout": "0"}, ExitCode.USAGE, "--timeout"),
        ({"--node": "127.0.0.1:8001"}, ExitCode.USAGE, "is no node's address"),
        ({"--node": "http://"}, ExitCode.USAGE, "is no node's address"),
        ({"--node": "http://a:b"}, ExitCode.USAGE, "is no node's address"),
        ({"--node": "http://h/?q=1"}, ExitCode.USAGE, "is no node's address"),
        ({"--nodes": "3"}, ExitCode.USAGE, "--nodes"),
    ],
)
def test_submit_refuses_what_is_no_transaction(
    stage: Stage, changes: dict[str, str], code: ExitCode, words: str
) -> None:
    """One line on stderr names the option or the field, nothing is on stdout, nothing recorded."""
    options = {"--user": "u", "--kind": "k", "--payload": "1", "--node": stage.url} | changes
    result = run("submit", *(part for pair in options.items() for part in pair))
    assert (result.code, result.stdout) == (code, "")
    assert words in result.error
    assert len(stage.node.blocks) == 1


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--user", "u", "--kind", "k"),
        ("--file", "f", "--user", "u"),
        ("--file", "f", "--id", ID),
    ],
)
def test_submit_takes_one_transaction_or_a_file(options: tuple[str, ...]) -> None:
    """Neither half a transaction nor both at once."""
    result = run("submit", *options)
    assert result.code == ExitCode.USAGE
    assert "--file" in result.error


def test_submit_of_other_content_is_a_conflict(stage: Stage) -> None:
    """The id is taken: the exit code says that the ledger refused."""
    stage.run(*SUBMIT, "--id", ID)
    result = stage.run("submit", "--user", "bob", "--kind", "k", "--payload", "1", "--id", ID)
    assert (result.code, result.error) == (ExitCode.REFUSED, "the id has other content")


def test_submit_without_an_answer_says_how_to_find_out(stage: Stage) -> None:
    """An unknown fate has an exit code of its own, and the line has the id to ask with."""
    refusal = Refusal(b"", RefusalReason.UNKNOWN, "no answer in time")
    stage.node.refusals[b"alice"] = refusal
    result = stage.run(*SUBMIT, "--id", ID, "--timeout", "0.3")
    assert result.code == ExitCode.UNKNOWN_FATE
    assert f"run again with --id {ID}" in result.error


@pytest.mark.parametrize(
    "command",
    [SUBMIT, ("transactions", "alice"), ("receipt", ID), ("block", "1"), ("status",), ("verify",)],
)
def test_no_node_answering_has_an_exit_code_of_its_own(command: tuple[str, ...]) -> None:
    """Nothing listens there: one line says so."""
    result = run(*command, "--node", NOWHERE, "--timeout", "0.2")
    assert (result.code, result.stdout) == (ExitCode.UNREACHABLE, "")
    assert NOWHERE in result.error


def test_any_of_several_nodes_will_do(stage: Stage) -> None:
    """A node that is away is passed over, wherever the addresses come from."""
    given = run(*SUBMIT, "--node", NOWHERE, "--node", stage.url)
    named = run(*SUBMIT, env={"BITNEXUS_NODES": f" {NOWHERE}, {stage.url}/ ,"})
    assert (given.code, named.code) == (0, 0)
    assert len(stage.node.blocks) == 3


def test_transactions_come_newest_first_in_columns(stage: Stage) -> None:
    """People see time, place, kind, id and payload, aligned."""
    stage.record("alice", 2)
    result = stage.run("transactions", "alice")
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    assert lines[0].split() == ["time", "block", "kind", "id", "payload"]
    assert lines[1:] == [
        f'2023-11-14T22:13:22.000000Z    2/0  deposit  {UUID(int=2)}  {{"amount":1}}',
        f'2023-11-14T22:13:21.000000Z    1/0  deposit  {UUID(int=1)}  {{"amount":0}}',
    ]


def amounts(result: Result) -> list[int]:
    """The amounts of the transactions shown to a machine."""
    return [item["payload"]["amount"] for item in result.document["transactions"]]


def test_transactions_come_in_pages(stage: Stage) -> None:
    """--limit cuts, --after goes on, --all does not stop, --oldest-first turns them round."""
    stage.record("alice", 5)
    first = stage.run("transactions", "alice", "--limit", 3, "--json")
    rest = stage.run("transactions", "alice", "--after", first.document["next"], "--json")
    assert (amounts(first), amounts(rest)) == ([4, 3, 2], [1, 0])
    assert rest.document["next"] is None
    assert rest.document["read_index"] == 5
    oldest = stage.run("transactions", "alice", "--oldest-first", "--all", "--json")
    assert amounts(oldest) == [0, 1, 2, 3, 4]
    shown = stage.run("transactions", "alice", "--limit", 3)
    assert shown.stdout.splitlines()[-1].startswith("more: --limit, --all or --after ")


def test_all_transactions_may_be_many_pages(stage: Stage) -> None:
    """More than a page of the HTTP face is asked for page by page."""
    raws = [
        encode_transaction(
            transaction_id=UUID(int=number).bytes,
            user_id="alice",
            kind="k",
            payload={"amount": number},
        )
        for number in range(1_500)
    ]
    stage.node.seal(raws)
    limited = stage.run("transactions", "alice", "--limit", 1_200, "--json")
    whole = stage.run("transactions", "alice", "--all", "--json")
    assert amounts(limited) == list(range(1_499, 299, -1))
    assert amounts(whole) == list(range(1_499, -1, -1))


def test_a_user_without_transactions_is_no_error(stage: Stage) -> None:
    """An empty history is an answer; the name is shown as it is, markup or not."""
    result = stage.run("transactions", "[red]né/./?#")
    assert (result.code, result.stdout) == (0, "[red]né/./?# has no transactions\n")


def test_what_users_write_is_not_markup(stage: Stage) -> None:
    """A kind or a payload with brackets is shown as it was recorded."""
    stage.run("submit", "--user", "alice", "--kind", "[bold]", "--payload", '"[/bold]"')
    row = stage.run("transactions", "alice").stdout.splitlines()[1]
    assert "[bold]" in row
    assert '"[/bold]"' in row


def test_what_users_write_does_not_command_the_terminal(stage: Stage) -> None:
    """Control characters, in the ledger or in an error, are shown as escapes."""
    transaction = ("--user", "al\x1bice", "--kind", "\x1b[2J\x9b", "--payload", '"\x9b\u2028"')
    stage.run("submit", *transaction)
    result = stage.run("transactions", "al\x1bice")
    assert r"\x1b[2J\x9b" in result.stdout
    assert r'"\x9b\u2028"' in result.stdout
    assert r"a\x1bb has no" in stage.run("transactions", "a\x1bb").stdout
    assert r"a\x1bb" in stage.run("block", "a\x1bb").error


def test_without_a_leader_only_local_reads_answer(stage: Stage) -> None:
    """A linearizable read needs a leader; --local asks for less."""
    stage.record("alice", 1)
    stage.node.leader = None
    result = stage.run("transactions", "alice", "--timeout", "0.3")
    assert result.code == ExitCode.UNREACHABLE
    assert "no leader" in result.error
    assert stage.run("transactions", "alice", "--local").code == 0


def test_a_receipt_tells_committed_pending_and_unknown_apart(stage: Stage) -> None:
    """Each has its words and its exit code."""
    stage.record("alice", 1)
    committed = stage.run("receipt", UUID(int=1))
    assert committed.code == 0
    assert committed.stdout.splitlines() == [
        f"id      {UUID(int=1)}",
        "status  committed",
        "place   block 1 position 0",
        f"hash    {stage.node.blocks[1].hash.hex()}",
        "time    2023-11-14T22:13:21.000000Z",
    ]
    stage.node.pending.add(UUID(int=9).bytes)
    pending = stage.run("receipt", UUID(int=9))
    assert (pending.code, pending.stdout) == (
        ExitCode.UNKNOWN_FATE,
        f"{UUID(int=9)} is pending\n",
    )
    unknown = stage.run("receipt", UUID(int=8), "--json")
    assert (unknown.code, unknown.document) == (ExitCode.NOT_FOUND, {"status": "unknown"})
    known = stage.run("receipt", UUID(int=1), "--json").document
    assert (known["status"], known["receipt"]["index"]) == ("committed", 1)


def test_a_receipt_needs_an_id(stage: Stage) -> None:
    """What is no UUID is a usage error."""
    assert stage.run("receipt", "alice").code == ExitCode.USAGE


def test_a_block_is_shown_whole(stage: Stage) -> None:
    """Every field of the header, hash and signature, then the transactions."""
    stage.record("alice", 2)
    result = stage.run("block", 2)
    fields = dict(line.split("  ", 1) for line in result.stdout.split("\n\n")[0].splitlines())
    shown = {name.strip(): value.strip() for name, value in fields.items()}
    sealed = stage.node.blocks[2]
    assert shown["index"] == "2"
    assert shown["hash"] == sealed.hash.hex()
    assert shown["previous hash"] == stage.node.blocks[1].hash.hex()
    assert shown["signature"] == sealed.signature.hex()
    assert shown["nonce"] == str(sealed.header.nonce)
    assert len(shown) == 14
    assert str(UUID(int=2)) in result.stdout.split("\n\n")[1]


def test_the_latest_block_is_shown_to_machines(stage: Stage) -> None:
    """The JSON is the node's own."""
    stage.record("alice", 3)
    document = stage.run("block", "latest", "--json").document
    assert (document["index"], document["hash"]) == (3, stage.node.blocks[3].hash.hex())
    assert document["transactions"][0]["payload"] == {"amount": 2}


@pytest.mark.parametrize(
    ("index", "code"),
    [("9", ExitCode.NOT_FOUND), ("first", ExitCode.USAGE), ("²", ExitCode.USAGE)],
)
def test_a_block_that_is_not_there(stage: Stage, index: str, code: ExitCode) -> None:
    """Beyond the chain is not found, and what is no index is a usage error."""
    result = stage.run("block", index)
    assert (result.code, result.stdout) == (code, "")
    assert result.error


@pytest.mark.parametrize("index", ["-1", "-15"])
def test_a_negative_index_is_no_unknown_option(stage: Stage, index: str) -> None:
    """It says what an index is; what really is no option is still said to be none."""
    words = f"'{index}' is neither a block's index, counted from 0, nor latest"
    for arguments in ((index,), (index, "--json"), ("--", index)):
        result = (
            stage.run("block", *arguments) if "--" not in arguments else run("block", *arguments)
        )
        assert (ExitCode.USAGE, words) == (result.code, result.error)
    assert "No such option: --jsn" in stage.run("block", index.lstrip("-"), "--jsn").error


def test_status_shows_every_node(stage: Stage) -> None:
    """A headline, and a line for each member."""
    stage.record("alice", 2)
    stage.node.alarms = ("disk is full",)
    result = stage.run("status")
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    cluster_id = stage.node.cluster_id.hex()[:16]
    assert lines == [
        f"cluster test ({cluster_id}): node1 leads in term 1",
        "node   role    term  last  commit  applied  checkpoint  http            alarms",
        "node1  leader     1     2       2        2  -           127.0.0.1:8001  disk is full",
    ]
    assert result.code == 0


def test_status_tells_machines_the_same(stage: Stage) -> None:
    """One object for the cluster, with one for each node."""
    document = stage.run("status", "--json").document
    assert (document["leader"], document["term"], document["commit_index"]) == ("node1", 1, 0)
    assert document["nodes"] == [
        {
            "name": "node1",
            "reachable": True,
            "http": "127.0.0.1:8001",
            "role": "leader",
            "term": 1,
            "last_index": 0,
            "commit_index": 0,
            "applied_index": 0,
            "catching_up_to": None,
            "alarms": [],
            "checkpoint": None,
        }
    ]


def test_status_shows_who_learns_and_how_far_it_has_come(stage: Stage) -> None:
    """A learner is no follower, and what it fetches is more than it knows to be committed."""
    stage.node.membership = Membership(
        (stage.node.member,), frozenset({stage.node.member.public_key})
    )
    stage.node.catching_up_to = 70
    row = stage.run("status").stdout.splitlines()[2].split()
    assert ["node1", "learner", "1", "0", "0", "of", "70", "0"] == row[:8]
    (node,) = stage.run("status", "--json").document["nodes"]
    assert ("learner", 70) == (node["role"], node["catching_up_to"])


def test_status_without_a_leader_fails(stage: Stage) -> None:
    """The table is shown, and the exit code tells that nothing can be recorded."""
    stage.node.leader = None
    result = stage.run("status")
    assert result.code == ExitCode.NO_LEADER
    assert "there is no leader" in result.stdout


class OtherMember(FakeNode):
    """A second node of the same cluster, which sees what the test says; the third is away."""

    def __init__(self, name: str, *, role: str, leader: str | None, term: int) -> None:
        super().__init__()
        self.seen = (name, role, leader, term)

    def status(self) -> ClusterStatus:
        """The cluster as this node sees it."""
        name, role, leader, term = self.seen
        members = tuple(
            MemberStatus(
                msgspec.structs.replace(self.member, name=one, http="127.0.0.1:1"), "follower", None
            )
            for one in ("node1", "node2", "node3")
        )
        return replace(
            super().status(), node=name, role=role, leader=leader, term=term, members=members
        )


def test_status_believes_the_leader_of_the_latest_term() -> None:
    """Members lag and may be away; the headline is that of whoever knows best."""
    lost = OtherMember("node1", role="candidate", leader=None, term=9)
    old = OtherMember("node2", role="leader", leader="node2", term=3)
    new = OtherMember("node3", role="leader", leader="node3", term=4)
    with serving(lost, old, new) as urls:
        nodes = [part for url in urls for part in ("--node", url)]
        result = run("status", *nodes)
        partial = run("status", *nodes[:4], "--json", "--timeout", "0.3").document
    lines = result.stdout.splitlines()
    assert "node3 leads in term 4" in lines[0]
    assert [line.split()[:3] for line in lines[2:]] == [
        ["node1", "candidate", "9"],
        ["node2", "leader", "3"],
        ["node3", "leader", "4"],
    ]
    assert (partial["leader"], partial["term"]) == ("node2", 3)
    assert [node["reachable"] for node in partial["nodes"]] == [True, True, False]


class Elsewhere(FakeNode):
    """A node of the same cluster that knows the members at these addresses, by name."""

    def __init__(self, name: str, *, leader: str | None, term: int) -> None:
        super().__init__()
        self.known: dict[str, str] = {}
        self.seen = (name, leader, term)

    def status(self) -> ClusterStatus:
        """The cluster as this node sees it."""
        name, leader, term = self.seen
        members = tuple(
            MemberStatus(
                msgspec.structs.replace(self.member, name=one, http=http), "follower", None
            )
            for one, http in self.known.items()
        )
        return replace(super().status(), node=name, leader=leader, term=term, members=members)


def test_status_asks_those_whom_better_views_name() -> None:
    """A node that lags knows one of them at an address of before, and another not at all."""
    lagging = Elsewhere("node1", leader=None, term=1)
    follower = Elsewhere("node2", leader="node3", term=2)
    leader = Elsewhere("node3", leader="node3", term=3)
    new = Elsewhere("node4", leader="node3", term=3)
    with serving(lagging, follower, leader, new) as urls:
        places = [url.removeprefix("http://") for url in urls]
        lagging.known = {"node1": places[0], "node2": places[1], "node3": "127.0.0.1:1"}
        follower.known = {"node1": places[0], "node2": places[1], "node3": places[2]}
        leader.known = new.known = follower.known | {"node4": places[3]}
        document = run("status", "--node", urls[0], "--json").document
    assert "node3" == document["leader"]
    assert [(f"node{n}", True) for n in (1, 2, 3, 4)] == [
        (node["name"], node["reachable"]) for node in document["nodes"]
    ]


def test_nodes_of_two_clusters_are_not_mixed() -> None:
    """Addresses of different clusters are an error, not a strange table."""
    one, two = FakeNode(), FakeNode()
    two.cluster_id = bytes(32)
    with serving(one, two) as (first, second):
        result = run("status", "--node", first, "--node", second)
    assert result.code == ExitCode.OTHER_CLUSTER
