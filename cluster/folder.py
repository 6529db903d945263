"""The data folder of a local cluster: made once, checked at every start.

    data/cluster.toml      what this folder is; written last, so that a half-made folder shows
    data/genesis.json      the members, their keys and addresses
    data/lock              held by the process that runs the cluster
    data/node1/ ...        one data folder for each node, as `bitnexus node run` takes it
    data/postgres/         the embedded PostgreSQL, where there is one

Addresses are chosen when the folder is made and stay, because the genesis block holds them. Relies
on the core's genesis, the node's identity and configuration; starts nothing.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import socket
import time
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from cluster.errors import ClusterError
from consensus.membership import Genesis, GenesisError, Member, dump_genesis, load_genesis
from node.cli_errors import ExitCode
from node.config import (
    GENESIS_FILE,
    IDENTITY_FILE,
    LOCK_FILE,
    NODE_FILE,
    ConfigError,
    dump_toml,
    join_address,
    load_config,
    split_address,
)
from node.folder_lock import DataFolderInUseError, FolderLock
from node.identity import IdentityError, create_identity

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

CLUSTER_FILE: Final = "cluster.toml"
POSTGRES_FOLDER: Final = "postgres"
FREE_PORT: Final = 0
"""As `http_port`: a free port for each node, chosen when the folder is made."""
FIRST_CLIENT_PORT: Final = 9001
MAX_NODES: Final = 9

_FORMAT: Final = 1
_UNFINISHED_FILE: Final = "unfinished"
_OWNER_ONLY: Final = 0o700
_MAX_PORT: Final = 65_535
_PEER_PORTS: Final = range(20_000, 32_768)
"""Below the usual range of outgoing connections, which would take a kept port by chance."""
_LOOPBACK: Final = "127.0.0.1"
_PORT_TRIES: Final = 200
_NODE_FOLDER: Final = re.compile(r"node[1-9]")


@dataclass(frozen=True, slots=True)
class Shape:
    """What a cluster is asked to be. None: as the folder has it, or the default for a new one."""

    nodes: int | None = None
    http_host: str | None = None
    http_port: int | None = None


class _ClusterToml(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    format: int
    name: str
    nodes: int
    http_host: str
    http_port: int


_DEFAULT: Final = _ClusterToml(
    format=_FORMAT, name="local", nodes=3, http_host="127.0.0.1", http_port=8001
)


class ClusterFolder:
    """A folder that is ours and locked, until `close`."""

    def __init__(self, path: Path, genesis: Genesis, lock: FolderLock) -> None:
        """Use `open_folder` instead."""
        self.path = path
        self.genesis = genesis
        self._lock = lock

    @property
    def members(self) -> tuple[Member, ...]:
        """The nodes in the order of their names."""
        return self.genesis.members

    @property
    def postgres_dir(self) -> Path:
        """Where the embedded PostgreSQL lives."""
        return self.path / POSTGRES_FOLDER

    def node_dir(self, name: str) -> Path:
        """The data folder of the node `name`."""
        return self.path / name

    def write_node_files(
        self,
        settings: dict[str, object],
        *,
        postgres_dsn: str | None,
        client_binds: Sequence[str] | None = None,
    ) -> None:
        """Write each node's `node.toml` anew; `settings` are keys that all nodes share.

        `client_binds` has the address of each node's client port; None is for none.

        Raises:
            ConfigError: the keys do not fit together.
        """
        for number, member in enumerate(self.members):
            host, port = split_address(member.http)
            document = {"name": member.name, "http_host": host, "http_port": port} | settings
            if client_binds is not None:
                document["client_bind"] = client_binds[number]
            if postgres_dsn is not None:
                document["postgres_dsn"] = postgres_dsn
            file = self.node_dir(member.name) / NODE_FILE
            comment = "# Written by `bitnexus up` at each start: changes made here are lost.\n"
            write_whole(file, comment + dump_toml(document))
            load_config(file)

    def client_binds(self, first_port: int | None) -> list[str]:
        """The address of each node's client port, on loopback: `first_port` and those after it.

        FREE_PORT takes free ones, which are kept as long as they are free. None is 9001 and so on,
        or free ones where those of HTTP were free ones too.

        Raises:
            ClusterError: an address cannot be used.
        """
        if first_port is None:
            document = _load_cluster_toml(self.path / CLUSTER_FILE)
            is_free = document.http_port == FREE_PORT
            first_port = FREE_PORT if is_free else FIRST_CLIENT_PORT
        count = len(self.members)
        if first_port == FREE_PORT:
            return self._kept_client_binds() or [
                join_address(_LOOPBACK, port) for port in _free_ports(_LOOPBACK, count, taken=set())
            ]
        if not 1 <= first_port <= first_port + count - 1 <= _MAX_PORT:
            raise ClusterError(
                f"client ports from {first_port} on are not within 1 to {_MAX_PORT}", ExitCode.USAGE
            )
        binds = [join_address(_LOOPBACK, first_port + number) for number in range(count)]
        for member, bind in zip(self.members, binds, strict=True):
            _check_port(bind, f"the client port of {member.name}")
        return binds

    def _kept_client_binds(self) -> list[str] | None:
        """Those of the last run, where every node has one and all are free."""
        binds = []
        for member in self.members:
            try:
                bind = load_config(self.node_dir(member.name)).client_bind
                if bind is None:
                    return None
                _bind_once(*split_address(bind))
            except (ConfigError, OSError):
                return None
            binds.append(bind)
        return binds

    def close(self) -> None:
        """Let another process have the folder."""
        self._lock.release()


def open_folder(path: Path, shape: Shape) -> ClusterFolder:
    """The cluster in `path`, made if there is none, locked for this process.

    Raises:
        ClusterError: it cannot be written, is in use, is not ours or has another shape.
    """
    _refuse_foreign(path)
    try:
        path.mkdir(mode=_OWNER_ONLY, parents=True, exist_ok=True)
        lock = FolderLock(path / LOCK_FILE)
        lock.take()
    except DataFolderInUseError as error:
        raise ClusterError(str(error), ExitCode.FOLDER_IN_USE) from error
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        return ClusterFolder(path, _open_or_make(path, shape), lock)
    except OSError as error:
        lock.release()
        raise _unwritable(path, error) from error
    except IdentityError as error:
        lock.release()
        raise ClusterError(str(error), ExitCode.FOLDER_UNWRITABLE) from error
    except BaseException:
        lock.release()
        raise


def check_ports(members: Iterable[Member]) -> None:
    """Find out, before anything starts, whether every address of the cluster is free.

    Raises:
        ClusterError: naming the first address that is not, and which node needs it.
    """
    for member in members:
        _check_port(member.http, f"the HTTP port of {member.name}")
        _check_port(member.peer, f"the peer port of {member.name}")


def write_whole(file: Path, text: str) -> None:
    """Replace `file` by `text` in one step that survives a power cut. Raises OSError."""
    new = file.with_name(f"{file.name}.new")
    with new.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    new.replace(file)


def _refuse_foreign(path: Path) -> None:
    """Refuse a folder with content that is not ours, before a single file is put into it."""
    try:
        names = {entry.name for entry in path.iterdir()}
    except FileNotFoundError:
        return
    except OSError as error:
        raise _unwritable(path, error) from error
    if CLUSTER_FILE in names or _UNFINISHED_FILE in names or names <= {LOCK_FILE}:
        return
    what = "one node's own data folder" if NODE_FILE in names else "no cluster's data folder"
    raise ClusterError(
        f"{path} is not empty and is {what}: choose another --data-dir", ExitCode.FOLDER_FOREIGN
    )


def _unwritable(path: Path, error: OSError) -> ClusterError:
    cause = (error.strerror or str(error)).lower()
    return ClusterError(
        f"the data folder {path} cannot be used: {cause}", ExitCode.FOLDER_UNWRITABLE
    )


def _open_or_make(path: Path, shape: Shape) -> Genesis:
    if not (path / CLUSTER_FILE).exists():
        return _make(path, shape)
    found = _load_cluster_toml(path / CLUSTER_FILE)
    _check_shape(path, found, shape)
    try:
        genesis = load_genesis((path / GENESIS_FILE).read_text(encoding="utf-8"))
    except (GenesisError, FileNotFoundError) as error:
        raise ClusterError(f"{path / GENESIS_FILE}: {error}", ExitCode.CONFIG) from error
    _check_nodes(path, genesis)
    return genesis


def _load_cluster_toml(file: Path) -> _ClusterToml:
    try:
        found = msgspec.convert(tomllib.loads(file.read_text(encoding="utf-8")), _ClusterToml)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise ClusterError(f"{file}: {error}", ExitCode.CONFIG) from error
    if found.format != _FORMAT:
        raise ClusterError(
            f"{file}: format {found.format} is not known here, only {_FORMAT}", ExitCode.CONFIG
        )
    return found


def _check_shape(path: Path, found: _ClusterToml, asked: Shape) -> None:
    for option, key in (
        ("--nodes", "nodes"),
        ("--http-host", "http_host"),
        ("--http-port", "http_port"),
    ):
        is_there, wanted = getattr(found, key), getattr(asked, key)
        if wanted is not None and wanted != is_there:
            raise ClusterError(
                f"{path} holds a cluster made with {option} {is_there}, which its genesis fixes, "
                f"not {wanted}: leave {option} out or choose another --data-dir",
                ExitCode.OTHER_SHAPE,
            )


def _check_nodes(path: Path, genesis: Genesis) -> None:
    """Every member's folder is there and is of this cluster."""
    expected = dump_genesis(genesis)
    for member in genesis.members:
        file = path / member.name / GENESIS_FILE
        if not file.exists():
            raise ClusterError(
                f"{path / member.name}, the data folder of {member.name}, is missing or not whole",
                ExitCode.CONFIG,
            )
        if file.read_text(encoding="utf-8") != expected:
            raise ClusterError(
                f"{path / member.name} belongs to another cluster than {path / GENESIS_FILE}",
                ExitCode.OTHER_CLUSTER,
            )


