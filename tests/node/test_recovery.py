"""`node recover --unsafe`: what it tells, what it does in one save, and when it refuses."""

from __future__ import annotations

import os
import shutil
from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

import pytest

from consensus.changes import Change, ChangeKind, recorded_change
from consensus.membership import dump_genesis, genesis_of
from consensus.ready import HardState
from consensus.roster import Roster
from node.api.answers import time_text
from node.cli_errors import ExitCode
from node.folder_lock import FolderLock
from storage.chain import ChainStore
from tests.node.cli_stage import run, serving
from tests.node.fake_ledger import FakeNode
from tests.storage.builders import make_key
from tests.storage.chain_folder import edit, flip, key_of
from tests.storage.society import Society

if TYPE_CHECKING:
    from pathlib import Path

    from tests.node.cli_stage import Result


class Survivor(NamedTuple):
    """The folder of one stopped member of a society."""

    folder: Path
    society: Society

    def open(self) -> closing[ChainStore]:
        """Its chain."""
        return closing(ChainStore.open(self.folder / "chain", reserve_bytes=0))

    def recover(self, *options: str) -> Result:
        """Run the command."""
        return run("node", "recover", "--data-dir", self.folder, *options)


def settle(folder: Path, society: Society, number: int, *, committed: int) -> Survivor:
    """The folder of member `number`, with all blocks of the society."""
    (folder / "node.toml").write_text(f'name = "n{number}"\nhttp_port = {8000 + number}\n')
    key = folder / "identity.key"
    key.write_text(bytes(make_key(number)).hex() + "\n")
    key.chmod(0o600)
    (folder / "genesis.json").write_text(dump_genesis(genesis_of(society.genesis)))
    chain = ChainStore.open(folder / "chain", genesis=society.genesis, reserve_bytes=0)
    with closing(chain):
        state = HardState(society.tip.term + 2, None, committed)
        chain.save(hard_state=state, truncate_from=None, blocks=society.blocks[1:])
    return Survivor(folder, society)


@pytest.fixture
def survivor(tmp_path: Path) -> Survivor:
    """Member 2 of three, with four blocks, of which it knows two to be committed."""
    society = Society(3)
    for _ in range(4):
        society.record()
    return settle(tmp_path, society, 2, committed=2)


def test_without_yes_nothing_is_changed(survivor: Survivor) -> None:
    """It says what is, what would be lost, who is given up, and how to do it."""
    result = survivor.recover("--unsafe")
    assert (0, "") == (result.code, result.stderr)
    said = " ".join(result.stdout.split())
    for words in (
        "n2 goes on alone, without the consent of n1, n3.",
        "last block of term 1, block 4",
        survivor.society.tip.hash.hex(),
        "whose last block has the highest term, and only among equals the longest chain",
        "committed through block 2, as far as n2 knows",
        "becomes so blocks 3 to 4",
        "lost whatever n1, n3 recorded beyond block 4",
        "given up n1, n3: never again members under their keys",
        "new incarnation begins with block 5",
        f"bitnexus node recover --unsafe --yes --data-dir {survivor.folder}",
    ):
        assert words in said
    with survivor.open() as chain:
        assert (4, HardState(3, None, 2)) == (chain.last_index, chain.hard_state)


def test_with_yes_one_save_makes_it_alone_and_the_leader(survivor: Survivor) -> None:
    """The block is sealed in the next term, with its own vote, and committed."""
    document = survivor.recover("--unsafe", "--yes", "--json").document
    own = survivor.society.members[2]
    with survivor.open() as chain:
        block = chain.block(5)
        assert HardState(4, own.public_key, 5) == chain.hard_state
        assert (4, own.public_key) == (block.term, block.header.sealer)
        assert Change(ChangeKind.RECOVER, own) == recorded_change(block).change
        roster = Roster(chain.block(0), map(chain.block, chain.change_indexes()))
    assert (frozenset({own.public_key}), block.hash) == (roster.latest.voters, roster.incarnation)
    assert {
        "done": True,
        "member": "n2",
        "last_term": 1,
        "last_index": 4,
        "last_hash": survivor.society.tip.hash.hex(),
        "commit_index": 2,
        "given_up": ["n1", "n3"],
        "answering": [],
        "new_term": 4,
        "index": 5,
        "incarnation": block.hash.hex(),
    } == document


