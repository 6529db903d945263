"""The two lanes to a peer. In a file of its own, so that the pure replica needs no sockets."""

from __future__ import annotations

from enum import Enum, unique


@unique
class Lane(Enum):
    """Which of the two connections to a peer a message takes. There is no order between lanes."""

    CONTROL = "control"
    """Votes, heartbeats, acknowledgements: small and urgent."""
    BULK = "bulk"
    """Blocks and forwarded transactions."""
