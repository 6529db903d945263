"""`bitnexus verify`: chains that hold, and what is said of those that do not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import lmdb
import pytest

from consensus.block import Block, encode_transaction
from consensus.membership import dump_genesis, genesis_of
from consensus.ready import HardState
from node.cli_errors import ExitCode
from storage.chain import ChainStore
from storage.index import IndexStore
from tests.node.cli_stage import Result, run, serving
from tests.node.fake_ledger import FakeNode
from tests.storage.builders import Author, make_genesis, make_transaction

if TYPE_CHECKING:
    from pathlib import Path


class Stage(NamedTuple):
    """A node's data folder with a chain of five blocks, and the author of the chain."""

    folder: Path
    author: Author

    def verify(self, *options: object) -> Result:
        """Verify the folder."""
        return run("verify", "--data-dir", self.folder, *options)

    def save(self, *blocks: Block) -> None:
        """Append blocks and commit them."""
        with closing(ChainStore.open(self.folder / "chain", reserve_bytes=0)) as chain:
            state = HardState(term=blocks[-1].term, commit_index=blocks[-1].index)
            chain.save(hard_state=state, truncate_from=None, blocks=blocks)

    def apply(self, blocks: list[Block]) -> None:
        """Apply blocks to the index."""
        with closing(
            IndexStore.open(
                self.folder / "index", cluster_id=self.author.genesis.hash, reserve_bytes=0
            )
        ) as index:
            index.apply(blocks)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """A node's data folder whose chain and index hold."""
    author = Author()
    genesis = author.genesis
    (tmp_path / "genesis.json").write_text(dump_genesis(genesis_of(genesis)))
    with closing(ChainStore.open(tmp_path / "chain", genesis=genesis, reserve_bytes=0)):
        pass
    stage = Stage(tmp_path, author)
    blocks = [author.seal_for("alice", "bob", term=1) for _ in range(4)]
    stage.save(*blocks)
    stage.apply([genesis, *blocks])
    return stage


def test_a_folder_that_holds_is_told_so(stage: Stage) -> None:
    """One line for the chain and one for the index, with what they have."""
    result = stage.verify()
    assert (result.code, result.stderr) == (0, "")
    rows = [line.split() for line in result.stdout.splitlines()]
    assert rows == [
        ["what", "where", "blocks", "transactions", "verdict"],
        ["chain", str(stage.folder / "chain"), "5", "9", "holds"],
        ["index", str(stage.folder / "index"), "5", "9", "holds"],
    ]


def test_machines_are_told_the_same(stage: Stage) -> None:
    """One object: whether all holds, and each verdict."""
    document = stage.verify("--json").document
    assert document["ok"] is True
    assert [
        (verdict["subject"], verdict["through"], verdict["transactions"], verdict["finding"])
        for verdict in document["verdicts"]
    ] == [("chain", 4, 9, None), ("index", 4, 9, None)]


def test_the_folder_of_a_running_node_can_be_verified(stage: Stage) -> None:
    """Another process may hold the chain open and write to it."""
    code = (
        "import sys; from pathlib import Path; from storage.chain import ChainStore;"
        "chain = ChainStore.open(Path(sys.argv[1])); print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(stage.folder / "chain")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == b"open\n"
        assert stage.verify().code == 0
        holder.stdin.close()


def test_a_block_that_breaks_a_rule_is_named(stage: Stage) -> None:
    """The first bad index and what is wrong are on stderr; the exit code tells."""
    again = stage.author.seal([make_transaction(stage.author.random)] * 2, term=1)
    stage.save(again)
    result = stage.verify()
    assert result.code == ExitCode.VERIFY_FAILED
    assert f"{stage.folder / 'chain'}: block 5: transaction 1: id: " in result.error
    assert "does not hold at 5" in result.stdout
    document = stage.verify("--json").document
    assert document["ok"] is False
    assert [verdict["subject"] for verdict in document["verdicts"]] == ["chain"]
    assert document["verdicts"][0]["finding"]["index"] == 5


@pytest.mark.parametrize("index", [0, 2, 4])
def test_a_flipped_byte_on_disk_is_found(stage: Stage, index: int) -> None:
    """Wherever in the chain it is, also where a store looks before it opens."""
    with (
        lmdb.open(str(stage.folder / "chain"), max_dbs=8) as environment,
        environment.begin(write=True) as transaction,
    ):
        bodies = environment.open_db(b"bodies", transaction)
        key = index.to_bytes(8, "big")
        body = bytearray(transaction.get(key, db=bodies) or b"")
        body[-1] ^= 1
        transaction.put(key, bytes(body), db=bodies)
    result = stage.verify()
    assert result.code == ExitCode.VERIFY_FAILED
    assert f"block {index}: " in result.error


def test_an_index_that_tells_another_place_is_found(stage: Stage) -> None:
    """The look-ups are compared with the chain they come from."""
    with (
        lmdb.open(str(stage.folder / "index"), max_dbs=8) as environment,
        environment.begin(write=True) as transaction,
    ):
        ids = environment.open_db(b"ids", transaction)
        with transaction.cursor(ids) as cursor:
            assert cursor.first()
            cursor.put(cursor.key(), (7).to_bytes(8, "big") + bytes(2))
    result = stage.verify()
    assert result.code == ExitCode.VERIFY_FAILED
    assert f"{stage.folder / 'index'}: block " in result.error
    assert "the index has it at (7, 0)" in result.error


def test_an_index_that_is_absent_is_only_noted(stage: Stage) -> None:
    """It is derived: its node makes it anew."""
    shutil.rmtree(stage.folder / "index")
    result = stage.verify()
    assert result.code == 0
    assert "its node rebuilds it" in result.stdout


def test_the_genesis_given_is_trusted_before_the_folders(stage: Stage, tmp_path: Path) -> None:
    """A folder that is wholly of another cluster holds in itself, and is found all the same."""
    other = tmp_path / "other.json"
    other.write_text(dump_genesis(genesis_of(make_genesis(name="other"))))
    result = stage.verify("--genesis", other)
    assert result.code == ExitCode.VERIFY_FAILED
    assert "block 0: cluster: " in result.error


def test_the_genesis_of_the_configuration_is_found(stage: Stage) -> None:
    """A node may keep its genesis elsewhere; a configuration that is wrong is named."""
    (stage.folder / "genesis.json").rename(stage.folder / "elsewhere.json")
    configuration = stage.folder / "node.toml"
    configuration.write_text('name = "n"\nhttp_port = 0\ngenesis_file = "elsewhere.json"\n')
    assert stage.verify().code == 0
    configuration.write_text("name = 1\n")
    result = stage.verify()
    assert (result.code, result.stdout) == (ExitCode.CONFIG, "")
    assert str(configuration) in result.error


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ("absent", "genesis.json: No such file"),
        ("text", "genesis.json: $: is not JSON"),
        ("chain", "holds no chain: its node has never run"),
        ("cluster", "is the folder of a whole cluster: name one node's"),
    ],
)
def test_a_folder_that_cannot_be_verified_is_named(stage: Stage, spoil: str, words: str) -> None:
    """What is missing is an error of its own, not a chain that does not hold."""
    if spoil in {"chain", "cluster"}:
        (stage.folder / "chain").rename(stage.folder / "aside")
    if spoil == "cluster":
        (stage.folder / "cluster.toml").touch()
    if spoil == "absent":
        (stage.folder / "genesis.json").unlink()
    if spoil == "text":
        (stage.folder / "genesis.json").write_text("x")
    result = stage.verify()
    assert (result.code, result.stdout) == (ExitCode.CONFIG, "")
    assert words in result.error


