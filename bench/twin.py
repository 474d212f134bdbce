"""The twin beside NVIDIA Dynamo's offline replay (PyPI `ai-dynamo-runtime`), on the same trace and the same physics.

    python bench/twin.py TRACE [--runs 5] [--copies 8] [--json]
    python bench/twin.py --workload agents|hot|groups [--seed 7] [--runs 1] [--json]

A workload is made up, from a seed, and written in Mooncake's format, so that both replay the same file: `agents` with
tools, which nobody tuned on, on 8 and 64 instances; `hot`, one system prompt of 32k tokens that 50 requests a second
share, on 64; `groups`, 150 system prompts of 6k tokens as in llm-d's benchmark, on 8, at two rates.

TRACE is Mooncake's conversation trace. Both simulate the same machine: Dynamo's mocker with its default polynomials,
16,384 blocks of 64 tokens, 8,192 tokens a step, 256 sequences; prefix caches block by block; routing by KV, and round
robin once.
Each run is a process of its own, one core, the two sides in turns; seconds are CPU of the whole process but for the
imports, the trace's reading included. Medians. Without the package only our own numbers are printed. What could be
reused at most is told beside: `bench/bounds.py`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from bench.bounds import Bounds, bounds, read

from jevons.config.scenario import Traffic
from jevons.twin.arrivals import TRACE_BLOCK, arrivals

ROWS = ((8, "round_robin", 1.0), (8, "kv", 1.0), (64, "kv", 8.0), (1024, "kv", 128.0))
OURS = """
import json, resource, sys
from jevons.config.calibration import read_calibration
from jevons.config.catalog import read_catalog
from jevons.config.scenario import make_scenario
from jevons.twin.run import simulate
trace, router = sys.argv[1], sys.argv[3]
instances, speed, copies = int(sys.argv[2]), float(sys.argv[4]), int(sys.argv[5])
group = {"instances": instances, "polynomial": {"prompt_ms": [16.50142, 1.518344e-2, 4.209989e-7],
         "decode_ms": [5.74, 54.01, -25.74]}}
table = {"fleet": [group], "router": router, "traffic": {"trace": trace, "speed": speed, "copies": copies}}
catalog, calibration = read_catalog(), read_calibration()
warm = {"fleet": [group], "router": router, "traffic": {"kind": "chat", "requests": 50}}
simulate(make_scenario(warm, "bench"), catalog, calibration)  # the kernels are loaded
report = simulate(make_scenario(table, "bench"), catalog, calibration)
print(json.dumps({"requests": report.requests, "cpu_s": report.cpu_s, "rss_mb": report.rss_bytes / 1e6,
    "reuse": report.reuse_fraction["hbm"], "ttft_ms": report.ttft_s.mean * 1e3, "ttft_p99_ms": report.ttft_s.p99 * 1e3,
    "itl_ms": report.itl_s.mean * 1e3, "tpot_ms": report.tpot_s.mean * 1e3}))
"""
THEIRS = """
import json, resource, sys
from dynamo._core import run_mocker_trace_replay
trace, workers, router, speed = sys.argv[1], int(sys.argv[2]), sys.argv[3], float(sys.argv[4])
before = resource.getrusage(resource.RUSAGE_SELF)
mode = "kv_router" if router == "kv" else router
result = run_mocker_trace_replay([trace], num_workers=workers, router_mode=mode, arrival_speedup_ratio=speed,
    trace_block_size=512, trace_format="mooncake")
after, s = resource.getrusage(resource.RUSAGE_SELF), dict(result.summary)
cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
print(json.dumps({"requests": s["completed_requests"], "cpu_s": cpu_s, "rss_mb": after.ru_maxrss / 1024,
    "reuse": s["prefix_cache_reused_ratio"], "ttft_ms": s["mean_ttft_ms"], "ttft_p99_ms": s["p99_ttft_ms"],
    "itl_ms": s["mean_itl_ms"], "tpot_ms": s["mean_tpot_ms"]}))
