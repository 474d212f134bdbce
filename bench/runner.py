"""Tokens per second of the embedded engine on one core, each beside the physical limit measured in the same run.

    python bench/runner.py [--model DIR] [--invariant] [--json]

Prefill is held against a matrix product of as many operations (512 x 2048 by 2048 x 2048, in the type the engine
computes in on this machine), decode against reading the weights (and the KV of the batch) once per step at the speed of
a large copy. Medians; CPU seconds of this process.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median

import torch

from jevons.engine.pull import resolve
from jevons.engine.reference.runner import Cache, Runner, Slice
from jevons.engine.reference.weights import compute_dtype
from jevons.facts.model import ModelShape
from jevons.facts.request import Sampling

BLOCK = 16
GREEDY = Sampling(temperature=0)
PREFILLS = (128, 512, 1024, 2048)
DECODES = ((1, 64), (1, 1024), (8, 64), (8, 1024))


@dataclass(frozen=True)
class Row:
    """One measurement; seconds are per token."""

    what: str
    tokens_per_cpu_s: float
    tokens_per_wall_s: float
    wall_s_per_token: float
    cpu_s_per_token: float
    limit_tokens_per_s: float
    share_of_limit: float


def timed(work: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median (wall, CPU) seconds of `work`, after a first run to warm up."""
    work()
    walls, cpus = [], []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return median(walls), median(cpus)


def product_flops_per_s(dtype: torch.dtype) -> float:
    """Speed of a large matrix product."""
    x, weight = torch.randn(512, 2048).to(dtype), torch.randn(2048, 2048).to(dtype)
    _, cpu = timed(lambda: torch.nn.functional.linear(x, weight), 15)
    return 2 * 512 * 2048 * 2048 / cpu


def copy_bytes_per_s() -> float:
    """Bytes read plus bytes written per second, copying 256 MB."""
    source, target = torch.zeros(2**26), torch.zeros(2**26)
    _, cpu = timed(lambda: target.copy_(source), 5)
    return 2 * 4 * 2**26 / cpu


def layer_weights(shape: ModelShape) -> int:
    """Numbers in the matrices of all layers."""
    attention = shape.hidden * shape.head_dim * (2 * shape.heads + 2 * shape.kv_heads)
    return shape.layers * (attention + 3 * shape.hidden * shape.intermediate)


def prefill_flops(shape: ModelShape, tokens: int) -> float:
    """Operations of a prompt: layers, causal attention, and the head for its last token."""
    attention = shape.layers * 2 * shape.heads * shape.head_dim * tokens * tokens
    return 2.0 * layer_weights(shape) * tokens + attention + 2 * shape.vocab * shape.hidden


def decode_bytes(shape: ModelShape, batch: int, context: int) -> float:
    """Bytes a step must read: all weights once, in 2 bytes each, and the KV of each sequence."""
    return 2.0 * (layer_weights(shape) + shape.vocab * shape.hidden) + batch * context * shape.kv_bytes_per_token()


def row(what: str, tokens: int, seconds: tuple[float, float], limit_s: float) -> Row:
    """A measurement of `tokens` that took `seconds` (wall, CPU), where nothing takes less than `limit_s`."""
    wall, cpu = seconds
    return Row(what, tokens / cpu, tokens / wall, wall / tokens, cpu / tokens, tokens / limit_s, limit_s / cpu)


def prefill(runner: Runner, tokens: int, flops_per_s: float) -> Row:
    piece = Slice([i * 7919 % 40_000 for i in range(tokens)], 0, range(tokens // BLOCK + 1), GREEDY)
    seconds = timed(lambda: runner.step([piece]), 5 if tokens < 2048 else 3)
    return row(f"prefill {tokens}", tokens, seconds, prefill_flops(runner.shape, tokens) / flops_per_s)


def decode(runner: Runner, batch: int, context: int, bytes_per_s: float) -> Row:
    blocks = context // BLOCK + 1
    tables = [range(i * blocks, (i + 1) * blocks) for i in range(batch)]
    step = [Slice([100 + i], context - 1, table, GREEDY) for i, table in enumerate(tables)]
    seconds = timed(lambda: runner.step(step), 40)
    what = f"decode, batch {batch}, context {context}"
    return row(what, batch, seconds, decode_bytes(runner.shape, batch, context) / bytes_per_s)


def report(facts: dict[str, object], rows: list[Row]) -> None:
    print(*(f"{name}: {value}" for name, value in facts.items()), sep="\n")
    print(f"{'':32}{'tok/CPU-s':>10}{'tok/s':>9}{'wall ms':>9}{'CPU ms':>9}{'limit tok/s':>13}{'of limit':>10}")
    for r in rows:
        speeds = f"{r.tokens_per_cpu_s:10.1f}{r.tokens_per_wall_s:9.1f}"
        times = f"{1e3 * r.wall_s_per_token:9.3f}{1e3 * r.cpu_s_per_token:9.3f}"
        print(f"{r.what:32}{speeds}{times}{r.limit_tokens_per_s:13.1f}{r.share_of_limit:10.0%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="a known model, or a Hugging Face directory")
    parser.add_argument("--invariant", action="store_true", help="batch-invariant mode")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    dtype = compute_dtype(torch.device("cpu"))
    flops_per_s, bytes_per_s = product_flops_per_s(dtype), copy_bytes_per_s()
    loaded_s = time.perf_counter()
    runner = Runner(resolve(args.model), Cache(600, BLOCK), invariant=args.invariant)
    loaded_s = time.perf_counter() - loaded_s
    rows = [prefill(runner, tokens, flops_per_s) for tokens in PREFILLS]
    rows += [decode(runner, batch, context, bytes_per_s) for batch, context in DECODES]
    facts: dict[str, object] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
        "torch": torch.__version__,
        "invariant": args.invariant,
        "load average": os.getloadavg()[0],
        "loaded in s": round(loaded_s, 2),
        "largest RSS in MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        f"{dtype} product GFLOP/s": round(flops_per_s / 1e9),
        "copy GB/s": round(bytes_per_s / 1e9, 1),
    }
    print(json.dumps({**facts, "rows": [asdict(r) for r in rows]})) if args.json else report(facts, rows)


if __name__ == "__main__":
    main()
