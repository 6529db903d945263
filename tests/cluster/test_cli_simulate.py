"""`bitnexus simulate`: exit codes, the summary, JSON, and the trace of a failure."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from cluster.cli import app
from cluster.cli_simulate import SimulateOptions, parse_seeds, run_simulate
from node.cli_errors import CommandError, ExitCode
from tests.cluster.simulation.defects import DEFECTS

if TYPE_CHECKING:
    from pathlib import Path


def options(folder: Path, **changed: object) -> SimulateOptions:
    """A small campaign in one process."""
    given: dict[str, object] = {
        "seeds": "0:2",
        "replay": None,
        "nodes": 3,
        "minutes": 0.05,
        "profile": "chaos",
        "clients": 3,
        "without": (),
        "workers": 1,
        "trace_dir": folder,
        "as_json": False,
    }
    return SimulateOptions(**{**given, **changed})  # type: ignore[arg-type]  # a table of options


def test_a_clean_campaign_shows_what_it_did(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 0, the faults by kind, what was reached, and no trace."""
    assert ExitCode.OK == run_simulate(options(tmp_path))
    shown = capsys.readouterr().out
    assert "violations  0" in shown
    assert "leaders elected" in shown
    assert [] == list(tmp_path.iterdir())


def test_a_violation_is_handed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1, the seed and how to run it again, and a trace that ends in the violation."""
    defect = next(each for each in DEFECTS if each.name == "a minority commits")
    with defect.planted():
        assert ExitCode.FAILED == run_simulate(options(tmp_path, as_json=True))
    document = json.loads(capsys.readouterr().out)
    assert 0 == document["violations"][0]["seed"]
    assert "--replay 0" in document["violations"][0]["replay"]
    (trace,) = tmp_path.iterdir()
    assert [str(trace)] == document["traces"]
    lines = trace.read_text().splitlines()
    assert "seed 0, 3 nodes" in lines[0]
    assert "VIOLATION" in lines[-1]


def test_the_command_of_the_small_run_gives_it_again(tmp_path: Path) -> None:
    """What is printed for the shrunk run is the very run, and fails only while the defect is in."""
    defect = next(each for each in DEFECTS if each.name == "a restart forgets the vote")
    campaign = "simulate --seeds 0:20 --minutes 0.2 --workers 1 --json"
    folder = ["--trace-dir", str(tmp_path)]
    with defect.planted():
        first = CliRunner().invoke(app, [*shlex.split(campaign), *folder])
        shrunk = json.loads(first.stdout)["shrunk"]
        command = [*shlex.split(shrunk["replay"])[1:], *folder, "--json"]
        again = CliRunner().invoke(app, command)
    assert (ExitCode.FAILED, ExitCode.FAILED) == (first.exit_code, again.exit_code)
    (repeated,) = json.loads(again.stdout)["violations"]
    assert shrunk == repeated
    assert command.count("--without") > 10
    assert ExitCode.OK == CliRunner().invoke(app, command).exit_code


def test_a_replay_writes_its_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same seed gives the same run, told event by event."""
    assert ExitCode.OK == run_simulate(options(tmp_path, replay=7))
    (trace,) = tmp_path.iterdir()
    assert f"trace: {trace}" in capsys.readouterr().out
    first = trace.read_text()
    assert ExitCode.OK == run_simulate(options(tmp_path, replay=7))
    assert first == trace.read_text()


@pytest.mark.parametrize(("text", "seeds"), [("3:6", [3, 4, 5]), ("9", [9])])
def test_seeds_are_a_range_or_one(text: str, seeds: list[int]) -> None:
    """The end is not included."""
    assert seeds == parse_seeds(text)


@pytest.mark.parametrize("text", ["", "a:b", "5:5", "1:2:3"])
def test_wrong_seeds_are_refused(text: str) -> None:
    """A range that is none is an error of usage."""
    with pytest.raises(CommandError) as caught:
        parse_seeds(text)
    assert ExitCode.USAGE == caught.value.exit_code
