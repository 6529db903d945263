"""The embedded PostgreSQL: real servers, started, killed, locked out and stopped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
import uvloop

from cluster import postgres as module
from cluster.postgres import EmbeddedPostgres, PostgresInUseError, PostgresStartError
from cluster.postgres_programs import (
    PostgresError,
    RunFolder,
    account_for,
    copy_programs,
    find_programs,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytestmark = pytest.mark.postgres

ROOT = Path(__file__).parents[2]
IS_ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not IS_ROOT, reason="only root runs it as another user")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a stopped cluster in it: initdb is what takes time."""
    folder = tmp_path_factory.mktemp("prepared") / "data"

    async def prepare() -> None:
        server = EmbeddedPostgres(folder)
        await server.start()
        await server.stop()

    asyncio.run(prepare())
    return folder


@pytest.fixture
def data_dir(prepared: Path, tmp_path: Path) -> Path:
    """A copy of the prepared data folder."""
    return copy_of(prepared, tmp_path / "data")


def copy_of(prepared: Path, target: Path) -> Path:
    """Copy a data folder with its owners and modes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "-a", str(prepared), str(target)], check=True)
    return target


@contextlib.asynccontextmanager
async def started(server: EmbeddedPostgres) -> AsyncIterator[str]:
    """Start a server, and stop it in the end."""
    try:
        yield await server.start()
    finally:
        await server.stop()


async def ask(dsn: str, query: str) -> object:
    """Return the one value a query gives."""
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        row = await (await connection.execute(query.encode())).fetchone()
        return None if row is None else row[0]


def is_alive(pid: int) -> bool:
    """Say whether a process runs."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def mode_of(path: str) -> int | None:
    """Return the permissions of a file or folder; None where there is none."""
    return Path(path).stat().st_mode & 0o777 if Path(path).exists() else None


def identity_of(pid: int) -> dict[str, list[str]]:
    """Read the user, group and further groups of a process: see proc_pid_status(5)."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return {name: values.split() for name, _, values in (line.partition(":") for line in lines)}


def processes_of(pid: int) -> list[int]:
    """List a server's process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    return [pid, *map(int, children.split())]


async def gone(pids: list[int]) -> None:
    """Wait until none of the processes is alive."""
    async with asyncio.timeout(30):
        while any(map(is_alive, pids)):  # noqa: ASYNC110 - they are not our children
            await asyncio.sleep(0)


@pytest.mark.asyncio
async def test_data_persist_from_start_to_start(tmp_path: Path) -> None:
    """A new cluster takes SQL over its socket alone, and keeps it under the data folder."""
    folder = tmp_path / "data"
    server = EmbeddedPostgres(folder)
    async with started(server) as dsn:
        assert "" == await ask(dsn, "SHOW listen_addresses")
        assert "on" == await ask(dsn, "SHOW fsync")
        assert "UTF8" == await ask(dsn, "SHOW server_encoding")
        assert "C" == await ask(dsn, "SELECT datcollate FROM pg_database LIMIT 1")
        async with await psycopg.AsyncConnection.connect(dsn) as connection:
            await connection.execute("CREATE TABLE kept AS SELECT 42 AS value")
    assert server.pid is None
    async with started(EmbeddedPostgres(folder)) as dsn:
        assert 42 == await ask(dsn, "SELECT value FROM kept")


def test_it_runs_on_uvloop(data_dir: Path) -> None:
    """The supervisor may run on uvloop, which starts processes in its own way."""

    async def start_and_stop() -> object:
        async with started(EmbeddedPostgres(data_dir)) as dsn:
            return await ask(dsn, "SELECT 1")

    assert 1 == uvloop.run(start_and_stop())


