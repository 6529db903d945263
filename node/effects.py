"""What a replica hands to the loop that drives it. Relies on nothing but the types it carries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from node.submissions import recorded_outcome, unreadable

if TYPE_CHECKING:
    from consensus.block import Block
    from consensus.messages import AnyMessage, MemberId
    from consensus.ready import Save
    from node.lane import Lane
    from node.submissions import Submission
    from storage.recent import Place


class Envelope(NamedTuple):
    """A message for a peer, and its lane."""

    target: MemberId
    lane: Lane
    message: AnyMessage


class Recorded(NamedTuple):
    """A submitted transaction whose id is in the chain, in a block that is not in memory."""

    submission: Submission
    slot: int
    place: Place

    def settle(self, block: Block | None) -> None:
        """Answers from the block that was read; None where it cannot be read."""
        wanted, raw = self.submission.ids[self.slot], self.submission.transactions[self.slot]
        if block is None:
            self.submission.settle(self.slot, unreadable(wanted, self.place))
        else:
            self.submission.settle(self.slot, recorded_outcome(wanted, raw, block, self.place))


class Load(NamedTuple):
    """Transactions in the leader's queue, and of this node's clients those that are not settled."""

    queued: int
    waiting: int


@dataclass(frozen=True, slots=True)
class Serving:
    """Committed blocks that a peer asked for: `count` of them at most, from `first`."""

    target: MemberId
    first: int
    count: int
    term: int
    commit_index: int


@dataclass(frozen=True, slots=True)
class Effects:
    """What the loop must do now: send at once, and run `save` beside everything else.

    For each of `recorded` it reads the block, beside the loop, and calls `settle`. For
    each of `servings` it reads the blocks, beside the loop, and sends what `catchup.serve` makes of
    them. `has_new_members` asks for the connections of `Fetching.peers`. `more` asks for another
    pump as soon as other work had its turn.
    """

    envelopes: tuple[Envelope, ...]
    save: Save | None
    recorded: tuple[Recorded, ...]
    servings: tuple[Serving, ...]
    has_new_members: bool
    more: bool
