"""`node init --from-backup`: a new node with a verified chain, and never a member's old one."""

from __future__ import annotations

import json
import shutil
import signal
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pytest

from consensus.changes import ChangeKind
from consensus.membership import genesis_block
from node.cli_errors import ExitCode
from node.config import load_config
from node.identity import is_unused
from node.outcomes import LostChainError
from node.standing import load_standing, open_chain
from tests.node.archive_stage import (
    NEW_NODE,
    back_up,
    bytes_of,
    chain_of,
    interrupt,
    make_folder,
    stopped_half_way,
)
from tests.node.cli_stage import run, serving
from tests.node.fake_ledger import FakeNode
from tests.storage.chain_folder import edit, flip, key_of
from tests.storage.society import Society

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.node.cli_stage import Result

BLOCKS = 60
BAD = 20


@pytest.fixture(scope="module")
def society() -> Society:
    """Three members, of whom the third was removed, a fourth that learns, and one block more."""
    society = Society(3)
    for _ in range(BLOCKS - 2):
        society.record()
    society.change(ChangeKind.REMOVE, 3)
    society.change(ChangeKind.ADD, 4)
    society.record()
    return society


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, society: Society) -> Path:
    """Where a member's folder is, and its backup of all blocks but the last."""
    base = tmp_path_factory.mktemp("made")
    folder = make_folder(base / "n2", society.blocks, committed=BLOCKS)
    assert 0 == back_up(folder, base / "b").code
    return base


