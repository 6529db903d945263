"""The house rules as functions: each takes source files and gives what breaks the rule, by line.

They read syntax trees, so nothing is imported to be judged, and a file that does not run yet is
judged as well. Relies on the standard library alone; `test_house.py` applies them to the tree, and
plants a breach of each to show that it is seen.
"""

from __future__ import annotations

import ast
import graphlib
import io
import re
import tokenize
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ROOT: Final = Path(__file__).resolve().parents[1]

LAYERS: Final = ("consensus", "storage", "node", "cluster", "tools")
"""Each may import itself and what stands before it."""

MAX_FILE_LINES: Final = 500
MAX_FUNCTION_LINES: Final = 60

IMPURE_MODULES: Final = frozenset(
    "asyncio concurrent ctypes fcntl http logging mmap multiprocessing os pathlib queue secrets "
    "select selectors shutil signal socket socketserver ssl subprocess tempfile threading time "
    "urllib httpx lmdb psycopg structlog uvloop zmq".split()
)
"""Clock, disk, network, threads, logging: what the rules of consensus may not reach."""

IMPURE_CALLS: Final = frozenset(
    "breakpoint hash id input open print datetime.now datetime.today datetime.utcnow date.today "
    "uuid.uuid1 uuid.uuid4 uuid.uuid6 uuid.uuid7".split()
)
"""Calls whose answer depends on the moment, the process or the machine."""

UNFINISHED: Final = re.compile(r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "X" + "XX"]) + r")\b")
SUPPRESSION: Final = re.compile(
    r"#\s*(noqa|type:\s*ignore|pragma:\s*no\s+(?:cover|branch)|fmt:\s*\w+)"
    r"(\s*:?\s*\[?(?:[A-Za-z-]+[0-9]*(?:,\s*)?)+\]?)?"
)
MIN_REASON_LETTERS: Final = 5


@dataclass(frozen=True)
class Source:
    """One Python file: where it stands, what it says, and what that means."""

    path: str
    """Relative to the root, with `/`."""
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        """Its syntax tree."""
        return ast.parse(self.text, self.path)

    @property
    def layer(self) -> str:
        """The top folder it is in."""
        return self.path.split("/", 1)[0]

    @property
    def module(self) -> str:
        """The name it is imported by."""
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @property
    def package(self) -> str:
        """The package that its relative imports start from."""
        if self.path.endswith("/__init__.py"):
            return self.module
        return self.module.rpartition(".")[0]

    def at(self, line: int, words: str) -> str:
        """A breach, in the form that editors jump to."""
        return f"{self.path}:{line}: {words}"


@dataclass(frozen=True, slots=True)
class Import:
    """One imported thing: `import module`, or `from module import name`."""

    line: int
    module: str
    name: str | None


def imports_of(source: Source, nodes: Iterable[ast.AST]) -> Iterator[Import]:
    """The imports among some nodes of a file, relative ones resolved."""
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(node.lineno, alias.name, None)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                parents = source.package.split(".")
                base = parents[: len(parents) - node.level + 1]
                module = ".".join([*base, module] if module else base)
            for alias in node.names:
                yield Import(node.lineno, module, alias.name)


def import_direction(source: Source) -> list[str]:
    """From tools over cluster, node and storage to consensus, never back, and never to tests."""
    if source.layer not in LAYERS:
        return []
    forbidden = {*LAYERS[LAYERS.index(source.layer) + 1 :], "tests"}
    return [
        source.at(each.line, f"{source.layer}/ may not import {each.module}")
        for each in imports_of(source, ast.walk(source.tree))
        if each.module.split(".")[0] in forbidden
    ]


