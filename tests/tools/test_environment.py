"""The launcher's environment: made once, renewed where something changed, whole or not at all.

The steps are played by a recorder, so no network and no pip is needed; locks, stamps, links and
processes are real. Relies on nothing but a folder that stands for a checkout.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest

from tools import environment
from tools.environment import TO_RUN, TO_TEST, Environment, SetUpError, Step

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = ROOT / "tools" / "dev"
VENV, LIBRARIES, PROJECT = "-m venv", "-r requirements.lock", "--editable ."
TESTS, CONTROL = "-r requirements-test.lock", "-r requirements-control.lock"


@pytest.fixture
def checkout(tmp_path: Path) -> Environment:
    """A folder with the four files that an environment is made from."""
    root = tmp_path / "checkout"
    root.mkdir()
    for name in ("pyproject.toml", *environment.BASE.sources):
        (root / name).write_text(f"# {name}\n")
    return Environment(root)


class Recorder:
    """Stands for every step: notes the command, and makes the interpreter that venv would."""

    def __init__(self) -> None:
        self.commands: list[str] = []
        self.scratch: set[tuple[Path, tuple[Path, ...]]] = set()
        self.fail_at: str | None = None
        self.failure: BaseException = SetUpError("planted")

    def run(self, step: Step, *command: str) -> None:
        """Note one command, in the place of Step.run."""
        words = " ".join(command)
        self.commands.append(words)
        folder = Path(step.own["TMPDIR"])
        self.scratch.add((folder, tuple(folder.iterdir())))
        if self.fail_at is not None and self.fail_at in words:
            raise self.failure
        if VENV in words:
            programs = step.root / ".venv" / "bin"
            programs.mkdir(parents=True)
            (programs / "python").symlink_to(sys.executable)

    def take(self, *expected: str) -> None:
        """Compare the steps so far, each by words it must hold, and forget them."""
        commands, self.commands = self.commands, []
        assert len(expected) == len(commands), commands
        for words, command in zip(expected, commands, strict=True):
            assert words in command


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """The recorder, in the place of every step."""
    recorder = Recorder()

    def run(step: Step, *command: str) -> None:
        recorder.run(step, *command)  # a function, for a bound method would not get the step

    monkeypatch.setattr(Step, "run", run)
    return recorder


def test_the_first_time_makes_everything(checkout: Environment, recorder: Recorder) -> None:
    """The environment, the locked libraries, then the project itself."""
    checkout.prepare(TO_RUN)

    recorder.take(VENV, LIBRARIES, PROJECT)
    assert checkout.stamp.exists()


def test_the_second_time_does_nothing(checkout: Environment, recorder: Recorder) -> None:
    """Nothing changed, nothing done; the tests' libraries come when they are first asked for."""
    checkout.prepare(TO_RUN)
    recorder.take(VENV, LIBRARIES, PROJECT)

    checkout.prepare(TO_RUN)
    recorder.take()
    checkout.prepare(TO_TEST)
    recorder.take(TESTS, CONTROL)
    checkout.prepare(TO_TEST)
    checkout.prepare(TO_RUN)
    recorder.take()


def test_another_pyproject_installs_only_the_project(
    checkout: Environment, recorder: Recorder
) -> None:
    """The libraries do not depend on it: their lock does."""
    checkout.prepare(TO_TEST)
    recorder.take(VENV, LIBRARIES, PROJECT, TESTS, CONTROL)

    (checkout.root / "pyproject.toml").write_text("# changed\n")
    checkout.prepare(TO_TEST)
    recorder.take(PROJECT)


def change_lock(checkout: Environment, name: str) -> None:
    """Another version in a lock."""
    (checkout.root / name).write_text("# changed\n")


def lose_interpreter(checkout: Environment, _: str) -> None:
    """The Python it was made with has been removed from the machine."""
    interpreter = checkout.programs / "python"
    interpreter.unlink()
    interpreter.symlink_to("/nonexistent/python3")


def spoil_stamp(checkout: Environment, text: str) -> None:
    """The stamp is not what was written."""
    checkout.stamp.write_text(text)


