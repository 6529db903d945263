"""The sample data: repeatable to the byte, honest books, and everything a ledger may stumble on."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import unicodedata
import uuid
from collections import Counter
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest

from tools import sample

ROOT = Path(__file__).resolve().parents[2]
COUNT = 5_000
GOLDEN_SHA256 = "dd94426f7b3f3f1712f0928045e454bcb870592ea6f9f9bfc0308fbe83c3f9c7"
"""Of the first thousand lines of seed 1. A change here changes every figure measured with them."""


@pytest.fixture(scope="module")
def lines() -> list[dict[str, Any]]:
    """One sample for all the tests that only read it."""
    return list(sample.transactions(COUNT, seed=7))


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """The command line of the sample, with other environment variables."""
    return subprocess.run(
        [sys.executable, "-m", "tools.sample", *arguments],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        check=False,
    )


def test_the_same_seed_gives_the_same_bytes_in_every_process() -> None:
    """Neither the hash seed nor the locale of a process reaches the data."""
    arguments = ("--count", "300", "--seed", "3")
    plain = run(*arguments, PYTHONHASHSEED="1")
    other = run(*arguments, PYTHONHASHSEED="2", LC_ALL="C", PYTHONUTF8="0")

    assert (0, b"") == (plain.returncode, plain.stderr)
    assert plain.stdout == other.stdout
    assert 300 == len(plain.stdout.splitlines())


def test_the_bytes_of_seed_one_never_change() -> None:
    """Figures measured with one version of the sample can be compared with the next."""
    text = b"".join(sample.encode(each) + b"\n" for each in sample.transactions(1_000, seed=1))

    assert hashlib.sha256(text).hexdigest() == GOLDEN_SHA256


def test_another_seed_gives_other_transactions() -> None:
    """Two seeds share no id, so their samples can go into one ledger."""
    first = {each["id"] for each in sample.transactions(1_000, seed=1)}
    second = {each["id"] for each in sample.transactions(1_000, seed=2)}

    assert set() == first & second


def test_a_longer_run_begins_with_the_shorter_one(lines: list[dict[str, Any]]) -> None:
    """The count decides only where the sample ends."""
    assert lines[:100] == list(islice(sample.transactions(10**9, seed=7), 100))


def test_a_file_holds_what_stdout_would(tmp_path: Path) -> None:
    """`--output` writes the same bytes to a file, and nothing to stdout."""
    target = tmp_path / "sample.jsonl"
    written = run("--count", "50", "--output", str(target))

    assert (0, b"", b"") == (written.returncode, written.stdout, written.stderr)
    assert run("--count", "50").stdout == target.read_bytes()


def test_a_negative_count_is_refused() -> None:
    """A count below zero is a mistake, not an empty file."""
    refused = run("--count", "-1")

    assert 2 == refused.returncode
    assert b"--count: must not be below zero" in refused.stderr


def test_ids_are_uuid7_and_rise(lines: list[dict[str, Any]]) -> None:
    """RFC 9562 section 5.7: version 7, the usual variant, in the order of their time."""
    ids = [uuid.UUID(each["id"]) for each in lines]

    assert {7} == {each.version for each in ids}
    assert {uuid.RFC_4122} == {each.variant for each in ids}
    assert all(earlier.bytes < later.bytes for earlier, later in pairwise(ids))


def test_no_balance_falls_below_zero(lines: list[dict[str, Any]]) -> None:
    """The books, kept again from the written lines alone, never show an overdrawn account."""
    balances: Counter[str] = Counter()
    written: dict[str, dict[str, Any]] = {}
    for line in lines:
        for user_id, change in changes(line, written):
            balances[user_id] += change
            assert balances[user_id] >= 0, line
        written[line["id"]] = line


def changes(line: dict[str, Any], written: dict[str, dict[str, Any]]) -> list[tuple[str, int]]:
    """What a line does to which account, read as its reader would."""
    user_id, payload = line["user_id"], line["payload"]
    amount: int = payload["amount"]
    match line["kind"]:
        case "deposit":
            return [(user_id, amount)]
        case "withdrawal" | "fee":
            return [(user_id, -amount)]
        case "transfer":
            return [(user_id, -amount), (payload["to"], amount)]
        case "reversal":
            undone = changes(written[payload["reverses"]], written)
            assert {amount} == {abs(change) for _, change in undone}
            return [(user, -change) for user, change in undone]
    raise AssertionError(line["kind"])


def test_references_point_back_and_are_used_once(lines: list[dict[str, Any]]) -> None:
    """A fee or a reversal names a line above it, and no line is charged or reversed twice."""
    above: set[str] = set()
    for kind, field in (("fee", "for"), ("reversal", "reverses")):
        named = [line["payload"][field] for line in lines if line["kind"] == kind]
        assert len(named) == len(set(named)) > 0
    for line in lines:
        payload = line["payload"]
        assert above.issuperset(payload[field] for field in ("for", "reverses") if field in payload)
        above.add(line["id"])


def test_every_kind_is_there(lines: list[dict[str, Any]]) -> None:
    """All five kinds of business, none of them a rarity."""
    kinds = Counter(line["kind"] for line in lines)

    assert {"deposit", "transfer", "withdrawal", "fee", "reversal"} == set(kinds)
    assert min(kinds.values()) > COUNT // 50


def test_activity_is_heavy_tailed(lines: list[dict[str, Any]]) -> None:
    """By Zipf's law over 2,000 accounts the busiest has one line in eight; most have few."""
    activity = [count for _, count in Counter(line["user_id"] for line in lines).most_common()]

    assert 0.08 < activity[0] / COUNT < 0.2
    assert len(activity) > 500
    assert activity[len(activity) // 2] <= 3


def test_payloads_keep_their_bounds(lines: list[dict[str, Any]]) -> None:
    """50 bytes to 4 KB of JSON, most of them small, some near the top."""
    sizes = sorted(len(sample.encode(line["payload"])) for line in lines)

    assert sample.MIN_PAYLOAD_BYTES <= sizes[0]
    assert 3_500 < sizes[-1] <= sample.MAX_PAYLOAD_BYTES
    assert sizes[len(sizes) // 2] < 300


def test_text_is_awkward_but_legal(lines: list[dict[str, Any]]) -> None:
    """Many scripts, emoji, marks and controls; never a NUL, which PostgreSQL cannot hold."""
    text = "".join(sample.encode(line).decode() + line["payload"].get("memo", "") for line in lines)
    scripts = {unicodedata.name(letter, "").split()[0] for letter in set(text) if letter.isalpha()}

    assert {"LATIN", "GREEK", "CYRILLIC", "ARABIC", "HEBREW", "CJK", "THAI"} <= scripts
    assert any(unicodedata.combining(letter) for letter in text)
    assert any(ord(letter) > 0xFFFF for letter in text)
    assert "\n" in text
    assert "\0" not in text
    assert not unicodedata.is_normalized("NFC", text)


def test_some_amounts_are_beyond_floats() -> None:
    """A reader that goes through floats loses an odd amount; all fit 64 bits."""
    amounts = [line["payload"]["amount"] for line in sample.transactions(20_000, seed=1)]

    assert any(int(float(amount)) != amount for amount in amounts)
    assert 0 < min(amounts) <= max(amounts) < 2**63


def test_each_line_is_json_that_reads_back(lines: list[dict[str, Any]]) -> None:
    """A line holds no line break of its own, and gives the same transaction again."""
    for line in lines:
        encoded = sample.encode(line)
        assert b"\n" not in encoded
        assert line == json.loads(encoded)
        assert ["id", "user_id", "kind", "payload"] == list(line)
