"""Sample data: `python -m tools.sample --count N --seed S [--output FILE]` writes JSON lines.

Each line is one transaction, `{"id", "user_id", "kind", "payload"}`, of a bank that keeps honest
books: deposits, transfers, withdrawals, and fees and reversals that name what they charge for or
take back. No balance ever falls below zero, nothing is reversed twice, and what a line refers to
stands above it. A few accounts do most of the business (Zipf), memos come in many scripts, and
payloads run from 50 bytes to 4 KB. Amounts are whole minor units.

The same seed gives the same bytes on every machine: only `Random.random` and `getrandbits` are
used, whose sequences Python promises to keep, and no float decides more than one integer. A longer
run begins with the shorter one's lines. Relies on the standard library alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import uuid
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MIN_PAYLOAD_BYTES: Final = 50
MAX_PAYLOAD_BYTES: Final = 4_096
ACCOUNTS: Final = 2_000
RECENT: Final = 512
"""How many of the last movements can still be reversed or charged for."""

FIRST_MOMENT_MS: Final = 1_767_225_600_000
"""2026-01-01T00:00:00Z, where every sample begins."""
MEAN_GAP_MS: Final = 20

BEYOND_FLOATS: Final = 2**53 + 1
"""The first whole number a float cannot hold: a reader that goes through floats is found out."""

TREASURY: Final = 0
TREASURY_ODDS: Final = 32
"""The busiest account alone takes such a sum in, in one of so many of its deposits."""

NAMES: Final = ("кошелёк", "口座", "חשבון", "compte-d'épargne", "बचत-खाता", "💼", "Spar+Giro 100%")
UNUSUAL: Final = 5
"""Of every eight accounts the sixth has a name that a URL must escape; the rest are plain."""

MEMOS: Final = (
    "Rent",
    "Invoice 4711, second reminder",
    "Groceries & household",
    "Café au lait, déjà payé",
    "Cafe\u0301 au lait, de\u0301ja\u0300 paye\u0301",  # the same in combining characters
    "Grüße aus Köln – Straße 12",
    "Żółta łódź, część 3",
    "Λογαριασμός ρεύματος",
    "Коммунальные услуги за март",
    "تحويل شهري إلى العائلة",
    "תשלום עבור שיעורים",
    "मासिक किराया जमा",
    "ค่าเช่าประจำเดือน",
    "三月份房租",
    "家賃（三月分）です",
    "삼월 월세 입금",
    "🎂🎉 Happy birthday!",
    "👩‍👩‍👧‍👦 holiday fund 🏖️",  # one picture of seven code points
    "👍🏽 thanks! 🇨🇭➡️🇯🇵",
    "Z\u0351\u036f\u0310a\u0321\u0348l\u0334\u030dg\u0300o\u0489",  # marks upon marks
    'say "cheese" \\ or \\n',
    "two\nlines,\ta tab\r\nand an end",
    "e-mail: treasurer@example.org",
    "𝔘nicode 𝟛 beyond the basic plane",
    "\u200fمرحبا\u200e left and right",
)
GOODS: Final = ("paper, A4", "toner", "café crème", "Schrauben M6×40", "電池", "ручка", "चाय", "🥐")
REASONS: Final = ("duplicate", "fraud", "customer request", "amount wrong", "account closed")


CURRENCY: Final = "CHF"
KINDS: Final = (
    ("deposit",) * 6 + ("transfer",) * 8 + ("withdrawal",) * 3 + ("fee",) * 2 + ("reversal",)
)
"""Drawn from evenly; what cannot happen yet becomes a deposit."""

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Movement:
    """Money that moved from one account to another; None is the world outside the bank."""

    kind: str
    source: int | None
    target: int | None
    amount: int
    refers_to: str | None = None
    """The id of the transaction that this one charges for or takes back."""

    @property
    def owner(self) -> int:
        """The account in whose history this movement stands."""
        account = self.target if self.source is None else self.source
        assert account is not None, "money moves from an account or to one"
        return account


class Draw:
    """Choices from one seeded source, made of whole numbers."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self._shares = list(accumulate(1_000_000_000 // rank for rank in range(1, ACCOUNTS + 1)))

    def below(self, limit: int) -> int:
        """A whole number from 0 to `limit` - 1."""
        return int(self._random.random() * limit)

    def bits(self, count: int) -> int:
        """That many random bits."""
        return self._random.getrandbits(count)

    def one(self, items: Sequence[Item]) -> Item:
        """One of the items."""
        return items[self.below(len(items))]

    def account(self) -> int:
        """An account by Zipf's law: the second is half as busy as the first, the third a third."""
        return bisect_right(self._shares, self.below(self._shares[-1]))

    def heavy_tailed(self, *, least: int, most: int) -> int:
        """A number mostly near `least`, now and then near `most`: twice as much, half as often."""
        scale = least
        while scale < most and self.below(2):
            scale *= 2
        return min(most, scale + self.below(scale))


