"""`node init --join`: what a node that joins a running cluster is told, and what it refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from consensus.changes import Membership
from consensus.membership import Member, dump_genesis, genesis_block, genesis_of, load_genesis
from node.cli_errors import ExitCode
from node.config import load_config
from node.standing import Invitation, load_invitation, load_standing
from tests.node.cli_stage import run, serving
from tests.node.fake_ledger import FakeNode
from tests.storage.builders import make_genesis

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.node.cli_stage import Result


@pytest.fixture
def node() -> FakeNode:
    """A cluster of one member, whose id no test can know beforehand."""
    return FakeNode()


@pytest.fixture
def url(node: FakeNode) -> Iterator[str]:
    """Where it answers."""
    with serving(node) as (url,):
        yield url


def join(folder: Path, url: str, *options: str, **changes: str) -> Result:
    """Run `node init --join` with good values, but for the changes."""
    values = {"name": "n4", "peer": "127.0.0.1:7004", "http": "127.0.0.1:8004"} | changes
    pairs = [part for key, value in values.items() for part in (f"--{key}", value)]
    return run("node", "init", "--data-dir", folder, "--join", url, *pairs, *options)


def test_the_folder_of_a_node_that_joins_is_complete(
    tmp_path: Path, node: FakeNode, url: str
) -> None:
    """Genesis, whom to ask, and which incarnation: all that a start needs."""
    node.incarnation = bytes(range(32))
    result = join(tmp_path / "n4", url)
    assert (0, "") == (result.code, result.stderr)
    standing = load_standing(load_config(tmp_path / "n4"))
    assert genesis_of(node.blocks[0]) == standing.genesis
    assert Invitation(node.incarnation, node.commit_index, (node.member,)) == standing.invitation
    assert standing.own is not None
    assert ("n4", "127.0.0.1:7004") == (standing.own.name, standing.own.peer)


def test_people_are_told_the_id_and_the_next_commands(
    tmp_path: Path, node: FakeNode, url: str
) -> None:
    """As they are to be typed."""
    folder = tmp_path / "n4"
    lines = [line.removeprefix("next:").strip() for line in join(folder, url).stdout.splitlines()]
    assert node.cluster_id.hex() in lines
    assert [
        f"bitnexus node run --data-dir {folder}",
        f"bitnexus member add --file {folder / 'member.json'} --node {url}",
    ] == lines[-2:]


def test_machines_are_told_the_cluster_too(tmp_path: Path, node: FakeNode, url: str) -> None:
    """With --json stdout is one object."""
    document = join(tmp_path / "n4", url, "--json").document
    assert {
        "cluster_id": node.cluster_id.hex(),
        "incarnation": node.cluster_id.hex(),
        "cluster": "test",
        "members": ["node1"],
    } == {key: document[key] for key in ("cluster_id", "incarnation", "cluster", "members")}


def test_the_cluster_that_was_meant_is_joined(tmp_path: Path, node: FakeNode, url: str) -> None:
    """Its id may be given; every other one is refused before anything is made."""
    assert 0 == join(tmp_path / "own", url, "--cluster-id", node.cluster_id.hex()).code
    result = join(tmp_path / "other", url, "--cluster-id", "ab" * 32)
    assert ExitCode.OTHER_CLUSTER == result.code
    assert not (tmp_path / "other").exists()


def test_a_node_that_tells_another_genesis_is_refused(
    tmp_path: Path, node: FakeNode, url: str
) -> None:
    """The cluster id must be what block 0 makes."""
    node.blocks[0] = make_genesis(name="other")
    result = join(tmp_path / "n4", url)
    assert ExitCode.VERIFY_FAILED == result.code
    assert f"its block 0 makes {node.blocks[0].hash.hex()}" in result.error
    assert not (tmp_path / "n4").exists()


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("name", "node1", "--name: node1 is a member already"),
        ("peer", "127.0.0.1:7001", "--peer: 127.0.0.1:7001 is that of a member"),
        ("http", "127.0.0.1:8001", "--http: 127.0.0.1:8001 is that of a member"),
    ],
)
def test_what_a_member_has_is_refused(
    tmp_path: Path, url: str, key: str, value: str, words: str
) -> None:
    """The cluster would refuse to add it."""
    result = join(tmp_path / "n4", url, **{key: value})
    assert ExitCode.ALREADY_THERE == result.code
    assert words in result.error
    assert not (tmp_path / "n4").exists()


def test_a_genesis_that_is_there_is_not_overwritten(tmp_path: Path, url: str) -> None:
    """It may be another cluster's."""
    genesis = dump_genesis(genesis_of(make_genesis()))
    (tmp_path / "genesis.json").write_text(genesis)
    assert ExitCode.ALREADY_THERE == join(tmp_path, url).code
    assert genesis == (tmp_path / "genesis.json").read_text()
    assert ["genesis.json"] == [file.name for file in tmp_path.iterdir()]


