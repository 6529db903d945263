"""`bitnexus backup`: a data folder's committed blocks, copied while its node runs or not.

Relies on `node.backup`.
"""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from node.backup import committed_index, make_backup
from node.cli_errors import CommandError, ExitCode
from node.cli_output import progress_bar, say, write_json
from node.cli_run import exit_code_of
from node.config import CHAIN_FOLDER
from node.folder_lock import DataFolderInUseError
from node.rebuild import ChainRefusedError, Head
from node.staged import FolderTakenError, refuse_taken_folder
from storage.chain import ChainStore
from storage.errors import StorageError, StoreMissingError

if TYPE_CHECKING:
    from pathlib import Path

    from node.backup import Manifest


def back_up(data_dir: Path, output: Path, *, as_json: bool) -> None:
    """Make the backup and say what is in it.

    Raises:
        CommandError: there is none to be made; nothing is at `output` that passes for one.
    """
    try:
        refuse_taken_folder(output)
        with closing(ChainStore.open(data_dir / CHAIN_FOLDER, readonly=True)) as chain:
            manifest = _copy(chain, data_dir, output)
    except FolderTakenError as error:
        raise CommandError(str(error), ExitCode.ALREADY_THERE) from error
    except StoreMissingError as error:
        raise CommandError(f"{data_dir} holds no chain", ExitCode.CONFIG) from error
    except ChainRefusedError as error:
        raise CommandError(f"the chain does not hold: {error}", ExitCode.CORRUPT) from error
    except (DataFolderInUseError, StorageError, OSError) as error:
        raise CommandError(str(error), exit_code_of(error)) from error
    if as_json:
        write_json({"folder": str(output.absolute()), "manifest": manifest})
        return
    size_bytes = sum(file.bytes for file in manifest.files)
    say(f"{output} holds {manifest.cluster} through block {manifest.through}, {manifest.hash}")
    say(f"      {manifest.transactions:,} transactions, {size_bytes:,} bytes, every block verified")


def _copy(chain: ChainStore, data_dir: Path, output: Path) -> Manifest:
    through = committed_index(chain, data_dir)
    head = Head(chain.cluster_id, through, chain.header(through).hash)
    created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    with progress_bar("back up", total=through + 1) as move:
        return make_backup(
            chain, head, output, created=created, on_block=lambda index: move(index + 1)
        )
