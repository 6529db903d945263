"""Finds the place of the first fault in a JSON text, so that a refusal can name it.

msgspec refuses bad input in a microsecond but does not always say where it is, and forgives a few
things that a ledger must not: this scanner says where. It runs only on a text that was refused,
reads tokens in order without recursion and without building values, and gives up after a bounded
number of them. Relies on nothing.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from enum import Enum, unique
from typing import Final

from consensus.payload import MAX_PAYLOAD_DEPTH

MAX_TOKENS: Final = 20_000
"""Where the scanner gives up: about 30 ms, less than a heartbeat."""
MAX_TEXT_BYTES: Final = 512 * 1024
"""The longest text that is scanned."""

_TOKEN: Final = re.compile(
    r"""[ \t\n\r]*+(?:
        (?P<text>"(?:[^"\\\x00-\x1f]++|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*+")
      | (?P<number>-?(?:0|[1-9][0-9]*+)(?P<real>\.[0-9]++)?(?P<power>[eE][+-]?[0-9]++)?)
        (?![0-9A-Za-z.+-])
      | (?P<word>true|false|null)\b
      | (?P<mark>[\[\]{},:])
      | (?P<end>\Z)
    )""",
    re.VERBOSE,
)
_NOT_JSON: Final = re.compile(r"[ \t\n\r]*+(?P<found>-?[0-9A-Za-z_.+-]{1,20}|.?)", re.DOTALL)
_MIN_INTEGER: Final = -(1 << 63)
_MAX_INTEGER: Final = (1 << 64) - 1
_MAX_INTEGER_DIGITS: Final = 20
_MAX_SHOWN_KEY: Final = 40
_MAX_SHOWN_TOKEN: Final = 20


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong, and where. `is_syntax` means the text is not JSON at all."""

    path: str
    detail: str
    is_syntax: bool


@unique
class _Expects(Enum):
    """What may come next within a container; after FIRST and COMMA it may also end."""

    FIRST = "a first key or value"
    KEY = "a key"
    COLON = "a colon"
    VALUE = "a value"
    COMMA = "a comma or the end"


@dataclass(slots=True)
class _Container:
    """An object or array that is open: `step` is where in it the scanner stands."""

    is_object: bool
    step: str | int | None
    keys: set[str] = field(default_factory=set)
    expects: _Expects = _Expects.FIRST


class _FaultFoundError(Exception):
    def __init__(self, path: str, detail: str, *, is_syntax: bool = False) -> None:
        super().__init__(detail)
        self.finding = Finding(path, detail, is_syntax)


def find_fault(text: bytes, *, path: str = "$", depth_around: int = 1) -> Finding | None:
    """Return the first fault in a JSON text, or None where there is none or it is too far in.

    `path` is the place of the text itself; `depth_around` is how many containers may be open
    around a payload, which itself may nest MAX_PAYLOAD_DEPTH deep.
    """
    if len(text) > MAX_TEXT_BYTES:
        return None
    # What is not UTF-8 becomes half a surrogate pair, and is found as such within its text.
    scanner = _Scanner(text.decode("utf-8", "surrogateescape"), path, depth_around)
    try:
        scanner.run()
    except _FaultFoundError as found:
        return found.finding
    return None


def show_step(step: str | int | None) -> str:
    """Write one step of a path: `.memo`, `['two words']` or `[3]`."""
    if step is None:
        return ""
    if isinstance(step, int):
        return f"[{step}]"
    short = step if len(step) <= _MAX_SHOWN_KEY else step[:_MAX_SHOWN_KEY] + "..."
    return f".{short}" if short.isidentifier() else f"[{short!a}]"


