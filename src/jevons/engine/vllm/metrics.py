"""What the connector counts, on vLLM's metrics page and in its log."""

from __future__ import annotations

from collections import Counter
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (  # type: ignore[import-not-found]
    KVConnectorPromMetrics,
    KVConnectorStats,
)


class Counts(KVConnectorStats):  # type: ignore[misc]
    """How often each thing happened since the last time: `data` by name."""

    def reset(self) -> None:
        self.data: dict[str, int] = {}

    def aggregate(self, other: Counts) -> Counts:
        return Counts(dict(Counter(self.data) + Counter(other.data)))

    def reduce(self) -> dict[str, int]:
        return dict(self.data)

    def is_empty(self) -> bool:
        return not self.data


class Metrics(KVConnectorPromMetrics):  # type: ignore[misc]
    """`vllm:jevons_total{what=…}`."""

    def __init__(self, config: Any, types: Any, labels: list[str], engines: dict[int, list[object]]) -> None:
        super().__init__(config, types, labels, engines)
        self._counter = self._counter_cls(
            name="vllm:jevons",
            documentation="KV blocks to and from jevons' tiers, and what kept others from it, by what happened.",
            labelnames=[*labels, "what"],
        )

    def observe(self, transfer_stats_data: dict[str, int], engine_idx: int = 0) -> None:
        for what, amount in transfer_stats_data.items():
            self._counter.labels(*self.per_engine_labelvalues[engine_idx], what).inc(amount)
