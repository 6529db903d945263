"""Become a supervised program: the last steps of a child process before it runs its program.

A file of its own that needs nothing but the standard library, because `cluster.process` runs it as
a script in a fresh interpreter (some 10 ms): a process with threads must not run Python between
fork and exec. Called as

    child.py PARENT_PID PROGRAM ARGUMENT...

The death signal exists on Linux alone; elsewhere the program starts without it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def become(parent_pid: int, program: list[str]) -> None:
    """Tie this process's life to its parent's and run `program`. Does not return.

    Raises:
        OSError: the kernel refuses, or there is no such program.
        SystemExit: the parent is gone already.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent_pid:
        # The parent ended before the line above: its death will not be told again.
        raise SystemExit(1)
    os.execv(program[0], program)  # noqa: S606 - no shell is what is wanted


if __name__ == "__main__":
    become(int(sys.argv[1]), sys.argv[2:])
