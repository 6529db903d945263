"""Planted defects: each is one mistake that somebody could make in the shipped code, as a patch.

A plant replaces a method of a shipped class for as long as a context lasts, so the simulator runs
the shipped code with exactly one thing wrong. The table says under which profile a defect must be
found, within how many seeds, and by which words. Relies on the insides of the core, the replica and
the stores.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from unittest import mock

import node.checkpointer
import node.effects
import node.replica
import storage.checkpoint
import storage.checkpoint_rows
import storage.rows
from cluster.simulation.disk import Disk
from cluster.simulation.index import SimulatedIndex
from cluster.simulation.machine import Machine
from consensus.block import Rule, Sealer
from consensus.intake import Intake
from consensus.leadership import Leadership
from consensus.log import Log
from consensus.messages import VoteReply, VoteRequest
from consensus.quorum import Poll
from consensus.raft import Raft
from node.barriers import Barriers
from node.checkpointer import Checkpointer
from node.mempool import Mempool
from node.replica import Replica
from node.status import AppliedBlocks
from node.submissions import Waiting
from storage.checkpoint import CheckpointStore
from storage.memory import MemoryChain
from storage.recent import Lookup, RecentIndex
from tests.cluster.simulation.checkpoint_plants import (
    alarms_at_once,
    appends_without_transaction,
    copies_no_transactions,
    copies_what_is_saved,
    gives_up_for_a_minute,
    keeps_lock,
    mixes_columns,
    moves_cursor_apart,
    moves_from_anywhere,
    moves_to_old_hash,
    skips_a_block,
    takes_any_lock,
    trusts_old_progress,
)
from tests.cluster.simulation.core_plants import (
    Plant,
    acknowledges_unsaved,
    answers_unapplied,
    claims_saved,
    commits_unmatched,
    confirms_alone,
    counts_any_term,
    counts_every_reply,
    counts_itself_unsaved,
    counts_one_less,
    drops_too_much,
    follows_old_terms,
    forgets_last_block,
    forgets_to_truncate,
    forgets_vote,
    ignores_previous,
    longer_log_wins,
    overlooks,
    proposes_nothing_empty,
    reads_before_own_commit,
    reads_by_lease,
    seals_clock_time,
    sends_at_once,
    truncates_always,
    unbounded_heartbeat,
    votes_again,
)
from tests.cluster.simulation.disk_plants import (
    acknowledges_unapplied,
    goes_on_without_room,
    reports_unwritten,
    saved_without_room,
    takes_commit_for_applied,
)
from tests.cluster.simulation.node_plants import (
    acknowledges_sealed,
    forgets_tail,
    looks_in_memory_alone,
    recorded_whatever,
    refuses_what_fills,
    remembers_sealed,
    repeats_last,
    settles_by_index,
    settles_whatever,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(frozen=True)
class Defect:
    """One mistake, and where it must be found."""

    name: str
    plants: tuple[Plant, ...]
    found_by: str
    profile: str = "chaos"
    nodes: int = 3
    seeds: int = 40
    """Enough that an unlucky order of draws does not miss it; the search ends at the first find."""
    seconds: float = 30.0
    first_seed: int = 0
    """Where to begin: what takes a rare course of events is looked for near one that has it."""

    @contextmanager
    def planted(self) -> Iterator[None]:
        """The shipped code has this mistake while the context lasts."""
        with ExitStack() as stack:
            for owner, method, make in self.plants:
                wrong = make(getattr(owner, method))
                stack.enter_context(mock.patch.object(owner, method, wrong))
            yield


def replaced(wrong: Any) -> Callable[[Any], Any]:
    """The right method is not needed to make the wrong one."""
    return lambda _right: wrong


DEFECTS: Final = (
    Defect(
        "a vote leaves before it is saved", ((Raft, "_send", sends_at_once(VoteReply)),), "unsaved"
    ),
    Defect(
        "a vote is asked for before the own one is saved",
        ((Raft, "_send", sends_at_once(VoteRequest)),),
        "unsaved",
    ),
    Defect(
        "an acknowledgement leaves before the blocks are saved",
        ((Raft, "_send", acknowledges_unsaved),),
        "acknowledged unsaved|not on its disk",
    ),
    Defect(
        "a heartbeat's reply claims what is not saved",
        ((Raft, "_heartbeat_reply", replaced(claims_saved)),),
        "claims unsaved",
    ),
    Defect("a restart forgets the vote", ((Raft, "__init__", forgets_vote),), "votes? "),
    Defect("a save does not truncate", ((Log, "take_save", forgets_to_truncate),), "contiguous"),
    Defect("a crash loses a saved block", ((MemoryChain, "crash", forgets_last_block),), "."),
    Defect(
        "a member votes twice in a term",
        ((Raft, "_on_vote_request", replaced(votes_again)),),
        "vote",
    ),
    Defect(
        "a vote that arrives twice counts twice",
        ((Poll, "count", replaced(counts_every_reply)),),
        "votes",
        "chaos",
        5,
        80,
    ),
    Defect(
        "a candidate's log is not compared",
        ((Raft, "_is_up_to_date", replaced(lambda _self, _request: True)),),
        ".",
    ),
    Defect(
        "the longer log wins, whatever its terms",
        ((Raft, "_is_up_to_date", replaced(longer_log_wins)),),
        ".",
        "chaos",
        3,
        340,
    ),
    Defect(
        "a new leader seals no block of its term",
        ((Raft, "propose", proposes_nothing_empty),),
        "without a block of it",
    ),
    Defect(
        "blocks of older terms are committed by counting",
        ((Leadership, "commit_index", replaced(counts_any_term)),),
        "by counting",
    ),
    Defect(
        "the leader counts itself before it saved",
        ((Leadership, "commit_index", replaced(counts_itself_unsaved)),),
        "durable on",
    ),
    Defect(
        "a minority commits",
        ((Leadership, "commit_index", replaced(counts_one_less)),),
        "durable on",
    ),
    Defect(
        "a heartbeat's commit index is not bounded by the match",
        ((Leadership, "_heartbeat", replaced(unbounded_heartbeat)),),
        ".",
    ),
    Defect(
        "a follower commits what it did not match", ((Raft, "_on_append", commits_unmatched),), "."
    ),
    Defect("a follower truncates what agrees", ((Intake, "_take_block", truncates_always),), "."),
    Defect(
        "an append's previous block is not compared",
        ((Intake, "take", ignores_previous),),
        ".",
        "chaos",
        3,
        90,
    ),
    Defect("appends of older terms are taken", ((Raft, "_accept_term", follows_old_terms),), "."),
    *(
        Defect(
            f"a block's {rule} is not checked",
            (overlooks(rule),),
            f"{rule}|broken link|another|same term|Log Matching|differs from the committed",
        )
        for rule in (
            Rule.HISTORY_ROOT,
            Rule.TRANSACTIONS_ROOT,
            Rule.SIGNATURE,
            Rule.SEALER,
            Rule.TIMESTAMP,
            Rule.CLUSTER,
            Rule.COUNT,
            Rule.PREVIOUS_HASH,
        )
    ),
    Defect("a block is older than its parent", ((Sealer, "seal", seals_clock_time),), "timestamp"),
    Defect(
        "a read is confirmed without a quorum",
        ((Leadership, "_confirm_reads", confirms_alone),),
        "stale",
        "network",
        3,
        80,
    ),
    Defect(
        "a read is confirmed before a commit of the own term",
        ((Leadership, "_start_read_round", reads_before_own_commit),),
        "stale",
    ),
    Defect(
        "a read trusts a lease as long as an election timeout",
        ((Leadership, "_confirm_reads", reads_by_lease),),
        "stale",
        "network",
        3,
        80,
    ),
    Defect(
        "a read is answered before it is applied",
        ((Barriers, "release", answers_unapplied),),
        "stale",
    ),
    Defect("memory forgets what the index lacks", ((Replica, "flushed", drops_too_much),), "."),
    Defect(
        "a restart forgets which ids are known",
        ((Lookup, "places", replaced(looks_in_memory_alone)),),
        ".",
    ),
    Defect("the tail is not asked for ids", ((Replica, "__init__", forgets_tail),), "twice|."),
    Defect(
        "a new leader forgets the ids of its tail",
        ((Replica, "_unapplied_ids", replaced(lambda _self: ())),),
        ".",
    ),
    Defect(
        "the queue survives a lost leadership",
        ((Mempool, "clear", replaced(lambda _self: None)),),
        ".",
        "network",
        3,
        60,
    ),
    Defect(
        "a known id gets a receipt whatever its content",
        ((node.effects, "recorded_outcome", replaced(recorded_whatever)),),
        "other content",
    ),
    Defect(
        "a waiter hears a receipt whatever was recorded",
        ((Waiting, "settle_block", settles_whatever),),
        "other content",
    ),
    Defect(
        "a receipt is sent when the block is sealed",
        ((Replica, "_seal", acknowledges_sealed),),
        "before it was committed",
    ),
    Defect(
        "a waiter of a truncated block hears its successor's receipt",
        ((Replica, "_seal", remembers_sealed), (Replica, "_apply", settles_by_index)),
        "beyond its block|other content",
        "chaos",
    ),
    Defect(
        "the transaction that fills the queue is refused and taken",
        ((Mempool, "add", refuses_what_fills),),
        "refused|clock",
        "disk",
        3,
        60,
    ),
    Defect(
        "the cursor of PostgreSQL moves in a transaction of its own",
        ((CheckpointStore, "append", moves_cursor_apart),),
        "the cursor is at",
    ),
    Defect(
        "blocks are appended to PostgreSQL without a transaction",
        ((CheckpointStore, "append", appends_without_transaction),),
        "the cursor is at",
    ),
    Defect(
        "the transactions of blocks are not copied",
        ((storage.checkpoint, "_copy_transactions", copies_no_transactions),),
        "lacks a transaction",
    ),
    Defect(
        "the columns of a block are mixed up in PostgreSQL",
        ((storage.checkpoint, "block_row", mixes_columns),),
        "differs in PostgreSQL",
    ),
    Defect(
        "the payload of a transaction is not converted for PostgreSQL",
        ((storage.checkpoint_rows, "payload_json", replaced(lambda _payload: b"null")),),
        "another payload",
    ),
    Defect(
        "the cursor of PostgreSQL keeps its hash",
        ((CheckpointStore, "_move", moves_to_old_hash),),
        "another hash than block",
    ),
    Defect(
        "an old cursor is used again, and nothing is compared",
        (
            (Checkpointer, "_look", trusts_old_progress),
            (CheckpointStore, "_move", moves_from_anywhere),
        ),
        "duplicate key|the cursor is at",
    ),
    Defect(
        "a block is left out, and nothing is compared",
        (
            (node.checkpointer, "_first_rows", skips_a_block),
            (CheckpointStore, "_move", moves_from_anywhere),
        ),
        "a gap at",
    ),
    Defect(
        "what is saved is copied before it is committed",
        ((AppliedBlocks, "commit_index", copies_what_is_saved),),
        "uncommitted",
    ),
    Defect(
        "the lock of PostgreSQL is ignored",
        ((CheckpointStore, "try_lock", replaced(takes_any_lock)),),
        "without the lock",
    ),
    Defect(
        "the lock of PostgreSQL is not given back",
        ((CheckpointStore, "unlock", replaced(keeps_lock)),),
        "keeps the lock",
    ),
    Defect(
        "a database that is away raises the alarm",
        ((Checkpointer, "_wait_for_database", alarms_at_once),),
        "checkpoint_alarm",
    ),
    Defect(
        "a database that was away is left alone for a minute",
        ((Checkpointer, "_wait_for_database", gives_up_for_a_minute),),
        "lacks blocks",
        first_seed=40,
    ),
    Defect(
        "an index batch is reported before it is written",
        ((SimulatedIndex, "apply", reports_unwritten),),
        "not the chain's|finds id|committed twice",
        "disk",
    ),
    Defect(
        "a restart takes what is committed for what is indexed",
        (
            (Machine, "_catch_up", replaced(lambda _self: True)),
            (Raft, "__init__", takes_commit_for_applied),
        ),
        "not the chain's|finds id|twice",
        "disk",
    ),
    Defect(
        "a damaged block is served",
        ((storage.rows, "check_content", replaced(lambda _block: None)),),
        "served other content",
        "disk",
    ),
    Defect(
        "a full disk is acknowledged",
        ((Disk, "_end", saved_without_room),),
        "acknowledged unsaved|not on its disk|claims unsaved|there is no block",
        "disk",
    ),
    Defect(
        "a save refused by a full disk is forgotten",
        ((Machine, "_stop", goes_on_without_room),),
        "after healing",
        "disk",
        5,
    ),
    Defect(
        "a receipt leaves before its block is applied",
        ((Replica, "pump", acknowledges_unapplied),),
        "before it applied",
    ),
    Defect(
        "a page begins with the last row of the page before",
        ((RecentIndex, "history", repeats_last),),
        "not the chain's",
    ),
)
