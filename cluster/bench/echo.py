"""A bare HTTP server on the stack of the nodes: `python -m cluster.bench.echo`.

uvicorn, httptools and uvloop, and a raw ASGI application that reads a request and answers as many
bytes as a receipt has: what HTTP alone costs. Prints its port and ends with its standard input.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

from uvicorn.config import Config
from uvicorn.server import Server

from cluster.bench.programs import end_with_standard_input, tell

if TYPE_CHECKING:
    from node.api.reply import Receive, Scope, Send

_BACKLOG: Final = 2_048
_BODY: Final = b'"' + b"0" * 230 + b'"'
_START: Final = {
    "type": "http.response.start",
    "status": 201,
    "headers": [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(_BODY)).encode()),
    ],
}
_END: Final = {"type": "http.response.body", "body": _BODY}


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    """Read a request to its end, and answer."""
    assert scope["type"] == "http"
    while (await receive()).get("more_body", False):
        pass
    await send(_START)
    await send(_END)


def main() -> None:
    """Serve until nobody holds the standard input any more."""
    end_with_standard_input()
    listener = socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG)
    config = Config(
        answer,
        http="httptools",
        loop="uvloop",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=_BACKLOG,
    )
    tell(listener.getsockname()[1])
    Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