class Books:
    """The balances, and what may still be charged for or taken back."""

    def __init__(self, draw: Draw) -> None:
        self._draw = draw
        self._balances = [0] * ACCOUNTS
        self._recent: deque[tuple[str, Movement]] = deque(maxlen=RECENT)
        self._settled: set[tuple[str, str]] = set()

    def next_movement(self) -> Movement:
        """Something that can happen now; `record` makes it happen."""
        kind = self._draw.one(KINDS)
        movement: Movement | None = None
        match kind:
            case "transfer" | "withdrawal":
                movement = self._spending(kind)
            case "fee" | "reversal":
                movement = self._following(kind)
        if movement is None or self._lacks_money(movement):
            return self._deposit()
        return movement

    def record(self, transaction_id: str, movement: Movement) -> None:
        """Move the money."""
        if movement.source is not None:
            self._balances[movement.source] -= movement.amount
            assert self._balances[movement.source] >= 0, "no account is overdrawn"
        if movement.target is not None:
            self._balances[movement.target] += movement.amount
        if movement.refers_to is None:
            self._recent.append((transaction_id, movement))
        else:
            self._settled.add((movement.kind, movement.refers_to))

    def _deposit(self) -> Movement:
        target = self._draw.account()
        amount = self._draw.heavy_tailed(least=1_000, most=50_000_000)
        if target == TREASURY and not self._draw.below(TREASURY_ODDS):
            amount = BEYOND_FLOATS + self._draw.below(1_000)
        return Movement("deposit", None, target, amount)

    def _spending(self, kind: str) -> Movement:
        source, target = self._draw.account(), self._draw.account()
        amount = self._draw.heavy_tailed(least=100, most=20_000_000)
        if target == source:
            target = (source + 1) % ACCOUNTS
        return Movement(kind, source, target if kind == "transfer" else None, amount)

    def _following(self, kind: str) -> Movement | None:
        if not self._recent:
            return None
        earlier_id, earlier = self._draw.one(self._recent)
        if (kind, earlier_id) in self._settled:
            return None
        if kind == "fee":
            return Movement("fee", earlier.owner, None, 1 + earlier.amount // 500, earlier_id)
        return Movement("reversal", earlier.target, earlier.source, earlier.amount, earlier_id)

    def _lacks_money(self, movement: Movement) -> bool:
        return movement.source is not None and self._balances[movement.source] < movement.amount


class Clock:
    """Time-ordered ids (UUIDv7, RFC 9562 section 5.7): milliseconds, a counter, random bits."""

    def __init__(self, draw: Draw) -> None:
        self._draw = draw
        self._moment_ms = FIRST_MOMENT_MS
        self._counter = 0

    def next_id(self) -> str:
        """An id above every one before it."""
        gap_ms = self._draw.below(2 * MEAN_GAP_MS)
        self._moment_ms += gap_ms
        self._counter = 0 if gap_ms else self._counter + 1
        high = self._moment_ms << 16 | 7 << 12 | self._counter
        return str(uuid.UUID(int=high << 64 | 2 << 62 | self._draw.bits(62)))


def transactions(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """That many transactions, each `{"id", "user_id", "kind", "payload"}`; see the file's top."""
    draw = Draw(seed)
    clock, books = Clock(draw), Books(draw)
    for _ in range(count):
        transaction_id, movement = clock.next_id(), books.next_movement()
        books.record(transaction_id, movement)
        yield {
            "id": transaction_id,
            "user_id": USER_IDS[movement.owner],
            "kind": movement.kind,
            "payload": payload_of(movement, draw),
        }


def payload_of(movement: Movement, draw: Draw) -> dict[str, Any]:
    """What is written of a movement: what its kind needs, mostly a memo, and maybe a long bill."""
    payload: dict[str, Any] = {"amount": movement.amount, "currency": CURRENCY}
    match movement.kind:
        case "transfer":
            assert movement.target is not None, "a transfer has two accounts"
            payload["to"] = USER_IDS[movement.target]
        case "fee":
            payload["for"] = movement.refers_to
        case "reversal":
            payload |= {"reverses": movement.refers_to, "reason": draw.one(REASONS)}
    if draw.below(4):
        payload["memo"] = " · ".join(draw.one(MEMOS) for _ in range(1 + draw.below(2)))
    payload["reference"] = f"{draw.bits(32):08x}"
    size_bytes = draw.heavy_tailed(least=64, most=MAX_PAYLOAD_BYTES)
    return with_bill(payload, draw, size_bytes=size_bytes)


def with_bill(payload: dict[str, Any], draw: Draw, *, size_bytes: int) -> dict[str, Any]:
    """The payload with as many lines of a bill as fit the given size; none where none fits."""
    room_bytes = size_bytes - len(encode(payload)) - len(b',"bill":[]')
    bill: list[dict[str, Any]] = []
    while True:
        line = {
            "item": draw.one(GOODS),
            "quantity": 1 + draw.below(99),
            "taxed": bool(draw.below(2)),
        }
        room_bytes -= len(encode(line)) + len(b",")
        if room_bytes < 0:
            return payload | {"bill": bill} if bill else payload
        bill.append(line)


def encode(value: object) -> bytes:
    """JSON as short as it goes, in UTF-8."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def user_id_of(account: int) -> str:
    """The name of an account; one in eight holds what must be escaped in a URL."""
    name = NAMES[account // 8 % len(NAMES)] if account % 8 == UNUSUAL else "account"
    return f"{name}-{account:04d}"


USER_IDS: Final = tuple(user_id_of(account) for account in range(ACCOUNTS))


def main() -> None:
    """Write the lines to a file, or to stdout."""
    parser = argparse.ArgumentParser(prog="python -m tools.sample", description=__doc__)
    parser.add_argument("--count", type=int, default=20_000, help="how many lines (20000)")
    parser.add_argument("--seed", type=int, default=1, help="the same seed, the same bytes (1)")
    parser.add_argument("--output", type=Path, help="a file to write; stdout without it")
    arguments = parser.parse_args()
    if arguments.count < 0:
        parser.error("--count: must not be below zero")
    lines = (encode(each) + b"\n" for each in transactions(arguments.count, arguments.seed))
    if arguments.output is not None:
        with arguments.output.open("wb") as file:
            file.writelines(lines)
        return
    try:
        sys.stdout.buffer.writelines(lines)
        sys.stdout.buffer.flush()
    except BrokenPipeError:  # the reader, `head` perhaps, has seen enough
        sys.stderr.close()
        sys.exit(0)


if __name__ == "__main__":
    main()
