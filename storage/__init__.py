"""Durable state of one node: the chain and its derived look-ups in LMDB, checkpoints in PostgreSQL.

Relies on `consensus` for the rules of blocks and trees; nothing there imports this package.
"""
