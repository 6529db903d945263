"""A backup: the committed blocks of one chain in a folder of their own, and what they should be.

    chain/data.mdb   the blocks, as every chain is stored; nothing of votes, and no key
    genesis.json     as the first block has it, so that `verify` and `export` work on a backup too
    manifest.json    which cluster, how far, and size and SHA-256 of the other two; written last

Made block by block rather than by LMDB's own copy: committed blocks never change, so that a node
that runs is neither stopped nor held to old pages by a long read, each block is verified before it
counts as backed up, and neither the uncommitted tail nor the votes come along. Relies on
`node.rebuild`, and on the index of a data folder for what else is known to be committed.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import closing
from typing import TYPE_CHECKING, Final

import msgspec

from consensus.membership import dump_genesis, genesis_of
from node.config import CHAIN_FOLDER, GENESIS_FILE, INDEX_FOLDER
from node.rebuild import ChainBuilder, Head, roster_of
from node.staged import staged_folder
from storage.chain import ChainStore
from storage.errors import IndexUnusableError, StoreMissingError
from storage.index import IndexStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from consensus.block import Block

MANIFEST_FILE: Final = "manifest.json"
FORMAT: Final = 1
_DATA_FILE: Final = f"{CHAIN_FOLDER}/data.mdb"
_LOCK_FILE: Final = "lock.mdb"
_FILES: Final = (_DATA_FILE, GENESIS_FILE)
_CONTENTS: Final = frozenset({CHAIN_FOLDER, f"{CHAIN_FOLDER}.new", GENESIS_FILE, MANIFEST_FILE})
_READ_BLOCKS: Final = 1_000
_READ_BYTES: Final = 4 << 20
_HASHED_BYTES: Final = 1 << 20


class BackupError(Exception):
    """A folder is no backup that could be used; the message says which and why."""


class BackupFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of a backup, by its path within; the hash in hex."""

    name: str
    bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a backup holds: blocks 0 to `through` of one cluster. Hashes are in hex."""

    format: int
    cluster: str
    cluster_id: str
    incarnation: str
    through: int
    hash: str
    transactions: int
    created: str
    """When it was made, in RFC 3339, by the clock of the machine that made it."""
    files: list[BackupFile]

    @property
    def head(self) -> Head:
        """The chain that is in it."""
        return Head(bytes.fromhex(self.cluster_id), self.through, bytes.fromhex(self.hash))


def committed_index(chain: ChainStore, data_dir: Path) -> int:
    """How far the blocks of a data folder are known to be committed.

    The hard state says it as of the last save. The index holds committed blocks alone and is
    written after that: what it has come to is committed too, as for a node that starts.

    Raises:
        StorageError: either cannot be read.
    """
    known = chain.hard_state.commit_index
    try:
        index = IndexStore.open(data_dir / INDEX_FOLDER, cluster_id=chain.cluster_id, readonly=True)
    except (StoreMissingError, IndexUnusableError):
        return known  # it is derived: its node makes it anew
    with closing(index):
        applied, applied_hash = index.applied_index, index.applied_hash
    is_of_chain = 0 <= applied <= chain.last_index and chain.header(applied).hash == applied_hash
    return max(known, applied) if is_of_chain else known


def blocks_through(chain: ChainStore, first: int, last: int) -> Iterator[Block]:
    """The blocks `first` to `last` of a chain on disk, in order.

    Raises:
        DamagedBlockError, StorageError: one cannot be read.
    """
    while first <= last:
        count = min(_READ_BLOCKS, last - first + 1)
        blocks = chain.blocks(first, max_blocks=count, max_bytes=_READ_BYTES)
        assert blocks, "committed blocks are there"
        yield from blocks
        first += len(blocks)


def make_backup(
    chain: ChainStore, head: Head, output: Path, *, created: str, on_block: Callable[[int], None]
) -> Manifest:
    """Back up the blocks of `chain` through `head`; `on_block` hears each index.

    Raises:
        FolderTakenError: there is something at `output`.
        DataFolderInUseError: another process makes the same backup.
        ChainRefusedError, StorageError: a block does not hold, or cannot be read or saved.
        OSError: the folder cannot be written.
    """
    with staged_folder(output, contents=_CONTENTS) as building:
        with ChainBuilder(building / CHAIN_FOLDER, head) as builder:
            for block in blocks_through(chain, 0, head.index):
                builder.add(block)
                on_block(block.index)
            builder.finish()
        (building / CHAIN_FOLDER / _LOCK_FILE).unlink()
        with closing(ChainStore.open(building / CHAIN_FOLDER, readonly=True)) as made:
            genesis, incarnation = genesis_of(made.block(0)), roster_of(made).incarnation
        (building / CHAIN_FOLDER / _LOCK_FILE).unlink()
        _write(building / GENESIS_FILE, dump_genesis(genesis).encode())
        manifest = Manifest(
            format=FORMAT,
            cluster=genesis.name,
            cluster_id=head.cluster_id.hex(),
            incarnation=incarnation.hex(),
            through=head.index,
            hash=head.hash.hex(),
            transactions=builder.transactions,
            created=created,
            files=[_measure(building, name) for name in _FILES],
        )
        text = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
        _write(building / MANIFEST_FILE, text + b"\n")
    return manifest


def check_backup(folder: Path) -> Manifest:
    """Read the manifest, and compare every file with it before anything else reads it.

    Whether the blocks hold is for `ChainBuilder` to say.

    Raises:
        BackupError: it is no backup, of another version, or not as it was made.
        OSError: it cannot be read.
    """
    try:
        manifest = msgspec.json.decode((folder / MANIFEST_FILE).read_bytes(), type=Manifest)
        head = manifest.head
    except FileNotFoundError as error:
        raise BackupError(f"{folder} is no backup: it has no {MANIFEST_FILE}") from error
    except ValueError as error:
        raise BackupError(f"{folder / MANIFEST_FILE}: {error}") from error
    if manifest.format != FORMAT:
        detail = f"is of format {manifest.format}; this program reads {FORMAT}"
        raise BackupError(f"{folder / MANIFEST_FILE}: {detail}")
    if head.index < 0 or sorted(_FILES) != sorted(file.name for file in manifest.files):
        raise BackupError(f"{folder / MANIFEST_FILE}: describes no backup")
    for expected in manifest.files:
        try:
            found = _measure(folder, expected.name)
        except FileNotFoundError as error:
            raise BackupError(f"{folder / expected.name} is missing") from error
        if found != expected:
            detail = f"has {found.bytes} bytes and SHA-256 {found.sha256}"
            manifest_says = f"the manifest has {expected.bytes} and {expected.sha256}"
            raise BackupError(f"{folder / expected.name} {detail}; {manifest_says}")
    return manifest


def _measure(folder: Path, name: str) -> BackupFile:
    digest = hashlib.sha256()
    size_bytes = 0
    with (folder / name).open("rb") as file:
        while chunk := file.read(_HASHED_BYTES):
            digest.update(chunk)
            size_bytes += len(chunk)
    return BackupFile(name, size_bytes, digest.hexdigest())


def _write(file: Path, content: bytes) -> None:
    with file.open("xb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
