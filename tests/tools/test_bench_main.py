"""The one command: which subjects it measures, what it keeps, and how it ends."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from cluster.bench.errors import BenchError
from cluster.bench.figures import Figure, Measure, Subject, Workload
from cluster.bench.plan import LEDGER, QUICK, Plan
from cluster.bench.result import Machine, Result, read_result
from tools.bench import __main__ as command

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tools.bench.peer import Peer

RESULT = Result(
    measured_at="2026-01-01T00:00:00+00:00",
    commit="0",
    machine=Machine("cpu", 2, 4096, "6", "ext4"),
    versions={},
    seconds=1.0,
    rounds=1,
    subjects=(Subject("etcd", "3", "on the disks of a majority, fsynced", is_durable=True),),
    figures=(
        Figure(LEDGER, Workload.SINGLE_64, Measure.PER_S, 5_000.0),
        Figure("etcd", Workload.SINGLE_64, Measure.PER_S, 4_000.0),
    ),
)


class Measuring:
    """Stands for a run, and remembers what it was asked for."""

    def __init__(self, result: Result) -> None:
        """Give this result."""
        self._result = result
        self.plans: list[Plan] = []
        self.names: list[list[str]] = []

    async def __call__(
        self,
        plan: Plan,
        peers: Sequence[Peer],
        *,
        with_ledger: bool,
        report: Callable[[str], None],
    ) -> Result:
        """A run that takes no time."""
        report("measured")
        self.plans.append(plan)
        self.names.append([LEDGER] * with_ledger + [peer.name for peer in peers])
        return self._result


def run(monkeypatch: pytest.MonkeyPatch, result: Result, *arguments: str) -> tuple[int, Measuring]:
    """The command with these arguments: its status, and what it asked for."""
    measuring = Measuring(result)
    monkeypatch.setattr(command, "run_all", measuring)
    monkeypatch.setattr(sys, "argv", ["tools.bench", *arguments])
    return command.main(), measuring


def test_the_result_is_shown_kept_and_drawn(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Ratios on stdout, what is going on on stderr, the files where they were wanted."""
    output, pictures = tmp_path / "result.json", tmp_path / "new"
    files = ("--output", str(output), "--pictures", str(pictures))
    status, measuring = run(monkeypatch, RESULT, "--quick", "--rounds", "2", *files)

    shown = capsys.readouterr()
    assert (0, "measured\n") == (status, shown.err)
    assert "1.25" in shown.out
    assert RESULT == read_result(output)
    assert ["ratios.svg"] == [path.name for path in pictures.iterdir()]
    assert [(QUICK.seconds, 2)] == [(plan.seconds, plan.rounds) for plan in measuring.plans]
    assert [[LEDGER, *(peer.name for peer in command.PEERS)]] == measuring.names


def test_a_run_that_measured_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where all that was asked for is not installed."""
    empty = Result(
        measured_at="", commit="", machine=RESULT.machine, versions={}, seconds=1.0, rounds=1
    )

    assert 1 == run(monkeypatch, empty, "--only", "etcd")[0]


def test_a_file_that_cannot_be_written_is_told_after_the_figures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """An hour of measuring is not lost to a slip in a path."""
    status, _ = run(monkeypatch, RESULT, "--output", str(tmp_path / "none" / "result.json"))

    shown = capsys.readouterr()
    assert 1 == status
    assert "1.25" in shown.out
    assert "tools.bench: cannot write" in shown.err


def test_ctrl_c_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The servers are ended on the way out; nobody needs a traceback."""

    async def interrupted(*_: object, **__: object) -> Result:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "run_all", interrupted)
    monkeypatch.setattr(sys, "argv", ["tools.bench"])

    assert (130, "tools.bench: interrupted\n") == (command.main(), capsys.readouterr().err)


def test_subjects_are_chosen_by_a_part_of_their_name() -> None:
    """Whatever its case; a word that means nobody is told, with all names."""
    assert (True, command.PEERS) == command.choose([])
    with_ledger, peers = command.choose(["postgres"])
    assert (False, 2) == (with_ledger, len(peers))
    with_ledger, peers = command.choose([LEDGER, "ETCD"])
    assert (True, ["etcd"]) == (with_ledger, [peer.name for peer in peers])
    with pytest.raises(BenchError, match="no subject is called 'consul'; there are: bitnexus"):
        command.choose(["etcd", "consul"])