@pytest.mark.asyncio
async def test_it_works_behind_closed_folders_and_changes_no_mode(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A home of mode 0700 above the data folder and the wheel stays as it is."""
    home = tmp_path / "home"
    folder = copy_of(prepared, home / "checkout" / "data")
    programs = copy_programs(find_programs(), home / "site-packages")
    monkeypatch.setattr(module, "find_programs", lambda: programs)
    home.chmod(0o700)
    watched = [folder, *folder.parents, programs, *programs.parents]
    before = [(path.stat().st_mode, path.stat().st_uid) for path in watched]
    async with started(EmbeddedPostgres(folder)) as dsn:
        assert 1 == await ask(dsn, "SELECT 1")
    assert before == [(path.stat().st_mode, path.stat().st_uid) for path in watched]
    assert 0o700 == (folder / "cluster").stat().st_mode & 0o777


@pytest.fixture
def further_groups() -> Iterator[None]:
    """Root may be in more groups than its own; they are not the server's."""
    before = os.getgroups()
    if IS_ROOT:
        os.setgroups([0, 4])
    yield
    if IS_ROOT:
        os.setgroups(before)


@pytest.mark.asyncio
async def test_it_never_runs_as_root(data_dir: Path, further_groups: None) -> None:
    """Root hands it to another account; anybody else runs it as themselves."""
    server = EmbeddedPostgres(data_dir)
    async with started(server):
        assert server.pid is not None
        account = pwd.getpwnam("nobody") if IS_ROOT else pwd.getpwuid(os.geteuid())
        for pid in processes_of(server.pid):
            identity = identity_of(pid)
            assert [str(account.pw_uid)] * 4 == identity["Uid"]
            assert [str(account.pw_gid)] * 4 == identity["Gid"]
            assert not IS_ROOT or [] == identity["Groups"]
        assert account.pw_uid == (data_dir / "cluster").stat().st_uid


@pytest.mark.asyncio
@pytest.mark.parametrize("name", ["x" * 120, "a, b"])
async def test_a_path_that_cannot_name_a_socket_works(
    prepared: Path, tmp_path: Path, name: str
) -> None:
    """The socket is then named through a short private folder, which goes away with the server."""
    folder = copy_of(prepared, tmp_path / name)
    async with started(EmbeddedPostgres(folder)) as dsn:
        assert 1 == await ask(dsn, "SELECT 1")
        short = dsn.partition("host=")[2].partition("/cluster")[0]
        assert (0o711 if IS_ROOT else 0o700) == mode_of(short)
    assert mode_of(short) is None


def test_temporary_files_of_a_killed_supervisor_are_removed() -> None:
    """The next folder made takes away those that nobody holds any more, and no others."""
    used = RunFolder.make(is_public=False)
    left = RunFolder.make(is_public=False)
    (left.path / "file").touch()
    os.close(left.descriptor)  # as the kernel does for a killed process
    made = RunFolder.make(is_public=False)
    assert (True, False, True) == (used.path.exists(), left.path.exists(), made.path.exists())
    used.remove()
    made.remove()
    assert not used.path.exists()


@pytest.mark.asyncio
async def test_a_server_keeps_its_temporary_files_from_being_removed(
    prepared: Path, tmp_path: Path
) -> None:
    """Not only its supervisor holds them: the server still needs them when that was killed."""
    folder = copy_of(prepared, tmp_path / ("x" * 120))
    server = EmbeddedPostgres(folder)
    async with started(server) as dsn:
        assert server._run_folder is not None
        os.close(server._run_folder.descriptor)
        RunFolder.make(is_public=False).remove()
        assert 1 == await ask(dsn, "SELECT 1")
        server._run_folder.descriptor = os.open(os.devnull, os.O_RDONLY)


@pytest.mark.asyncio
async def test_kill_9_of_everything_does_not_block_the_next_start(data_dir: Path) -> None:
    """Not even where the process id that is left behind is somebody else's by now."""
    server = EmbeddedPostgres(data_dir)
    dsn = await server.start()
    assert server.pid is not None
    pids = processes_of(server.pid)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert -signal.SIGKILL == await server.wait()
    await gone(pids)

    with start_somebody((data_dir / "cluster").stat().st_uid) as somebody:
        pid_file = data_dir / "cluster" / "postmaster.pid"
        lines = pid_file.read_text(encoding="utf-8").splitlines()
        pid_file.write_text("\n".join([str(somebody.pid), *lines[1:]]) + "\n", encoding="utf-8")
        try:
            # The same DSN: clients that survived it need not be told.
            async with started(server) as again:
                assert dsn == again
                assert 1 == await ask(dsn, "SELECT 1")
        finally:
            somebody.kill()


def start_somebody(uid: int) -> subprocess.Popen[bytes]:
    """Start a process of the user `uid` that has nothing to do with us."""
    return subprocess.Popen(["sleep", "600"], user=uid if IS_ROOT else None)


SUPERVISOR = """
import asyncio, pathlib, sys
from cluster.postgres import EmbeddedPostgres
async def main():
    server = EmbeddedPostgres(pathlib.Path(sys.argv[1]))
    await server.start()
    print(server.pid, flush=True)
    await server.wait()
asyncio.run(main())
"""


def start_supervisor(data_dir: Path) -> subprocess.Popen[bytes]:
    """Start a supervisor in a process of its own; it prints the server's process id."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, "-c", SUPERVISOR, str(data_dir)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)


@pytest.mark.asyncio
async def test_no_process_outlives_a_killed_supervisor(data_dir: Path) -> None:
    """SIGKILL of the supervisor ends the server, and the next start finds the folder free."""
    with start_supervisor(data_dir) as supervisor:
        assert supervisor.stdout is not None
        pids = processes_of(int(supervisor.stdout.readline()))
        supervisor.kill()
    async with started(EmbeddedPostgres(data_dir)) as dsn:
        assert [] == [pid for pid in pids if is_alive(pid)]
        assert 1 == await ask(dsn, "SELECT 1")


@pytest.mark.asyncio
async def test_a_second_server_on_the_same_folder_is_refused(data_dir: Path) -> None:
    """The first one does not notice."""
    async with started(EmbeddedPostgres(data_dir)) as dsn:
        second = EmbeddedPostgres(data_dir, lock_timeout_s=0)
        with pytest.raises(PostgresInUseError, match="already runs in"):
            await second.start()
        await second.stop()
        assert 1 == await ask(dsn, "SELECT 1")


@pytest.mark.asyncio
async def test_a_server_that_cannot_start_says_why_in_one_line(data_dir: Path) -> None:
    """The end of its log is in the error, and nothing is left running or in the way."""
    settings = data_dir / "cluster" / "postgresql.conf"
    good = settings.read_text(encoding="utf-8")
    settings.write_text("no_such_setting = 1\n", encoding="utf-8")
    server = EmbeddedPostgres(data_dir)
    with pytest.raises(PostgresStartError, match='"no_such_setting"') as caught:
        await server.start()
    assert "\n" not in str(caught.value)
    assert str(data_dir / "postgres.log") in str(caught.value)
    assert server._run_folder is None
    settings.write_text(good, encoding="utf-8")
    async with started(server) as dsn:
        assert 1 == await ask(dsn, "SELECT 1")


class NeverReady(EmbeddedPostgres):
    """A server that is up and does not say so."""

    def _is_ready(self, pid: int) -> bool:
        """Note who is asked for."""
        self.started_pid = pid
        return False


@pytest.mark.asyncio
async def test_a_server_that_is_not_ready_in_time_is_ended(data_dir: Path) -> None:
    """It does not stay behind as a process that nobody watches."""
    server = NeverReady(data_dir, start_timeout_s=0.2)
    with pytest.raises(PostgresStartError, match="not ready after"):
        await server.start()
    assert not is_alive(server.started_pid)


@pytest.mark.asyncio
async def test_an_initdb_that_fails_leaves_no_half_made_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster is there whole or not at all."""
    monkeypatch.setattr(module, "_INITDB_ARGUMENTS", ("--no-such-argument",))
    with pytest.raises(PostgresStartError, match=r"initdb failed with status 1: .*no-such"):
        await EmbeddedPostgres(tmp_path / "data").start()
    assert not (tmp_path / "data" / "cluster").exists()


@pytest.mark.asyncio
async def test_a_cluster_of_another_version_is_refused(data_dir: Path) -> None:
    """Only the major version that wrote a cluster can read it."""
    (data_dir / "cluster" / "PG_VERSION").write_text("15\n", encoding="utf-8")
    with pytest.raises(PostgresError, match="is of PostgreSQL 15, not 18"):
        await EmbeddedPostgres(data_dir).start()


@pytest.mark.asyncio
async def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    """The path and the reason, and no trace."""
    (tmp_path / "file").touch()
    with pytest.raises(PostgresError, match=r"cannot use .*/file/data: Not a directory$"):
        await EmbeddedPostgres(tmp_path / "file" / "data").start()


@pytest.mark.asyncio
async def test_a_server_that_hangs_is_stopped_the_hard_way(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stopped process hears neither SIGINT nor SIGQUIT."""
    monkeypatch.setattr(module, "_QUIT_TIMEOUT_S", 0.1)
    server = EmbeddedPostgres(data_dir, stop_timeout_s=0.1)
    await server.start()
    assert server.pid is not None
    pids = processes_of(server.pid)
    os.kill(server.pid, signal.SIGSTOP)
    await server.stop()
    await gone(pids)
    await server.stop()  # harmless


@pytest.mark.asyncio
async def test_a_stop_during_a_start_ends_the_server(data_dir: Path) -> None:
    """A supervisor may be stopped while it restarts a server that crashed."""
    server = EmbeddedPostgres(data_dir)
    start = asyncio.create_task(server.start())
    await asyncio.sleep(0)
    await server.stop()
    await start
    assert server.pid is None
    assert 0 == await server.wait()


@pytest.mark.asyncio
async def test_a_start_that_is_cancelled_leaves_nothing_running(tmp_path: Path) -> None:
    """Ctrl-C in the middle of initdb; the next start begins it anew."""
    start = asyncio.create_task(EmbeddedPostgres(tmp_path / "data").start())
    async with asyncio.timeout(30):
        begun = tmp_path / "data" / "cluster.new" / "PG_VERSION"
        while not begun.exists():  # noqa: ASYNC110 - initdb tells no event
            await asyncio.sleep(0)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert not (tmp_path / "data" / "cluster").exists()
    async with started(EmbeddedPostgres(tmp_path / "data")) as dsn:
        assert 1 == await ask(dsn, "SELECT 1")


@pytest.mark.asyncio
async def test_stop_does_not_wait_for_clients(data_dir: Path) -> None:
    """A fast shutdown cuts them off."""
    server = EmbeddedPostgres(data_dir)
    async with await psycopg.AsyncConnection.connect(await server.start()) as connection:
        await server.stop()
        with pytest.raises(psycopg.OperationalError):
            await connection.execute("SELECT 1")


@needs_root
def test_root_runs_it_as_the_owner_of_the_data(tmp_path: Path) -> None:
    """A folder that an ordinary user made stays usable for that user."""
    cluster = tmp_path / "cluster"
    assert pwd.getpwnam("nobody").pw_uid == account_for(cluster, "nobody").uid
    cluster.mkdir()
    os.chown(cluster, 12_345, 12_346)
    assert (12_345, 12_346, True) == account_for(cluster, "nobody")


@needs_root
def test_root_needs_another_account(tmp_path: Path) -> None:
    """One clear line where there is none."""
    with pytest.raises(PostgresError, match="there is no user nosuchuser"):
        account_for(tmp_path / "cluster", "nosuchuser")
    with pytest.raises(PostgresError, match="user root is root"):
        account_for(tmp_path / "cluster", "root")


def test_copied_programs_are_for_everybody_to_run(tmp_path: Path) -> None:
    """Whatever the wheel's modes and this process's umask are."""
    before = os.umask(0o077)
    try:
        programs = copy_programs(find_programs(), tmp_path)
    finally:
        os.umask(before)
    entries = list(tmp_path.rglob("*"))
    assert len(entries) > 100
    assert {0o755} == {path.stat().st_mode & 0o777 for path in entries}
    output = subprocess.run([programs / "initdb", "--version"], check=True, capture_output=True)
    assert output.stdout.startswith(b"initdb (PostgreSQL) 18")
