"""Runs one node as a process of its own: the node, its HTTP face, its log and its end.

A node says by its exit code why it ended, so that a supervisor knows whether another start is of
use. Log lines go to stderr as `key=value`. Relies on `node.server` and `node.api.server`; imports
no command line, so that a node that crashed is back quickly.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog
import uvloop

from consensus.membership import GenesisError
from node.api.server import ApiServer, ListenError
from node.cli_errors import CommandError, ExitCode
from node.client_keys import parse_key
from node.client_port import ClientPort
from node.config import ConfigError, load_config, split_address
from node.folder_lock import DataFolderInUseError
from node.identity import IdentityError, load_identity
from node.indexer import IndexerFailedError
from node.outcomes import LostChainError, NodeFailedError
from node.server import Node
from node.transport import TransportError
from storage.errors import (
    DamagedBlockError,
    DamagedStoreError,
    FormatVersionError,
    NoSpaceError,
    StorageFailedError,
    WrongClusterError,
)

if TYPE_CHECKING:
    from node.config import NodeConfig

SWITCH_INTERVAL_S: Final = 0.0005
"""How soon a thread that holds the interpreter lets another have it: the loop waits no longer."""
COLLECTOR_THRESHOLDS: Final = (50_000, 50, 1_000)
"""Almost nothing here is cyclic garbage, and a full collection walks every block in memory. With
Python's own thresholds 64 clients had 4 to 7 % fewer answers a second, and a later 99th percentile.
"""

_CODES: Final[tuple[tuple[type[BaseException], ExitCode], ...]] = (
    (ConfigError, ExitCode.CONFIG),
    (GenesisError, ExitCode.CONFIG),
    (IdentityError, ExitCode.CONFIG),
    (DataFolderInUseError, ExitCode.FOLDER_IN_USE),
    (LostChainError, ExitCode.LOST_CHAIN),
    (WrongClusterError, ExitCode.OTHER_CLUSTER),
    (FormatVersionError, ExitCode.FOLDER_FOREIGN),
    (DamagedBlockError, ExitCode.CORRUPT),
    (DamagedStoreError, ExitCode.CORRUPT),
    (NoSpaceError, ExitCode.DISK_FAILED),
    (StorageFailedError, ExitCode.DISK_FAILED),
    (TransportError, ExitCode.PORT_IN_USE),
    (ListenError, ExitCode.PORT_IN_USE),
    (IndexerFailedError, ExitCode.FAILED),
    (OSError, ExitCode.FOLDER_UNWRITABLE),
)
"""The first type that fits says the code. What is not here is a fault of the program's own."""
_KNOWN: Final = tuple(kind for kind, _ in _CODES)

_log = structlog.get_logger("node")


def run_node(data_dir: Path) -> None:
    """Run the node of a data folder until SIGTERM or SIGINT; a second signal does not wait.

    Raises:
        CommandError: it cannot run, or has stopped itself; the code says why.
    """
    if not __debug__:
        raise CommandError(
            "assertions guard the ledger: start it without -O and PYTHONOPTIMIZE",
            ExitCode.OPTIMISED,
        )
    try:
        config = load_config(data_dir)
        _configure_log()
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        gc.freeze()
        gc.set_threshold(*COLLECTOR_THRESHOLDS)
        uvloop.run(_serve(config))
    except _KNOWN as error:
        raise CommandError(str(error), exit_code_of(error)) from error


def exit_code_of(error: BaseException) -> ExitCode:
    """What a process ends with that cannot go on for this reason."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), ExitCode.FAILED)


async def _serve(config: NodeConfig) -> None:
    asked = _stop_asked()
    async with Node(config) as node, AsyncExitStack() as faces:
        port = _client_port(node, config)
        face = ApiServer(
            node,
            config.http_host,
            config.http_port,
            on_failure=node.fail,
            more_metrics=lambda: port.metrics if port else {},
        )
        faces.push_async_callback(face.stop)
        await face.start()
        _log.info("node_started", name=config.name, data_dir=str(config.data_dir))
        _log.info("http_listening", url=face.url)
        if port is not None:
            faces.push_async_callback(port.stop)
            await port.start()
            _log.info("clients_listening", url=port.url)
        await _until_end(node, asked)
    _log.info("node_stopped", name=config.name)


def _client_port(node: Node, config: NodeConfig) -> ClientPort | None:
    """The port for clients over ZeroMQ, where there is to be one. Raises IdentityError."""
    if config.client_bind is None:
        return None
    host, port = split_address(config.client_bind)
    return ClientPort(
        node,
        host=host,
        port=port,
        identity=load_identity(config.identity_file),
        client_keys=[parse_key(text) for text in config.client_keys],
    )


async def _until_end(node: Node, asked: asyncio.Event) -> None:
    """Return when a signal came; raise CommandError when the node has stopped itself."""
    ended = asyncio.create_task(node.wait_ended(), name="wait for the node's end")
    signalled = asyncio.create_task(asked.wait(), name="wait for a signal")
    done, _ = await asyncio.wait({ended, signalled}, return_when=asyncio.FIRST_COMPLETED)
    ended.cancel()
    signalled.cancel()
    if ended not in done:
        _log.info("node_stopping")
        return
    try:
        await ended
    except NodeFailedError as error:
        cause = error.__cause__ or error
        _log.critical("node_failed", error=str(cause), exc_info=cause)
        raise CommandError(
            f"the node has stopped itself: {cause!r}", exit_code_of(cause)
        ) from error


def _stop_asked() -> asyncio.Event:
    """The event of the first SIGTERM or SIGINT; the second one ends the process at once."""
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        asked.set()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    return asked


def _configure_log() -> None:
    """One line of `key=value` for each event, also for what libraries say by `logging`."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[structlog.typing.Processor] = [
        structlog.processors.format_exc_info,
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.LogfmtRenderer(
            key_order=["timestamp", "level", "logger", "event"], drop_missing=True
        ),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(processors=last, foreign_pre_chain=shared)
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    # uvicorn tells of each start and stop, which says nothing new, and warns of each request that
    # is no HTTP, which is answered: a log that clients can fill helps nobody.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
