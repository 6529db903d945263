"""The history checker: what can be true passes, and each thing that cannot is named."""

from __future__ import annotations

import time

import pytest

from cluster.checker import (
    NEVER_US,
    Entry,
    Fate,
    Operation,
    Read,
    Row,
    Write,
    check_history,
)


def row(number: int, content: str = "") -> Row:
    """The transaction `number`, in a block of its own."""
    return Row((number, 0), bytes([number]), content.encode() or bytes([number]))


def chain(*numbers: int, user: str = "ada") -> list[Entry]:
    """Committed transactions of one user."""
    return [Entry(user, row(number)) for number in numbers]


def write(number: int, start: int, end: int = NEVER_US, fate: Fate = Fate.ACKNOWLEDGED) -> Write:
    """An offer of the transaction `number`."""
    return Write(
        client=1,
        invoke_us=start,
        complete_us=end,
        user="ada",
        id=bytes([number]),
        content=bytes([number]),
        fate=fate,
        place=(number, 0) if fate is Fate.ACKNOWLEDGED else None,
    )


def read(start: int, end: int, *numbers: int, limit: int = 100) -> Read:
    """A read that saw these transactions, newest first."""
    rows = tuple(row(number) for number in numbers)
    return Read(client=2, invoke_us=start, complete_us=end, user="ada", limit=limit, rows=rows)


def rules(operations: list[Operation], committed: list[Entry]) -> list[str]:
    """The names of the rules that are broken."""
    return [breach.rule for breach in check_history(operations, committed)]


def test_a_lawful_history_passes() -> None:
    """Acknowledged, unknown but present, unknown and absent, refused, and reads between them."""
    operations = [
        write(1, 0, 10),
        write(2, 5, fate=Fate.UNKNOWN),
        write(3, 6, fate=Fate.UNKNOWN),
        write(4, 7, 8, fate=Fate.REFUSED),
        read(11, 12, 1),
        read(13, 14, 2, 1),
        read(15, 16, 2, limit=1),
    ]
    assert [] == rules(operations, chain(1, 2))


@pytest.mark.parametrize(
    ("operations", "committed", "rule"),
    [
        ([write(1, 0, 10)], [], "acknowledged means present"),
        (
            [write(1, 0, 10), write(2, 0, 10)],
            [Entry("ada", row(1)), Entry("ada", Row((3, 0), b"\2", b"\2"))],
            "acknowledged stays as it was",
        ),
        (
            [write(1, 0, 10, Fate.CONFLICT), write(1, 0, fate=Fate.UNKNOWN)],
            chain(1),
            "conflict means never present",
        ),
        ([write(1, 0, 10, Fate.CONFLICT)], [], "conflict means present"),
        (
            [write(1, 0, 10, Fate.REFUSED)],
            chain(1),
            "nothing is recorded that was refused or not offered",
        ),
        ([], chain(1), "nothing is recorded that was refused or not offered"),
        ([write(2, 0, 10), write(1, 11, 20)], chain(1, 2), "the chain agrees with the clock"),
        ([write(1, 0, 10), read(11, 12)], chain(1), "a read is not stale"),
        (
            [write(1, 0), write(2, 0), read(5, 6, 2, 1), read(7, 8, 1)],
            chain(1, 2),
            "a read is not stale",
        ),
        ([write(1, 0), read(5, 6, 7)], chain(1), "a read is a piece of the chain"),
        (
            [write(1, 0), write(2, 0), read(5, 6, 2)],
            chain(1, 2),
            "a read is a piece of the chain",
        ),
        ([write(1, 9), read(5, 6, 1)], chain(1), "a read is not from the future"),
    ],
)
def test_what_cannot_be_true_is_named(
    operations: list[Operation], committed: list[Entry], rule: str
) -> None:
    """One lie in a history, and the rule it breaks."""
    for operation in operations:
        if isinstance(operation, Write) and operation.complete_us == NEVER_US:
            operation.fate, operation.place = Fate.UNKNOWN, None
    assert [rule] == rules(operations, committed)


def test_an_id_twice_in_the_chain_is_named() -> None:
    """Ids are unique, and places rise."""
    assert "ids are unique" in rules([write(1, 0, 10)], chain(1, 1))
    assert "places rise" in rules([write(1, 0, 5), write(2, 0, 5)], chain(2, 1))


def test_a_long_history_is_checked_quickly() -> None:
    """A million operations take well under a minute: a twentieth of them under three seconds."""
    count = 25_000
    operations: list[Operation] = []
    committed = []
    for number in range(count):
        wanted, user = number.to_bytes(16, "big"), f"user{number % 500}"
        one = Row((number, 0), wanted, wanted)
        committed.append(Entry(user, one))
        start = number * 10
        operations.append(
            Write(
                client=0,
                invoke_us=start,
                complete_us=start + 5,
                user=user,
                id=wanted,
                content=wanted,
                fate=Fate.ACKNOWLEDGED,
                place=one.place,
            )
        )
        operations.append(
            Read(
                client=1,
                invoke_us=start + 6,
                complete_us=start + 7,
                user=user,
                limit=1,
                rows=(one,),
            )
        )
    start_s = time.process_time()
    assert [] == check_history(operations, committed)
    assert time.process_time() - start_s < 3
