"""What a benchmark measures, and how a measured value is written down.

A figure belongs to a subject (this ledger, a peer, the machine itself), a workload and a measure.
Only figures of one run on one machine may be compared, as ratios. Relies on msgspec for its JSON.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Workload(StrEnum):
    """What is done to a subject."""

    SEQUENTIAL = "sequential submits"
    SEQUENTIAL_FOLLOWER = "sequential submits through a follower"
    SINGLE_64 = "64 clients, single submits"
    SINGLE_256 = "256 clients, single submits"
    CLIENT_64 = "Python client over HTTP, 64 at once"
    BATCHED = "batched submits"
    OVERLOAD = "load beyond capacity"
    PORT_SEQUENTIAL = "client port, sequential submits"
    PORT_64 = "client port, 64 clients"
    PORT_256 = "client port, 256 clients"
    READ_64 = "64 clients, linearizable reads"
    LOCAL_READ_64 = "64 clients, local reads"
    HISTORY = "user history page"
    FAILOVER = "failover, default timeouts"
    FAILOVER_TUNED = "failover, tuned timeouts"
    MEMORY = "memory of a node"
    CATCH_UP = "catch-up of an empty node"
    VERIFY = "verify the chain"
    CHECKPOINT = "checkpoint to PostgreSQL"
    PAYLOAD_100 = "64 clients, payload of 100 B"
    PAYLOAD_1K = "64 clients, payload of 1 KB"
    PAYLOAD_16K = "64 clients, payload of 16 KB"
    NODES_1 = "64 clients, one node"
    NODES_5 = "64 clients, five nodes"
    STALL = "stall of the event loop under batches"
    FDATASYNC = "fdatasync"
    LMDB_1 = "durable LMDB commit, one environment"
    LMDB_3 = "durable LMDB commit, three environments at once"
    ZEROMQ = "ZeroMQ round trip"
    SHA256 = "SHA-256 of 1 MiB pieces"
    HTTP_ECHO = "HTTP echo on the same server stack"


class Measure(StrEnum):
    """Which number it is; its unit is part of the name."""

    P50_MS = "p50, ms"
    P99_MS = "p99, ms"
    WORST_MS = "worst, ms"
    PER_S = "per s"
    MB_PER_S = "MB/s"
    CPU_MS_PER_1000 = "CPU of all servers, ms per 1,000"
    MIB = "MiB"

    @property
    def is_better_higher(self) -> bool:
        """Whether more of it is better."""
        return self in {Measure.PER_S, Measure.MB_PER_S}


class Figure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One measured value: the median of the run's rounds, unless the measure says otherwise."""

    subject: str
    workload: Workload
    measure: Measure
    value: float
    note: str = ""
    """What the reader must know to compare it fairly."""


class Subject(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Something that was measured."""

    name: str
    version: str
    acknowledgement: str
    """What an acknowledged write means, such as "on the disks of a majority, fsynced"."""
    is_durable: bool
    """Whether an acknowledged write is on the disks of a majority."""
