"""One member's log: what is saved and what is not, truncation, terms as runs, the window."""

from __future__ import annotations

from itertools import pairwise
from random import Random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus import log as log_module
from consensus.block import tip_after
from consensus.log import Log, extend
from consensus.ready import HardState, Save
from tests.consensus.raft_chains import DurableChain, log_of_terms, sealer_of, transaction

if TYPE_CHECKING:
    from collections.abc import Sequence

    from consensus.block import Block, Tip

TERMS = (1, 1, 2, 4, 4, 4, 7)


def log_with(terms: Sequence[int], *, commit: int = 0, applied: int = 0) -> Log:
    """A log just opened on a durable chain of these terms."""
    chain = DurableChain(log_of_terms(3, tuple(terms)), HardState())
    return Log(chain, commit_index=commit, applied_index=applied)


def append(log: Log, terms: Sequence[int], *, after: int | None = None) -> None:
    """Appends the blocks of that row of terms that follow what the log holds, or `after`."""
    for block in log_of_terms(3, tuple(terms))[(log.last_index if after is None else after) + 1 :]:
        log.append(block, tip_after(log.last_tip, block))


def save(log: Log) -> Save:
    """Begins a save; `finish` ends it."""
    truncate_from, blocks = log.take_save()
    return Save(HardState(), truncate_from, blocks)


def finish(log: Log, begun: Save) -> None:
    """The save is durable."""
    chain = log._chain
    assert isinstance(chain, DurableChain)
    chain.save(begun)
    log.mark_saved(begun.blocks)


def terms_of(log: Log) -> list[int]:
    """The log as a row of terms."""
    return [log.term_at(index) for index in range(1, log.last_index + 1)]


def test_opened_where_the_chain_ends() -> None:
    """Everything that is durable counts as saved."""
    log = log_with(TERMS, commit=3, applied=2)
    assert (7, 7, 7, 3, 2) == (
        log.last_index,
        log.saved_index,
        log.last_term,
        log.commit_index,
        log.applied_index,
    )
    assert not log.has_unsaved
    assert list(TERMS) == terms_of(log)
    assert log_of_terms(3, TERMS)[4].hash == log.hash_at(4)


@pytest.mark.parametrize(("commit", "applied"), [(2, 3), (8, 0)])
def test_impossible_beginnings_are_refused(commit: int, applied: int) -> None:
    """Applied beyond committed, or committed beyond what is durable."""
    with pytest.raises(AssertionError):
        log_with(TERMS, commit=commit, applied=applied)


def test_the_chain_s_own_lists_stay_its_own() -> None:
    """A store that hands out its list of terms does not find it changed."""
    chain = DurableChain(log_of_terms(3, (1,)), HardState())
    starts = chain.term_starts()
    chain.term_starts = lambda: starts  # type: ignore[method-assign]  # a store that keeps a list
    log = Log(chain, commit_index=0, applied_index=0)
    append(log, (1, 2))
    assert starts == [(0, 0), (1, 1)]


@pytest.mark.parametrize("index", [-1, 8])
def test_no_block_outside_the_log(index: int) -> None:
    """Neither before genesis nor after the end."""
    log = log_with(TERMS)
    for look_up in (log.term_at, log.tip_at, log.hash_at):
        with pytest.raises(AssertionError, match="no block"):
            look_up(index)


@pytest.mark.parametrize(
    ("index", "term", "expected"),
    [(7, 7, 7), (7, 9, 7), (99, 9, 7), (7, 6, 6), (7, 4, 6), (5, 4, 5), (7, 3, 3), (7, 0, 0)],
)
def test_last_at_or_below_term(index: int, term: int, expected: int) -> None:
    """The highest index not above one whose term is not above another."""
    assert expected == log_with(TERMS).last_at_or_below_term(index, term)


@given(
    st.lists(st.integers(0, 2), max_size=8),
    st.integers(0, 12),
    st.integers(0, 20),
    st.integers(0, 8),
)
def test_last_at_or_below_term_is_what_it_says(
    steps: list[int], index: int, term: int, cut: int
) -> None:
    """Compared with looking at every block, also after a truncation."""
    terms: list[int] = []
    for step in steps:
        terms.append((terms[-1] if terms else 1) + step)
    log = log_with(())
    append(log, terms)
    if 0 < cut <= log.last_index:
        log.truncate_from(cut)
    expected = max(i for i in range(min(index, log.last_index) + 1) if log.term_at(i) <= term)
    assert expected == log.last_at_or_below_term(index, term)


def misfit(log: Log, fault: str) -> tuple[Block, Tip]:
    """A block that cannot follow, with the tip it would have."""
    if fault == "gap":
        block = log_of_terms(3, (1, 3, 3, 3))[4]
        return block, log_with((1, 3, 3, 3)).last_tip
    if fault == "tip":
        return log_of_terms(3, (1, 3, 3))[3], log.last_tip
    parent = log_with((1, 1)).last_tip
    block = sealer_of("a", 3, seed="").seal(parent, term=2, transactions=(), wall_us=0)
    return block, tip_after(parent, block)


