"""`python -m tools.bench`: this ledger, its peers and the machine's limits, measured in one run.

    python -m tools.bench [--quick] [--only SUBJECT]... [--output FILE.json] [--pictures FOLDER]

Prints every figure, and the ratios of this ledger's to its peers'; `bitnexus bench show FILE.json`
does so again. What is not installed is skipped with the line that installs it. A whole run
takes about an hour, for which nothing else should use the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cluster.bench.errors import BenchError
from cluster.bench.plan import LEDGER, QUICK, Plan
from cluster.bench.report import print_result, write_pictures
from cluster.bench.result import write_result
from tools.bench import etcd, mnesia, postgres, pysyncobj, raftos
from tools.bench.run import run_all

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tools.bench.peer import Peer

PEERS: Final = (
    *etcd.PEERS,
    *postgres.PEERS,
    *mnesia.PEERS,
    *pysyncobj.PEERS,
    *raftos.PEERS,
)


INTERRUPTED: Final = 130
"""The exit status of a shell's command that Ctrl-C ended."""


def choose(words: Sequence[str]) -> tuple[bool, tuple[Peer, ...]]:
    """Whether the ledger is meant, and which peers: all, or those with one of the words in them.

    Raises BenchError for a word that is in no name.
    """
    if not words:
        return True, PEERS
    names = [LEDGER, *(peer.name for peer in PEERS)]
    for word in words:
        if not any(word.lower() in name.lower() for name in names):
            raise BenchError(f"no subject is called {word!r}; there are: {'; '.join(names)}")
    chosen = {name for name in names for word in words if word.lower() in name.lower()}
    return LEDGER in chosen, tuple(peer for peer in PEERS if peer.name in chosen)


def main() -> int:
    """Measure, and print and keep what was asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench", description="This ledger and its peers in one run."
    )
    parser.add_argument("--quick", action="store_true", help="short loads: to see that all runs")
    parser.add_argument("--only", action="append", default=[], help="part of a subject's name")
    parser.add_argument("--seconds", type=float, help="length of each load")
    parser.add_argument("--rounds", type=int, help="rounds of which the median counts")
    parser.add_argument("--output", type=Path, help="keep the result in this JSON file")
    parser.add_argument("--pictures", type=Path, help="draw the ratios into this folder")
    arguments = parser.parse_args()
    plan = QUICK if arguments.quick else Plan()
    plan = replace(
        plan,
        seconds=arguments.seconds or plan.seconds,
        rounds=arguments.rounds or plan.rounds,
    )
    try:
        with_ledger, peers = choose(arguments.only)
        result = asyncio.run(run_all(plan, peers, with_ledger=with_ledger, report=_say))
        print_result(result)
        if arguments.output is not None:
            write_result(result, arguments.output)
        if arguments.pictures is not None:
            write_pictures(result, arguments.pictures)
    except BenchError as error:
        print(f"tools.bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("tools.bench: interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0 if result.figures else 1


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
