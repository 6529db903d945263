"""`bitnexus node recover --unsafe`: what it would do, and with `--yes` does.

The node must not run: its folder is locked meanwhile. The whole chain is audited first. Relies on
`node.recovery` for the step itself.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from consensus.membership import GenesisError, genesis_block
from node.api.answers import time_text
from node.audit import audit_store
from node.cli_errors import CommandError, ExitCode
from node.cli_output import progress_bar, say, write_json
from node.cli_restore import open_backup, refuse_other_cluster, restore_chain, restore_errors
from node.cli_run import exit_code_of
from node.config import LOCK_FILE, ConfigError, load_config
from node.folder_lock import DataFolderInUseError, FolderLock
from node.identity import IdentityError
from node.recovery import RecoveryRefusedError, plan_recovery, recover
from node.staged import refuse_taken_folder, staged_folder
from node.standing import load_standing
from node.survivors import who_answers
from storage.chain import ChainStore
from storage.errors import StorageError, StoreMissingError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from consensus.block import Block
    from consensus.membership import Genesis, Member
    from node.config import NodeConfig
    from node.recovery import Recovery
    from node.standing import Standing


@dataclass(frozen=True, slots=True)
class Result:
    """What was planned and, where it was meant, done; `alive` are those that answer still."""

    recovery: Recovery
    alive: tuple[Member, ...]
    block: Block | None


@dataclass(frozen=True, slots=True)
class Wish:
    """Whether it is to be done, and also while others answer."""

    is_meant: bool
    is_insisted: bool


def recover_node(data_dir: Path, wish: Wish, *, backup: Path | None, as_json: bool) -> None:
    """Say what going on alone means for a stopped node; where it is meant, do it.

    While one of those that would be given up answers it is not done, unless that is insisted on.
    With a `backup` its blocks take the place of the node's own chain, which is gone.

    Raises:
        CommandError: it is refused, or could not be done.
    """
    try:
        config = load_config(data_dir)
        with FolderLock(config.data_dir / LOCK_FILE):
            standing = load_standing(config)
            if backup is None:
                result = _go_on(config, standing, wish)
            else:
                result = _go_on_from(backup, config, standing, wish)
    except RecoveryRefusedError as error:
        raise CommandError(str(error), ExitCode.REFUSED) from error
    except StoreMissingError as error:
        detail = f"{data_dir} holds no chain: there is nothing to go on with"
        raise CommandError(detail, ExitCode.CONFIG) from error
    except (
        ConfigError,
        GenesisError,
        IdentityError,
        DataFolderInUseError,
        StorageError,
        OSError,
    ) as error:
        raise CommandError(str(error), exit_code_of(error)) from error
    if as_json:
        write_json(_document(result))
    else:
        _say_all(result, data_dir, backup)


def _go_on(config: NodeConfig, standing: Standing, wish: Wish) -> Result:
    """Plan it with the node's own chain, and where it is meant do it."""
    genesis = genesis_block(standing.genesis)
    chain = ChainStore.open(
        config.chain_dir, genesis=genesis, readonly=not wish.is_meant, may_create=False
    )
    with closing(chain):
        _audit(chain, standing.genesis)
        return _go_on_with(chain, standing, wish)


def _go_on_from(backup: Path, config: NodeConfig, standing: Standing, wish: Wish) -> Result:
    """As `_go_on`, with a backup's blocks.

    The chain comes to be together with the block that begins the new incarnation. So there never
    is one under this key in the incarnation that it has forgotten its votes of.
    """
    source = open_backup(backup)
    refuse_other_cluster(source, genesis_block(standing.genesis).hash.hex())
    with restore_errors(source):
        refuse_taken_folder(config.chain_dir)
        if not wish.is_meant:
            with source.open() as chain:
                _audit(chain, standing.genesis)
                return _go_on_with(chain, standing, wish)
        part = config.chain_dir.name
        contents = {part, f"{part}.new"}
        with staged_folder(config.chain_dir, contents=contents, part=part) as building:
            restore_chain(source, building / part)
            with closing(ChainStore.open(building / part)) as chain:
                return _go_on_with(chain, standing, wish)