def _make(path: Path, shape: Shape) -> Genesis:
    """Make the whole folder. `cluster.toml` comes last: what is without it may be made again."""
    toml = _ClusterToml(
        format=_FORMAT,
        name=_DEFAULT.name,
        nodes=_DEFAULT.nodes if shape.nodes is None else shape.nodes,
        http_host=_DEFAULT.http_host if shape.http_host is None else shape.http_host,
        http_port=_DEFAULT.http_port if shape.http_port is None else shape.http_port,
    )
    if not 1 <= toml.nodes <= MAX_NODES:
        raise ClusterError(f"a cluster has 1 to {MAX_NODES} nodes", ExitCode.USAGE)
    http_ports = _http_ports(toml)
    _remove_unfinished(path)
    (path / _UNFINISHED_FILE).touch()
    genesis = _make_nodes(path, toml, http_ports)
    write_whole(path / CLUSTER_FILE, dump_toml(msgspec.structs.asdict(toml)))
    (path / _UNFINISHED_FILE).unlink()
    return genesis


def _remove_unfinished(path: Path) -> None:
    """Remove what an interrupted `_make` left: identities that no chain has ever known."""
    for entry in path.iterdir():
        if _NODE_FOLDER.fullmatch(entry.name):
            shutil.rmtree(entry)