def import_circles(sources: Iterable[Source]) -> list[str]:
    """No module imports itself round a corner; imports for the type checker alone do not count."""
    by_module = {source.module: source for source in sources if source.layer in LAYERS}
    graph = {
        module: {
            target
            for each in imports_of(source, nodes_at_import(source.tree))
            for target in [imported_module(each, by_module)]
            if target is not None and target != module
        }
        for module, source in by_module.items()
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return [f"a circle of imports: {' -> '.join(reversed(error.args[1]))}"]
    return []


def imported_module(each: Import, known: dict[str, Source]) -> str | None:
    """The module of ours that an import runs: `from a import b` may mean a.b or a name of a."""
    if each.name is not None and f"{each.module}.{each.name}" in known:
        return f"{each.module}.{each.name}"
    return each.module if each.module in known else None


def nodes_at_import(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when a module is imported."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from nodes_at_import(child)


def pure_core(source: Source) -> list[str]:
    """consensus/ has no clock, disk, network, thread, logger, async or randomness of its own."""
    if source.layer != "consensus":
        return []
    breaches = []
    drawn = any(
        each.module == "random" for each in imports_of(source, nodes_at_import(source.tree))
    )
    for node in ast.walk(source.tree):
        for each in imports_of(source, [node]):
            if each.module.split(".")[0] in IMPURE_MODULES:
                breaches.append(source.at(each.line, f"consensus/ may not import {each.module}"))
            if each.module == "random" and each.name not in {None, "Random"}:
                breaches.append(source.at(each.line, f"unseeded randomness: random.{each.name}"))
        if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith):
            breaches.append(source.at(node.lineno, "consensus/ may not be async"))
        elif isinstance(node, ast.Call):
            breaches += impure_call(source, node)
        elif drawn and isinstance(node, ast.Attribute):
            used = ast.unparse(node)
            if used.startswith("random.") and used != "random.Random":
                breaches.append(source.at(node.lineno, f"unseeded randomness: {used}"))
    return breaches


def impure_call(source: Source, call: ast.Call) -> list[str]:
    """A call whose answer follows neither from the rules nor from its arguments."""
    called = ast.unparse(call.func)
    if ".".join(called.split(".")[-2:]) in IMPURE_CALLS:
        return [source.at(call.lineno, f"consensus/ may not call {called}()")]
    if called in {"Random", "random.Random"} and not call.args:
        return [source.at(call.lineno, "unseeded randomness: Random() without a seed")]
    return []


def opening_docstring(source: Source) -> list[str]:
    """A file says in its first lines what it is for."""
    if ast.get_docstring(source.tree):
        return []
    return [source.at(1, "no docstring: say what the file is for and what it relies on")]


def lengths(source: Source) -> list[str]:
    """A file holds one idea, a function can be seen at once; a test may be a long script."""
    breaches = []
    lines = source.text.count("\n")
    if lines > MAX_FILE_LINES:
        breaches.append(source.at(1, f"{lines} lines; at most {MAX_FILE_LINES} in a file"))
    if source.layer in LAYERS:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    words = f"{node.name} has {length} lines; at most {MAX_FUNCTION_LINES}"
                    breaches.append(source.at(node.lineno, words))
    return breaches


def broad_catches(source: Source) -> list[str]:
    """An error is caught by its name; whoever tidies up after any error raises it again."""
    breaches = []
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ExceptHandler):
            last = node.body[-1]
            if isinstance(last, ast.Raise) and last.exc is None:
                continue
            caught = "everything" if node.type is None else ast.unparse(node.type)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
            caught = ", ".join(ast.unparse(argument) for argument in node.args)
        else:
            continue
        if re.search(r"\b(everything|Exception|BaseException)\b", caught):
            breaches.append(source.at(node.lineno, f"catches {caught}: name the error"))
    return breaches


def bare_suppressions(source: Source) -> list[str]:
    """A check that is switched off names itself, with a reason beside it."""
    breaches = []
    for token in tokenize.generate_tokens(io.StringIO(source.text).readline):
        found = SUPPRESSION.search(token.string) if token.type == tokenize.COMMENT else None
        if found is None:
            continue
        reason = re.sub(r"[^A-Za-z]", "", token.string.replace(found[0], ""))
        if len(reason) < MIN_REASON_LETTERS:
            breaches.append(source.at(token.start[0], f"no reason beside `{found[0].strip()}`"))
    return breaches


def unfinished_work(path: str, text: str) -> list[str]:
    """What is left to do stands in the tracker, not in the tree."""
    return [
        f"{path}:{number}: left unfinished: {line.strip()}"
        for number, line in enumerate(text.splitlines(), start=1)
        if UNFINISHED.search(line)
    ]


def lock_breaches(path: str, text: str) -> list[str]:
    """A lock holds pinned versions with their hashes, and no address to fetch them from."""
    breaches = [
        f"{path}:{number}: an address or an index in a lock: {line.strip()}"
        for number, line in enumerate(text.splitlines(), start=1)
        if re.search(r"://|--(?!hash=sha256:)| @ |index-url", line)
    ]
    for entry in re.split(r"\n(?=\S)", re.sub(r"(?m)^\s*#.*\n", "", text)):
        first = entry.split("\n", 1)[0]
        if not re.match(r"[A-Za-z0-9._-]+==[^ ;]+", first) or "--hash=sha256:" not in entry:
            breaches.append(f"{path}: not pinned with a hash: {first}")
    return breaches
