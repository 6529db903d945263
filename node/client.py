"""The Python client: one ledger out of several nodes.

    async with LedgerClient(["http://127.0.0.1:8001", "http://127.0.0.1:8002"]) as ledger:
        receipt = await ledger.record_transaction(user_id="alice", kind="deposit", payload={...})

Every transaction has its id before it is first sent, and every retry keeps it, so nothing is ever
recorded twice. A call goes on to the next node when one does not answer or cannot, and ends with an
answer or with a typed error by its deadline. `tcp://host:port?key=...` is a node's client port, for
high rates: where there are such URLs transactions go over these alone, and reads and changes of the
cluster over the http ones. Relies on httpx and on the shapes of the HTTP face.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, Self, TypeVar
from urllib.parse import quote

import httpx
import msgspec
from msgspec import UNSET

from node.api.shapes import (
    BatchAnswer,
    BlockDetail,
    BlockPage,
    Cluster,
    Handover,
    HistoryItem,
    HistoryPage,
    MemberList,
    MembersChanged,
    NewAddresses,
    NewBatch,
    NewLeader,
    NewMember,
    NewTransaction,
    Problem,
    Receipt,
    ReceiptLookup,
    read_outcome,
)
from node.client_changes import make_change
from node.client_crowd import Crowd
from node.client_errors import (
    BatchError,
    ChangeRefusedError,
    ConflictError,
    LedgerClientError,
    NoHttpError,
    NotFoundError,
    ProtocolError,
    RejectedError,
    UnavailableError,
    UnknownChangeFateError,
    UnknownOutcomeError,
)
from node.client_nodes import (
    RETRIED,
    Course,
    Nodes,
    OutOfTimeError,
    Request,
    Rota,
    problem_of,
)
from node.client_outcomes import Batch, canonical_bytes, lost, refusal
from node.uuid7 import uuid7

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from types import TracebackType
    from uuid import UUID

    from node.client_ports import Ports

__all__ = [
    "BatchError",
    "ChangeRefusedError",
    "ConflictError",
    "LedgerClient",
    "LedgerClientError",
    "NewTransaction",
    "NoHttpError",
    "NotFoundError",
    "ProtocolError",
    "Receipt",
    "RejectedError",
    "UnavailableError",
    "UnknownChangeFateError",
    "UnknownOutcomeError",
]

PORT_SCHEME: Final = "tcp://"
DEFAULT_TIMEOUT_S: Final = 30.0
DEFAULT_ATTEMPT_TIMEOUT_S: Final = 5.0
_CROWD_GRACE_S: Final = 1.5
"""A request ends by itself at its deadline and says more than a caller that gives it up."""

_LEDGER: Final = "/api/v1/ledger/"
_TRANSACTIONS: Final = _LEDGER + "transactions"
_CLUSTER: Final = "/api/v1/cluster"
_MEMBERS: Final = _CLUSTER + "/members"
_OK: Final = range(200, 300)
_CONFLICT: Final = 409

Order = Literal["desc", "asc"]
Consistency = Literal["linearizable", "local"]
_Shape = TypeVar("_Shape", bound=msgspec.Struct)


class LedgerClient:
    """A ledger, reached through any of its nodes. For one event loop; use with `async with`.

    Times are in seconds: `timeout_s` bounds a whole call, `attempt_timeout_s` what one node is
    given before the next is tried. Proxies and credentials of the environment are not used.
    `client_key`, 32 bytes, is the client's secret CURVE key for client ports that let only some in.
    With tcp URLs alone it records and looks receipts up; all else raises NoHttpError.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        attempt_timeout_s: float = DEFAULT_ATTEMPT_TIMEOUT_S,
        client_key: bytes | None = None,
    ) -> None:
        """Take the nodes in the order they are tried; raises ValueError for none or a bad URL."""
        if not urls:
            raise ValueError("a ledger client needs the URL of at least one node")
        if timeout_s <= 0 or attempt_timeout_s <= 0:
            raise ValueError("a timeout must be above 0 s")
        self._timeout_s = timeout_s
        port_urls = [url for url in urls if url.startswith(PORT_SCHEME)]
        http_urls = [url for url in urls if not url.startswith(PORT_SCHEME)]
        for url in http_urls:
            _check_url(url)
        self._ports: Ports | None = None
        if port_urls:
            from node.client_ports import Ports  # noqa: PLC0415 - brings ZeroMQ

            self._ports = Ports(
                port_urls, attempt_timeout_s=attempt_timeout_s, client_key=client_key
            )
        self._crowd = Crowd(self._record_one, self._try_many)
        self._http: Nodes | None = None
        if http_urls:
            self._http = Nodes(http_urls, attempt_timeout_s=attempt_timeout_s)

    async def __aenter__(self) -> Self:
        """Return the client; connections are made when they are needed."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close every connection."""
        await self.aclose()

    async def aclose(self) -> None:
        """Close every connection."""
        self._crowd.close()
        if self._ports is not None:
            self._ports.close()
        if self._http is not None:
            await self._http.close()

    async def record_transaction(
        self,
        *,
        user_id: str,
        kind: str,
        payload: object,
        transaction_id: UUID | None = None,
        timeout_s: float | None = None,
    ) -> Receipt:
        """Record one transaction and return its receipt once it is committed.

        Calls without a `timeout_s` of their own that are under way at once share requests.

        Raises:
            InvalidTransactionError: it breaks a rule; nothing was sent.
            ConflictError, RejectedError: the ledger refused; nothing was recorded.
            UnavailableError: no node could record it in time; nothing was recorded.
            UnknownOutcomeError: it may be recorded; it carries the id to call again with.
        """
        identifier = transaction_id or uuid7()
        new = NewTransaction(id=identifier, user_id=user_id, kind=kind, payload=payload)
        raw = canonical_bytes(new)
        if self._ports is not None:
            return await self._ports.record(raw, identifier, self._course(timeout_s, self._ports))
        if timeout_s is None:
            longest_s = self._timeout_s + _CROWD_GRACE_S
            return await self._crowd.record(new, len(raw), timeout_s=longest_s)
        return await self._record_one(new, timeout_s)

    async def _record_one(self, new: NewTransaction, timeout_s: float | None = None) -> Receipt:
        assert new.id is not UNSET
        request = Request("POST", _TRANSACTIONS, msgspec.json.encode(new), is_timed=True)
        try:
            response = await self._nodes.exchange(request, self._course(timeout_s), _is_final)
        except OutOfTimeError as error:
            raise lost(new.id, error) from error
        return _decode(response, Receipt)

    async def _try_many(
        self, news: Sequence[NewTransaction]
    ) -> Sequence[Receipt | LedgerClientError | None]:
        """One request for all of them; None for each that another one may still decide."""
        batch = Batch(news)
        body = msgspec.json.encode(NewBatch(transactions=list(batch.open.values())))
        request = Request("POST", _TRANSACTIONS, body, is_timed=True)
        try:
            response = await self._nodes.exchange(request, self._course(None), _has_outcomes)
            batch.settle(_read_outcomes(response))
        except OutOfTimeError as error:
            batch.give_up(error)
        return batch.outcomes

    async def record_transactions(
        self, transactions: Sequence[NewTransaction], *, timeout_s: float | None = None
    ) -> list[Receipt]:
        """Record a batch, at most 10,000 or 8 MiB, and return the receipts in its order.

        Transactions are recorded each for itself: where some are refused the others are recorded
        all the same. An id is made where none is given.

        Raises:
            InvalidTransactionError: one breaks a rule; nothing was sent.
            RejectedError: the ledger refused the batch as a whole; nothing was recorded.
            BatchError: some have no receipt; it has the outcome of each.
        """
        batch = Batch(transactions)
        if self._ports is not None:
            await self._ports.record_batch(batch, self._course(timeout_s, self._ports))
            return batch.receipts()
        course = self._course(timeout_s)
        while batch.open:
            body = msgspec.json.encode(NewBatch(transactions=list(batch.open.values())))
            request = Request("POST", _TRANSACTIONS, body, is_timed=True)
            try:
                response = await self._nodes.exchange(request, course, _has_outcomes)
                failure = batch.settle(_read_outcomes(response))
                if failure is not None:
                    await course.go_on(failure)
            except OutOfTimeError as error:
                batch.give_up(error)
        return batch.receipts()

    async def transactions(
        self,
        user_id: str,
        *,
        order: Order = "desc",
        consistency: Consistency = "linearizable",
        page_size: int = 100,
    ) -> AsyncIterator[HistoryItem]:
        """Yield a user's transactions, newest first unless `order` is asc, page by page."""
        after = None
        while True:
            page = await self.history_page(
                user_id, limit=page_size, after=after, order=order, consistency=consistency
            )
            for item in page.transactions:
                yield item
            after = page.next
            if after is None:
                return

    async def history_page(
        self,
        user_id: str,
        *,
        limit: int = 100,
        after: str | None = None,
        order: Order = "desc",
        consistency: Consistency = "linearizable",
    ) -> HistoryPage:
        """Return one page of a user's transactions; `after` is the `next` of the page before."""
        parameters = {"limit": str(limit), "order": order, "consistency": consistency}
        if after is not None:
            parameters["after"] = after
        path = f"{_TRANSACTIONS}/{_segment(user_id)}"
        return await self._get(path, HistoryPage, parameters, is_timed=True)

    async def receipt(
        self, transaction_id: UUID, *, consistency: Consistency = "linearizable"
    ) -> ReceiptLookup:
        """Return whether a transaction is committed, and its receipt if it is."""
        if self._http is None and self._ports is not None:
            return await self._ports.receipt(
                transaction_id,
                self._course(None, self._ports),
                is_linearizable=consistency == "linearizable",
            )
        path = f"{_LEDGER}receipts/{transaction_id}"
        return await self._get(path, ReceiptLookup, {"consistency": consistency}, is_timed=True)

    async def block(self, index: int | Literal["latest"]) -> BlockDetail:
        """Return a committed block; raises NotFoundError where the node asked has none yet."""
        return await self._get(f"{_LEDGER}blocks/{index}", BlockDetail, {})

    async def blocks(self, first: int | None = None, limit: int = 20) -> BlockPage:
        """Return blocks without their transactions, in order; without `first` the last ones."""
        parameters = {"limit": str(limit)}
        if first is not None:
            parameters["first"] = str(first)
        return await self._get(f"{_LEDGER}blocks", BlockPage, parameters)

    async def cluster(self) -> Cluster:
        """Return the cluster as the node that answers sees it."""
        return await self._get(_CLUSTER, Cluster, {})

    async def members(self) -> MemberList:
        """Return the members, and who leads, as the node that answers sees them."""
        return await self._get(_MEMBERS, MemberList, {})

    async def add_member(
        self, *, name: str, public_key: str, peer: str, http: str, timeout_s: float | None = None
    ) -> MembersChanged:
        """Add a member: it learns, and becomes a voter by itself once it has caught up.

        Raises of this and of every other change:
            ChangeRefusedError, NotFoundError, RejectedError: nothing is changed.
            UnavailableError: no leader was found in time; nothing is changed.
            UnknownChangeFateError: no answer came in time; it may be changed.
        """
        new = NewMember(name=name, public_key=public_key, peer=peer, http=http)
        return await self._change("POST", _MEMBERS, MembersChanged, new, timeout_s)

    async def remove_member(self, name: str, *, timeout_s: float | None = None) -> MembersChanged:
        """Remove a member for good: its key never comes back."""
        path = f"{_MEMBERS}/{_segment(name)}"
        return await self._change("DELETE", path, MembersChanged, None, timeout_s)

    async def promote_member(self, name: str, *, timeout_s: float | None = None) -> MembersChanged:
        """Make a learner that has caught up a voter now."""
        path = f"{_MEMBERS}/{_segment(name)}/promote"
        return await self._change("POST", path, MembersChanged, None, timeout_s)

    async def move_member(
        self,
        name: str,
        *,
        peer: str | None = None,
        http: str | None = None,
        timeout_s: float | None = None,
    ) -> MembersChanged:
        """Give a member other addresses; None keeps the one it has."""
        new = NewAddresses(
            peer=UNSET if peer is None else peer, http=UNSET if http is None else http
        )
        path = f"{_MEMBERS}/{_segment(name)}"
        return await self._change("PATCH", path, MembersChanged, new, timeout_s)

    async def transfer_leadership(
        self, to: str | None = None, *, timeout_s: float | None = None
    ) -> str:
        """Hand the leadership to the voter `to`, or to whoever is closest; return who leads."""
        path, wanted = f"{_CLUSTER}/transfer-leadership", Handover(to=UNSET if to is None else to)
        return (await self._change("POST", path, NewLeader, wanted, timeout_s)).leader

    async def _change(
        self,
        method: str,
        path: str,
        shape: type[_Shape],
        body: msgspec.Struct | None,
        timeout_s: float | None,
    ) -> _Shape:
        """Make a change at whichever node leads."""
        content = None if body is None else msgspec.json.encode(body)
        request = Request(method, path, content, is_timed=True)
        return _decode(await make_change(self._nodes, request, self._course(timeout_s)), shape)

    async def _get(
        self,
        path: str,
        shape: type[_Shape],
        parameters: Mapping[str, str],
        *,
        is_timed: bool = False,
    ) -> _Shape:
        request = Request("GET", path, parameters=parameters, is_timed=is_timed)
        try:
            response = await self._nodes.exchange(request, self._course(None), _is_final)
        except OutOfTimeError as error:
            raise UnavailableError(error.failure.detail) from error
        return _decode(response, shape)

    @property
    def _nodes(self) -> Nodes:
        if self._http is None:
            raise NoHttpError("this call needs a node's http URL beside the client ports")
        return self._http

    def _course(self, timeout_s: float | None, rota: Rota | None = None) -> Course:
        return Course(rota or self._nodes, self._timeout_s if timeout_s is None else timeout_s)


