"""The one error of the supervisor: a line for a person and an exit code for a script."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from node.cli_errors import ExitCode


class ClusterError(Exception):
    """A local cluster cannot be started. `details` are further lines, such as the end of a log."""

    def __init__(self, message: str, code: ExitCode, *, details: tuple[str, ...] = ()) -> None:
        """Say in `message`, one line, what is wrong and what to do about it."""
        super().__init__(message)
        self.code = code
        self.details = details
