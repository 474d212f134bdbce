"""Half the fleet three times slower: `kv` beside the best static weighting, in the twin.

    python bench/unlike.py TRACE [--instances 16] [--slower 3] [--speeds 1.5,2,2.5] [--json]

TRACE is Mooncake's conversation trace, replayed at each speed. A static weighting sends the fast half `w` requests for
each one of the slow half, in turns (smooth weighted round robin); since nothing else joins the halves, each half is a
rehearsal of its own, of its share of the trace: `in turns` places round robin inside it, `by kv` as we do. For `sticky`
conversations are dealt out instead of requests, so that each finds its blocks. The best weight is sought for every
speed and way anew, which no operator could: it is the bound of what a static weighting can do.

Goodput: requests a second that met TTFT 2 s and TPOT 0.1 s, over the trace's time. Also told: the share of requests
the slow half got (a third as fast as the fast one, it computes a quarter of all), and of the instance with the fewest
and the most, over the mean of its half; TTFT by half.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jevons.config.calibration import read_calibration
from jevons.config.catalog import read_catalog
from jevons.config.scenario import make_scenario
from jevons.twin.run import simulate

FAST: dict[str, Any] = {
    "prompt_ms": [16.50142, 1.518344e-2, 4.209989e-7],
    "decode_ms": [5.74, 54.01, -25.74],
    "floor_ms": 1.0,
}
WEIGHTS = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 7.0, 12.0, 40.0)
TTFT_S, TPOT_S = 2.0, 0.1
BLOCKS = 16_384


class Half(NamedTuple):
    """What came of the requests of one half."""

    met: int
    requests: int
    ttft_s: Any  # [requests]
    each: Any  # [instances] requests


def _slow(times: float) -> dict[str, Any]:
    return {
        name: [times * ms for ms in value] if isinstance(value, list) else times * value for name, value in FAST.items()
    }


def _rehearse(trace: Path, speed: float, router: str, fleet: Sequence[dict[str, Any]]) -> Any:
    """Results of each request, `twin.kernel.RESULT`."""
    table = {
        "fleet": list(fleet),
        "router": router,
        "slo": {"ttft_s": TTFT_S, "tpot_s": TPOT_S},
        "traffic": {"trace": str(trace), "speed": speed},
    }
    pieces: list[Any] = []
    scenario = make_scenario(table, "bench")
    simulate(scenario, read_catalog(), read_calibration(), on_results=lambda r: pieces.append(r.copy()))
    return np.concatenate(pieces)


def _half(results: Any, first: int, count: int) -> Half:
    mine = results[(results["worker"] >= first) & (results["worker"] < first + count)]
    ttft_s = mine["first_s"] - mine["at_s"]
    tpot_s = (mine["done_s"] - mine["first_s"]) / np.maximum(mine["output"] - 1, 1)
    met = int(((ttft_s <= TTFT_S) & (tpot_s <= TPOT_S)).sum())
    return Half(met, len(mine), ttft_s, np.bincount(mine["worker"] - first, minlength=count))


def _dealt(keys: Iterable[object], weight: float) -> list[bool]:
    """Whether each request goes to the fast half: new keys in turns by weight, known ones where they went before."""
    owed, seen, share, dealt = 0.0, dict[object, bool](), weight / (weight + 1.0), list[bool]()
    for key in keys:
        if key not in seen:
            owed += share
            seen[key] = owed >= 0.5
            owed -= seen[key]
        dealt.append(seen[key])
    return dealt


def _conversation(number: int, line: str) -> object:
    """All prompts of this trace begin with the same block; the next one is a conversation's own."""
    ids = json.loads(line)["hash_ids"]
    return ids[1] if len(ids) > 1 else ("alone", number)


