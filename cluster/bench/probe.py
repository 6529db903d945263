"""What this machine can do at best: `python -m cluster.bench.probe WHAT SECONDS [ARGUMENT...]`.

Each probe does one thing of the write path again and again, alone in its process, and prints its
latencies. WHAT is fdatasync FOLDER, lmdb FOLDER, sha256, zeromq ENDPOINT SERVER_KEY, or
zeromq-server, which serves until its standard input ends.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final

import lmdb
import msgspec
import zmq

from cluster.bench.programs import end_with_standard_input, tell
from cluster.bench.timings import Timings

if TYPE_CHECKING:
    from collections.abc import Callable

RECORD_BYTES: Final = 4_096
HASHED_BYTES: Final = 1 << 20
MESSAGE_BYTES: Final = 256
_FILE_BYTES: Final = 64 << 20
_MAP_BYTES: Final = 1 << 30
_RECORDS: Final = _FILE_BYTES // RECORD_BYTES


class Probed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a probe measured: latencies in milliseconds, and operations a second."""

    per_s: float
    p50_ms: float
    p99_ms: float


def probe_fdatasync(seconds: float, folder: Path) -> Probed:
    """Append a record to a file that has its room already, and make it durable."""
    descriptor = os.open(folder / "fdatasync", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        for _ in range(_FILE_BYTES // HASHED_BYTES):  # written, not only reserved
            os.write(descriptor, bytes(HASHED_BYTES))
        os.fsync(descriptor)
        record = os.urandom(RECORD_BYTES)

        def append(number: int) -> None:
            os.pwrite(descriptor, record, number % _RECORDS * RECORD_BYTES)
            os.fdatasync(descriptor)

        return _repeat(append, seconds)
    finally:
        os.close(descriptor)


def probe_lmdb(seconds: float, folder: Path) -> Probed:
    """Put a record into an environment of default durability, and commit."""
    record = os.urandom(RECORD_BYTES)
    with closing(lmdb.open(str(folder / "lmdb"), map_size=_MAP_BYTES)) as environment:

        def commit(number: int) -> None:
            with environment.begin(write=True) as transaction:
                transaction.put((number % _RECORDS).to_bytes(8, "big"), record)

        return _repeat(commit, seconds)


def probe_sha256(seconds: float) -> Probed:
    """Hash a mebibyte."""
    data = os.urandom(HASHED_BYTES)
    return _repeat(lambda _number: hashlib.sha256(data).digest(), seconds)


def probe_zeromq(seconds: float, endpoint: str, server_key: str) -> Probed:
    """Send a message to another process and receive it back, encrypted both ways."""
    message = os.urandom(MESSAGE_BYTES)
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()
        socket.curve_serverkey = server_key.encode("ascii")
        socket.connect(endpoint)

        def exchange(_number: int) -> None:
            socket.send(message)
            socket.recv()

        return _repeat(exchange, seconds)


def serve_zeromq() -> None:
    """Send back what comes; prints the endpoint and the key, and never returns."""
    end_with_standard_input()
    public_key, secret_key = zmq.curve_keypair()
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.linger = 0
        socket.curve_server = True
        socket.curve_publickey, socket.curve_secretkey = public_key, secret_key
        port = socket.bind_to_random_port("tcp://127.0.0.1")
        tell((f"tcp://127.0.0.1:{port}", public_key.decode("ascii")))
        while True:
            socket.send_multipart(socket.recv_multipart())


def _repeat(work: Callable[[int], object], seconds: float) -> Probed:
    """Do it for so long; the first time, which makes connections and files, does not count."""
    work(0)
    latencies_s: list[float] = []
    started = now = time.perf_counter()
    while now - started < seconds:
        work(len(latencies_s) + 1)
        later = time.perf_counter()
        latencies_s.append(later - now)
        now = later
    timings = Timings.of(latencies_s, elapsed_s=now - started)
    return Probed(timings.per_s, timings.p50_ms, timings.p99_ms)


def main() -> None:
    """Run one probe."""
    match sys.argv[1:]:
        case ["fdatasync", seconds, folder]:
            tell(probe_fdatasync(float(seconds), Path(folder)))
        case ["lmdb", seconds, folder]:
            tell(probe_lmdb(float(seconds), Path(folder)))
        case ["sha256", seconds]:
            tell(probe_sha256(float(seconds)))
        case ["zeromq", seconds, endpoint, server_key]:
            tell(probe_zeromq(float(seconds), endpoint, server_key))
        case ["zeromq-server"]:
            serve_zeromq()
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
