"""Where a restored chain comes from: a backup, or PostgreSQL alone; and the node made of it.

Both give committed blocks, and neither remembers a member's votes. So what is made is a new node,
with a key and a name of its own, which has to be added as any other; it need only fetch what came
after. Relies on `node.rebuild` for every rule.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing, closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from consensus.block import InvalidBlockError
from consensus.membership import GenesisError, genesis_of
from node.backup import BackupError, blocks_through, check_backup
from node.cli_errors import CommandError, ExitCode
from node.cli_init import Introduction, init_restored, refuse_taken
from node.cli_output import progress_bar
from node.cli_run import exit_code_of
from node.config import CHAIN_FOLDER
from node.folder_lock import DataFolderInUseError
from node.rebuild import ChainBuilder, ChainRefusedError, Head, roster_of
from node.staged import FolderTakenError
from node.standing import Invitation
from storage.chain import ChainStore
from storage.errors import DamagedBlockError, DamagedStoreError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from consensus.membership import Member
    from node.backup import Manifest
    from node.cli_init import NewNode


class Source(Protocol):
    """Where the blocks come from."""

    @property
    def where(self) -> str:
        """What a person calls it."""

    @property
    def head(self) -> Head:
        """How far they go."""

    def copy_to(self, builder: ChainBuilder, on_block: Callable[[int], None]) -> None:
        """Give all of them to the builder, in order."""


@dataclass(frozen=True, slots=True)
class BackupSource:
    """A backup whose files are as its manifest has them."""

    folder: Path
    manifest: Manifest

    @property
    def where(self) -> str:
        """Its folder."""
        return str(self.folder)

    @property
    def head(self) -> Head:
        """What the manifest says."""
        return self.manifest.head

    @contextmanager
    def open(self) -> Iterator[ChainStore]:
        """The backup's chain; raises ChainRefusedError where its end is not the manifest's."""
        head = self.head
        with closing(ChainStore.open(self.folder / CHAIN_FOLDER, readonly=True)) as chain:
            last = chain.last_index
            if (chain.cluster_id, last, chain.header(last).hash) != (
                head.cluster_id,
                head.index,
                head.hash,
            ):
                raise ChainRefusedError(last, "the manifest has another end of the chain")
            yield chain

    def copy_to(self, builder: ChainBuilder, on_block: Callable[[int], None]) -> None:
        """Read the backup's chain."""
        with self.open() as chain:
            for block in blocks_through(chain, 0, self.head.index):
                builder.add(block)
                on_block(block.index)


@dataclass(frozen=True, slots=True)
class PostgresSource:
    """The checkpoints in a PostgreSQL, as far as they went when it was first looked at."""

    dsn: str
    head: Head

    @property
    def where(self) -> str:
        """Never the connection string, which may hold a password."""
        return "PostgreSQL"

    def copy_to(self, builder: ChainBuilder, on_block: Callable[[int], None]) -> None:
        """Read all rows in one snapshot."""
        from storage.checkpoint_read import (  # noqa: PLC0415 - brings psycopg
            open_checkpoints,
            stored_blocks,
        )

        async def work() -> None:
            async with (
                await open_checkpoints(self.dsn) as store,
                aclosing(stored_blocks(store, through=self.head.index)) as blocks,
            ):
                async for block in blocks:
                    builder.add(block)
                    on_block(block.index)

        with _postgres_errors():
            asyncio.run(work())


def open_backup(folder: Path) -> BackupSource:
    """A backup, once its files have been compared with its manifest.

    Raises:
        CommandError: it cannot be used.
    """
    try:
        return BackupSource(folder, check_backup(folder))
    except BackupError as error:
        raise CommandError(str(error), ExitCode.VERIFY_FAILED) from error
    except OSError as error:
        raise CommandError(f"{folder}: {error.strerror}", ExitCode.INPUT) from error


