"""Runs one node: `python -m node --data-dir DIR`, as the supervisor starts it.

The same as `bitnexus node run`, without the time it takes to import a command line.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from node.cli_errors import CommandError, ExitCode, print_error
from node.cli_run import run_node


def main() -> int:
    """Run the node and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m node", description="Run one node.")
    parser.add_argument("--data-dir", type=Path, required=True, help="the node's data folder")
    arguments = parser.parse_args()
    try:
        run_node(arguments.data_dir)
    except CommandError as error:
        print_error(str(error))
        return error.exit_code
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())
