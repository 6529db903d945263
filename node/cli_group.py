"""The class of all command groups: every error becomes one line on stderr and an exit code.

Relies on typer.
"""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from node.cli_errors import CommandError, ExitCode, print_error


class OneLineGroup(TyperGroup):
    """A group of commands whose errors are one line on stderr."""

    def main(self, *args: Any, **extra: Any) -> NoReturn:  # noqa: ANN401 - the base's signature
        """Run the command and leave the process with its exit code; Ctrl-C says nothing, as 130."""
        extra["standalone_mode"] = False
        try:
            code = super().main(*args, **extra)
        except CommandError as error:
            print_error(str(error))
            sys.exit(error.exit_code)
        except typer.TyperException as error:
            if message := error.format_message():  # none where the help was shown instead
                print_error(message)
            sys.exit(error.exit_code)
        except typer.Abort:
            print_error("aborted")
            sys.exit(ExitCode.INTERRUPTED)
        sys.exit(code if isinstance(code, int) else ExitCode.OK)
