"""Commands that speak with client ports, and the key that a client may need there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from node.cli_errors import ExitCode
from tests.node.cli_stage import run, serving
from tests.node.fake_ledger import FakeNode

if TYPE_CHECKING:
    from pathlib import Path

SUBMIT = ("submit", "--user", "alice", "--kind", "deposit", "--payload", '{"amount": 1.50}')


def test_a_client_port_takes_a_transaction_and_tells_its_receipt() -> None:
    """`submit` and `receipt` speak with it; what needs HTTP says so."""
    node = FakeNode()
    with serving(node, by_ports=True) as (url,):
        said = run(*SUBMIT, "--node", url, "--json")
        found = run("receipt", said.document["id"], "--node", url, "--json")
        refused = run("status", "--node", url)
    assert (0, 0, said.document) == (said.code, found.code, found.document["receipt"])
    assert (ExitCode.USAGE, True) == (refused.code, "needs a node's HTTP address" in refused.error)
    assert ExitCode.USAGE == run(*SUBMIT, "--node", "tcp://127.0.0.1:1").code


def test_a_client_s_key_comes_from_a_file_of_its_owner(tmp_path: Path) -> None:
    """One that others can read, or that is none, is refused in words."""
    file = tmp_path / "client.key"
    env = {"BITNEXUS_CLIENT_KEY": str(file)}
    node = FakeNode()
    with serving(node, by_ports=True) as (url,):

        def code() -> int:
            return run(*SUBMIT, "--node", url, env=env).code

        assert ExitCode.CONFIG == code()
        file.write_text("ab" * 32 + "\n", encoding="utf-8")
        file.chmod(0o644)
        assert ExitCode.CONFIG == code()
        file.chmod(0o600)
        assert 0 == code()
        file.write_text("ab", encoding="utf-8")
        assert ExitCode.CONFIG == code()
