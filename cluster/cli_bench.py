"""`bitnexus bench`: measures this ledger and the machine it runs on, and shows and compares runs.

The work is in `cluster.bench`, imported only when it is wanted, so that the command line starts
quickly. Results go to stdout, what is being measured to stderr.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.bench.figures import Workload
from node.cli_errors import CommandError, ExitCode
from node.cli_group import OneLineGroup
from node.cli_nodes import JsonOption

if TYPE_CHECKING:
    from cluster.bench.plan import Plan
    from cluster.bench.result import Result

bench_app = typer.Typer(cls=OneLineGroup, invoke_without_command=True)

SecondsOption = Annotated[
    float | None,
    typer.Option(min=1, max=3600, metavar="S", help="Length of each load. (default: 5)"),
]
RoundsOption = Annotated[
    int | None,
    typer.Option(min=1, max=99, metavar="N", help="Loads of which the median counts. (default: 3)"),
]
OnlyOption = Annotated[
    list[Workload] | None,
    typer.Option(
        metavar="NAME",
        help="A workload to measure, as the table calls it; may be given many times.",
    ),
]
QuickOption = Annotated[
    bool,
    typer.Option("--quick", help="One short round of little: to see that everything runs."),
]
OutputOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", dir_okay=False, help="Keep the results as JSON, to compare."),
]
PicturesOption = Annotated[
    Path | None, typer.Option(metavar="DIR", file_okay=False, help="Draw them as SVG in there.")
]


@bench_app.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
    *,
    seconds: SecondsOption = None,
    rounds: RoundsOption = None,
    only: OnlyOption = None,
    quick: QuickOption = False,
    output: OutputOption = None,
    pictures: PicturesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure this ledger on this machine, and the machine's own limits in the same run.

    Starts clusters of its own in a temporary folder: TMPDIR says on which disk. Takes about ten
    minutes; what it cannot run, it says. Figures of different runs or machines are not comparable
    as such: keep them with --output, and see the ratios with `bitnexus bench compare`.
    """
    if context.invoked_subcommand is not None:
        return
    plan = _make_plan(seconds=seconds, rounds=rounds, only=only, quick=quick)
    _finish(_measure(plan), output=output, pictures=pictures, as_json=as_json)


@bench_app.command()
def show(
    file: Annotated[Path, typer.Argument(metavar="RESULT", help="A file of --output.")],
    *,
    pictures: PicturesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the results in a file as they were shown when they were measured."""
    _finish(_read(file), output=None, pictures=pictures, as_json=as_json)


@bench_app.command("compare")
def compare_command(
    before: Annotated[Path, typer.Argument(metavar="BEFORE", help="A file of --output.")],
    after: Annotated[Path, typer.Argument(metavar="AFTER", help="Another, measured later.")],
    *,
    as_json: JsonOption = False,
) -> None:
    """Show how many times better or worse each figure has become from one file to another."""
    from cluster.bench.ratios import compare  # noqa: PLC0415 - not for the other commands
    from cluster.bench.report import comparison_rows, print_comparison  # noqa: PLC0415 - as above
    from node.cli_output import write_json  # noqa: PLC0415 - as above

    results = _read(before), _read(after)
    if as_json:
        write_json(comparison_rows(compare(*results)))
    else:
        print_comparison(*results)


def _make_plan(
    *, seconds: float | None, rounds: int | None, only: list[Workload] | None, quick: bool
) -> Plan:
    from dataclasses import replace  # noqa: PLC0415 - not for the other commands

    from cluster.bench.plan import QUICK, Plan  # noqa: PLC0415 - as above
    from cluster.bench.run import OURS  # noqa: PLC0415 - as above

    foreign = [one.value for one in only or () if one not in OURS]
    if foreign:
        raise CommandError(f"nothing here measures: {', '.join(foreign)}", ExitCode.USAGE)
    plan = replace(QUICK if quick else Plan(), workloads=frozenset(only or OURS))
    return replace(plan, seconds=seconds or plan.seconds, rounds=rounds or plan.rounds)


def _measure(plan: Plan) -> Result:
    import asyncio  # noqa: PLC0415 - not for the other commands

    from cluster.bench.run import measure  # noqa: PLC0415 - as above

    return asyncio.run(measure(plan, report=lambda line: typer.echo(line, err=True)))


def _read(file: Path) -> Result:
    from cluster.bench.errors import BenchError  # noqa: PLC0415 - not for the other commands
    from cluster.bench.result import read_result  # noqa: PLC0415 - as above

    try:
        return read_result(file)
    except BenchError as error:
        raise CommandError(str(error), ExitCode.INPUT) from error


def _finish(result: Result, *, output: Path | None, pictures: Path | None, as_json: bool) -> None:
    """Keep, draw and show; raises CommandError where a file cannot be written."""
    from cluster.bench.errors import BenchError  # noqa: PLC0415 - not for the other commands
    from cluster.bench.report import print_result, write_pictures  # noqa: PLC0415 - as above
    from cluster.bench.result import write_result  # noqa: PLC0415 - as above
    from node.cli_output import write_json  # noqa: PLC0415 - as above

    if as_json:
        write_json(result)
    else:
        print_result(result)
    try:
        if output is not None:
            write_result(result, output)
        drawn = [] if pictures is None else write_pictures(result, pictures)
    except BenchError as error:
        raise CommandError(str(error), ExitCode.FAILED) from error
    for path in drawn:
        typer.echo(f"drawn: {path}", err=True)
