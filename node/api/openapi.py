"""The OpenAPI 3.1 document, made from the route table and the shapes and written nowhere else.

Relies on msgspec for the JSON Schema of the shapes.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import msgspec

from node.api.query import Choice, Text, Whole
from node.api.reply import JSON
from node.api.shapes import Pending, Problem, Receipt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from node.api.query import Parameter
    from node.api.route import Answer, Route

_REF_TEMPLATE: Final = "#/components/schemas/{name}"
_RETRY_STATUSES: Final = frozenset({429, 503})
_DESCRIPTION: Final = """\
A replicated ledger. Every node answers every call; changes of the cluster are made by the node
that leads, to which the others redirect. Hashes, keys and signatures are lower-case hex,
ids are UUID text, times are RFC 3339 in UTC with microseconds. Errors are problem details
(RFC 9457); a retry with the same transaction id is always safe.
"""


def make_document(routes: Sequence[Route], *, version: str) -> bytes:
    """Return the document as JSON. `version` is the project's."""
    # The entries of a batch's answer name these by reference alone.
    named: set[type] = {Receipt, Pending, Problem}
    for route in routes:
        named.update(route.body)
        for answer in route.answers:
            named.update(answer.shapes)
    in_order = sorted(named, key=lambda shape: shape.__name__)
    references, components = msgspec.json.schema_components(in_order, ref_template=_REF_TEMPLATE)
    schemas = dict(zip(in_order, references, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    document = {
        "openapi": "3.1.0",
        "info": {"title": "BitNexus ledger", "version": version, "description": _DESCRIPTION},
        "paths": paths,
        "components": {"schemas": components},
    }
    return msgspec.json.encode(document)


def _operation(route: Route, schemas: dict[type, dict[str, Any]]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.operation_id,
        "summary": route.summary,
        "responses": {str(answer.status): _response(answer, schemas) for answer in route.answers},
    }
    parameters = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": description,
            "schema": {"type": "string"},
        }
        for name, description in route.path_parameters
    ]
    parameters += [_parameter(parameter) for parameter in route.parameters]
    if parameters:
        operation["parameters"] = parameters
    if route.body:
        content = {JSON.decode("ascii"): {"schema": _any_of(route.body, schemas)}}
        operation["requestBody"] = {"required": route.is_body_required, "content": content}
    return operation


def _response(answer: Answer, schemas: dict[type, dict[str, Any]]) -> dict[str, Any]:
    schema = _any_of(answer.shapes, schemas) if answer.shapes else {}
    response: dict[str, Any] = {
        "description": answer.description,
        "content": {answer.media_type: {"schema": schema}},
    }
    if answer.status == HTTPStatus.TEMPORARY_REDIRECT:
        response["headers"] = {
            "Location": {
                "description": "The same call at the node that leads",
                "required": True,
                "schema": {"type": "string", "format": "uri"},
            }
        }
    if answer.status in _RETRY_STATUSES:
        response["headers"] = {
            "Retry-After": {
                "description": "Seconds to wait before a retry",
                "schema": {"type": "integer", "minimum": 0},
            }
        }
    return response


def _parameter(parameter: Parameter) -> dict[str, Any]:
    schema: dict[str, Any]
    match parameter:
        case Whole():
            schema = {"type": "integer", "minimum": parameter.low, "maximum": parameter.high}
            if parameter.default is not None:
                schema["default"] = parameter.default
        case Choice():
            options = list(parameter.options)
            schema = {"type": "string", "enum": options, "default": options[0]}
        case Text():
            schema = {"type": "string"}
    return {
        "name": parameter.name,
        "in": "query",
        "description": parameter.description,
        "schema": schema,
    }


def _any_of(shapes: tuple[type, ...], schemas: dict[type, dict[str, Any]]) -> dict[str, Any]:
    if len(shapes) == 1:
        return schemas[shapes[0]]
    return {"anyOf": [schemas[shape] for shape in shapes]}
