"""The HTTP face of a node: JSON in, JSON out, errors as problem details (RFC 9457).

`server` listens; `app` takes each request to `submit` (the hot path, raw ASGI) or, through Falcon,
to the handlers of the one table in `routes`; `json_input` and `query` let nothing in that is not
exactly what was asked for, and `faults` finds the place of what is wrong; `shapes` holds every
JSON shape and `problems` every error. All of it sees the node through `interface.LedgerNode` alone.
"""
