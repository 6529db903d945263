"""raftos with one defect mended at a time: what the checkers then no longer report, it caused.

Each mend is a context manager over the patched library, for one run or several. Nothing of this is
offered as a repair of raftos: what else is wrong with it stays as it is.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

from tests.control.raftos_node import Disk

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def nothing(_raftos: Any) -> Iterator[None]:
    """Leave it as it is."""
    yield


@contextmanager
def writes_are_durable(_raftos: Any) -> Iterator[None]:
    """As though it called fsync after every write: a power cut takes nothing away."""
    with mock.patch.object(Disk, "cut_power", return_value=None):
        yield


@contextmanager
def votes_are_kept(raftos: Any) -> Iterator[None]:
    """Keep a vote as long as its term lasts, also as a follower and after a restart."""
    storage = raftos.state.FileStorage
    write = storage.__setitem__

    def begin(follower: Any) -> None:
        if not follower.storage.exists("term"):
            follower.storage.update({"term": 0, "voted_for": None})

    def set_item(self: Any, name: str, value: Any) -> None:
        if name == "term" and self.exists("term") and self["term"] < value:
            write(self, "voted_for", None)
        write(self, name, value)

    with (
        mock.patch.object(raftos.state.Follower, "init_storage", begin),
        mock.patch.object(storage, "__setitem__", set_item),
    ):
        yield


@contextmanager
def both(raftos: Any) -> Iterator[None]:
    """Durable writes, and votes that are kept."""
    with writes_are_durable(raftos), votes_are_kept(raftos):
        yield
