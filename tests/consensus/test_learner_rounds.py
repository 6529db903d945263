"""A learner that has caught up is promoted, whether or not anything is recorded meanwhile."""

from __future__ import annotations

from consensus.changes import Change, ChangeKind
from consensus.leadership import Leadership, RaftConfig
from consensus.log import Log
from consensus.messages import AppendReply, HeartbeatReply
from consensus.ready import HardState
from storage.memory import MemoryChain
from tests.storage.society import Society

CONFIG = RaftConfig(heartbeat_us=50_000, election_min_us=300_000, election_max_us=600_000)
LAST = 2


def leader_of_one_learner() -> tuple[Society, Leadership]:
    """Member 1 leads alone in term 1, has just added member 4, and all of that is committed."""
    society = Society(1)
    society.record()
    society.change(ChangeKind.ADD, 4)
    chain = MemoryChain(society.genesis)
    state = HardState(1, society.members[1].public_key, LAST)
    chain.save(hard_state=state, truncate_from=None, blocks=society.blocks[1:])
    log = Log(chain, commit_index=LAST, applied_index=LAST)
    return society, Leadership(
        term=1, member=society.members[1].public_key, log=log, config=CONFIG, now_us=0
    )


def test_a_learner_that_took_long_is_promoted_in_an_idle_cluster() -> None:
    """Its first round was a long one, and no append ends another: heartbeats do."""
    society, leadership = leader_of_one_learner()
    learner = society.members[4]
    now_us = 2 * CONFIG.election_max_us
    leadership.step(learner.public_key, AppendReply(1, LAST), now_us)
    assert leadership.promotion(now_us) is None
    now_us += CONFIG.heartbeat_us
    leadership.step(learner.public_key, HeartbeatReply(1, 1, LAST, LAST), now_us)
    assert Change(ChangeKind.PROMOTE, learner) == leadership.promotion(now_us)


def test_heartbeats_of_a_learner_that_lacks_blocks_end_no_round() -> None:
    """It answers, but what it holds is not what a voter must hold."""
    society, leadership = leader_of_one_learner()
    learner = society.members[4]
    for beat in range(1, 9):
        now_us = beat * CONFIG.heartbeat_us
        leadership.step(learner.public_key, HeartbeatReply(1, beat, 0, 0), now_us)
        assert leadership.promotion(now_us) is None
