"""`bitnexus up` as it is: three real nodes and a real PostgreSQL, killed, stopped and resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from node.cli_errors import ExitCode
from tests.cluster.up_stage import DEADLINE_S, ROOT, family_of, running, wait_for_ends
from tests.node.cli_stage import run

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.cluster.up_stage import Up

pytestmark = [pytest.mark.cluster, pytest.mark.postgres]


def up(data_dir: Path, *arguments: str) -> AbstractContextManager[Up]:
    """Start the real thing."""
    return running(
        data_dir, "-m", "cluster.cli", "up", "--data-dir", data_dir, "--json", *arguments
    )


def nodes_of(ready: dict[str, Any]) -> list[str]:
    """The options that name the nodes of a cluster that is up."""
    return [part for node in ready["nodes"] for part in ("--node", node["http"])]


def test_a_cluster_records_survives_and_resumes(tmp_path: Path) -> None:
    """Submit, kill the leader, submit again, stop, resume: one chain, verified everywhere."""
    data_dir = tmp_path / "data"
    with up(data_dir, "--http-port", "0") as first:
        ready = first.next_line()
        nodes = nodes_of(ready)
        submit = ("submit", "--kind", "deposit", "--payload", "1", *nodes)
        assert run(*submit, "--user", "before").code == 0
        leader = next(node for node in ready["nodes"] if node["role"] == "leader")
        os.kill(leader["pid"], signal.SIGKILL)
        assert run(*submit, "--user", "after").code == 0
        assert f"{leader['name']} was killed by SIGKILL" in first.next_line()["event"]
        assert run("status", *nodes).code == 0
        members = family_of(first.process.pid)
        first.process.send_signal(signal.SIGINT)
        assert first.process.wait(DEADLINE_S) == 0
        wait_for_ends(members)
    for node in ready["nodes"]:
        assert run("verify", "--data-dir", node["data_dir"]).code == 0
    with up(data_dir) as second:
        again = second.next_line()
        assert [n["http"] for n in again["nodes"]] == [n["http"] for n in ready["nodes"]]
        for user in ("before", "after"):
            shown = run("transactions", user, "--json", *nodes).document
            assert [item["payload"] for item in shown["transactions"]] == [1]
        assert run("verify", *nodes).code == 0
        folder = again["nodes"][0]["data_dir"]
        compared = run("verify", "--data-dir", folder, "--postgres", again["postgres_dsn"])
        assert compared.code == 0
        members = family_of(second.process.pid)
        assert len(members) >= 7
        second.process.kill()
        wait_for_ends(members)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--nodes", "0"), ExitCode.USAGE, "a cluster has 1 to 9 nodes"),
        (("--http-host", "0.0.0.0"), ExitCode.INSECURE_HTTP, "--insecure-http"),  # noqa: S104 - refused
        (("--postgres", "nonsense"), ExitCode.USAGE, "--postgres is embedded, none or"),
        (("--http-port", "70000"), ExitCode.USAGE, "HTTP ports 70000 to 70002"),
    ],
)
def test_what_cannot_be_is_one_line(
    tmp_path: Path, arguments: tuple[str, ...], code: ExitCode, words: str
) -> None:
    """Each has its exit code, and nothing is started."""
    result = run("up", "--data-dir", tmp_path / "data", *arguments)
    assert (result.code, result.stdout) == (code, "")
    assert words in result.error


def test_people_are_told_what_to_type_next(tmp_path: Path) -> None:
    """Plain text where there is no terminal: the addresses, the folders, the commands."""
    command = [sys.executable, "-m", "cluster.cli", "up", "--nodes", "1", "--http-port", "0"]
    with subprocess.Popen(
        [*command, "--postgres", "none", "--data-dir", str(tmp_path / "data")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        lines: list[str] = []
        while not lines or not lines[-1].startswith("Ctrl-C stops everything"):
            lines.append(process.stdout.readline().rstrip())
            assert process.poll() is None, lines
        process.send_signal(signal.SIGTERM)
        rest = process.stdout.read().splitlines()
    text = "\n".join(lines)
    assert lines[0] == "A cluster of 1 nodes is up."
    assert f"{tmp_path / 'data' / 'node1'}" in text
    assert "PostgreSQL  none" in text
    assert "export BITNEXUS_NODES=http://127.0.0.1:" in text
    assert "curl -s http://127.0.0.1:" in text
    assert " submit --user alice --kind deposit --payload '{\"amount\": 100}'" in text
    assert rest == ["stopping (once more to kill)", "stopped"]
    assert process.returncode == 0
