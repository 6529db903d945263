"""The one error of the benchmarks: something could not be measured, and why. Relies on nothing."""

from __future__ import annotations


class BenchError(Exception):
    """A workload, or a file of results, that is of no use; the message is one line."""
