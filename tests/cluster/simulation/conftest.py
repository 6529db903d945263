"""The fixtures of this folder: a real PostgreSQL, to compare the simulated one with."""

from __future__ import annotations

from tests.postgres_fixture import chain, database, postgres

__all__ = ["chain", "database", "postgres"]
