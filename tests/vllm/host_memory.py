"""vLLM's offloading to host memory where its device is the CPU: imported by vLLM, not by these tests.

What is offloaded, when, what gives way and what is told of it is vLLM's own. Only who copies is ours: its own copier
asks for streams of a GPU ("CPU Offloading is currently only supported on CUDA-alike and XPU GPUs").
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from vllm.v1.kv_offload.base import OffloadingWorker, TransferResult  # type: ignore[import-not-found]
from vllm.v1.kv_offload.cpu.spec import CPUOffloadingSpec  # type: ignore[import-not-found]


class HostMemory(CPUOffloadingSpec):  # type: ignore[misc]
    """As vLLM's own, with another copier."""

    def get_worker(self, kv_caches: Any) -> Any:
        """Called once, in the worker's process."""
        return Copier(kv_caches, self.blocks_per_chunk, self.num_chunks)


class Copier(OffloadingWorker):  # type: ignore[misc]
    """Copies blocks at once, on the thread that asks."""

    def __init__(self, kv_caches: Any, blocks_per_chunk: int, chunks: int) -> None:
        self._pools = [each.tensor for each in kv_caches.tensors]  # each [block, byte]
        self._kept = [torch.zeros((chunks, blocks_per_chunk, pool.shape[1]), dtype=torch.int8) for pool in self._pools]
        self._pools_of = [sorted({ref.tensor_idx for ref in refs}) for refs in kv_caches.group_data_refs]
        self._blocks_per_chunk = blocks_per_chunk
        self._finished: list[TransferResult] = []

    def submit_store(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        """From the pool."""
        for pool, block, chunk, place in self._copies(src_spec, dst_spec):
            self._kept[pool][chunk, place] = self._pools[pool][block]
        return self._done(job_id)

    def submit_load(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        """To the pool."""
        for pool, block, chunk, place in self._copies(dst_spec, src_spec):
            self._pools[pool][block] = self._kept[pool][chunk, place]
        return self._done(job_id)

    def get_finished(self) -> list[TransferResult]:
        """Since the last call."""
        finished, self._finished = self._finished, []
        return finished

    def wait(self, job_ids: set[int]) -> None:
        """They are done."""

    def _done(self, job_id: int) -> bool:
        self._finished.append(TransferResult(job_id=job_id, success=True))
        return True

    def _copies(self, pooled: Any, chunked: Any) -> Iterator[tuple[int, int, int, int]]:
        """Pool, block, chunk, and the block's place in the chunk, of which there may be more than are asked for."""
        blocks, chunks = iter(pooled.block_ids.tolist()), iter(chunked.block_ids.tolist())
        for pools, size, first in zip(self._pools_of, pooled.group_sizes, pooled.block_indices, strict=True):
            chunk = -1
            for number in range(first, first + size):
                place = number % self._blocks_per_chunk
                if place == 0 or number == first:
                    chunk = next(chunks)
                block = next(blocks)
                yield from ((pool, block, chunk, place) for pool in pools)
