"""Serves the explorer: one page, and the script and style beside it, from `node/web`.

The page's own URL is never cached. The files it names carry a hash of their content in their URL
and are kept for a year: a new release has new names. The page may load and connect to nothing but
this node, and its script is a file, so that no text from the ledger can ever run as code.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from node.api.problems import ProblemError, ProblemKind, make_problem
from node.api.reply import Reply

WEB_FOLDER: Final = Path(__file__).resolve().parent.parent / "web"

_OK: Final = 200
_PAGE: Final = "index.html"
_TYPES: Final = {
    ".css": b"text/css; charset=utf-8",
    ".html": b"text/html; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".svg": b"image/svg+xml",
}
_SHOWN_HASH_DIGITS: Final = 16
_POLICY: Final = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    b" base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_SAFE_HEADERS: Final = (
    (b"content-security-policy", _POLICY),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
)
_NEVER_KEPT: Final = (b"cache-control", b"no-cache")
_KEPT_FOR_A_YEAR: Final = (b"cache-control", b"public, max-age=31536000, immutable")


@dataclass(frozen=True, slots=True)
class Explorer:
    """The page and its files as answers, made once; `files` is keyed by the name in the URL."""

    page: Reply
    files: dict[str, Reply]

    def file(self, name: str) -> Reply:
        """Return a file of the page; raises ProblemError where there is none."""
        reply = self.files.get(name)
        if reply is None:
            raise ProblemError(make_problem(ProblemKind.NOT_FOUND, f"there is no file {name!a}"))
        return reply


def load_explorer(folder: Path = WEB_FOLDER) -> Explorer:
    """Read the page and its files, and give the files their hashed names within the page."""
    page = (folder / _PAGE).read_text(encoding="utf-8")
    files: dict[str, Reply] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix not in _TYPES or path.name == _PAGE:
            continue
        content = path.read_bytes()
        digest = sha256(content).hexdigest()[:_SHOWN_HASH_DIGITS]
        name = f"{path.stem}.{digest}{path.suffix}"
        assert f'"web/{path.name}"' in page, f"{path.name} is not used by the page"
        page = page.replace(f'"web/{path.name}"', f'"web/{name}"')
        headers = (*_SAFE_HEADERS, _KEPT_FOR_A_YEAR)
        files[name] = Reply(_OK, content, _TYPES[path.suffix], headers)
    headers = (*_SAFE_HEADERS, _NEVER_KEPT)
    return Explorer(Reply(_OK, page.encode(), _TYPES[".html"], headers), files)
