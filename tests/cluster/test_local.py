"""The supervisor of a local cluster, with programs in the nodes' place that start in an instant."""

from __future__ import annotations

import asyncio
import socket
import sys
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cluster.errors import ClusterError
from cluster.folder import FREE_PORT, Shape, open_folder
from cluster.local import ClusterOptions, LocalCluster
from cluster.process import Backoff, ProcessState
from node.cli_errors import ExitCode
from node.config import split_address

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

FAKE_NODE = Path(__file__).with_name("fake_node.py")
DEADLINE_S = 20.0


def fake_command(data_dir: Path) -> tuple[str, ...]:
    """Start a fake node."""
    return (sys.executable, "-I", "-S", str(FAKE_NODE), str(data_dir))


def options_for(data_dir: Path) -> ClusterOptions:
    """Three fake nodes on free ports, without a database."""
    return ClusterOptions(
        data_dir=data_dir,
        shape=Shape(http_port=FREE_PORT),
        command=fake_command,
        backoff=lambda: Backoff(first_s=0.01, limit_s=0.02),
        stop_deadline_s=DEADLINE_S,
    )


@asynccontextmanager
async def running(options: ClusterOptions) -> AsyncIterator[tuple[LocalCluster, list[str]]]:
    """A started cluster and what it reports."""
    reports: list[str] = []
    cluster = LocalCluster(options, report=reports.append)
    await cluster.start(timeout_s=DEADLINE_S)
    try:
        yield cluster, reports
    finally:
        await cluster.stop()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition that the event loop makes true."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - a file or a socket of another process
            await asyncio.sleep(0.005)


def prepare(data_dir: Path) -> None:
    """Make the cluster's folder, so that files can be put into it before the first start."""
    open_folder(data_dir, Shape(http_port=FREE_PORT)).close()


def is_listening(url: str) -> bool:
    """Whether anything accepts connections there."""
    with socket.socket() as probe:
        return probe.connect_ex(split_address(url.removeprefix("http://"))) == 0


@pytest.mark.asyncio
async def test_a_start_ends_with_a_leader(tmp_path: Path) -> None:
    """`start` returns the leader's view, when all there is to know about the cluster is known."""
    cluster = LocalCluster(options_for(tmp_path))
    view = await cluster.start(timeout_s=DEADLINE_S)
    try:
        assert (view.leader, view.node, view.is_leader) == ("node1", "node1", True)
        assert cluster.names == ("node1", "node2", "node3")
        assert [view.role_of(name) for name in cluster.names] == ["leader", "follower", "follower"]
        assert all(is_listening(url) for url in cluster.urls[:1])
        assert cluster.data_dirs["node2"] == tmp_path / "node2"
        assert cluster.postgres_dsn is None
        assert await cluster.leader() == "node1"
    finally:
        await cluster.stop()
    assert not any(is_listening(url) for url in cluster.urls)


@pytest.mark.asyncio
async def test_a_stopped_cluster_starts_again_as_it_was(tmp_path: Path) -> None:
    """The same object, or another one on the same folder, resumes the same cluster."""
    options = options_for(tmp_path)
    async with running(options) as (cluster, _):
        genesis = cluster.folder.genesis
    async with running(replace(options, shape=Shape())) as (other, _):
        assert other.folder.genesis == genesis
    await cluster.start(timeout_s=DEADLINE_S)
    await cluster.stop()
    assert cluster.folder.genesis == genesis


@pytest.mark.asyncio
async def test_a_killed_node_comes_back(tmp_path: Path) -> None:
    """A crash is mended by the supervisor, and one line says so."""
    async with running(options_for(tmp_path)) as (cluster, reports):
        await cluster.kill("node2")
        await until(lambda: cluster.node("node2").starts == 2)
        await until(lambda: is_listening(cluster.urls[1]))
        assert len(reports) == 1
        assert reports[0].startswith("node2 was killed by SIGKILL: it is started again in 0.01 s")


