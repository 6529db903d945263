"""Mistakes in the core: each function makes a wrong method of a right one, or is a wrong one.

Relies on the insides of `consensus` and of the memory chain; `defects.py` says where each belongs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from unittest import mock

import msgspec

import consensus.intake
from consensus.block import InvalidBlockError, Rule, assemble_block, tip_after
from consensus.messages import (
    Append,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    VoteReply,
    VoteRequest,
)
from consensus.quorum import majority_index
from consensus.ready import HardState, Outgoing

if TYPE_CHECKING:
    from collections.abc import Callable

Plant = tuple[Any, str, "Callable[[Any], Any]"]
"""Whose method, which, and what makes the wrong one of the right one."""

# What leaves before it is durable


def sends_at_once(*kinds: type[Any]) -> Callable[[Any], Any]:
    """Messages of these kinds do not wait for a save."""

    def make(right: Any) -> Any:
        def send(self: Any, target: bytes, message: Any, match_index: int = 0) -> None:
            if type(message) in kinds and target != self.member:
                self._messages.append(Outgoing(target, message))
            else:
                right(self, target, message, match_index)

        return send

    return make


def acknowledges_unsaved(right: Any) -> Any:
    """The term is waited for, the blocks are not."""

    def send(self: Any, target: bytes, message: Any, match_index: int = 0) -> None:
        right(self, target, message, 0 if isinstance(message, AppendReply) else match_index)

    return send


def claims_saved(self: Any, contact_round: int) -> HeartbeatReply:
    """A heartbeat's reply tells of what is only held."""
    return HeartbeatReply(self.term, contact_round, self.log.last_index, self.log.last_index)


def forgets_vote(right: Any) -> Any:
    """A restart reads the term and not the vote."""

    def init(self: Any, **given: Any) -> None:
        held = given["hard_state"]
        given["hard_state"] = HardState(held.term, None, held.commit_index)
        right(self, **given)

    return init


def forgets_to_truncate(right: Any) -> Any:
    """A save appends the new blocks and leaves what they contradict."""

    def take_save(self: Any) -> Any:
        return None, right(self)[1]

    return take_save


def forgets_last_block(right: Any) -> Any:
    """A disk that says durable and is not: a crash loses the last block."""

    def crash(self: Any) -> None:
        right(self)
        if self.last_index > self.hard_state.commit_index:
            del self._blocks[-1]
            del self._tips[-1]

    return crash


# Elections


def votes_again(self: Any, source: bytes, request: VoteRequest) -> None:
    """A second candidate of the same term gets a vote as well."""
    granted = self._is_up_to_date(request)
    if granted:
        self.vote = source
        self._patience.rest(self._now_us)
    self._send(source, VoteReply(term=self.term, granted=granted))


def counts_every_reply(self: Any, voter: bytes, *, granted: bool) -> None:
    """A vote that arrives twice counts twice."""
    self._answers[voter + bytes([len(self._answers) % 256])] = granted


def longer_log_wins(self: Any, request: Any) -> bool:
    """The length of the log alone decides."""
    return bool(request.last_index >= self.log.last_index)


def proposes_nothing_empty(right: Any) -> Any:
    """A new leader seals no block of its own term."""

    def propose(self: Any, transactions: Any) -> Any:
        return right(self, transactions) if transactions else None

    return propose


# Replication and commit


def counts_any_term(self: Any) -> int:
    """Blocks of older terms are committed by counting."""
    matches = [progress.match_index for progress in self.followers.values()]
    return max(int(self._log.commit_index), majority_index([self._log.saved_index, *matches]))


def counts_itself_unsaved(self: Any) -> int:
    """The leader counts itself before its own save is durable."""
    matches = [progress.match_index for progress in self.followers.values()]
    candidate = majority_index([self._log.last_index, *matches])
    if candidate > self._log.commit_index and self._log.term_at(candidate) == self._term:
        return candidate
    return int(self._log.commit_index)