def test_verify_accepts_the_chain_and_shows_the_break(survivor: Survivor) -> None:
    """Loudly: which block, who, and when."""
    survivor.recover("--unsafe", "--yes")
    result = run("verify", "--data-dir", survivor.folder)
    assert (0, "") == (result.code, result.stderr)
    with survivor.open() as chain:
        when = time_text(chain.block(5).timestamp_us)
    (shown,) = (line for line in result.stdout.splitlines() if line.startswith("BREAK"))
    assert shown.startswith(f"BREAK AT BLOCK 5 of {survivor.folder / 'chain'}: at {when} n2 went")
    assert "members: n2; changed in blocks 5 (recover n2) of" in result.stdout
    (chain_verdict, _) = run("verify", "--data-dir", survivor.folder, "--json").document["verdicts"]
    assert [(5, "recover", "n2", ["n2"])] == [
        (one["index"], one["kind"], one["member"], one["members"])
        for one in chain_verdict["changes"]
    ]


@pytest.mark.parametrize("is_ours", [True, False])
def test_whoever_still_answers_is_not_given_up(tmp_path: Path, *, is_ours: bool) -> None:
    """Unless that is insisted on. A node of another cluster at the address is nobody."""
    there = FakeNode()
    with serving(there) as (url,):
        society = Society(3, http_of_3=url.removeprefix("http://"))
        society.record()
        survivor = settle(tmp_path, society, 2, committed=1)
        there.cluster_id = society.genesis.hash if is_ours else there.cluster_id
        assert ["n3"] * is_ours == survivor.recover("--unsafe", "--json").document["answering"]
        done = survivor.recover("--unsafe", "--yes")
        if is_ours:
            assert ExitCode.REFUSED == done.code
            assert "n3 still answers" in done.error
            done = survivor.recover("--unsafe", "--yes", "--although-they-answer")
            assert "STILL ANSWERING n3" in done.stdout
        assert ExitCode.OK == done.code
    with survivor.open() as chain:
        assert chain.last_index == 2


def test_a_second_time_is_refused(survivor: Survivor) -> None:
    """It has its majority by itself now."""
    survivor.recover("--unsafe", "--yes")
    result = survivor.recover("--unsafe", "--yes")
    assert (ExitCode.REFUSED, "n2 is the only voter already: start it") == (
        result.code,
        result.error,
    )


def test_it_must_be_asked_for_as_what_it_is(survivor: Survivor) -> None:
    """Without --unsafe it is a usage error that names the place to read."""
    result = survivor.recover("--yes")
    assert ExitCode.USAGE == result.code
    assert "When a majority is gone for good" in result.error


@pytest.mark.parametrize("options", [("--unsafe",), ("--unsafe", "--yes")])
def test_a_running_node_is_refused(survivor: Survivor, options: tuple[str, ...]) -> None:
    """What it would tell is out of date at once, and what it would do is ruin."""
    with FolderLock(survivor.folder / "lock"):
        result = survivor.recover(*options)
    assert ExitCode.FOLDER_IN_USE == result.code
    assert f"in use by process {os.getpid()}" in result.error


def test_a_damaged_chain_is_refused(survivor: Survivor) -> None:
    """Nobody is left to say what it should be."""
    edit(survivor.folder / "chain", "bodies", key_of(2), flip(20))
    result = survivor.recover("--unsafe", "--yes")
    assert ExitCode.CORRUPT == result.code
    assert "the chain does not hold: block 2: " in result.error
    with survivor.open() as chain:
        assert 4 == chain.last_index


def test_who_is_no_member_is_refused(tmp_path: Path) -> None:
    """By its own chain, whatever was committed of that."""
    society = Society(3)
    society.change(ChangeKind.REMOVE, 2)
    result = settle(tmp_path, society, 2, committed=0).recover("--unsafe", "--yes")
    assert ExitCode.REFUSED == result.code
    assert "is not a member of the cluster" in result.error


def test_a_learner_is_refused(tmp_path: Path) -> None:
    """It was in no majority, so a majority may have what it lacks."""
    society = Society(3)
    society.change(ChangeKind.ADD, 4)
    result = settle(tmp_path, society, 4, committed=1).recover("--unsafe", "--yes")
    assert (ExitCode.REFUSED, True) == (result.code, "n4 is a learner" in result.error)


def test_a_node_without_a_chain_is_refused(survivor: Survivor) -> None:
    """Nothing is made in its place."""
    shutil.rmtree(survivor.folder / "chain")
    result = survivor.recover("--unsafe", "--yes")
    assert (ExitCode.CONFIG, True) == (result.code, "holds no chain" in result.error)
    assert not (survivor.folder / "chain").exists()
