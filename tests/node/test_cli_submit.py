"""`submit --file`: every line gets its receipt, through all nodes, in the order of the lines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from consensus.block import decode_transaction
from node.cli_errors import ExitCode
from node.outcomes import Refusal, RefusalReason
from tests.node.cli_stage import DEADLINE_S, run, serving
from tests.node.fake_ledger import FakeNode

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
NOWHERE = "http://127.0.0.1:1"


def line_of(number: int, **changes: object) -> str:
    """One line of a file: the transaction whose id and amount are a number."""
    document = {
        "id": str(UUID(int=number)),
        "user_id": "alice",
        "kind": "deposit",
        "payload": {"amount": number},
    }
    return json.dumps(document | changes)


def write(folder: Path, lines: list[str]) -> Path:
    """Write a file of lines."""
    file = folder / "lines.jsonl"
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return file


def recorded_ids(node: FakeNode) -> list[int]:
    """The ids in a node's chain, genesis left out."""
    return [
        UUID(bytes=decode_transaction(raw).id).int
        for block in node.blocks[1:]
        for raw in block.transactions
    ]


def test_every_line_is_recorded_once_through_all_nodes(tmp_path: Path) -> None:
    """Batches of a thousand go to each of the nodes; the results come in the order of the lines."""
    file = write(tmp_path, [line_of(number) for number in range(1, 5_501)])
    nodes = [FakeNode(), FakeNode(), FakeNode()]
    with serving(*nodes) as urls:
        options = [part for url in urls for part in ("--node", url)]
        result = run("submit", "--file", file, "--json", *options)
    assert (result.code, result.stderr) == (0, "")
    documents = result.documents
    assert [one["line"] for one in documents] == list(range(1, 5_501))
    assert [UUID(one["receipt"]["id"]).int for one in documents] == list(range(1, 5_501))
    recorded = sorted(one for node in nodes for one in recorded_ids(node))
    assert recorded == list(range(1, 5_501))
    assert all(recorded_ids(node) for node in nodes)
    assert max(len(batch) for node in nodes for batch, _, _ in node.submits) == 1_000


def test_client_ports_take_the_same(tmp_path: Path) -> None:
    """Every line once, through all of them, each with its receipt."""
    file = write(tmp_path, [line_of(number) for number in range(1, 2_501)])
    nodes = [FakeNode(), FakeNode()]
    with serving(*nodes, by_ports=True) as urls:
        options = [part for url in urls for part in ("--node", url)]
        result = run("submit", "--file", file, "--json", *options)
    assert (0, 2_500) == (result.code, len(result.documents))
    assert all(node.recorded for node in nodes)
    recorded = [number for node in nodes for number in recorded_ids(node)]
    assert list(range(1, 2_501)) == sorted(recorded)


def test_people_see_a_summary(tmp_path: Path) -> None:
    """One line says how many, and in which blocks. Blank lines are passed over."""
    file = write(tmp_path, ["", line_of(1), "  ", line_of(2), ""])
    node = FakeNode()
    with serving(node) as (url,):
        result = run("submit", "--file", file, "--node", url)
    assert (result.code, result.stderr) == (0, "")
    assert result.stdout == "2 recorded in blocks 1 to 1\n"


def test_a_file_may_end_without_a_newline(tmp_path: Path) -> None:
    """The last line counts as one, and an empty file has none."""
    file = tmp_path / "lines"
    node = FakeNode()
    with serving(node) as (url,):
        file.write_text(f"{line_of(1)}\n{line_of(2)}")
        assert run("submit", "--file", file, "--node", url).stdout.startswith("2 recorded")
        file.write_text("")
        assert run("submit", "--file", file, "--node", url).stdout == "0 recorded\n"


