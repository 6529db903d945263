"""The configuration of one node: `node.toml` in its data folder, read strictly.

A key that is unknown, missing, of another type or at odds with another key is refused with an error
that names the file and the key; nothing is guessed. Relies on tomllib and msgspec, and on the
core's limits; opens no socket and makes no folder.

    name = "node1"
    http_port = 8001
    postgres_dsn = "host=/run/postgresql dbname=ledger"
"""

from __future__ import annotations

import ipaddress
import json
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from consensus.block import MAX_TRANSACTION_BYTES
from node.client_keys import parse_key

if TYPE_CHECKING:
    from collections.abc import Mapping

NODE_FILE: Final = "node.toml"
GENESIS_FILE: Final = "genesis.json"
IDENTITY_FILE: Final = "identity.key"
LOCK_FILE: Final = "lock"
CHAIN_FOLDER: Final = "chain"
INDEX_FOLDER: Final = "index"

HEARTBEATS_PER_ELECTION: Final = 3
"""A follower must miss at least this many heartbeats before it doubts its leader."""

_MIB: Final = 1 << 20
_MAX_PORT: Final = 65_535
_MIN_HEARTBEAT_MS: Final = 5
_MAX_ELECTION_MS: Final = 600_000
_NAME: Final = re.compile(r"[a-z0-9-]{1,63}")
_WRONG_TYPE: Final = re.compile(r"^(?P<detail>.*) - at `\$\.(?P<key>[^`]+)`$", re.DOTALL)
_WRONG_FIELD: Final = re.compile(r"^Object (contains unknown|missing required) field `(.*)`$")


class ConfigError(ValueError):
    """A configuration that cannot be used. `file` is None where it did not come from a file."""

    def __init__(self, *, file: Path | None, key: str, detail: str) -> None:
        """Word the error as `file: key: detail`, without the parts that are not known."""
        super().__init__(": ".join(part for part in (str(file or ""), key, detail) if part))
        self.file = file
        self.key = key
        self.detail = detail


class NodeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything one node must be told. Checked when made: raises ConfigError.

    `data_dir` is the folder that holds `node.toml`, never a key in it: the folder can be moved.
    """

    data_dir: Path
    name: str
    """This node's name in the genesis file."""
    genesis_file: Path = Path(GENESIS_FILE)
    """The cluster's genesis; a relative path starts at the data folder."""
    identity_file: Path = Path(IDENTITY_FILE)
    """This node's secret key; a relative path starts at the data folder."""
    http_host: str = "127.0.0.1"
    """The address HTTP listens on; another than loopback needs `insecure_http`."""
    http_port: int
    """The port HTTP listens on; 0 lets the system choose."""
    insecure_http: bool = False
    """Allows plain HTTP, without any access control, on an address that others can reach."""
    peer_bind: str | None = None
    """`host:port` where peers are received; None is the node's own peer address in the genesis."""
    client_bind: str | None = None
    """`host:port` where clients are received over ZeroMQ; None opens no such port."""
    client_keys: tuple[str, ...] = ()
    """The CURVE public keys of the clients that are let in there, in Z85 or hex; none: everybody,
    which on another address than loopback needs `insecure_clients`."""
    insecure_clients: bool = False
    """Lets every client in on an address that others can reach."""
    heartbeat_ms: int = 50
    election_timeout_min_ms: int = 300
    election_timeout_max_ms: int = 600
    postgres_dsn: str | None = None
    """Where checkpoints go, as libpq connection string; None keeps none."""
    queue_transactions: int = 100_000
    """Transactions that may wait to be sealed, before new ones are refused."""
    queue_bytes: int = 64 * _MIB
    """Their bytes."""
    map_bytes: int = 64 * _MIB
    """The chain's first LMDB map; it grows by itself."""

    def __post_init__(self) -> None:
        """Make paths absolute and check the keys against each other."""
        folder = Path(self.data_dir).absolute()
        msgspec.structs.force_setattr(self, "data_dir", folder)
        msgspec.structs.force_setattr(self, "genesis_file", folder / self.genesis_file)
        msgspec.structs.force_setattr(self, "identity_file", folder / self.identity_file)
        _check(self)

    @property
    def chain_dir(self) -> Path:
        """Where the chain is."""
        return self.data_dir / CHAIN_FOLDER

    @property
    def index_dir(self) -> Path:
        """Where the look-ups derived from the chain are."""
        return self.data_dir / INDEX_FOLDER


def load_config(path: Path) -> NodeConfig:
    """The configuration in `path`: a `.toml` file, or the data folder that holds `node.toml`.

    Raises:
        ConfigError: the file is absent or unreadable, or a key is not what it must be.
    """
    file = path if path.suffix == ".toml" else path / NODE_FILE
    document = _read_toml(file)
    if "data_dir" in document:
        raise ConfigError(
            file=file, key="data_dir", detail="is no key: it is the folder that holds this file"
        )
    document["data_dir"] = str(file.absolute().parent)
    try:
        return msgspec.convert(document, NodeConfig, strict=True, dec_hook=_decode_path)
    except msgspec.ValidationError as error:
        raise _error_of(error, file) from error


def dump_toml(document: Mapping[str, object]) -> str:
    """A flat TOML document of text, lists of it, whole numbers and booleans: all as in JSON."""
    text = "".join(
        f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in document.items()
    )
    # JSON lets this one control character stand unescaped, TOML does not.
    return text.replace("\x7f", "\\u007f")