class _MaybeOutcomes(msgspec.Struct):
    """A problem that is the same for all of a batch has the problem of each beside it."""

    receipts: list[msgspec.Raw] | None = None


def _check_url(url: str) -> None:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"{url!r} is not a URL: {error}") from error
    if parsed.scheme not in {"http", "https"} or not parsed.host or parsed.query:
        raise ValueError(f"{url!r} is not the http or https URL of a node")


def _segment(text: str) -> str:
    """Return text as one segment of a path: dots alone would be taken for another folder."""
    encoded = quote(text, safe="")
    return encoded.replace(".", "%2E") if text in {".", ".."} else encoded


def _is_final(response: httpx.Response) -> bool:
    return response.status_code not in RETRIED


def _has_outcomes(response: httpx.Response) -> bool:
    """Whether an answer says what became of each transaction; raises if all are rejected."""
    if response.status_code in RETRIED:
        try:
            return msgspec.json.decode(response.content, type=_MaybeOutcomes).receipts is not None
        except (msgspec.DecodeError, UnicodeDecodeError):
            return False
    if response.status_code in _OK or response.status_code == _CONFLICT:
        return True
    raise refusal(problem_of(response))


def _decode(response: httpx.Response, shape: type[_Shape]) -> _Shape:
    if response.status_code in _OK:
        return _decode_as(response, shape)
    raise refusal(problem_of(response))


def _decode_as(response: httpx.Response, shape: type[_Shape]) -> _Shape:
    try:
        return msgspec.json.decode(response.content, type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"{response.url.host} is no ledger: {error}") from error


def _read_outcomes(response: httpx.Response) -> list[Receipt | Problem]:
    return [_read_outcome(one) for one in _decode_as(response, BatchAnswer).receipts]


def _read_outcome(document: object) -> Receipt | Problem:
    try:
        outcome = read_outcome(document)
    except msgspec.ValidationError as error:
        raise ProtocolError(str(error)) from error
    if not isinstance(outcome, Receipt | Problem):
        raise ProtocolError("a transaction that was to be committed is pending")
    return outcome
