"""One node of the ledger: identity, peer transport, replica, HTTP face, client and command line.

Relies on `storage` for durable state and on `consensus` for the rules; nothing there imports this.
"""

from __future__ import annotations

from typing import Final

VERSION: Final = "0.1.0"
"""As in pyproject.toml: what runs from a clone has no metadata to read it from."""
