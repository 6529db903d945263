"""One process on one data folder: an flock that the kernel drops when the process ends.

The file stays behind and means nothing by itself, so that no lock is ever stale; it holds the
owner's process id for the error message alone. Relies on fcntl, so on a POSIX system.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

_OWNER_ONLY = 0o600


class DataFolderInUseError(RuntimeError):
    """Another process holds the folder; `owner` is its process id where that is known."""

    def __init__(self, folder: Path, owner: str) -> None:
        """Name the folder and who has it."""
        by = f"process {owner}" if owner else "another process"
        super().__init__(f"{folder} is in use by {by}")
        self.folder = folder
        self.owner = owner


class FolderLock:
    """Holds `folder/lock` from `take` until `release`, or as context manager."""

    def __init__(self, file: Path) -> None:
        """Name the lock's file; nothing is touched before `take`."""
        self._file = file
        self._descriptor: int | None = None

    def take(self) -> None:
        """Take the lock without waiting.

        Raises:
            DataFolderInUseError: another process, or another lock of this one, has it.
            OSError: the file cannot be made.
        """
        assert self._descriptor is None, "a lock is taken once"
        descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _OWNER_ONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.read(descriptor, 32).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise DataFolderInUseError(self._file.parent, owner) from error
        self._descriptor = descriptor
        with contextlib.suppress(OSError):  # a full disk must not keep a node from starting
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode("ascii"))

    def release(self) -> None:
        """Give the lock back; harmless when it is not held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        """Take it."""
        self.take()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Release it."""
        self.release()
