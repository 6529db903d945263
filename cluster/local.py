"""A cluster of real processes on this machine: what `bitnexus up` and the end-to-end tests run.

    async with LocalCluster(ClusterOptions(data_dir=folder)) as cluster:
        await cluster.kill("node1")          # it comes back by itself
        print(cluster.urls, await cluster.leader())

Relies on `cluster.folder` for what lies on disk, `cluster.process` for each node's process and
`cluster.database` for the database; it speaks to the nodes over their HTTP alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self

from cluster.database import KeptDatabase
from cluster.errors import ClusterError
from cluster.folder import ClusterFolder, Shape, check_ports, open_folder
from cluster.postgres_programs import PostgresError
from cluster.process import (
    Backoff,
    ProcessState,
    Program,
    SupervisedProcess,
    last_lines,
    rotate_log,
)
from cluster.view import ClusterView, fetch_view
from node.cli_errors import ExitCode
from node.config import ConfigError, is_loopback, url_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from types import TracebackType

EMBEDDED: Final = "embedded"
NO_POSTGRES: Final = "none"
LOG_FILE: Final = "log"
PERMANENT_CODES: Final = frozenset(
    {
        ExitCode.USAGE,
        ExitCode.CONFIG,
        ExitCode.FOLDER_FOREIGN,
        ExitCode.OTHER_CLUSTER,
        ExitCode.INSECURE_HTTP,
        ExitCode.CORRUPT,
        ExitCode.OPTIMISED,
        ExitCode.LOST_CHAIN,
    }
)
"""How a node says that it would end the same way each time. A full or failing disk may recover."""

_POLL_S: Final = 0.05
_FETCH_TIMEOUT_S: Final = 1.0
_SHOWN_LOG_LINES: Final = 12
_ELECTION_HEARTBEATS: Final = (6, 12)
"""The default timeouts in heartbeats: kept when another heartbeat is asked for."""


def node_command(data_dir: Path) -> Sequence[str]:
    """How a node is started: without the command line's own imports, for a quick restart."""
    return (sys.executable, "-m", "node", "--data-dir", str(data_dir))


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterOptions:
    """What to run, and how. `postgres` is EMBEDDED, NO_POSTGRES or a connection string."""

    data_dir: Path
    shape: Shape = field(default_factory=Shape)
    postgres: str = NO_POSTGRES
    restart: bool = True
    insecure_http: bool = False
    heartbeat_ms: int | None = None
    election_timeout_ms: tuple[int, int] | None = None
    """The least and the most; None is 6 and 12 of the heartbeats asked for, else the default."""
    client_port: int | None = None
    """See `ClusterFolder.client_binds`."""
    stop_deadline_s: float = 10.0
    command: Callable[[Path], Sequence[str]] = node_command
    backoff: Callable[[], Backoff] = Backoff


