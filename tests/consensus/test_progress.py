"""What the leader knows of one follower: probing, the window, acknowledgements, losses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.progress import (
    MAX_INFLIGHT_BLOCKS,
    MAX_INFLIGHT_BYTES,
    MAX_PATIENCE_US,
    Progress,
)

NOW_US = 0
PATIENCE_US = 100


def replicating(*, match_index: int = 10) -> Progress:
    """A follower that is known to hold everything through `match_index`."""
    progress = Progress(next_index=match_index + 1, last_heard_us=0)
    progress.sent(last_index=match_index, blocks=0, size_bytes=0, now_us=0)
    progress.acknowledged(match_index, NOW_US)
    return progress


def send(progress: Progress, *, blocks: int = 1, size_bytes: int = 100, now_us: int = 0) -> None:
    """One append of what comes next."""
    last_index = progress.next_index + blocks - 1
    progress.sent(last_index=last_index, blocks=blocks, size_bytes=size_bytes, now_us=now_us)


def looks_lost(progress: Progress, *, last: int, saved: int, now_us: int) -> bool:
    """Whether a heartbeat reply with these numbers shows a loss."""
    return progress.looks_lost(
        follower_last=last, follower_saved=saved, now_us=now_us, patience_us=PATIENCE_US
    )


def test_probe_is_sent_one_at_a_time() -> None:
    """Nothing more leaves before it is answered, and the next index does not move."""
    progress = Progress(next_index=5, last_heard_us=0)
    assert progress.has_room
    progress.sent(last_index=9, blocks=5, size_bytes=500, now_us=7)
    assert (5, False, 7) == (progress.next_index, progress.has_room, progress.probe_sent_us)


@pytest.mark.parametrize(("match", "probing"), [(3, True), (4, False), (9, False)])
def test_probe_is_answered_by_a_match_at_its_place(match: int, *, probing: bool) -> None:
    """An acknowledgement from below it is an older one, and answers nothing."""
    progress = Progress(next_index=5, last_heard_us=0)
    progress.sent(last_index=9, blocks=5, size_bytes=500, now_us=0)
    progress.match_index = 3
    progress.acknowledged(match, NOW_US)
    assert probing == progress.probing
    assert progress.next_index == max(5, match + 1)


def test_window_counts_blocks_and_bytes() -> None:
    """It is full with sixteen blocks, or with eight mebibytes."""
    progress = replicating()
    send(progress, blocks=MAX_INFLIGHT_BLOCKS - 1)
    assert (True, 1) == (progress.has_room, progress.room_blocks)
    send(progress)
    assert (False, 0) == (progress.has_room, progress.room_blocks)
    progress = replicating()
    send(progress, size_bytes=MAX_INFLIGHT_BYTES - 1)
    assert progress.has_room
    send(progress, size_bytes=1)
    assert not progress.has_room


def test_acknowledgement_is_cumulative() -> None:
    """It answers every append that ends at or before it, and no other."""
    progress = replicating()
    for blocks in (1, 2, 3):
        send(progress, blocks=blocks)
    progress.acknowledged(14, NOW_US)
    assert (14, 17, 3, 100) == (
        progress.match_index,
        progress.next_index,
        progress.inflight_blocks,
        progress.inflight_bytes,
    )
    progress.acknowledged(12, NOW_US)
    assert progress.match_index == 14
    progress.acknowledged(16, NOW_US)
    assert (0, 0) == (progress.inflight_blocks, progress.inflight_bytes)


def test_match_beyond_the_next_index_moves_it() -> None:
    """Acknowledgements from before a new probe count as well."""
    progress = replicating()
    for _ in range(3):
        send(progress)
    progress.probe_from(11)
    progress.acknowledged(13, NOW_US)
    assert (14, False) == (progress.next_index, progress.probing)


def test_appends_are_contiguous() -> None:
    """What is sent begins where the last append ended."""
    with pytest.raises(AssertionError, match="contiguous"):
        replicating().sent(last_index=13, blocks=1, size_bytes=1, now_us=0)


def test_rejection_starts_a_probe() -> None:
    """What is in flight is forgotten."""
    progress = replicating()
    send(progress, blocks=4)
    progress.rejected(previous_index=14, retry_from=12)
    assert (True, 12, 0, 0) == (
        progress.probing,
        progress.next_index,
        progress.inflight_blocks,
        progress.inflight_bytes,
    )
    assert progress.has_room


@pytest.mark.parametrize("previous", [9, 10])
def test_rejection_of_what_matches_is_out_of_date(previous: int) -> None:
    """A follower that is known to hold a block cannot lack it."""
    progress = replicating()
    progress.rejected(previous_index=previous, retry_from=1)
    assert not progress.probing


@pytest.mark.parametrize("previous", [3, 5])
def test_rejection_of_another_probe_is_out_of_date(previous: int) -> None:
    """Only the probe that is out counts."""
    progress = Progress(next_index=5, last_heard_us=0)
    progress.sent(last_index=4, blocks=0, size_bytes=0, now_us=0)
    progress.rejected(previous_index=previous, retry_from=1)
    assert (5, False) == (progress.next_index, progress.has_room)
    progress.rejected(previous_index=4, retry_from=2)
    assert (2, True) == (progress.next_index, progress.has_room)


def test_probe_never_goes_behind_what_matches() -> None:
    """Whatever the follower hints at."""
    progress = replicating()
    send(progress, blocks=4)
    progress.rejected(previous_index=14, retry_from=3)
    assert progress.next_index == 11
    with pytest.raises(AssertionError, match="never sent again"):
        progress.probe_from(10)


def test_probe_is_lost_after_a_while() -> None:
    """Not before the patience is over, and not if none was sent."""
    progress = Progress(next_index=5, last_heard_us=0)
    assert not looks_lost(progress, last=0, saved=0, now_us=1_000)
    progress.sent(last_index=4, blocks=0, size_bytes=0, now_us=1_000)
    assert not looks_lost(progress, last=0, saved=0, now_us=1_000 + PATIENCE_US - 1)
    assert looks_lost(progress, last=99, saved=99, now_us=1_000 + PATIENCE_US)


def test_lost_probe_is_repeated_at_its_place() -> None:
    """Nothing is known to match yet: behind that would be the whole chain."""
    progress = Progress(next_index=5_000, last_heard_us=0)
    progress.sent(last_index=4_999, blocks=0, size_bytes=0, now_us=0)
    progress.retry(patience_us=PATIENCE_US)
    assert (5_000, True, True) == (progress.next_index, progress.probing, progress.has_room)


def test_lost_append_is_repeated_from_what_matches() -> None:
    """By one probe, that brings the first blocks along."""
    progress = replicating()
    send(progress, blocks=4)
    progress.retry(patience_us=PATIENCE_US)
    assert (11, True, 0) == (progress.next_index, progress.probing, progress.inflight_blocks)


@pytest.mark.parametrize(
    ("last", "saved", "now_us", "lost"),
    [
        pytest.param(10, 10, PATIENCE_US, True, id="the first append is missing"),
        pytest.param(10, 10, PATIENCE_US - 1, False, id="but not for long enough"),
        pytest.param(12, 10, 50 + PATIENCE_US, True, id="the second append is missing"),
        pytest.param(12, 10, 50 + PATIENCE_US - 1, False, id="it left after the first"),
        pytest.param(14, 10, 10 * PATIENCE_US, False, id="all is there and not saved"),
        pytest.param(14, 12, PATIENCE_US, True, id="saved, but the acknowledgement is missing"),
        pytest.param(14, 12, PATIENCE_US - 1, False, id="which may still be on its way"),
        pytest.param(99, 99, PATIENCE_US, True, id="a longer log of another leader"),
    ],
)
def test_losses_show(last: int, saved: int, now_us: int, *, lost: bool) -> None:
    """By the oldest append that the follower either lacks or must have acknowledged."""
    progress = replicating()
    send(progress, blocks=2, now_us=0)
    send(progress, blocks=2, now_us=50)
    assert lost == looks_lost(progress, last=last, saved=saved, now_us=now_us)


def test_patience_has_an_end() -> None:
    """However slow the follower was, and however often something was lost."""
    progress = replicating()
    send(progress)
    progress.acknowledged(11, 60_000_000)
    send(progress, now_us=60_000_000)
    end_us = 60_000_000 + MAX_PATIENCE_US
    assert not looks_lost(progress, last=11, saved=11, now_us=end_us - 1)
    assert looks_lost(progress, last=11, saved=11, now_us=end_us)


def test_nothing_in_flight_is_never_lost() -> None:
    """A follower that lags behind for other reasons is served when there is something to send."""
    assert not looks_lost(replicating(), last=0, saved=0, now_us=1_000_000)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["send", "ack", "reject", "retry"]), st.integers(0, 40), st.booleans()
        ),
        max_size=40,
    )
)
def test_invariants_hold_in_any_order(events: list[tuple[str, int, bool]]) -> None:
    """What matches is below what comes next; the sums are those of what is in flight."""
    progress = Progress(next_index=20, last_heard_us=0)
    for event, number, flag in events:
        if event == "send" and progress.has_room:
            send(progress, blocks=min(1 + number % 3, progress.room_blocks))
        elif event == "ack":
            progress.acknowledged(number, NOW_US)
        elif event == "reject":
            progress.rejected(previous_index=progress.next_index - flag, retry_from=number)
        elif event == "retry":
            progress.retry(patience_us=PATIENCE_US)
        assert progress.match_index < progress.next_index
        assert progress.inflight_blocks == sum(append.blocks for append in progress.inflight)
        assert progress.inflight_bytes == sum(append.size_bytes for append in progress.inflight)
        assert progress.inflight_blocks <= MAX_INFLIGHT_BLOCKS
        assert not (progress.probing and progress.inflight)
        ends = [append.last_index for append in progress.inflight]
        assert ends == sorted(set(ends))
        assert not ends or ends[-1] == progress.next_index - 1


def test_patience_follows_the_slowest_round_trip() -> None:
    """On a thin link what takes long to arrive is not sent again while it is on its way."""
    progress = replicating()
    send(progress, now_us=0)
    progress.acknowledged(11, 10 * PATIENCE_US)
    send(progress, now_us=10 * PATIENCE_US)
    assert not looks_lost(progress, last=11, saved=11, now_us=29 * PATIENCE_US)
    assert looks_lost(progress, last=11, saved=11, now_us=30 * PATIENCE_US)


def test_patience_doubles_with_each_loss_and_has_an_end() -> None:
    """Whoever does not answer is not flooded nor given up; acknowledgements shrink it again."""
    progress = replicating()
    waits = []
    for _ in range(20):
        send(progress, now_us=0)
        wait_us = PATIENCE_US
        while not looks_lost(progress, last=10, saved=10, now_us=wait_us):
            wait_us *= 2
        waits.append(wait_us)
        progress.retry(patience_us=PATIENCE_US)
    assert [PATIENCE_US, 2 * PATIENCE_US, 4 * PATIENCE_US] == waits[:3]
    assert waits[-1] <= 2 * MAX_PATIENCE_US
    progress.acknowledged(11, 0)
    for index in range(12, 120):
        send(progress, now_us=0)
        progress.acknowledged(index, 0)
    send(progress, now_us=0)
    assert looks_lost(progress, last=119, saved=119, now_us=2 * PATIENCE_US)
