"""The simulator is able to fail: it finds every planted defect, by the check that is meant for it.

Relies on the tables in `defects.py` and `membership_defects.py` beside it; without a plant the same
seeds are clean.
"""

from __future__ import annotations

import re

import pytest

from cluster.simulation.faults import Scenario
from cluster.simulation.world import Result, simulate
from tests.cluster.simulation.defects import DEFECTS, Defect
from tests.cluster.simulation.membership_defects import MEMBERSHIP_DEFECTS


def find(defect: Defect) -> Result | None:
    """The first run that breaks, over the seeds the defect has."""
    for seed in range(defect.first_seed, defect.first_seed + defect.seeds):
        scenario = Scenario(
            seed=seed,
            nodes=defect.nodes,
            seconds=defect.seconds,
            profile=defect.profile,
        )
        result = simulate(scenario)
        if result.violation is not None:
            return result
    return None


@pytest.mark.parametrize("defect", [*DEFECTS, *MEMBERSHIP_DEFECTS], ids=lambda defect: defect.name)
def test_a_planted_defect_is_found(defect: Defect) -> None:
    """Within its seeds the defect breaks a rule, and the words say which."""
    with defect.planted():
        found = find(defect)
    assert found is not None, f"not found in {defect.seeds} seeds"
    assert re.search(defect.found_by, found.violation or "") is not None
    assert simulate(found.scenario).violation is None
