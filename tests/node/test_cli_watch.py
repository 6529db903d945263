"""`bitnexus status --watch`, as a process that is interrupted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from node.cli_errors import ExitCode
from tests.node.cli_stage import serving
from tests.node.fake_ledger import FakeNode

ROOT = Path(__file__).parents[2]


def watch_twice(url: str) -> tuple[int, list[Any], str]:
    """Its code, two snapshots and what it said, once it was interrupted after those."""
    command = [sys.executable, "-m", "cluster.cli", "status", "--watch", "--json"]
    with subprocess.Popen(
        [*command, "--node", url],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        seen = [json.loads(process.stdout.readline()) for _ in range(2)]
        process.send_signal(2)
        _, stderr = process.communicate(timeout=20)
    return process.returncode, seen, stderr


def test_watch_goes_on_until_interrupted() -> None:
    """One snapshot after the other; Ctrl-C ends it with 130."""
    with serving(FakeNode()) as (url,):
        code, seen, stderr = watch_twice(url)
    assert [snapshot["leader"] for snapshot in seen] == ["node1", "node1"]
    assert (code, stderr) == (ExitCode.INTERRUPTED, "")
