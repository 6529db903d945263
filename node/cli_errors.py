"""How every command ends: its exit code, and its one line of error on stderr. Relies on nothing."""

from __future__ import annotations

import sys
from enum import IntEnum, unique
from typing import Final


@unique
class ExitCode(IntEnum):
    """What a script can tell from the exit code of `bitnexus`. The numbers never change meaning."""

    OK = 0
    FAILED = 1
    """Anything without a code of its own."""
    USAGE = 2
    """An unknown command or option, or a value that is none."""
    CONFIG = 3
    """node.toml, genesis.json or identity.key is absent or wrong, or they do not fit together."""
    PORT_IN_USE = 4
    """An HTTP or peer port is taken, or the address is not this machine's."""
    FOLDER_IN_USE = 5
    """Another process runs on this data folder."""
    FOLDER_UNWRITABLE = 6
    """The data folder cannot be made or written."""
    FOLDER_FOREIGN = 7
    """The folder has content, and it is not what this command makes."""
    OTHER_SHAPE = 8
    """The folder holds a cluster of another size or of other addresses."""
    OTHER_CLUSTER = 9
    """Files of different clusters are in one folder, or a database holds another cluster."""
    INSECURE_HTTP = 10
    """HTTP on an address that others reach, without `--insecure-http`."""
    CORRUPT = 11
    """The chain is damaged, or a rule of the protocol was broken."""
    DISK_FAILED = 12
    """The disk refused a write or a read."""
    NO_LEADER = 13
    """No leader within the time allowed."""
    POSTGRES = 14
    """PostgreSQL cannot be started or reached."""
    UNREACHABLE = 15
    """No node answers at any address given, or none of them can do it now."""
    REFUSED = 16
    """The ledger refused: bad input, or the id is taken by other content."""
    NOT_FOUND = 17
    """There is no such block or member, or the transaction is not committed."""
    UNKNOWN_FATE = 18
    """No answer in time: it may be recorded, or the cluster changed. Ask again with the same id, or
    look at the members."""
    VERIFY_FAILED = 19
    """`verify` found something wrong, or what a chain should be restored from does not hold."""
    OPTIMISED = 20
    """Started under `python -O`, which removes the assertions that guard the ledger."""
    ALREADY_THERE = 21
    """A file that must not be overwritten is there."""
    INPUT = 22
    """An input file is absent or a line of it is no transaction."""
    LOST_CHAIN = 23
    """The chain of a node that has run before is gone: its identity must not run again."""
    CHANGE_REFUSED = 24
    """The cluster does not make this change of its members, now or ever; the message says why."""
    NOT_PROMOTED = 25
    """`--wait-timeout` is over: the new member was added and does not vote yet."""
    INSECURE_CLIENTS = 26
    """A client port for everybody on an address that others reach, without `--insecure-clients`."""
    INTERRUPTED = 130
    """Stopped by Ctrl-C."""


NO_INDEX: Final = "is neither a block's index, counted from 0, nor latest"
"""What is said of what should name a block and does not."""


class CommandError(Exception):
    """Ends a command with one line on stderr and `exit_code`."""

    def __init__(self, message: str, exit_code: ExitCode) -> None:
        """Keep the message as one line, whatever the cause put into it."""
        super().__init__(" ".join(message.split()))
        self.exit_code = exit_code


def print_error(message: str) -> None:
    """Write one line on stderr."""
    sys.stderr.write(f"error: {printable(' '.join(message.split()))}\n")


def printable(text: str) -> str:
    """The text with what a terminal might obey written as an escape: others may have chosen it."""
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )
