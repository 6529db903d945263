"""Writes the requirement locks from the lists in pyproject.toml: `./tools/dev lock [--upgrade]`.

Relies on `uv`, found on PATH, to resolve for every platform at once. A lock holds names, versions,
markers and hashes, never the address it was resolved from: who installs brings their own index.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
OLDEST_PYTHON: Final = "3.11"
RUNTIME: Final = "requirements.lock"

RECIPES: Final[dict[str, tuple[str, ...]]] = {
    RUNTIME: ("pyproject.toml", "--group", "build"),
    "requirements-test.lock": ("--group", "test", "--constraints", RUNTIME),
    "requirements-control.lock": ("--group", "control", "--no-deps"),
}
"""Each lock and what it is resolved from. The tests' lock agrees with the program's own."""


def lock_command(uv: str, *, lock: str, cache: Path, upgrade: bool) -> list[str]:
    """The command that writes one lock; versions already locked stay unless `upgrade` is asked."""
    command = [uv, "pip", "compile", *RECIPES[lock], "--quiet", "--universal", "--generate-hashes"]
    command += ["--python-version", OLDEST_PYTHON, "--custom-compile-command", "./tools/dev lock"]
    command += ["--no-emit-index-url", "--no-emit-find-links", "--no-emit-build-options"]
    command += ["--cache-dir", str(cache), "--output-file", lock]
    return command + ["--upgrade"] * upgrade


def main() -> None:
    """Write every lock; leaves with a message where `uv` is missing or finds no solution."""
    uv = shutil.which("uv")
    if uv is None:
        sys.exit("tools/dev: lock needs `uv` on PATH (it resolves for every platform at once)")
    upgrade = "--upgrade" in sys.argv[1:]
    with tempfile.TemporaryDirectory() as cache:
        for lock in RECIPES:
            command = lock_command(uv, lock=lock, cache=Path(cache), upgrade=upgrade)
            if subprocess.run(command, cwd=ROOT, check=False).returncode:
                sys.exit(f"tools/dev: {lock} was not written; the reason stands above")
            print(f"{lock} is up to date")


if __name__ == "__main__":
    main()
