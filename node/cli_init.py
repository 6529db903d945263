"""How a cluster of several machines begins: `node init` on each, then `node genesis` once.

    node init         makes a data folder: identity.key (secret), member.json, node.toml
    node genesis      makes genesis.json out of all the member.json; a copy goes into each folder
    node init --join  makes the folder of a node that joins a running cluster: genesis.json and
                      join.json, which says whom to ask for blocks, are in it from the start

Nothing is ever overwritten. Relies on the core's genesis and the node's configuration.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Final

from consensus.membership import (
    Genesis,
    GenesisError,
    Member,
    check_members,
    dump_genesis,
    genesis_block,
    load_genesis,
)
from node.cli_errors import CommandError, ExitCode
from node.config import (
    CHAIN_FOLDER,
    GENESIS_FILE,
    IDENTITY_FILE,
    NODE_FILE,
    ConfigError,
    NodeConfig,
    dump_toml,
    split_address,
)
from node.folder_lock import DataFolderInUseError
from node.http_place import share_http
from node.identity import IdentityError, create_identity, unused_file
from node.staged import FolderTakenError, staged_folder
from node.standing import JOIN_FILE, MEMBER_FILE, Invitation, dump_invitation, dump_member

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_OWNER_ONLY: Final = 0o700
_CONTENTS: Final = frozenset(
    {
        CHAIN_FOLDER,
        f"{CHAIN_FOLDER}.new",
        IDENTITY_FILE,
        unused_file(Path(IDENTITY_FILE)).name,
        MEMBER_FILE,
        GENESIS_FILE,
        JOIN_FILE,
        NODE_FILE,
    }
)
"""All that a data folder holds which is only being made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewNode:
    """What a new node is told; `peer` and `http` are host:port as the others reach it."""

    data_dir: Path
    name: str
    peer: str
    http: str
    insecure_http: bool = False
    postgres_dsn: str | None = None
    client_bind: str | None = None
    client_keys: tuple[str, ...] = ()
    insecure_clients: bool = False


@dataclass(frozen=True, slots=True)
class Introduction:
    """What a node that joins a running cluster was told of it."""

    genesis: Genesis
    invitation: Invitation


def init_node(new: NewNode, cluster: Introduction | None = None) -> Member:
    """Make a new node's data folder, for a running `cluster` or one to be; return its member.

    Raises:
        CommandError: a value is wrong, a member of the cluster has it already, or the folder has
            content or cannot be written.
    """
    settings = _checked_settings(new)
    _refuse_content(new.data_dir, may_have_genesis=cluster is None)
    if cluster is not None:
        refuse_taken(new, cluster.invitation)
    return _make_files(new, settings, cluster)


def init_restored(new: NewNode, fill: Callable[[Path], Introduction]) -> Member:
    """As `init_node`, with a chain from the start, which `fill` makes in the folder it is told.

    The data folder is there with all of it or not at all, wherever this is interrupted.

    Raises:
        CommandError: as `init_node`; or the folder is being made by another process.
    """
    settings = _checked_settings(new)
    _refuse_content(new.data_dir, may_have_genesis=False)
    try:
        with staged_folder(new.data_dir, contents=_CONTENTS) as building:
            cluster = fill(building / CHAIN_FOLDER)
            refuse_taken(new, cluster.invitation)
            return _make_files(replace(new, data_dir=building), settings, cluster)
    except FolderTakenError as error:
        raise CommandError(str(error), ExitCode.ALREADY_THERE) from error
    except DataFolderInUseError as error:
        raise CommandError(str(error), ExitCode.FOLDER_IN_USE) from error
    except OSError as error:
        raise _unwritable(new.data_dir, error) from error


