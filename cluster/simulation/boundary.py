"""The moments at which a machine is made to crash: around saves, commits, the index, and a boot.

A crash between two steps is what separates a promise from what it rests on, so each has a name and
is counted by it. Relies on the kinds of faults, of which each boundary belongs to one.
"""

from __future__ import annotations

from enum import StrEnum, unique
from typing import TYPE_CHECKING, Final

from cluster.simulation.faults import Fault

if TYPE_CHECKING:
    from collections.abc import Mapping


@unique
class Boundary(StrEnum):
    """Between which two steps a machine crashes."""

    BEFORE_SENDING = "before anything left"
    BEFORE_SAVE = "after sending, before the save"
    TORN = "in the middle of the save"
    UNTOLD = "after the save, before it is known"

    COMMITTED = "committed, not applied"
    APPLIED = "applied, nobody told"
    ACKNOWLEDGED = "just acknowledged"

    UNINDEXED = "applied, before the index batch"
    UNREPORTED = "after the index batch, before its report"

    INDEXING = "while the index catches up"
    FIRST_SAVE = "before the first save"
    CATCHING_UP = "in the middle of the first blocks' save"


BOUNDARIES: Final[Mapping[Fault, tuple[Boundary, ...]]] = {
    Fault.CRASH_AT_SAVE: (
        Boundary.BEFORE_SENDING,
        Boundary.BEFORE_SAVE,
        Boundary.TORN,
        Boundary.UNTOLD,
    ),
    Fault.CRASH_AT_COMMIT: (Boundary.COMMITTED, Boundary.APPLIED, Boundary.ACKNOWLEDGED),
    Fault.CRASH_AT_INDEX: (Boundary.UNINDEXED, Boundary.UNREPORTED),
    Fault.CRASH_IN_RECOVERY: (Boundary.INDEXING, Boundary.FIRST_SAVE, Boundary.CATCHING_UP),
}

KIND_OF: Final[Mapping[Boundary, Fault]] = {
    boundary: kind for kind, boundaries in BOUNDARIES.items() for boundary in boundaries
}
