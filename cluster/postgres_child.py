"""Become PostgreSQL: the last steps of a child process before it runs one of its programs.

A file of its own that needs nothing but the standard library, because `cluster.postgres` runs it
as a script, in a fresh interpreter: between fork and exec of a process with threads nothing of
this could be done safely. Called as

    postgres_child.py PARENT_PID UID GID DEATH_SIGNAL PROGRAM ARGUMENT...

Works on Linux alone.
"""

from __future__ import annotations

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1


def become(parent_pid: int, uid: int, gid: int, death_signal: int, program: list[str]) -> None:
    """Take the identity `uid` and `gid`, tie the life to the parent's, and run `program`.

    `death_signal` comes as soon as the parent ends, however it ends. Does not return. Raises
    OSError where the kernel refuses, and SystemExit where the parent is gone already.
    """
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    os.umask(0o077)
    # After the change of identity, which clears it; an exec keeps it. See prctl(2).
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, death_signal) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent_pid:
        # The parent ended before the line above: its death will not be told again.
        raise SystemExit(1)
    os.execv(program[0], program)  # noqa: S606 - no shell is what is wanted


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:5]]
    become(numbers[0], numbers[1], numbers[2], numbers[3], sys.argv[5:])