@pytest.mark.asyncio
async def test_no_restart_leaves_a_node_dead(tmp_path: Path) -> None:
    """Without restart a killed node stays dead until it is started by hand."""
    async with running(replace(options_for(tmp_path), restart=False)) as (cluster, reports):
        await cluster.kill("node2")
        assert cluster.node("node2").state is ProcessState.DEAD
        assert "left dead as asked" in reports[0]
        await cluster.start_node("node2")
        await until(lambda: is_listening(cluster.urls[1]))


@pytest.mark.asyncio
async def test_a_stopped_node_stays_down(tmp_path: Path) -> None:
    """A node stopped on purpose is not brought back, until it is started."""
    async with running(options_for(tmp_path)) as (cluster, reports):
        await cluster.stop_node("node3")
        assert cluster.node("node3").state is ProcessState.STOPPED
        assert not is_listening(cluster.urls[2])
        await cluster.start_node("node3")
        await until(lambda: is_listening(cluster.urls[2]))
        assert reports == []


@pytest.mark.asyncio
async def test_all_nodes_restart(tmp_path: Path) -> None:
    """`restart_all` stops every node, starts every node, and waits for a leader."""
    async with running(options_for(tmp_path)) as (cluster, reports):
        pids = {name: cluster.node(name).pid for name in cluster.names}
        await cluster.restart_all(timeout_s=DEADLINE_S)
        assert all(cluster.node(name).pid != pids[name] for name in cluster.names)
        assert await cluster.leader() == "node1"
        assert reports == []


@pytest.mark.asyncio
async def test_a_node_that_cannot_run_is_reported_and_the_others_go_on(tmp_path: Path) -> None:
    """One of three may refuse for good: the majority elects, and a line says where to look."""
    prepare(tmp_path)
    (tmp_path / "node3" / "exit-code").write_text(str(int(ExitCode.CONFIG)))
    async with running(options_for(tmp_path)) as (cluster, reports):
        await until(lambda: cluster.node("node3").state is ProcessState.DEAD)
        assert cluster.node("node3").starts == 1
        log = tmp_path / "node3" / "log"
        assert reports == [
            f"node3 ended with exit code 3: another start would end the same way (log: {log})"
        ]


@pytest.mark.asyncio
async def test_a_lost_majority_fails_the_start_with_the_ends_of_the_logs(tmp_path: Path) -> None:
    """Where no leader can ever be elected the start ends at once, with the nodes' own words."""
    prepare(tmp_path)
    for name in ("node1", "node2"):
        (tmp_path / name / "exit-code").write_text(str(int(ExitCode.CORRUPT)))
    cluster = LocalCluster(options_for(tmp_path))
    with pytest.raises(ClusterError) as caught:
        await cluster.start(timeout_s=1_000.0)
    assert caught.value.code is ExitCode.CORRUPT
    assert str(caught.value) == "node1, node2 cannot run, and the others are no majority"
    assert caught.value.details[1] == f"fake node cannot run in {tmp_path / 'node1'}"
    assert not is_listening(cluster.urls[2])
    prepare(tmp_path)


@pytest.mark.asyncio
async def test_no_leader_in_time_fails_the_start(tmp_path: Path) -> None:
    """A cluster that never elects is stopped again, and the error says so."""
    prepare(tmp_path)
    (tmp_path / "node1" / "exit-code").write_text("1")
    cluster = LocalCluster(options_for(tmp_path))
    with pytest.raises(ClusterError, match=r"no leader after 0\.3 s") as caught:
        await cluster.start(timeout_s=0.3)
    assert caught.value.code is ExitCode.NO_LEADER
    assert f"fake node cannot run in {tmp_path / 'node1'}" in caught.value.details
    prepare(tmp_path)


@pytest.mark.asyncio
async def test_a_port_in_use_starts_nothing(tmp_path: Path) -> None:
    """The check comes before the first process, and the folder is let go."""
    prepare(tmp_path)
    folder = open_folder(tmp_path, Shape())
    folder.close()
    taken = split_address(folder.members[2].http)
    with socket.create_server(taken), pytest.raises(ClusterError, match="node3") as caught:
        await LocalCluster(options_for(tmp_path)).start()
    assert caught.value.code is ExitCode.PORT_IN_USE
    assert not (tmp_path / "node1" / "log").exists()
    prepare(tmp_path)


