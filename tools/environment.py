"""The environment behind `./tools/dev`: makes `.venv` from the locks, then runs a command in it.

Theory of operation. `.venv/stamp.json` holds a digest of what each stage was made from. It is
removed before anything changes and written last, so no stamp means an environment that is absent
or half made, and it is made anew. Other locks, another Python or a moved checkout also make it
anew; a changed pyproject.toml only installs the project again. One set-up runs at a time, under a
lock on `.venv.lock` that pip inherits: were this process killed, the next would wait for its pip.

Relies on the standard library alone, since it runs before anything is installed, and on the
user's own pip settings (index, certificates, proxies), which are passed on and never recorded.
Nothing is written outside the checkout, not even temporary files.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ROOT: Final = Path(__file__).resolve().parent.parent
LIBRARIES: Final = "requirements.lock"
TEST_LIBRARIES: Final = "requirements-test.lock"
CONTROL: Final = "requirements-control.lock"
PROJECT: Final = "pyproject.toml"

PIP_INSTALL: Final = (
    *("-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
    *("--root-user-action", "ignore", "--no-cache-dir", "--no-deps"),
)
"""Quiet, nothing kept in the home folder, and nothing but what is named: a lock names it all."""

SEALED_OUT: Final = frozenset(
    {"PYTHONHOME", "PYTHONPATH", "PIP_PREFIX", "PIP_PYTHON", "PIP_ROOT", "PIP_TARGET"}
)
"""Variables that would mix other packages into the environment, or install outside it."""

USAGE: Final = """\
usage: ./tools/dev COMMAND [ARGS...]

  up ARGS...     start a local cluster: `bitnexus up ARGS...`
  test           run every test, with the coverage gate; `test ARGS...` is `pytest ARGS...`
  check          run every quality gate, then every test; `check static` leaves the tests out
  run CMD...     run any command in the environment
  lock           write the requirement locks again (needs `uv`); `--upgrade` takes newer versions

Each first makes or renews the environment in .venv where something has changed."""


class SetUpError(Exception):
    """The environment cannot be made; the text is one line for the person at the terminal."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One part of the environment: what it is made from, and the pip arguments that make it."""

    name: str
    sources: tuple[str, ...]
    installs: tuple[tuple[str, ...], ...]


BASE: Final = Stage(
    "libraries",
    (LIBRARIES, TEST_LIBRARIES, CONTROL),  # any changed lock starts afresh: no leftovers
    (("--require-hashes", "-r", LIBRARIES),),
)
EDITABLE: Final = Stage("project", (PROJECT,), (("--no-build-isolation", "--editable", "."),))
TESTS: Final = Stage(
    "test libraries",
    (TEST_LIBRARIES, CONTROL),
    (
        ("--require-hashes", "-r", TEST_LIBRARIES),
        # The control is published as source only: built here, with the locked setuptools.
        ("--require-hashes", "--no-build-isolation", "--use-pep517", "-r", CONTROL),
    ),
)
TO_RUN: Final = (BASE, EDITABLE)
TO_TEST: Final = (BASE, EDITABLE, TESTS)


@dataclass(frozen=True, slots=True)
class Environment:
    """The environment of one checkout; `prepare` is the only thing that changes it."""

    root: Path

    @property
    def folder(self) -> Path:
        """The virtual environment itself."""
        return self.root / ".venv"

    @property
    def programs(self) -> Path:
        """Where its programs are."""
        return self.folder / "bin"

    @property
    def stamp(self) -> Path:
        """The digest of each stage that is complete."""
        return self.folder / "stamp.json"

    def prepare(self, stages: Sequence[Stage]) -> None:
        """Make what is missing or outdated of `stages`, in order; do nothing where nothing is.

        Raises SetUpError, with the environment left unstamped, when a step fails.
        """
        with locked(self.root / ".venv.lock") as lock:
            done = self._stamped()
            if done.get(BASE.name) != self._digest(BASE) or not (self.programs / "python").exists():
                done = {}
            missing = [stage for stage in stages if done.get(stage.name) != self._digest(stage)]
            if missing:
                self._make(missing, done, lock=lock)

    def variables(self) -> dict[str, str]:
        """The variables of a command that runs in the environment: the caller's, sealed."""
        own = {"VIRTUAL_ENV": str(self.folder)}
        own["PATH"] = os.pathsep.join([str(self.programs), os.environ.get("PATH", os.defpath)])
        return sealed(os.environ) | own

    def _make(self, stages: Sequence[Stage], done: dict[str, str], *, lock: int) -> None:
        self.stamp.unlink(missing_ok=True)
        with scratch(self.root / ".venv.tmp") as folder:
            step = Step(self.root, lock, {"TMPDIR": str(folder), "PIP_USER": "0"})
            if not done:
                command = creation_command(self.folder, scratch=folder)
                say(f"making .venv with Python {platform.python_version()}")
                remove(self.folder)
                step.run(*command)
            for stage in stages:
                say(f"installing the {stage.name}")
                for arguments in stage.installs:
                    step.run(str(self.programs / "python"), *PIP_INSTALL, *arguments)
        done |= {stage.name: self._digest(stage) for stage in stages}
        write_whole(self.stamp, json.dumps(done, indent=1) + "\n")

    def _stamped(self) -> dict[str, str]:
        try:
            done = json.loads(self.stamp.read_text())
        except (OSError, ValueError):
            return {}
        return done if isinstance(done, dict) else {}

    def _digest(self, stage: Stage) -> str:
        """A digest of what a stage is made from; with the root, for scripts hold absolute paths."""
        python = f"{sys.implementation.name} {sys.version_info.major}.{sys.version_info.minor}"
        parts = [str(self.root), python, platform.machine(), repr(stage)]
        parts += [(self.root / source).read_text() for source in stage.sources]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Step:
    """Runs the commands of a set-up: sealed, in the checkout, holding its lock."""

    root: Path
    lock: int
    own: Mapping[str, str]

    def run(self, *command: str) -> None:
        """Run one command; what it prints goes to stderr. Raises SetUpError when it fails."""
        done = subprocess.run(
            command,
            cwd=self.root,
            env={**sealed(os.environ), **self.own},
            stdout=sys.stderr,
            pass_fds=(self.lock,),
            check=False,
        )
        if done.returncode:
            words = " ".join(command)
            raise SetUpError(f"set-up failed: status {done.returncode} from `{words}`")


