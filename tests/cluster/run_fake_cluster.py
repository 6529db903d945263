"""Runs `bitnexus up` as it is, with `fake_node.py` in the nodes' place, and says it as JSON lines.

Started as `run_fake_cluster.py DATA_DIR [--stop-deadline-s SECONDS] [--for-people]`.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from cluster.cli_up import Voice, run_up
from cluster.errors import ClusterError
from cluster.folder import FREE_PORT, Shape
from cluster.local import ClusterOptions

FAKE_NODE = Path(__file__).with_name("fake_node.py")


def main() -> int:
    """Run until a signal comes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--stop-deadline-s", type=float, default=10.0)
    parser.add_argument("--for-people", action="store_true")
    arguments = parser.parse_args()
    options = ClusterOptions(
        data_dir=arguments.data_dir,
        shape=Shape(http_port=FREE_PORT),
        stop_deadline_s=arguments.stop_deadline_s,
        command=lambda folder: (sys.executable, "-I", "-S", str(FAKE_NODE), str(folder)),
    )
    voice = Voice(sys.stdout, as_json=not arguments.for_people)
    try:
        return asyncio.run(run_up(options, voice))
    except ClusterError as error:
        sys.stderr.write(f"{error}\n")
        return error.code


if __name__ == "__main__":
    sys.exit(main())
