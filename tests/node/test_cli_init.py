"""`node init`, `node genesis` and `node run`: how a cluster begins, and what keeps it from it."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from consensus.membership import genesis_block, load_genesis
from node.cli_errors import ExitCode
from node.cli_run import exit_code_of
from node.config import load_config
from node.folder_lock import FolderLock
from node.identity import load_identity
from storage.errors import (
    DamagedStoreError,
    FormatVersionError,
    StorageFailedError,
    WrongClusterError,
)
from tests.node.cli_stage import DEADLINE_S, Result, run

ROOT = Path(__file__).parents[2]
PORTS = {"--peer": "127.0.0.1:7001", "--http": "127.0.0.1:8001"}


def init(folder: Path, name: str = "n1", **changes: str) -> Result:
    """Run `node init` with good values, but for the changes."""
    options = {"--data-dir": str(folder), "--name": name} | PORTS
    options |= {f"--{key}": value for key, value in changes.items()}
    return run("node", "init", *(part for pair in options.items() for part in pair))


def genesis(folder: Path, *members: Path) -> Result:
    """Run `node genesis`."""
    return run("node", "genesis", "--cluster", "demo", *members, "-o", folder / "genesis.json")


def make_members(folder: Path, count: int = 2) -> list[Path]:
    """Make nodes that differ in everything, and return their member files."""
    for number in range(1, count + 1):
        result = init(
            folder / f"n{number}",
            f"n{number}",
            peer=f"127.0.0.1:{7000 + number}",
            http=f"127.0.0.1:{8000 + number}",
        )
        assert result.code == 0
    return [folder / f"n{number}" / "member.json" for number in range(1, count + 1)]


def test_init_makes_a_folder_for_its_owner_alone(tmp_path: Path) -> None:
    """Key, member file and configuration fit together; the text says what comes next."""
    folder = tmp_path / "deep" / "n1"
    result = init(folder)
    assert (result.code, result.stderr) == (0, "")
    assert "bitnexus node genesis" in result.stdout
    identity = load_identity(folder / "identity.key")
    assert json.loads((folder / "member.json").read_text()) == {
        "name": "n1",
        "public_key": identity.public_key.hex(),
        "peer": "127.0.0.1:7001",
        "http": "127.0.0.1:8001",
    }
    config = load_config(folder)
    assert (config.name, config.http_host, config.http_port) == ("n1", "127.0.0.1", 8001)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "identity.key").stat().st_mode) == 0o600


def test_init_opens_a_client_port_where_it_is_asked_to(tmp_path: Path) -> None:
    """For everybody on loopback, for known keys or by the operator's word elsewhere."""
    key = "ab" * 32
    assert 0 == init(tmp_path / "n1", clients="127.0.0.1:9001").code
    assert "127.0.0.1:9001" == load_config(tmp_path / "n1").client_bind
    reachable = {"clients": "192.0.2.1:9001"}
    refused = init(tmp_path / "n2", **reachable)
    assert ExitCode.INSECURE_CLIENTS == refused.code
    assert "needs client_keys" in refused.error
    assert not (tmp_path / "n2").exists()
    assert 0 == init(tmp_path / "n2", **reachable, **{"client-key": key}).code
    assert (key,) == load_config(tmp_path / "n2").client_keys
    options = (
        "--data-dir",
        tmp_path / "n3",
        "--name",
        "n3",
        *(p for kv in PORTS.items() for p in kv),
    )
    more = ("--clients", "192.0.2.1:9001", "--insecure-clients")
    assert 0 == run("node", "init", *options, *more).code
    assert load_config(tmp_path / "n3").insecure_clients
    assert ExitCode.USAGE == init(tmp_path / "n4", **{"client-key": key}).code
    assert ExitCode.USAGE == init(tmp_path / "n4", **reachable, **{"client-key": "x"}).code


def test_init_tells_machines_what_it_made(tmp_path: Path) -> None:
    """With --json stdout is one object."""
    options = (
        "--data-dir",
        tmp_path / "n",
        "--name",
        "n",
        *(p for kv in PORTS.items() for p in kv),
    )
    document = run("node", "init", *options, "--json").document
    assert document["public_key"] == load_identity(tmp_path / "n" / "identity.key").public_key.hex()
    assert document["member_file"] == str(tmp_path / "n" / "member.json")


