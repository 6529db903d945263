"""The one table of calls: what Falcon routes, what OpenAPI documents and what the tests walk.

Relies on the handlers in `reads` and `health`. The submit call has no handler here: `app` answers
it in front of Falcon (`submit`), but it is routed and documented from this table all the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prometheus_client.exposition import CONTENT_TYPE_LATEST

from node.api import shapes
from node.api.change_routes import CHANGE_ROUTES
from node.api.health import read_live, read_metrics, read_ready
from node.api.reads import (
    BLOCKS_PARAMETERS,
    HISTORY_PARAMETERS,
    RECEIPT_PARAMETERS,
    read_block,
    read_blocks,
    read_cluster,
    read_history,
    read_receipt,
)
from node.api.reply import Reply
from node.api.route import PROBLEM_TYPE, Answer, Route, refusal
from node.api.submit import SUBMIT_PARAMETERS

if TYPE_CHECKING:
    from node.api.face import Asked, Face

SUBMIT_PATH: Final = "/api/v1/ledger/transactions"
_HTML: Final = "text/html; charset=utf-8"
_OK: Final = 200


_BAD_REQUEST: Final = refusal(400, "A parameter is unknown, given twice or not as described")
_NOT_FOUND: Final = refusal(404, "There is no such thing")
_NO_LEADER: Final = refusal(503, "No leader confirmed the read in time; Retry-After says when")
_NOT_NOW: Final = refusal(503, "This node cannot answer now; the detail says why")


def _read_openapi(face: Face, _asked: Asked) -> Reply:
    return Reply(_OK, face.openapi)


def _read_page(face: Face, _asked: Asked) -> Reply:
    return face.explorer.page


def _read_file(face: Face, asked: Asked) -> Reply:
    return face.explorer.file(asked.path["name"])


SUBMIT_ROUTE: Final = Route(
    method="POST",
    path=SUBMIT_PATH,
    operation_id="recordTransactions",
    summary="Record one transaction, or a batch; nothing of a body with a fault is recorded",
    parameters=SUBMIT_PARAMETERS,
    body=(shapes.NewTransaction, shapes.NewBatch),
    handler=None,
    answers=(
        Answer(
            201,
            "All are committed. Receipts come in the order sent; an id sent twice in one batch, "
            "or recorded before, is answered by its one receipt",
            (shapes.Receipt, shapes.BatchAnswer),
        ),
        Answer(202, "All are queued and not waited for", (shapes.Pending, shapes.BatchAnswer)),
        Answer(
            207,
            "A batch of which some are refused, or all for different reasons: see each entry",
            (shapes.BatchAnswer,),
        ),
        refusal(400, "The body is not JSON, or a parameter is wrong"),
        refusal(408, "The body did not arrive in time"),
        Answer(
            409,
            "The id is in the chain, or on its way there, with other content",
            (shapes.Problem, shapes.BatchRefusal),
            PROBLEM_TYPE,
        ),
        refusal(413, "The body, the batch or a transaction is too large"),
        refusal(415, "The body is not said to be application/json"),
        refusal(422, "The body is JSON that cannot be recorded; `errors` names the place"),
        Answer(
            429,
            "The queue is full and nothing was recorded; Retry-After says when to retry",
            (shapes.Problem, shapes.BatchRefusal),
            PROBLEM_TYPE,
        ),
        Answer(
            503,
            "Unknown: it may be recorded, retry with the same id; or this node cannot record now",
            (shapes.Problem, shapes.BatchRefusal),
            PROBLEM_TYPE,
        ),
    ),
)

ROUTES: Final[tuple[Route, ...]] = (
    SUBMIT_ROUTE,
    Route(
        method="GET",
        path=SUBMIT_PATH + "/{user_id}",
        operation_id="listTransactions",
        summary="A user's transactions, newest first, in pages",
        path_parameters=(("user_id", "The user, percent-encoded (a slash too); + is itself"),),
        parameters=HISTORY_PARAMETERS,
        handler=read_history,
        answers=(
            Answer(200, "A page; a user without transactions has none", (shapes.HistoryPage,)),
            _BAD_REQUEST,
            _NOT_FOUND,
            _NO_LEADER,
        ),
    ),
    Route(
        method="GET",
        path="/api/v1/ledger/receipts/{id}",
        operation_id="findReceipt",
        summary="Whether a transaction is committed; unknown is no promise that it never will be",
        path_parameters=(("id", "The transaction's id, a UUID"),),
        parameters=RECEIPT_PARAMETERS,
        handler=read_receipt,
        answers=(Answer(200, "What is known", (shapes.ReceiptLookup,)), _BAD_REQUEST, _NO_LEADER),
    ),
    Route(
        method="GET",
        path="/api/v1/ledger/blocks",
        operation_id="listBlocks",
        summary="A run of blocks without their transactions, in ascending order",
        parameters=BLOCKS_PARAMETERS,
        handler=read_blocks,
        answers=(Answer(200, "The blocks", (shapes.BlockPage,)), _BAD_REQUEST, _NOT_NOW),
    ),
    Route(
        method="GET",
        path="/api/v1/ledger/blocks/{index}",
        operation_id="readBlock",
        summary="One committed block with its transactions",
        path_parameters=(("index", "The block's index, or latest"),),
        handler=read_block,
        answers=(
            Answer(200, "The block", (shapes.BlockDetail,)),
            _BAD_REQUEST,
            _NOT_FOUND,
            _NOT_NOW,
        ),
    ),
    Route(
        method="GET",
        path="/api/v1/cluster",
        operation_id="readCluster",
        summary="The cluster as this node sees it",
        handler=read_cluster,
        answers=(Answer(200, "The cluster", (shapes.Cluster,)), _BAD_REQUEST),
    ),
    *CHANGE_ROUTES,
    Route(
        method="GET",
        path="/livez",
        operation_id="readLive",
        summary="Whether the node runs",
        handler=read_live,
        answers=(Answer(200, "It does", (shapes.Health,)), _BAD_REQUEST, _NOT_NOW),
    ),
    Route(
        method="GET",
        path="/readyz",
        operation_id="readReady",
        summary="Whether a leader is known and this node has applied what is committed",
        handler=read_ready,
        answers=(Answer(200, "It is ready", (shapes.Health,)), _BAD_REQUEST, _NOT_NOW),
    ),
    Route(
        method="GET",
        path="/metrics",
        operation_id="readMetrics",
        summary="The node's numbers for Prometheus",
        handler=read_metrics,
        answers=(Answer(200, "The numbers", (), CONTENT_TYPE_LATEST), _BAD_REQUEST),
    ),
    Route(
        method="GET",
        path="/openapi.json",
        operation_id="readOpenApi",
        summary="This document",
        handler=_read_openapi,
        answers=(Answer(200, "An OpenAPI 3.1 document"), _BAD_REQUEST),
    ),
    Route(
        method="GET",
        path="/",
        operation_id="readExplorer",
        summary="The explorer, a page for people",
        handler=_read_page,
        answers=(Answer(200, "The page", (), _HTML), _BAD_REQUEST),
    ),
    Route(
        method="GET",
        path="/web/{name}",
        operation_id="readExplorerFile",
        summary="A file of the explorer",
        path_parameters=(("name", "As the page names it"),),
        handler=_read_file,
        answers=(Answer(200, "The file", (), "*/*"), _BAD_REQUEST, _NOT_FOUND),
    ),
)