def _make_files(new: NewNode, settings: str, cluster: Introduction | None) -> Member:
    try:
        new.data_dir.mkdir(mode=_OWNER_ONLY, parents=True, exist_ok=True)
        identity = create_identity(new.data_dir / IDENTITY_FILE)
        member = Member(name=new.name, public_key=identity.public_key, peer=new.peer, http=new.http)
        _write_new(new.data_dir / MEMBER_FILE, dump_member(member))
        if cluster is not None:
            _write_new(new.data_dir / GENESIS_FILE, dump_genesis(cluster.genesis))
            _write_new(new.data_dir / JOIN_FILE, dump_invitation(cluster.invitation))
        _write_new(new.data_dir / NODE_FILE, settings)
    except OSError as error:
        raise _unwritable(new.data_dir, error) from error
    except IdentityError as error:
        raise CommandError(str(error), ExitCode.FOLDER_UNWRITABLE) from error
    return member


def make_genesis(cluster: str, members: Sequence[Path], output: Path) -> Genesis:
    """Make the genesis file of a new cluster from the member files of all its nodes.

    Raises:
        CommandError: a member file is wrong, or the output is there already.
    """
    created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    documents = [_load_json(file) for file in members]
    document = {"name": cluster, "created": created, "members": documents}
    try:
        genesis = load_genesis(json.dumps(document))
    except GenesisError as error:
        raise _name_file(error, members) from error
    _refuse_shared_http(genesis, members, [str(one["name"]) for one in documents])
    try:
        _write_new(output, dump_genesis(genesis))
    except OSError as error:
        raise _unwritable(output, error) from error
    return genesis


def cluster_id(genesis: Genesis) -> str:
    """The id of the cluster that begins so, in hex."""
    return genesis_block(genesis).hash.hex()


def _checked_settings(new: NewNode) -> str:
    """The text of `node.toml`, after every value has been checked."""
    try:
        split_address(new.peer)
        http_host, http_port = split_address(new.http)
    except ValueError as error:
        raise CommandError(str(error), ExitCode.USAGE) from error
    probe = Member(name=new.name, public_key=bytes(32), peer=new.peer, http=new.http)
    try:
        NodeConfig(
            data_dir=new.data_dir,
            name=new.name,
            http_host=http_host,
            http_port=http_port,
            insecure_http=new.insecure_http,
            postgres_dsn=new.postgres_dsn,
            client_bind=new.client_bind,
            client_keys=new.client_keys,
            insecure_clients=new.insecure_clients,
        )
        Genesis(name=new.name, created_us=0, members=(probe,)).validate()
    except GenesisError as error:
        field = error.path.rpartition(".")[2]
        raise CommandError(f"--{field}: {error.detail}", ExitCode.USAGE) from error
    except ConfigError as error:
        code = ExitCode.USAGE
        if error.key == "http_host" and "insecure_http" in error.detail:
            code = ExitCode.INSECURE_HTTP
        elif error.key == "client_bind" and "insecure_clients" in error.detail:
            code = ExitCode.INSECURE_CLIENTS
        raise CommandError(f"{error.key}: {error.detail}", code) from error
    lines: dict[str, object] = {
        "name": new.name,
        "http_host": http_host,
        "http_port": http_port,
    }
    if new.insecure_http:
        lines["insecure_http"] = True
    if new.postgres_dsn is not None:
        lines["postgres_dsn"] = new.postgres_dsn
    if new.client_bind is not None:
        lines["client_bind"] = new.client_bind
    if new.client_keys:
        lines["client_keys"] = new.client_keys
    if new.insecure_clients:
        lines["insecure_clients"] = True
    return dump_toml(lines)


def refuse_taken(new: NewNode, invitation: Invitation) -> None:
    """The cluster would refuse to add what shares its name or an address with a member.

    Raises:
        CommandError: it does.
    """
    for member in invitation.members:
        if member.name == new.name:
            raise CommandError(
                f"--name: {new.name} is a member already: choose another name, or remove that "
                f"member first (`bitnexus member remove {new.name}`)",
                ExitCode.ALREADY_THERE,
            )
    probe = Member(name=new.name, public_key=bytes(32), peer=new.peer, http=new.http)
    try:
        check_members((*invitation.members, probe))
    except GenesisError as error:
        field = error.path.rpartition(".")[2]
        what = f"--peer: {new.peer} is that of a member" if field == "peer" else error.detail
        raise CommandError(what, ExitCode.ALREADY_THERE) from error
    if any(share_http(member, probe) for member in invitation.members):
        raise CommandError(f"--http: {new.http} is that of a member", ExitCode.ALREADY_THERE)


