"""The data folder of a local cluster: what is made, what is found again, what is refused."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from cluster import folder as folder_module
from cluster.errors import ClusterError
from cluster.folder import FREE_PORT, Shape, check_ports, open_folder
from consensus.membership import load_genesis
from node.cli_errors import ExitCode
from node.config import load_config, split_address
from node.identity import load_identity

ANY_PORTS = Shape(http_port=FREE_PORT)


def make(path: Path, shape: Shape = ANY_PORTS) -> dict[str, bytes]:
    """Make or open a cluster's folder, let go of it, and return the keys of its members."""
    folder = open_folder(path, shape)
    folder.close()
    return {member.name: member.public_key for member in folder.members}


def refusal(path: Path, shape: Shape = ANY_PORTS) -> ClusterError:
    """The error of opening a folder, which is one line."""
    with pytest.raises(ClusterError) as caught:
        open_folder(path, shape)
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_new_folder_has_everything_three_nodes_need(tmp_path: Path) -> None:
    """One folder for each node with its key and the genesis that names it; distinct ports."""
    path = tmp_path / "deep" / "data"
    folder = open_folder(path, ANY_PORTS)
    folder.close()
    names = [member.name for member in folder.members]
    assert names == ["node1", "node2", "node3"]
    for member in folder.members:
        identity = load_identity(path / member.name / "identity.key")
        assert identity.public_key == member.public_key
        genesis = load_genesis((path / member.name / "genesis.json").read_text())
        assert genesis == folder.genesis
    addresses = [m.http for m in folder.members] + [m.peer for m in folder.members]
    assert len(set(addresses)) == 6
    assert {split_address(address)[0] for address in addresses} == {"127.0.0.1"}
    entries = {"cluster.toml", "genesis.json", "lock", *names}
    assert {entry.name for entry in path.iterdir()} == entries


def test_what_is_made_is_for_its_owner_alone(tmp_path: Path) -> None:
    """Folders that hold keys are 0700, whatever the umask allows."""
    before = os.umask(0)
    try:
        make(tmp_path / "data")
    finally:
        os.umask(before)
    modes = {
        name: stat.S_IMODE((tmp_path / name).stat().st_mode)
        for name in ("data", "data/node1", "data/node1/identity.key")
    }
    assert modes == {"data": 0o700, "data/node1": 0o700, "data/node1/identity.key": 0o600}


def test_an_empty_folder_is_used_and_keeps_its_mode(tmp_path: Path) -> None:
    """The mode of a folder that was there is the user's affair."""
    tmp_path.chmod(0o755)
    make(tmp_path)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


def test_the_same_folder_is_the_same_cluster(tmp_path: Path) -> None:
    """Opening again changes neither keys nor addresses, with the shape repeated or left out."""
    first = open_folder(tmp_path, Shape(nodes=2, http_port=FREE_PORT))
    first.close()
    for shape in (Shape(), Shape(nodes=2), Shape(http_port=FREE_PORT, http_host="127.0.0.1")):
        again = open_folder(tmp_path, shape)
        again.close()
        assert again.genesis == first.genesis


def test_http_ports_count_up_from_the_one_asked_for(tmp_path: Path) -> None:
    """Node n listens on P + n - 1."""
    port = free_run_of_ports(2)
    folder = open_folder(tmp_path, Shape(nodes=2, http_port=port))
    folder.close()
    expected = [f"127.0.0.1:{port}", f"127.0.0.1:{port + 1}"]
    assert [member.http for member in folder.members] == expected


def free_run_of_ports(count: int) -> int:
    """The first of `count` neighbouring ports that are free."""
    for _ in range(100):
        first = folder_module._free_ports("127.0.0.1", 1, taken=set())[0]
        try:
            for port in range(first, first + count):
                folder_module._bind_once("127.0.0.1", port)
        except OSError:
            continue
        return first
    raise AssertionError("no free ports")


