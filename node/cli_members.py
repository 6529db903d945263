"""`bitnexus member …` and `bitnexus transfer-leadership`: the members of a cluster, and who leads.

Relies on `node.cli_client` for the calls.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import UNSET
from nacl.bindings import crypto_core_ed25519_is_valid_point

from consensus.changes import ChangeRefusal
from consensus.membership import GenesisError, Member, check_members
from node.api.shapes import MembersChanged, NewMember
from node.cli_client import call, code_of, error_text
from node.cli_errors import CommandError, ExitCode
from node.cli_output import print_table, progress_bar, say, write_json
from node.client import LedgerClient
from node.client_errors import ChangeRefusedError, LedgerClientError, UnknownChangeFateError
from node.config import url_of
from node.http_place import share_http

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from node.api.shapes import Cluster, MemberList, MemberState

POLL_S: Final = 0.2
"""How long a wait does not look at the cluster."""
LOOK_TIMEOUT_S: Final = 1.0
"""What a leader is given to tell how far a learner has come."""

_HEADERS: Final = ("name", "role", "peer", "http", "saved", "public key")
_LEARNER: Final = "learner"


def read_member(file: Path) -> NewMember:
    """Read the file that `node init` writes; raises CommandError."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=NewMember)
    except OSError as error:
        raise CommandError(f"{file}: {error.strerror}", ExitCode.INPUT) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CommandError(f"{file}: is no member file: {error}", ExitCode.INPUT) from error


def show_members(urls: Sequence[str], *, timeout_s: float, as_json: bool) -> None:
    """Show the members as the node that answers sees them."""

    async def work(ledger: LedgerClient) -> MemberList:
        return await ledger.members()

    listed = call(urls, work, timeout_s=timeout_s)
    if as_json:
        write_json(listed)
    else:
        _print_members(listed.members)


def add(urls: Sequence[str], new: NewMember, *, timeout_s: float, as_json: bool) -> None:
    """Add a learner and show the members."""

    async def work(ledger: LedgerClient) -> MembersChanged:
        return await _add(ledger, new)

    _show(call(urls, work, timeout_s=timeout_s), f"{new.name} is added and learns", as_json=as_json)


def promote(urls: Sequence[str], name: str, *, timeout_s: float, as_json: bool) -> None:
    """Make a learner a voter and show the members."""

    async def work(ledger: LedgerClient) -> MembersChanged:
        return await ledger.promote_member(name)

    _show(call(urls, work, timeout_s=timeout_s), f"{name} votes", as_json=as_json)


def move(
    urls: Sequence[str],
    name: str,
    *,
    peer: str | None,
    http: str | None,
    timeout_s: float,
    as_json: bool,
) -> None:
    """Give a member other addresses and show the members."""

    async def work(ledger: LedgerClient) -> MembersChanged:
        return await ledger.move_member(name, peer=peer, http=http)

    _show(call(urls, work, timeout_s=timeout_s), f"{name} has moved", as_json=as_json)


def remove(urls: Sequence[str], name: str, *, timeout_s: float, as_json: bool) -> None:
    """Remove a member and show the members that are left."""

    async def work(ledger: LedgerClient) -> MembersChanged:
        return await ledger.remove_member(name)

    _show(call(urls, work, timeout_s=timeout_s), f"{name} is removed", as_json=as_json)


def replace(
    urls: Sequence[str], old: str, new: NewMember, *, timeout_s: float, as_json: bool
) -> None:
    """Remove one member and add another, and show the members.

    The new one is checked against those that stay before anything is removed.

    Raises:
        CommandError: where only the first half was done, it says how to do the other.
    """

    async def work(ledger: LedgerClient) -> MembersChanged:
        _check_newcomer(new, await ledger.members(), old)
        await ledger.remove_member(old)
        try:
            return await _add(ledger, new)
        except LedgerClientError as error:
            raise CommandError(_half_done(old, new.name, error), code_of(error)) from error

    made = call(urls, work, timeout_s=timeout_s)
    _show(made, f"{old} is removed; {new.name} is added and learns", as_json=as_json)


def transfer(urls: Sequence[str], to: str | None, *, timeout_s: float, as_json: bool) -> None:
    """Hand the leadership over and show who leads."""

    async def work(ledger: LedgerClient) -> str:
        return await ledger.transfer_leadership(to)

    leader = call(urls, work, timeout_s=timeout_s)
    if as_json:
        write_json({"leader": leader})
    else:
        say(f"{leader} leads")


def wait_promoted(
    urls: Sequence[str], name: str, *, timeout_s: float, wait_timeout_s: float | None, as_json: bool
) -> None:
    """Wait until a learner votes, with its progress on stderr.

    Raises:
        CommandError: it does not vote after `wait_timeout_s`, or is no member any more, or no node
            answers for `timeout_s`.
    """

    async def work(ledger: LedgerClient) -> MemberState:
        async with asyncio.timeout(wait_timeout_s):
            return await _until_promoted(ledger, name)

    try:
        member = call(urls, work, timeout_s=timeout_s)
    except TimeoutError as error:
        message = f"{name} does not vote after {wait_timeout_s:g} s; it goes on learning"
        raise CommandError(message, ExitCode.NOT_PROMOTED) from error
    if as_json:
        write_json(member)
    else:
        say(f"{name} has caught up and votes")