def creation_command(folder: Path, *, scratch: Path) -> list[str]:
    """The command that makes an empty environment with pip in it, by what this machine has."""
    # Resolved: run from inside an environment, and above all from .venv, only the real one lasts.
    python = str(Path(sys.executable).resolve())
    if importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip"):
        return [python, "-m", "venv", str(folder)]
    if virtualenv := shutil.which("virtualenv"):
        quiet = ["--quiet", "--no-periodic-update", "--app-data", str(scratch / "virtualenv")]
        return [virtualenv, *quiet, "--python", python, str(folder)]
    if uv := shutil.which("uv"):
        quiet = ["--quiet", "--cache-dir", str(scratch / "uv")]
        return [uv, "venv", *quiet, "--seed", "--python", python, str(folder)]
    package = f"python{sys.version_info.major}.{sys.version_info.minor}-venv"
    raise SetUpError(
        f"{python} cannot make environments (no ensurepip): install {package} "
        f"(`sudo apt install {package}` on Debian and Ubuntu), or virtualenv, or uv"
    )


def sealed(variables: Mapping[str, str]) -> dict[str, str]:
    """The given variables without those that would let other packages in."""
    return {name: value for name, value in variables.items() if name not in SEALED_OUT}


@contextlib.contextmanager
def locked(path: Path) -> Iterator[int]:
    """Hold the exclusive lock on a file, waiting for it with a word; gives its descriptor."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another set-up is at work in this checkout; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock
    finally:
        os.close(lock)


@contextlib.contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """An empty folder for temporary files, gone afterwards; also what a killed set-up left."""
    remove(folder)
    folder.mkdir()
    try:
        yield folder
    finally:
        remove(folder)


def remove(folder: Path) -> None:
    """Remove a folder and all in it, or the link that stands in its place."""
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is there as a whole or not at all."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(text)
    unfinished.replace(path)


def say(text: str) -> None:
    """One line for the person at the terminal; stdout stays free for the command's own output."""
    print(f"tools/dev: {text}", file=sys.stderr, flush=True)


def launch(environment: Environment, command: str, arguments: list[str]) -> NoReturn:
    """Prepare what a command needs, then become it."""
    python = str(environment.programs / "python")
    match command:
        case "up":
            environment.prepare(TO_RUN)
            become([str(environment.programs / "bitnexus"), "up", *arguments], environment)
        case "run" if arguments:
            environment.prepare(TO_RUN)
            become(arguments, environment)
        case "test" | "check":
            environment.prepare(TO_TEST)
            os.chdir(environment.root)
            mode = ["tests"] if command == "test" else []
            become([python, "-m", "tools.check", *mode, *arguments], environment)
        case "lock":
            os.chdir(environment.root)
            become([sys.executable, "-m", "tools.lock", *arguments], environment)
        case "help" | "-h" | "--help":
            print(USAGE)
            sys.exit(0)
        case _:
            print(USAGE, file=sys.stderr)
            sys.exit(2)


def become(command: list[str], environment: Environment) -> NoReturn:
    """Replace this process by a command of the environment, or of PATH after it."""
    variables = environment.variables()
    program = shutil.which(command[0], path=variables["PATH"])
    if program is None:
        raise SetUpError(f"no program `{command[0]}` in the environment or on PATH")
    sys.stdout.flush()
    os.execve(program, command, variables)  # noqa: S606 - no shell is wanted


def main() -> NoReturn:
    """The launcher: `./tools/dev COMMAND ARGS...`; every failure of its own is one line."""
    command, *arguments = sys.argv[1:] or [""]
    try:
        launch(Environment(ROOT), command, arguments)
    except SetUpError as error:
        say(str(error))
    except OSError as error:
        say(f"set-up failed: {error}")
    except KeyboardInterrupt:
        say("interrupted; the same command again begins afresh")
        sys.exit(130)
    sys.exit(1)
