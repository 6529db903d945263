"""The rules of the ledger: bytes, trees, blocks, membership and the Raft core.

Nothing in this package touches a socket, a clock, a disk, a thread or global randomness: time and
randomness come in as arguments, and everything that must happen comes out as data. It relies on no
other package of the project; every other package relies on it.
"""
