"""What a run was measured on: the machine, the libraries, the commit.

Relies on Linux's /proc and, for the commit, on git where the project is a clone.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Final

import lmdb
import zmq

from cluster.bench.result import Machine
from node import VERSION

UNKNOWN: Final = "unknown"
_ROOT: Final = Path(__file__).resolve().parents[2]
_PACKAGES: Final = (
    "httptools",
    "lmdb",
    "msgspec",
    "psycopg",
    "PyNaCl",
    "pyzmq",
    "uvicorn",
    "uvloop",
)
_KIB_PER_MIB: Final = 1024


def look_at_machine(folder: Path) -> Machine:
    """This machine, and the file system that `folder` is on."""
    cpu_info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    mounts = Path("/proc/mounts").read_text(encoding="utf-8")
    memory = _value_of(Path("/proc/meminfo").read_text(encoding="ascii"), "MemTotal")
    return Machine(
        cpu=_value_of(cpu_info, "model name"),
        cores=len(os.sched_getaffinity(0)),
        memory_mib=int(memory.split()[0]) // _KIB_PER_MIB,
        kernel=platform.release(),
        disk=find_file_system(mounts, folder.resolve()),
    )


def look_at_versions() -> dict[str, str]:
    """This project, Python, and what carries the load."""
    versions = {"bitnexus": VERSION, "python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in _PACKAGES}
    versions["liblmdb"] = ".".join(map(str, lmdb.version()))
    versions["libzmq"] = zmq.zmq_version()
    return versions


def look_at_commit() -> str:
    """The commit that is checked out, with "+" where files were changed since."""
    command = ("git", "-C", str(_ROOT), "describe", "--always", "--abbrev=40", "--dirty=+")
    try:
        found = subprocess.run(
            (*command, "--exclude=*"), capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return UNKNOWN
    return found.stdout.strip()


def find_file_system(mounts: str, folder: Path) -> str:
    """The type and the device of the mount that holds a folder, in a text of /proc/mounts."""
    best = ("", UNKNOWN)
    for line in mounts.splitlines():
        device, point, kind = line.split()[:3]
        if folder.is_relative_to(point) and len(point) >= len(best[0]):
            best = point, f"{kind} on {device}"
    return best[1]


def _value_of(text: str, name: str) -> str:
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return UNKNOWN
