"""Who a node is: one Ed25519 key, which signs its blocks and opens its connections to peers.

The key lives in one file, `identity.key`: the 32-byte seed in lower-case hex and a newline, for its
owner alone to read. The CURVE keys of the peer connections are the same key on Curve25519
(libsodium's birational map), so the genesis file carries one key for each member. Relies on PyNaCl.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import nacl.exceptions
from nacl.signing import SigningKey, VerifyKey
from zmq.utils import z85

if TYPE_CHECKING:
    from pathlib import Path

_OWNER_ONLY: Final = 0o600
_OTHERS: Final = 0o077
_CONTENT: Final = re.compile(rb"([0-9a-f]{64})\n")
_CONTENT_BYTES: Final = 65
UNUSED_TEXT: Final = (
    b"No node has run under this key yet. The first one to run removes this file.\n"
)


class IdentityError(Exception):
    """An identity file or a member's key cannot be used; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A node's keys. The secret ones never show in its `repr`."""

    signing_key: SigningKey = field(repr=False)
    public_key: bytes
    """32 bytes: the member id, and the `sealer` of this member's blocks."""
    curve_public_z85: bytes
    curve_secret_z85: bytes = field(repr=False)

    @classmethod
    def of(cls, signing_key: SigningKey) -> Identity:
        """The identity of a signing key."""
        public_key = bytes(signing_key.verify_key)
        return cls(
            signing_key=signing_key,
            public_key=public_key,
            curve_public_z85=curve_public_z85(public_key),
            curve_secret_z85=z85.encode(bytes(signing_key.to_curve25519_private_key())),
        )


def create_identity(path: Path) -> Identity:
    """Make a new key and save it durably at `path`, readable by its owner alone.

    Beside it goes a file that says that the key is unused: see `is_unused`.

    Raises `IdentityError` where the file is there already, or cannot be written: a key that is
    overwritten is a member that is lost.
    """
    signing_key = SigningKey.generate()
    try:
        _save_new(path, bytes(signing_key).hex().encode() + b"\n")
    except FileExistsError as error:
        raise IdentityError(f"{path}: there is an identity already") from error
    except OSError as error:
        raise IdentityError(f"{path}: cannot write the identity: {error.strerror}") from error
    _mark_unused(path)
    return Identity.of(signing_key)


def is_unused(path: Path) -> bool:
    """Whether no node has run yet under the key at `path`.

    A member votes and acknowledges under its key. One whose disk was lost has forgotten that, and
    must never come back under the same key, or it might vote twice. So a node without a chain may
    begin one only under a key that is unused.
    """
    return unused_file(path).exists()


def mark_used(path: Path) -> None:
    """Say for good that a node has run under the key at `path`.

    Raises `IdentityError` where that cannot be made durable.
    """
    try:
        unused_file(path).unlink(missing_ok=True)
        _sync_folder(path.parent)
    except OSError as error:
        raise IdentityError(f"{path}: cannot be marked as used: {error.strerror}") from error


def load_identity(path: Path) -> Identity:
    """Read the key at `path`.

    Raises `IdentityError` where the file is missing, is open to anyone but its owner, or is not
    exactly what `create_identity` writes.
    """
    try:
        content = _load_private(path)
    except OSError as error:
        raise IdentityError(f"{path}: cannot read the identity: {error.strerror}") from error
    match = _CONTENT.fullmatch(content)
    if match is None:
        raise IdentityError(
            f"{path}: not an identity: expected 64 lower-case hex digits and a newline"
        )
    return Identity.of(SigningKey(bytes.fromhex(match[1].decode())))


def curve_public_z85(public_key: bytes) -> bytes:
    """Return the Curve25519 form of a member's Ed25519 public key, in Z85 (40 bytes).

    Raises `IdentityError` where the bytes are no point that a key pair can have.
    """
    try:
        point = VerifyKey(public_key).to_curve25519_public_key()
    except (nacl.exceptions.RuntimeError, nacl.exceptions.ValueError) as error:
        raise IdentityError(f"{public_key.hex()}: not an Ed25519 public key") from error
    return z85.encode(bytes(point))


def _mark_unused(path: Path) -> None:
    """Only ever beside a key that has just been made; without it, that key is of no use."""
    unused_file(path).unlink(missing_ok=True)
    try:
        _save_new(unused_file(path), UNUSED_TEXT)
    except OSError as error:
        path.unlink()
        raise IdentityError(f"{path}: cannot write the identity: {error.strerror}") from error


def unused_file(path: Path) -> Path:
    """The file beside the key at `path` that says that the key is unused."""
    return path.with_name(f"{path.name}.unused")


def _save_new(path: Path, content: bytes) -> None:
    """Create, write and sync the file, then its folder; a file half written is taken away again."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _OWNER_ONLY)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), _OWNER_ONLY)  # an odd umask may have taken the owner's bits
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(path.parent)
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        raise


def _sync_folder(folder: Path) -> None:
    """Make a new name in a folder durable: a file's own fsync does not."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _load_private(path: Path) -> bytes:
    """Read a file that its owner alone may read."""
    # Without O_NONBLOCK a named pipe in the file's place would hold the node for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise IdentityError(f"{path}: not a regular file")
        if mode & _OTHERS:
            raise IdentityError(
                f"{path}: mode {stat.S_IMODE(mode):04o} lets others at the key; chmod 600 it"
            )
        return os.read(descriptor, _CONTENT_BYTES + 1)
    finally:
        os.close(descriptor)
