"""One node of the ledger: identity, peer transport, replica, HTTP face, client and command line.

Relies on `storage` for durable state and on `consensus` for the rules; nothing there imports this.
"""
