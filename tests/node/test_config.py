"""`node.toml`: what is read from it, and which line of error each mistake gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from node.config import (
    ConfigError,
    NodeConfig,
    is_loopback,
    join_address,
    load_config,
    split_address,
    url_of,
)

GOOD = 'name = "node1"\nhttp_port = 8001\n'


def write(folder: Path, text: str) -> Path:
    """Write a `node.toml` into a folder."""
    file = folder / "node.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_the_shortest_file_gives_the_defaults_of_the_design(tmp_path: Path) -> None:
    """Name and port are enough; timing and limits are those of the design."""
    config = load_config(write(tmp_path, GOOD))
    assert config.data_dir == tmp_path
    assert config.genesis_file == tmp_path / "genesis.json"
    assert config.identity_file == tmp_path / "identity.key"
    assert config.chain_dir == tmp_path / "chain"
    assert config.index_dir == tmp_path / "index"
    assert (config.http_host, config.http_port) == ("127.0.0.1", 8001)
    assert (config.peer_bind, config.postgres_dsn) == (None, None)
    timing = (
        config.heartbeat_ms,
        config.election_timeout_min_ms,
        config.election_timeout_max_ms,
    )
    assert timing == (50, 300, 600)
    assert (config.queue_transactions, config.queue_bytes) == (100_000, 64 << 20)


def test_every_key_is_read(tmp_path: Path) -> None:
    """Each key reaches its field; paths are relative to the data folder unless absolute."""
    text = """
    name = "n-2"
    genesis_file = "../genesis.json"
    identity_file = "/etc/bitnexus/identity.key"
    http_host = "0.0.0.0"
    http_port = 9002
    insecure_http = true
    peer_bind = "[::1]:7002"
    client_bind = "192.0.2.1:9002"
    client_keys = ["rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"]
    insecure_clients = true
    heartbeat_ms = 20
    election_timeout_min_ms = 60
    election_timeout_max_ms = 61
    postgres_dsn = "host=/run/postgresql dbname=ledger"
    queue_transactions = 1
    queue_bytes = 65_536
    map_bytes = 1_048_576
    """
    expected = NodeConfig(
        data_dir=tmp_path,
        name="n-2",
        genesis_file=tmp_path / "../genesis.json",
        identity_file=Path("/etc/bitnexus/identity.key"),
        http_host="0.0.0.0",  # noqa: S104 - the case is about it
        http_port=9002,
        insecure_http=True,
        peer_bind="[::1]:7002",
        client_bind="192.0.2.1:9002",
        client_keys=("rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7",),
        insecure_clients=True,
        heartbeat_ms=20,
        election_timeout_min_ms=60,
        election_timeout_max_ms=61,
        postgres_dsn="host=/run/postgresql dbname=ledger",
        queue_transactions=1,
        queue_bytes=65_536,
        map_bytes=1_048_576,
    )
    given = {line.split(" =")[0].strip() for line in text.splitlines() if "=" in line}
    assert given == set(NodeConfig.__struct_fields__) - {"data_dir"}
    assert load_config(write(tmp_path, text)) == expected


def test_a_data_folder_stands_for_the_file_in_it(tmp_path: Path) -> None:
    """The folder may be named instead of the file."""
    file = write(tmp_path, GOOD)
    assert load_config(tmp_path) == load_config(file)


def test_a_relative_folder_becomes_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later change of the working folder moves nothing."""
    write(tmp_path, GOOD)
    monkeypatch.chdir(tmp_path)
    assert load_config(Path()).genesis_file == tmp_path / "genesis.json"