def test_postgres_is_compared_with_a_folder(stage: Stage) -> None:
    """It needs one; and a database that is away is an error of its own."""
    alone = run("verify", "--postgres", "host=/nowhere")
    assert (alone.code, alone.error) == (
        ExitCode.USAGE,
        "--postgres needs --data-dir to compare with",
    )
    away = stage.verify("--postgres", f"host={stage.folder}")
    assert away.code == ExitCode.POSTGRES
    assert away.error.startswith("PostgreSQL: ")


def told_node(*users: str) -> FakeNode:
    """A node that tells a chain with one block for each user."""
    node = FakeNode()
    for number, user_id in enumerate(users):
        raw = encode_transaction(
            transaction_id=bytes([number]) * 16, user_id=user_id, kind="k", payload={"n": 1.5}
        )
        node.seal([raw])
    return node


def test_the_chain_a_node_tells_is_walked() -> None:
    """More blocks than are asked for at a time, from two nodes, one of which lags."""
    users = [f"user-{number}" for number in range(40)]
    with serving(told_node(*users), told_node(*users[:20])) as (one, two):
        result = run("verify", "--node", one, "--node", two)
    assert (result.code, result.stderr) == (0, "")
    rows = [line.split() for line in result.stdout.splitlines()[1:]]
    assert rows == [["node", one, "41", "41", "holds"], ["node", two, "21", "21", "holds"]]


def test_a_node_that_tells_a_false_block_is_named() -> None:
    """A signature that is not the sealer's, told by a node that does not mind."""
    node = told_node("alice", "bob", "carol")
    block = node.blocks[2]
    node.blocks[2] = replace(block, signature=bytes(64))
    with serving(node) as (url,):
        result = run("verify", "--node", url)
    assert result.code == ExitCode.VERIFY_FAILED
    assert result.error.startswith(f"{url}: block 2: signature: ")


def test_a_fork_between_nodes_is_named() -> None:
    """Each chain holds in itself; together they are proof of a crime."""
    with serving(told_node("alice", "bob"), told_node("alice", "eve")) as (one, two):
        result = run("verify", "--node", one, "--node", two)
    assert result.code == ExitCode.VERIFY_FAILED
    assert result.error.startswith(f"{two}: block 2: fork: another node tells ")


def test_a_block_a_node_does_not_tell_is_named() -> None:
    """A node that claims more than it can show does not hold."""
    node = told_node("alice", "bob")
    with serving(node) as (url,):
        node.damaged = {1}
        damaged = run("verify", "--node", url, "--timeout", "0.3")
    assert damaged.code == ExitCode.UNREACHABLE
    assert "block 1 is damaged" in damaged.error


def test_the_genesis_of_a_node_can_be_pinned(tmp_path: Path) -> None:
    """Without a pin a node could tell a chain of its own making."""
    node = told_node("alice")
    own, other = tmp_path / "own.json", tmp_path / "other.json"
    own.write_text(dump_genesis(genesis_of(node.blocks[0])))
    other.write_text(dump_genesis(genesis_of(make_genesis(name="other"))))
    with serving(node) as (url,):
        assert run("verify", "--node", url, "--genesis", own).code == 0
        result = run("verify", "--node", url, "--genesis", other)
    assert result.code == ExitCode.VERIFY_FAILED
    assert "block 0: cluster: " in result.error