def test_init_keeps_options_in_the_configuration(tmp_path: Path) -> None:
    """An address that others reach is allowed when asked for; a DSN is kept as it is."""
    options = {
        "--data-dir": str(tmp_path / "n"),
        "--name": "n",
        "--peer": "10.0.0.1:7001",
        "--http": "[fd00::1]:8001",
        "--postgres": "host='a b' dbname=ä",
    }
    result = run("node", "init", *(p for kv in options.items() for p in kv), "--insecure-http")
    assert result.code == 0
    config = load_config(tmp_path / "n")
    assert (config.http_host, config.insecure_http) == ("fd00::1", True)
    assert config.postgres_dsn == "host='a b' dbname=ä"


@pytest.mark.parametrize("name", ["identity.key", "node.toml", "member.json"])
def test_init_overwrites_nothing(tmp_path: Path, name: str) -> None:
    """A key that is overwritten is a member that is lost."""
    (tmp_path / name).write_text("precious")
    assert init(tmp_path).code == ExitCode.ALREADY_THERE
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(name, "precious")]


def test_init_leaves_foreign_folders_alone(tmp_path: Path) -> None:
    """A folder with other content is not a node's; one with the genesis alone may become one."""
    (tmp_path / "letters").touch()
    assert init(tmp_path).code == ExitCode.FOLDER_FOREIGN
    assert [file.name for file in tmp_path.iterdir()] == ["letters"]
    (tmp_path / "letters").rename(tmp_path / "genesis.json")
    assert init(tmp_path).code == 0


def test_init_in_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    """The system's word for it is in the line."""
    (tmp_path / "file").touch()
    result = init(tmp_path / "file" / "n1")
    assert result.code == ExitCode.FOLDER_UNWRITABLE
    assert "not a directory" in result.error


@pytest.mark.parametrize(
    ("key", "value", "code", "words"),
    [
        ("name", "N 1", ExitCode.USAGE, "name: must be 1 to 63"),
        ("peer", "7001", ExitCode.USAGE, "'7001' is not host:port"),
        ("peer", "a b:7001", ExitCode.USAGE, "--peer: must be host:port"),
        ("http", "127.0.0.1:0", ExitCode.USAGE, "the port is not 1 to 65535"),
        ("http", "10.0.0.1:8001", ExitCode.INSECURE_HTTP, "plain HTTP"),
        ("postgres", " ", ExitCode.USAGE, "postgres_dsn: is empty"),
    ],
)
def test_init_refuses_a_wrong_value_before_it_makes_anything(
    tmp_path: Path, key: str, value: str, code: ExitCode, words: str
) -> None:
    """Each is named by its option or key."""
    result = init(tmp_path / "n1", **{key: value})
    assert result.code == code
    assert words in result.error
    assert not (tmp_path / "n1").exists()


def test_genesis_is_made_of_member_files(tmp_path: Path) -> None:
    """The file begins the cluster whose id is told; the order of the members does not matter."""
    members = make_members(tmp_path)
    result = genesis(tmp_path, *reversed(members))
    assert (result.code, result.stderr) == (0, "")
    made = load_genesis((tmp_path / "genesis.json").read_text())
    assert [member.name for member in made.members] == ["n1", "n2"]
    assert genesis_block(made).hash.hex() in result.stdout


def test_genesis_tells_machines_the_cluster_id(tmp_path: Path) -> None:
    """With --json stdout is one object."""
    members = make_members(tmp_path)
    output = tmp_path / "genesis.json"
    result = run("node", "genesis", "--cluster", "demo", *members, "-o", output, "--json")
    made = genesis_block(load_genesis(output.read_text()))
    assert result.document == {
        "cluster_id": made.hash.hex(),
        "file": str(output),
        "members": ["n1", "n2"],
    }


