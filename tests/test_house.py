"""The rules of the house, on every file of the tree: structure, purity, size, what is locked.

Each rule is also shown a planted breach, so that it is known to see. Relies on `house_rules.py`
beside it, and on the environment `./tools/dev test` makes for what is installed.
"""

from __future__ import annotations

import ast
import fnmatch
import importlib.metadata
import re
import sys
import tomllib
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests import house_rules
from tests.house_rules import LAYERS, ROOT, Source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

TOP_LEVEL = frozenset(
    ".ci .git .gitattributes .gitignore ARCHITECTURE.md CHANGELOG.md LICENSE README.md cluster "
    "consensus node pyproject.toml requirements-control.lock requirements-test.lock "
    "requirements.lock storage tests tools".split()
)
"""A new entry is a decision: it goes here, or into .gitignore."""

LOCKS = {
    "requirements.lock": ("dependencies", "build"),
    "requirements-test.lock": ("test",),
    "requirements-control.lock": ("control",),
}
"""Each lock, and the lists of pyproject.toml that it answers."""

TEXT_SUFFIXES = frozenset({".py", ".md", ".sql", ".toml", ".js", ".css", ".html", ""})
RULES: list[Callable[[Source], list[str]]] = [
    house_rules.import_direction,
    house_rules.pure_core,
    house_rules.opening_docstring,
    house_rules.lengths,
    house_rules.broad_catches,
    house_rules.bare_suppressions,
]


def expect_none(breaches: list[str]) -> None:
    """Fail with nothing but the breaches, one on each line."""
    if breaches:
        pytest.fail("\n".join([f"{len(breaches)} in all", *breaches]), pytrace=False)


@cache
def ignored_patterns() -> tuple[str, ...]:
    """What .gitignore names."""
    lines = (ROOT / ".gitignore").read_text().splitlines()
    return tuple(line.strip("/") for line in lines if line and not line.startswith("#"))


def ignored(name: str) -> bool:
    """Whether .gitignore names an entry."""
    return any(fnmatch.fnmatch(name, pattern) for pattern in ignored_patterns())


def files_under(folder: Path) -> Iterator[Path]:
    """The files of the project, without what is generated or other people's."""
    for entry in sorted(folder.iterdir()):
        if ignored(entry.name) or entry.name in {".git", "vendor"}:
            continue
        if entry.is_dir():
            yield from files_under(entry)
        else:
            yield entry


