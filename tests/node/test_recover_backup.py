"""`node recover --unsafe --from-backup`: a voter's key goes on where no chain is left."""

from __future__ import annotations

import shutil
import signal
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from consensus.changes import Change, ChangeKind, recorded_change
from consensus.ready import HardState
from node.cli_errors import ExitCode
from node.config import load_config
from node.outcomes import LostChainError
from node.standing import open_chain
from storage.chain import ChainStore
from tests.node.archive_stage import back_up, bytes_of, chain_of, interrupt, make_folder
from tests.node.cli_stage import run, serving
from tests.node.fake_ledger import FakeNode
from tests.storage.society import Society

if TYPE_CHECKING:
    from pathlib import Path

    from tests.node.cli_stage import Result

BLOCKS = 60


@pytest.fixture(scope="module")
def society() -> Society:
    """Three members and their chain, and a fourth that learns."""
    society = Society(3)
    for _ in range(BLOCKS - 1):
        society.record()
    society.change(ChangeKind.ADD, 4)
    return society


def lose_chain(base: Path, society: Society, number: int = 2) -> Path:
    """The folder of member `number` without its chain, beside a backup `b` of it."""
    committed = society.tip.index
    folder = make_folder(base / f"n{number}", society.blocks, committed=committed, number=number)
    if not (base / "b").exists():
        assert 0 == back_up(folder, base / "b").code
    shutil.rmtree(folder / "chain")
    return folder


def recover(folder: Path, *options: object) -> Result:
    """Run it with the backup beside the folder."""
    backup = folder.parent / "b"
    return run("node", "recover", "--data-dir", folder, "--from-backup", backup, *options)


def test_without_yes_nothing_is_changed(tmp_path: Path, society: Society) -> None:
    """It says what would be lost and how to do it; the chain is still lost."""
    folder = lose_chain(tmp_path, society)
    before = sorted(entry.name for entry in folder.iterdir())
    result = recover(folder, "--unsafe")
    assert (0, "") == (result.code, result.stderr)
    said = " ".join(result.stdout.split())
    assert f"lost whatever anybody recorded beyond block {BLOCKS}" in said
    assert f"--yes --data-dir {folder} --from-backup {tmp_path / 'b'}" in said
    assert sorted([*before, "lock"]) == sorted(entry.name for entry in folder.iterdir())


def test_the_key_goes_on_in_a_new_incarnation_alone(tmp_path: Path, society: Society) -> None:
    """The backup's blocks and the break come to be together, and the node may run on them."""
    folder = lose_chain(tmp_path, society)
    document = recover(folder, "--unsafe", "--yes", "--json").document
    own = society.members[2]
    assert (True, "n2", BLOCKS + 1, ["n1", "n3", "n4"]) == tuple(
        document[key] for key in ("done", "member", "index", "given_up")
    )
    with closing(ChainStore.open(folder / "chain", readonly=True)) as chain:
        block = chain.block(BLOCKS + 1)
        assert HardState(2, own.public_key, BLOCKS + 1) == chain.hard_state
    assert Change(ChangeKind.RECOVER, own) == recorded_change(block).change
    assert [*bytes_of(society.blocks), block.encode()] == chain_of(folder)
    for _ in range(2):
        open_chain(load_config(folder), society.genesis).close()
    assert 0 == run("verify", "--data-dir", folder).code
    assert ExitCode.ALREADY_THERE == recover(folder, "--unsafe", "--yes").code


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_recovery_leaves_no_chain(
    tmp_path: Path, society: Society, number: signal.Signals
) -> None:
    """A chain without the break would be one under a key that has forgotten its votes."""
    folder = lose_chain(tmp_path, society)
    arguments = ("--data-dir", folder, "--from-backup", tmp_path / "b", "--unsafe", "--yes")
    code = interrupt(number, "node", "recover", *arguments)
    assert code == (ExitCode.INTERRUPTED if number is signal.SIGINT else -signal.SIGKILL)
    assert not (folder / "chain").exists()
    with pytest.raises(LostChainError):
        open_chain(load_config(folder), society.genesis)
    assert 0 == recover(folder, "--unsafe", "--yes").code
    assert bytes_of(society.blocks) == chain_of(folder)[:-1]
    assert not (folder / "chain.partial").exists()


def test_a_restored_chain_put_there_by_hand_needs_the_break_too(
    tmp_path: Path, society: Society
) -> None:
    """The store knows that it was restored, with or without the option."""
    folder = lose_chain(tmp_path, society)
    shutil.copytree(tmp_path / "b" / "chain", folder / "chain")
    assert 0 == run("node", "recover", "--unsafe", "--yes", "--data-dir", folder).code
    open_chain(load_config(folder), society.genesis).close()


def test_the_only_voter_begins_a_new_incarnation_too(tmp_path: Path) -> None:
    """A learner may hold what it recorded after the backup."""
    society = Society(1)
    society.record()
    folder = lose_chain(tmp_path, society, 1)
    result = recover(folder, "--unsafe", "--yes")
    assert (0, True) == (result.code, "without the consent of anybody" in result.stdout)
    assert bytes_of(society.blocks) == chain_of(folder)[:-1]


@pytest.mark.parametrize(("number", "words"), [(4, "is a learner"), (7, "is not a member")])
def test_a_key_that_does_not_vote_is_refused(
    tmp_path: Path, society: Society, number: int, words: str
) -> None:
    """Else anybody could lengthen a chain."""
    folder = lose_chain(tmp_path, society, number)
    for options in (("--unsafe",), ("--unsafe", "--yes")):
        result = recover(folder, *options)
        assert (ExitCode.REFUSED, True) == (result.code, words in result.error)
    assert not (folder / "chain").exists()


@pytest.mark.parametrize("number", [2, 3])
def test_nobody_goes_on_while_a_member_answers(tmp_path: Path, number: int) -> None:
    """Not even the member itself, which then has not lost its chain at all."""
    there = FakeNode()
    with serving(there) as (url,):
        society = Society(3, http_of_3=url.removeprefix("http://"))
        society.record()
        there.cluster_id = society.genesis.hash
        folder = lose_chain(tmp_path, society, number)
        refused = recover(folder, "--unsafe", "--yes")
        assert (ExitCode.REFUSED, True) == (refused.code, "n3 still answers" in refused.error)
        assert not (folder / "chain").exists()
        assert ["n3"] == recover(folder, "--unsafe", "--json").document["answering"]
        assert 0 == recover(folder, "--unsafe", "--yes", "--although-they-answer").code


def test_a_backup_of_another_cluster_is_refused(tmp_path: Path, society: Society) -> None:
    """The folder's own genesis says which one is meant."""
    folder = lose_chain(tmp_path, society)
    (tmp_path / "elsewhere").mkdir()
    other = lose_chain(tmp_path / "elsewhere", Society(2))
    (folder / "genesis.json").write_bytes((other / "genesis.json").read_bytes())
    assert ExitCode.OTHER_CLUSTER == recover(folder, "--unsafe").code
