"""The handlers that tell an operator how a node is: liveness, readiness and metrics.

Relies on the Prometheus client for its text format alone: the numbers are the node's and are read
when they are asked for, so that nothing is counted twice and nothing is kept in global registries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector, CollectorRegistry

from node.api.problems import ProblemKind, make_problem, problem_reply
from node.api.reply import Reply, json_reply
from node.api.shapes import Health

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prometheus_client.metrics_core import Metric

    from node.api.face import Asked, Face

_OK: Final = 200
_RETRY_AFTER_S: Final = 1
_PREFIX: Final = "bitnexus_"
_COUNTER_SUFFIX: Final = "_total"


class _Numbers(Collector):
    """The node's numbers and the face's own, as Prometheus families."""

    def __init__(self, numbers: Mapping[str, int], answers: Mapping[int, int]) -> None:
        self._numbers = numbers
        self._answers = answers

    def collect(self) -> Iterator[Metric]:
        """Yield each family; a name that ends in _total is a counter, any other a gauge."""
        for name, value in sorted(self._numbers.items()):
            text = name.removesuffix(_COUNTER_SUFFIX).replace("_", " ")
            family = CounterMetricFamily if name.endswith(_COUNTER_SUFFIX) else GaugeMetricFamily
            yield family(_PREFIX + name, f"The node's {text}", value=value)
        answers = CounterMetricFamily(
            _PREFIX + "http_answers_total", "HTTP answers by status code", labels=["status"]
        )
        for status, count in sorted(self._answers.items()):
            answers.add_metric([str(status)], count)
        yield answers


def read_live(face: Face, _asked: Asked) -> Reply:
    """Answer 200 while the loop runs and the node has not stopped itself."""
    if face.node.failed is None:
        return json_reply(_OK, Health(status="live"))
    return _not_healthy(f"the node has stopped itself: {face.node.failed}")


def read_ready(face: Face, _asked: Asked) -> Reply:
    """Answer 200 while a leader is known and what is committed is applied here."""
    node = face.node
    if node.failed is not None:
        return _not_healthy(f"the node has stopped itself: {node.failed}")
    if node.obstacle is not None:
        return _not_healthy(node.obstacle)
    if node.ready:
        return json_reply(_OK, Health(status="ready"))
    behind = node.commit_index - node.applied_index
    detail = f"{behind} blocks are not applied yet" if behind > 0 else "no leader is known"
    return _not_healthy(detail)


def read_metrics(face: Face, _asked: Asked) -> Reply:
    """Answer with the node's numbers in Prometheus's text format."""
    registry = CollectorRegistry(auto_describe=False)
    numbers = {**face.node.metrics, **face.more_metrics()}
    registry.register(_Numbers(numbers, face.counts.by_status))
    return Reply(_OK, generate_latest(registry), CONTENT_TYPE_LATEST.encode("ascii"))


def _not_healthy(detail: str) -> Reply:
    problem = make_problem(ProblemKind.UNAVAILABLE, detail, retry_after_s=_RETRY_AFTER_S)
    return problem_reply(problem)
