"""The quality gates: what runs, in which order, and what makes them red.

The tools themselves are played by a recorder: their verdicts are theirs, the order is ours.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tools import check

STATIC = ["ruff check .", "ruff format --check .", "mypy"]
REST = "pytest tests --ignore=tests/consensus --ignore=tests/cluster/simulation"
MEASURED_TESTS = "coverage run -m pytest tests/consensus"
SIMULATION = "pytest tests/cluster/simulation"
ALL_TESTS = sorted([REST, MEASURED_TESTS, SIMULATION])


class Tools:
    """Stands for the tools: notes each, and fails those it is told to."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.failing: set[str] = set()
        self.report: dict[str, Any] = report(branches=100, covered_branches=100)

    def __call__(self, *command: str) -> int:
        """Note one tool, in the place of check.tool."""
        words = " ".join(command)
        if words.startswith("coverage json"):
            Path(command[-1]).write_text(json.dumps(self.report))
        else:
            self.ran.append(words)
        return int(any(words.startswith(each) for each in self.failing))

    def beside(self, *command: str) -> tuple[int, str]:
        """Note one tool, in the place of check.tool_beside."""
        return self(*command), f"what {command[0]} says\n"


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> Tools:
    """The recorder, in the place of every tool."""
    tools = Tools()
    monkeypatch.setattr(check, "tool", tools)
    monkeypatch.setattr(check, "tool_beside", tools.beside)
    return tools


def report(**consensus: int) -> dict[str, Any]:
    """A report of `coverage json`, with two files of consensus/ and one of another package."""
    summary = {
        "num_statements": consensus.get("lines", 100),
        "covered_lines": consensus.get("covered_lines", 100),
        "num_branches": consensus.get("branches", 100),
        "covered_branches": consensus.get("covered_branches", 100),
    }
    bare = dict.fromkeys(summary, 0) | {"num_statements": 50, "num_branches": 50}
    files = {"consensus/a.py": summary, "consensus/b/c.py": summary, "consensus_like/d.py": bare}
    return {"files": {path: {"summary": each} for path, each in files.items()}}


def main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    """The exit status of the command line."""
    monkeypatch.setattr(sys, "argv", ["tools/check", *arguments])
    with pytest.raises(SystemExit) as ended:
        check.main()
    return ended.value.code


def test_all_runs_every_gate_and_the_tests_once(
    monkeypatch: pytest.MonkeyPatch, tools: Tools
) -> None:
    """The default is everything, cheapest first."""
    assert 0 == main(monkeypatch)
    assert STATIC == tools.ran[: len(STATIC)]
    assert ALL_TESTS == sorted(tools.ran[len(STATIC) :])


def test_a_failed_gate_keeps_the_tests_from_starting(
    monkeypatch: pytest.MonkeyPatch, tools: Tools
) -> None:
    """The other static gates still run: each has something to say."""
    tools.failing = {"ruff check"}

    assert 1 == main(monkeypatch, "all")
    assert STATIC == tools.ran


@pytest.mark.parametrize("gate", STATIC)
def test_each_static_gate_counts(monkeypatch: pytest.MonkeyPatch, tools: Tools, gate: str) -> None:
    """One red gate makes the whole red."""
    tools.failing = {gate}

    assert 1 == main(monkeypatch, "static")


def test_chosen_tests_run_without_the_coverage_gate(
    monkeypatch: pytest.MonkeyPatch, tools: Tools
) -> None:
    """A part of the tests says nothing of the whole's coverage."""
    tools.report = report(covered_branches=0)

    assert 0 == main(monkeypatch, "tests", "-x", "tests/tools")
    assert ["pytest -x tests/tools"] == tools.ran


@pytest.mark.parametrize("part", ALL_TESTS)
def test_failed_tests_are_red(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tools: Tools, part: str
) -> None:
    """Full coverage by tests that fail is worth nothing; the other parts are told all the same."""
    tools.failing = {part}

    assert 1 == main(monkeypatch, "tests")
    told = capsys.readouterr().out
    assert [1, 1, 1] == [told.count(f"{each}: ") for each in ALL_TESTS]
    assert "what coverage says" in told


def test_what_runs_beside_gives_way_and_is_heard() -> None:
    """A real tool, run for real: at a low priority, its words kept for later."""
    program = "import os, sys; print(os.nice(0)); sys.exit(3)"
    status, told = check.tool_beside("timeit", "-n1", "-r1", program)
    assert status != 0
    assert "10" in told.splitlines()
    assert "SystemExit: 3" in told


def test_an_unreadable_measurement_is_red(monkeypatch: pytest.MonkeyPatch, tools: Tools) -> None:
    """Where coverage cannot report, nothing was shown."""
    tools.failing = {"coverage json"}

    assert 1 == main(monkeypatch, "tests")


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        (report(covered_branches=95), 0),
        (report(covered_branches=94), 1),
        (report(covered_lines=94), 1),
        (report(branches=0, covered_branches=0), 1),
        ({"files": {}}, 1),
    ],
)
def test_the_floor_holds_for_lines_and_for_branches(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tools: Tools,
    measured: dict[str, Any],
    expected: int,
) -> None:
    """95 % of each; other packages do not count; nothing measured is nothing shown."""
    tools.report = measured

    assert expected == main(monkeypatch, "tests")
    gaps = ["coverage report --show-missing --include=consensus/*"] * expected
    assert sorted([*ALL_TESTS, *gaps]) == sorted(tools.ran)
    assert ("must have 95 %" in capsys.readouterr().out) == bool(expected)


def test_the_words_name_the_package_and_its_figures() -> None:
    """The line that a person reads."""
    coverage = check.coverage_of("consensus", report(covered_branches=97, covered_lines=99))

    assert "consensus: 97.0 % of 200 branches, 99.0 % of 200 lines" == str(coverage)


def test_an_interrupt_ends_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C is an answer, not a fault: the status says what happened."""

    def interrupt(*_: str) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(check, "tool", interrupt)
    assert 130 == main(monkeypatch, "static")


@pytest.mark.parametrize("arguments", [("jump",), ("static", "x"), ("all", "x")])
def test_another_mode_is_refused(
    monkeypatch: pytest.MonkeyPatch, tools: Tools, arguments: tuple[str, ...]
) -> None:
    """A slip does not pass for a green run."""
    assert "expected `all`, `static` or `tests ARGS...`" in str(main(monkeypatch, *arguments))
    assert [] == tools.ran


def test_a_gate_says_its_verdict(capfd: pytest.CaptureFixture[str]) -> None:
    """A real tool, run for real: its status is told, and handed on."""
    assert check.run("json.tool", "--help")
    assert "json.tool --help: passed in" in capfd.readouterr().out
    assert not check.run("json.tool", "--no-such-option")
    assert "json.tool --no-such-option: FAILED (status 2) in" in capfd.readouterr().out
