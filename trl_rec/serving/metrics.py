"""Counts what the server does, and writes the counts in the text format that Prometheus reads.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np


SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
HELP = {
    "requests_total": ("counter", "Requests by endpoint and status."),
    "request_seconds": ("histogram", "Time to handle a request, by endpoint."),
    "batch_size": ("histogram", "Requests per batch."),
    "queue_length": ("gauge", "Requests that wait for a batch."),
    "lists_total": ("counter", "Lists that were recommended."),
    "history_items_total": (
        "counter",
        "Items in the histories of requests. Histories that are read from the dataset are left out, because all of "
        "their items are known.",
    ),
    "unknown_items_total": ("counter", "History items that the catalogue does not contain."),
    "fallback_lists_total": (
        "counter",
        "Lists that the prior alone ranked, because the history has no known items. If lists are served from a file: "
        "lists for users who have no list in the file.",
    ),
    "short_lists_total": ("counter", "Lists with fewer items than requested."),
    "distinct_items_served": ("gauge", "Distinct items recommended since the current catalogue was loaded."),
    "catalog_items": ("gauge", "Items in the catalogue, including retired ones."),
    "reloads_total": ("counter", "New runs that were loaded."),
    "reload_failures_total": ("counter", "New runs that could not be loaded."),
    "log_failures_total": ("counter", "Batches of lists that could not be appended to the log."),
    "run_info": ("gauge", "The run that is being served."),
}
# Counters that are shown from the start, with the value 0.
COUNTERS = [name for name, (kind, _) in HELP.items() if kind == "counter" and name != "requests_total"]


class Histogram:
    """Counts values in ranges.

    Args:
        bounds: The inclusive upper bounds of the ranges, ascending.
    """

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Counts a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str, labels: str) -> Iterator[str]:
        """Yields the histogram as lines of the text format."""
        total = 0
        comma = "," if labels else ""
        for bound, count in zip((*map(_number, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{{labels}{comma}le="{bound}"}} {total}'
        braces = f"{{{labels}}}" if labels else ""
        yield f"{name}_sum{braces} {self._sum:.6f}"
        yield f"{name}_count{braces} {total}"


class Metrics:
    """The counts of one server. All methods may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._seconds: dict[str, Histogram] = {}
        self._batch_size = Histogram(SIZES)
        self._counts: Counter[str] = Counter()
        self._served = np.zeros(0, bool)
        self._fingerprint: str | None = None
        self._run = ""

    def set_run(self, run: str, fingerprint: str, num_items: int) -> None:
        """Sets the name of the run that is being served. A new catalogue resets the count of distinct items."""
        with self._lock:
            self._run = run
            if fingerprint != self._fingerprint:
                self._fingerprint = fingerprint
                self._served = np.zeros(num_items, bool)

    def count(self, name: str, number: int = 1) -> None:
        """Adds to a counter."""
        with self._lock:
            self._counts[name] += number

    def add_request(self, endpoint: str, status: int, seconds: float) -> None:
        """Counts a request that was handled."""
        with self._lock:
            self._requests[endpoint, status] += 1
            self._seconds.setdefault(endpoint, Histogram(SECONDS)).add(seconds)

    def add_batch(self, size: int) -> None:
        """Counts a batch."""
        with self._lock:
            self._batch_size.add(size)

    def add_lists(self, counts: Counter[str], items: Iterable[int], fingerprint: str) -> None:
        """Adds the counts of a batch of lists, and marks their items as served.

        The items are indices in the catalogue with this fingerprint. If a reload has replaced this catalogue in the
        meantime, the items are not marked.
        """
        served = np.fromiter(items, np.int64)
        with self._lock:
            self._counts.update(counts)
            if fingerprint == self._fingerprint:
                self._served[served] = True

    def text(self, queue_length: int) -> str:
        """Returns all counts in Prometheus' text format."""
        with self._lock:
            lines = {name: [f"trl_rec_{name} {self._counts[name]}"] for name in COUNTERS}
            lines["requests_total"] = [
                f'trl_rec_requests_total{{endpoint="{endpoint}",status="{status}"}} {number}'
                for (endpoint, status), number in sorted(self._requests.items())
            ]
            lines["request_seconds"] = [
                line
                for endpoint, histogram in sorted(self._seconds.items())
                for line in histogram.lines("trl_rec_request_seconds", f'endpoint="{endpoint}"')
            ]
            lines["batch_size"] = list(self._batch_size.lines("trl_rec_batch_size", ""))
            lines["queue_length"] = [f"trl_rec_queue_length {queue_length}"]
            lines["distinct_items_served"] = [f"trl_rec_distinct_items_served {int(self._served.sum())}"]
            lines["catalog_items"] = [f"trl_rec_catalog_items {len(self._served)}"]
            lines["run_info"] = [f'trl_rec_run_info{{run="{_escaped(self._run)}"}} 1']

        parts = []
        for name, (kind, text) in HELP.items():
            parts += [f"# HELP trl_rec_{name} {text}", f"# TYPE trl_rec_{name} {kind}", *lines[name]]
        return "\n".join(parts) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return f"{value:g}"