class Bench:
    """One trace, one fleet."""

    def __init__(self, trace: Path, instances: int, slower: float, folder: Path) -> None:
        self._lines = trace.read_text().splitlines()
        self._folder = folder
        self._count = instances // 2
        kinds = (FAST, _slow(slower))
        self._fleet = [{"instances": self._count, "blocks": BLOCKS, "polynomial": kind} for kind in kinds]
        self._all = self._write(self._lines, "all")
        times = [json.loads(self._lines[i])["timestamp"] for i in (0, -1)]
        self._trace_s = (times[1] - times[0]) / 1e3

    def ours(self, speed: float, router: str) -> dict[str, Any]:
        results = _rehearse(self._all, speed, router, self._fleet)
        halves = [_half(results, first, self._count) for first in (0, self._count)]
        return self._told(halves, speed)

    def best_static(self, speed: float, router: str, *, sticky: bool) -> dict[str, Any]:
        """The best of all weights."""
        found = [self._static(speed, router, weight, sticky) for weight in WEIGHTS]
        return max(found, key=lambda row: float(row["goodput_per_s"]))

    def _static(self, speed: float, router: str, weight: float, sticky: bool) -> dict[str, Any]:
        key: Callable[[int, str], object] = _conversation if sticky else lambda number, _: number
        dealt = _dealt((key(number, line) for number, line in enumerate(self._lines)), weight)
        halves = []
        for is_fast, group in zip((True, False), self._fleet, strict=True):
            lines = [line for line, fast in zip(self._lines, dealt, strict=True) if fast is is_fast]
            results = _rehearse(self._write(lines, "half"), speed, router, [group])
            halves.append(_half(results, 0, self._count))
        return {"weight": weight, **self._told(halves, speed)}

    def _told(self, halves: Sequence[Half], speed: float) -> dict[str, Any]:
        requests = sum(half.requests for half in halves)
        row: dict[str, Any] = {
            "goodput_per_s": sum(half.met for half in halves) * speed / self._trace_s,
            "met": sum(half.met for half in halves) / requests,
            "slow_share": halves[1].requests / requests,
        }
        for name, half in zip(("fast", "slow"), halves, strict=True):
            mean = max(half.each.mean(), 1e-9)
            row[name] = {
                "fewest": float(half.each.min() / mean),
                "most": float(half.each.max() / mean),
                "ttft_s": {q: float(np.percentile(half.ttft_s, q)) for q in (50, 90, 99)} if half.requests else None,
            }
        return row

    def _write(self, lines: Sequence[str], name: str) -> Path:
        path = self._folder / f"{name}.jsonl"
        path.write_text("\n".join(lines) + "\n")
        return path


def measure(bench: Bench, speed: float) -> dict[str, Any]:
    rows = {name: bench.ours(speed, name) for name in ("kv", "least_loaded", "round_robin")}
    rows["static, in turns"] = bench.best_static(speed, "round_robin", sticky=False)
    rows["static, by kv"] = bench.best_static(speed, "kv", sticky=False)
    rows["static, sticky, by kv"] = bench.best_static(speed, "kv", sticky=True)
    return rows


def _show(speed: float, rows: dict[str, Any]) -> None:
    print(f"speed {speed:g}")
    ours = rows["kv"]["goodput_per_s"]
    for name, row in rows.items():
        weight = f" (best weight {row['weight']:g})" if "weight" in row else ""
        halves = ", ".join(
            f"{half}: {row[half]['fewest']:.2f} to {row[half]['most']:.2f} of the mean, TTFT p50/p99 "
            f"{row[half]['ttft_s'][50]:.2f}/{row[half]['ttft_s'][99]:.2f} s"
            for half in ("fast", "slow")
            if row[half]["ttft_s"]
        )
        print(
            f"  {name + weight:<40} {row['goodput_per_s']:6.2f}/s ({row['met']:.1%}), "
            f"kv {ours / row['goodput_per_s']:.2f} x; slow half {row['slow_share']:.1%} of requests; {halves}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--instances", type=int, default=16)
    parser.add_argument("--slower", type=float, default=3.0)
    parser.add_argument("--speeds", default="1.5,2,2.5")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    told = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args.trace, args.instances, args.slower, Path(folder))
        for speed in map(float, args.speeds.split(",")):
            told[speed] = measure(bench, speed)
            if not args.json:
                _show(speed, told[speed])
    if args.json:
        print(json.dumps(told))


if __name__ == "__main__":
    main()