def counts_one_less(self: Any) -> int:
    """A majority is taken to be one member fewer."""
    matches = [progress.match_index for progress in self.followers.values()]
    indexes = sorted([self._log.saved_index, *matches], reverse=True)
    candidate = indexes[max(0, len(indexes) // 2 - 1)]
    if candidate > self._log.commit_index and self._log.term_at(candidate) == self._term:
        return int(candidate)
    return int(self._log.commit_index)


def unbounded_heartbeat(self: Any, member: bytes, contact_round: int, _now_us: int) -> Heartbeat:
    """A heartbeat names the commit index whatever the follower holds."""
    self._told_commit[member] = self._log.commit_index
    return Heartbeat(
        term=self._term, commit_index=self._log.commit_index, round=contact_round, fetch_through=0
    )


def commits_unmatched(right: Any) -> Any:
    """A follower commits by the leader's word up to the end of its own log."""

    def on_append(self: Any, source: bytes, append: Append) -> None:
        right(self, source, append)
        if self.alarm is None and self.leader == source:
            self._commit(min(append.commit_index, self.log.last_index))

    return on_append


def truncates_always(right: Any) -> Any:
    """Whatever follows a block that is already there is thrown away."""

    def take_block(self: Any, block: Any, index: int, leader_term: int) -> Any:
        log = self._log
        if index <= log.last_index and log.hash_at(index) == block.hash:
            if index > log.commit_index:
                tip = log.tip_at(index)
                log.truncate_from(index)
                log.append(block, tip)
            return True
        return right(self, block, index, leader_term)

    return take_block


def ignores_previous(right: Any) -> Any:
    """The block before an append's own is not compared with the leader's."""

    def take(self: Any, append: Append) -> Any:
        if append.previous_index <= self._log.last_index:
            return AppendReply(append.term, match_index=self._take_blocks(append))
        return right(self, append)

    return take


def follows_old_terms(right: Any) -> Any:
    """Appends of an older term are taken."""

    def accept_term(self: Any, source: bytes, message: Any) -> Any:
        return isinstance(message, Append) or right(self, source, message)

    return accept_term


def overlooks(rule: Rule) -> Plant:
    """A follower does not check one rule of blocks."""

    def make(right: Any) -> Any:
        def verify(parent: Any, block: Any, **given: Any) -> Any:
            try:
                return right(parent, block, **given)
            except InvalidBlockError as error:
                if error.rule is not rule:
                    raise
                return tip_after(parent, block)

        return verify

    return (consensus.intake, "verify_block", make)


def seals_clock_time(right: Any) -> Any:
    """A leader's clock that went back makes blocks older than their parents."""

    def seal(self: Any, parent: Any, *, term: int, transactions: Any, wall_us: int) -> Any:
        block = right(self, parent, term=term, transactions=transactions, wall_us=wall_us)
        header = msgspec.structs.replace(block.header, timestamp_us=wall_us)
        unsigned = assemble_block(header, bytes(64), transactions)
        return assemble_block(header, self._signing_key.sign(unsigned.hash).signature, transactions)

    return seal


# Reads


def confirms_alone(right: Any) -> Any:
    """A read is confirmed without hearing of anybody."""

    def confirm(self: Any) -> Any:
        reads = self._read_round
        if reads is not None:
            for progress in self.followers.values():
                progress.echoed_round = max(progress.echoed_round, reads.round)
        return right(self)

    return confirm


def reads_before_own_commit(right: Any) -> Any:
    """A new leader reads by a commit index that it only inherited."""

    def start(self: Any) -> Any:
        log = self._log
        with mock.patch.object(log, "term_at", return_value=self._term):
            return right(self)

    return start


def reads_by_lease(right: Any) -> Any:
    """Contact within the last election timeout is taken for proof of leadership."""

    def confirm(self: Any) -> Any:
        if self._read_round is not None:
            latest_us = max(progress.last_heard_us for progress in self.followers.values())
            if self.in_contact(now_us=latest_us, within_us=self._config.election_max_us):
                return confirms_alone(right)(self)
        return right(self)

    return confirm


def answers_unapplied(right: Any) -> Any:
    """A read is answered before its index is applied."""

    def release(self: Any, _applied_index: int) -> None:
        right(self, 1 << 60)

    return release


def drops_too_much(right: Any) -> Any:
    """Memory forgets two blocks more than the index store has."""

    def flushed(self: Any, index: int) -> None:
        right(self, index + 2)

    return flushed
