"""`bitnexus up` as a process: what it says, and that nothing outlives it. The nodes are fake."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cluster.folder import FREE_PORT, Shape, open_folder
from node.cli_errors import ExitCode
from tests.cluster.up_stage import DEADLINE_S, running, wait_for_ends, wait_for_file

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from tests.cluster.up_stage import Up

FAKE_CLUSTER = Path(__file__).with_name("run_fake_cluster.py")


def prepare(data_dir: Path) -> None:
    """Make the cluster's folder, or find that it is free."""
    open_folder(data_dir, Shape(http_port=FREE_PORT)).close()


def up(data_dir: Path, *arguments: str) -> AbstractContextManager[Up]:
    """Start the supervisor on fake nodes."""
    return running(data_dir, FAKE_CLUSTER, data_dir, *arguments)


def test_up_says_where_everything_is(tmp_path: Path) -> None:
    """The first line names each node with role, address and folder."""
    with up(tmp_path) as running_up:
        ready = running_up.next_line()
        assert ready["leader"] == "node1"
        assert ready["data_dir"] == str(tmp_path)
        assert ready["postgres_dsn"] is None
        nodes = ready["nodes"]
        assert isinstance(nodes, list)
        described = [(node["name"], node["role"], node["data_dir"]) for node in nodes]
        assert described == [
            ("node1", "leader", str(tmp_path / "node1")),
            ("node2", "follower", str(tmp_path / "node2")),
            ("node3", "follower", str(tmp_path / "node3")),
        ]
        keys = {node["clients"].split("?key=")[1] for node in nodes}
        assert 3 == len(keys)
        assert all(node["clients"].startswith("tcp://127.0.0.1:") for node in nodes)
        assert nodes[0]["pid"] == running_up.node_pids()[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_everything(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C and its kin end the nodes, then the supervisor, with exit code 0 and no lock left."""
    with up(tmp_path) as running_up:
        running_up.next_line()
        pidfds = [os.pidfd_open(pid) for pid in running_up.node_pids()]
        running_up.process.send_signal(number)
        assert running_up.next_line() == {"event": "stopping (once more to kill)"}
        assert running_up.next_line() == {"event": "stopped"}
        assert running_up.process.wait(DEADLINE_S) == ExitCode.OK
        wait_for_ends(pidfds)
    prepare(tmp_path)


@pytest.mark.parametrize("options", [(), ("--for-people",)])
def test_nobody_listening_changes_nothing(tmp_path: Path, options: tuple[str, ...]) -> None:
    """A node that dies after the reader of the lines has gone is started again all the same."""
    with up(tmp_path, *options) as running_up:
        assert running_up.process.stdout is not None
        assert running_up.process.stdout.readline()
        pid_file = tmp_path / "node2" / "pid"
        first = int(wait_for_file(pid_file))
        running_up.process.stdout.close()
        pid_file.unlink()
        os.kill(first, signal.SIGKILL)
        assert int(wait_for_file(pid_file)) != first
        running_up.process.send_signal(signal.SIGINT)
        assert running_up.process.wait(DEADLINE_S) == ExitCode.OK


def test_a_signal_while_starting_stops_everything(tmp_path: Path) -> None:
    """Nothing is left of a start that is interrupted before there is a leader."""
    prepare(tmp_path)
    (tmp_path / "node1" / "exit-code").write_text("1")
    with up(tmp_path) as running_up:
        assert "node1 ended with exit code 1" in str(running_up.next_line()["event"])
        pids = [int(wait_for_file(tmp_path / name / "pid")) for name in ("node2", "node3")]
        pidfds = [os.pidfd_open(pid) for pid in pids]
        running_up.process.send_signal(signal.SIGINT)
        assert running_up.process.wait(DEADLINE_S) == ExitCode.INTERRUPTED
        wait_for_ends(pidfds)
    prepare(tmp_path)


def test_a_second_signal_forces_the_end(tmp_path: Path) -> None:
    """A node that does not stop is killed at once when asked twice."""
    prepare(tmp_path)
    (tmp_path / "node2" / "stubborn").touch()
    with up(tmp_path, "--stop-deadline-s", "1000") as running_up:
        running_up.next_line()
        pidfds = [os.pidfd_open(pid) for pid in running_up.node_pids()]
        running_up.process.send_signal(signal.SIGINT)
        running_up.next_line()
        wait_for_ends(pidfds[:1])
        running_up.process.send_signal(signal.SIGINT)
        assert running_up.process.wait(DEADLINE_S) == ExitCode.INTERRUPTED
        wait_for_ends(pidfds[1:])


def test_a_killed_supervisor_leaves_no_orphan(tmp_path: Path) -> None:
    """SIGKILL of the supervisor ends its nodes, stubborn ones too, and the folder is free."""
    prepare(tmp_path)
    (tmp_path / "node2" / "stubborn").touch()
    with up(tmp_path) as running_up:
        running_up.next_line()
        pidfds = [os.pidfd_open(pid) for pid in running_up.node_pids()]
        running_up.process.kill()
        wait_for_ends(pidfds)
        running_up.process.wait(DEADLINE_S)
    prepare(tmp_path)


def test_a_second_up_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    """It ends with one line that names the process which has the folder."""
    with up(tmp_path) as first:
        first.next_line()
        with up(tmp_path) as second:
            _, complaint = second.process.communicate(timeout=DEADLINE_S)
            assert second.process.returncode == ExitCode.FOLDER_IN_USE
            assert complaint == f"{tmp_path} is in use by process {first.process.pid}\n"
