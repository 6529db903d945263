"""What can go wrong with durable state, one type for each thing a caller treats differently.

Each error's text is one line fit for a terminal and names the folder or the block. A programming
fault of our own (a gap in a save, a truncation of committed blocks) is an AssertionError instead:
nobody should catch it. Relies on nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from storage.recent import Place


class StorageError(Exception):
    """Base of every error of the storage layer."""


class StoreMissingError(StorageError):
    """There is no store in the folder, and nothing was given to make one from."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path}: there is no store here")
        self.path = path


class FormatVersionError(StorageError):
    """The store was written in another version of the format."""

    def __init__(self, path: Path, *, found: str, expected: str) -> None:
        super().__init__(f"{path}: has format version {found}; this program reads {expected}")
        self.path = path
        self.found = found
        self.expected = expected


class WrongClusterError(StorageError):
    """The store belongs to another cluster. Both ids are 32 bytes."""

    def __init__(self, path: Path, *, found: bytes, expected: bytes) -> None:
        super().__init__(
            f"{path}: belongs to cluster {found.hex()[:16]}…, not to {expected.hex()[:16]}…"
        )
        self.path = path
        self.found = found
        self.expected = expected


class DamagedStoreError(StorageError):
    """The store as a whole cannot be read: truncated, garbage, or a part is missing."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"{path}: damaged: {what}")
        self.path = path
        self.what = what


class DamagedBlockError(StorageError):
    """The block stored at `index` is not the one that was saved; a peer has a good copy."""

    def __init__(self, index: int, what: str) -> None:
        super().__init__(f"block {index} is damaged on disk: {what}")
        self.index = index
        self.what = what


class BlockNotFoundError(StorageError, LookupError):
    """The chain has no block at `index`; it ends at `last_index`."""

    def __init__(self, index: int, last_index: int) -> None:
        super().__init__(f"there is no block {index}; the chain ends at {last_index}")
        self.index = index
        self.last_index = last_index


class NoSpaceError(StorageError):
    """The disk is nearly full. Nothing was written: the same save may be tried again later."""

    def __init__(self, path: Path, *, free_bytes: int, needed_bytes: int) -> None:
        super().__init__(f"{path}: {free_bytes} bytes are free, {needed_bytes} are needed")
        self.path = path
        self.free_bytes = free_bytes
        self.needed_bytes = needed_bytes


class StorageFailedError(StorageError):
    """The disk or LMDB refused. After a failed write nothing is known: the process must end."""

    def __init__(self, path: Path, cause: BaseException) -> None:
        super().__init__(f"{path}: storage failed: {cause}")
        self.path = path
        self.cause = cause


class IndexUnusableError(StorageError):
    """The index is of another cluster or chain, or cannot be read: delete it and rebuild it."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path}: the index must be rebuilt: {why}")
        self.path = path
        self.why = why


class DuplicateTransactionError(StorageError):
    """One transaction id stands at two places of the chain, which the leader must never seal."""

    def __init__(self, transaction_id: bytes, *, first: Place, second: Place) -> None:
        super().__init__(
            f"transaction {transaction_id.hex()} is at block {first.index} position"
            f" {first.position} and at block {second.index} position {second.position}"
        )
        self.transaction_id = transaction_id
        self.first = first
        self.second = second