@pytest.mark.parametrize(
    ("text", "key", "detail"),
    [
        ("http_port = 8001", "name", "is missing"),
        ('name = "node1"', "http_port", "is missing"),
        (GOOD + "htpp_host = 1", "htpp_host", "is no key of a node"),
        (GOOD + 'data_dir = "/x"', "data_dir", "is no key: it is the folder"),
        (GOOD + "[node]", "node", "is no key of a node"),
        ('name = "node1"\nhttp_port = "8001"', "http_port", "expected int, got str"),
        ("name = 1\nhttp_port = 8001", "name", "expected str, got int"),
        (GOOD + "insecure_http = 1", "insecure_http", "expected bool, got int"),
        (GOOD + "heartbeat_ms = 50.0", "heartbeat_ms", "expected int, got float"),
        (GOOD + "heartbeat_ms = true", "heartbeat_ms", "expected int, got bool"),
        (GOOD + "genesis_file = 3", "genesis_file", "expected a path"),
        (GOOD + 'genesis_file = ""', "genesis_file", "expected a path"),
        ('name = "Node 1"\nhttp_port = 8001', "name", "1 to 63 of a-z"),
        (f'name = "{"n" * 64}"\nhttp_port = 8001', "name", "1 to 63 of a-z"),
        ('name = "node1"\nhttp_port = -1', "http_port", "0 to 65535"),
        ('name = "node1"\nhttp_port = 65536', "http_port", "0 to 65535"),
        (GOOD + 'http_host = ""', "http_host", "is empty"),
        (GOOD + 'http_host = "0.0.0.0"', "http_host", "needs insecure_http = true"),
        (GOOD + 'http_host = "ledger.example"', "http_host", "needs insecure_http = true"),
        (GOOD + 'peer_bind = "7001"', "peer_bind", "is not host:port"),
        (GOOD + 'peer_bind = "127.0.0.1:0"', "peer_bind", "1 to 65535"),
        (GOOD + 'peer_bind = "::1:7001"', "peer_bind", "brackets"),
        (GOOD + 'client_bind = "9001"', "client_bind", "is not host:port"),
        (GOOD + 'client_bind = "192.0.2.1:9001"', "client_bind", "needs client_keys, or insecure_"),
        (GOOD + 'client_bind = "example:1"\nclient_keys = []', "client_bind", "needs client_keys"),
        (GOOD + 'client_keys = ["abc"]', "client_keys", "'abc' is no key"),
        (GOOD + 'client_keys = "abc"', "client_keys", "expected array, got str"),
        (GOOD + "heartbeat_ms = 4", "heartbeat_ms", "at least 5"),
        (GOOD + "heartbeat_ms = 101", "election_timeout_min_ms", "3 heartbeats of 101 ms"),
        (GOOD + "election_timeout_min_ms = 149", "election_timeout_min_ms", "3 heartbeats"),
        (GOOD + "election_timeout_max_ms = 300", "election_timeout_max_ms", "must be above"),
        (GOOD + "election_timeout_max_ms = 600001", "election_timeout_max_ms", "at most 600000"),
        (GOOD + 'postgres_dsn = " "', "postgres_dsn", "is empty"),
        (GOOD + "queue_transactions = 0", "queue_transactions", "at least 1"),
        (GOOD + "queue_bytes = 65535", "queue_bytes", "one transaction: 65536"),
        (GOOD + "map_bytes = 1048575", "map_bytes", "at least 1048576"),
    ],
)
def test_a_mistake_is_named_by_file_and_key(
    tmp_path: Path, text: str, key: str, detail: str
) -> None:
    """Each mistake is one line: the file, the key, and what is wrong with it."""
    file = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert (caught.value.file, caught.value.key) == (file, key)
    assert detail in caught.value.detail
    assert str(caught.value) == f"{file}: {key}: {caught.value.detail}"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "detail"),
    [(b"name = ", "is not TOML"), (b'name = "\xff"', "is not UTF-8 text")],
)
def test_a_file_that_is_no_toml_is_named(tmp_path: Path, content: bytes, detail: str) -> None:
    """What cannot be parsed at all names the file."""
    file = tmp_path / "node.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=detail) as caught:
        load_config(file)
    assert caught.value.file == file


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    """A folder without `node.toml` is no node's folder."""
    with pytest.raises(ConfigError, match="there is no such file") as caught:
        load_config(tmp_path / "node.toml")
    assert caught.value.file == tmp_path / "node.toml"


def test_a_folder_in_the_files_place_is_named(tmp_path: Path) -> None:
    """Any other reason why a file cannot be read is given in the system's words."""
    (tmp_path / "node.toml").mkdir()
    with pytest.raises(ConfigError, match="Is a directory"):
        load_config(tmp_path)


def test_a_configuration_made_in_python_is_checked_too(tmp_path: Path) -> None:
    """An embedded node gets the same checks, without a file's name."""
    with pytest.raises(ConfigError, match=r"^http_host: 192\.0\.2\.1 is not loopback") as caught:
        NodeConfig(data_dir=tmp_path, name="n", http_port=1, http_host="192.0.2.1")
    assert caught.value.file is None


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),  # noqa: S104 - the case is about it
        ("::", False),
        ("10.0.0.1", False),
        ("localhost.example", False),
    ],
)
def test_only_this_machines_addresses_are_loopback(host: str, expected: bool) -> None:
    """A name that merely looks local is not trusted to be."""
    assert is_loopback(host) is expected


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ledger.example:65535", "[::1]:7001"])
def test_an_address_splits_and_joins(address: str) -> None:
    """Joining is the inverse of splitting."""
    assert join_address(*split_address(address)) == address


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:8001", "http://127.0.0.1:8001"),
        ("ledger.example:80", "http://ledger.example:80"),
        ("[::1]:8001", "http://[::1]:8001"),
        ("0.0.0.0:8001", "http://127.0.0.1:8001"),
        ("[::]:8001", "http://[::1]:8001"),
    ],
)
def test_an_address_as_url_works_from_this_machine(address: str, expected: str) -> None:
    """What listens on every address is reached by loopback."""
    assert url_of(address) == expected


@pytest.mark.parametrize("address", ["", ":", "host", "host:", ":1", "host:x", "host:²", "h:65536"])
def test_what_is_no_address_is_refused(address: str) -> None:
    """Neither part may be empty, and a port is plain digits."""
    with pytest.raises(ValueError, match=r"host:port|1 to 65535"):
        split_address(address)


@pytest.mark.parametrize(
    "more",
    [
        {"client_bind": "127.0.0.1:9001"},
        {"client_bind": "localhost:9001"},
        {"client_bind": "192.0.2.1:9001", "client_keys": ("ab" * 32,)},
        {"client_bind": "192.0.2.1:9001", "insecure_clients": True},
        {"client_keys": ("ab" * 32,)},
    ],
)
def test_a_client_port_is_guarded_where_others_reach_it(
    tmp_path: Path, more: dict[str, Any]
) -> None:
    """By keys, unless the operator says otherwise; on loopback everybody is let in."""
    config = NodeConfig(data_dir=tmp_path, name="n", http_port=1, **more)
    assert more == {key: getattr(config, key) for key in more}
