"""The results of one run, and the file they are kept in, so that the past stays comparable.

A result tells on which machine, of which commit and with which libraries it was measured. Files of
another format are refused: nothing is guessed. Relies on msgspec.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from cluster.bench.errors import BenchError
from cluster.bench.figures import Figure, Subject

if TYPE_CHECKING:
    from pathlib import Path

FORMAT: Final = 1


class Machine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where it was measured."""

    cpu: str
    cores: int
    memory_mib: int
    kernel: str
    disk: str
    """The file system that the ledgers were on."""


class LoadPoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What became of load offered at a rate that nothing slows down, in transactions.

    Latencies count from the moment at which a request was to be sent, not from when it could be.
    The shares are of what was offered. No latency: nothing was accepted.
    """

    subject: str
    shape: str
    """What one request holds."""
    multiple: float
    """Of the capacity measured just before."""
    offered_per_s: float
    goodput_per_s: float
    """Accepted within the time of the load."""
    p50_ms: float | None
    p99_ms: float | None
    refused_share: float
    """Answered 429."""
    failed_share: float
    """Answered with another error, or cut off."""
    unserved_share: float
    """Not answered in time, mostly for want of a connection that was free to send it."""


class Skipped(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What could not be run, and why."""

    what: str
    why: str


class Result(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One run on one machine."""

    format: int = FORMAT
    measured_at: str
    """RFC 3339, UTC."""
    commit: str
    machine: Machine
    versions: dict[str, str]
    seconds: float
    """The length of each measured load."""
    rounds: int
    """How many of which a figure is the median."""
    subjects: tuple[Subject, ...] = ()
    figures: tuple[Figure, ...] = ()
    load: tuple[LoadPoint, ...] = ()
    skipped: tuple[Skipped, ...] = ()


def write_result(result: Result, path: Path) -> None:
    """Keep a result as JSON; raises BenchError."""
    text = msgspec.json.format(msgspec.json.encode(result), indent=2)
    try:
        path.write_bytes(text + b"\n")
    except OSError as error:
        raise BenchError(f"cannot write {path}: {error.strerror}") from error


def read_result(path: Path) -> Result:
    """The result in a file; raises BenchError where there is none that can be read."""
    try:
        result = msgspec.json.decode(path.read_bytes(), type=Result)
    except OSError as error:
        raise BenchError(f"cannot read {path}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BenchError(f"{path} holds no results: {error}") from error
    if result.format != FORMAT:
        raise BenchError(f"{path} is of format {result.format}; this reads format {FORMAT}")
    return result
