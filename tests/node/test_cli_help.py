"""What holds for all commands: help for everything, --json everywhere, one line of error."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer.main

from cluster.cli import app
from node.cli_errors import CommandError, ExitCode
from tests.node.cli_stage import run

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command, however deep, with the words that call it."""
    for name, command in group.commands.items():
        is_group = hasattr(command, "commands")
        if is_group:
            yield from commands(command, (*path, name))
        if not is_group or command.invoke_without_command:
            yield (*path, name), command


ALL = dict(commands(typer.main.get_command(app)))


def test_all_the_commands_are_there() -> None:
    """A command that falls out of the list would go unnoticed."""
    expected = {
        ("up",),
        ("simulate",),
        ("bench",),
        ("bench", "show"),
        ("bench", "compare"),
        ("node", "init"),
        ("node", "genesis"),
        ("node", "run"),
        ("node", "recover"),
        ("node", "rejoin"),
        ("submit",),
        ("transactions",),
        ("receipt",),
        ("block",),
        ("status",),
        ("verify",),
        ("checkpoint", "prepare"),
        ("member", "list"),
        ("member", "add"),
        ("member", "promote"),
        ("member", "move"),
        ("member", "remove"),
        ("member", "replace"),
        ("transfer-leadership",),
        ("backup",),
        ("checkpoint", "restore"),
        ("export",),
    }
    assert expected == set(ALL)


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_command_explains_itself(path: tuple[str, ...]) -> None:
    """It and each of its options have help, one of them is --json, and --help shows it all."""
    command = ALL[path]
    assert command.help
    options = {option for parameter in command.params for option in parameter.opts}
    assert "--json" in options
    assert [parameter.name for parameter in command.params if not parameter.help] == []
    result = run(*path, "--help", env={"COLUMNS": "200", "TERM": "dumb"})
    assert (result.code, result.stderr) == (0, "")
    assert all(option in result.stdout for option in options if option.startswith("--"))


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_command_is_in_the_readme(path: tuple[str, ...]) -> None:
    """With each of its options but those that many commands share, which stand below the table."""
    table = (ROOT / "README.md").read_text().split("## Command line")[1].split("\n## ")[0]
    name = f"`bitnexus {' '.join(path)}"
    below = tuple(f"| `bitnexus {' '.join(one)}" for one in ALL if one[:-1] == path)
    rows = [
        line
        for line in table.splitlines()
        if line.startswith(f"| {name}") and not line.startswith(below)
    ]
    assert 1 == len([row for row in rows if row[len(name) + 2] in " `"]), name
    words = set(re.findall(r"--[a-z-]+", " ".join(rows)))
    options = {option for parameter in ALL[path].params for option in parameter.opts}
    shared = {"--json", "--node", "--timeout"}
    assert set() == {one for one in options if one.startswith("--")} - shared - words


def test_the_version_is_that_of_the_project() -> None:
    """It stands in two places, for a clone that runs has no metadata to read it from."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    result = run("--version")
    assert (0, f"bitnexus {project['version']}\n") == (result.code, result.stdout)


@pytest.mark.parametrize("path", [(), ("node",), ("checkpoint",), ("member",)])
def test_no_command_at_all_shows_the_help(path: tuple[str, ...]) -> None:
    """With the exit code of a usage error, and no empty line of error."""
    result = run(*path)
    assert (result.code, result.stderr) == (ExitCode.USAGE, "")
    assert "Usage:" in result.stdout


def test_an_unknown_command_is_one_line() -> None:
    """It suggests what may have been meant."""
    result = run("statos")
    assert result.code == ExitCode.USAGE
    assert result.error == "No such command 'statos'. Did you mean 'status'?"


def test_exit_codes_are_distinct_and_explained() -> None:
    """A script can rely on each."""
    codes = list(ExitCode)
    assert len({int(code) for code in codes}) == len(codes)
    source = (ROOT / "node" / "cli_errors.py").read_text()
    for code in codes[1:]:
        line = source.split(f"    {code.name} = {int(code)}\n")[1].splitlines()[0]
        assert line.strip().startswith('"""')


def test_an_error_is_one_line_whatever_caused_it() -> None:
    """Causes of several lines are folded."""
    assert str(CommandError("one\n  two\n", ExitCode.FAILED)) == "one two"


def test_the_command_line_starts_quickly() -> None:
    """What only some commands need is imported by them alone."""
    code = (
        "import sys, cluster.cli; heavy = {'httpx', 'psycopg', 'lmdb', 'zmq', 'uvicorn', 'falcon',"
        " 'structlog', 'nacl', 'rich.progress'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
