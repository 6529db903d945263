"""The parameters of a query string: what each may be, and a strict reader for them.

A parameter is described once; the reader, its errors and the OpenAPI document all come from that
description. A name that is unknown or given twice is refused, so that a misspelt parameter never
goes unnoticed. Relies on nothing but the standard library.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_to_bytes

from node.api.problems import ProblemError, ProblemKind, fault_error

if TYPE_CHECKING:
    from typing import TypeAlias

_MAX_QUERY_BYTES: Final = 4096
_PERCENT: Final = re.compile(r"(?:[^%]|%[0-9A-Fa-f]{2})*+")
_MAX_DIGITS: Final = 19
_MAX_SHOWN: Final = 40


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number within bounds, both included. `default` None means it may be left out."""

    name: str
    low: int
    high: int
    default: int | None
    description: str


@dataclass(frozen=True, slots=True)
class Choice:
    """One word of a few; the first is the default."""

    name: str
    options: tuple[str, ...]
    description: str


@dataclass(frozen=True, slots=True)
class Text:
    """Any text, which the handler reads; it may be left out."""

    name: str
    description: str


Parameter: TypeAlias = Whole | Choice | Text


class Query:
    """The values of a query string, each of the type its parameter says."""

    __slots__ = ("_values",)

    def __init__(self, values: dict[str, int | str | None]) -> None:
        self._values = values

    def whole(self, name: str) -> int:
        """Return the value of a `Whole` that has a default."""
        value = self._values[name]
        assert isinstance(value, int)
        return value

    def optional_whole(self, name: str) -> int | None:
        """Return the value of a `Whole`, None where it was left out."""
        value = self._values[name]
        assert not isinstance(value, str)
        return value

    def choice(self, name: str) -> str:
        """Return the value of a `Choice`."""
        value = self._values[name]
        assert isinstance(value, str)
        return value

    def text(self, name: str) -> str | None:
        """Return the value of a `Text`, None where it was left out."""
        value = self._values[name]
        assert not isinstance(value, int)
        return value


def parse_query(raw: bytes, parameters: tuple[Parameter, ...]) -> Query:
    """Read a query string; raises ProblemError naming the parameter that is not as described."""
    given = _pairs(raw)
    known = {parameter.name for parameter in parameters}
    for name in given:
        if name not in known:
            raise _fault(name, "is not a parameter of this call")
    return Query({parameter.name: _read(parameter, given) for parameter in parameters})


def decode_percent(raw: str) -> str:
    """Decode percent-encoded UTF-8 exactly: `+` stands for itself. Raises ValueError."""
    if not raw.isascii() or _PERCENT.fullmatch(raw) is None:
        raise ValueError("is not percent-encoded")
    # A UnicodeDecodeError is a ValueError too.
    return unquote_to_bytes(raw).decode()


def _pairs(raw: bytes) -> dict[str, str]:
    if not raw:
        return {}
    if not raw.isascii() or len(raw) > _MAX_QUERY_BYTES:
        detail = f"must be ASCII and have at most {_MAX_QUERY_BYTES} bytes"
        raise fault_error(ProblemKind.INVALID_REQUEST, "query", detail)
    given: dict[str, str] = {}
    for part in raw.decode("ascii").split("&"):
        encoded_name, _, encoded_value = part.partition("=")
        try:
            name, value = decode_percent(encoded_name), decode_percent(encoded_value)
        except ValueError:
            raise _fault(encoded_name, "is not percent-encoded UTF-8") from None
        if not name:
            raise fault_error(ProblemKind.INVALID_REQUEST, "query", "has a parameter without name")
        if name in given:
            raise _fault(name, "is given twice")
        given[name] = value
    return given


def _read(parameter: Parameter, given: dict[str, str]) -> int | str | None:
    value = given.get(parameter.name)
    match parameter:
        case Whole():
            return parameter.default if value is None else _read_whole(parameter, value)
        case Choice():
            if value is None:
                return parameter.options[0]
            if value not in parameter.options:
                raise _fault(parameter.name, f"must be {' or '.join(parameter.options)}")
            return value
        case Text():
            return value


def _read_whole(parameter: Whole, value: str) -> int:
    is_number = value.isascii() and value.isdigit() and len(value) <= _MAX_DIGITS
    if not is_number or not parameter.low <= int(value) <= parameter.high:
        detail = f"must be a whole number from {parameter.low} to {parameter.high}"
        raise _fault(parameter.name, detail)
    return int(value)


def _fault(name: str, detail: str) -> ProblemError:
    return fault_error(ProblemKind.INVALID_REQUEST, f"query.{name[:_MAX_SHOWN]}", detail)