def test_node_files_carry_the_settings(tmp_path: Path) -> None:
    """`node.toml` holds the addresses of the genesis, shared settings and the DSN as it is."""
    folder = open_folder(tmp_path, ANY_PORTS)
    dsn = "host='/tmp/a b' user=\"x\" dbname=ä😀\x7f"
    folder.write_node_files({"heartbeat_ms": 20}, postgres_dsn=dsn)
    folder.close()
    for member in folder.members:
        config = load_config(tmp_path / member.name)
        assert (config.name, config.heartbeat_ms) == (member.name, 20)
        assert (config.http_host, config.http_port) == split_address(member.http)
        assert config.postgres_dsn == dsn


def test_client_ports_stay_where_they_were(tmp_path: Path) -> None:
    """Free ones are kept from run to run while they are free; others are taken as asked."""
    folder = open_folder(tmp_path, ANY_PORTS)
    first = folder.client_binds(None)
    folder.write_node_files({}, postgres_dsn=None, client_binds=first)
    assert first == folder.client_binds(None) == folder.client_binds(FREE_PORT)
    assert first == [load_config(tmp_path / one.name).client_bind for one in folder.members]
    with socket.socket() as taken:
        taken.bind(split_address(first[1]))
        taken.listen()
        assert first[1] not in folder.client_binds(None)
        with pytest.raises(ClusterError, match=f"client port of node1, {first[1]}") as caught:
            folder.client_binds(split_address(first[1])[1])
        assert ExitCode.PORT_IN_USE == caught.value.code
    with pytest.raises(ClusterError, match="not within 1 to 65535"):
        folder.client_binds(65_534)
    folder.close()


@pytest.mark.parametrize(
    ("shape", "option"),
    [
        (Shape(nodes=5), "--nodes 2"),
        (Shape(http_port=8001), "--http-port 0"),
        (Shape(http_host="::1"), "--http-host 127.0.0.1"),
    ],
)
def test_another_shape_is_refused(tmp_path: Path, shape: Shape, option: str) -> None:
    """The genesis fixes number and addresses of the nodes: the error says what they are."""
    make(tmp_path, Shape(nodes=2, http_port=FREE_PORT))
    error = refusal(tmp_path, shape)
    assert error.code is ExitCode.OTHER_SHAPE
    assert f"made with {option}" in str(error)


@pytest.mark.parametrize("nodes", [0, 10, -1])
def test_a_cluster_has_one_to_nine_nodes(tmp_path: Path, nodes: int) -> None:
    """Other numbers are a usage error."""
    assert refusal(tmp_path, Shape(nodes=nodes)).code is ExitCode.USAGE


@pytest.mark.parametrize("port", [-1, 65_534, 65_536])
def test_http_ports_stay_within_their_range(tmp_path: Path, port: int) -> None:
    """All three must be ports."""
    assert refusal(tmp_path, Shape(http_port=port)).code is ExitCode.USAGE


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    """The second process learns which one has the folder."""
    folder = open_folder(tmp_path, ANY_PORTS)
    try:
        error = refusal(tmp_path)
    finally:
        folder.close()
    assert error.code is ExitCode.FOLDER_IN_USE
    assert str(error) == f"{tmp_path} is in use by process {os.getpid()}"
    make(tmp_path)


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    """Not even a lock file is put into somebody's folder."""
    (tmp_path / "letters").mkdir()
    assert refusal(tmp_path).code is ExitCode.FOLDER_FOREIGN
    assert [entry.name for entry in tmp_path.iterdir()] == ["letters"]


def test_one_nodes_folder_is_told_from_a_clusters(tmp_path: Path) -> None:
    """A folder of `node init` is named for what it is."""
    (tmp_path / "node.toml").touch()
    error = refusal(tmp_path)
    assert error.code is ExitCode.FOLDER_FOREIGN
    assert "one node's own data folder" in str(error)


@pytest.mark.parametrize("below", ["", "data"])
def test_a_file_in_the_folders_place_is_refused(tmp_path: Path, below: str) -> None:
    """A path that cannot be a folder is reported in the system's words."""
    file = tmp_path / "file"
    file.touch()
    error = refusal(file / below)
    assert error.code is ExitCode.FOLDER_UNWRITABLE
    assert "not a directory" in str(error)