def test_the_id_alone_makes_no_sense(tmp_path: Path) -> None:
    """There is nothing to compare it with."""
    options = ("--name", "n", "--peer", "h:1", "--http", "127.0.0.1:2", "--cluster-id", "ab" * 32)
    assert ExitCode.USAGE == run("node", "init", "--data-dir", tmp_path / "n", *options).code


def test_the_files_are_those_of_the_cluster(tmp_path: Path, node: FakeNode, url: str) -> None:
    """The genesis makes the same block, so the same id, to the byte."""
    join(tmp_path / "n4", url)
    genesis = load_genesis((tmp_path / "n4" / "genesis.json").read_text())
    assert node.cluster_id == genesis_block(genesis).hash
    assert (node.member,) == load_invitation(tmp_path / "n4" / "join.json").members


def test_a_node_that_was_away_is_told_anew(tmp_path: Path, node: FakeNode, url: str) -> None:
    """Who the members are now, and how far they have come; the folder is a member's own."""
    join(tmp_path / "n1", url)
    own = load_standing(load_config(tmp_path / "n1"))
    moved = Member("n1", own.identity.public_key, "127.0.0.1:7009", "127.0.0.1:8009")
    node.membership = Membership((moved,))
    node.commit_ahead = 7
    result = run("node", "rejoin", "--data-dir", tmp_path / "n1", "--node", url)
    assert (0, "") == (result.code, result.stderr)
    expected = Invitation(node.incarnation, node.commit_index, (moved,))
    assert expected == load_invitation(tmp_path / "n1" / "join.json")


def test_a_node_that_is_no_member_is_not_told(tmp_path: Path, url: str) -> None:
    """Nothing is changed, and the line says what to do instead."""
    join(tmp_path / "n1", url)
    before = (tmp_path / "n1" / "join.json").read_bytes()
    result = run("node", "rejoin", "--data-dir", tmp_path / "n1", "--node", url)
    assert ExitCode.REFUSED == result.code
    assert "is of no member of this cluster" in result.stderr
    assert before == (tmp_path / "n1" / "join.json").read_bytes()


def test_a_node_is_not_told_of_another_cluster(tmp_path: Path, url: str) -> None:
    """Its genesis says which one it belongs to."""
    join(tmp_path / "n1", url)
    with serving(FakeNode("other")) as (other,):
        result = run("node", "rejoin", "--data-dir", tmp_path / "n1", "--node", other)
    assert ExitCode.OTHER_CLUSTER == result.code


@pytest.mark.parametrize("name", ["node.toml", "genesis.json", "identity.key", "join.json"])
@pytest.mark.parametrize("text", ["{", None])
def test_a_folder_that_is_no_nodes_is_told_in_one_line(
    tmp_path: Path, url: str, name: str, text: str | None
) -> None:
    """Which file is missing or wrong, and nothing is written."""
    join(tmp_path / "n1", url)
    file = tmp_path / "n1" / name
    file.unlink()
    if text is not None:
        file.write_text(text)
        file.chmod(0o600)
    result = run("node", "rejoin", "--data-dir", tmp_path / "n1", "--node", url)
    expected = ExitCode.REFUSED if (name, text) == ("join.json", None) else ExitCode.CONFIG
    assert (expected, "") == (result.code, result.stdout)
    assert 1 == len(result.stderr.splitlines())
    if expected is ExitCode.CONFIG:
        assert name in result.error
