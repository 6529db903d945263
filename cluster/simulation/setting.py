"""What all machines of a world share. Relies on nothing but the types it carries."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from cluster.simulation.database_client import DatabaseWire
    from cluster.simulation.events import EventQueue
    from cluster.simulation.machine import Machine
    from cluster.simulation.record import Trace
    from cluster.simulation.watch import Watch
    from consensus.block import Block
    from consensus.messages import MemberId
    from node.lane import Lane
    from node.mempool import QueueLimits


@dataclass(slots=True)
class Setting:
    """What all machines of a world share."""

    queue: EventQueue
    trace: Trace
    watch: Watch
    genesis: Block
    limits: QueueLimits
    wire: DatabaseWire
    send: Callable[[Machine, MemberId, str, Lane, bytes], None]
    """By whom, to which key, at which address."""
    admitted: Callable[[Machine, MemberId], None]
    """A machine lets in whom it did not know before."""
    numbers: dict[MemberId, int] = field(default_factory=dict)
    """Which machine has, or had, a key."""
