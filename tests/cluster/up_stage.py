"""Starts supervisors as processes of their own, reads what they say and sees that all ends."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
DEADLINE_S = 30.0


class Up:
    """A supervisor as a process of its own, and what it says."""

    def __init__(self, process: subprocess.Popen[str], data_dir: Path) -> None:
        self.process = process
        self._data_dir = data_dir

    def next_line(self) -> dict[str, Any]:
        """The next line of JSON it says, or a failure with what it complains about."""
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], DEADLINE_S)
        line = self.process.stdout.readline() if ready else ""
        if not line:
            self.process.kill()
            pytest.fail(f"it said nothing: {self.process.communicate()}")
        document: dict[str, Any] = json.loads(line)
        return document

    def node_pids(self) -> list[int]:
        """The process ids of its nodes, once each of them listens."""
        files = [self._data_dir / f"node{number}" / "pid" for number in (1, 2, 3)]
        return [int(wait_for_file(file)) for file in files]


def wait_for_file(file: Path) -> str:
    """The content of a file that another process makes."""
    poller = select.poll()
    for _ in range(int(DEADLINE_S / 0.01)):
        if file.exists():
            return file.read_text()
        poller.poll(10)
    pytest.fail(f"{file} was not made")


@contextmanager
def running(data_dir: Path, *command: object) -> Iterator[Up]:
    """Start a Python program that speaks as `up --json` does; kill it if it is there in the end."""
    with subprocess.Popen(
        [sys.executable, *(str(part) for part in command)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield Up(process, data_dir)
        finally:
            process.kill()


def family_of(supervisor: int) -> list[int]:
    """Pidfds of all processes below a supervisor, however deep."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(FileNotFoundError, ProcessLookupError):
                # After the name, which may hold anything: state, then the parent. See proc(5).
                parents[int(entry.name)] = int(
                    (entry / "stat").read_text().rpartition(")")[2].split()[1]
                )
    found = [supervisor]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return [os.pidfd_open(pid) for pid in found[1:]]


def wait_for_ends(descriptors: list[int]) -> None:
    """Wait until the processes behind these pidfds have ended."""
    for descriptor in descriptors:
        ended, _, _ = select.select([descriptor], [], [], DEADLINE_S)
        os.close(descriptor)
        assert ended, "a process outlived its supervisor"