def test_a_place_where_nobody_may_write_is_refused() -> None:
    """The kernel's own file system takes no folders, not even from root."""
    error = refusal(Path("/proc/bitnexus"))
    assert error.code is ExitCode.FOLDER_UNWRITABLE


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    """A folder without the right to write is reported, and its mode is left alone."""
    tmp_path.chmod(0o500)
    try:
        assert refusal(tmp_path).code is ExitCode.FOLDER_UNWRITABLE
        assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o500
    finally:
        tmp_path.chmod(0o700)


def test_a_half_made_folder_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash before `cluster.toml` costs nothing: no chain has known those keys."""

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(folder_module, "dump_genesis", crash)
        with pytest.raises(KeyboardInterrupt):
            open_folder(tmp_path, ANY_PORTS)
    assert (tmp_path / "node3" / "identity.key").exists()
    make(tmp_path)
    assert not (tmp_path / "unfinished").exists()
    assert make(tmp_path) == make(tmp_path)


def test_a_missing_node_folder_is_named(tmp_path: Path) -> None:
    """A member without its folder would come back with an empty chain under its old name."""
    make(tmp_path)
    (tmp_path / "node2").rename(tmp_path.with_name("elsewhere"))
    error = refusal(tmp_path, Shape())
    assert error.code is ExitCode.CONFIG
    assert "data folder of node2" in str(error)


def test_a_node_folder_of_another_cluster_is_refused(tmp_path: Path) -> None:
    """Folders of two clusters are not mixed."""
    one, two = tmp_path / "one", tmp_path / "two"
    make(one)
    make(two)
    (one / "node2").rename(tmp_path / "aside")
    (two / "node2").rename(one / "node2")
    error = refusal(one, Shape())
    assert error.code is ExitCode.OTHER_CLUSTER
    assert f"{one / 'node2'} belongs to another cluster" in str(error)


@pytest.mark.parametrize(
    ("file", "content", "detail"),
    [
        ("cluster.toml", "nodes = ", "cluster.toml: Invalid value"),
        ("cluster.toml", "nodes = 3", "missing required field"),
        ("genesis.json", "{}", "genesis.json: $"),
    ],
)
def test_a_spoilt_file_is_named(tmp_path: Path, file: str, content: str, detail: str) -> None:
    """What cannot be read is named by its path."""
    make(tmp_path)
    (tmp_path / file).write_text(content)
    error = refusal(tmp_path, Shape())
    assert error.code is ExitCode.CONFIG
    assert detail in str(error)


def test_a_folder_of_a_later_format_is_refused(tmp_path: Path) -> None:
    """What this program does not know it does not touch."""
    make(tmp_path)
    file = tmp_path / "cluster.toml"
    file.write_text(file.read_text().replace("format = 1", "format = 2"))
    assert "format 2 is not known here" in str(refusal(tmp_path, Shape()))


@pytest.mark.parametrize("use", ["http", "peer"])
def test_a_port_in_use_is_named(tmp_path: Path, use: str) -> None:
    """Each address is tried before anything is started."""
    folder = open_folder(tmp_path, ANY_PORTS)
    folder.close()
    check_ports(folder.members)
    address = getattr(folder.members[1], use)
    with socket.create_server(split_address(address)), pytest.raises(ClusterError) as caught:
        check_ports(folder.members)
    assert caught.value.code is ExitCode.PORT_IN_USE
    assert f"port of node2, {address}, cannot be used: address already in use" in str(caught.value)


def test_a_port_in_use_keeps_a_cluster_from_being_made(tmp_path: Path) -> None:
    """A genesis with an address that cannot be had is not written."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        error = refusal(tmp_path, Shape(nodes=1, http_port=port))
    assert error.code is ExitCode.PORT_IN_USE
    assert not (tmp_path / "cluster.toml").exists()
    make(tmp_path, Shape(nodes=1, http_port=port))


def test_an_address_of_another_machine_cannot_be_listened_on(tmp_path: Path) -> None:
    """It is refused with the system's word for it."""
    error = refusal(tmp_path, Shape(nodes=1, http_host="192.0.2.1", http_port=8001))
    assert error.code is ExitCode.PORT_IN_USE
    assert "cannot assign requested address" in str(error)
