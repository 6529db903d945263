"""Data folders to back up, to restore and to export, and commands that are stopped half-way.

Relies on real chains on disk, and on the progress that each long command shows.
"""

from __future__ import annotations

from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from consensus.membership import dump_genesis, genesis_of
from consensus.ready import HardState
from storage.chain import ChainStore
from tests.node.cli_stage import run
from tests.storage.builders import make_key, start_python

if TYPE_CHECKING:
    import signal
    import subprocess
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from consensus.block import Block
    from tests.node.cli_stage import Result

BLOCKS = 60
"""Their transactions make more JSON than a buffered file keeps back."""
HALF_WAY = 50
NEW_NODE = ("--name", "n7", "--peer", "127.0.0.1:7107", "--http", "127.0.0.1:8107")

_STOP_HALF_WAY = """
import signal, sys
from contextlib import contextmanager
import node.cli_output, node.rebuild
from cluster.cli import app

node.rebuild._SAVE_BLOCKS = 7

@contextmanager
def progress_bar(what, *, total):
    def move(done):
        if done == int(sys.argv[1]):
            # Held back, so that it cannot come between the word and the wait.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            print("half-way", flush=True)
            signal.sigwait({signal.SIGINT})
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            signal.raise_signal(signal.SIGINT)
    yield move

node.cli_output.progress_bar = progress_bar
app(args=sys.argv[2:])
"""


def make_folder(
    folder: Path, blocks: Sequence[Block], *, committed: int, number: int = 2, term: int = 9
) -> Path:
    """The data folder of a member that has run, with these blocks; the key is that of `number`."""
    folder.mkdir()
    (folder / "node.toml").write_text(f'name = "n{number}"\nhttp_port = {8000 + number}\n')
    key = folder / "identity.key"
    key.write_text(bytes(make_key(number)).hex() + "\n")
    key.chmod(0o600)
    (folder / "genesis.json").write_text(dump_genesis(genesis_of(blocks[0])))
    with closing(ChainStore.open(folder / "chain", genesis=blocks[0], reserve_bytes=0)) as chain:
        state = HardState(term, bytes(make_key(number).verify_key), committed)
        chain.save(hard_state=state, truncate_from=None, blocks=blocks[1:])
    return folder


def chain_of(folder: Path) -> list[bytes]:
    """Every byte of every block in a folder."""
    with closing(ChainStore.open(folder / "chain", readonly=True)) as chain:
        return [chain.block(index).encode() for index in range(chain.last_index + 1)]


def bytes_of(blocks: Sequence[Block]) -> list[bytes]:
    """The same of blocks in memory."""
    return [block.encode() for block in blocks]


def back_up(folder: Path, output: Path, *options: str) -> Result:
    """Run `backup`."""
    return run("backup", "--data-dir", folder, "--output", output, *options)


@contextmanager
def stopped_half_way(*arguments: object, at: int = HALF_WAY) -> Iterator[subprocess.Popen[str]]:
    """Run the real command until its progress has come to `at`, where it stays."""
    with start_python(_STOP_HALF_WAY, str(at), *map(str, arguments)) as process:
        try:
            assert process.stdout is not None
            assert "half-way\n" == process.stdout.readline()
            yield process
        finally:
            process.kill()


def interrupt(number: signal.Signals, *arguments: object) -> int:
    """Send a signal to the command half-way; the exit code, negative where it was killed."""
    with stopped_half_way(*arguments) as process:
        process.send_signal(number)
        process.communicate()
        return process.returncode