def _make_nodes(path: Path, toml: _ClusterToml, http_ports: list[int]) -> Genesis:
    names = [f"node{number}" for number in range(1, toml.nodes + 1)]
    peer_ports = _free_ports(_LOOPBACK, toml.nodes, taken=set(http_ports))
    members = []
    for name, http_port, peer_port in zip(names, http_ports, peer_ports, strict=True):
        (path / name).mkdir(mode=_OWNER_ONLY)
        identity = create_identity(path / name / IDENTITY_FILE)
        members.append(
            Member(
                name=name,
                public_key=identity.public_key,
                peer=join_address(_LOOPBACK, peer_port),
                http=join_address(toml.http_host, http_port),
            )
        )
    genesis = Genesis(name=toml.name, created_us=time.time_ns() // 1_000, members=tuple(members))
    for folder in (path, *(path / name for name in names)):
        write_whole(folder / GENESIS_FILE, dump_genesis(genesis))
    return genesis


def _http_ports(toml: _ClusterToml) -> list[int]:
    if toml.http_port == FREE_PORT:
        return _free_ports(toml.http_host, toml.nodes, taken=set())
    last = toml.http_port + toml.nodes - 1
    if not 1 <= toml.http_port <= last <= _MAX_PORT:
        raise ClusterError(
            f"HTTP ports {toml.http_port} to {last} are not within 1 to {_MAX_PORT}", ExitCode.USAGE
        )
    ports = list(range(toml.http_port, last + 1))
    for port in ports:
        _check_port(join_address(toml.http_host, port), "an HTTP port")
    return ports


def _free_ports(host: str, count: int, *, taken: set[int]) -> list[int]:
    """`count` ports of `host` that nothing listens on, none of them in `taken`."""
    source = random.SystemRandom()
    free: list[int] = []
    for _ in range(_PORT_TRIES):
        if len(free) == count:
            return free
        port = source.choice(_PEER_PORTS)
        if port in taken or port in free:
            continue
        try:
            _bind_once(host, port)
        except OSError:
            continue
        free.append(port)
    raise ClusterError(f"no {count} free ports were found on {host}", ExitCode.PORT_IN_USE)


def _check_port(address: str, use: str) -> None:
    try:
        _bind_once(*split_address(address))
    except OSError as error:
        cause = (error.strerror or str(error)).lower()
        raise ClusterError(
            f"{use}, {address}, cannot be used: {cause}", ExitCode.PORT_IN_USE
        ) from error


def _bind_once(host: str, port: int) -> None:
    """Bind and let go. Raises OSError: the port is taken, or the address is not ours."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    with socket.socket(family, kind, protocol) as probe:
        # As the servers do: a connection that lingers from the last run is no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
        probe.listen()
