"""`bitnexus status`: the cluster as each of its nodes sees it, once or again and again.

Any node that answers tells of the others, so one address is enough. Relies on `node.client`.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, NoReturn

from node.cli_errors import CommandError, ExitCode, print_error
from node.cli_output import make_table, print_table, say, write_json
from node.client import LedgerClient
from node.client_errors import LedgerClientError
from node.config import url_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from node.api.shapes import Checkpoint, Cluster

WATCH_S: Final = 1.0
ROUNDS: Final = 3
"""How often better views may name members that were not asked yet."""
_HEADERS: Final = (
    *("node", "role", "term", "last", "commit", "applied"),
    *("checkpoint", "http", "alarms"),
)
_NUMBERS: Final = "term last commit applied"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the nodes say at one moment: the best view, and the own view of each by its name."""

    best: Cluster
    own: dict[str, Cluster]

    @property
    def code(self) -> ExitCode:
        """Whether the cluster can record."""
        return ExitCode.OK if self.best.leader is not None else ExitCode.NO_LEADER

    def document(self) -> dict[str, object]:
        """The snapshot for machines."""
        return {
            "name": self.best.name,
            "cluster_id": self.best.cluster_id,
            "leader": self.best.leader,
            "term": self.best.term,
            "commit_index": self.best.commit_index,
            "nodes": [self._node_document(member.name) for member in self.best.members],
        }

    def rows(self) -> list[tuple[str, ...]]:
        """A row of the table for each member."""
        return [self._row(member.name, member.http) for member in self.best.members]

    def headline(self) -> str:
        """The cluster on one line."""
        best = self.best
        leader = f"{best.leader} leads in term {best.term}" if best.leader else "there is no leader"
        return f"cluster {best.name} ({best.cluster_id[:16]}): {leader}"

    def _node_document(self, name: str) -> dict[str, object]:
        view = self.own.get(name)
        member = next(member for member in self.best.members if member.name == name)
        if view is None:
            return {"name": name, "reachable": False, "http": member.http}
        return {
            "name": name,
            "reachable": True,
            "http": member.http,
            "role": self._role(name, view),
            "term": view.term,
            "last_index": view.last_index,
            "commit_index": view.commit_index,
            "applied_index": view.applied_index,
            "catching_up_to": view.catching_up_to,
            "alarms": view.alarms,
            "checkpoint": view.checkpoint,
        }

    def _row(self, name: str, http: str) -> tuple[str, ...]:
        view = self.own.get(name)
        if view is None:
            return (name, "unreachable", "-", "-", "-", "-", "-", http, "")
        commit = str(view.commit_index)
        if view.catching_up_to is not None:
            commit += f" of {view.catching_up_to}"
        numbers = (str(view.term), str(view.last_index), commit, str(view.applied_index))
        troubles = list(view.alarms)
        checkpoint = view.checkpoint
        if checkpoint is not None and checkpoint.last_error not in {None, *view.alarms}:
            troubles.append(f"PostgreSQL: {checkpoint.last_error}")
        alarms = "; ".join(troubles) or "none"
        return (name, self._role(name, view), *numbers, _lag_text(checkpoint), http, alarms)

    def _role(self, name: str, view: Cluster) -> str:
        """What a node says it is, or a learner: that it does not vote the others know best."""
        learns = any(one.name == name and one.role == "learner" for one in self.best.members)
        return "learner" if learns else view.role


def _lag_text(checkpoint: Checkpoint | None) -> str:
    """How far PostgreSQL is behind; a dash where the node keeps no checkpoints."""
    if checkpoint is None:
        return "-"
    return f"{checkpoint.lag_blocks} behind" if checkpoint.lag_blocks else "in step"


def show_status(urls: Sequence[str], *, watch: bool, timeout_s: float, as_json: bool) -> ExitCode:
    """Show the cluster; with `watch` until Ctrl-C."""
    if watch:
        asyncio.run(_watch(urls, timeout_s=timeout_s, as_json=as_json))
    snapshot = asyncio.run(take_snapshot(urls, timeout_s=timeout_s))
    _show_below(snapshot, as_json=as_json)
    return snapshot.code


async def take_snapshot(urls: Sequence[str], *, timeout_s: float) -> Snapshot:
    """Ask the nodes given, then the members that the best view names, as better ones are found.

    A node that lags names members where they were once, or who are none any more.

    Raises:
        CommandError: no node answers, or they are of different clusters.
    """
    views = await _ask_all(urls, timeout_s=timeout_s)
    if not views:
        raise CommandError(f"no node answers at {', '.join(urls)}", ExitCode.UNREACHABLE)
    if len({view.cluster_id for view in views}) > 1:
        raise CommandError("the nodes given are of different clusters", ExitCode.OTHER_CLUSTER)
    own = {view.node: view for view in views}
    best, asked = max(own.values(), key=_knowledge), set(urls)
    for _ in range(ROUNDS):
        there = {url_of(member.http) for member in best.members if member.name not in own}
        others = sorted(there - asked)
        if not others:
            break
        asked.update(others)
        for view in await _ask_all(others, timeout_s=timeout_s):
            if view.cluster_id == best.cluster_id:
                own[view.node] = view
        best = max(own.values(), key=_knowledge)
    return Snapshot(best, own)


def _knowledge(view: Cluster) -> tuple[bool, int, bool]:
    """Order views by how much they can tell: the leader's own of the latest term is best."""
    return view.leader is not None, view.term, view.leader == view.node


async def _ask_all(urls: Iterable[str], *, timeout_s: float) -> list[Cluster]:
    answers = await asyncio.gather(*(_ask(url, timeout_s=timeout_s) for url in urls))
    return [answer for answer in answers if answer is not None]


async def _ask(url: str, *, timeout_s: float) -> Cluster | None:
    try:
        async with LedgerClient([url], timeout_s=timeout_s) as ledger:
            return await ledger.cluster()
    except LedgerClientError:
        return None


async def _watch(urls: Sequence[str], *, timeout_s: float, as_json: bool) -> NoReturn:
    """Show one snapshot after the other, until interrupted, also while nobody answers."""
    with _display(as_json=as_json) as show:
        while True:
            try:
                show(await take_snapshot(urls, timeout_s=timeout_s))
            except CommandError as error:
                show(error)
            await asyncio.sleep(WATCH_S)


@contextmanager
def _display(*, as_json: bool) -> Iterator[Callable[[Snapshot | CommandError], None]]:
    """How a watch shows what it sees: JSON lines, plain lines, or in place on a terminal."""
    if as_json or not sys.stdout.isatty():
        yield partial(_show_below, as_json=as_json)
        return
    from rich.console import Group  # noqa: PLC0415 - for this view alone
    from rich.live import Live  # noqa: PLC0415 - as above
    from rich.text import Text  # noqa: PLC0415 - as above

    with Live(auto_refresh=False) as live:

        def show_in_place(seen: Snapshot | CommandError) -> None:
            if isinstance(seen, CommandError):
                live.update(Text(str(seen), style="red"), refresh=True)
            else:
                table = make_table(_HEADERS, seen.rows(), right=_NUMBERS)
                live.update(Group(Text(seen.headline()), table), refresh=True)

        yield show_in_place


def _show_below(seen: Snapshot | CommandError, *, as_json: bool) -> None:
    if isinstance(seen, CommandError):
        print_error(str(seen))
    elif as_json:
        write_json(seen.document())
    else:
        say(seen.headline())
        print_table(_HEADERS, seen.rows(), right=_NUMBERS)