def split_address(address: str) -> tuple[str, int]:
    """The host and port of `host:port`; an IPv6 host stands in brackets.

    Raises:
        ValueError: it is not of that form, or the port is not 1 to 65535.
    """
    host, colon, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{address!r} is not host:port: an IPv6 host stands in brackets")
    if not colon or not host or not port.isascii() or not port.isdigit():
        raise ValueError(f"{address!r} is not host:port")
    if not 1 <= int(port) <= _MAX_PORT:
        raise ValueError(f"{address!r}: the port is not 1 to {_MAX_PORT}")
    return host, int(port)


def join_address(host: str, port: int) -> str:
    """`host:port`, the inverse of `split_address`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def url_of(address: str) -> str:
    """`host:port` as an HTTP URL that works from this machine: a wildcard is every address."""
    host, port = split_address(address)
    try:
        known = ipaddress.ip_address(host)
    except ValueError:
        return f"http://{join_address(host, port)}"
    if known.is_unspecified:
        host = "::1" if isinstance(known, ipaddress.IPv6Address) else "127.0.0.1"
    return f"http://{join_address(host, port)}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`, judged without asking a name server."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _read_toml(file: Path) -> dict[str, object]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(file=file, key="", detail="there is no such file") from error
    except OSError as error:
        raise ConfigError(file=file, key="", detail=f"{error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(file=file, key="", detail="is not UTF-8 text") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(file=file, key="", detail=f"is not TOML: {error}") from error


def _decode_path(kind: type, value: object) -> Path:
    assert kind is Path
    if not isinstance(value, str) or not value or "\0" in value:
        raise TypeError("Expected a path as non-empty text")
    return Path(value)


def _error_of(error: msgspec.ValidationError, file: Path) -> ConfigError:
    """The error of msgspec or of `_check`, with the file's name and the key in front."""
    if isinstance(error.__cause__, ConfigError):
        return ConfigError(file=file, key=error.__cause__.key, detail=error.__cause__.detail)
    text = str(error)
    if located := _WRONG_TYPE.match(text):
        detail = located["detail"]
        return ConfigError(
            file=file, key=located["key"], detail=detail[:1].lower() + detail[1:].replace("`", "")
        )
    field = _WRONG_FIELD.match(text)
    assert field is not None, text
    unknown = field[1] == "contains unknown"
    return ConfigError(
        file=file, key=field[2], detail="is no key of a node" if unknown else "is missing"
    )


def _check(config: NodeConfig) -> None:
    """Check each value's range, then the keys against each other. Raises ConfigError."""
    if not _NAME.fullmatch(config.name):
        raise _refusal("name", "must be 1 to 63 of a-z, 0-9 and -")
    if not 0 <= config.http_port <= _MAX_PORT:
        raise _refusal("http_port", f"must be 0 to {_MAX_PORT}")
    _check_addresses(config)
    _check_timing(config)
    if config.postgres_dsn is not None and not config.postgres_dsn.strip():
        raise _refusal("postgres_dsn", "is empty: leave the key out to keep no checkpoints")
    if config.queue_transactions < 1:
        raise _refusal("queue_transactions", "must be at least 1")
    if config.queue_bytes < MAX_TRANSACTION_BYTES:
        raise _refusal("queue_bytes", f"must hold one transaction: {MAX_TRANSACTION_BYTES}")
    if config.map_bytes < _MIB:
        raise _refusal("map_bytes", f"must be at least {_MIB}")


def _check_addresses(config: NodeConfig) -> None:
    if not config.http_host:
        raise _refusal("http_host", "is empty")
    if not config.insecure_http and not is_loopback(config.http_host):
        detail = f"{config.http_host} is not loopback: plain HTTP there needs insecure_http = true"
        raise _refusal("http_host", detail)
    if config.peer_bind is not None:
        try:
            split_address(config.peer_bind)
        except ValueError as error:
            raise _refusal("peer_bind", str(error)) from error
    _check_clients(config)


def _check_clients(config: NodeConfig) -> None:
    for text in config.client_keys:
        try:
            parse_key(text)
        except ValueError as error:
            raise _refusal("client_keys", f"{text!r} {error}") from error
    if config.client_bind is None:
        return
    try:
        host, _ = split_address(config.client_bind)
    except ValueError as error:
        raise _refusal("client_bind", str(error)) from error
    if not (config.client_keys or config.insecure_clients or is_loopback(host)):
        detail = f"{host} is not loopback: there it needs client_keys, or insecure_clients = true"
        raise _refusal("client_bind", detail)


def _check_timing(config: NodeConfig) -> None:
    low, high = config.election_timeout_min_ms, config.election_timeout_max_ms
    if config.heartbeat_ms < _MIN_HEARTBEAT_MS:
        raise _refusal("heartbeat_ms", f"must be at least {_MIN_HEARTBEAT_MS}")
    if low < HEARTBEATS_PER_ELECTION * config.heartbeat_ms:
        raise _refusal(
            "election_timeout_min_ms",
            f"must be at least {HEARTBEATS_PER_ELECTION} heartbeats of {config.heartbeat_ms} ms",
        )
    if not low < high <= _MAX_ELECTION_MS:
        raise _refusal(
            "election_timeout_max_ms",
            f"must be above election_timeout_min_ms ({low}) and at most {_MAX_ELECTION_MS}",
        )


def _refusal(key: str, detail: str) -> ConfigError:
    return ConfigError(file=None, key=key, detail=detail)
