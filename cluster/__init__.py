"""Many nodes: the supervisor of a local cluster, its embedded PostgreSQL, and what breaks them.

Stands on `node` and everything below it; nothing but `tools` imports it.
"""
