"""How commands speak: JSON for machines on stdout, aligned lines for people, progress on stderr.

On a terminal lines are coloured and cut to its width; elsewhere they are plain and whole. Relies
on rich, which is imported only once something is to be shown.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import msgspec

from node.cli_errors import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from rich.console import Console
    from rich.table import Table

_UNLIMITED_WIDTH: Final = 100_000
_PROGRESS_STEPS: Final = 500
"""How often a bar moves at most: drawing costs more than the work of one step."""


def write_json(document: object) -> None:
    """Write one line of JSON on stdout."""
    sys.stdout.write(msgspec.json.encode(document).decode() + "\n")
    sys.stdout.flush()


def say(line: str) -> None:
    """Write one line for a person on stdout."""
    sys.stdout.write(f"{printable(line)}\n")
    sys.stdout.flush()


def stdout_console() -> Console:
    """The terminal, or a plain and endlessly wide stream."""
    from rich.console import Console  # noqa: PLC0415 - not for commands that show no table

    is_terminal = sys.stdout.isatty()
    return Console(
        file=sys.stdout,
        width=None if is_terminal else _UNLIMITED_WIDTH,
        highlight=False,
        markup=False,
    )


def print_table(headers: Sequence[str], rows: Iterable[Sequence[str]], *, right: str = "") -> None:
    """Print rows under their headers; the columns named in `right` are numbers.

    On a terminal only the last column gives way where the width does not suffice.
    """
    console = stdout_console()
    console.print(make_table(headers, rows, right=right))


def make_table(headers: Sequence[str], rows: Iterable[Sequence[str]], *, right: str = "") -> Table:
    """The table that `print_table` prints, for whoever shows it otherwise."""
    from rich.table import Table  # noqa: PLC0415 - not for commands that show no table
    from rich.text import Text  # noqa: PLC0415 - as above

    numbers = right.split()
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for position, header in enumerate(headers):
        is_last = position == len(headers) - 1
        table.add_column(
            header,
            justify="right" if header in numbers else "left",
            no_wrap=True,
            overflow="ellipsis",
            min_width=None if is_last else len(header),
        )
    for row in rows:
        # Text, not markup: what users wrote is shown as it is.
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


def print_fields(fields: Iterable[tuple[str, str]]) -> None:
    """Print names and values below each other, the values aligned."""
    pairs = list(fields)
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        say(f"{name:{width}}  {value}")


def one_line(value: object) -> str:
    """A JSON value on one line, as it is recorded."""
    return msgspec.json.encode(value).decode()


@contextmanager
def progress_bar(what: str, *, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on stderr while the block runs; call what it yields with how much is done in all.

    Where stderr is no terminal nothing is drawn. `total` is None where it is not known.
    """
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console  # noqa: PLC0415 - not for commands without long work
    from rich.progress import (  # noqa: PLC0415 - as above
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total)
        stride = max(1, (total or 0) // _PROGRESS_STEPS)
        shown = 0

        def move(done: int) -> None:
            nonlocal shown
            if done - shown >= stride or done == total:
                shown = done
                progress.update(task, completed=done)

        yield move
