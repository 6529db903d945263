"""What the kernel has counted for processes: CPU time and memory of their own.

Relies on Linux's /proc. A process that ends while it is looked at counts as nothing.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_PROC: Final = Path("/proc")
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_UTIME, _STIME = 11, 12
"""Places in /proc/PID/stat after the name in brackets, which may hold anything (proc(5))."""
_ANON: Final = "RssAnon:"
_KIB_PER_MIB: Final = 1024


def with_children(pids: Iterable[int]) -> list[int]:
    """The processes and everything below them."""
    return [one for pid in pids for one in _tree(pid)]


def cpu_s(pids: Iterable[int]) -> float:
    """Seconds of user and system time that these processes have used."""
    ticks = 0
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            ticks += parse_cpu_ticks((_PROC / str(pid) / "stat").read_text(encoding="utf-8"))
    return ticks / _TICKS_PER_S


def own_memory_mib(pids: Iterable[int]) -> float:
    """Anonymous resident memory: their own, without mapped files and the page cache."""
    kib = 0
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            kib += parse_anonymous_kib((_PROC / str(pid) / "status").read_text(encoding="utf-8"))
    return kib / _KIB_PER_MIB


def parse_cpu_ticks(stat: str) -> int:
    """User and system time in a text of /proc/PID/stat, in clock ticks."""
    fields = stat.rpartition(")")[2].split()
    return int(fields[_UTIME]) + int(fields[_STIME])


def parse_anonymous_kib(status: str) -> int:
    """RssAnon in a text of /proc/PID/status; 0 where a process that has ended has none."""
    for line in status.splitlines():
        if line.startswith(_ANON):
            return int(line.removeprefix(_ANON).split()[0])
    return 0


def _tree(pid: int) -> Iterator[int]:
    yield pid
    with suppress(FileNotFoundError, ProcessLookupError):
        for task in (_PROC / str(pid) / "task").iterdir():
            for child in (task / "children").read_text(encoding="ascii").split():
                yield from _tree(int(child))