def _refuse_shared_http(genesis: Genesis, files: Sequence[Path], names: Sequence[str]) -> None:
    """The chain has no rule for it, but the nodes would send clients to the wrong one."""
    for one, other in combinations(genesis.members, 2):
        if share_http(one, other):
            file, first = (files[names.index(member.name)] for member in (other, one))
            raise CommandError(f"{file}: http: is also that of {first}", ExitCode.INPUT)


def _refuse_content(folder: Path, *, may_have_genesis: bool) -> None:
    """Only an absent or empty folder, or one with the genesis alone, becomes a node's."""
    try:
        names = {entry.name for entry in folder.iterdir()}
    except FileNotFoundError:
        return
    except OSError as error:
        raise _unwritable(folder, error) from error
    if names & {IDENTITY_FILE, NODE_FILE, MEMBER_FILE}:
        raise CommandError(
            f"{folder} is a node's data folder already: nothing was changed",
            ExitCode.ALREADY_THERE,
        )
    if GENESIS_FILE in names and not may_have_genesis:
        raise CommandError(
            f"{folder / GENESIS_FILE} is there already: a node that joins is told its genesis by "
            "the cluster",
            ExitCode.ALREADY_THERE,
        )
    if names - {GENESIS_FILE}:
        raise CommandError(
            f"{folder} is not empty and is no node's data folder: choose another --data-dir",
            ExitCode.FOLDER_FOREIGN,
        )


def _load_json(file: Path) -> dict[str, object]:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CommandError(f"{file}: {error.strerror}", ExitCode.INPUT) from error
    except (ValueError, RecursionError) as error:
        raise CommandError(f"{file}: is not JSON: {error}", ExitCode.INPUT) from error
    if not isinstance(document, dict):
        raise CommandError(f"{file}: is no member file", ExitCode.INPUT)
    return document


def _name_file(error: GenesisError, files: Sequence[Path]) -> CommandError:
    """The error in the words of whoever gave the files: `$.members[1]` is one of them."""
    prefix, _, rest = error.path.partition("]")
    if not prefix.startswith("$.members["):
        option = "--cluster: " if error.path == "$.name" else ""
        return CommandError(f"{option}{error.detail}", ExitCode.USAGE)
    file = files[int(prefix.removeprefix("$.members["))]
    field = rest.lstrip(".")
    what = f"{field}: {error.detail}" if field else error.detail
    return CommandError(f"{file}: {what}", ExitCode.INPUT)


def replace_invitation(data_dir: Path, invitation: Invitation) -> None:
    """Write `join.json` anew, in one step that survives a power cut; raises CommandError."""
    file = data_dir / JOIN_FILE
    new = file.with_name(f"{file.name}.new")
    try:
        with new.open("w", encoding="utf-8") as stream:
            stream.write(dump_invitation(invitation))
            stream.flush()
            os.fsync(stream.fileno())
        new.replace(file)
    except OSError as error:
        raise _unwritable(file, error) from error


def _write_new(file: Path, text: str) -> None:
    """Write a file that must not be there yet, durably. Raises OSError, CommandError."""
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
    except FileExistsError as error:
        raise CommandError(
            f"{file} is there already: nothing was changed", ExitCode.ALREADY_THERE
        ) from error


def _unwritable(path: Path, error: OSError) -> CommandError:
    cause = (error.strerror or str(error)).lower()
    return CommandError(f"{path} cannot be written: {cause}", ExitCode.FOLDER_UNWRITABLE)
