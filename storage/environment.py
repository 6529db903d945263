"""One LMDB environment: made whole, checked before it is mapped, grown before it is full.

What LMDB leaves to its users stands here, for the chain and for the index alike:

- Default durability (`sync` and `metasync` on): a write is on the disk when `write` returns. A
  write that failed is never tried again, since after a failed fsync nobody knows what is on disk.
- The map grows by doubling. One map of a tebibyte would be simpler still, but it is refused where
  address space is limited (`ulimit -v`, some containers), and a full map must be survived anyhow.
  A map can be replaced only while this process reads nothing from it, so a plain lock is held
  around every read transaction and around the replacement. It costs 0.1 µs a read where nobody
  else reads; readers wait for each other's copying (a block of 1 MiB: 0.1 ms), and for a
  replacement (one munmap and mmap). A write never holds it while it syncs.
- A file shorter than its own pages would end the process by SIGBUS, so its length is compared with
  its meta page before it is mapped.

Relies on lmdb. Data are of its 0.9 format, named outright so that a library's new default cannot
change the files.
"""

from __future__ import annotations

import os
import shutil
import struct
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Final, NamedTuple, TypeVar

import lmdb
import lmdb.verify

from storage.errors import (
    DamagedStoreError,
    FormatVersionError,
    NoSpaceError,
    StorageError,
    StorageFailedError,
    StoreMissingError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    Transaction = lmdb.Transaction[bytes]
    Databases = Mapping[str, lmdb._Database]  # noqa: SLF001  # the stubs have no other name for it

_Result = TypeVar("_Result")

MIB: Final = 1 << 20
META: Final = "meta"
_FORMAT_KEY: Final = b"format"
_FORMAT_09: Final = 0
_FILE: Final = "data.mdb"
_MODE: Final = 0o644
_SUFFIX: Final = ".new"
# Pages that any write may take beyond its own data: copies of the trees' inner pages, and the list
# of free ones.
_SPARE_PAGES: Final = 64
# LMDB 0.9, 64 bit: a page header of 16 bytes, then magic, version, address, map size, two records
# of 48 bytes (the first begins with the page size), the last page's number, the transaction's id.
_META: Final = struct.Struct("=16x I I 8x 8x I 44x 48x Q Q")
_MAGIC: Final = 0xBEEFC0DE
_DATA_VERSION: Final = 1
_SMALLEST_PAGE: Final = 256
_VERIFY: Final[Callable[[str], list[str]]] = lmdb.verify.verify  # published without types
_DAMAGE: Final = (
    lmdb.BadTxnError,  # what a transaction says once it has met a damaged page
    lmdb.CorruptedError,
    lmdb.InvalidError,
    lmdb.NotFoundError,
    lmdb.PageNotFoundError,
    lmdb.PanicError,
    lmdb.VersionMismatchError,
)


@dataclass(frozen=True, slots=True)
class Layout:
    """What an environment is: its kind, the version of its format, and its sub-databases.

    Every kind has the sub-database `META` besides, which holds kind and version.
    """

    kind: str
    version: int
    databases: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all sub-databases."""
        return (META, *self.databases)


class _MetaPage(NamedTuple):
    """What a meta page says of the file; the page of the later transaction holds."""

    page_bytes: int
    last_page: int
    transaction: int


class Environment:
    """An open LMDB environment and its sub-databases. One thread writes, any thread reads."""

    def __init__(self, path: Path, layout: Layout, *, readonly: bool, reserve_bytes: int) -> None:
        """Open what is there; `reserve_bytes` of the disk are kept free by `write`.

        Raises:
            StoreMissingError: there is no folder, or nothing in it.
            FormatVersionError: it was written in another version of the format.
            DamagedStoreError: there is something else, or a damaged environment.
            StorageFailedError: the system does not let us open it.
        """
        self.path = path
        self.readonly = readonly
        self._reserve_bytes = reserve_bytes
        self._remap = threading.Lock()
        self._failure: StorageFailedError | None = None
        _check_file(path)
        try:
            # Map size 0: as large as it has ever been grown to.
            self._lmdb = lmdb.open(
                str(path),
                map_size=0,
                readonly=readonly,
                create=False,
                max_dbs=len(layout.names),
                lib_version=_FORMAT_09,
            )
        except lmdb.Error as error:
            raise _typed(path, error) from error
        try:
            self._lmdb.reader_check()  # frees the slots of readers that were killed
            self._page_bytes = self._lmdb.stat()["psize"]
            self.databases = self._open_databases(layout)
        except StorageError:
            self._lmdb.close()
            raise
        except lmdb.Error as error:
            self._lmdb.close()
            raise _typed(path, error) from error

    @property
    def map_bytes(self) -> int:
        """The size of the map now."""
        return self._lmdb.info()["map_size"]

    def read(self, work: Callable[[Transaction], _Result]) -> _Result:
        """Run `work` in a read transaction; it should copy what it needs and return soon.

        Raises:
            DamagedStoreError: LMDB finds its own pages damaged.
            StorageFailedError: LMDB refuses for another reason.
        """
        with self._remap:
            try:
                with self._begin_read() as transaction:
                    return work(transaction)
            except lmdb.Error as error:
                raise _typed(self.path, error) from error

    def write(
        self, work: Callable[[Transaction], _Result], *, needed_bytes: int, may_use_reserve: bool
    ) -> _Result:
        """Run `work` in a write transaction, and return once it is durable.

        `work` must leave nothing behind but its puts and deletes: it is run again where the map
        turns out to be full. `needed_bytes` is what it writes, at a guess.

        Raises:
            NoSpaceError: the disk is nearly full; nothing was written.
            StorageFailedError: the disk or LMDB failed, now or at an earlier write.
        """
        if self._failure is not None:
            raise self._failure
        needed_bytes += _SPARE_PAGES * self._page_bytes
        self.check_room(needed_bytes, may_use_reserve=may_use_reserve)
        self._grow_for(needed_bytes)
        while True:
            try:
                with self._lmdb.begin(write=True) as transaction:
                    return work(transaction)
            except lmdb.MapFullError:
                self._resize(2 * self.map_bytes)
            except (lmdb.Error, OSError) as error:
                self._failure = StorageFailedError(self.path, error)
                raise self._failure from error

    def check_room(self, needed_bytes: int, *, may_use_reserve: bool = False) -> None:
        """Raise NoSpaceError where the disk has no room for `needed_bytes` beside the reserve."""
        try:
            disk = os.statvfs(self.path)
        except OSError as error:
            raise StorageFailedError(self.path, error) from error
        free_bytes = disk.f_bavail * disk.f_frsize
        if not may_use_reserve:
            needed_bytes += self._reserve_bytes
        if free_bytes < needed_bytes:
            raise NoSpaceError(self.path, free_bytes=free_bytes, needed_bytes=needed_bytes)

    def close(self) -> None:
        """Let go of the files; harmless when done twice."""
        with self._remap:
            self._lmdb.close()

    def _open_databases(self, layout: Layout) -> Databases:
        """Open the sub-databases, once it is certain that this is the kind and the version."""
        meta = self._lmdb.open_db(META.encode(), create=False)
        found = self.read(lambda transaction: transaction.get(_FORMAT_KEY, db=meta))
        kind, _, version = (found or b"").decode("ascii", "replace").partition("/")
        if kind != layout.kind:
            raise DamagedStoreError(self.path, f"this is not a store of kind {layout.kind}")
        if version != str(layout.version):
            raise FormatVersionError(self.path, found=version, expected=str(layout.version))
        others = {
            name: self._lmdb.open_db(name.encode(), create=False) for name in layout.databases
        }
        return {META: meta, **others}

    def _begin_read(self) -> Transaction:
        while True:
            try:
                return self._lmdb.begin()
            except lmdb.MapResizedError:
                # Another process has grown the map: take its size.
                self._lmdb.set_mapsize(0)

    def _grow_for(self, needed_bytes: int) -> None:
        """Double the map until the write will leave a tenth of it free."""
        info = self._lmdb.info()
        used_bytes = (info["last_pgno"] + 1) * self._page_bytes
        map_bytes = info["map_size"]
        while used_bytes + needed_bytes > map_bytes * 9 // 10:
            map_bytes *= 2
        if map_bytes != info["map_size"]:
            self._lmdb.reader_check()  # a reader that was killed keeps old pages from being used
            self._resize(map_bytes)

    def _resize(self, map_bytes: int) -> None:
        with self._remap:
            self._lmdb.set_mapsize(map_bytes)


def is_damage(error: BaseException) -> bool:
    """Tell whether LMDB has found its own pages damaged."""
    return isinstance(error, _DAMAGE)


def has_environment(path: Path) -> bool:
    """Tell whether there is anything in the folder, be it good or damaged."""
    try:
        return path.exists() and not (path.is_dir() and next(path.iterdir(), None) is None)
    except OSError as error:
        raise StorageFailedError(path, error) from error


def create_environment(
    path: Path,
    layout: Layout,
    *,
    map_bytes: int,
    fill: Callable[[Transaction, Databases], None],
) -> None:
    """Make an environment with its first data, durable and whole, or leave nothing at `path`.

    It is built beside its place and moved there, so that a crash never leaves half of one. Raises
    StorageFailedError.
    """
    building = path.with_name(path.name + _SUFFIX)
    try:
        if building.exists():
            shutil.rmtree(building)  # what a crash has left
        building.mkdir(parents=True)
        handle = lmdb.open(
            str(building),
            map_size=map_bytes,
            max_dbs=len(layout.names),
            mode=_MODE,
            lib_version=_FORMAT_09,
        )
        with handle:
            databases = {name: handle.open_db(name.encode()) for name in layout.names}
            with handle.begin(write=True) as transaction:
                form = f"{layout.kind}/{layout.version}".encode("ascii")
                transaction.put(_FORMAT_KEY, form, db=databases[META])
                fill(transaction, databases)
        # LMDB syncs its file, but not the folder that names it.
        _sync_folder(building)
        building.rename(path)
        _sync_folder(path.parent)
    except (lmdb.Error, OSError) as error:
        raise StorageFailedError(path, error) from error


def _typed(path: Path, error: lmdb.Error) -> StorageError:
    """Tell damage to the file from a refusal of the system."""
    if is_damage(error):
        return DamagedStoreError(path, str(error))
    return StorageFailedError(path, error)


def _check_file(path: Path) -> None:
    """Check that the data file is as long as its meta page says, before anything maps it."""
    if not has_environment(path):
        raise StoreMissingError(path)
    try:
        with (path / _FILE).open("rb") as file:
            page_bytes, pages = _newest_meta(path, file)
            # Read after the meta page: a writer lengthens the file first.
            file_bytes = os.fstat(file.fileno()).st_size
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DamagedStoreError(path, f"{_FILE} is missing") from error
    except OSError as error:
        raise StorageFailedError(path, error) from error
    if file_bytes < pages * page_bytes:
        _check_pages(path, f"{_FILE} has {file_bytes} of {pages * page_bytes} bytes")


def _newest_meta(path: Path, file: BinaryIO) -> tuple[int, int]:
    """Return the page size and the number of pages by the newer of the two meta pages."""
    first = _read_meta(path, file)
    if first.page_bytes < _SMALLEST_PAGE or first.page_bytes.bit_count() != 1:
        raise DamagedStoreError(path, f"{_FILE} has a page size of {first.page_bytes}")
    file.seek(first.page_bytes)
    second = _read_meta(path, file)
    newest = max(first, second, key=lambda meta: meta.transaction)
    return first.page_bytes, newest.last_page + 1


def _read_meta(path: Path, file: BinaryIO) -> _MetaPage:
    """Decode the meta page that begins here."""
    raw = file.read(_META.size)
    if len(raw) < _META.size:
        raise DamagedStoreError(path, f"{_FILE} ends within its first pages")
    magic, version, *rest = _META.unpack(raw)
    if (magic, version) != (_MAGIC, _DATA_VERSION):
        raise DamagedStoreError(path, f"{_FILE} is not an LMDB file of format {_DATA_VERSION}")
    return _MetaPage(*rest)


def _check_pages(path: Path, shortage: str) -> None:
    """Look at every page of a file that is shorter than its last page's number says.

    Such a file is whole if the pages that lie beyond its end are free ones, which LMDB need not
    write. That is rare, so the slow check by a walk over all pages is made only here.
    """
    try:
        problems = _VERIFY(str(path))
    except lmdb.verify.VerifyError as error:
        problems = [str(error)]
    if problems:
        raise DamagedStoreError(path, f"{shortage}: {problems[0]}")


def _sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