def open_postgres(dsn: str) -> PostgresSource:
    """The checkpoints of a database, as far as they go now.

    Raises:
        CommandError: it cannot be reached, or holds none.
    """
    from storage.checkpoint_read import open_checkpoints  # noqa: PLC0415 - as above
    from storage.checkpoint_schema import CheckpointSchemaError  # noqa: PLC0415 - brings psycopg

    async def look() -> Head:
        async with await open_checkpoints(dsn) as store:
            progress = await store.progress()
            if progress is None:
                raise CheckpointSchemaError("the database holds no checkpoints yet")
            return Head(store.cluster_id, progress.index, progress.hash)

    with _postgres_errors():
        return PostgresSource(dsn, asyncio.run(look()))


def refuse_other_cluster(source: Source, cluster_id: str | None) -> None:
    """Raise CommandError where the source is of another cluster than was meant, if any was."""
    found = source.head.cluster_id.hex()
    if cluster_id is not None and found != cluster_id.lower():
        detail = f"{source.where} is of cluster {found}, not {cluster_id}"
        raise CommandError(detail, ExitCode.OTHER_CLUSTER)


def make_restored(new: NewNode, source: Source, cluster: Introduction | None) -> MadeNode:
    """Make the folder of a new node whose chain begins with the source's blocks.

    Without a running `cluster` to join, it is told who the members were by those blocks.

    Raises:
        CommandError: nothing was made.
    """
    if cluster is not None:
        refuse_taken(new, cluster.invitation)
    told: list[Introduction] = []

    def fill(path: Path) -> Introduction:
        restore_chain(source, path)
        told.append(cluster or _introduction(path, source.head))
        return told[0]

    with restore_errors(source):
        member = init_restored(new, fill)
    return MadeNode(member, told[0])


@dataclass(frozen=True, slots=True)
class MadeNode:
    """A new node, and what it was told of its cluster."""

    member: Member
    cluster: Introduction


def restore_chain(source: Source, path: Path) -> None:
    """Make the chain at `path`, where there is none; for `restore_errors`, which says what of it.

    What is left at `path` by an error is of no use.
    """
    head = source.head
    with (
        progress_bar(f"restore from {source.where}", total=head.index + 1) as move,
        ChainBuilder(path, head) as builder,
    ):
        source.copy_to(builder, lambda index: move(index + 1))
        builder.finish()


@contextmanager
def restore_errors(source: Source) -> Iterator[None]:
    """Word what may go wrong while a chain is restored; raises CommandError."""
    try:
        yield
    except (ChainRefusedError, DamagedBlockError, DamagedStoreError) as error:
        detail = f"{source.where} does not hold: {error}"
        raise CommandError(detail, ExitCode.VERIFY_FAILED) from error
    except (InvalidBlockError, GenesisError) as error:
        raise CommandError(
            f"{source.where} does not hold: block 0: {error}", ExitCode.VERIFY_FAILED
        ) from error
    except FolderTakenError as error:
        raise CommandError(str(error), ExitCode.ALREADY_THERE) from error
    except (DataFolderInUseError, StorageError, OSError) as error:
        raise CommandError(str(error), exit_code_of(error)) from error


def _introduction(path: Path, head: Head) -> Introduction:
    with closing(ChainStore.open(path, readonly=True)) as chain:
        roster = roster_of(chain)
        genesis = genesis_of(chain.block(0))
    invitation = Invitation(roster.incarnation, head.index, roster.latest.members)
    return Introduction(genesis, invitation)


@contextmanager
def _postgres_errors() -> Iterator[None]:
    import psycopg  # noqa: PLC0415 - for those commands alone that need it

    from storage.checkpoint_read import StoredBlockError  # noqa: PLC0415 - as above
    from storage.checkpoint_schema import CheckpointError  # noqa: PLC0415 - as above

    try:
        yield
    except StoredBlockError as error:
        raise ChainRefusedError(error.index, error.what) from error
    except (psycopg.Error, CheckpointError) as error:
        raise CommandError(f"PostgreSQL: {error}", ExitCode.POSTGRES) from error
