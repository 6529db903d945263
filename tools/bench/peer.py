"""What a subject of the benchmark is to the runner: how it is found, started and measured.

Each peer's file offers `PEERS`. The runner starts a peer afresh in every round, alone on the
machine, and does its steps one after another; a step that fails leaves the others standing.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from cluster.bench.stage import transaction

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from cluster.bench.figures import Measure, Subject, Workload

ROOT: Final = Path(__file__).resolve().parents[2]
"""The checkout: node programs of ours are started from here."""

CONTENT: Final = json.dumps(transaction())
"""What every subject is given to keep, as often as it can: what this ledger is given."""

BATCH_CLIENTS: Final = 8


class Reading(NamedTuple):
    """One measured value of one round."""

    measure: Measure
    value: float
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How long and how often to measure in this round."""

    seconds: int
    """The length of each load."""
    failovers: int
    """How many leaders are killed; 0 leaves the failover out."""
    records: int
    """How many transactions are kept before the memory is read; 0 leaves it out."""


Step = Callable[[], Awaitable[list[Reading]]]
Steps = Mapping["Workload", Step]


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A subject that can be measured."""

    name: str
    install: str
    """How a person gets it, such as "install Debian's package etcd-server"."""
    is_installed: Callable[[], bool]
    subject: Callable[[], Subject]
    """Describes it; asks the installed program for its version. Raises BenchError."""
    running: Callable[[Path, Effort], AbstractAsyncContextManager[Steps]]
    """Starts it in an empty folder, hands out what can be measured, and ends all it started."""
