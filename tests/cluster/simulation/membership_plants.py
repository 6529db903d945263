"""Mistakes with members: who counts, who votes, what a change may do, what is fetched.

As `core_plants.py` beside it; relies on the insides of `consensus` and `node.fetching`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from consensus.block import decode_block, tip_after
from consensus.changes import ChangeError, ChangeRefusal, holds_change
from consensus.quorum import majority_index
from node.catchup import MAX_SHUN_US

if TYPE_CHECKING:
    from collections.abc import Callable

# Changes


def plans_in_spite_of(reason: ChangeRefusal) -> Callable[[Any], Any]:
    """A leader makes a change that must not be made yet."""

    def make(right: Any) -> Any:
        def plan(self: Any, change: Any, now_us: int) -> None:
            try:
                right(self, change, now_us)
            except ChangeError as error:
                if error.reason is not reason:
                    raise
                self._log.roster.plan(change)

        return plan

    return make


def keeps_truncated(right: Any) -> Any:
    """A change stays in force when its block is truncated, until another one takes its place."""

    def append(self: Any, block: Any) -> Any:
        while holds_change(block) and self.latest_index >= block.index:
            self._entries.pop()
        return right(self, block)

    return append


def takes_former(_self: Any, *_given: Any) -> None:
    """A key may be a member's again."""


def comes_back_as_it_was(right: Any) -> Any:
    """Who wipes a disk keeps the key, and the node starts under it."""

    def set_up(self: Any, key: Any, **given: Any) -> None:
        right(self, self.key if self.life else key, **given)

    return set_up


# Majorities


def _commit_index(leadership: Any, indexes: list[int]) -> int:
    log = leadership._log
    candidate = majority_index(indexes)
    if candidate > log.commit_index and log.term_at(candidate) == leadership._term:
        return candidate
    return int(log.commit_index)


def _indexes(leadership: Any, voters: Any) -> list[int]:
    return [
        leadership._log.saved_index
        if voter == leadership._member
        else leadership.followers[voter].match_index
        for voter in voters
        if voter == leadership._member or voter in leadership.followers
    ]


def counts_learners(self: Any) -> int:
    """Those that learn are counted as if they voted."""
    return _commit_index(self, _indexes(self, self._log.roster.latest.keys))


def counts_by_committed(self: Any) -> int:
    """A change counts from its commit on, and not from its block on."""
    log = self._log
    return _commit_index(self, _indexes(self, log.roster.at(log.commit_index).voters))


def counts_itself_removed(self: Any) -> int:
    """A leader that removes itself counts its own disk for that."""
    voters = self._log.roster.latest.voters | {self._member}
    indexes = sorted(_indexes(self, voters), reverse=True)
    return _commit_index(self, indexes[: 2 * (len(voters) // 2) + 1])


def votes_by_committed(_right: Any) -> Any:
    """Votes are counted among the members by the committed blocks alone."""
    return property(lambda self: self.log.roster.at(self.log.commit_index).voters)


# Elections and transfers


def may_always_propose(_right: Any) -> Any:
    """A leader goes on sealing while it hands over."""
    return property(lambda self: self.leadership is not None)


def votes_for_successor(right: Any) -> Any:
    """Whom the leader has asked to take over gets every vote, whatever is in its log."""

    def on_vote_request(self: Any, source: bytes, request: Any) -> None:
        if request.transfer and self.vote is None:
            self._is_up_to_date = lambda _request: True
            right(self, source, request)
            del self._is_up_to_date
        else:
            right(self, source, request)

    return on_vote_request


def asks_at_once(right: Any) -> Any:
    """A successor is told to campaign before it has everything."""

    def ask(self: Any, now_us: int) -> Any:
        if self.transfer is None:
            return right(self, now_us)
        progress = self.followers[self.transfer.target]
        match_index, progress.match_index = progress.match_index, self._log.last_index
        try:
            return right(self, now_us)
        finally:
            progress.match_index = match_index

    return ask


def knows_everybody(_self: Any, _source: bytes) -> bool:
    """Whoever speaks is listened to, members or not."""
    return True


# Fetching


def fetches_unverified(_right: Any) -> Any:
    """What another member sends when asked goes into the log as it is."""

    def take(self: Any, first: int, blocks: Any) -> int:
        log = self._log
        if not 0 < first <= log.commit_index + 1:
            return int(log.commit_index)
        for index, raw in enumerate(blocks, start=first):
            block = decode_block(raw)
            if index > log.commit_index:
                if index <= log.last_index:
                    log.truncate_from(index)
                log.append(block, tip_after(log.last_tip, block))
        return max(first - 1 + len(blocks), int(log.commit_index))

    return take


def serves_saved(right: Any) -> Any:
    """Whatever is on the disk is served, committed or not."""

    def on_request(self: Any, source: bytes, request: Any) -> None:
        log = self._raft.log
        commit_index, log.commit_index = log.commit_index, log.saved_index
        try:
            right(self, source, request)
        finally:
            log.commit_index = commit_index

    return on_request


# What the simulator found, planted again


def promotes_after_short_rounds_alone(
    self: Any, match_index: int, *, last_index: int, now_us: int, within_us: int
) -> None:
    """A learner whose first round was long waits for a second one, which nothing may begin."""
    if match_index >= self.target_index:
        self.was_short = now_us - self.began_us < within_us
        self.target_index = last_index
        self.began_us = now_us


def believes_in_lost_leader(right: Any) -> Any:
    """Who cannot lead goes on following a leader that it does not hear any more."""

    def campaign(self: Any) -> None:
        if self._may_vote():
            right(self)
        else:
            self._patience.rest(self._now_us)

    return campaign


def forgets_who_was_silent(self: Any, now_us: int, leader: Any, peers: Any) -> Any:
    """Of those that are gone one or another is always asked before the leader."""
    able = sorted(p for p in peers if self._shunned.get(p, 0) <= now_us + MAX_SHUN_US)
    others = [peer for peer in able if peer != leader]
    return self._random.choice(others or able) if able else None


def believes_its_genesis(_right: Any) -> Any:
    """A node that joins looks for the first members where they were at first."""

    def peers(self: Any) -> Any:
        roster = self._raft.log.roster
        known = dict(self._seeds)
        known |= {gone.public_key: gone for gone, _ in roster.former(1 << 62).values()}
        known |= {member.public_key: member for member in roster.latest.members}
        known.pop(self._raft.member, None)
        return known

    return property(peers)


def tells_the_silent_nothing(right: Any) -> Any:
    """Who is not heard is not told to fetch, though it may hear."""

    def heartbeat(self: Any, member: bytes, contact_round: int, _now_us: int) -> Any:
        return right(self, member, contact_round, self.followers[member].last_heard_us)

    return heartbeat
