"""`bitnexus node recover --unsafe`: what it would do, and with `--yes` does.

The node must not run: its folder is locked meanwhile. The whole chain is audited first. Relies on
`node.recovery` for the step itself.
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from consensus.membership import GenesisError, genesis_block
from node.api.answers import time_text
from node.audit import audit_store
from node.cli_errors import CommandError, ExitCode
from node.cli_output import progress_bar, say, write_json
from node.cli_run import exit_code_of
from node.config import LOCK_FILE, ConfigError, load_config
from node.folder_lock import DataFolderInUseError, FolderLock
from node.identity import IdentityError
from node.recovery import RecoveryRefusedError, plan_recovery, recover
from node.standing import load_standing
from node.survivors import who_answers
from storage.chain import ChainStore
from storage.errors import StorageError, StoreMissingError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from consensus.block import Block
    from consensus.membership import Genesis, Member
    from node.recovery import Recovery


def recover_node(data_dir: Path, *, is_meant: bool, is_insisted: bool, as_json: bool) -> None:
    """Say what going on alone means for a stopped node; where `is_meant`, do it.

    While one of those that would be given up answers it is not done, unless `is_insisted`.

    Raises:
        CommandError: it is refused, or could not be done.
    """
    try:
        config = load_config(data_dir)
        with FolderLock(config.data_dir / LOCK_FILE):
            standing = load_standing(config)
            genesis = genesis_block(standing.genesis)
            chain = ChainStore.open(
                config.chain_dir, genesis=genesis, readonly=not is_meant, may_create=False
            )
            with closing(chain):
                _audit(chain, standing.genesis)
                recovery = plan_recovery(chain, standing.identity)
                alive = who_answers(recovery.given_up, genesis.hash)
                if is_meant and not is_insisted:
                    _refuse_while_any(alive)
                block = recover(chain, standing.identity, recovery) if is_meant else None
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
        write_json(_document(recovery, alive, block))
    else:
        _say_all(recovery, alive, block, data_dir)


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


def _document(
    recovery: Recovery, alive: Sequence[Member], block: Block | None
) -> dict[str, object]:
    return {
        "done": block is not None,
        "member": recovery.member.name,
        "last_term": recovery.last_term,
        "last_index": recovery.last_index,
        "last_hash": recovery.last_hash.hex(),
        "commit_index": recovery.commit_index,
        "given_up": [member.name for member in recovery.given_up],
        "answering": [member.name for member in alive],
        "new_term": recovery.new_term,
        "index": recovery.last_index + 1,
        "incarnation": None if block is None else block.hash.hex(),
    }


def _say_all(
    recovery: Recovery, alive: Sequence[Member], block: Block | None, data_dir: Path
) -> None:
    """What is, what becomes of it, and what comes next."""
    name, last = recovery.member.name, recovery.last_index
    given_up = _names(recovery.given_up)
    tail = last - recovery.commit_index
    say(f"{name} goes on alone, without the consent of {given_up}.")
    say(f"  last block      of term {recovery.last_term}, block {last}")
    say(f"                  {time_text(recovery.last_timestamp_us)}")
    say(f"                  {recovery.last_hash.hex()}")
    say(f"  committed       through block {recovery.commit_index}, as far as {name} knows")
    if tail:
        blocks = f"blocks {recovery.commit_index + 1} to {last}" if tail > 1 else f"block {last}"
        say(f"  becomes so      {blocks}, whether or not a majority ever had it")
    say(f"  lost            whatever {given_up} recorded beyond block {last},")
    say("                  also where a client holds a receipt for it")
    say(f"  given up        {given_up}: never again members under their keys, nor with")
    say("                  their folders; wipe them, then `bitnexus node init --join` and add them")
    say(f"  new incarnation begins with block {last + 1}; others cannot talk with it.")
    say("                  Should a majority of them run after all, there are two ledgers")
    if alive:
        say(f"  STILL ANSWERING {_names(alive)}")
    if block is None:
        say("Choose of all nodes that are left the one whose last block has the highest term, and")
        say("only among equals the longest chain: others may lack what clients hold receipts for.")
        say("Nothing was changed. To do it, once you know that the others are gone for good:")
        say(f"  bitnexus node recover --unsafe --yes --data-dir {data_dir}")
        return
    say(f"Done: block {block.index}, {block.hash.hex()}")
    say(f"next: bitnexus node run --data-dir {data_dir}")