async def _until_promoted(ledger: LedgerClient, name: str) -> MemberState:
    total = (await _leaders_view(ledger)).commit_index
    with progress_bar(f"{name} catches up", total=total) as move_on:
        while True:
            view = await _leaders_view(ledger)
            member = next((one for one in view.members if one.name == name), None)
            if member is not None and member.role != _LEARNER:
                return member
            # Who lags may not know of it yet.
            if member is None and view.leader == view.node:
                raise CommandError(f"{name} is no member any more", ExitCode.NOT_FOUND)
            if member is not None and member.match_index is not UNSET:
                move_on(min(member.match_index, total))
            await asyncio.sleep(POLL_S)


async def _leaders_view(ledger: LedgerClient) -> Cluster:
    """Return the cluster as its leader sees it, who alone knows how far a learner has come.

    Where the leader does not answer that of another node has to do.
    """
    seen = await ledger.cluster()
    leader = next((one for one in seen.members if one.name == seen.leader), None)
    if leader is None or leader.name == seen.node:
        return seen
    try:
        async with LedgerClient([url_of(leader.http)], timeout_s=LOOK_TIMEOUT_S) as own:
            return await own.cluster()
    except LedgerClientError:
        return seen


async def _add(ledger: LedgerClient, new: NewMember) -> MembersChanged:
    return await ledger.add_member(
        name=new.name, public_key=new.public_key, peer=new.peer, http=new.http
    )


def _half_done(old: str, new: str, error: LedgerClientError) -> str:
    """What was done of a replacement, and how to do the rest."""
    if isinstance(error, UnknownChangeFateError):
        what, then = "is not known to be added", "if it is not, `bitnexus member add --file`"
    elif isinstance(error, ChangeRefusedError) and error.reason == ChangeRefusal.FORMER_MEMBER:
        what = "was not added"
        then = "make a new folder (`bitnexus node init --join`) and `bitnexus member add --file`"
    else:
        what, then = "was not added", "once that is mended, `bitnexus member add --file`"
    return f"{old} is removed, and {new} {what} ({error_text(error)}); {then}"


def _check_newcomer(new: NewMember, listed: MemberList, old: str) -> None:
    """Refuse a new member that could not be added once the old one is removed.

    Whether its key was a member's before the chain alone knows.
    """
    if all(one.name != old for one in listed.members):
        message = f"{old} is not a member; to add one alone: `bitnexus member add --file`"
        raise CommandError(message, ExitCode.NOT_FOUND)
    for one in listed.members:
        if one.public_key == new.public_key:
            what = f"the key of {new.name} is that of {one.name}; a new node has a new key"
            raise CommandError(f"{what} (`bitnexus node init`)", ExitCode.CHANGE_REFUSED)
        if one.name != old and (one.name == new.name or one.peer == new.peer):
            what = f"{one.name} has the name or the peer address of the new one already"
            raise CommandError(what, ExitCode.CHANGE_REFUSED)
    _check_valid(new, [one for one in listed.members if one.name != old])


def _check_valid(new: NewMember, staying: Sequence[MemberState]) -> None:
    """Refuse what the chain would, for its own sake or beside those that stay."""
    key = bytes.fromhex(new.public_key)
    others = [
        Member(one.name, bytes.fromhex(one.public_key), one.peer, one.http) for one in staying
    ]
    member = Member(new.name, key, new.peer, new.http)
    try:
        check_members([*others, member])
    except GenesisError as error:
        what = f"{new.name} cannot be added: {error.path.rpartition('.')[2]}: {error.detail}"
        raise CommandError(what, ExitCode.INPUT) from error
    if not crypto_core_ed25519_is_valid_point(key):
        what = f"{new.name} cannot be added: public_key: is not an Ed25519 public key"
        raise CommandError(what, ExitCode.INPUT)
    for one in others:
        if share_http(one, member):
            what = f"{one.name} has the HTTP address of the new one already"
            raise CommandError(what, ExitCode.CHANGE_REFUSED)


def _show(made: MembersChanged, what: str, *, as_json: bool) -> None:
    if as_json:
        write_json(made)
        return
    say(f"{what}, by block {made.index}")
    _print_members(made.members)


def _print_members(members: Sequence[MemberState]) -> None:
    rows = [
        (
            one.name,
            one.role,
            one.peer,
            one.http,
            "-" if one.match_index is UNSET else str(one.match_index),
            one.public_key,
        )
        for one in members
    ]
    print_table(_HEADERS, rows, right="saved")
