"""One machine of a `Network`: its disk, the member that runs there, and what may leave it.

Here is what can be checked at one machine alone: nothing that a member says may be forgotten by it
in a crash, and an answered read misses nothing. Relies on `DurableChain` for the disk.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from consensus.messages import (
    AppendReply,
    PreVoteReply,
    PreVoteRequest,
    VoteReply,
    VoteRequest,
)
from tests.consensus.raft_chains import member_id, name_of
from tests.consensus.raft_mail import describe

if TYPE_CHECKING:
    from consensus.block import Block
    from consensus.messages import MemberId, RaftMessage
    from consensus.raft import Raft
    from consensus.ready import Save
    from tests.consensus.raft_chains import DurableChain


@dataclass(slots=True)
class Host:
    """One member's machine: its disk, and the `Raft` that runs while `raft` is not None."""

    name: str
    chain: DurableChain
    raft: Raft | None = None
    starts: int = 0
    save: Save | None = None
    save_due_us: int = 0
    start_applied: int = 0
    applied: list[Block] = field(default_factory=list)
    reads: dict[int, int | None] = field(default_factory=dict)
    read_floors: dict[int, int] = field(default_factory=dict)

    @property
    def running(self) -> Raft:
        """The member itself; it must not be crashed."""
        assert self.raft is not None, f"{self.name} is down"
        return self.raft

    @property
    def applied_index(self) -> int:
        """How far this member's blocks were handed out to be applied."""
        return self.start_applied + len(self.applied)

    def check_before_send(self, message: RaftMessage, target: MemberId) -> None:
        """Nothing that a member says may be forgotten by it in a crash (paper, figure 2)."""
        durable = self.chain.hard_state
        match message:
            case PreVoteRequest():
                assert message.term <= durable.term + 1
                return
            case PreVoteReply(granted=True):
                return
            case VoteRequest():
                assert durable.vote == member_id(self.name), "it asks before it voted for itself"
            case VoteReply(granted=True):
                assert durable.vote == target, "it has not saved that vote"
            case AppendReply():
                last_index = self.chain.last_index
                assert message.match_index <= last_index, "it acknowledges what is not on its disk"
            case _:
                pass
        assert message.term == durable.term, f"{describe(message)} speaks of an unsaved term"

    def check_read(self, token: int, read_index: int | None, *, commit_index: int) -> None:
        """A read misses nothing that was committed when it was asked, and is not ahead."""
        assert token not in self.reads, "a read is answered once"
        self.reads[token] = read_index
        if read_index is not None:
            floor = self.read_floors[token]
            assert read_index >= floor, f"a read at {read_index} misses block {floor}"
            assert read_index <= commit_index, "nobody committed that much"


def describe_save(save: Save) -> str:
    """A save as a person reads it."""
    state = save.hard_state
    vote = "nobody" if state.vote is None else name_of(state.vote)
    parts = [f"term {state.term}, vote {vote}, commit {state.commit_index}"]
    if save.truncate_from is not None:
        parts.append(f"truncates from {save.truncate_from}")
    if save.blocks:
        parts.append(f"blocks {' '.join(f'{block.index}/{block.term}' for block in save.blocks)}")
    return "; ".join(parts)