@pytest.mark.asyncio
async def test_an_address_others_reach_needs_to_be_asked_for(tmp_path: Path) -> None:
    """Plain HTTP leaves this machine only with `insecure_http`; nothing is made without."""
    shape = Shape(http_port=FREE_PORT, http_host="0.0.0.0")  # noqa: S104 - the case is about it
    options = replace(options_for(tmp_path / "data"), shape=shape)
    with pytest.raises(ClusterError, match="--insecure-http") as caught:
        await LocalCluster(options).start()
    assert caught.value.code is ExitCode.INSECURE_HTTP
    assert not (tmp_path / "data").exists()
    async with running(replace(options, insecure_http=True)) as (cluster, _):
        assert cluster.urls[0].startswith("http://127.0.0.1:")
    with pytest.raises(ClusterError) as caught:
        await LocalCluster(replace(options, shape=Shape())).start()
    assert caught.value.code is ExitCode.INSECURE_HTTP


@pytest.mark.asyncio
async def test_another_heartbeat_moves_the_election_timeouts(tmp_path: Path) -> None:
    """The timeouts keep their ratio to the heartbeat, and what cannot work is refused."""
    async with running(replace(options_for(tmp_path), heartbeat_ms=20)) as (cluster, _):
        text = (cluster.data_dirs["node1"] / "node.toml").read_text()
    expected = [
        "heartbeat_ms = 20",
        "election_timeout_min_ms = 120",
        "election_timeout_max_ms = 240",
    ]
    assert [line for line in text.splitlines() if "_ms" in line] == expected
    with pytest.raises(ClusterError, match="heartbeat_ms") as caught:
        await LocalCluster(replace(options_for(tmp_path), heartbeat_ms=1)).start()
    assert caught.value.code is ExitCode.CONFIG


@pytest.mark.parametrize("heartbeat_ms", [None, 20])
@pytest.mark.asyncio
async def test_election_timeouts_can_be_asked_for(tmp_path: Path, heartbeat_ms: int | None) -> None:
    """They stand as they were asked for, whatever the heartbeat."""
    options = replace(
        options_for(tmp_path), heartbeat_ms=heartbeat_ms, election_timeout_ms=(150, 200)
    )
    async with running(options) as (cluster, _):
        text = (cluster.data_dirs["node1"] / "node.toml").read_text()
    expected = ["election_timeout_min_ms = 150", "election_timeout_max_ms = 200"]
    assert expected == [line for line in text.splitlines() if line.startswith("election")]


@pytest.mark.asyncio
async def test_a_database_of_ones_own_is_handed_to_the_nodes(tmp_path: Path) -> None:
    """A connection string goes into every `node.toml`; nothing is started for it."""
    dsn = "host=db.example dbname=ledger"
    async with running(replace(options_for(tmp_path), postgres=dsn)) as (cluster, _):
        assert (cluster.postgres_dsn, cluster.database) == (dsn, None)
        assert f'postgres_dsn = "{dsn}"' in (tmp_path / "node3" / "node.toml").read_text()
    async with running(options_for(tmp_path)) as (cluster, _):
        assert "postgres_dsn" not in (tmp_path / "node3" / "node.toml").read_text()


@pytest.mark.asyncio
async def test_logs_rotate_at_each_start(tmp_path: Path) -> None:
    """What a node said in the run before is kept beside what it says now."""
    for run in (1, 2):
        async with running(options_for(tmp_path)):
            (tmp_path / "node1" / "log").write_text(f"run {run}\n")
    prepare(tmp_path)
    assert (tmp_path / "node1" / "log.1").read_text() == "run 1\n"
    assert (tmp_path / "node1" / "log").read_text() == "run 2\n"
