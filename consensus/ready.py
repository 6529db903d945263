"""What the core hands out: what to save, what to send, what is committed, what may be read.

The one promise that matters most: a vote, a term or an acknowledgement never leaves before what it
promises is on disk (Raft paper, figure 2: "updated on stable storage before responding to RPCs").
Every message of a `Ready` may leave at once; those that rest on a save stay inside the core until
`saved(save)` says that it is durable, so a caller cannot send them too early.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum, unique
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from consensus.block import Block
    from consensus.messages import MemberId, RaftMessage


@unique
class Role(StrEnum):
    """A member's role in its term (paper §5.1)."""

    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


class HardState(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a member must never forget: its term and vote. `commit_index` is a hint for restarts."""

    term: int = 0
    vote: bytes | None = None
    commit_index: int = 0


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message and the member it is for."""

    target: MemberId
    message: RaftMessage


@dataclass(frozen=True, slots=True, eq=False)
class Save:
    """One durable write: first truncate, then append `blocks`, and set the hard state."""

    hard_state: HardState
    truncate_from: int | None
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class ConfirmedRead:
    """A read asked for with `token` may be answered once `read_index` is applied.

    `read_index` is None where the read was lost with its leader: ask again.
    """

    token: int
    read_index: int | None


@dataclass(frozen=True, slots=True)
class Ready:
    """Everything that must happen now, in the order of its fields.

    `committed` are the blocks newly known to be committed, in order. `save` is at most one: the
    core gives the next only after `saved`.
    """

    messages: tuple[Outgoing, ...]
    save: Save | None
    committed: tuple[Block, ...]
    reads: tuple[ConfirmedRead, ...]

    def __bool__(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.messages or self.save or self.committed or self.reads)
