"""The simulated disk refuses and damages exactly what the shipped stores would.

Relies on the simulator's own members and genesis block.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest

from cluster.simulation.disk import Disk, Room
from cluster.simulation.events import EventQueue
from cluster.simulation.world import genesis_of, keys_of
from consensus.block import Sealer, encode_transaction, tip_after
from consensus.ready import HardState, Save
from storage.errors import DamagedBlockError, NoSpaceError, StorageError

if TYPE_CHECKING:
    from consensus.block import Block

WALL_US = 1_700_000_000_000_000


class Stage:
    """A disk, the time it lives in, and what its machine hears."""

    def __init__(self) -> None:
        """Nothing on it but genesis, and one block at hand."""
        self.genesis = genesis_of(3)
        self.queue = EventQueue()
        self.durable: list[Save] = []
        self.refused: list[StorageError] = []
        self.disk = Disk(
            self.genesis,
            name="node1",
            queue=self.queue,
            random=Random(1),
            on_durable=self.durable.append,
            on_refused=self.refused.append,
        )

    def block(self) -> Block:
        """The first block after genesis, with one transaction."""
        sealer = Sealer(keys_of(3)[0], self.genesis.hash, Random(2))
        raw = encode_transaction(
            transaction_id=bytes(16), user_id="ada", kind="note", payload={"amount": 7}
        )
        tip = tip_after(None, self.genesis)
        return sealer.seal(tip, term=1, transactions=(raw,), wall_us=WALL_US)

    def save(self, *blocks: Block) -> None:
        """Save and let the time pass that it takes."""
        self.disk.begin(Save(HardState(term=1), None, blocks))
        self.queue.run_until(self.queue.now_us + 1_000)


@pytest.fixture
def stage() -> Stage:
    """A fresh disk."""
    return Stage()


@pytest.mark.parametrize(
    ("room", "takes_block", "takes_state", "takes_index"),
    [
        (Room.PLENTY, True, True, True),
        (Room.NONE_FOR_BLOCKS, False, True, True),
        (Room.NONE_FOR_INDEX, False, True, False),
        (Room.NONE, False, False, False),
    ],
)
def test_a_full_disk_refuses_by_stages(
    stage: Stage, room: Room, *, takes_block: bool, takes_state: bool, takes_index: bool
) -> None:
    """First blocks, then the index, and last of all a term and a vote."""
    stage.disk.room = room
    stage.save()
    assert takes_state == bool(stage.durable)
    stage.save(stage.block())
    assert takes_block == (stage.disk.chain.last_index == 1)
    assert 2 - takes_state - takes_block == len(stage.refused)
    assert all(isinstance(error, NoSpaceError) for error in stage.refused)
    try:
        stage.disk.index.apply([stage.block()])
    except NoSpaceError:
        assert not takes_index
    assert int(takes_index) == stage.disk.index.applied_index


def test_a_mended_disk_refuses_the_save_that_had_no_room(stage: Stage) -> None:
    """Its machine stops at once, and the next life saves."""
    stage.disk.room = Room.NONE
    stage.disk.begin(Save(HardState(term=1), None, ()))
    stage.disk.mend()
    assert 1 == len(stage.refused)
    stage.save(stage.block())
    assert 1 == stage.disk.chain.last_index


def test_a_damaged_block_is_found_by_its_verification(stage: Stage) -> None:
    """It raises on every way of reading it, and reads well once repaired."""
    block = stage.block()
    stage.save(block)
    stage.disk.chain.damaged.add(1)
    with pytest.raises(DamagedBlockError, match="block 1"):
        stage.disk.chain.block(1)
    with pytest.raises(DamagedBlockError, match="block 1"):
        stage.disk.chain.blocks(0, max_blocks=2, max_bytes=1 << 20)
    assert stage.genesis is stage.disk.chain.block(0)
    stage.disk.repair([1])
    assert block is stage.disk.chain.block(1)
