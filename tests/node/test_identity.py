"""A node's key: what is on disk, what is refused, and the CURVE keys derived from it."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest
import zmq
from nacl.signing import SigningKey
from zmq.utils import z85

from node.identity import (
    Identity,
    IdentityError,
    create_identity,
    curve_public_z85,
    load_identity,
)

if TYPE_CHECKING:
    from pathlib import Path

SEED = bytes(range(32))
PUBLIC_KEY = "03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8"
CURVE_PUBLIC = b"m/*$&H^-y+t0OZ/ISr/LFYZlVkyTnmN9xTcTAhI+"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where an identity may be made."""
    return tmp_path / "identity.key"


def write(path: Path, content: bytes, mode: int = 0o600) -> Path:
    """Put a file there as somebody else might have left it."""
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_what_is_created_is_loaded(path: Path) -> None:
    """The file gives back the identity that was made with it."""
    assert create_identity(path) == load_identity(path)


def test_every_identity_is_another(tmp_path: Path) -> None:
    """Two nodes never share a key."""
    first, second = create_identity(tmp_path / "a"), create_identity(tmp_path / "b")
    assert first.public_key != second.public_key


def test_the_file_is_the_seed_in_hex_and_a_newline(path: Path) -> None:
    """The format on disk is fixed, so that a key can be carried by hand."""
    identity = create_identity(path)
    assert bytes(identity.signing_key).hex().encode() + b"\n" == path.read_bytes()


def test_a_known_seed_has_known_keys(path: Path) -> None:
    """Derivations never change: members know each other by their results."""
    identity = load_identity(write(path, SEED.hex().encode() + b"\n"))
    assert PUBLIC_KEY == identity.public_key.hex()
    assert CURVE_PUBLIC == identity.curve_public_z85


def test_only_the_owner_may_read_the_file(path: Path) -> None:
    """The mode is 0600, whatever the umask takes away or leaves."""
    before = os.umask(0o000)
    try:
        create_identity(path)
    finally:
        os.umask(before)
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)


def test_a_strict_umask_leaves_the_owner_his_bits(path: Path) -> None:
    """A umask that takes the owner's own bits away does not make a file that cannot be loaded."""
    before = os.umask(0o777)
    try:
        create_identity(path)
    finally:
        os.umask(before)
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)


def test_an_identity_is_never_overwritten(path: Path) -> None:
    """A second creation is refused, and the first key is still there."""
    identity = create_identity(path)
    with pytest.raises(IdentityError, match="there is an identity already"):
        create_identity(path)
    assert identity == load_identity(path)


def test_file_and_folder_are_synced(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that a genesis file names must survive a power cut."""
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(stat.S_IFMT(os.fstat(fd).st_mode)))
    create_identity(path)
    assert [stat.S_IFREG, stat.S_IFDIR] * 2 == synced, "the key, and that it is unused"


def test_a_failed_write_leaves_no_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk leaves nothing that would block the next try."""

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(IdentityError, match=r"identity\.key: cannot write .* No space left"):
        create_identity(path)
    assert not path.exists()


def test_a_missing_folder_is_one_clear_error(tmp_path: Path) -> None:
    """The error names the path and the cause."""
    with pytest.raises(IdentityError, match=r"gone/identity\.key: cannot write .* No such file"):
        create_identity(tmp_path / "gone" / "identity.key")


def test_a_missing_file_is_one_clear_error(path: Path) -> None:
    """Loading what is not there names the path and the cause."""
    with pytest.raises(IdentityError, match=r"identity\.key: cannot read .* No such file"):
        load_identity(path)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o777])
def test_a_file_open_to_others_is_refused(path: Path, mode: int) -> None:
    """A key that others can read or replace is no identity."""
    write(path, SEED.hex().encode() + b"\n", mode)
    with pytest.raises(IdentityError, match=f"mode {mode:04o} lets others at the key"):
        load_identity(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        SEED,
        SEED.hex().encode(),
        SEED.hex().encode() + b"\r\n",
        SEED.hex().encode() + b"\n\n",
        SEED.hex().encode() + b"\nmore",
        b" " + SEED.hex().encode() + b"\n",
        SEED.hex().upper().encode() + b"\n",
        SEED.hex()[:-1].encode() + b"\n",
        b"g" + SEED.hex()[1:].encode() + b"\n",
        "٣".encode() * 64 + b"\n",
        b"\xff" * 65,
    ],
    ids=repr,
)
def test_malformed_content_is_refused(path: Path, content: bytes) -> None:
    """Only what `create_identity` writes is an identity."""
    with pytest.raises(IdentityError, match="not an identity"):
        load_identity(write(path, content))


def test_a_pipe_is_refused_at_once(path: Path) -> None:
    """Something that is no file is refused, and does not hold the node."""
    os.mkfifo(path, 0o600)
    with pytest.raises(IdentityError, match="not a regular file"):
        load_identity(path)


def test_a_folder_is_refused(path: Path) -> None:
    """A folder in the file's place is one clear error."""
    path.mkdir(mode=0o700)
    with pytest.raises(IdentityError, match="not a regular file"):
        load_identity(path)


def test_curve_keys_fit_each_other() -> None:
    """What peers derive from the public key is the public half of the derived secret key."""
    identity = Identity.of(SigningKey(SEED))
    assert zmq.curve_public(identity.curve_secret_z85) == identity.curve_public_z85
    assert curve_public_z85(identity.public_key) == identity.curve_public_z85
    assert 32 == len(z85.decode(identity.curve_public_z85))


@pytest.mark.parametrize(
    "public_key",
    [b"", bytes(31), bytes(32), bytes(33), b"\xff" * 32, b"\x01" + bytes(31)],
    ids=repr,
)
def test_a_key_that_is_no_point_is_refused(public_key: bytes) -> None:
    """Bytes that no key pair can have are not taken for a member."""
    with pytest.raises(IdentityError, match="not an Ed25519 public key"):
        curve_public_z85(public_key)


def test_secrets_do_not_show() -> None:
    """An identity in a log line or a traceback gives nothing away."""
    identity = Identity.of(SigningKey(SEED))
    assert SEED.hex() not in repr(identity)
    assert repr(identity.curve_secret_z85) not in repr(identity)
    assert "signing_key" not in repr(identity)