@pytest.fixture
def backup(tmp_path: Path, made: Path) -> Path:
    """A backup that the test may change, beside the folder that it was made of."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path / "b"


def node_of(society: Society, *, blocks: int = BLOCKS) -> FakeNode:
    """A node of the cluster, which tells that many blocks after genesis."""
    node = FakeNode()
    node.cluster_id = node.incarnation = society.genesis.hash
    node.blocks = society.blocks[: blocks + 1]
    return node


def restore(folder: Path, backup: Path, *options: object) -> Result:
    """Run it."""
    return run("node", "init", "--data-dir", folder, *NEW_NODE, "--from-backup", backup, *options)


def test_a_new_node_has_the_backups_chain_and_a_key_of_its_own(
    tmp_path: Path, backup: Path, society: Society
) -> None:
    """Byte for byte; it knows who the members were, and starts, again and again."""
    result = restore(tmp_path / "n7", backup, "--json")
    assert (0, BLOCKS) == (result.code, result.document["through"])
    assert bytes_of(society.blocks[:-1]) == chain_of(tmp_path / "n7")
    config = load_config(tmp_path / "n7")
    standing = load_standing(config)
    assert standing.identity.public_key not in {one.public_key for one in society.members.values()}
    assert is_unused(config.identity_file)
    assert standing.invitation is not None
    assert (BLOCKS, society.roster.latest.members) == (
        standing.invitation.index,
        standing.invitation.members,
    )
    for _ in range(2):
        open_chain(config, genesis_block(standing.genesis)).close()
    assert not is_unused(config.identity_file)
    assert 0 == run("verify", "--data-dir", tmp_path / "n7").code


def test_no_node_takes_a_restored_chain_up_under_a_key_that_has_promised(
    tmp_path: Path, backup: Path, society: Society
) -> None:
    """Put into a member's folder by hand, it would have forgotten that member's votes."""
    shutil.rmtree(tmp_path / "n2" / "chain")
    shutil.copytree(backup / "chain", tmp_path / "n2" / "chain")
    config = load_config(tmp_path / "n2")
    for _ in range(2):
        with pytest.raises(LostChainError, match="restored from a backup, and n2 has run"):
            open_chain(config, society.genesis)


def test_a_node_that_joins_is_told_the_members_of_today(
    tmp_path: Path, backup: Path, society: Society
) -> None:
    """By the cluster, not by the backup."""
    with serving(node_of(society, blocks=BLOCKS + 1)) as (url,):
        result = restore(tmp_path / "n7", backup, "--join", url)
    assert (0, True) == (result.code, f"member.json --node {url}" in result.stdout)
    invitation = load_standing(load_config(tmp_path / "n7")).invitation
    assert invitation is not None
    assert (BLOCKS + 1, ["node1"]) == (invitation.index, [one.name for one in invitation.members])


def test_a_cluster_that_went_on_without_the_backups_blocks_is_not_joined(
    tmp_path: Path, backup: Path, society: Society
) -> None:
    """A node that holds them would take it for an attacker; nor one that may yet do so."""
    other = Society(3)
    other.random.seed(9)
    for _ in range(BLOCKS):
        other.record()
    with serving(node_of(other), node_of(society, blocks=BLOCKS - 1), FakeNode()) as urls:
        results = [restore(tmp_path / "n7", backup, "--join", url) for url in urls]
    assert [ExitCode.OTHER_CLUSTER, ExitCode.REFUSED, ExitCode.OTHER_CLUSTER] == [
        result.code for result in results
    ]
    assert f"block {BLOCKS} of {urls[0]} is {other.tip.hash.hex()}" in results[0].error
    assert ["b", "n2"] == sorted(entry.name for entry in tmp_path.iterdir())


def test_another_cluster_than_the_one_meant_is_refused(tmp_path: Path, backup: Path) -> None:
    """A backup is self-consistent whoever made it."""
    result = restore(tmp_path / "n7", backup, "--cluster-id", "ab" * 32)
    assert (ExitCode.OTHER_CLUSTER, False) == (result.code, (tmp_path / "n7").exists())


def test_a_name_that_is_taken_is_refused(tmp_path: Path, backup: Path) -> None:
    """As where a node joins without a backup; nothing is left."""
    options = ("--name", "n1", "--peer", "127.0.0.1:7107", "--http", "127.0.0.1:8107")
    result = run("node", "init", "--data-dir", tmp_path / "n7", *options, "--from-backup", backup)
    assert ExitCode.ALREADY_THERE == result.code
    assert ["b", "n2"] == sorted(entry.name for entry in tmp_path.iterdir())


@pytest.mark.parametrize("name", ["chain/data.mdb", "genesis.json"])
def test_a_changed_file_is_named(tmp_path: Path, backup: Path, name: str) -> None:
    """Before anything else reads it: LMDB trusts its pages."""
    content = bytearray((backup / name).read_bytes())
    content[len(content) // 2] ^= 1
    (backup / name).write_bytes(content)
    result = restore(tmp_path / "n7", backup)
    assert ExitCode.VERIFY_FAILED == result.code
    assert f"{backup / name} has {len(content)} bytes and SHA-256" in result.error
    (backup / name).unlink()
    assert f"{backup / name} is missing" == restore(tmp_path / "n7", backup).error


def edit_manifest(backup: Path, change: Callable[[Any], None]) -> None:
    """Change the manifest, and have it agree with the files."""
    manifest = json.loads((backup / "manifest.json").read_text())
    for file in manifest["files"]:
        content = (backup / file["name"]).read_bytes()
        file |= {"bytes": len(content), "sha256": sha256(content).hexdigest()}
    change(manifest)
    (backup / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("database", "change"),
    [("bodies", flip(20)), ("headers", flip(40)), ("headers", lambda _: None)],
)
def test_a_block_that_does_not_hold_is_named(
    tmp_path: Path, backup: Path, database: str, change: Callable[[bytes], bytes | None]
) -> None:
    """Also where the manifest was made to agree; and nothing is left."""
    edit(backup / "chain", database, key_of(BAD), change)
    edit_manifest(backup, lambda _: None)
    result = restore(tmp_path / "n7", backup)
    assert (ExitCode.VERIFY_FAILED, True) == (result.code, f"block {BAD} is" in result.error)
    assert ["b", "n2"] == sorted(entry.name for entry in tmp_path.iterdir())


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("format", 2, "is of format 2; this program reads 1"),
        ("through", BLOCKS - 1, "the manifest has another end"),
        ("hash", "00" * 32, "the manifest has another end"),
        ("cluster_id", "00" * 32, "the manifest has another end"),
        ("hash", "xyz", "non-hexadecimal"),
        ("files", [], "describes no backup"),
        ("more", 1, "unknown field"),
    ],
)
def test_a_manifest_that_is_wrong_is_refused(
    tmp_path: Path, backup: Path, key: str, value: object, words: str
) -> None:
    """Whatever the chain beside it is."""
    edit_manifest(backup, lambda manifest: manifest.update({key: value}))
    result = restore(tmp_path / "n7", backup)
    assert (ExitCode.VERIFY_FAILED, True) == (result.code, words in result.error)
    assert not (tmp_path / "n7").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_restore_leaves_no_folder(
    tmp_path: Path, backup: Path, society: Society, number: signal.Signals
) -> None:
    """Nothing stands at its place; the same command then makes all of it."""
    arguments = ("node", "init", "--data-dir", tmp_path / "n7", *NEW_NODE, "--from-backup", backup)
    code = interrupt(number, *arguments)
    assert code == (ExitCode.INTERRUPTED if number is signal.SIGINT else -signal.SIGKILL)
    assert (number is signal.SIGKILL) == (tmp_path / "n7.partial").exists()
    assert not (tmp_path / "n7").exists()
    assert 0 == run(*arguments).code
    assert bytes_of(society.blocks[:-1]) == chain_of(tmp_path / "n7")
    assert ["b", "n2", "n7"] == sorted(entry.name for entry in tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path: Path, backup: Path) -> None:
    """Neither a node's folder, nor any other, nor one that is being made."""
    assert ExitCode.ALREADY_THERE == restore(tmp_path / "n2", backup).code
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "letters").write_text("mine")
    assert ExitCode.FOLDER_FOREIGN == restore(tmp_path / "own", backup).code
    arguments = ("node", "init", "--data-dir", tmp_path / "n7", *NEW_NODE, "--from-backup", backup)
    with stopped_half_way(*arguments):
        assert ExitCode.FOLDER_IN_USE == restore(tmp_path / "n7", backup).code


def test_what_is_no_backup_is_told_so(tmp_path: Path, backup: Path) -> None:
    """A data folder is none either: it has votes."""
    result = restore(tmp_path / "n7", tmp_path / "n2")
    assert (ExitCode.VERIFY_FAILED, f"{tmp_path / 'n2'} is no backup: it has no manifest.json") == (
        result.code,
        result.error,
    )
    result = run("node", "init", "--data-dir", tmp_path / "n7", *NEW_NODE, "--cluster-id", "ab")
    assert ExitCode.USAGE == result.code
