"""The copy in PostgreSQL on the command line: how far it is, and its tables made beforehand."""

from __future__ import annotations

import psycopg
import pytest

from node.cli_errors import ExitCode
from node.outcomes import CheckpointStatus
from storage.checkpoint_schema import SCHEMA_VERSION
from tests.node.cli_stage import run, serving
from tests.node.fake_ledger import FakeNode


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (CheckpointStatus(9, 0, 120, None), "in step 127.0.0.1:8001 NOSPACE"),
        (CheckpointStatus(4, 5, 0, "NOSPACE"), "5 behind 127.0.0.1:8001 NOSPACE"),
        (CheckpointStatus(4, 5, 0, "away"), "5 behind 127.0.0.1:8001 NOSPACE; PostgreSQL: away"),
    ],
)
def test_status_shows_how_far_postgres_is(status: CheckpointStatus, words: str) -> None:
    """The lag, and what keeps it there; an alarm is not said twice."""
    node = FakeNode()
    node.alarms, node.checkpoint = ("NOSPACE",), status
    with serving(node) as (url,):
        row = run("status", "--node", url).stdout.splitlines()[2]
        (document,) = run("status", "--node", url, "--json").document["nodes"]
    assert words == " ".join(row.split()[6:])
    assert {
        "index": status.index,
        "lag_blocks": status.lag_blocks,
        "rows_per_second": status.rows_per_second,
        "last_error": status.last_error,
    } == document["checkpoint"]


@pytest.mark.postgres
def test_prepare_makes_the_tables_and_may_be_run_again(database: str) -> None:
    """It says what it made and for whom; a role that it cannot bound is an error."""
    result = run("checkpoint", "prepare", "--postgres", database, "--json")
    assert {"version": SCHEMA_VERSION, "role": None} == result.document
    with psycopg.connect(database) as connection:
        assert (0,) == connection.execute("SELECT count(*) FROM bitnexus.blocks").fetchone()
    again = run("checkpoint", "prepare", "--postgres", database)
    assert f"the tables are of version {SCHEMA_VERSION}" in again.stdout + again.stderr
    refused = run("checkpoint", "prepare", "--postgres", database, "--role", "postgres")
    assert ExitCode.POSTGRES == refused.code
    assert refused.error.startswith("PostgreSQL: the role 'postgres' owns the tables")


def test_prepare_says_that_postgres_is_away() -> None:
    """With an exit code of its own."""
    result = run("checkpoint", "prepare", "--postgres", "host=/nowhere")
    assert ExitCode.POSTGRES == result.code
    assert result.error.startswith("PostgreSQL: ")