def test_one_in_flight_keeps_the_order(tmp_path: Path) -> None:
    """Where order matters, one batch goes after the other."""
    file = write(tmp_path, [line_of(number) for number in range(1, 3_501)])
    node = FakeNode()
    with serving(node) as (url,):
        run("submit", "--file", file, "--in-flight", "1", "--node", url)
    assert recorded_ids(node) == list(range(1, 3_501))


def test_a_run_may_be_repeated(tmp_path: Path) -> None:
    """Lines with an id of their own get their first receipts, and nothing is recorded twice."""
    file = write(tmp_path, [line_of(number) for number in range(1, 11)])
    node = FakeNode()
    with serving(node) as (url,):
        first = run("submit", "--file", file, "--json", "--node", url)
        assert run("submit", "--file", file, "--json", "--node", url) == first
    assert recorded_ids(node) == list(range(1, 11))


def test_a_line_without_an_id_is_given_one(tmp_path: Path) -> None:
    """The receipt tells which."""
    file = write(tmp_path, [json.dumps({"user_id": "u", "kind": "k", "payload": None})])
    node = FakeNode()
    with serving(node) as (url,):
        (document,) = run("submit", "--file", file, "--json", "--node", url).documents
    assert UUID(document["receipt"]["id"]).version == 7
    assert recorded_ids(node) == [UUID(document["receipt"]["id"]).int]


def test_payloads_arrive_as_they_were_written(tmp_path: Path) -> None:
    """Numbers, text and nesting survive the way."""
    payload = {"ä": [1, 1.0, -0.0, 1e300, 18446744073709551615, "\u2028😀", None, {"": []}]}
    file = write(tmp_path, [line_of(1, payload=payload)])
    node = FakeNode()
    with serving(node) as (url,):
        run("submit", "--file", file, "--node", url)
        shown = run("transactions", "alice", "--json", "--node", url).document
    assert repr(shown["transactions"][0]["payload"]) == repr(payload)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 3: "),
        ("[]", "line 3: $: "),
        (line_of(3, user_id=7), "line 3: $.user_id: "),
        (line_of(3, extra=1), "line 3: $.extra: is not a known member"),
        (line_of(3)[:-1] + ', "kind": "k"}', "line 3: $.kind: is there twice"),
        (line_of(3, payload="x" * 70_000), "line 3: $.payload: "),
        (json.dumps({"transactions": [json.loads(line_of(3))]}), "is a batch, not one"),
        ("x" * (9 << 20), "line 3: $: has more than 8388608 bytes"),
    ],
)
def test_a_line_that_is_no_transaction_ends_the_run(tmp_path: Path, line: str, words: str) -> None:
    """It is named by its number; the lines before it are recorded, those after it are not."""
    file = write(tmp_path, [line_of(1), line_of(2), line, line_of(4)])
    node = FakeNode()
    with serving(node) as (url,):
        result = run("submit", "--file", file, "--node", url)
    assert result.code == ExitCode.INPUT
    assert words in result.error
    assert result.error.startswith(f"{file}: line 3: ")
    assert "2 recorded in blocks 1 to 1" in result.error
    assert recorded_ids(node) == [1, 2]


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """Before anything is sent."""
    result = run("submit", "--file", tmp_path / "absent", "--node", NOWHERE)
    assert result.code == ExitCode.INPUT
    assert result.error == f"{tmp_path / 'absent'}: No such file or directory"


def test_a_conflict_is_told_and_the_rest_is_recorded(tmp_path: Path) -> None:
    """One refused line does not keep the others from the ledger."""
    node = FakeNode()
    with serving(node) as (url,):
        run("submit", "--file", write(tmp_path, [line_of(2)]), "--node", url)
        lines = [line_of(1), line_of(2, payload="other"), line_of(3)]
        result = run("submit", "--file", write(tmp_path, lines), "--node", url)
        told = run("submit", "--file", tmp_path / "lines.jsonl", "--json", "--node", url)
    assert result.code == ExitCode.REFUSED
    assert result.stdout.splitlines() == [
        "line 2: the id has other content",
        "2 recorded in blocks 2 to 2, 1 without a receipt",
    ]
    assert recorded_ids(node) == [2, 1, 3]
    assert told.documents[1] == {
        "line": 2,
        "id": str(UUID(int=2)),
        "error": "the id has other content",
        "exit_code": 16,
    }


