"""Metrics of several frontends as those of one server.

What each frontend did is added up: counters and histograms. What each believes of the same workers is told side by
side, by `frontend`: gauges, and counts of events that all of them hear.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

HEARD_BY_ALL = frozenset(("jevons_worker_events", "jevons_worker_tier_pages"))
_ADDED = frozenset(("counter", "histogram"))
_SINCE = "_created"  # of a sample's name: when it began to be counted
_BUCKET = "_bucket"


class Sample(msgspec.Struct, frozen=True, array_like=True):
    name: str
    labels: dict[str, str]
    value: float


class Family(msgspec.Struct, frozen=True, array_like=True):
    """A metric with all its samples."""

    name: str
    says: str
    kind: str
    samples: list[Sample]

    @property
    def is_added(self) -> bool:
        return self.kind in _ADDED and self.name not in HEARD_BY_ALL


_PAGES: msgspec.msgpack.Decoder[list[Family]] = msgspec.msgpack.Decoder(list[Family])


def page_of(registry: CollectorRegistry) -> list[Family]:
    """All that is in a registry now."""
    return [
        Family(m.name, m.documentation, m.type, [Sample(s.name, dict(s.labels), s.value) for s in m.samples])
        for m in registry.collect()
    ]


def encode(page: list[Family]) -> bytes:
    return msgspec.msgpack.encode(page)


def decode(raw: bytes) -> list[Family]:
    """Raises MsgspecError: it is no page."""
    return _PAGES.decode(raw)


def added(pages: Iterable[list[Family]]) -> list[Family]:
    """What is added up of these pages, as one."""
    sums: dict[str, dict[tuple[object, ...], Sample]] = {}
    heads: dict[str, Family] = {}
    for page in pages:
        for family in page:
            if family.is_added:
                heads.setdefault(family.name, family)
                _add(sums.setdefault(family.name, {}), family.samples)
    return [Family(name, f.says, f.kind, list(sums[name].values())) for name, f in heads.items()]


def side_by_side(pages: Mapping[int, list[Family]]) -> list[Family]:
    """What each frontend, by its number, believes."""
    found: dict[str, Family] = {}
    for number, page in sorted(pages.items()):
        for family in page:
            if not family.is_added:
                own = [Sample(s.name, {**s.labels, "frontend": str(number)}, s.value) for s in family.samples]
                known = found.setdefault(family.name, Family(family.name, family.says, family.kind, []))
                known.samples.extend(own)
    return list(found.values())


def text(page: list[Family]) -> bytes:
    """As Prometheus reads it."""
    registry = CollectorRegistry()
    registry.register(_Page(page))
    return generate_latest(registry)


class _Page(Collector):
    def __init__(self, page: list[Family]) -> None:
        self._page = page

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        for family in self._page:
            metric = Metric(family.name, family.says, family.kind)
            for s in family.samples:
                metric.add_sample(s.name, s.labels, s.value)
            yield metric


def _add(sums: dict[tuple[object, ...], Sample], samples: list[Sample]) -> None:
    for s in samples:
        key = (s.name, *sorted(s.labels.items()))
        known = sums.get(key)
        if known is None:
            sums[key] = s
        else:
            value = min(known.value, s.value) if s.name.endswith(_SINCE) else known.value + s.value
            sums[key] = Sample(s.name, s.labels, value)
