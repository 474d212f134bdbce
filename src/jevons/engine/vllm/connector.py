"""The class that vLLM loads: its calls, passed on to `scheduler` and `worker`.

    vllm serve MODEL --kv-transfer-config '{"kv_connector": "JevonsConnector",
        "kv_connector_module_path": "jevons.engine.vllm.connector", "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute", "kv_connector_extra_config": {"socket": "/path/of/a/keeper"}}'

or, to have a keeper of its own: {"dram_bytes": …, "disk_path": …, "disk_bytes": …, "object_url": …}.

vLLM makes one in its scheduler's process and one in its worker's. They share the configuration and nothing else.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import (  # type: ignore[import-not-found]
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorWorkerMetadata,
)
from vllm.logger import init_logger  # type: ignore[import-not-found]
from vllm.v1.attention.backends.cpu_attn import _get_attn_isa  # type: ignore[import-not-found]
from vllm.v1.metrics.cache_hit_source import CacheHitSource  # type: ignore[import-not-found]

import vllm  # type: ignore[import-not-found]
from jevons.base.errors import ConfigError
from jevons.engine.vllm.answers import Answers
from jevons.engine.vllm.layout import ORDERS, NoPool, Pool, bits, find_order
from jevons.engine.vllm.metrics import Counts, Metrics
from jevons.engine.vllm.model import VERSION, check, identity_of, in_order, layout_of
from jevons.engine.vllm.scheduler import Scheduler
from jevons.engine.vllm.settings import Keeper, read_settings, socket_of
from jevons.engine.vllm.step import Orders, Told
from jevons.engine.vllm.worker import Worker
from jevons.facts.block import Tier
from jevons.kv.layout import Layout, fingerprint
from jevons.store.node import Introduction, Node
from jevons.store.node import Pool as NodePool
from vllm import _custom_ops as operations

logger = init_logger("vllm.jevons")  # vLLM shows loggers below its own name

SOURCES = {Tier.DRAM: CacheHitSource.HOST, Tier.DISK: CacheHitSource.DISK}
SLOT_STEPS = 2  # pages of so many full steps may be on their way to the tiers
OF_NODE = ("no_keeper", "keeper_lost")


class MonotonicClock:
    """Real time."""

    def now_s(self) -> float:
        return time.monotonic()


@dataclass
class ToWorker(KVConnectorMetadata):  # type: ignore[misc]
    orders: Orders


@dataclass
class ToScheduler(KVConnectorWorkerMetadata):  # type: ignore[misc]
    told: Told

    def aggregate(self, other: KVConnectorWorkerMetadata) -> KVConnectorWorkerMetadata:
        raise AssertionError("there is one worker, see `model.check`")


class JevonsConnector(KVConnectorBase_V1):  # type: ignore[misc]
    """vLLM's KV connector.

    Raises:
        ConfigError: a setting is wrong, or this model's blocks cannot be shared; vLLM does not start.
    """

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        if vllm.__version__.split("+")[0] != VERSION:
            raise ConfigError(f"vllm: must be {VERSION}, got {vllm.__version__}: the connector knows no other's blocks")
        check(vllm_config)
        transfer = vllm_config.kv_transfer_config
        self._layout = layout_of(kv_cache_config)
        settings = read_settings(transfer.kv_connector_extra_config, self._layout.page_bytes)
        self._config = vllm_config
        self._socket = socket_of(settings, transfer.engine_id)
        self._clock = MonotonicClock()
        self._shown: Counter[str] = Counter()
        self._keeper: Keeper | None = None
        self._node: Node | None = None
        self._told: Told | None = None
        if role is KVConnectorRole.SCHEDULER:
            if settings.socket is None:
                self._keeper = Keeper(settings, self._socket, self._clock)
            self._node, answers = self._join(NoPool())
            steps = vllm_config.scheduler_config.max_num_batched_tokens
            self._scheduler = Scheduler(self._layout, steps, self._node.ask, answers, self._clock)

    @property
    def requires_kv_delivery(self) -> bool:
        return False  # a cache: what is not saved is computed again

    def shutdown(self) -> None:
        if self._node is not None:
            self._node.close()
        if self._keeper is not None:
            self._keeper.close()

    def get_kv_connector_stats(self) -> Counts | None:
        counts = self._scheduler.counts if self._role is KVConnectorRole.SCHEDULER else self._worker.counts
        total = Counter(counts)
        if self._node is not None:
            total.update({what: self._node.counts[what] for what in OF_NODE})
        fresh, self._shown = total - self._shown, total
        return Counts(dict(fresh)) if fresh else None

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> Counts:
        return Counts(data or {})

    @classmethod
    def build_prom_metrics(
        cls, vllm_config: Any, metric_types: Any, labelnames: list[str], per_engine_labelvalues: dict[int, list[object]]
    ) -> Metrics:
        return Metrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)

    def _join(self, pool: NodePool) -> tuple[Node, Answers]:
        identity = identity_of(self._config, self._layout)
        answers = Answers(self._clock)
        own = Introduction("vllm", fingerprint(identity), self._layout.page_bytes)
        logger.info("jevons: keeper at %s, blocks of %s (%s)", self._socket, own.fingerprint.hex(), identity)
        return Node(self._socket, own, pool, answers.put), answers

    # The scheduler's side

    def on_new_request(self, request: Any) -> None:
        self._scheduler.on_new(request)

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        tokens = self._scheduler.matched(request, num_computed_tokens)
        return tokens, bool(tokens)

    def get_external_cache_hit_sources(self, request: Any, num_external_tokens: int) -> dict[CacheHitSource, int]:
        found: Counter[CacheHitSource] = Counter()
        for tier, tokens in self._scheduler.sources(request, num_external_tokens).items():
            found[SOURCES.get(tier, CacheHitSource.EXTERNAL_UNSPECIFIED)] += tokens
        return dict(found)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        (ids,) = blocks.get_block_ids()
        self._scheduler.allocated(request, ids, num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> ToWorker:
        if self._keeper is not None:
            self._keeper.revive()
        blocks_of = scheduler_output.kv_connector_block_state.resolve_block_ids
        scheduled = scheduler_output.num_scheduled_tokens
        return ToWorker(self._scheduler.orders(scheduled, lambda request: blocks_of(request)[0]))

    def update_connector_output(self, connector_output: Any) -> None:
        if connector_output.kv_connector_worker_meta is not None:
            self._scheduler.on_told(connector_output.kv_connector_worker_meta.told)
        for request in connector_output.finished_recving or ():
            self._scheduler.on_loaded(request)

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, None]:
        self._scheduler.on_finished(request.request_id)
        return False, None

    def reset_cache(self) -> bool:
        """Somebody wants nothing of before to be used: new weights, perhaps, which our fingerprint does not tell."""
        self._scheduler.stop()
        logger.warning("jevons: the cache was reset; the tiers are not used until vLLM is started again")
        return True

    # The worker's side

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        (group,) = self._kv_cache_config.kv_cache_groups
        if set(kv_caches) != set(group.layer_names):
            raise ConfigError(f"model: {len(kv_caches)} caches for {len(group.layer_names)} layers; some share theirs")
        caches = {name: kv_caches[name] for name in in_order(group.layer_names)}
        order = find_order(caches, self._layout, partial(_write, self._layout))
        layers = [ORDERS[order](bits(cache)) for cache in caches.values()]
        step_tokens = self._config.scheduler_config.max_num_batched_tokens
        slots = SLOT_STEPS * -(-step_tokens // self._layout.block_size)
        pool = Pool(layers, self._layout, slots)
        self._node, answers = self._join(pool)
        self._worker = Worker(self._layout, pool, self._node.ask, answers, self._clock)
        logger.info("jevons: %d layers, order %r proven on each, %d slots", len(layers), order, slots)

    def bind_connector_metadata(self, connector_metadata: ToWorker) -> None:
        super().bind_connector_metadata(connector_metadata)
        self._worker.begin()

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        self._worker.load(self._orders)

    def wait_for_layer_load(self, layer_name: str) -> None:
        pass

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        pass

    def wait_for_save(self) -> None:
        self._told = self._worker.end(self._orders)

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        return None, self._worker.loaded(self._orders.is_idle)

    def get_block_ids_with_load_errors(self) -> set[int]:
        return self._worker.take_errors()

    def build_connector_worker_meta(self) -> ToScheduler | None:
        told, self._told = self._told, None
        return None if told is None else ToScheduler(told)

    @property
    def _orders(self) -> Orders:
        orders: Orders = self._get_connector_metadata().orders
        return orders


def _write(layout: Layout, cache: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor) -> None:
    """What vLLM's CPU attention does with a step's keys and values, see its `do_kv_cache_update`."""
    halves = cache.view(cache.shape[0], layout.kv_heads, 2 * layout.block_size, -1).chunk(2, dim=2)
    isa = _get_attn_isa(cache.dtype, layout.block_size, layout.head_dim, "auto")
    operations.cpu_attn_reshape_and_cache(keys, values, *halves, slots, isa)
