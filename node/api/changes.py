"""The handlers of the calls that change the cluster: its members, and who leads.

The node that leads makes them; the others send the client there (`redirect`). A change is answered
once it is committed; where that is not known in time the answer is "unknown", never "failed".
Relies on the node's `administration`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import UNSET

from consensus.changes import ChangeError, ChangeRefusal
from consensus.membership import GenesisError, Member, check_members
from node.api.answers import change_answer
from node.api.faults import find_fault
from node.api.json_input import DECODE_ERRORS, explain
from node.api.problems import ProblemKind, fault_error
from node.api.redirect import leader_reply
from node.api.reply import json_reply
from node.api.shapes import Handover, NewAddresses, NewLeader, NewMember
from node.api.submit import TIMEOUT
from node.outcomes import NoLeaderError, UnknownChangeError

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from typing import TypeVar

    from node.administration import MadeChange
    from node.api.face import Asked, Face
    from node.api.query import Parameter
    from node.api.reply import Reply

    Shape = TypeVar("Shape", bound=msgspec.Struct)

CHANGE_PARAMETERS: Final[tuple[Parameter, ...]] = (TIMEOUT,)

_OK: Final = 200
_CREATED: Final = 201
_DEPTH_AROUND: Final = 1
_PROBE: Final = Member("probe", bytes(32), "probe:1", "probe:1")
"""Good in every field, so that what is put into it is judged alone."""


async def add_member(face: Face, asked: Asked) -> Reply:
    """Add a learner, and answer 201 with the members."""
    new = _decode(asked.body, NewMember)
    member = Member(new.name, bytes.fromhex(new.public_key), new.peer, new.http)
    _check(member)
    change = face.node.administration.add(member, timeout_s=_timeout_s(asked))
    return await _make(face, asked, change, status=_CREATED)


async def promote_member(face: Face, asked: Asked) -> Reply:
    """Make a learner a voter."""
    name = asked.path["name"]
    change = face.node.administration.promote(name, timeout_s=_timeout_s(asked))
    return await _make(face, asked, change)


async def remove_member(face: Face, asked: Asked) -> Reply:
    """Remove a member."""
    name = asked.path["name"]
    change = face.node.administration.remove(name, timeout_s=_timeout_s(asked))
    return await _make(face, asked, change)


async def move_member(face: Face, asked: Asked) -> Reply:
    """Give a member other addresses."""
    new = _decode(asked.body, NewAddresses)
    peer = None if new.peer is UNSET else new.peer
    http = None if new.http is UNSET else new.http
    if peer is None and http is None:
        raise fault_error(ProblemKind.INVALID_CONTENT, "$", "needs peer, or http, or both")
    given = {"peer": _PROBE.peer if peer is None else peer}
    given["http"] = _PROBE.http if http is None else http
    _check(msgspec.structs.replace(_PROBE, **given))
    change = face.node.administration.move(
        asked.path["name"], peer=peer, http=http, timeout_s=_timeout_s(asked)
    )
    return await _make(face, asked, change)


async def transfer_leadership(face: Face, asked: Asked) -> Reply:
    """Hand over, and answer with who leads then."""
    to = _decode(asked.body, Handover).to if asked.body else UNSET
    try:
        leader = await face.node.administration.transfer_leadership(
            None if to is UNSET else to, timeout_s=_timeout_s(asked)
        )
    except ChangeError as error:
        return _elsewhere(face, asked, error)
    except NoLeaderError as error:
        # It was asked for, and may come about after all: another's election takes its time.
        raise UnknownChangeError(str(error)) from error
    return json_reply(_OK, NewLeader(leader=leader))


async def _make(
    face: Face, asked: Asked, change: Awaitable[MadeChange], *, status: int = _OK
) -> Reply:
    """Answer with the change once it is committed, or with where to ask for it."""
    try:
        made = await change
    except ChangeError as error:
        return _elsewhere(face, asked, error)
    return json_reply(status, change_answer(made, face.node.status()))


def _elsewhere(face: Face, asked: Asked, error: ChangeError) -> Reply:
    """Return the answer of a node that does not lead; raises any other refusal again."""
    if error.reason is not ChangeRefusal.NOT_LEADER:
        raise error
    return leader_reply(face.node.status(), asked.scope)


def _timeout_s(asked: Asked) -> float:
    return asked.query.whole("timeout_ms") / 1000


def _decode(body: bytes, shape: type[Shape]) -> Shape:
    """Read a body as strictly as a transaction; raises ProblemError naming the first fault."""
    finding = find_fault(body, depth_around=_DEPTH_AROUND)
    if finding is not None:
        kind = ProblemKind.INVALID_JSON if finding.is_syntax else ProblemKind.INVALID_CONTENT
        raise fault_error(kind, finding.path, finding.detail)
    try:
        return msgspec.json.decode(body, type=shape)
    except DECODE_ERRORS as error:
        raise explain(body, error, "$", _DEPTH_AROUND) from None


def _check(member: Member) -> None:
    """Refuse a name or an address that no member may have."""
    try:
        check_members((member,))
    except GenesisError as error:
        path = error.path.replace("$.members[0]", "$", 1)
        raise fault_error(ProblemKind.INVALID_CONTENT, path, error.detail) from None