"""
_QUALITY = ("reuse", "ttft_ms", "ttft_p99_ms", "itl_ms", "tpot_ms")


def _run(program: str, *args: object) -> dict[str, Any]:
    env = {"DYN_LOG": "error"}
    command = ["taskset", "-c", "0", sys.executable, "-c", program, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | env, timeout=600)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _row(trace: str, instances: int, router: str, speed: float, runs: int) -> dict[str, Any]:
    ours, theirs = [], []
    for _ in range(runs):
        ours.append(_run(OURS, trace, instances, router, speed, 1))
        if importlib.util.find_spec("dynamo") is not None:
            theirs.append(_run(THEIRS, trace, instances, router, speed))
    row: dict[str, Any] = {"instances": instances, "router": router}
    for side, found in (("ours", ours), ("theirs", theirs)):
        if found:
            row[side] = {name: median(f[name] for f in found) for name in ("cpu_s", "rss_mb", *_QUALITY)}
            row[side]["per_cpu_s"] = median(f["requests"] / f["cpu_s"] for f in found)
    if router == "kv":
        row["bounds"] = bounds(read(Path(trace)), instances)._asdict()
    return row


def _print(row: dict[str, Any]) -> None:
    for side in ("ours", "theirs"):
        if side in row:
            r = row[side]
            quality = (
                f"reuse {r['reuse']:.3%}, TTFT {r['ttft_ms']:.1f} / p99 {r['ttft_p99_ms']:,.0f} ms, "
                f"ITL {r['itl_ms']:.3f}, TPOT {r['tpot_ms']:.3f}"
            )
            print(
                f"{row['instances']:>5} {row['router']:<12} {side:<7} {r['per_cpu_s']:>8,.0f} requests/CPU-s, "
                f"{r['rss_mb']:,.0f} MB; {quality}"
            )
    if "bounds" in row:
        print(f"      reuse, {Bounds(**row['bounds'])}")
    if "theirs" in row:
        print(f"      ratio {row['ours']['per_cpu_s'] / row['theirs']['per_cpu_s']:.1f}")


class Row(NamedTuple):
    at_s: float
    prompt: int
    output: int
    ids: Sequence[int]


def agents(rate: float, count: int, seed: int) -> Iterator[Row]:
    """Sessions of agents that start at a rate a second."""
    for piece in arrivals(Traffic(kind="agents", rate=rate, requests=count), seed):
        for at_s, prompt, output, first, ids in piece.requests.tolist():
            yield Row(at_s, prompt, output, piece.ids[first : first + min(ids, -(-prompt // TRACE_BLOCK))].tolist())


class Shared(NamedTuple):
    """Prompts that begin with one of some system prompts, and go on with a question that nobody else asks."""

    groups: int
    system_tokens: int
    question_tokens: int  # mean, exponential
    output_tokens: int  # mean, exponential
    rate: float  # requests a second, Poisson
    requests: int


def shared(s: Shared, seed: int) -> Iterator[Row]:
    draw, at_s, fresh = np.random.default_rng(seed), 0.0, 1 << 30
    system = s.system_tokens // TRACE_BLOCK
    for _ in range(s.requests):
        at_s += draw.exponential(1 / s.rate)
        prompt = s.system_tokens + 1 + int(draw.exponential(s.question_tokens))
        group, own = int(draw.integers(s.groups)), -(-prompt // TRACE_BLOCK) - system
        ids = [*range(group * system, (group + 1) * system), *range(fresh, fresh + own)]
        fresh += own
        yield Row(at_s, prompt, 2 + int(draw.exponential(s.output_tokens)), ids)


def write(path: Path, rows: Iterator[Row]) -> None:
    """In Mooncake's format, its ids counted from 0."""
    numbers: dict[int, int] = {}
    with path.open("w") as file:
        for at_s, prompt, output, ids in rows:
            named = [numbers.setdefault(id, len(numbers)) for id in ids]
            row = {"timestamp": round(at_s * 1e3), "input_length": prompt, "output_length": output, "hash_ids": named}
            file.write(json.dumps(row) + "\n")


def workload(name: str, seed: int) -> list[tuple[int, Iterator[Row]]]:
    """Instances, and what they are asked."""
    if name == "agents":
        return [(8, agents(3.0, 12_000, seed)), (64, agents(24.0, 30_000, seed))]
    if name == "hot":
        return [(64, shared(Shared(1, 32_768, 256, 128, 50.0, 6_000), seed))]
    return [(8, shared(Shared(150, 6_144, 1_228, 1_000, rate, 3_000), seed)) for rate in (3.0, 12.0)]


def _made_up(args: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for instances, made in workload(args.workload, args.seed):
            path = Path(folder) / "made.jsonl"
            write(path, made)
            rows.append(_row(str(path), instances, "kv", 1.0, args.runs))
            if not args.json:
                _print(rows[-1])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", nargs="?")
    parser.add_argument("--workload", choices=("agents", "hot", "groups"))
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--copies", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if bool(args.trace) == bool(args.workload):
        parser.error("give either a trace or --workload")
    if args.workload:
        made_up = _made_up(args)
        if args.json:
            print(json.dumps(made_up))
        return
    rows = []
    for instances, router, speed in ROWS:
        rows.append(_row(args.trace, instances, router, speed, args.runs))
        if not args.json:
            _print(rows[-1])
    for instances, speed in ((64, 1.0), (1024, 16.0)):
        copies = _run(OURS, args.trace, instances, "kv", speed, args.copies)
        rows.append({"instances": instances, "router": "kv", "copies": args.copies, "ours": copies})
        if not args.json:
            rate = copies["requests"] / copies["cpu_s"]
            print(f"{instances:>5} kv × {args.copies} copies: {rate:,.0f} requests/CPU-s, {copies['rss_mb']:,.0f} MB")
    if args.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
