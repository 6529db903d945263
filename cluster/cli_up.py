"""What `bitnexus up` does and says, from the first check to the last process that is gone.

Lines for people, coloured on a terminal and plain elsewhere, or JSON lines for machines. Relies on
`cluster.local` for the work; signals are handled here and nowhere else.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO

from rich.console import Console
from rich.text import Text

from cluster.local import LocalCluster
from node.cli_errors import ExitCode
from node.cli_nodes import DEFAULT_NODES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cluster.local import ClusterOptions
    from cluster.view import ClusterView

_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_EXAMPLE: Final = '{"user_id": "alice", "kind": "deposit", "payload": {"amount": 100}}'


class _PatientConsole(Console):
    """A console that does not end the program when nobody reads any more."""

    def on_broken_pipe(self) -> None:
        """Leave it to the caller, as any other error of the stream."""
        raise BrokenPipeError


class Voice:
    """Says what happens: to a person, or as one JSON object a line."""

    def __init__(self, stream: TextIO, *, as_json: bool) -> None:
        """Write to `stream` and flush each time, for whoever reads along."""
        self._stream = stream
        self._as_json = as_json
        self._console = _PatientConsole(file=stream, highlight=False, soft_wrap=True)

    def event(self, text: str) -> None:
        """Say one line."""
        with self._whoever_reads():
            if self._as_json:
                self._write_json({"event": text})
            else:
                self._console.print(Text(text))

    def ready(self, cluster: LocalCluster, view: ClusterView) -> None:
        """Say where everything is and what to type next."""
        with self._whoever_reads():
            if self._as_json:
                self._write_json(_document(cluster, view))
                return
            for line in _lines(cluster, view):
                self._console.print(line)

    def _write_json(self, document: dict[str, object]) -> None:
        self._stream.write(json.dumps(document, ensure_ascii=False) + "\n")

    @contextmanager
    def _whoever_reads(self) -> Iterator[None]:
        """Flush at the end; from a broken pipe on, say everything to nobody."""
        try:
            yield
            self._stream.flush()
        except BrokenPipeError:
            nobody = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nobody, self._stream.fileno())
            os.close(nobody)


async def run_up(options: ClusterOptions, voice: Voice) -> ExitCode:
    """Run a local cluster until a signal asks for the end; a second one does not wait for it.

    Raises:
        ClusterError: it cannot be started.
    """
    cluster = LocalCluster(options, report=voice.event)
    signals = _Signals(cluster, voice)
    signals.catch()
    starting = asyncio.create_task(_start(cluster, voice), name="start the cluster")
    asked = asyncio.create_task(signals.asked.wait(), name="wait for a signal")
    await asyncio.wait({starting, asked}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.wait({starting})
        return ExitCode.INTERRUPTED
    try:
        await starting
        await asked
        await cluster.stop()
    finally:
        asked.cancel()
    voice.event("stopped")
    return ExitCode.INTERRUPTED if signals.count > 1 else ExitCode.OK


async def _start(cluster: LocalCluster, voice: Voice) -> None:
    view = await cluster.start()
    voice.ready(cluster, view)


class _Signals:
    """The first signal asks for the end, the second forces it."""

    def __init__(self, cluster: LocalCluster, voice: Voice) -> None:
        self.asked = asyncio.Event()
        self.count = 0
        self._cluster = cluster
        self._voice = voice

    def catch(self) -> None:
        """Handle the signals from now on; one that we were started to ignore stays ignored."""
        loop = asyncio.get_running_loop()
        for number in _STOP_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, self._on_signal)

    def _on_signal(self) -> None:
        self.count += 1
        self.asked.set()
        if self.count == 1:
            self._voice.event("stopping (once more to kill)")
        else:
            self._cluster.kill_now()


def _document(cluster: LocalCluster, view: ClusterView) -> dict[str, object]:
    nodes = [
        {
            "name": name,
            "role": view.role_of(name),
            "http": url,
            "clients": client_url,
            "data_dir": str(cluster.data_dirs[name]),
            "pid": cluster.node(name).pid,
        }
        for name, url, client_url in zip(
            cluster.names, cluster.urls, cluster.client_urls, strict=True
        )
    ]
    return {
        "name": cluster.folder.genesis.name,
        "data_dir": str(cluster.folder.path.absolute()),
        "nodes": nodes,
        "leader": view.leader,
        "postgres_dsn": cluster.postgres_dsn,
        "explorer": f"{cluster.urls[0]}/",
    }


def _lines(cluster: LocalCluster, view: ClusterView) -> list[Text]:
    name_width = max(len(name) for name in cluster.names)
    role_width = max(len(view.role_of(name)) for name in cluster.names)
    url_width = max(len(url) for url in cluster.urls)
    lines = [Text(f"A cluster of {len(cluster.names)} nodes is up.", style="bold"), Text()]
    for name, url in zip(cluster.names, cluster.urls, strict=True):
        role = view.role_of(name)
        lines.append(
            Text.assemble(
                f"  {name:{name_width}}  ",
                (f"{role:{role_width}}", "bold green" if role == "leader" else ""),
                f"  {url:{url_width}}  ",
                str(cluster.data_dirs[name].absolute()),
            )
        )
    lines += [
        Text(),
        Text(f"  PostgreSQL  {cluster.postgres_dsn or 'none'}"),
        Text(f"  Explorer    {cluster.urls[0]}/"),
        *_client_lines(cluster),
        Text(),
        Text("Type next, in another terminal:", style="bold"),
        *(Text(f"  {line}") for line in _next_steps(cluster.urls)),
        Text(),
        Text("Ctrl-C stops everything; the same command resumes the same chain."),
    ]
    return lines


def _client_lines(cluster: LocalCluster) -> list[Text]:
    """Where each node's client port is: whole, since its key is part of what clients need."""
    heads = ["Clients", *[""] * (len(cluster.names) - 1)]
    return [
        Text(f"  {head:10}  {url}") for head, url in zip(heads, cluster.client_urls, strict=True)
    ]


def _next_steps(urls: tuple[str, ...]) -> list[str]:
    bitnexus = _own_name()
    steps = [
        (
            f"curl -s {urls[0]}/api/v1/ledger/transactions -H 'Content-Type: application/json' "
            f"-d '{_EXAMPLE}'"
        ),
        f"{bitnexus} submit --user alice --kind deposit --payload '{{\"amount\": 100}}'",
        f"{bitnexus} transactions alice",
        f"{bitnexus} status --watch",
    ]
    if urls != DEFAULT_NODES[: len(urls)]:
        steps.insert(0, f"export BITNEXUS_NODES={','.join(urls)}")
    return steps


def _own_name() -> str:
    """How this program is called from the present folder, in a shell that knows nothing of it."""
    program = Path(sys.argv[0])
    if program.name != "bitnexus":
        return f"{os.path.relpath(sys.executable)} -m cluster.cli"
    return os.path.relpath(program)
