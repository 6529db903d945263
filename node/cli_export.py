"""`bitnexus export`: the committed chain of a data folder as JSON lines.

Relies on `node.export`.
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from node.backup import committed_index
from node.cli_errors import CommandError, ExitCode
from node.cli_output import progress_bar, say, write_json
from node.cli_run import exit_code_of
from node.config import CHAIN_FOLDER
from node.export import ExportError, What, export
from storage.chain import ChainStore
from storage.errors import StorageError, StoreMissingError

if TYPE_CHECKING:
    from pathlib import Path


def export_chain(
    data_dir: Path, output: Path, *, what: str, may_resume: bool, as_json: bool
) -> None:
    """Write the file, and say how much was written now.

    Raises:
        CommandError: it is refused, or could not be done; what was written stays to be resumed.
    """
    try:
        with closing(ChainStore.open(data_dir / CHAIN_FOLDER, readonly=True)) as chain:
            through = committed_index(chain, data_dir)
            with progress_bar(f"export {what}", total=through + 1) as move:
                lines = export(
                    chain,
                    through,
                    output,
                    what=What(what),
                    may_resume=may_resume,
                    on_block=lambda index: move(index + 1),
                )
    except FileExistsError as error:
        detail = f"{output} is there already: nothing was changed; --resume goes on with it"
        raise CommandError(detail, ExitCode.ALREADY_THERE) from error
    except ExportError as error:
        raise CommandError(str(error), ExitCode.REFUSED) from error
    except StoreMissingError as error:
        raise CommandError(f"{data_dir} holds no chain", ExitCode.CONFIG) from error
    except (StorageError, OSError) as error:
        raise CommandError(str(error), exit_code_of(error)) from error
    if as_json:
        write_json({"file": str(output.absolute()), "through": through, "lines": lines})
    else:
        say(f"{output} holds all {what} through block {through}; {lines:,} lines were written now")
