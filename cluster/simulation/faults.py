"""The faults there are, how often each profile asks for them, and what a run is made of.

Every seed draws its own mixture from its profile: most of the kinds are made rarer, commoner or
left out altogether, since a run in which everything happens all the time never gets far enough
for the rare things ("swarm testing", Groce et al. 2012). Relies on nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum, unique
from random import Random
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

MICROS_PER_SECOND: Final = 1_000_000


@unique
class Fault(StrEnum):
    """One kind of fault. The first group strikes single messages, the second begins episodes."""

    LOSS = "loss"
    DELAY = "delay"
    REORDER = "reorder"
    DUPLICATE = "duplicate"
    REPLAY = "replay"
    FORGERY = "forged block"

    CRASH_ONE = "crash of one"
    CRASH_AT_SAVE = "crash at a save"
    CRASH_AT_COMMIT = "crash at a commit"
    CRASH_AT_INDEX = "crash at the index"
    CRASH_IN_RECOVERY = "crash in recovery"
    CRASH_FRESH = "crash of a fresh leader"
    CRASH_MAJORITY = "crash of a majority"
    CRASH_ALL = "crash of all"
    PARTITION = "partition"
    ONE_WAY = "one-way partition"
    LINK = "cut link"
    FLAP = "flapping partition"
    SWIZZLE = "swizzle"
    SLOW_NETWORK = "slow network"
    PAUSE = "pause"
    DISK_STALL = "disk stall"
    SLOW_DISK = "slow disk"
    FULL_DISK = "full disk"
    CORRUPT_READ = "corrupt reads"
    CLOCK_STEP = "clock step"
    DATABASE_DOWN = "database down"
    DATABASE_FROZEN = "database frozen"
    DATABASE_SLOW = "database slow"
    DATABASE_RESET = "connection to the database reset"
    LOST_COMMIT_ANSWER = "lost answer of a commit"
    CRASH_AT_CHECKPOINT = "crash at a checkpoint"
    MEMBER_CHANGE = "membership change"
    TRANSFER = "leadership transfer"
    WIPED_DISK = "wiped disk"
    CRASH_AMID = "crash amid a change"

    CLOCK_DRIFT = "clock drift"
    LOST_ANSWER = "lost answer"


# For messages, answers, fresh leaders and crashes amid changes: the probability. For episodes: how
# many in a minute. For the drift of clocks: the largest, as a part of one.
_CRASHES: Final = {
    Fault.CRASH_ONE: 12.0,
    Fault.CRASH_AT_SAVE: 16.0,
    Fault.CRASH_AT_COMMIT: 6.0,
    Fault.CRASH_AT_INDEX: 4.0,
    Fault.CRASH_IN_RECOVERY: 5.0,
    Fault.CRASH_FRESH: 0.3,
    Fault.CRASH_MAJORITY: 2.0,
    Fault.CRASH_ALL: 1.5,
}
_NETWORK: Final = {
    Fault.LOSS: 0.01,
    Fault.DELAY: 0.01,
    Fault.REORDER: 0.03,
    Fault.DUPLICATE: 0.01,
    Fault.REPLAY: 0.003,
    Fault.PARTITION: 8.0,
    Fault.ONE_WAY: 5.0,
    Fault.LINK: 5.0,
    Fault.FLAP: 2.0,
    Fault.SWIZZLE: 2.0,
    Fault.SLOW_NETWORK: 5.0,
}
_DISK: Final = {
    Fault.DISK_STALL: 8.0,
    Fault.SLOW_DISK: 6.0,
    Fault.FULL_DISK: 3.0,
    Fault.CORRUPT_READ: 5.0,
}
_DATABASE: Final = {
    Fault.DATABASE_DOWN: 3.0,
    Fault.DATABASE_FROZEN: 3.0,
    Fault.DATABASE_SLOW: 3.0,
    Fault.DATABASE_RESET: 4.0,
    Fault.LOST_COMMIT_ANSWER: 4.0,
    Fault.CRASH_AT_CHECKPOINT: 4.0,
}
_MEMBERSHIP: Final = {
    Fault.MEMBER_CHANGE: 20.0,
    Fault.TRANSFER: 12.0,
    Fault.WIPED_DISK: 6.0,
    Fault.CRASH_AMID: 0.3,
}
_CLOCKS: Final = {Fault.PAUSE: 8.0, Fault.CLOCK_STEP: 3.0, Fault.CLOCK_DRIFT: 0.2}

PROFILES: Final[Mapping[str, Mapping[Fault, float]]] = {
    "calm": {},
    "chaos": {
        **_NETWORK,
        **_CRASHES,
        **_DISK,
        **_DATABASE,
        **_CLOCKS,
        Fault.MEMBER_CHANGE: 4.0,
        Fault.TRANSFER: 3.0,
        Fault.WIPED_DISK: 1.0,
        Fault.CRASH_AMID: 0.3,
        Fault.FORGERY: 0.1,
        Fault.LOST_ANSWER: 0.02,
    },
    "disk": {
        **{kind: 2 * rate for kind, rate in _CRASHES.items()},
        **{kind: 2 * rate for kind, rate in _DISK.items()},
        **{kind: 2 * rate for kind, rate in _DATABASE.items()},
        Fault.LOST_ANSWER: 0.05,
    },
    "network": {
        **{kind: 2 * rate for kind, rate in _NETWORK.items()},
        Fault.PAUSE: 5.0,
        Fault.LOST_ANSWER: 0.02,
    },
    "membership": {
        **_MEMBERSHIP,
        **{kind: 0.5 * rate for kind, rate in _NETWORK.items()},
        **{kind: 0.5 * rate for kind, rate in _CRASHES.items()},
        **{kind: 0.5 * rate for kind, rate in _DISK.items()},
        **_CLOCKS,
        Fault.FORGERY: 0.1,
        Fault.LOST_ANSWER: 0.02,
    },
}

REACHES_MEMBERS: Final = frozenset({Fault.MEMBER_CHANGE, Fault.TRANSFER, Fault.WIPED_DISK})
"""Under these a cluster has an administrator."""
_SWARM: Final = (0.0, 0.3, 1.0, 1.0, 1.0, 2.0)


@dataclass(frozen=True, slots=True)
class Scenario:
    """Everything a run follows from. `without` names faults that are left out of the profile."""

    seed: int
    nodes: int = 5
    seconds: float = 60.0
    profile: str = "chaos"
    clients: int = 6
    without: tuple[Fault, ...] = field(default=())

    def stream(self, purpose: str) -> Random:
        """A source of randomness of its own, so that one purpose does not disturb another."""
        return Random(f"{self.seed}/{purpose}")

    def rates(self) -> dict[Fault, float]:
        """This seed's mixture of the profile's faults."""
        mixture = {}
        for kind, rate in PROFILES[self.profile].items():
            factor = self.stream(f"swarm {kind}").choice(_SWARM)
            mixture[kind] = 0.0 if kind in self.without else rate * factor
        return mixture
