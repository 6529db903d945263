"""Where a peer is: its address "host:port", and the numeric endpoints that its links connect to.

libzmq would look a name up by itself, but in the one thread that carries all connections: one slow
resolver would silence every peer. So a `Route` looks names up in threads beside the loop, again and
again while its links find nobody, and hands out numbers. What is known stays in use until something
else is known, so that a resolver that is down breaks no connection. An address of numbers takes no
detour. Relies on the system's resolver, and on `node.zmq_loop` for guarded calls.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias

from node.zmq_loop import cause_of

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from node.zmq_loop import SocketHub

    LookUp: TypeAlias = Callable[[str, int], tuple[str, ...]]

_MAX_PORT: Final = 65_535
_PORT: Final = re.compile(r"[0-9]{1,5}")
_LOOKUP_MS: Final = 100
_LOOKUP_MAX_MS: Final = 2_000
_MAX_LOOKUPS: Final = 32
"""Look-ups at a time: more than there can be peers, since one that was given up goes on."""


class AddressError(ValueError):
    """An address that is not "host:port"."""


def split_address(address: str) -> tuple[str, int]:
    """The host, without brackets, and the port; raises `AddressError`."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not host or _PORT.fullmatch(port) is None or int(port) > _MAX_PORT:
        raise AddressError("not an address; expected host:port")
    return host, int(port)


def look_up(host: str, port: int) -> tuple[str, ...]:
    """The numeric endpoints of a host, IPv4 and IPv6, best first; at least one. Blocks.

    Raises OSError where the resolver knows none, ValueError where this can be no name.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(_endpoint(str(place[0]), port) for *_, place in found))


class Resolver:
    """Looks hosts up, each in a thread of its own: one that hangs holds no other.

    The threads are daemons, as nothing ends a look-up that hangs: not this program's end either.
    """

    def __init__(self, hub: SocketHub, look_up: LookUp) -> None:
        """Start nothing yet. `look_up` may block; see the function of that name."""
        self._hub = hub
        self._look_up = look_up
        self._running = 0

    def ask(
        self, host: str, port: int, on_answer: Callable[[tuple[str, ...] | str], None]
    ) -> Lookup:
        """Have the loop call `on_answer`, with the endpoints or with the cause why there are none.

        Never before this returns, and not at all once the look-up is cancelled.
        """
        lookup = Lookup(on_answer)
        if self._running >= _MAX_LOOKUPS:
            return self._refuse(lookup, "too many names are being looked up")
        thread = threading.Thread(
            target=self._run, args=(lookup, host, port), name="look-up", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:  # out of threads: this name is out of reach, no more
            return self._refuse(lookup, str(error))
        self._running += 1
        return lookup

    def _refuse(self, lookup: Lookup, cause: str) -> Lookup:
        self._hub.call_later(0, partial(lookup.answer, cause))
        return lookup

    def _run(self, lookup: Lookup, host: str, port: int) -> None:
        answer: tuple[str, ...] | str
        try:
            answer = self._look_up(host, port)
        except (OSError, ValueError) as error:
            answer = cause_of(error)
        with suppress(RuntimeError):  # the loop was closed meanwhile: nobody is there to hear it
            self._hub.loop.call_soon_threadsafe(
                self._hub.guard.run, partial(self._end, lookup, answer)
            )

    def _end(self, lookup: Lookup, answer: tuple[str, ...] | str) -> None:
        self._running -= 1
        lookup.answer(answer)


class Lookup:
    """One question to the resolver."""

    def __init__(self, on_answer: Callable[[tuple[str, ...] | str], None]) -> None:
        self._on_answer: Callable[[tuple[str, ...] | str], None] | None = on_answer

    def answer(self, answer: tuple[str, ...] | str) -> None:
        """Tell the answer to whoever asked, if it still wants to hear it."""
        if self._on_answer is not None:
            self._on_answer(answer)

    def cancel(self) -> None:
        """Let the answer come to nothing."""
        self._on_answer = None


class Route:
    """The endpoints of one peer's address, looked up as often as its links need it."""

    def __init__(
        self,
        hub: SocketHub,
        resolver: Resolver,
        address: str,
        *,
        on_endpoints: Callable[[], None],
        on_obstacle: Callable[[str], None],
    ) -> None:
        """Look up nothing yet: see `open`.

        `on_endpoints` hears when the resolver answered; `on_obstacle` each time that nothing is
        found, with the cause.
        """
        self._hub = hub
        self._resolver = resolver
        self._address = address
        self._on_endpoints = on_endpoints
        self._on_obstacle = on_obstacle
        self._name: tuple[str, int] | None = None
        self._lookup: Lookup | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._delay_ms = _LOOKUP_MS
        self._earliest_s = 0.0
        self.endpoints: tuple[str, ...] = ()
        self.obstacle: str | None = None

    @property
    def changes(self) -> bool:
        """Whether the address is a name, so that there may be other endpoints another time."""
        return self._name is not None

    def open(self) -> None:
        """Find the endpoints: at once where the address is of numbers."""
        try:
            host, port = split_address(self._address)
        except AddressError as error:
            self._meet_obstacle(str(error))
            return
        if port == 0:
            self._meet_obstacle("nobody listens at port 0")
            return
        if _is_numeric(host):
            self.endpoints = (_endpoint(host, port),)
        else:
            self._name = host, port
            self.refresh()

    def refresh(self) -> None:
        """Look the name up again, as soon as the last time is long enough ago."""
        if self._name is None or self._lookup is not None or self._timer is not None:
            return
        delay_s = self._earliest_s - self._hub.loop.time()
        if delay_s > 0:
            self._timer = self._hub.call_later(delay_s, self._ask)
        else:
            self._ask()

    def reached(self) -> None:
        """Note that the peer was found: whenever it is lost, the name is asked for soon again."""
        self._delay_ms = _LOOKUP_MS

    def close(self) -> None:
        """Look up nothing more; an answer that is still to come is not heard."""
        if self._timer is not None:
            self._timer.cancel()
        if self._lookup is not None:
            self._lookup.cancel()

    def _ask(self) -> None:
        assert self._name is not None, "numbers are not looked up"
        self._timer = None
        self._lookup = self._resolver.ask(*self._name, self._on_answer)

    def _on_answer(self, answer: tuple[str, ...] | str) -> None:
        self._lookup = None
        self._earliest_s = self._hub.loop.time() + self._delay_ms / 1_000
        self._delay_ms = min(2 * self._delay_ms, _LOOKUP_MAX_MS)
        if isinstance(answer, str):
            self._meet_obstacle(answer)
            if not self.endpoints:
                self.refresh()  # with endpoints, the links ask when they find nobody there
        else:
            self.endpoints = answer
            self.obstacle = None
            self._on_endpoints()

    def _meet_obstacle(self, cause: str) -> None:
        self.obstacle = cause
        self._on_obstacle(cause)


def _is_numeric(host: str) -> bool:
    """Whether nobody needs to be asked; the zone of an IPv6 address is the name of a device."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return "%" not in host


def _endpoint(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
