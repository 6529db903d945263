"""Planted defects that have to do with members, as `defects.py` beside it has the others."""

from __future__ import annotations

from typing import Any, Final

import consensus.roster
from cluster.simulation.machine import Machine
from consensus.changes import ChangeRefusal, Membership
from consensus.intake import Intake
from consensus.leadership import Leadership
from consensus.learners import Round
from consensus.raft import Raft
from node.catchup import CatchUp
from node.fetching import Fetching
from tests.cluster.simulation.defects import Defect, replaced
from tests.cluster.simulation.membership_plants import (
    asks_at_once,
    believes_in_lost_leader,
    believes_its_genesis,
    comes_back_as_it_was,
    counts_by_committed,
    counts_itself_removed,
    counts_learners,
    fetches_unverified,
    forgets_who_was_silent,
    keeps_truncated,
    knows_everybody,
    may_always_propose,
    plans_in_spite_of,
    promotes_after_short_rounds_alone,
    serves_saved,
    takes_former,
    tells_the_silent_nothing,
    votes_by_committed,
    votes_for_successor,
)


def defect(name: str, *plants: Any, found_by: str, seeds: int = 20, **more: Any) -> Defect:
    """A defect that the profile `membership` finds."""
    return Defect(name, plants, found_by, "membership", seeds=seeds, **more)


MEMBERSHIP_DEFECTS: Final = (
    defect(
        "a change is made before a commit in the own term",
        (Leadership, "plan", plans_in_spite_of(ChangeRefusal.NO_COMMIT_IN_TERM)),
        found_by="before a commit in its own term",
    ),
    defect(
        "two changes are made at once",
        (Leadership, "plan", plans_in_spite_of(ChangeRefusal.CHANGE_UNDER_WAY)),
        found_by="is not committed",
    ),
    defect(
        "a change counts for commits once it is committed",
        (Leadership, "commit_index", replaced(counts_by_committed)),
        found_by="durable on|not the members that are wanted",
    ),
    defect(
        "a change counts for votes once it is committed",
        (Raft, "voters", votes_by_committed),
        found_by="votes|not the members that are wanted",
    ),
    defect(
        "a learner counts in majorities",
        (Membership, "voters", replaced(property(lambda self: self.keys))),
        found_by="durable on|votes|sealer|not the members that are wanted",
    ),
    defect(
        "a learner counts for commits",
        (Leadership, "commit_index", replaced(counts_learners)),
        found_by="durable on|not the members that are wanted",
        seeds=80,
    ),
    defect(
        "a leader that removed itself counts itself",
        (Leadership, "commit_index", replaced(counts_itself_removed)),
        found_by="durable on",
        seeds=60,
    ),
    defect(
        "a wiped disk comes back under its old key",
        (Machine, "set_up", comes_back_as_it_was),
        (consensus.roster, "_refuse_former", replaced(takes_former)),
        found_by="wiped disk|member again",
    ),
    defect(
        "a change survives its truncated block",
        (consensus.roster.Roster, "truncate_from", replaced(lambda _self, _index: None)),
        (consensus.roster.Roster, "append", keeps_truncated),
        found_by="another roster",
        seeds=60,
    ),
    defect(
        "a leader seals while it hands over",
        (Raft, "may_propose", may_always_propose),
        found_by="while it hands over",
        nodes=5,
        seeds=80,
    ),
    defect(
        "a successor gets votes whatever its log",
        (Raft, "_on_vote_request", votes_for_successor),
        (Leadership, "_ask_successor", asks_at_once),
        found_by="is behind its own|Leader Completeness",
        nodes=5,
        seeds=60,
    ),
    defect(
        "fetched blocks are not verified",
        (Intake, "take_committed", fetches_unverified),
        found_by=".",
    ),
    defect(
        "blocks are served that are not committed",
        (Fetching, "on_request", serves_saved),
        found_by="not committed",
        seeds=60,
    ),
    defect(
        "a living leader does not keep elections off",
        (Raft, "_leader_is_alive", replaced(lambda _self: False)),
        found_by="deposes a leader that it hears",
    ),
    defect(
        "a removed member is listened to",
        (Raft, "_knows", replaced(knows_everybody)),
        found_by="a removed member",
        seeds=60,
    ),
    defect(
        "an idle cluster promotes no learner",
        (Round, "acknowledged", replaced(promotes_after_short_rounds_alone)),
        found_by="not the members that are wanted",
        seeds=60,
    ),
    defect(
        "a learner believes in a lost leader",
        (Raft, "_campaign", believes_in_lost_leader),
        found_by="not the members that are wanted",
    ),
    defect(
        "those that are gone are asked again and again",
        (CatchUp, "_choose", replaced(forgets_who_was_silent)),
        found_by="not the members that are wanted|no read",
        seeds=60,
    ),
    defect(
        "a node that joins trusts the addresses of its genesis",
        (Fetching, "peers", believes_its_genesis),
        found_by="not the members that are wanted",
        seeds=60,
    ),
    defect(
        "a leader that moved tells those it does not hear nothing",
        (Leadership, "_heartbeat", tells_the_silent_nothing),
        found_by="not the members that are wanted",
        first_seed=170,
    ),
)
