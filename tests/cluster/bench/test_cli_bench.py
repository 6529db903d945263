"""`bitnexus bench` itself: what it refuses, keeps and shows, and one short real run."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import msgspec
import pytest

from cluster.bench.figures import Measure, Workload
from cluster.bench.plan import LEDGER, Plan
from cluster.bench.result import read_result
from cluster.bench.run import measure
from cluster.bench.wrk import MISSING
from node.cli_errors import ExitCode
from tests.node.cli_stage import run

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.cluster
def test_a_short_run_measures_a_real_cluster(tmp_path: Path) -> None:
    """Three nodes record for a second; the result is shown, kept, and equal to itself."""
    file = tmp_path / "result.json"
    options = ("--quick", "--only", "sequential submits", "--output", file, "--json")
    measured = run("bench", *options)

    assert ExitCode.OK == measured.code, measured.stderr
    result = read_result(file)
    assert json.loads(msgspec.json.encode(result)) == measured.document
    assert () == result.skipped
    wanted = [Measure.P50_MS, Measure.P99_MS, Measure.CPU_MS_PER_1000]
    assert wanted == [one.measure for one in result.figures]
    assert {Workload.SEQUENTIAL} == {one.workload for one in result.figures}
    assert all(one.value > 0 for one in result.figures)
    shown = run("bench", "show", file)
    assert "sequential submits" in shown.stdout
    compared = run("bench", "compare", file, file, "--json").document
    assert {"same"} == {one["verdict"] for one in compared}
    assert "same" in run("bench", "compare", file, file).stdout


@pytest.mark.cluster
@pytest.mark.postgres
@pytest.mark.asyncio
async def test_everything_that_needs_no_wrk_runs_on_real_clusters() -> None:
    """With next to nothing to do: each workload has its figures, and nothing is left out."""
    workloads = frozenset(
        {
            Workload.MEMORY,
            Workload.SEQUENTIAL_FOLLOWER,
            Workload.CLIENT_64,
            Workload.BATCHED,
            Workload.STALL,
            Workload.OVERLOAD,
            Workload.FAILOVER_TUNED,
            Workload.CATCH_UP,
            Workload.VERIFY,
            Workload.CHECKPOINT,
        }
    )
    plan = Plan(
        seconds=0.2,
        rounds=1,
        workloads=workloads,
        failovers=1,
        transactions=1_500,
        multiples=(0.5, 2.0),
    )
    result = await measure(plan, report=lambda _line: None)

    assert () == result.skipped
    assert workloads == {one.workload for one in result.figures}
    assert [LEDGER] == [one.name for one in result.subjects]
    assert [(0.5, 0.5), (2.0, 2.0)] == [
        (single.multiple, batches.multiple)
        for single, batches in zip(result.load[:2], result.load[2:], strict=True)
    ]


@pytest.mark.cluster
@pytest.mark.asyncio
@pytest.mark.skipif(shutil.which("wrk") is None, reason=MISSING)
async def test_clients_of_wrk_are_measured_on_a_real_cluster() -> None:
    """Those that record, those that read one receipt, and those that read a page."""
    workloads = frozenset({Workload.SINGLE_64, Workload.LOCAL_READ_64, Workload.HISTORY})
    plan = Plan(seconds=0.2, rounds=1, workloads=workloads)
    result = await measure(plan, report=lambda _line: None)

    assert () == result.skipped
    assert workloads == {one.workload for one in result.figures if one.measure is Measure.PER_S}


def test_a_workload_that_is_none_is_refused() -> None:
    """One line names all that there are."""
    refused = run("bench", "--only", "everything")

    assert ExitCode.USAGE == refused.code
    assert "sequential submits" in refused.error


def test_a_workload_that_others_measure_is_refused() -> None:
    """The vocabulary has more than this command can do."""
    refused = run("bench", "--only", Workload.PORT_64.value)

    assert (ExitCode.USAGE, "nothing here measures: client port, 64 clients") == (
        refused.code,
        refused.error,
    )


def test_a_file_without_results_is_refused(tmp_path: Path) -> None:
    """For showing and for comparing."""
    for words in (("show", tmp_path / "none"), ("compare", tmp_path / "none", tmp_path / "none")):
        refused = run("bench", *words)
        assert ExitCode.INPUT == refused.code
        assert refused.error.startswith("cannot read")