class _Scanner:
    def __init__(self, text: str, path: str, depth_around: int) -> None:
        self._text = text
        self._root = path
        self._depth_around = depth_around
        self._open: list[_Container] = []

    def run(self) -> None:
        """Read tokens to the end or to the bound; raises _FaultFoundError."""
        position = 0
        is_done = False
        for _ in range(MAX_TOKENS):
            token = _TOKEN.match(self._text, position)
            if token is None:
                raise self._not_json(position)
            position = token.end()
            if token.lastgroup == "end":
                if not is_done:
                    raise self._fault("ends too early", is_syntax=True)
                return
            if is_done:
                raise _FaultFoundError(self._root, "goes on after its end", is_syntax=True)
            self._take(token)
            is_done = not self._open

    def _take(self, token: re.Match[str]) -> None:
        """Take one token where the grammar allows it."""
        if not self._open:
            self._take_value(token)
            return
        container = self._open[-1]
        expects, mark = container.expects, token["mark"]
        if self._is_close(container, mark):
            self._open.pop()
            self._after_value()
        elif expects is _Expects.COMMA and mark == ",":
            self._next(container)
        elif expects is _Expects.COLON and mark == ":":
            container.expects = _Expects.VALUE
        elif container.is_object and expects in {_Expects.FIRST, _Expects.KEY}:
            self._take_key(container, token["text"])
        elif expects in {_Expects.FIRST, _Expects.VALUE}:
            self._take_value(token)
        else:
            found = token.group().strip()[:_MAX_SHOWN_TOKEN]
            raise self._fault(f"expected {expects.value}, found {found!a}")

    @staticmethod
    def _is_close(container: _Container, mark: str | None) -> bool:
        """Whether the mark ends the container here; right after a comma it may not."""
        wanted = "}" if container.is_object else "]"
        return mark == wanted and container.expects in {_Expects.FIRST, _Expects.COMMA}

    @staticmethod
    def _next(container: _Container) -> None:
        if isinstance(container.step, int):
            container.step += 1
            container.expects = _Expects.VALUE
        else:
            container.expects = _Expects.KEY

    def _take_key(self, container: _Container, token: str | None) -> None:
        # Until the key is known to be good, the place is the object itself.
        container.step = None
        if token is None:
            raise self._fault("expected a key in double quotes")
        key = self._read_text(token, "has a key that ")
        container.step = key
        if key in container.keys:
            raise self._fault("is there twice", is_syntax=False)
        container.keys.add(key)
        container.expects = _Expects.COLON

    def _take_value(self, token: re.Match[str]) -> None:
        mark = token["mark"]
        if mark in {"{", "["}:
            self._begin(is_object=mark == "{")
            return
        if mark is not None:
            raise self._fault(f"expected a value, found {mark!a}")
        if token["text"] is not None:
            self._read_text(token["text"], "")
        elif token["number"] is not None:
            self._check_number(token)
        self._after_value()

    def _begin(self, *, is_object: bool) -> None:
        if len(self._open) >= self._depth_around + MAX_PAYLOAD_DEPTH:
            place = self._path(self._depth_around)
            detail = f"is nested deeper than {MAX_PAYLOAD_DEPTH}"
            raise _FaultFoundError(place, detail)
        self._open.append(_Container(is_object, None if is_object else 0))

    def _after_value(self) -> None:
        if self._open:
            self._open[-1].expects = _Expects.COMMA

    def _read_text(self, token: str, subject: str) -> str:
        """Return what a token in quotes says; half a surrogate pair and NUL are faults."""
        text: str = json.loads(token)
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise self._fault(f"{subject}holds half a surrogate pair, or bytes that are not UTF-8")
        if "\x00" in text:
            raise self._fault(f"{subject}must not contain a NUL character", is_syntax=False)
        return text

    def _check_number(self, token: re.Match[str]) -> None:
        number = token["number"]
        if token["real"] is not None or token["power"] is not None:
            if not math.isfinite(float(number)):
                raise self._fault("is beyond a 64-bit floating-point number", is_syntax=False)
        elif (
            len(number.lstrip("-")) > _MAX_INTEGER_DIGITS
            or not _MIN_INTEGER <= int(number) <= _MAX_INTEGER
        ):
            raise self._fault("must be from -2^63 to 2^64-1", is_syntax=False)

    def _not_json(self, position: int) -> _FaultFoundError:
        """The error for what is no token: NaN, a comment, a control character in text."""
        found = _NOT_JSON.match(self._text, position)
        assert found is not None
        shown = found["found"]
        if shown == '"':
            return self._fault(
                "holds text that does not end, or a character or escape JSON forbids"
            )
        return self._fault(f"{shown!a} is not JSON")

    def _fault(self, detail: str, *, is_syntax: bool = True) -> _FaultFoundError:
        return _FaultFoundError(self._path(len(self._open)), detail, is_syntax=is_syntax)

    def _path(self, steps: int) -> str:
        return self._root + "".join(show_step(container.step) for container in self._open[:steps])