@pytest.mark.parametrize(
    ("spoil", "argument"),
    [
        (change_lock, "requirements.lock"),
        (change_lock, "requirements-test.lock"),
        (change_lock, "requirements-control.lock"),
        (lose_interpreter, ""),
        (spoil_stamp, "not JSON"),
        (spoil_stamp, "[]"),
    ],
)
def test_what_cannot_be_trusted_is_made_anew(
    checkout: Environment,
    recorder: Recorder,
    spoil: Callable[[Environment, str], None],
    argument: str,
) -> None:
    """No leftover of the old environment is kept."""
    checkout.prepare(TO_RUN)
    recorder.take(VENV, LIBRARIES, PROJECT)
    leftover = checkout.folder / "leftover"
    leftover.touch()

    spoil(checkout, argument)
    checkout.prepare(TO_RUN)
    recorder.take(VENV, LIBRARIES, PROJECT)
    assert not leftover.exists()


def test_another_machine_or_place_has_another_digest(
    checkout: Environment, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An environment on a shared folder serves the kind of machine it was made on."""
    checkout.prepare(TO_RUN)
    recorder.take(VENV, LIBRARIES, PROJECT)

    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    checkout.prepare(TO_RUN)
    recorder.take(VENV, LIBRARIES, PROJECT)

    moved = checkout.root.rename(checkout.root.with_name("moved"))
    Environment(moved).prepare(TO_RUN)
    recorder.take(VENV, LIBRARIES, PROJECT)


@pytest.mark.parametrize("failure", [SetUpError("planted"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", [VENV, LIBRARIES, PROJECT, TESTS, CONTROL])
def test_an_interrupted_set_up_begins_afresh(
    checkout: Environment, recorder: Recorder, step: str, failure: BaseException
) -> None:
    """However far it came: without a stamp nothing is trusted."""
    recorder.fail_at, recorder.failure = step, failure
    with pytest.raises(type(failure)):
        checkout.prepare(TO_TEST)
    assert not checkout.stamp.exists()

    recorder.fail_at, recorder.commands = None, []
    checkout.prepare(TO_TEST)
    recorder.take(VENV, LIBRARIES, PROJECT, TESTS, CONTROL)


def test_an_interrupted_renewal_begins_afresh(checkout: Environment, recorder: Recorder) -> None:
    """A stage that was added half is not mended: the whole environment is made anew."""
    checkout.prepare(TO_RUN)
    recorder.take(VENV, LIBRARIES, PROJECT)
    recorder.fail_at = TESTS
    with pytest.raises(SetUpError):
        checkout.prepare(TO_TEST)
    recorder.take(TESTS)

    recorder.fail_at = None
    checkout.prepare(TO_RUN)
    recorder.take(VENV, LIBRARIES, PROJECT)


def test_temporary_files_stay_in_the_checkout_and_go(
    checkout: Environment, recorder: Recorder
) -> None:
    """What pip unpacks stays inside; what a killed set-up left there goes too."""
    scratch = checkout.root / ".venv.tmp"
    scratch.mkdir()
    (scratch / "left by a killed set-up").touch()

    checkout.prepare(TO_RUN)
    assert {(scratch, ())} == recorder.scratch
    assert not scratch.exists()


def test_a_linked_environment_is_unlinked_only(
    checkout: Environment, recorder: Recorder, tmp_path: Path
) -> None:
    """Somebody's folder behind a link named .venv is not ours to delete."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "precious").touch()
    checkout.folder.symlink_to(theirs)

    checkout.prepare(TO_RUN)
    assert (theirs / "precious").exists()
    assert not checkout.folder.is_symlink()


def test_two_set_ups_take_turns(
    checkout: Environment, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second says that it waits, and then finds everything done."""
    waiting = threading.Event()

    def hear(text: str) -> None:
        if "waiting" in text:
            waiting.set()

    monkeypatch.setattr(environment, "say", hear)
    second = threading.Thread(target=checkout.prepare, args=(TO_RUN,))

    with environment.locked(checkout.root / ".venv.lock"):
        second.start()
        assert waiting.wait(timeout=30)
        recorder.take()
    second.join(timeout=30)
    recorder.take(VENV, LIBRARIES, PROJECT)


def test_a_step_holds_the_lock(checkout: Environment) -> None:
    """Were the launcher killed, its pip would still keep the next set-up waiting."""
    with environment.locked(checkout.root / ".venv.lock") as lock:
        step = Step(checkout.root, lock, {})
        step.run(sys.executable, "-c", f"import os; os.fstat({lock})")


def test_a_failed_step_is_one_line(
    checkout: Environment, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its own words go to stderr, and the error names its status and its command."""
    script = "import sys; print('words'); sys.exit(3)"
    with environment.locked(checkout.root / ".venv.lock") as lock:
        step = Step(checkout.root, lock, {})
        with pytest.raises(SetUpError, match=r"status 3 from `.*python.* -c import sys"):
            step.run(sys.executable, "-c", script)

    assert ("", "words\n") == capfd.readouterr()


def test_pip_settings_pass_and_foreign_packages_do_not() -> None:
    """The user's index and certificates count; what would mix in other packages does not."""
    kept = {"PIP_INDEX_URL": "i", "PIP_CERT": "c", "SSL_CERT_FILE": "s", "HTTPS_PROXY": "p"}

    assert kept == environment.sealed({**kept, "PYTHONPATH": "x", "PIP_TARGET": "y"})


def test_pip_installs_by_hash_and_keeps_nothing_at_home(
    checkout: Environment, recorder: Recorder
) -> None:
    """Every library comes from a lock, by hash, without its own idea of dependencies."""
    checkout.prepare(TO_TEST)
    for command in recorder.commands[1:]:
        assert "--no-deps" in command
        assert "--no-cache-dir" in command
        assert ("--require-hashes" in command) != (PROJECT in command)


@pytest.mark.parametrize(
    ("missing", "programs", "expected"),
    [
        ((), (), "-m venv"),
        (("ensurepip",), ("virtualenv", "uv"), "/usr/bin/virtualenv"),
        (("venv",), ("uv",), "/usr/bin/uv venv"),
    ],
)
def test_the_first_means_at_hand_makes_the_environment(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    missing: tuple[str, ...],
    programs: tuple[str, ...],
    expected: str,
) -> None:
    """By venv where it works, else virtualenv, else uv; caches stay in the scratch folder."""
    with_only(monkeypatch, missing=missing, programs=programs)
    command = environment.creation_command(tmp_path / ".venv", scratch=tmp_path / "scratch")

    assert expected in " ".join(command)
    assert str(tmp_path / ".venv") == command[-1]
    assert (str(tmp_path / "scratch") in " ".join(command)) == bool(missing)


def test_without_any_means_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, checkout: Environment, recorder: Recorder
) -> None:
    """One line names the package; the old environment is left as it was."""
    with_only(monkeypatch, missing=("ensurepip",), programs=())
    checkout.folder.mkdir()

    with pytest.raises(SetUpError, match=r"install python3\.\d+-venv \(`sudo apt install") as error:
        checkout.prepare(TO_RUN)
    assert "\n" not in str(error.value)
    assert checkout.folder.exists()


def with_only(
    monkeypatch: pytest.MonkeyPatch, *, missing: tuple[str, ...], programs: tuple[str, ...]
) -> None:
    """A machine without some modules, and with only some programs."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name not in missing or None)
    found = {name: f"/usr/bin/{name}" for name in programs}
    monkeypatch.setattr(shutil, "which", lambda name, **_: found.get(name))


class BecameError(Exception):
    """Stands for the program that the launcher turned into."""


@pytest.fixture
def become(monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of becoming a program, raise what it would have become."""

    def note(program: str, command: list[str], variables: dict[str, str]) -> NoReturn:
        raise BecameError(Path(program).name, command[1:], variables)

    monkeypatch.setattr(os, "execve", note)
    monkeypatch.setattr(shutil, "which", lambda name, **_: f"/found/{Path(name).name}")
    monkeypatch.setattr(os, "chdir", lambda _: None)


@pytest.mark.parametrize(
    ("arguments", "program", "expected", "steps"),
    [
        (["up", "--nodes", "5"], "bitnexus", ["up", "--nodes", "5"], 3),
        (["run", "ls", "-l"], "ls", ["-l"], 3),
        (["test"], "python", ["-m", "tools.check", "tests"], 5),
        (["test", "-x"], "python", ["-m", "tools.check", "tests", "-x"], 5),
        (["check"], "python", ["-m", "tools.check"], 5),
        (["check", "static"], "python", ["-m", "tools.check", "static"], 5),
        (["lock"], Path(sys.executable).name, ["-m", "tools.lock"], 0),
    ],
)
def test_each_command_becomes_its_program(
    checkout: Environment,
    recorder: Recorder,
    become: None,
    arguments: list[str],
    program: str,
    expected: list[str],
    steps: int,
) -> None:
    """Arguments are handed on as they are, in an environment with what the command needs."""
    with pytest.raises(BecameError) as became:
        environment.launch(checkout, arguments[0], arguments[1:])

    name, rest, variables = became.value.args
    assert (program, expected) == (name, rest)
    assert steps == len(recorder.commands)
    assert variables["PATH"].startswith(str(checkout.programs) + os.pathsep)


@pytest.mark.parametrize(
    ("arguments", "status"), [([], 2), (["jump"], 2), (["run"], 2), (["-h"], 0)]
)
def test_usage_is_shown_for_what_is_no_command(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    status: int,
) -> None:
    """Asked for, it goes to stdout; as an answer to a mistake, to stderr."""
    monkeypatch.setattr(sys, "argv", ["tools/dev", *arguments])
    with pytest.raises(SystemExit) as ended:
        environment.main()

    assert status == ended.value.code
    shown = capsys.readouterr()
    assert "usage: ./tools/dev" in (shown.err if status else shown.out)


def test_a_failure_is_one_line_and_a_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No traceback for what is not a fault of the launcher."""
    for failure, status, words in (
        (SetUpError("planted"), 1, "planted"),
        (
            PermissionError(13, "Permission denied", ".venv.lock"),
            1,
            "Permission denied: '.venv.lock'",
        ),
        (KeyboardInterrupt(), 130, "interrupted"),
    ):

        def fail(*_: object, failure: BaseException = failure) -> NoReturn:
            raise failure

        monkeypatch.setattr(environment, "launch", fail)
        with pytest.raises(SystemExit) as ended:
            environment.main()
        assert status == ended.value.code
        shown = capsys.readouterr().err
        assert words in shown
        assert 1 == shown.count("\n")


def test_a_program_that_is_nowhere_is_named(checkout: Environment, recorder: Recorder) -> None:
    """A slip in `run` is told by its name."""
    with pytest.raises(SetUpError, match="no program `nowhere-to-be-found`"):
        environment.launch(checkout, "run", ["nowhere-to-be-found"])


def test_an_old_python_is_told_in_one_line() -> None:
    """The launcher parses on it, says what is needed, and goes no further."""
    ast.parse(LAUNCHER.read_text(), feature_version=(3, 4))
    script = f"import sys; sys.version_info = (3, 9, 2); exec(open({str(LAUNCHER)!r}).read())"
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )

    assert (1, "") == (ended.returncode, ended.stdout)
    assert 1 == ended.stderr.count("\n")
    assert "needs Python 3.11 or later" in ended.stderr
    assert "which is 3.9" in ended.stderr


def test_the_launcher_finds_its_checkout_from_anywhere(tmp_path: Path) -> None:
    """It is started by any path, also through a link, from any folder."""
    link = tmp_path / "dev"
    link.symlink_to(LAUNCHER)
    ended = subprocess.run(
        [link, "help"], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert (0, environment.USAGE + "\n", "") == (ended.returncode, ended.stdout, ended.stderr)
