"""The two lanes to a peer. In a file of its own, so that the pure replica needs no sockets."""

from __future__ import annotations

from enum import Enum, unique
from typing import TYPE_CHECKING

from consensus.messages import Append

if TYPE_CHECKING:
    from consensus.messages import AnyMessage


@unique
class Lane(Enum):
    """Which of the two connections to a peer a message takes. There is no order between lanes."""

    CONTROL = "control"
    """Votes, heartbeats, acknowledgements: small and urgent."""
    BULK = "bulk"
    """Blocks and forwarded transactions."""


def lane_of(message: AnyMessage) -> Lane:
    """Blocks take the bulk lane, everything small the urgent one."""
    return Lane.BULK if isinstance(message, Append) and message.blocks else Lane.CONTROL
