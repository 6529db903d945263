"""What happened: a hash over every event, counters, and on demand a text that a person can read.

The hash tells whether two runs are one and the same; the text has a line for each event with a
column for each node. Relies on nothing but the machines' public state.
"""

from __future__ import annotations

from collections import Counter, deque
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from consensus.ready import Save

MAX_LINES: Final = 100_000
"""A trace keeps its end: that is where the violation is."""
_MICROS_PER_MILLI: Final = 1_000


class Trace:
    """The record of one run."""

    def __init__(self, *, columns: Callable[[], list[str]] | None = None) -> None:
        """Keeps text only where `columns` tells the state of each node."""
        self.faults: Counter[str] = Counter()
        self.coverage: Counter[str] = Counter()
        self._hash = blake2b(digest_size=16)
        self._columns = columns
        self._lines: deque[str] = deque(maxlen=MAX_LINES)

    @property
    def digest(self) -> str:
        """The hash over everything so far, in hex."""
        return self._hash.hexdigest()

    @property
    def is_readable(self) -> bool:
        """Whether text is kept: whoever describes an event at length asks first."""
        return self._columns is not None

    def event(self, now_us: int, name: str, detail: bytes = b"") -> None:
        """Something happened; `detail` tells it apart from its like."""
        self._hash.update(b"%d %s " % (now_us, name.encode()))
        self._hash.update(detail)

    def line(self, now_us: int, text: str) -> None:
        """One line for a person, with the nodes' states after it."""
        if self._columns is not None:
            cells = "".join(f"{cell:<22}" for cell in self._columns())
            self._lines.append(f"{now_us / _MICROS_PER_MILLI:>11.3f}  {cells} {text}")

    def fault(self, now_us: int, kind: str, text: str) -> None:
        """A fault was injected."""
        self.faults[kind] += 1
        self.event(now_us, kind, text.encode())
        self.line(now_us, f"FAULT {kind}: {text}")

    def text(self) -> Iterator[str]:
        """The lines kept, oldest first."""
        return iter(self._lines)


def describe(message: object) -> str:
    """A message on one line: long fields by their length."""
    fields = []
    for name in getattr(message, "__struct_fields__", ()):
        value = getattr(message, name)
        shown = f"[{len(value)}]" if isinstance(value, tuple) else value
        shown = value.hex()[:8] if isinstance(value, bytes) else shown
        fields.append(f"{name}={shown}")
    return f"{type(message).__name__}({', '.join(fields)})"


def describe_save(save: Save) -> str:
    """What has become durable, in a few words."""
    blocks = f" through {save.blocks[-1].index}" if save.blocks else ""
    cut = "" if save.truncate_from is None else f", cut from {save.truncate_from}"
    return f"saved term {save.hard_state.term}{blocks}{cut}"
