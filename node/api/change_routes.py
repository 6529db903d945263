"""The part of the table of calls that is about the members and the leadership.

Relies on the handlers in `changes`.
"""

from __future__ import annotations

from typing import Final

from node.api import shapes
from node.api.changes import (
    CHANGE_PARAMETERS,
    add_member,
    move_member,
    promote_member,
    remove_member,
    transfer_leadership,
)
from node.api.reads import read_members
from node.api.route import Answer, Route, refusal

_MEMBERS: Final = "/api/v1/cluster/members"
_NAME: Final = (("name", "The member's name"),)

_BAD_REQUEST: Final = refusal(400, "The body is not JSON, or a parameter is wrong")
_BAD_CALL: Final = refusal(400, "A parameter is wrong, or there is a body, which is not taken")
_ELSEWHERE: Final = refusal(307, "Another node leads: Location says where to make the same call")
_CROSS_ORIGIN: Final = refusal(403, "A web page of another origin asked for it")
_UNKNOWN_MEMBER: Final = refusal(404, "There is no such member")
_REFUSED: Final = refusal(
    409,
    "Nothing is changed; `reason` says why, and Retry-After, where it is given, that it passes",
)
_WITH_BODY: Final = (
    refusal(408, "The body did not arrive in time"),
    refusal(413, "The body is too large"),
    refusal(415, "The body is not said to be application/json"),
)
_INVALID: Final = refusal(422, "The change makes no sense; `reason` or `errors` says why")
_NOT_NOW: Final = refusal(
    503,
    "Unknown: the change may be made, list the members to find out; or no leader is known, or this "
    "node cannot do it now",
)
_MADE: Final = "The change is committed"


def _answers(*own: Answer) -> tuple[Answer, ...]:
    """Return the answers of a call that changes something, in the order of their statuses."""
    always = (_ELSEWHERE, _CROSS_ORIGIN, _REFUSED, _INVALID, _NOT_NOW)
    return tuple(sorted((*own, *always), key=lambda answer: answer.status))


CHANGE_ROUTES: Final[tuple[Route, ...]] = (
    Route(
        method="GET",
        path=_MEMBERS,
        operation_id="listMembers",
        summary="The members as this node sees them, and who leads",
        handler=read_members,
        answers=(
            Answer(200, "The members", (shapes.MemberList,)),
            refusal(400, "A parameter is unknown, given twice or not as described"),
        ),
    ),
    Route(
        method="POST",
        path=_MEMBERS,
        operation_id="addMember",
        summary="Add a member: it learns first, and votes once it has caught up",
        parameters=CHANGE_PARAMETERS,
        body=(shapes.NewMember,),
        handler=add_member,
        answers=_answers(Answer(201, _MADE, (shapes.MembersChanged,)), _BAD_REQUEST, *_WITH_BODY),
    ),
    Route(
        method="DELETE",
        path=_MEMBERS + "/{name}",
        operation_id="removeMember",
        summary="Remove a member for good: its key never comes back",
        path_parameters=_NAME,
        parameters=CHANGE_PARAMETERS,
        handler=remove_member,
        answers=_answers(
            Answer(200, _MADE, (shapes.MembersChanged,)), _BAD_CALL, _UNKNOWN_MEMBER, *_WITH_BODY
        ),
    ),
    Route(
        method="PATCH",
        path=_MEMBERS + "/{name}",
        operation_id="moveMember",
        summary="Give a member other addresses; those that are left out stay",
        path_parameters=_NAME,
        parameters=CHANGE_PARAMETERS,
        body=(shapes.NewAddresses,),
        handler=move_member,
        answers=_answers(
            Answer(200, _MADE, (shapes.MembersChanged,)),
            _BAD_REQUEST,
            _UNKNOWN_MEMBER,
            *_WITH_BODY,
        ),
    ),
    Route(
        method="POST",
        path=_MEMBERS + "/{name}/promote",
        operation_id="promoteMember",
        summary="Make a learner that has caught up a voter now, which it becomes by itself too",
        path_parameters=_NAME,
        parameters=CHANGE_PARAMETERS,
        handler=promote_member,
        answers=_answers(
            Answer(200, _MADE, (shapes.MembersChanged,)), _BAD_CALL, _UNKNOWN_MEMBER, *_WITH_BODY
        ),
    ),
    Route(
        method="POST",
        path="/api/v1/cluster/transfer-leadership",
        operation_id="transferLeadership",
        summary="Hand the leadership to a voter, or to whoever is closest",
        parameters=CHANGE_PARAMETERS,
        body=(shapes.Handover,),
        is_body_required=False,
        handler=transfer_leadership,
        answers=_answers(
            Answer(200, "Another member leads", (shapes.NewLeader,)),
            _BAD_REQUEST,
            _UNKNOWN_MEMBER,
            *_WITH_BODY,
        ),
    ),
)
