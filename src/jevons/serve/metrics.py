"""What /metrics tells (Prometheus). Counters and histograms as things happen; the fleet's state read at each scrape."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import accumulate, islice
from typing import TypeVar

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from jevons.control.gate import Gate
from jevons.control.router import Router
from jevons.facts.snapshot import FleetSnapshot, Outcome, WorkerSnapshot
from jevons.facts.worker import Health, IndexMode
from jevons.serve.prompts import Prompts
from jevons.serve.record import Recorder

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
# Measured over predicted: 1 is right. Symmetric in the logarithm.
RATIOS = (0.1, 0.2, 0.33, 0.5, 0.67, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
PORTION = 16  # workers told of at a time: a fraction of a millisecond
MOST_LEFT = (
    256  # workers that are no more and still told of, the latest: pods get a new name whenever they are replaced
)
_WORKER = "worker"  # the label
T = TypeVar("T")


class Count:
    """A counter. The library's own takes a lock and ten times as long for each step; here one thread counts."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, by: float = 1.0) -> None:
        self.value += by


class Spread:
    """A histogram with these upper bounds."""

    __slots__ = ("_bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    def buckets(self) -> list[tuple[str, float]]:
        """Upper bound → how many were at most that."""
        names = [*map(floatToGoString, self._bounds), "+Inf"]
        return list(zip(names, map(float, accumulate(self.counts)), strict=True))


class Counters:
    """Counters of one name, by their labels."""

    def __init__(self, name: str, says: str, labels: Sequence[str]) -> None:
        self._told = name, says, labels
        self._children: dict[tuple[str, ...], Count] = {}

    def labels(self, *values: str) -> Count:
        child = self._children.get(values)
        if child is None:
            child = self._children[values] = Count()
        return child

    def inc(self, by: float = 1.0) -> None:
        """Where there are no labels."""
        self.labels().inc(by)

    def let_go(self, there: Collection[str]) -> None:
        """Of workers that are no more only the latest are told of."""
        if list(self._told[2]) == [_WORKER]:
            left = [values for values in self._children if values[0] not in there]
            for values in left[: max(0, len(left) - MOST_LEFT)]:
                del self._children[values]

    def collect(self) -> Iterator[CounterMetricFamily]:
        name, says, labels = self._told
        for some in _portions(self._children.items() if labels else [((), self.labels())]):
            family = CounterMetricFamily(name, says, labels=labels)
            for values, child in some:
                family.add_metric(values, child.value)
            yield family


class Histograms:
    """Histograms of one name, by their label."""

    def __init__(self, name: str, says: str, label: str, bounds: Sequence[float]) -> None:
        self._told = name, says, [label]
        self._bounds = bounds
        self._children: dict[str, Spread] = {}

    def labels(self, value: str) -> Spread:
        child = self._children.get(value)
        if child is None:
            child = self._children[value] = Spread(self._bounds)
        return child

    def let_go(self, there: Collection[str]) -> None:
        """See `Counters`."""
        if self._told[2] == [_WORKER]:
            left = [value for value in self._children if value not in there]
            for value in left[: max(0, len(left) - MOST_LEFT)]:
                del self._children[value]

    def collect(self) -> Iterator[HistogramMetricFamily]:
        name, says, labels = self._told
        for some in _portions(self._children.items()):
            family = HistogramMetricFamily(name, says, labels=labels)
            for value, child in some:
                family.add_metric([value], child.buckets(), child.sum)
            yield family


class Metrics:
    """All metrics of one server, in a registry of its own."""

    def __init__(self, router: Router, recorder: Recorder | None = None, prompts: Prompts | None = None) -> None:
        self.registry = registry = CollectorRegistry()
        if prompts is not None:
            registry.register(_TokenizerCollector(prompts))
        registry.register(_FleetCollector(router))
        if recorder is not None:
            lost = Gauge("jevons_record_lost", "Lines of the record that could not be written.", registry=registry)
            lost.set_function(lambda: recorder.lost)

        self._counted: list[Counters | Histograms] = []
        registry.register(_OwnCollector(self._counted, router))

        def counter(name: str, says: str, *labels: str) -> Counters:
            self._counted.append(made := Counters(name, says, labels))
            return made

        def histogram(name: str, says: str, label: str, bounds: Sequence[float]) -> Histograms:
            self._counted.append(made := Histograms(name, says, label, bounds))
            return made

        self.requests = counter("jevons_requests", "Requests answered.", "endpoint", "status")
        self.seconds = histogram("jevons_request_seconds", "Arrival to end.", "endpoint", SECONDS)
        self.ttft = histogram("jevons_ttft_seconds", "Arrival to first token.", "worker", SECONDS)
        self.itl = histogram("jevons_itl_seconds", "Gap between tokens.", "worker", SECONDS)
        self.ttft_ratio = histogram(
            "jevons_ttft_measured_over_predicted", "Placement to first token, over its prediction.", "worker", RATIOS
        )
        self.prompt_tokens = counter("jevons_prompt_tokens", "Prompt tokens of placed requests.", "worker")
        self.cached_tokens = counter("jevons_cached_tokens", "Prompt tokens engines had, as they report.", "worker")
        self.predicted_cached = counter("jevons_predicted_cached_tokens", "The same, as predicted.", "worker")
        self.cached_wrong = counter("jevons_cached_mispredictions", "Requests predicted wrong in this.", "worker")
        self.output_tokens = counter("jevons_output_tokens", "Tokens sent.", "worker")
        self.retries = counter("jevons_retries", "Requests moved to another worker unseen.", "worker")
        self.cut = counter("jevons_cut_streams", "Answers that ended in the middle.", "worker")
        self.picks = counter("jevons_picks", "Endpoints picked for a gateway, by what was known.", "by")
        self.picker_faults = counter("jevons_picker_faults", "Exchanges with a gateway that went wrong.", "reason")
        self.picker_streams = Gauge("jevons_picker_streams", "Requests of a gateway under way.", registry=registry)
        self.expired = counter(
            "jevons_placements_expired", "Placements held for a gateway that never told of their end."
        )
        self.refused = counter("jevons_refused_late", "Requests refused because they would have missed their own SLO.")
        self.downgraded = counter("jevons_downgraded", "Requests served without the promise they asked for.")
        self.queued = histogram("jevons_queue_seconds", "Waited in front, by what became of it.", "fate", SECONDS)
        self.left = counter("jevons_clients_gone", "Clients that left before their answer was complete.")

    def watch(self, gate: Gate) -> None:
        """Tell of a gate too."""
        self.registry.register(_GateCollector(gate))

    def placed(self, outcome: Outcome) -> None:
        """A placement is over: book what was predicted and measured."""
        worker = outcome.worker
        self.prompt_tokens.labels(worker).inc(outcome.prompt_tokens)
        self.predicted_cached.labels(worker).inc(outcome.predicted_cached_tokens)
        if outcome.cached_tokens is not None:
            self.cached_tokens.labels(worker).inc(outcome.cached_tokens)
            if outcome.cached_tokens != outcome.predicted_cached_tokens:
                self.cached_wrong.labels(worker).inc()
        if outcome.ttft_s is not None and outcome.predicted_ttft_s > 0:
            self.ttft_ratio.labels(worker).observe(outcome.ttft_s / outcome.predicted_ttft_s)

    def pieces(self) -> Iterator[bytes]:
        """The text of /metrics, in pieces that take a millisecond at most, made as they are asked for: of a thousand
        workers it is 7 MB, most of them histograms.
        """
        before = ""
        for family in self.registry.collect():
            text = generate_latest(_Alone(family))
            yield text if family.name != before else text.split(b"\n", 2)[2]  # named already
            before = family.name


class _OwnCollector(Collector):
    """What was counted as it happened."""

    def __init__(self, counted: list[Counters | Histograms], router: Router) -> None:
        self._counted = counted
        self._router = router

    def collect(self) -> Iterator[CounterMetricFamily | HistogramMetricFamily]:
        there = frozenset(self._router.workers())
        for one in self._counted:
            one.let_go(there)
            yield from one.collect()


class _Alone:
    """As a registry that has nothing else."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterable[Metric]:
        return (self._family,)


def _portions(those: Iterable[T]) -> Iterator[list[T]]:
    """At least one, if it is empty; of those that are there now."""
    left = iter(list(those))
    yield list(islice(left, PORTION))
    while some := list(islice(left, PORTION)):
        yield some


class _TokenizerCollector(Collector):
    """What encodes the prompts of each model."""

    def __init__(self, prompts: Prompts) -> None:
        self._prompts = prompts

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        fast = GaugeMetricFamily("jevons_tokenizer_fast", "1 if fastokens encodes its prompts.", labels=["model"])
        says = "Prompts that fastokens was found to encode otherwise than tokenizers; it is not used from then on."
        wrong = CounterMetricFamily("jevons_tokenizer_mismatches", says, labels=["model"])
        for name, tokenizer in self._prompts.encoders().items():
            fast.add_metric([name], float(tokenizer.encoder == "fastokens"))
            wrong.add_metric([name], tokenizer.mismatches)
        yield from (fast, wrong)


class _GateCollector(Collector):
    """Who waits in front, and what each tenant was given; as many tenants as are remembered."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        state = self._gate.snapshot()
        yield GaugeMetricFamily("jevons_queue_waiting", "Requests that wait in front.", state.waiting)
        yield CounterMetricFamily("jevons_tenants_forgotten", "Tenants no longer remembered.", state.forgotten_tenants)
        placements = CounterMetricFamily("jevons_tenant_placements", "Requests placed.", labels=["tenant"])
        seconds = CounterMetricFamily("jevons_tenant_device_seconds", "Of devices, as predicted.", labels=["tenant"])
        for tenant in state.tenants:
            placements.add_metric([tenant.id], tenant.placements)
            seconds.add_metric([tenant.id], tenant.device_s)
        yield placements
        yield seconds


_GAUGES = {
    "jevons_worker_up": "1 if the worker is given work.",
    "jevons_worker_index_exact": "1 if its blocks are known from events without a hole.",
    "jevons_worker_stalled": "1 if it does nothing about what waits there.",
    "jevons_worker_index_confidence": "Share of cached tokens predicted that was there.",
    "jevons_worker_blocks": "Blocks it holds.",
    "jevons_worker_queued_tokens": "Prompt tokens placed and not computed.",
    "jevons_worker_requests": "Unfinished requests.",
    "jevons_worker_prefill_tokens_per_second": "Learned so far.",
}


def _gauged(worker: WorkerSnapshot) -> tuple[float, ...]:
    """In the order of `_GAUGES`."""
    return (
        worker.health is Health.UP,
        worker.index is IndexMode.EXACT,
        worker.is_stalled,
        worker.index_confidence,
        worker.held_blocks,
        worker.queued_tokens,
        worker.requests,
        worker.prefill_tokens_per_s,
    )


class _FleetCollector(Collector):
    """The router's snapshot as gauges."""

    def __init__(self, router: Router) -> None:
        self._router = router

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        snapshot = self._router.snapshot([])
        yield GaugeMetricFamily("jevons_index_blocks", "Distinct blocks the index knows.", snapshot.index_blocks)
        forgotten = "Blocks of workers that the index let go because its memory was short."
        yield CounterMetricFamily("jevons_index_forgotten", forgotten, snapshot.index_forgotten)
        yield CounterMetricFamily("jevons_placements", "Requests placed.", snapshot.placements)
        copies = "Prompts computed where their prefix was not, for those who want it next."
        yield CounterMetricFamily("jevons_copies", copies, snapshot.copies)
        yield from _tiers(snapshot)
        workers: list[list[WorkerSnapshot]] = [[]]
        told = self._router.worker_snapshots()
        while workers[-1] or len(workers) == 1:  # the first gauge is told as they are looked at
            workers.append(list(islice(told, PORTION)))
            yield _gauge(0, workers[-1])
        for number in range(1, len(_GAUGES)):
            for some in workers:
                yield _gauge(number, some)
        for some in workers:
            events = CounterMetricFamily(
                "jevons_worker_events", "Blocks of KV events by fate.", labels=["worker", "fate"]
            )
            for worker in some:
                for fate, count in worker.event_counts.items():
                    events.add_metric([worker.id, fate], count)
            yield events
        for some in workers:
            says = "Pages saved, or not brought, by fate."
            pages = CounterMetricFamily("jevons_worker_tier_pages", says, labels=["worker", "fate"])
            for worker in some:
                for fate, count in worker.tier_counts.items():
                    pages.add_metric([worker.id, fate], count)
            yield pages


def _gauge(number: int, workers: list[WorkerSnapshot]) -> GaugeMetricFamily:
    name, says = list(_GAUGES.items())[number]
    family = GaugeMetricFamily(name, says, labels=["worker"])
    for worker in workers:
        family.add_metric([worker.id], float(_gauged(worker)[number]))
    return family


def _tiers(snapshot: FleetSnapshot) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
    """The node's tiers, while their keeper is there."""
    tiers = snapshot.tiers
    if tiers is None:
        return
    yield GaugeMetricFamily("jevons_dram_used_bytes", "Of the arena.", tiers.dram_used_bytes)
    yield GaugeMetricFamily("jevons_leases", "Fetches and reservations of engines under way.", tiers.leases)
    blocks = GaugeMetricFamily("jevons_tier_blocks", "Blocks a tier holds.", labels=["tier"])
    for tier, count in tiers.blocks.items():
        blocks.add_metric([tier], count)
    yield blocks
    fates = CounterMetricFamily("jevons_tier_events", "What tiers refused, lost or gave up.", labels=["reason"])
    for reason, count in tiers.counts.items():
        fates.add_metric([reason], count)
    yield fates