def _go_on_with(chain: ChainStore, standing: Standing, wish: Wish) -> Result:
    """A restored chain is taken up only once the new incarnation has begun on it.

    Who lost the chain may be mistaken: then the member itself answers, from somewhere else.
    """
    is_restored = chain.is_restored
    recovery = plan_recovery(chain, standing.identity, is_restored=is_restored)
    asked = recovery.before.members if is_restored else recovery.given_up
    alive = who_answers(asked, chain.cluster_id)
    if not wish.is_meant:
        return Result(recovery, alive, None)
    if not wish.is_insisted:
        _refuse_while_any(alive)
    block = recover(chain, standing.identity, recovery)
    if is_restored:
        chain.take_up()
    return Result(recovery, alive, block)


def _audit(chain: ChainStore, genesis: Genesis) -> None:
    """Nobody else is left to repair a damaged chain from, or to say what it should be."""
    with progress_bar("verify the chain", total=chain.last_index + 1) as move:
        for step in audit_store(chain, genesis=genesis):
            if step.finding is not None:
                raise CommandError(f"the chain does not hold: {step.finding}", ExitCode.CORRUPT)
            move(step.index + 1)


def _refuse_while_any(alive: Sequence[Member]) -> None:
    if alive:
        raise RecoveryRefusedError(
            f"{_names(alive)} still answers: stop what is left, and see whether a majority is "
            "(--although-they-answer does it all the same)"
        )


def _names(members: Sequence[Member]) -> str:
    return ", ".join(member.name for member in members)


def _document(result: Result) -> dict[str, object]:
    recovery, block = result.recovery, result.block
    return {
        "done": block is not None,
        "member": recovery.member.name,
        "last_term": recovery.last_term,
        "last_index": recovery.last_index,
        "last_hash": recovery.last_hash.hex(),
        "commit_index": recovery.commit_index,
        "given_up": [member.name for member in recovery.given_up],
        "answering": [member.name for member in result.alive],
        "new_term": recovery.new_term,
        "index": recovery.last_index + 1,
        "incarnation": None if block is None else block.hash.hex(),
    }


def _say_all(result: Result, data_dir: Path, backup: Path | None) -> None:
    """What is, what becomes of it, and what comes next."""
    recovery, block = result.recovery, result.block
    name, last = recovery.member.name, recovery.last_index
    given_up = _names(recovery.given_up)
    tail = last - recovery.commit_index
    say(f"{name} goes on alone, without the consent of {given_up or 'anybody'}.")
    say(f"  last block      of term {recovery.last_term}, block {last}")
    say(f"                  {time_text(recovery.last_timestamp_us)}")
    say(f"                  {recovery.last_hash.hex()}")
    say(f"  committed       through block {recovery.commit_index}, as far as {name} knows")
    if tail:
        blocks = f"blocks {recovery.commit_index + 1} to {last}" if tail > 1 else f"block {last}"
        say(f"  becomes so      {blocks}, whether or not a majority ever had it")
    losers = "anybody" if backup is not None else given_up
    say(f"  lost            whatever {losers} recorded beyond block {last},")
    say("                  also where a client holds a receipt for it")
    if given_up:
        say(f"  given up        {given_up}: never again members under their keys, nor with")
        say("                  their folders; wipe them, `bitnexus node init --join` and add them")
    say(f"  new incarnation begins with block {last + 1}; others cannot talk with it.")
    say("                  Should a majority of them run after all, there are two ledgers")
    if result.alive:
        say(f"  STILL ANSWERING {_names(result.alive)}")
    if block is None:
        if backup is None:
            say("Choose of all nodes that are left the one whose last block has the highest term,")
            say("and only among equals the longest chain: others may lack what clients hold")
            say("receipts for.")
        else:
            say("A node that still has its chain, or a later backup, has lost less than this one.")
        say("Nothing was changed. To do it, once you know that the others are gone for good:")
        source = "" if backup is None else f" --from-backup {backup}"
        say(f"  bitnexus node recover --unsafe --yes --data-dir {data_dir}{source}")
        return
    say(f"Done: block {block.index}, {block.hash.hex()}")
    say(f"next: bitnexus node run --data-dir {data_dir}")
