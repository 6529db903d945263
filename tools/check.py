"""Every quality gate in one command: `python -m tools.check [all | static | tests [ARGS...]]`.

`static` is ruff, its formatter and mypy. `tests` without arguments is the whole suite, real
clusters and a real PostgreSQL included. What lives in virtual time runs beside the rest, at a low
priority, and says what it has to say at the end. The tests of consensus/ are measured: they must
run at least 95 % of its branches, and of its lines. `tests ARGS...` is plain `pytest ARGS...`.
`all`, the default, is `static` and then `tests`, which do not start where `static` failed.

Relies on the environment that `./tools/dev check` and `./tools/dev test` make.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT: Final = Path(__file__).resolve().parent.parent
GATED: Final = "consensus"
FLOOR_PERCENT: Final = 95.0
LOW_PRIORITY: Final = 10

VIRTUAL: Final = (
    ("coverage", "run", "-m", "pytest", "tests/consensus"),
    ("pytest", "tests/cluster/simulation"),
)
"""What needs no clock, socket or disk: however slow the machine is, it comes to the same."""
REST: Final = (
    "pytest",
    "tests",
    "--ignore=tests/consensus",
    "--ignore=tests/cluster/simulation",
)

STATIC_GATES: Final = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    ("mypy",),
)


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of one package the tests ran."""

    package: str
    lines: int
    covered_lines: int
    branches: int
    covered_branches: int

    @property
    def line_percent(self) -> float:
        """Lines run, in percent; 0 where there are none, for nothing was shown."""
        return 100 * self.covered_lines / self.lines if self.lines else 0.0

    @property
    def branch_percent(self) -> float:
        """Branches taken, in percent; 0 where there are none, for nothing was shown."""
        return 100 * self.covered_branches / self.branches if self.branches else 0.0

    def __str__(self) -> str:
        return (
            f"{self.package}: {self.branch_percent:.1f} % of {self.branches} branches, "
            f"{self.line_percent:.1f} % of {self.lines} lines"
        )


def coverage_of(package: str, report: dict[str, Any]) -> Coverage:
    """One package's share of a report of `coverage json`."""
    summaries = [
        entry["summary"]
        for path, entry in report["files"].items()
        if path.startswith(f"{package}/")
    ]
    return Coverage(
        package=package,
        lines=sum(summary["num_statements"] for summary in summaries),
        covered_lines=sum(summary["covered_lines"] for summary in summaries),
        branches=sum(summary["num_branches"] for summary in summaries),
        covered_branches=sum(summary["covered_branches"] for summary in summaries),
    )


def passes(coverage: Coverage) -> bool:
    """Whether a package is covered as the rules of consensus/ must be."""
    return min(coverage.branch_percent, coverage.line_percent) >= FLOOR_PERCENT


def tool(*command: str) -> int:
    """The exit status of one tool of the environment, run in the checkout."""
    return subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=False).returncode


def tool_beside(*command: str) -> tuple[int, str]:
    """The exit status of one tool that gives way to others, and all that it wrote."""
    with subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    ) as process:
        os.setpriority(os.PRIO_PROCESS, process.pid, LOW_PRIORITY)
        output, _ = process.communicate()
    return process.returncode, output


def run(*command: str) -> bool:
    """Run one gate; says whether it passed, and in how many seconds."""
    started = time.monotonic()
    status = tool(*command)
    return judge(command, status, started)


def judge(command: Sequence[str], status: int, started: float) -> bool:
    """Say whether a gate passed that began then, on the monotonic clock."""
    verdict = "passed" if status == 0 else f"FAILED (status {status})"
    print(f"{' '.join(command)}: {verdict} in {time.monotonic() - started:.1f} s", flush=True)
    return status == 0


def check_static() -> bool:
    """Run every static gate, also after one failed: each has something to say."""
    verdicts = [run(*gate) for gate in STATIC_GATES]
    return all(verdicts)


def check_tests(arguments: list[str]) -> bool:
    """Run the tests the arguments choose, or all of them and the coverage gate."""
    if arguments:
        return run("pytest", *arguments)
    with ThreadPoolExecutor(max_workers=1) as beside:
        virtual = [beside.submit(run_beside, command) for command in VIRTUAL]
        verdicts = [run(*REST)]
        for command, running in zip(VIRTUAL, virtual, strict=True):
            status, output, started = running.result()
            print(output, end="")
            verdicts.append(judge(command, status, started))
    return all(verdicts) and check_coverage()


def run_beside(command: tuple[str, ...]) -> tuple[int, str, float]:
    """The exit status of a gate, what it wrote, and when it began."""
    started = time.monotonic()
    return (*tool_beside(*command), started)


def check_coverage() -> bool:
    """Judge the run just measured; lists the gaps where consensus/ is under its floor."""
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "coverage.json"
        if tool("coverage", "json", "--quiet", "-o", str(written)):
            return False
        report = json.loads(written.read_bytes())
    print(coverage_of(GATED, report))
    if passes(coverage_of(GATED, report)):
        return True
    tool("coverage", "report", "--show-missing", f"--include={GATED}/*")
    print(f"{GATED} must have {FLOOR_PERCENT:.0f} % of its branches and lines run")
    return False


def main() -> None:
    """Run what the first argument asks for; the exit status says whether all of it passed."""
    mode, *arguments = sys.argv[1:] or ["all"]
    try:
        sys.exit(0 if check(mode, arguments) else 1)
    except KeyboardInterrupt:  # what was interrupted has said so itself
        sys.exit(130)


def check(mode: str, arguments: list[str]) -> bool:
    """Run one mode's gates; leaves with a message where there is no such mode."""
    match mode:
        case "all" if not arguments:
            return check_static() and check_tests([])
        case "static" if not arguments:
            return check_static()
        case "tests":
            return check_tests(arguments)
        case _:
            sys.exit(f"tools/check: expected `all`, `static` or `tests ARGS...`, not `{mode}`")


if __name__ == "__main__":
    main()
