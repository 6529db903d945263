"""`bitnexus simulate`: runs seeds, shows what was injected and seen, and hands over what failed.

Results go to stdout, progress to stderr. A failing run is shrunk, and its trace is written to a
file that a person can read. Relies on `cluster.simulation`.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.simulation.campaign import Summary, run_campaign
from cluster.simulation.faults import MICROS_PER_SECOND, Scenario
from cluster.simulation.shrink import DECIMALS, shrink
from cluster.simulation.world import Result, simulate
from node.cli_errors import CommandError, ExitCode
from node.cli_output import print_fields, print_table, progress_bar, say, write_json

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cluster.simulation.faults import Fault

SECONDS_PER_MINUTE = 60


@dataclass(frozen=True, slots=True)
class SimulateOptions:
    """What the command was asked for."""

    seeds: str
    replay: int | None
    nodes: int
    minutes: float
    profile: str
    clients: int
    without: tuple[Fault, ...]
    workers: int | None
    trace_dir: Path
    as_json: bool

    def scenario(self, seed: int) -> Scenario:
        """The run of one seed."""
        return Scenario(
            seed=seed,
            nodes=self.nodes,
            # To the decimals that a shrunk run has, so that its minutes give the same run again.
            seconds=round(self.minutes * SECONDS_PER_MINUTE, DECIMALS),
            profile=self.profile,
            clients=self.clients,
            without=self.without,
        )


def run_simulate(options: SimulateOptions) -> ExitCode:
    """Run what was asked for; FAILED where a rule was broken.

    Raises:
        CommandError: the seeds are no range.
    """
    seeds = [options.replay] if options.replay is not None else parse_seeds(options.seeds)
    with progress_bar("simulating", total=len(seeds)) as move:
        scenarios = [options.scenario(seed) for seed in seeds]
        summary = run_campaign(scenarios, workers=options.workers, on_run=move)
    told = _tell(options, summary)
    trace = None if told is None else _write_trace(options.trace_dir, told)
    shrunk = told if told is not None and options.replay is None else None
    if options.as_json:
        write_json(_document(summary, shrunk, trace))
    else:
        _print_summary(summary)
        _print_failures(summary.failed, shrunk, trace)
    return ExitCode.FAILED if summary.failed else ExitCode.OK


def _tell(options: SimulateOptions, summary: Summary) -> Result | None:
    """The run to be told event by event: the one asked for, or the first failed one made small."""
    if options.replay is not None:
        return simulate(options.scenario(options.replay), readable=True)
    if summary.failed:
        return simulate(shrink(summary.failed[0]).scenario, readable=True)
    return None


def parse_seeds(text: str) -> list[int]:
    """`0:1000` is 0 to 999, and `7` is 7 alone; raises CommandError."""
    first, colon, end = text.partition(":")
    try:
        seeds = list(range(int(first), int(end))) if colon else [int(first)]
    except ValueError:
        seeds = []
    if not seeds:
        raise CommandError(f"--seeds is FIRST:END or one number, not {text!r}", ExitCode.USAGE)
    return seeds


def _write_trace(folder: Path, result: Result) -> Path:
    """One line for each event: the time in milliseconds, a column for each node, what happened."""
    scenario = result.scenario
    name = f"simulation-{scenario.profile}-{scenario.nodes}-{scenario.seed}.trace"
    path = folder / name
    left_out = ", ".join(scenario.without) or "nothing"
    size = f"{scenario.nodes} nodes, {scenario.clients} clients, {scenario.seconds} s"
    head = [
        f"seed {scenario.seed}, {size} of {scenario.profile} without {left_out}",
        f"trace hash {result.trace_hash}; {result.violation or 'no violation'}",
        "columns: ms, then for each node its role, term and last/saved/commit/applied index",
    ]
    try:
        path.write_text("\n".join([*head, *result.trace, ""]), encoding="utf-8")
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror}", ExitCode.FAILED) from error
    return path


def _print_summary(summary: Summary) -> None:
    print_fields(
        [
            ("runs", str(summary.runs)),
            ("simulated", f"{summary.simulated_s:,.0f} s"),
            ("speed", f"{summary.speed:,.0f} simulated seconds a second of one core"),
            ("events", f"{summary.events:,}"),
            ("blocks", f"{summary.blocks:,}"),
            ("operations", f"{summary.operations:,}"),
            ("violations", str(len(summary.failed))),
        ]
    )
    for title, counts in (("fault", summary.faults), ("reached", summary.coverage)):
        if counts:
            say("")
            rows = [(name, f"{count:,}") for name, count in sorted(counts.items())]
            print_table((title, "times"), rows, right="times")


def _print_failures(failed: Iterable[Result], shrunk: Result | None, trace: Path | None) -> None:
    for result in failed:
        say(f"seed {result.scenario.seed}: {result.violation}")
        say(f"  again: {_command(result.scenario)}")
    if shrunk is not None:
        say(f"made small, seed {shrunk.scenario.seed}: {shrunk.violation}")
        say(f"  again: {_command(shrunk.scenario)}")
    if trace is not None:
        say(f"trace: {trace}")


def _command(scenario: Scenario) -> str:
    """The command that runs a scenario again."""
    words = ["bitnexus", "simulate", "--replay", str(scenario.seed)]
    words += ["--nodes", str(scenario.nodes), "--profile", scenario.profile]
    words += ["--clients", str(scenario.clients)]
    words += ["--minutes", repr(scenario.seconds / SECONDS_PER_MINUTE)]
    for kind in scenario.without:
        words += ["--without", kind]
    return shlex.join(words)


def _document(summary: Summary, shrunk: Result | None, trace: Path | None) -> dict[str, object]:
    return {
        "runs": summary.runs,
        "simulated_s": round(summary.simulated_s, 3),
        "simulated_s_per_core_s": round(summary.speed, 1),
        "events": summary.events,
        "blocks": summary.blocks,
        "operations": summary.operations,
        "faults": dict(sorted(summary.faults.items())),
        "coverage": dict(sorted(summary.coverage.items())),
        "violations": [_violation(result) for result in summary.failed],
        "shrunk": None if shrunk is None else _violation(shrunk),
        "traces": [] if trace is None else [str(trace)],
    }


def _violation(result: Result) -> dict[str, object]:
    return {
        "seed": result.scenario.seed,
        "violation": result.violation,
        "at_s": result.violation_us / MICROS_PER_SECOND,
        "trace_hash": result.trace_hash,
        "replay": _command(result.scenario),
    }