def test_an_unknown_fate_is_worse_than_a_refusal(tmp_path: Path) -> None:
    """The exit code tells that the run must be repeated."""
    node = FakeNode()
    node.refusals = {
        b"bob": Refusal(b"", RefusalReason.UNKNOWN, "no answer"),
        b"eve": Refusal(b"", RefusalReason.CONFLICT, "taken"),
    }
    lines = [line_of(1), line_of(2, user_id="eve"), line_of(3, user_id="bob")]
    file = write(tmp_path, lines)
    with serving(node) as (url,):
        result = run("submit", "--file", file, "--timeout", "0.3", "--node", url)
    assert result.code == ExitCode.UNKNOWN_FATE
    assert "run again to take up what is left" in result.error


def test_many_refusals_are_not_all_shown(tmp_path: Path) -> None:
    """People see the first ones and the number."""
    node = FakeNode()
    node.refusals = {b"eve": Refusal(b"", RefusalReason.CONFLICT, "taken")}
    file = write(tmp_path, [line_of(number, user_id="eve") for number in range(1, 101)])
    with serving(node) as (url,):
        result = run("submit", "--file", file, "--node", url)
    assert len(result.stdout.splitlines()) == 21
    assert result.stdout.splitlines()[-1] == "0 recorded, 100 without a receipt"


def test_no_node_at_all_ends_the_run_soon(tmp_path: Path) -> None:
    """Not every batch waits for its own deadline."""
    file = write(tmp_path, [line_of(number) for number in range(1, 20_001)])
    options = ("--timeout", "0.2", "--in-flight", "1", "--node", NOWHERE)
    result = run("submit", "--file", file, "--json", *options)
    assert result.code == ExitCode.UNREACHABLE
    assert result.error.startswith("0 recorded, ")
    documents = result.documents
    assert NOWHERE in documents[0]["error"]
    assert documents[-1]["error"] == "not sent: no node could be reached"
    assert len(documents) < 20_000


@pytest.fixture
def piped() -> Callable[[str], subprocess.Popen[bytes]]:
    """Starts `submit --file -` as a process with pipes."""

    def start(url: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "cluster.cli", "submit", "--file", "-", "--json", "--node", url],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    return start


def test_a_slow_writer_is_not_kept_waiting(piped: Callable[[str], subprocess.Popen[bytes]]) -> None:
    """What comes through a pipe is recorded when it comes, not when a batch is full."""
    node = FakeNode()
    with serving(node) as (url,), piped(url) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for number in (1, 2):
            process.stdin.write(line_of(number).encode() + b"\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["line"] == number
        process.stdin.close()
        assert process.wait(DEADLINE_S) == 0
    assert recorded_ids(node) == [1, 2]


def test_an_interrupt_ends_a_run_that_waits_for_input(
    piped: Callable[[str], subprocess.Popen[bytes]],
) -> None:
    """Ctrl-C does not wait for the other end of the pipe."""
    node = FakeNode()
    with serving(node) as (url,), piped(url) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(line_of(1).encode() + b"\n")
        process.stdin.flush()
        process.stdout.readline()
        process.send_signal(2)
        assert process.wait(DEADLINE_S) == ExitCode.INTERRUPTED


def test_the_null_device_is_an_empty_file() -> None:
    """Standard input may be a device that cannot be waited for."""
    command = [sys.executable, "-m", "cluster.cli", "submit", "--file", "-", "--node", NOWHERE]
    with Path(os.devnull).open("rb") as null:
        done = subprocess.run(
            command, cwd=ROOT, stdin=null, capture_output=True, check=False, timeout=DEADLINE_S
        )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"0 recorded\n", b"")
