"""The tables of the checkpoints: their version, the steps from one version to the next, and grants.

The steps are the files of `migrations/`, named by the version that each makes. All that are due run
in one transaction, which either makes the newest version or changes nothing. Relies on psycopg.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from psycopg import errors
from psycopg.sql import SQL, Identifier

from storage.errors import StorageError

if TYPE_CHECKING:
    from psycopg import AsyncConnection

_FOLDER = Path(__file__).parent
STEPS = tuple(sorted((_FOLDER / "migrations").glob("*.sql")))
"""What makes version 1, version 2 and so on, each from the one before."""
SCHEMA_VERSION = len(STEPS)
_GRANTS = _FOLDER / "grants.sql"

# Advisory locks are local to a database, which holds one cluster: one name is enough. The two
# numbers spell "bitn" and "exus".
LOCK_KEY = (0x6269746E, 0x65787573)
"""The writers' lock."""


class CheckpointError(StorageError):
    """Base of what can be wrong with a database of checkpoints beside being out of reach."""


class CheckpointSchemaError(CheckpointError):
    """The database has no checkpoints, or is of a kind that this program cannot use."""


async def installed_version(connection: AsyncConnection) -> int | None:
    """Return the version of the tables, None where there are none.

    What is read here of an older version is as it is in the newest. Raises CheckpointSchemaError
    for one that this program does not know, psycopg.Error.
    """
    cursor = await connection.execute("SELECT to_regclass('bitnexus.schema_version')")
    row = await cursor.fetchone()
    assert row is not None
    if row[0] is None:
        return None
    cursor = await connection.execute("SELECT max(version) FROM bitnexus.schema_version")
    row = await cursor.fetchone()
    assert row is not None
    version = row[0]
    if version is None or not 1 <= version <= SCHEMA_VERSION:
        detail = f"the tables are of version {version}; this program uses {SCHEMA_VERSION}"
        raise CheckpointSchemaError(detail)
    return int(version)


async def migrate(connection: AsyncConnection) -> None:
    """Make the newest version of whatever is there, in the transaction that is open.

    Waits for the writers' lock where it has something to do, so that of several only one does it.
    Raises CheckpointSchemaError, also where the role may not make tables; psycopg.Error.
    """
    if await installed_version(connection) == SCHEMA_VERSION:
        return
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise CheckpointSchemaError(f"the database is encoded in {encoding}, not in UTF8")
    await connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", LOCK_KEY)
    version = await installed_version(connection) or 0
    if version == SCHEMA_VERSION:
        return
    due = b"\n".join(step.read_bytes() for step in STEPS[version:])
    try:
        await connection.execute(due)
    except errors.InsufficientPrivilege as error:
        found = f"of version {version}" if version else "absent"
        raise CheckpointSchemaError(
            f"the tables are {found}, and this role may not make version {SCHEMA_VERSION}: "
            f"their owner does it by `bitnexus checkpoint prepare` ({error.diag.message_primary})"
        ) from error


async def grant(connection: AsyncConnection, role: str) -> None:
    """Let `role` copy and nothing else: add rows, and move the one row that says how far.

    Raises CheckpointSchemaError for a role that is absent, or that no grant can bound;
    psycopg.Error.
    """
    cursor = await connection.execute(
        "SELECT rolsuper OR pg_has_role(roles.oid, relowner, 'MEMBER')"
        " FROM pg_roles AS roles, pg_class AS tables"
        " WHERE rolname = %s AND tables.oid = 'bitnexus.blocks'::regclass",
        (role,),
    )
    row = await cursor.fetchone()
    if row is None:
        raise CheckpointSchemaError(f"there is no role {role!r}: make it with CREATE ROLE first")
    if row[0]:
        raise CheckpointSchemaError(f"the role {role!r} owns the tables, or may do as their owner")
    grants = SQL(_GRANTS.read_text(encoding="utf-8"))
    await connection.execute(grants.format(role=Identifier(role)))
