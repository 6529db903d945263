"""Measuring a cluster on this machine: workloads, the limits of the machine, results, reports."""
