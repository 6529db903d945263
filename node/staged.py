"""A folder that is there whole or not at all: made under another name, synced, and renamed.

What an interrupted run has left under the other name means nothing; the next run takes it away. A
lock on that folder keeps two runs apart, and the kernel drops it when its process ends. Relies on
flock and on rename, so on a POSIX system, and on files that their writers have synced.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from node.folder_lock import DataFolderInUseError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

PARTIAL_SUFFIX: Final = ".partial"
_OWNER_ONLY: Final = 0o700


class FolderTakenError(Exception):
    """There is something at the place already; nothing was changed. The message names it."""


@contextmanager
def staged_folder(
    final: Path, *, contents: Collection[str], part: str | None = None
) -> Iterator[Path]:
    """Yield a folder to fill, which becomes `final` when the block ends without an error.

    With `part` only the folder of that name within it does. `contents` are the names that a run
    may leave in it: where an unfinished folder holds anything else it is not ours to take away.

    Raises:
        FolderTakenError: `final` has content, or the unfinished folder has somebody else's.
        DataFolderInUseError: another process is making the same folder.
        OSError: it cannot be made.
    """
    final = Path(os.path.abspath(final))  # noqa: PTH100 - links stay: it is about names alone
    refuse_taken_folder(final)
    building = final.with_name(final.name + PARTIAL_SUFFIX)
    building.mkdir(mode=_OWNER_ONLY, parents=True, exist_ok=True)
    descriptor = os.open(building, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    is_done = False
    try:
        _lock(descriptor, building)
        _empty(building, contents)
        try:
            yield building
            _move(building if part is None else building / part, final)
            is_done = part is None
        finally:
            if not is_done:
                shutil.rmtree(building, ignore_errors=True)
    finally:
        os.close(descriptor)


def refuse_taken_folder(folder: Path) -> None:
    """Raise FolderTakenError where there is more than an empty folder, OSError as the system."""
    try:
        is_taken = next(folder.iterdir(), None) is not None
    except FileNotFoundError:
        return
    except NotADirectoryError:
        is_taken = True
    if is_taken:
        raise FolderTakenError(f"{folder} is there already: nothing was changed")


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable; raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, building: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise DataFolderInUseError(building, "") from error


def _empty(building: Path, contents: Collection[str]) -> None:
    """Take away what a run has left that never ended."""
    left = list(building.iterdir())
    foreign = [entry.name for entry in left if entry.name not in contents]
    if foreign:
        raise FolderTakenError(f"{building} holds {foreign[0]}, which no unfinished run leaves")
    for entry in left:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _move(built: Path, final: Path) -> None:
    """Rename, once all names within are durable; an empty folder in its place gives way."""
    for folder, _, _ in os.walk(built):
        sync_folder(Path(folder))
    refuse_taken_folder(final)
    built.rename(final)
    sync_folder(final.parent)
