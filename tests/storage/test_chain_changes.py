"""The list of membership changes on disk: it survives what blocks survive, and damage is seen."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from consensus.changes import ChangeKind
from storage.errors import DamagedStoreError
from tests.storage.builders import start_python
from tests.storage.chain_folder import append, edit, flip, open_store, path
from tests.storage.society import Society

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["path"]

_CHANGER = """
import sys
from pathlib import Path
from consensus.changes import ChangeKind
from tests.storage.chain_folder import append, open_store
from tests.storage.society import Society

society = Society(3)
store = open_store(Path(sys.argv[1]), genesis=society.genesis)
while True:
    for kind in (ChangeKind.ADD, ChangeKind.PROMOTE, ChangeKind.REMOVE):
        number = 4 + len(society.roster.change_indexes) // 3
        if number > 9:
            sys.stdin.read()
        append(store, society.record(), society.change(kind, number))
        print(society.tip.index, flush=True)
"""


@pytest.fixture
def society(path: Path) -> Society:
    """Three members and a learner, in blocks 1 to 3 of a store that was closed."""
    society = Society(3)
    with closing(open_store(path, genesis=society.genesis)) as store:
        append(store, society.record(), society.change(ChangeKind.ADD, 4), society.record())
    return society


def test_a_store_that_is_opened_again_lists_the_changes(path: Path, society: Society) -> None:
    """To go on with, or only to read."""
    with closing(open_store(path)) as store:
        assert [2] == store.change_indexes()
        append(store, society.change(ChangeKind.PROMOTE, 4))
    with closing(open_store(path, readonly=True)) as reader:
        assert [2, 4] == reader.change_indexes()
    with closing(open_store(path)) as store:
        store.save(hard_state=None, truncate_from=4, blocks=())
    with closing(open_store(path, readonly=True)) as reader:
        assert [2] == reader.change_indexes()


def test_changes_survive_sigkill(path: Path) -> None:
    """A process killed between and within saves lists exactly the changes of its blocks."""
    child = start_python(_CHANGER, str(path))
    assert child.stdout is not None
    said = [int(child.stdout.readline()) for _ in range(5)]
    child.kill()
    rest = [int(line) for line in child.communicate()[0].splitlines()]
    with closing(open_store(path)) as store:
        assert store.last_index >= [*said, *rest][-1]
        assert list(range(2, store.last_index + 1, 2)) == store.change_indexes()


@pytest.mark.parametrize("offset", [0, 31, 32, 39])
def test_a_damaged_list_is_refused(path: Path, society: Society, offset: int) -> None:
    """A node must never take the wrong members for its own."""
    assert 3 == society.tip.index
    edit(path, "meta", b"changes", flip(offset))
    with pytest.raises(DamagedStoreError, match="list of membership changes has another digest"):
        open_store(path)


def test_a_list_that_is_cut_short_is_refused(path: Path, society: Society) -> None:
    """As above."""
    assert 3 == society.tip.index
    edit(path, "meta", b"changes", lambda value: value[:-8])
    with pytest.raises(DamagedStoreError, match="list of membership changes"):
        open_store(path)
