"""The fixtures of this folder: a real PostgreSQL and a chain to copy into it."""

from __future__ import annotations

from tests.postgres_fixture import chain, database, postgres

__all__ = ["chain", "database", "postgres"]
