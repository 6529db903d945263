"""Payloads of very many containers: judged without a walk, and as strictly as with one."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from consensus import payload as payload_module
from consensus.payload import (
    MAX_PAYLOAD_DEPTH,
    InvalidTransactionError,
    check_payload,
    encode_payload,
)


def nested(depth: int, core: Any = 0) -> Any:
    """`core` inside so many lists."""
    for _ in range(depth):
        core = [core]
    return core


SOUND = [
    [{}] * 5_000,
    [[], {"a": {}}] * 500,
    [nested(MAX_PAYLOAD_DEPTH - 1)] * 50,
    [{"]}[{": '"[[\\"{'}] * 50,
    [[0.5, -0.0, 1.0, 1e300, (1 << 64) - 1, -(1 << 63), None, True]] * 50,
    [["\x7f\xff\u00c4 [", 1 << 60]] * 50,
]
FAULTY = [
    [nested(MAX_PAYLOAD_DEPTH)] * 50,
    [*[{}] * 50, nested(MAX_PAYLOAD_DEPTH)],
    [*[{}] * 50, "\x00"],
    [*[{}] * 50, {"\x00": 1}],
    [*[{}] * 50, math.inf],
    [*[{}] * 50, -math.inf],
    [*[{}] * 50, math.nan],
    [*[{}] * 50, b"bytes"],
    [*[{}] * 50, b""],
]


@pytest.mark.parametrize("payload", SOUND, ids=range(len(SOUND)))
def test_what_is_sound_is_not_walked(payload: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A walk takes ten times as long: 64 KiB of empty maps held a node's loop for 60 ms."""
    monkeypatch.setattr(payload_module, "_find_fault", None)
    encoded = encode_payload(payload)
    check_payload(encoded)
    assert payload == msgspec.msgpack.decode(encoded)


@pytest.mark.parametrize("payload", FAULTY, ids=range(len(FAULTY)))
def test_what_has_a_fault_is_refused_with_its_place(payload: Any) -> None:
    """However many sound containers stand around it; as a value and as bytes."""
    with pytest.raises(InvalidTransactionError, match=r"^payload"):
        encode_payload(payload)
    with pytest.raises(InvalidTransactionError, match=r"^payload"):
        check_payload(msgspec.msgpack.encode(payload, order="sorted"))