@pytest.mark.parametrize(
    ("fault", "text"),
    [("gap", "contiguous"), ("tip", "the tip is the block's own"), ("term", "terms never fall")],
)
def test_blocks_follow_one_another(fault: str, text: str) -> None:
    """In index and term, each with its own tip."""
    log = log_with((1, 3))
    block, tip = misfit(log, fault)
    with pytest.raises(AssertionError, match=text):
        log.append(block, tip)


def test_sealed_block_extends_the_log() -> None:
    """Its tip is computed, and stands for all before it."""
    log = log_with((1,))
    block = sealer_of("a", 3, seed="").seal(log.last_tip, term=1, transactions=(), wall_us=5)
    extend(log, block)
    assert (block.hash, 2) == (log.last_tip.hash, log.last_index)
    assert tip_after(log.tip_at(1), block) == log.last_tip


def test_saving_in_turns() -> None:
    """What is appended while a save runs belongs to the next one."""
    log = log_with((1,))
    append(log, (1, 1, 1))
    assert log.has_unsaved
    first = save(log)
    assert (None, [2, 3]) == (first.truncate_from, [block.index for block in first.blocks])
    assert (False, 1) == (log.has_unsaved, log.saved_index)
    append(log, (1, 1, 1, 2))
    assert log.has_unsaved
    finish(log, first)
    assert log.saved_index == 3
    second = save(log)
    assert [4] == [block.index for block in second.blocks]
    finish(log, second)
    assert log.saved_index == 4


def test_truncation_of_saved_blocks() -> None:
    """The next save truncates before it appends."""
    log = log_with((1, 2, 2, 2), commit=1)
    log.truncate_from(3)
    assert (2, 2, [1, 2], True) == (
        log.last_index,
        log.saved_index,
        terms_of(log),
        log.has_unsaved,
    )
    append(log, (1, 2, 5))
    begun = save(log)
    assert (3, [3]) == (begun.truncate_from, [block.index for block in begun.blocks])
    finish(log, begun)
    assert (3, False, [1, 2, 5]) == (log.saved_index, log.has_unsaved, terms_of(log))


def test_truncation_of_blocks_that_were_never_saved() -> None:
    """Nothing to truncate on the disk."""
    log = log_with((1,))
    append(log, (1, 2, 2))
    log.truncate_from(2)
    assert not log.has_unsaved
    append(log, (1, 3))
    begun = save(log)
    assert (None, [2]) == (begun.truncate_from, [block.index for block in begun.blocks])


def test_truncations_add_up() -> None:
    """Two before one save truncate from the lower place, in either order."""
    for places in ((4, 3), (3, 3), (4, 2)):
        log = log_with((1, 1, 1, 1))
        log.truncate_from(places[0])
        append(log, [*terms_of(log), 5, 5])
        log.truncate_from(places[1])
        begun = save(log)
        assert (min(places), ()) == (begun.truncate_from, begun.blocks)


def test_truncation_above_the_first_leaves_its_place() -> None:
    """Cutting off what was appended after a truncation does not move where the disk is cut."""
    log = log_with((1, 1, 1))
    log.truncate_from(2)
    append(log, (1, 4, 4))
    log.truncate_from(3)
    begun = save(log)
    assert (2, [2]) == (begun.truncate_from, [block.index for block in begun.blocks])


def test_save_of_truncated_blocks_does_not_count() -> None:
    """Neither of those that are gone nor of others in their place."""
    log = log_with((1,))
    append(log, (1, 2, 2, 2))
    begun = save(log)
    log.truncate_from(3)
    append(log, (1, 2, 3, 3, 3))
    finish(log, begun)
    assert log.saved_index == 2
    following = save(log)
    assert (3, [3, 4, 5]) == (following.truncate_from, [b.index for b in following.blocks])
    finish(log, following)
    assert log.saved_index == 5


def test_empty_save_changes_nothing() -> None:
    """A save of the hard state alone brings no block."""
    log = log_with((1, 1))
    log.mark_saved(())
    assert log.saved_index == 2


@pytest.mark.parametrize("index", [2, 5])
def test_what_may_not_be_truncated(index: int) -> None:
    """A committed block, and one that is not there."""
    log = log_with((1, 1, 1, 1), commit=2)
    with pytest.raises(AssertionError):
        log.truncate_from(index)


@pytest.mark.parametrize("index", [1, 5])
def test_commit_neither_falls_nor_runs_ahead(index: int) -> None:
    """Of what was committed, and of what is there."""
    log = log_with((1, 1, 1, 1), commit=2)
    with pytest.raises(AssertionError, match="commit never falls nor runs ahead"):
        log.commit_to(index)


def test_committed_blocks_are_handed_out_once_and_saved() -> None:
    """In order, as far as both committed and saved."""
    log = log_with((1,))
    append(log, (1, 1, 1))
    log.commit_to(3)
    assert [1] == [block.index for block in log.take_committed(1 << 20)]
    assert log.take_committed(1 << 20) == ()
    begun = save(log)
    assert log.take_committed(1 << 20) == ()
    finish(log, begun)
    assert [2, 3] == [block.index for block in log.take_committed(1 << 20)]


