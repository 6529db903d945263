"""The guard of the submit path's CPU time: it holds now, and goes red for what it is there for.

It runs in processes of its own, for what measures coverage would be measured as well.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cluster.bench.guard import VERSION, is_regression, read_baselines

ROOT = Path(__file__).resolve().parents[3]

SLOWER = """\
import sys
from cluster.bench import guard
from node.replica import Replica

submit = Replica.submit

def slower(self, *submissions):
    guard.reference_round(%d * len(submissions))
    submit(self, *submissions)

Replica.submit = slower
sys.exit(guard.main([]))
"""
"""Each submit costs so many steps of the reference more."""

pytestmark = pytest.mark.skipif(
    VERSION not in read_baselines(), reason="another Python has another ratio, and none is kept"
)


def guard(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments in the checkout."""
    command = (sys.executable, *arguments)
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_submit_costs_no_more_than_it_did() -> None:
    """If it does for a good reason: `python -m cluster.bench.guard --renew`."""
    judged = guard("-m", "cluster.bench.guard")

    assert 0 == judged.returncode, judged.stdout + judged.stderr


def test_a_planted_slowdown_is_seen() -> None:
    """Of about a half: 64 submits cost some four references of 60 steps, four steps a submit."""
    judged = guard("-c", SLOWER % 2)

    assert 1 == judged.returncode, judged.stdout + judged.stderr
    assert "more than 20 % above" in judged.stdout


@pytest.mark.parametrize(
    ("ratio", "expected"), [(1.0, False), (1.19, False), (1.21, True), (0.5, False)]
)
def test_the_margin_is_a_fifth(ratio: float, expected: bool) -> None:
    """Noise and other machines have their part of it; quicker is never red."""
    assert expected is is_regression(ratio, 1.0)
