"""Ratios say how many times as good the ledger is, and who does not fsync is told apart."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

import msgspec
import pytest

from cluster.bench.errors import BenchError
from cluster.bench.figures import Figure, Measure, Subject, Workload
from cluster.bench.plan import LEDGER, MACHINE
from cluster.bench.result import Machine, Result, read_result
from tools.bench import __main__ as command
from tools.bench.ratios import picture, ratios, table

if TYPE_CHECKING:
    from pathlib import Path

SUBJECTS = (
    Subject(LEDGER, "1", "on the disks of a majority, fsynced", is_durable=True),
    Subject("etcd", "3", "on the disks of a majority, fsynced", is_durable=True),
    Subject("PySyncObj <as shipped>", "0.3", "in the page cache", is_durable=False),
)
FIGURES = (
    Figure(LEDGER, Workload.SINGLE_64, Measure.PER_S, 5_000.0),
    Figure(LEDGER, Workload.SINGLE_64, Measure.P50_MS, 12.0),
    Figure(LEDGER, Workload.SEQUENTIAL, Measure.P50_MS, 2.0),
    Figure(MACHINE, Workload.SINGLE_64, Measure.PER_S, 1.0),
    Figure("PySyncObj <as shipped>", Workload.SEQUENTIAL, Measure.P50_MS, 100.0, "in process"),
    Figure("etcd", Workload.PORT_64, Measure.PER_S, 10_000.0, "gRPC"),
    Figure("etcd", Workload.SINGLE_64, Measure.P50_MS, 12.0),
    Figure("etcd", Workload.SINGLE_64, Measure.PER_S, 4_000.0),
    Figure("etcd", Workload.SEQUENTIAL, Measure.P50_MS, 1.0),
    Figure("etcd", Workload.MEMORY, Measure.MIB, 40.0),
)
RESULT = Result(
    measured_at="2025-01-01T00:00:00+00:00",
    commit="0",
    machine=Machine("cpu", 2, 4096, "6", "ext4"),
    versions={},
    seconds=1.0,
    rounds=1,
    subjects=SUBJECTS,
    figures=FIGURES,
)


def test_above_one_is_better_whatever_is_measured() -> None:
    """Higher rates and lower times; a peer's other port is compared with ours over HTTP."""
    found = [
        (
            one.figure.subject.split()[0],
            one.figure.workload.name,
            one.figure.measure.name,
            one.value,
        )
        for one in ratios(RESULT)
    ]
    assert [
        ("PySyncObj", "SEQUENTIAL", "P50_MS", 50.0),
        ("etcd", "SEQUENTIAL", "P50_MS", 0.5),
        ("etcd", "SINGLE_64", "P50_MS", 1.0),
        ("etcd", "SINGLE_64", "PER_S", 1.25),
        ("etcd", "PORT_64", "PER_S", 0.5),
    ] == found


def test_the_table_says_what_an_acknowledgement_means() -> None:
    """Beside each figure that is not durable, and of every subject at the end."""
    lines = table(RESULT).splitlines()

    (loose,) = [line for line in lines if line.endswith("NOT DURABLE; in process")]
    assert "50.00 x  PySyncObj <as shipped>" in loose
    assert "client port, 64 clients, per s: 5,000.00 (64 clients, single submits)" in lines
    assert "  PySyncObj <as shipped> 0.3: in the page cache" in lines
    assert 1 == sum("NOT DURABLE" in line for line in lines)


def test_the_picture_is_whole_and_shows_each_ratio_of_one_measure() -> None:
    """A rate stands for its workload where there is one; a pale bar is a peer without fsync."""
    root = ET.fromstring(picture(RESULT))  # noqa: S314 - drawn just now
    name = "{http://www.w3.org/2000/svg}"
    words = [text.text for text in root.iter(f"{name}text")]
    bars = [bar for bar in root.iter(f"{name}rect") if bar.get("fill-opacity")]

    assert 2 == words.count("etcd") - 1
    assert "PySyncObj <as shipped>" in words
    assert ["0.35", "1.0", "1.0", "1.0"] == [bar.get("fill-opacity") for bar in bars]
    assert {"50.00 x", "0.50 x", "1.25 x"} <= set(words)
    assert "1.00 x" not in words


def test_a_picture_without_a_ledger_is_empty_and_whole() -> None:
    """Peers alone have nothing to be compared with."""
    alone = msgspec.structs.replace(RESULT, figures=FIGURES[4:])

    assert [] == ratios(alone)
    ET.fromstring(picture(alone))  # noqa: S314 - drawn just now


def test_subjects_are_chosen_by_a_part_of_their_name() -> None:
    """Whatever its case; a word that means nobody is told, with all names."""
    assert (True, command.PEERS) == command.choose([])
    with_ledger, peers = command.choose(["postgres"])
    assert (False, 2) == (with_ledger, len(peers))
    with_ledger, peers = command.choose([LEDGER, "ETCD"])
    assert (True, ["etcd"]) == (with_ledger, [peer.name for peer in peers])
    with pytest.raises(BenchError, match="no subject is called 'consul'; there are: bit"):
        command.choose(["etcd", "consul"])


def test_the_files_that_were_asked_for_are_written(tmp_path: Path) -> None:
    """The result as it can be read again, and the picture in a folder that is made."""
    output, pictures = tmp_path / "result.json", tmp_path / "new" / "pictures"
    command.keep(RESULT, output=output, pictures=pictures)

    assert RESULT == read_result(output)
    assert picture(RESULT) == (pictures / command.PICTURE).read_text()
    with pytest.raises(BenchError, match="cannot write into"):
        command.keep(RESULT, output=None, pictures=output)