@cache
def sources() -> tuple[Source, ...]:
    """Every Python file of the project, the launcher included."""
    return tuple(
        Source(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
        for path in files_under(ROOT)
        if path.suffix == ".py" or path == ROOT / "tools" / "dev"
    )


@cache
def requirements(group: str) -> tuple[Requirement, ...]:
    """One list of requirements of pyproject.toml: the dependencies, or a group."""
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    lists = {"dependencies": project["project"]["dependencies"], **project["dependency-groups"]}
    return tuple(Requirement(each) for each in lists[group])


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_file_keeps_the_rule(rule: Callable[[Source], list[str]]) -> None:
    """No file of the tree breaks a rule that can be seen in it alone."""
    expect_none([breach for source in sources() for breach in rule(source)])


def test_no_circle_of_imports() -> None:
    """The modules can be put in an order in which each imports only what stands before it."""
    expect_none(house_rules.import_circles(sources()))


def test_nothing_is_left_unfinished() -> None:
    """No text of the project holds a mark for work that somebody meant to do later."""
    texts = [path for path in files_under(ROOT) if path.suffix in TEXT_SUFFIXES]
    expect_none(
        [
            breach
            for path in texts
            for breach in house_rules.unfinished_work(
                path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
            )
        ]
    )


def test_the_top_level_holds_what_it_should() -> None:
    """Nothing lies about in the root that is neither part of the project nor ignored."""
    unexpected = {entry.name for entry in ROOT.iterdir() if not ignored(entry.name)} - TOP_LEVEL
    expect_none([f"{name}: neither in TOP_LEVEL nor in .gitignore" for name in sorted(unexpected)])


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_holds_versions_and_hashes_alone(lock: str) -> None:
    """Who installs brings their own index: none is recorded, and no hash is missing."""
    expect_none(house_rules.lock_breaches(lock, (ROOT / lock).read_text()))


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_answers_pyproject(lock: str) -> None:
    """Every requirement is locked, at a version it allows: `./tools/dev lock` was not forgotten."""
    pinned = dict(re.findall(r"(?m)^([A-Za-z0-9._-]+)==([^ ;]+)", (ROOT / lock).read_text()))
    expect_none(
        [
            f"{lock}: {wanted} is locked as {pinned.get(canonicalize_name(wanted.name))}"
            for group in LOCKS[lock]
            for wanted in requirements(group)
            if not wanted.specifier.contains(pinned.get(canonicalize_name(wanted.name), "0"))
        ]
    )


def test_what_is_imported_is_required() -> None:
    """No file leans on a library that is there only because another library brought it."""
    known = importlib.metadata.packages_distributions()
    declared = {canonicalize_name(each.name) for each in requirements("dependencies")}
    for_tests = declared | {
        canonicalize_name(each.name)
        for group in ("test", "control")
        for each in requirements(group)
    }
    breaches = []
    for source in sources():
        allowed = for_tests if source.layer in {"tests", "tools"} else declared
        for each in house_rules.imports_of(source, ast.walk(source.tree)):
            top = each.module.split(".")[0]
            if top in sys.stdlib_module_names or top in {*LAYERS, "tests"}:
                continue
            if not allowed.intersection(map(canonicalize_name, known.get(top, []))):
                breaches.append(source.at(each.line, f"{top} is not among the requirements"))
    expect_none(breaches)


PLANTED = [
    ("node/a.py", "import cluster.local", "node/ may not import cluster.local"),
    ("storage/a.py", "def f():\n    from node import config", "storage/ may not import node"),
    ("cluster/a.py", "from tools.sample import x", "cluster/ may not import tools.sample"),
    ("consensus/a/b.py", "from ..storage import x", None),
    ("node/a.py", "import tests.house_rules", "node/ may not import tests.house_rules"),
    ("node/a.py", "from storage import chain\nfrom consensus import block", None),
    ("consensus/a.py", "import time", "consensus/ may not import time"),
    ("consensus/a.py", "from os import path", "consensus/ may not import os"),
    ("consensus/a.py", "if TYPE_CHECKING:\n    import asyncio", "may not import asyncio"),
    ("consensus/a.py", "import random\nx = random.random()", "unseeded randomness: random.random"),
    ("consensus/a.py", "def f(random):\n    return random.getrandbits(9)", None),
    ("consensus/a.py", "from random import choice", "unseeded randomness: random.choice"),
    ("consensus/a.py", "from random import Random\nx = Random()", "Random() without a seed"),
    ("consensus/a.py", "from random import Random\nx = Random(7)", None),
    ("consensus/a.py", "import datetime\nx = datetime.datetime.now()", "datetime.datetime.now()"),
    ("consensus/a.py", "x = datetime.now(UTC)", "may not call datetime.now()"),
    ("consensus/a.py", "x = hash(y)", "may not call hash()"),
    ("consensus/a.py", "x = block.hash", None),
    ("consensus/a.py", "async def f(): pass", "may not be async"),
    ("node/a.py", "import time\nx = open(y)", None),
    ("node/a.py", "try: f()\nexcept Exception: pass", "catches Exception"),
    ("tests/a.py", "try: f()\nexcept (OSError, BaseException): pass", "BaseException"),
    ("node/a.py", "try: f()\nexcept BaseException:\n    g()\n    raise", None),
    ("node/a.py", "try: f()\nexcept Exception as e:\n    raise E from e", "catches Exception"),
    ("tests/a.py", "try: f()\nexcept: pass", "catches everything"),
    ("node/a.py", "with contextlib.suppress(Exception): f()", "catches Exception"),
    ("node/a.py", "try: f()\nexcept ExceptionGroup: pass", None),
    ("node/a.py", "x = 1  # noqa: E501", "no reason beside `# noqa: E501`"),
    ("node/a.py", "x = 1  # noqa", "no reason beside `# noqa`"),
    ("node/a.py", "x = 1  # type: ignore[arg-type]", "no reason beside"),
    ("node/a.py", "x = 1  # type: ignore[arg-type]  # its stub forgets bytes", None),
    ("node/a.py", "x = 1  # noqa: S603, S607 - our own program", None),
    ("node/a.py", "def f():\n" + "    x = 1\n" * 60, "f has 61 lines; at most 60"),
    ("node/a.py", "def f():\n" + "    x = 1\n" * 59, None),
    ("tests/a.py", "def f():\n" + "    x = 1\n" * 60, None),
    ("tests/a.py", "x = 1\n" * 501, "lines; at most 500 in a file"),
]


@pytest.mark.parametrize(("path", "code", "expected"), PLANTED)
def test_a_planted_breach_is_seen(path: str, code: str, expected: str | None) -> None:
    """Each rule sees what it forbids, and only that."""
    source = Source(path, f'"""About."""\n{code}\n')
    breaches = [breach for rule in RULES for breach in rule(source)]

    if expected is None:
        assert [] == breaches
    else:
        assert any(expected in breach for breach in breaches), breaches


def test_a_missing_docstring_is_seen() -> None:
    """An empty file is no exception: it says at least what its package is for."""
    assert house_rules.opening_docstring(Source("node/__init__.py", "")) != []


def test_a_planted_circle_is_seen() -> None:
    """A circle is named in full; an import for the type checker closes none."""
    first = Source("node/a.py", "from node import b")
    assert [] == house_rules.import_circles([first, Source("node/b.py", "import node")])
    typed = Source("node/b.py", "if TYPE_CHECKING:\n    from node import a")
    assert [] == house_rules.import_circles([first, typed])

    (breach,) = house_rules.import_circles([first, Source("node/b.py", "import node.a")])
    assert "node.a" in breach
    assert "node.b" in breach


def test_a_planted_mark_is_seen() -> None:
    """The mark is seen in any text, with its line."""
    mark = "TO" + "DO"

    assert [f"a.md:2: left unfinished: {mark}: more"] == house_rules.unfinished_work(
        "a.md", f"fine\n{mark}: more\n"
    )


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a==1 \\\n    --hash=sha256:00", []),
        ("a==1 ; sys_platform == 'linux' \\\n    --hash=sha256:00\n    # via b", []),
        ("a==1", ["not pinned"]),
        ("a>=1 \\\n    --hash=sha256:00", ["not pinned"]),
        ("--index-url x\na==1 \\\n    --hash=sha256:00", ["an address", "not pinned"]),
        ("a @ file://x \\\n    --hash=sha256:00", ["an address", "not pinned"]),
    ],
)
def test_a_planted_address_in_a_lock_is_seen(line: str, expected: list[str]) -> None:
    """A lock with an address, or with an entry that is not pinned by a hash, is refused."""
    breaches = house_rules.lock_breaches("x.lock", f"# written by a tool\n{line}\n")

    assert len(expected) == len(breaches), breaches
    assert all(words in breach for words, breach in zip(expected, breaches, strict=True))
