"""`bitnexus export`: the committed chain as JSON lines, the same however often it was stopped."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING

import msgspec
import pytest

from consensus.block import decode_transaction
from node.api.shapes import BlockDetail
from node.audit import rebuild_block
from node.cli_errors import ExitCode
from node.uuid7 import uuid_text
from tests.node.archive_stage import (
    BLOCKS,
    bytes_of,
    interrupt,
    make_folder,
    stopped_half_way,
)
from tests.node.cli_stage import run
from tests.storage.builders import make_transaction
from tests.storage.society import Society

if TYPE_CHECKING:
    from pathlib import Path

    from tests.node.cli_stage import Result

COMMITTED = BLOCKS - 2
WHAT = pytest.mark.parametrize("what", ["blocks", "transactions"])


@pytest.fixture(scope="module")
def society() -> Society:
    """Blocks of three transactions, every tenth of none."""
    society = Society(3)
    for number in range(1, BLOCKS + 1):
        count = 3 if number % 10 else 0
        society.seal([make_transaction(society.random, memo="Grüße\n") for _ in range(count)])
    return society


@pytest.fixture
def folder(tmp_path: Path, society: Society) -> Path:
    """A member's folder; its last two blocks are not known to be committed."""
    return make_folder(tmp_path / "n2", society.blocks, committed=COMMITTED)


def export(folder: Path, output: Path, what: str, *options: str) -> Result:
    """Run it."""
    return run("export", "--data-dir", folder, "--output", output, "--what", what, *options)


def test_blocks_are_whole(tmp_path: Path, folder: Path, society: Society) -> None:
    """Every committed block can be made of its line, byte for byte."""
    result = export(folder, tmp_path / "lines", "blocks", "--json")
    assert (0, COMMITTED, COMMITTED + 1) == (
        result.code,
        result.document["through"],
        result.document["lines"],
    )
    lines = (tmp_path / "lines").read_bytes().splitlines()
    details = [msgspec.json.decode(line, type=BlockDetail) for line in lines]
    assert bytes_of(society.blocks[:-2]) == bytes_of([rebuild_block(one) for one in details])


def test_transactions_stand_in_the_order_of_the_chain(
    tmp_path: Path, folder: Path, society: Society
) -> None:
    """Each with its place, and without those of the uncommitted tail."""
    assert 0 == export(folder, tmp_path / "lines", "transactions").code
    lines = [json.loads(line) for line in (tmp_path / "lines").read_text().split("\n")[:-1]]
    assert [
        (block.index, position, uuid_text(decode_transaction(raw).id))
        for block in society.blocks[:-2]
        for position, raw in enumerate(block.transactions)
    ] == [(line["index"], line["position"], line["id"]) for line in lines]


@WHAT
def test_it_goes_on_after_the_last_whole_line_wherever_it_was_torn(
    tmp_path: Path, folder: Path, what: str
) -> None:
    """At any byte: in a line, at its end, within a block, at the beginning."""
    assert 0 == export(folder, tmp_path / "whole", what).code
    whole = (tmp_path / "whole").read_bytes()
    torn = tmp_path / "torn"
    for size in (0, 1, *range(700, len(whole), len(whole) // 10), len(whole) - 1, len(whole)):
        torn.write_bytes(whole[:size])
        result = export(folder, torn, what, "--resume", "--json")
        assert (0, whole) == (result.code, torn.read_bytes())
        assert whole.count(b"\n") - whole[:size].count(b"\n") == result.document["lines"]


@pytest.mark.parametrize(
    ("what", "number"),
    [
        ("blocks", signal.SIGKILL),
        ("transactions", signal.SIGKILL),
        ("transactions", signal.SIGINT),
    ],
)
def test_an_interrupted_run_is_resumed(
    tmp_path: Path, folder: Path, what: str, number: signal.Signals
) -> None:
    """What the killed process has left is the start of what one run makes."""
    assert 0 == export(folder, tmp_path / "whole", what).code
    whole = (tmp_path / "whole").read_bytes()
    part = tmp_path / "part"
    arguments = ("export", "--data-dir", folder, "--output", part, "--what", what)
    code = interrupt(number, *arguments)
    assert code == (ExitCode.INTERRUPTED if number is signal.SIGINT else -signal.SIGKILL)
    left = part.read_bytes()
    assert (True, True) == (whole.startswith(left), 0 < len(left) < len(whole))
    assert ExitCode.ALREADY_THERE == export(folder, part, what).code
    assert left == part.read_bytes()
    assert 0 == export(folder, part, what, "--resume").code
    assert whole == part.read_bytes()


@WHAT
def test_a_chain_that_has_grown_is_added(
    tmp_path: Path, folder: Path, society: Society, what: str
) -> None:
    """Run again later it comes to what one run would make then; there need be no file at first."""
    grown = make_folder(tmp_path / "n3", society.blocks, committed=BLOCKS)
    assert 0 == export(grown, tmp_path / "whole", what).code
    assert 0 == export(folder, tmp_path / "part", what, "--resume").code
    assert 0 == export(grown, tmp_path / "part", what, "--resume").code
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "part").read_bytes()
    result = export(folder, tmp_path / "part", what, "--resume")
    assert (ExitCode.REFUSED, True) == (result.code, "known to be committed to" in result.error)


@pytest.mark.parametrize(
    ("made", "resumed"), [("blocks", "transactions"), ("transactions", "blocks")]
)
def test_another_file_is_not_touched(tmp_path: Path, folder: Path, made: str, resumed: str) -> None:
    """Not the other kind's, not another chain's, not what is no export at all."""
    assert 0 == export(folder, tmp_path / "lines", made).code
    other = Society(3)
    other.random.seed(8)
    other.seal([make_transaction(other.random)] * 2)
    make_folder(tmp_path / "other", other.blocks, committed=1)
    assert 0 == export(tmp_path / "other", tmp_path / "others", resumed).code
    (tmp_path / "letter").write_text("dear\ntorn")
    for name in ("lines", "others", "letter"):
        before = (tmp_path / name).read_bytes()
        result = export(folder, tmp_path / name, resumed, "--resume")
        assert (ExitCode.REFUSED, before) == (result.code, (tmp_path / name).read_bytes())


def test_two_runs_do_not_write_one_file(tmp_path: Path, folder: Path) -> None:
    """The second is refused while the first one writes."""
    output = tmp_path / "lines"
    with stopped_half_way("export", "--data-dir", folder, "--output", output):
        result = export(folder, output, "transactions", "--resume")
    assert (ExitCode.REFUSED, True) == (result.code, "another process" in result.error)


def test_a_folder_without_a_chain_leaves_no_file(tmp_path: Path) -> None:
    """It is refused before anything is made."""
    assert ExitCode.CONFIG == export(tmp_path, tmp_path / "lines", "blocks").code
    assert not (tmp_path / "lines").exists()
