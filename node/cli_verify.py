"""`bitnexus verify`: a chain on disk, its look-ups, the chain a node tells, and PostgreSQL.

Puts together what `node.audit` and `storage.checkpoint_compare` find out, and stops at the first
thing that is wrong. Relies on both.
"""

from __future__ import annotations

import asyncio
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from consensus.changes import ChangeKind
from consensus.membership import Genesis, GenesisError, load_genesis
from node.api.answers import time_text
from node.audit import Finding, MemberChange, audit_index, audit_store
from node.cli_errors import CommandError, ExitCode
from node.cli_output import print_table, progress_bar, say, write_json
from node.config import (
    CHAIN_FOLDER,
    GENESIS_FILE,
    INDEX_FOLDER,
    NODE_FILE,
    ConfigError,
    load_config,
)
from storage.chain import ChainStore
from storage.errors import (
    DamagedBlockError,
    DamagedStoreError,
    IndexUnusableError,
    StorageError,
    StoreMissingError,
)
from storage.index import IndexStore

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from consensus.block import Block
    from node.audit import Step

_READ_BLOCKS: Final = 1_000
_NUMBERS: Final = "blocks transactions"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of one comparison. Blocks 0 to `through` hold, but for the finding."""

    subject: str
    """chain, index, node or postgres."""
    where: str
    through: int
    transactions: int
    note: str = ""
    finding: Finding | None = None
    changes: tuple[MemberChange, ...] = ()
    """What the blocks that hold did to the membership."""


def verify_all(
    *,
    data_dir: Path | None,
    urls: Sequence[str],
    postgres_dsn: str | None,
    genesis_file: Path | None,
    timeout_s: float,
) -> list[Verdict]:
    """Verify the folder, if any, then the nodes, if any, until something is wrong.

    Raises:
        CommandError: something is missing or cannot be reached; wrong content is a finding.
    """
    verdicts: list[Verdict] = []
    if data_dir is not None:
        verdicts += verify_folder(data_dir, genesis_file=genesis_file, postgres_dsn=postgres_dsn)
    if urls and not any(verdict.finding for verdict in verdicts):
        from node.cli_verify_nodes import verify_nodes  # noqa: PLC0415 - brings the HTTP client

        genesis = None if genesis_file is None else _load_genesis(genesis_file)
        verdicts += verify_nodes(urls, genesis=genesis, timeout_s=timeout_s)
    return verdicts


def show_verdicts(verdicts: Sequence[Verdict], *, as_json: bool) -> None:
    """Show what was found.

    Raises:
        CommandError: something is wrong; it names the first bad index.
    """
    bad = next((verdict for verdict in verdicts if verdict.finding is not None), None)
    if as_json:
        write_json({"ok": bad is None, "verdicts": verdicts})
    else:
        rows = [_row(verdict) for verdict in verdicts]
        print_table(("what", "where", "blocks", "transactions", "verdict"), rows, right=_NUMBERS)
        for verdict in verdicts:
            _say_changes(verdict)
    if bad is not None:
        raise CommandError(f"{bad.where}: {bad.finding}", ExitCode.VERIFY_FAILED)


def _row(verdict: Verdict) -> tuple[str, ...]:
    words = "holds" if verdict.finding is None else f"does not hold at {verdict.finding.index}"
    if verdict.through < 0 and verdict.finding is None:
        words = verdict.note or "is empty"
    elif verdict.note:
        words = f"{words}, {verdict.note}"
    blocks, transactions = f"{verdict.through + 1:,}", f"{verdict.transactions:,}"
    return verdict.subject, verdict.where, blocks, transactions, words


def _say_changes(verdict: Verdict) -> None:
    """Who the members are, where that changed, and, loudly, where a lost quorum was given up."""
    if not verdict.changes:
        return
    members = ", ".join(verdict.changes[-1].members)
    blocks = ", ".join(f"{one.index} ({one.kind} {one.member})" for one in verdict.changes)
    say(f"members: {members}; changed in blocks {blocks} of {verdict.where}")
    for one in verdict.changes:
        if one.kind is ChangeKind.RECOVER:
            say(
                f"BREAK AT BLOCK {one.index} of {verdict.where}: at {time_text(one.timestamp_us)} "
                f"{one.member} went on alone, without the consent of the other members; "
                "what only they had recorded is not in this chain"
            )


def verify_folder(
    data_dir: Path, *, genesis_file: Path | None = None, postgres_dsn: str | None = None
) -> list[Verdict]:
    """Verify the chain in a node's data folder, its index, and PostgreSQL against it.

    The node may run. Without `genesis_file` the folder's own is trusted.

    Raises:
        CommandError: something is missing or cannot be reached; wrong content is a finding.
    """
    genesis = _load_genesis(_genesis_file(data_dir, genesis_file))
    try:
        chain = ChainStore.open(data_dir / CHAIN_FOLDER, readonly=True)
    except StoreMissingError as error:
        raise CommandError(_no_chain(data_dir), ExitCode.CONFIG) from error
    except DamagedBlockError as error:
        return [_unopened(data_dir, Finding(error.index, error.what))]
    except DamagedStoreError as error:
        return [_unopened(data_dir, Finding(0, error.what))]
    except StorageError as error:
        raise CommandError(str(error), ExitCode.DISK_FAILED) from error
    with closing(chain):
        verdicts = [_verify_chain(chain, data_dir, genesis)]
        if verdicts[-1].finding is None:
            verdicts.append(_verify_index(chain, data_dir))
        if verdicts[-1].finding is None and postgres_dsn is not None:
            verdicts.append(asyncio.run(_verify_postgres(chain, postgres_dsn)))
    return verdicts


def _genesis_file(data_dir: Path, given: Path | None) -> Path:
    """The genesis to trust: the one given, else the one the node itself would use."""
    if given is not None:
        return given
    if not (data_dir / NODE_FILE).exists():
        return data_dir / GENESIS_FILE
    try:
        return load_config(data_dir).genesis_file
    except ConfigError as error:
        raise CommandError(str(error), ExitCode.CONFIG) from error


def _load_genesis(file: Path) -> Genesis:
    try:
        return load_genesis(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CommandError(f"{file}: {error.strerror}", ExitCode.CONFIG) from error
    except (GenesisError, UnicodeDecodeError) as error:
        raise CommandError(f"{file}: {error}", ExitCode.CONFIG) from error


def _no_chain(data_dir: Path) -> str:
    if (data_dir / "cluster.toml").exists():
        return f"{data_dir} is the folder of a whole cluster: name one node's, {data_dir}/node1"
    return f"{data_dir} holds no chain: its node has never run"


def _unopened(data_dir: Path, finding: Finding) -> Verdict:
    where = str(data_dir / CHAIN_FOLDER)
    return Verdict(subject="chain", where=where, through=-1, transactions=0, finding=finding)


def _verify_chain(chain: ChainStore, data_dir: Path, genesis: Genesis) -> Verdict:
    where = str(data_dir / CHAIN_FOLDER)
    steps = audit_store(chain, genesis=genesis)
    try:
        return _walk("chain", where, steps, total=chain.last_index + 1)
    except StorageError as error:
        raise CommandError(str(error), ExitCode.DISK_FAILED) from error


def _verify_index(chain: ChainStore, data_dir: Path) -> Verdict:
    folder = data_dir / INDEX_FOLDER
    nothing = Verdict(subject="index", where=str(folder), through=-1, transactions=0)
    try:
        index = IndexStore.open(folder, cluster_id=chain.cluster_id, readonly=True)
    except (StoreMissingError, IndexUnusableError):
        # It is derived: its node makes it anew.
        return Verdict(
            subject="index",
            where=str(folder),
            through=-1,
            transactions=0,
            note="absent or of no use: its node rebuilds it",
        )
    except StorageError as error:
        raise CommandError(str(error), ExitCode.DISK_FAILED) from error
    with closing(index):
        if index.applied_index < 0:
            return nothing
        total = index.applied_index + 1
        try:
            return _walk("index", str(folder), audit_index(chain, index), total=total)
        except DamagedBlockError as error:
            raise CommandError(str(error), ExitCode.VERIFY_FAILED) from error
        except StorageError as error:
            raise CommandError(str(error), ExitCode.DISK_FAILED) from error


def _walk(subject: str, where: str, steps: Iterator[Step], *, total: int) -> Verdict:
    through, transactions, finding = -1, 0, None
    changes: list[MemberChange] = []
    with progress_bar(f"verify {subject}", total=total) as move:
        for step in steps:
            finding = step.finding
            if finding is None:
                through = step.index
                transactions += step.transactions
                changes += [] if step.change is None else [step.change]
                move(step.index + 1)
    return Verdict(
        subject=subject,
        where=where,
        through=through,
        transactions=transactions,
        finding=finding,
        changes=tuple(changes),
    )


class _SavedBlocks:
    """The blocks of a chain on disk, as the comparison with PostgreSQL reads them."""

    def __init__(self, chain: ChainStore) -> None:
        self._chain = chain

    async def committed_blocks(self, first: int, max_bytes: int) -> Sequence[Block]:
        """Blocks from `first` on. What PostgreSQL holds is committed, so all saved ones will do."""
        return self._chain.blocks(first, max_blocks=_READ_BLOCKS, max_bytes=max_bytes)


async def _verify_postgres(chain: ChainStore, dsn: str) -> Verdict:
    import psycopg  # noqa: PLC0415 - a fifth of a second that only this comparison needs

    from storage.checkpoint import (  # noqa: PLC0415 - as above
        CheckpointClusterError,
        CheckpointStore,
    )
    from storage.checkpoint_compare import compare  # noqa: PLC0415 - as above
    from storage.checkpoint_schema import CheckpointError  # noqa: PLC0415 - as above

    last_index = chain.last_index
    try:
        async with await CheckpointStore.connect(dsn, cluster_id=chain.cluster_id) as store:
            with progress_bar("verify PostgreSQL", total=last_index + 1) as move:
                found = await compare(
                    store,
                    _SavedBlocks(chain),
                    through=last_index,
                    on_block=lambda index: move(index + 1),
                )
    except CheckpointClusterError as error:
        raise CommandError(f"PostgreSQL: {error}", ExitCode.OTHER_CLUSTER) from error
    except (psycopg.Error, CheckpointError) as error:
        raise CommandError(f"PostgreSQL: {error}", ExitCode.POSTGRES) from error
    finding = None
    if found.difference is not None:
        prefix = f"block {found.difference.index}"
        what = str(found.difference).removeprefix(prefix).lstrip(",: ")
        if found.difference.index > chain.hard_state.commit_index:
            what += " (this node does not know this block to be committed: try another node)"
        finding = Finding(found.difference.index, what)
    behind = chain.hard_state.commit_index - found.checkpointed_index
    return Verdict(
        subject="postgres",
        where="PostgreSQL",
        through=found.through,
        transactions=found.transactions,
        note=f"{behind} blocks behind" if behind > 0 else "",
        finding=finding,
    )
