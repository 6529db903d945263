"""A program that looks like a node to its supervisor and starts in an instant.

Started as `fake_node.py DATA_DIR`. It listens on the HTTP port of its `node.toml`, answers every
request with a view of a cluster that `node1` leads, and ends on SIGTERM. Files in the data folder
change that: `exit-code` makes it print a line and end at once with the code in the file, `stubborn`
makes it ignore SIGTERM. It writes its process id to `pid` when it listens. Stdlib only.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import tomllib
from pathlib import Path


def main(data_dir: Path) -> int:
    """Serve until SIGTERM."""
    exit_code = data_dir / "exit-code"
    if exit_code.exists():
        sys.stderr.write(f"fake node cannot run in {data_dir}\n")
        return int(exit_code.read_text())
    stubborn = (data_dir / "stubborn").exists()
    signal.signal(signal.SIGTERM, signal.SIG_IGN if stubborn else lambda *_: os._exit(0))
    config = tomllib.loads((data_dir / "node.toml").read_text())
    answer = http_answer(config["name"])
    with socket.create_server((config["http_host"], config["http_port"])) as server:
        new = data_dir / "pid.new"
        new.write_text(str(os.getpid()))
        new.replace(data_dir / "pid")
        while True:
            connection, _ = server.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(answer)


def http_answer(name: str) -> bytes:
    """The bytes of the answer of `GET /api/v1/cluster`."""
    members = [{"name": f"node{n}", "role": "leader" if n == 1 else "follower"} for n in (1, 2, 3)]
    view = {"node": name, "leader": "node1", "term": 3, "members": members}
    body = json.dumps(view).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