@pytest.mark.parametrize("is_recent", [True, False])
def test_slices_hold_at_least_one_block(*, is_recent: bool) -> None:
    """However small the limit; from memory and from the chain alike."""
    log = log_with(() if is_recent else (1, 1, 1))
    append(log, (1, 1, 1))
    finish(log, save(log))
    log.commit_to(3)
    size_bytes = log_of_terms(3, (1,))[1].size_bytes
    assert [1] == [block.index for block in log.take_committed(1)]
    assert [2, 3] == [block.index for block in log.take_committed(2 * size_bytes + 50)]


def test_blocks_from_memory_and_chain() -> None:
    """Never those beyond a truncation that the chain still holds."""
    log = log_with((1, 1, 1, 1), commit=2)
    log.truncate_from(3)
    blocks = log_of_terms(3, (1, 1, 5, 5))
    assert list(blocks[1:3]) == log.blocks_from(1, max_blocks=9, max_bytes=1 << 20)
    assert [] == log.blocks_from(3, max_blocks=9, max_bytes=1 << 20)
    append(log, (1, 1, 5, 5))
    assert list(blocks[1:3]) == log.blocks_from(1, max_blocks=9, max_bytes=1 << 20)
    assert list(blocks[3:]) == log.blocks_from(3, max_blocks=9, max_bytes=1 << 20)
    assert [blocks[3]] == log.blocks_from(3, max_blocks=1, max_bytes=1 << 20)


def test_single_blocks() -> None:
    """From memory alone, or from wherever the block is."""
    log = log_with((1, 1), commit=2)
    append(log, (1, 1, 2))
    blocks = log_of_terms(3, (1, 1, 2))
    assert (None, None, blocks[3], None) == tuple(log.recent_block(index) for index in (0, 2, 3, 4))
    assert list(blocks) == [log.block(index) for index in range(4)]
    for index in (-1, 4):
        with pytest.raises(AssertionError, match="no block"):
            log.block(index)


@pytest.mark.parametrize("limit", ["WINDOW_BLOCKS", "WINDOW_BYTES"])
def test_window_keeps_what_is_not_applied(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Applied blocks beyond it are dropped, oldest first, and read back from the chain."""
    size_bytes = log_of_terms(3, (1,))[1].size_bytes
    monkeypatch.setattr(log_module, limit, 3 if limit == "WINDOW_BLOCKS" else 3 * size_bytes + 99)
    log = log_with(())
    append(log, (1,) * 10)
    finish(log, save(log))
    log.commit_to(8)
    log.take_committed(6 * size_bytes + 99)
    assert log.applied_index == 6
    assert [6, 7, 8, 9, 10] == list(log._recent)
    assert [5, 6, 7, 8, 9, 10] == list(log._tips), "the tip before the window stays"
    log.take_committed(1 << 20)
    assert [8, 9, 10] == list(log._recent)
    assert 3 * size_bytes >= log._recent_bytes - 99
    assert list(range(2, 11)) == [
        block.index
        for first, count in ((2, 6), (8, 9))
        for block in log.blocks_from(first, max_blocks=count, max_bytes=1 << 20)
    ]
    assert log.hash_at(3) == log_of_terms(3, (1,) * 10)[3].hash


@pytest.mark.parametrize("seed", range(40))
def test_random_lives_keep_the_chain_and_the_log_alike(seed: int) -> None:
    """Appends, truncations, saves and commits in any order: what counts as saved is on the disk."""
    random = Random(seed)
    log = log_with(())
    sealer = sealer_of("a", 3, seed=str(seed))
    begun: Save | None = None
    for number in range(120):
        action = random.choice("aaatsfcc")
        if action == "a":
            term = log.last_term + random.choice([0, 0, 1])
            content = [transaction(number)]
            extend(log, sealer.seal(log.last_tip, term=term, transactions=content, wall_us=0))
        elif action == "t" and log.commit_index < log.last_index:
            log.truncate_from(random.randint(log.commit_index + 1, log.last_index))
        elif action == "s" and begun is None and log.has_unsaved:
            begun = save(log)
        elif action == "f" and begun is not None:
            finish(log, begun)
            begun = None
        elif action == "c":
            log.commit_to(random.randint(log.commit_index, log.saved_index))
            log.take_committed(2_000)
        chain = log._chain
        assert isinstance(chain, DurableChain)
        assert log.applied_index <= log.commit_index <= log.last_index
        assert log.saved_index <= log.last_index
        assert chain.holds(log.saved_index, log.hash_at(log.saved_index))
        starts = [start for start, _ in log._term_starts]
        assert starts == sorted(set(starts))
        assert all(one < other for (_, one), (_, other) in pairwise(log._term_starts))
    for _ in range(2):
        if begun is not None:
            finish(log, begun)
        begun = save(log) if log.has_unsaved else None
    assert (log.saved_index, False) == (log.last_index, log.has_unsaved)
