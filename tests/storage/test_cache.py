"""The cache of verified blocks: bounded, and never of another chain than the reader's."""

from __future__ import annotations

from storage.cache import BlockCache
from tests.storage.builders import Author

LIMIT_BYTES = 1 << 20


def test_it_gives_back_what_it_was_given() -> None:
    """A block put by a reader is found by the next."""
    cache = BlockCache(LIMIT_BYTES)
    block = Author().seal_for("alice")
    cache.put([block], cache.generation)

    assert block is cache.get(block.index, cache.generation)
    assert cache.get(block.index + 1, cache.generation) is None


def test_the_blocks_used_longest_ago_make_room() -> None:
    """Beyond its limit the cache drops what nobody asked for lately."""
    cache = BlockCache(20_000)
    blocks = Author().blocks(5, memo="m" * 1_000)
    cache.put(blocks[:4], cache.generation)
    assert blocks[0] is cache.get(1, cache.generation)
    cache.put(blocks[4:], cache.generation)

    held = [index for index in range(1, 6) if cache.get(index, cache.generation)]
    assert [1, 3, 4, 5] == held
    assert 0 < cache.size_bytes <= 20_000


def test_the_same_block_twice_is_counted_once() -> None:
    """Putting a block again neither grows the cache nor pushes others out."""
    cache = BlockCache(LIMIT_BYTES)
    block = Author().seal_for("alice")
    cache.put([block], cache.generation)
    size_bytes = cache.size_bytes
    cache.put([block, block], cache.generation)

    assert size_bytes == cache.size_bytes


def test_a_limit_of_nothing_keeps_nothing() -> None:
    """A cache without memory is a cache that is always empty."""
    cache = BlockCache(0)
    block = Author().seal_for("alice")
    cache.put([block], cache.generation)

    assert cache.get(block.index, cache.generation) is None
    assert cache.size_bytes == 0


def test_a_truncation_forgets_what_it_cuts_off() -> None:
    """Blocks below the cut stay, blocks from it on are gone."""
    cache = BlockCache(LIMIT_BYTES)
    blocks = Author().blocks(4)
    cache.put(blocks, cache.generation)
    cache.close_for_truncation(3)
    cache.reopen()

    held = [index for index in range(1, 5) if cache.get(index, cache.generation)]
    assert [1, 2] == held


def test_a_closed_cache_takes_and_gives_nothing() -> None:
    """While a truncation commits, readers go to the disk, which alone knows."""
    cache = BlockCache(LIMIT_BYTES)
    blocks = Author().blocks(2)
    cache.put(blocks[:1], cache.generation)
    cache.close_for_truncation(2)
    assert cache.get(1, cache.generation) is None
    cache.put(blocks[1:], cache.generation)
    cache.reopen()

    assert cache.get(2, cache.generation) is None


def test_a_reader_from_before_a_truncation_brings_and_gets_nothing() -> None:
    """What such a reader has read may be cut off since; what is here may be newer than its view."""
    cache = BlockCache(LIMIT_BYTES)
    blocks = Author().blocks(3)
    cache.put(blocks, cache.generation)
    before = cache.generation
    cache.close_for_truncation(2)
    cache.reopen()
    cache.put(blocks[1:], before)

    assert cache.get(2, cache.generation) is None
    assert cache.get(1, before) is None
    assert blocks[0] is cache.get(1, cache.generation)