class LocalCluster:
    """Starts, watches and stops the nodes of one data folder, and the database beside them."""

    def __init__(
        self, options: ClusterOptions, *, report: Callable[[str], None] | None = None
    ) -> None:
        """Say what happens to the nodes, one line each, to `report`."""
        self.options = options
        self._report = report or _say_nothing
        self._folder: ClusterFolder | None = None
        self._database: KeptDatabase | None = None
        self._client_binds: list[str] = []
        self._is_started = False
        self._nodes: dict[str, SupervisedProcess] = {}

    @property
    def folder(self) -> ClusterFolder:
        """The cluster's data folder, from the first start on."""
        assert self._folder is not None, "the cluster was started"
        return self._folder

    @property
    def names(self) -> tuple[str, ...]:
        """The nodes' names."""
        return tuple(member.name for member in self.folder.members)

    @property
    def urls(self) -> tuple[str, ...]:
        """The nodes' HTTP addresses, in the order of `names`."""
        return tuple(url_of(member.http) for member in self.folder.members)

    @property
    def client_urls(self) -> tuple[str, ...]:
        """The nodes' client ports, with the keys by which they are known, in the same order."""
        return tuple(
            f"tcp://{bind}?key={member.public_key.hex()}"
            for bind, member in zip(self._client_binds, self.folder.members, strict=True)
        )

    @property
    def data_dirs(self) -> dict[str, Path]:
        """Each node's data folder."""
        return {name: self.folder.node_dir(name) for name in self.names}

    @property
    def postgres_dsn(self) -> str | None:
        """Where the checkpoints go, if anywhere."""
        if self._database is not None:
            return self._database.dsn
        return None if self.options.postgres in {EMBEDDED, NO_POSTGRES} else self.options.postgres

    @property
    def database(self) -> KeptDatabase | None:
        """The embedded PostgreSQL, while it runs."""
        return self._database

    def node(self, name: str) -> SupervisedProcess:
        """The process of the node `name`: its state, pid and number of starts."""
        return self._nodes[name]

    async def start(self, *, timeout_s: float = 60.0) -> ClusterView:
        """Start everything and return once there is a leader. After a failure nothing is left.

        Raises:
            ClusterError: with the reason in one line and its exit code.
        """
        assert not self._is_started, "a cluster is started once before it is stopped"
        if self.options.shape.http_host is not None:
            _check_http_host(self.options.shape.http_host, insecure=self.options.insecure_http)
        self._folder = open_folder(self.options.data_dir, self.options.shape)
        self._is_started = True
        try:
            check_ports(self._folder.members)
            await self._start_postgres()
            self._write_node_files()
            for name in self.names:
                self._nodes[name] = self._supervised(name)
                await self._nodes[name].start()
            return await self.wait_for_leader(timeout_s=timeout_s)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop the nodes, then the database, and let go of the folder. Harmless when stopped."""
        if not self._is_started:
            return
        async with contextlib.AsyncExitStack() as last_steps:
            last_steps.callback(self._let_go)
            if self._database is not None:
                last_steps.push_async_callback(self._database.stop)
            await self._stop_nodes(self._nodes)

    def kill_now(self) -> None:
        """Kill everything without waiting; a `stop` that is under way then ends at once."""
        for node in self._nodes.values():
            node.kill_now()
        if self._database is not None:
            self._database.kill_now()

    async def kill(self, name: str) -> None:
        """Kill a node as a crash would. It comes back unless the options say otherwise."""
        await self._nodes[name].kill()

    async def stop_node(self, name: str) -> None:
        """Stop a node gracefully; it stays down until `start_node`."""
        await self._stop_nodes({name: self._nodes[name]})

    async def start_node(self, name: str) -> None:
        """Start a node that was stopped, or that died and stayed so."""
        await self._nodes[name].start()

    async def restart_all(self, *, timeout_s: float = 60.0) -> None:
        """Stop all nodes, start them again and wait for a leader. The database stays up."""
        await self._stop_nodes(self._nodes)
        for name in self.names:
            await self.start_node(name)
        await self.wait_for_leader(timeout_s=timeout_s)

    async def leader(self) -> str | None:
        """The name of the leader that a node tells of now, or None."""
        view = await self.view()
        return view.leader if view is not None else None

    async def view(self) -> ClusterView | None:
        """The cluster as its leader sees it, or as any node does where no leader answers."""
        views = await asyncio.gather(
            *(
                asyncio.to_thread(fetch_view, member.http, timeout_s=_FETCH_TIMEOUT_S)
                for member in self.folder.members
            )
        )
        known = [view for view in views if view is not None]
        known.sort(key=lambda view: (view.leader is not None, view.term, view.is_leader))
        return known[-1] if known else None

    async def wait_for_leader(self, *, timeout_s: float) -> ClusterView:
        """The first view of the cluster in which a leader tells that it is one.

        Raises:
            ClusterError: none in time, or too many nodes are dead for one ever to be elected.
        """
        deadline = asyncio.get_running_loop().time() + timeout_s
        while True:
            view = await self.view()
            if view is not None and view.is_leader:
                return view
            self._refuse_lost_majority()
            if asyncio.get_running_loop().time() >= deadline:
                raise ClusterError(
                    f"the cluster has no leader after {timeout_s:g} s",
                    ExitCode.NO_LEADER,
                    details=self._ends_of_logs(self.names),
                )
            await asyncio.sleep(_POLL_S)

    async def _start_postgres(self) -> None:
        if self.options.postgres != EMBEDDED:
            return
        self._database = KeptDatabase(
            self.folder.postgres_dir,
            restart=self.options.restart,
            backoff=self.options.backoff(),
            report=self._report,
        )
        try:
            await self._database.start()
        except PostgresError as error:
            raise ClusterError(str(error), ExitCode.POSTGRES) from error

    def _write_node_files(self) -> None:
        settings: dict[str, object] = {}
        if self.options.insecure_http:
            settings["insecure_http"] = True
        election_ms = self.options.election_timeout_ms
        if self.options.heartbeat_ms is not None:
            settings["heartbeat_ms"] = self.options.heartbeat_ms
            low, high = _ELECTION_HEARTBEATS
            heartbeat_ms = self.options.heartbeat_ms
            election_ms = election_ms or (low * heartbeat_ms, high * heartbeat_ms)
        if election_ms is not None:
            settings["election_timeout_min_ms"], settings["election_timeout_max_ms"] = election_ms
        try:
            self._client_binds = self.folder.client_binds(self.options.client_port)
            self.folder.write_node_files(
                settings, postgres_dsn=self.postgres_dsn, client_binds=self._client_binds
            )
        except ConfigError as error:
            code = ExitCode.INSECURE_HTTP if error.key == "http_host" else ExitCode.CONFIG
            raise ClusterError(f"{error.key}: {error.detail}", code) from error
        except OSError as error:
            raise ClusterError(
                f"{error.filename}: {error.strerror}", ExitCode.FOLDER_UNWRITABLE
            ) from error

    def _supervised(self, name: str) -> SupervisedProcess:
        data_dir = self.folder.node_dir(name)
        rotate_log(data_dir / LOG_FILE)
        program = Program(
            name=name,
            command=self.options.command(data_dir),
            log=data_dir / LOG_FILE,
            restart=self.options.restart,
            permanent_codes=PERMANENT_CODES,
        )
        return SupervisedProcess(program, report=self._report, backoff=self.options.backoff())

    def _let_go(self) -> None:
        self.folder.close()
        self._nodes = {}
        self._database = None
        self._is_started = False

    async def _stop_nodes(self, nodes: dict[str, SupervisedProcess]) -> None:
        deadline_s = self.options.stop_deadline_s
        async with asyncio.TaskGroup() as group:
            for node in nodes.values():
                group.create_task(node.stop(deadline_s=deadline_s))

    def _refuse_lost_majority(self) -> None:
        dead = [name for name, node in self._nodes.items() if node.state is ProcessState.DEAD]
        if 2 * (len(self._nodes) - len(dead)) > len(self._nodes):
            return
        code = self._nodes[dead[0]].exit_code
        raise ClusterError(
            f"{', '.join(dead)} cannot run, and the others are no majority",
            ExitCode(code) if code in PERMANENT_CODES else ExitCode.FAILED,
            details=self._ends_of_logs(dead),
        )

    def _ends_of_logs(self, names: Sequence[str]) -> tuple[str, ...]:
        lines: list[str] = []
        for name in names:
            log = self.folder.node_dir(name) / LOG_FILE
            lines.append(f"--- the end of {log}")
            lines.extend(last_lines(log, _SHOWN_LOG_LINES))
        return tuple(lines)

    async def __aenter__(self) -> Self:
        """Start it."""
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop it."""
        await self.stop()


def _say_nothing(_: str) -> None:
    """The report of a cluster that nobody listens to."""


def _check_http_host(host: str, *, insecure: bool) -> None:
    """Refuse an address that others reach before anything is made for it."""
    if not insecure and not is_loopback(host):
        raise ClusterError(
            f"HTTP on {host} can be reached by others, without any access control: "
            "say --insecure-http if that is what you want",
            ExitCode.INSECURE_HTTP,
        )
