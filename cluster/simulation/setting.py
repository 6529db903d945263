"""What all machines of a world share, their pace among it. Relies on the types it carries."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

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


BUSY: Final = 0.15
"""How often an input waits for the next turn of the loop."""
TURN_US: Final = 2_000
IDLE_US: Final = 200_000
"""A replica is pumped at least this often, for what it offers again by itself."""
TOLD_US: Final = 200
"""A save is durable for about this long before the loop hears of it."""
INBOX: Final = 1_000
"""What the sockets of a paused machine hold; what comes beyond that is lost."""


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
