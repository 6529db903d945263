"""The explorer's page: what it may load, how long it is kept, and that ledger text stays text."""

from __future__ import annotations

import re

import pytest

from node.api.explorer import WEB_FOLDER
from tests.node.api_fixture import Stage, problem_of, stage

__all__ = ["stage"]


def policy_of(header: str) -> dict[str, str]:
    """A content security policy by directive."""
    parts = (part.strip().partition(" ") for part in header.split(";"))
    return {name: value for name, _, value in parts}


@pytest.mark.asyncio
async def test_the_page_may_load_nothing_from_elsewhere(stage: Stage) -> None:
    """Nothing by default, scripts from files of this node alone, no frames and no forms."""
    response = await stage.get("/")
    assert (200, "text/html; charset=utf-8") == (
        response.status_code,
        response.headers["content-type"],
    )
    policy = policy_of(response.headers["content-security-policy"])
    assert "'none'" == policy["default-src"]
    assert {"'self'"} == {policy[name] for name in ("script-src", "style-src", "connect-src")}
    assert {"'none'"} == {policy[name] for name in ("base-uri", "form-action", "frame-ancestors")}
    assert "unsafe" not in response.headers["content-security-policy"]
    assert "no-referrer" == response.headers["referrer-policy"]


@pytest.mark.asyncio
async def test_the_page_and_its_files_fit_the_policy(stage: Stage) -> None:
    """No script, style or handler within the page, and no address of another host."""
    page = (await stage.get("/")).text
    assert re.findall(r"<script(?![^>]*\bsrc=)", page) == []
    assert re.findall(r"<style|\sstyle=|\son[a-z]+=", page) == []
    for path in WEB_FOLDER.iterdir():
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "://" not in text
        assert re.findall(r"(?:src|href)=\"//", text) == []


@pytest.mark.asyncio
async def test_files_are_kept_for_ever_and_the_page_is_not(stage: Stage) -> None:
    """Each file's URL changes with its content, and the page names the files of today."""
    response = await stage.get("/")
    assert "no-cache" == response.headers["cache-control"]
    names = re.findall(r'"(web/[^"]+)"', response.text)
    assert {".css", ".js", ".svg"} == {name[name.rindex(".") :] for name in names}
    for name in names:
        assert re.fullmatch(r"web/[a-z]+\.[0-9a-f]{16}\.[a-z]+", name)
        answer = await stage.get(f"/{name}")
        assert (200, "public, max-age=31536000, immutable") == (
            answer.status_code,
            answer.headers["cache-control"],
        )
        assert "nosniff" == answer.headers["x-content-type-options"]


@pytest.mark.parametrize("name", ["index.html", "explorer.js", "..%2Fserver.py", "%2e%2e%2fx"])
@pytest.mark.asyncio
async def test_there_are_no_other_files(stage: Stage, name: str) -> None:
    """Only what was loaded at the start is served; no path of the disk is ever made of a URL."""
    problem_of(await stage.get(f"/web/{name}"), 404, "not-found")


def test_ledger_text_never_becomes_html() -> None:
    """The script has none of the ways by which text turns into markup or code."""
    script = (WEB_FOLDER / "explorer.js").read_text(encoding="utf-8")
    for way in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "srcdoc",
    ):
        assert way not in script
    assert [] == re.findall(r"new Function|javascript:|setTimeout\(\s*[\"']", script)
