"""Who waits for whom at the client port, and for how long at most."""

from __future__ import annotations

from node.port_gathering import LONGEST_WAIT_S, Gathering


def gathering(call_s: float = 0.004) -> Gathering:
    """One that has seen many calls that took so long."""
    made = Gathering()
    for _ in range(200):
        made.note_call(call_s)
    return made


def test_a_client_that_is_alone_never_waits() -> None:
    """Neither at first nor after its answers."""
    one = gathering()
    for now in (0.0, 0.001, 0.002):
        assert one.is_over("a", now)
        one.answered("a", now)


def test_those_who_were_answered_together_are_waited_for() -> None:
    """Until the last of them has come."""
    one = gathering()
    for client in "abc":
        one.answered(client, 1.0)
    assert [False, False, True] == [one.is_over(client, 1.001) for client in "bca"]


def test_nobody_waits_longer_than_half_a_call() -> None:
    """Who was answered before that is expected no more."""
    one = gathering(0.004)
    assert 0.0019 < one.wait_s < 0.0021
    one.answered("a", 1.0)
    assert not one.is_over("b", 1.0019)
    assert one.is_over("b", 1.0021)
    assert one.is_over("b", 1.0019)


def test_slow_calls_have_a_longest_wait() -> None:
    """A node that commits once a second does not make the port wait for half of that."""
    assert LONGEST_WAIT_S == gathering(1.0).wait_s
    assert 0.0 == Gathering().wait_s


def test_one_that_is_gone_is_not_waited_for() -> None:
    """Its connection is closed."""
    one = gathering()
    one.answered("a", 1.0)
    one.forget("a")
    assert one.is_over("b", 1.0)
