"""The locks' recipe: what is resolved from what, and that no address can get in."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools import environment, lock


@pytest.mark.parametrize("name", lock.RECIPES)
def test_a_lock_is_written_with_hashes_and_without_addresses(name: str) -> None:
    """For every platform, from the oldest Python on, and with nothing of this machine in it."""
    command = lock.lock_command("uv", lock=name, cache=Path("/scratch"), upgrade=False)

    assert {"--generate-hashes", "--universal", "--no-emit-index-url"} <= set(command)
    assert {"--no-emit-find-links", "--custom-compile-command"} <= set(command)
    assert "--upgrade" not in command
    assert name == command[-1]


def test_the_locks_are_those_that_are_installed() -> None:
    """The launcher installs what is locked here, and nothing else."""
    assert list(environment.BASE.sources) == list(lock.RECIPES)


def test_newer_versions_are_taken_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each lock in turn; `--upgrade` is handed on."""
    commands: list[list[str]] = []

    def note(command: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(shutil, "which", lambda _: "/found/uv")
    monkeypatch.setattr(subprocess, "run", note)
    monkeypatch.setattr(sys, "argv", ["tools/lock", "--upgrade"])
    lock.main()

    assert list(lock.RECIPES) == [command[-2] for command in commands]
    assert {"--upgrade"} == {command[-1] for command in commands}


@pytest.mark.parametrize(("uv", "words"), [(None, "needs `uv`"), ("/bin/false", "was not written")])
def test_a_lock_that_cannot_be_written_is_told(
    monkeypatch: pytest.MonkeyPatch, uv: str | None, words: str
) -> None:
    """Without `uv`, or where it finds no solution, the launcher's user reads one line."""
    monkeypatch.setattr(shutil, "which", lambda _: uv)
    monkeypatch.setattr(sys, "argv", ["tools/lock"])

    with pytest.raises(SystemExit, match=words):
        lock.main()
