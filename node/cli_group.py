"""The class of all command groups: every error becomes one line on stderr and an exit code.

Relies on typer.
"""

from __future__ import annotations

import re
import sys
from typing import Any, Final, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from node.cli_errors import NO_INDEX, CommandError, ExitCode, print_error

_NEGATIVE: Final = re.compile(r"-[0-9]+")


class IndexCommand(TyperCommand):
    """A command whose argument is a block's index: a negative one is no option that is unknown."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - the base's signature
        """Read the arguments; raises CommandError for a negative index."""
        given = list(args)  # the base takes out what it has read
        try:
            return super().parse_args(ctx, args)
        except typer.TyperException as error:
            option = getattr(error, "option_name", "")
            for text in filter(_NEGATIVE.fullmatch, given):
                if option and text.startswith(option):
                    raise CommandError(f"{text!r} {NO_INDEX}", ExitCode.USAGE) from error
            raise


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
