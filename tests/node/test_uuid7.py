"""Ids that sort in the order they were made (RFC 9562 §5.7)."""

from __future__ import annotations

import uuid
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from node.uuid7 import Uuid7Source, new_transaction_id, uuid7, uuid_text

RFC_MS = 0x017F22E279B0
RFC_EXAMPLE = uuid.UUID("017f22e2-79b0-7cc3-98c4-dc0c0c07398f")


def entropy_of(pattern: bytes) -> bytes:
    """Enough bytes for the source's pool."""
    return pattern * 400


def test_the_example_of_the_rfc() -> None:
    """RFC 9562 §A.6: time, version, variant and random bits stand where the RFC has them."""
    # The counter is 11 bits here; the example's twelfth bit is set and must be left clear.
    random = (0x4C3 << 62 | 0x18C4DC0C0C07398F).to_bytes(10, "big")
    source = Uuid7Source(wall_ms=lambda: RFC_MS, entropy=lambda _: entropy_of(random))
    expected = RFC_EXAMPLE.int & ~(1 << 75)
    assert expected == int.from_bytes(source.next_bytes(), "big")


def test_version_and_variant() -> None:
    """Python's own reader sees version 7 of the RFC's variant."""
    made = uuid7()
    assert (7, uuid.RFC_4122) == (made.version, made.variant)


def test_ids_of_one_millisecond_ascend() -> None:
    """RFC 9562 §6.2: within one millisecond the counter ascends, also past its end."""
    source = Uuid7Source(wall_ms=lambda: RFC_MS, entropy=lambda _: entropy_of(b"\xff" * 10))
    made = [source.next_bytes() for _ in range(10_000)]
    assert all(one < other for one, other in pairwise(made))


@given(st.lists(st.integers(0, 2**40), min_size=2, max_size=50))
def test_ids_ascend_whatever_the_clock_does(clock: list[int]) -> None:
    """A clock that goes back, stands or leaps never makes an id that sorts before an older one."""
    times = iter(clock)
    source = Uuid7Source(wall_ms=lambda: next(times))
    made = [source.next_bytes() for _ in clock]
    assert all(one < other for one, other in pairwise(made))


def test_entropy_is_never_used_twice() -> None:
    """Each id takes the next ten bytes of the pool, and the pool is filled again."""
    fills = iter([entropy_of(b"\x01" * 10), entropy_of(b"\x02" * 10)])
    source = Uuid7Source(wall_ms=lambda: 1, entropy=lambda _: next(fills))
    made = [source.next_bytes()[8:] for _ in range(401)]
    assert made[399] != made[400]


@given(st.binary(min_size=16, max_size=16))
def test_uuid_text_is_what_uuid_says(raw: bytes) -> None:
    """The quick text form is the standard one."""
    assert str(uuid.UUID(bytes=raw)) == uuid_text(raw)


def test_new_transaction_ids_differ() -> None:
    """The process-wide source makes a new id each time."""
    assert new_transaction_id() != new_transaction_id()
