"""The fixtures of this folder: a real PostgreSQL and a chain to copy into it; a chain on disk."""

from __future__ import annotations

from tests.postgres_fixture import chain, database, postgres, store
from tests.storage.chain_folder import author, opened, path, stored

__all__ = ["author", "chain", "database", "opened", "path", "postgres", "store", "stored"]