def test_genesis_overwrites_nothing(tmp_path: Path) -> None:
    """A second genesis would be another cluster."""
    members = make_members(tmp_path)
    (tmp_path / "genesis.json").write_text("precious")
    assert genesis(tmp_path, *members).code == ExitCode.ALREADY_THERE
    assert (tmp_path / "genesis.json").read_text() == "precious"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"public_key": "00" * 31}, "public_key: must be 64 lower-case hex digits"),
        ({"public_key": "02" + "00" * 31}, "public_key: is not an Ed25519 public key"),
        ({"name": "n1"}, "name: is also that of"),
        ({"peer": "127.0.0.1:7001"}, "peer: is also that of"),
        ({"http": "127.0.0.1:8001"}, "http: is also that of"),
        ({"peer": "x"}, "peer: must be host:port"),
        ({"extra": 1}, "Object contains unknown field"),
        ({"http": 1}, "http: Expected `str`"),
    ],
)
def test_genesis_names_the_member_file_at_fault(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    """Not the place in a document that nobody has seen."""
    members = make_members(tmp_path)
    document = json.loads(members[1].read_text())
    members[1].write_text(json.dumps(document | change))
    result = genesis(tmp_path, *reversed(members))
    assert result.code == ExitCode.INPUT
    # Of two that are the same, either is at fault.
    named = members if "also" in words else members[1:]
    assert any(result.error.startswith(f"{file}: {words}") for file in named)
    assert not (tmp_path / "genesis.json").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "is not JSON"), ("[]", "is no member file"), (None, "No such file")],
)
def test_genesis_names_a_file_that_is_no_member(
    tmp_path: Path, text: str | None, words: str
) -> None:
    """What cannot be read at all is named, too."""
    file = tmp_path / "member.json"
    if text is not None:
        file.write_text(text)
    result = genesis(tmp_path, file)
    assert result.code == ExitCode.INPUT
    assert result.error.startswith(f"{file}: ")
    assert words in result.error


def test_genesis_checks_the_clusters_name(tmp_path: Path) -> None:
    """It is an option, and named as one."""
    members = make_members(tmp_path, 1)
    result = run("node", "genesis", "--cluster", "A b", *members, "-o", tmp_path / "g.json")
    assert (result.code, result.error) == (
        ExitCode.USAGE,
        "--cluster: must be 1 to 63 of a-z, 0-9 and -",
    )


def test_genesis_has_at_most_nine_members(tmp_path: Path) -> None:
    """As the core says."""
    members = make_members(tmp_path, 1) * 10
    result = genesis(tmp_path, *members)
    assert result.code == ExitCode.USAGE
    assert "must be 1 to 9 members, not 10" in result.error


def test_run_needs_a_configuration(tmp_path: Path) -> None:
    """The file that is missing is named; machines are told the same."""
    result = run("node", "run", "--data-dir", tmp_path, "--json")
    assert result.code == ExitCode.CONFIG
    assert result.error == f"{tmp_path / 'node.toml'}: there is no such file"
    assert result.document == {"exit_code": 3, "error": result.error}


def run_process(*arguments: object, optimise: bool = False) -> Result:
    """Run the node as the supervisor does, until it ends by itself."""
    flags = ["-O"] if optimise else []
    done = subprocess.run(
        [sys.executable, *flags, "-m", "node", *(str(argument) for argument in arguments)],
        cwd=ROOT,
        capture_output=True,
        check=False,
        text=True,
        timeout=DEADLINE_S,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def test_run_refuses_to_start_without_assertions(tmp_path: Path) -> None:
    """Under -O the ledger would be unguarded."""
    result = run_process("--data-dir", tmp_path, optimise=True)
    assert result.code == ExitCode.OPTIMISED
    assert "start it without -O" in result.error


def test_run_needs_the_genesis(tmp_path: Path) -> None:
    """A node that was made but not told its cluster does not start."""
    init(tmp_path / "n1")
    result = run_process("--data-dir", tmp_path / "n1")
    assert (result.code, result.stdout) == (ExitCode.CONFIG, "")
    assert "genesis.json: No such file" in result.error


def test_run_refuses_a_folder_in_use(tmp_path: Path) -> None:
    """The line names the process that has it."""
    members = make_members(tmp_path, 1)
    genesis(tmp_path / "n1", *members)
    with FolderLock(tmp_path / "n1" / "lock"):
        result = run_process("--data-dir", tmp_path / "n1")
    assert result.code == ExitCode.FOLDER_IN_USE
    assert result.error == f"{tmp_path / 'n1'} is in use by process {os.getpid()}"


def test_every_way_to_fail_has_its_code(tmp_path: Path) -> None:
    """A supervisor must be able to tell what will not get better."""
    errors = [
        WrongClusterError(tmp_path, found=bytes(32), expected=bytes(32)),
        FormatVersionError(tmp_path, found="2", expected="1"),
        DamagedStoreError(tmp_path, "garbage"),
        StorageFailedError(tmp_path, OSError("input/output error")),
        PermissionError(13, "Permission denied"),
        AssertionError("a broken invariant"),
    ]
    assert [exit_code_of(error) for error in errors] == [
        ExitCode.OTHER_CLUSTER,
        ExitCode.FOLDER_FOREIGN,
        ExitCode.CORRUPT,
        ExitCode.DISK_FAILED,
        ExitCode.FOLDER_UNWRITABLE,
        ExitCode.FAILED,
    ]
