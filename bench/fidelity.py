"""The twin's scheduler beside a real vLLM, request by request.

    python bench/fidelity.py REQUESTS [--series FILE.csv]

REQUESTS is a record of LLMServingSim's bench: 300 ShareGPT requests at 10/s on one RTX 4090 with Llama-3.1-8B, an
overload: waiting decides. One number is fitted, how much faster iterations are than predicted, and that to the TPOT of
the first half of the requests alone. All else follows from how requests are admitted, batched, preempted.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from jevons.config.calibration import read_calibration
from jevons.config.catalog import read_catalog
from jevons.config.scenario import make_scenario
from jevons.twin.run import simulate

GROUP = {
    "instances": 1,
    "chip": "rtx-4090",
    "block_size": 16,
    "blocks": 2588,  # like the next, from the record's own settings
    "step_tokens": 2048,
    "max_running": 256,
}


def _twin(trace: Path, scale: float) -> Any:
    """Results by request."""
    group = GROUP | {"step_scale": scale}
    table = {"model": "llama-3.1-8b", "router": "round_robin", "fleet": [group], "traffic": {"trace": str(trace)}}
    found: list[Any] = []
    scenario = make_scenario(table, "bench")
    simulate(scenario, read_catalog(), read_calibration(), on_results=lambda results: found.append(results.copy()))
    results = np.concatenate(found)
    return results[np.argsort(results["request"])]


def _tpot_s(first_s: Any, done_s: Any, output: Any) -> Any:
    return (done_s - first_s) / (output - 1)


def _series(at_s: Any, admitted_s: Any, done_s: Any) -> list[tuple[int, int, int]]:
    """Each second: waiting, running."""
    return [
        (t, int(((at_s <= t) & (admitted_s > t)).sum()), int(((admitted_s <= t) & (done_s > t)).sum()))
        for t in range(int(done_s.max()) + 1)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("requests", type=Path)
    parser.add_argument("--series", type=Path, help="running and waiting of both, second by second")
    args = parser.parse_args()
    rows = sorted((json.loads(line) for line in args.requests.open()), key=lambda row: row["queued_ts"])
    real = {name: np.array([row[name] for row in rows]) for name in rows[0] if name != "request_id"}
    real = {name: values - real["queued_ts"].min() if name.endswith("_ts") else values for name, values in real.items()}
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        for at_s, prompt, output in zip(real["queued_ts"], real["input_toks"], real["output_toks"], strict=True):
            line = {"timestamp": at_s * 1e3, "input_length": int(prompt), "output_length": int(output), "hash_ids": []}
            file.write(json.dumps(line) + "\n")
        file.flush()
        half, scale = len(rows) // 2, 1.0
        tpot_s = _tpot_s(real["first_token_ts"], real["last_token_ts"], real["output_toks"])
        for _ in range(6):
            twin = _twin(Path(file.name), scale)
            own_s = _tpot_s(twin["first_s"], twin["done_s"], twin["output"])
            scale *= float(tpot_s[:half].mean() / own_s[:half].mean())
    ttft_s, own_ttft_s = real["first_token_ts"] - real["queued_ts"], twin["first_s"] - twin["at_s"]
    print(f"iterations take {scale:.3f} × the prediction (fitted to the TPOT of the first {half} requests)")
    for name, a, b in (
        ("TTFT", ttft_s, own_ttft_s),
        ("TPOT", tpot_s, own_s),
        ("TPOT, second half", tpot_s[half:], own_s[half:]),
    ):
        for what, of in (("mean", np.mean), ("p50", np.median), ("p99", lambda x: np.percentile(x, 99))):
            print(f"{name:<18} {what:<5} real {of(a):9.4f} s  twin {of(b):9.4f} s  {of(b) / of(a) - 1:+.1%}")
    print(f"all done           real {real['last_token_ts'].max():9.1f} s  twin {twin['done_s'].max():9.1f} s")
    if args.series is not None:
        both = [_series(real["queued_ts"], real["scheduled_ts"], real["last_token_ts"])]
        both.append(_series(twin["at_s"], twin["admitted_s"], twin["done_s"]))
        with args.series.open("w") as out:
            writer = csv.writer(out)
            writer.writerow(["second", "real waiting", "real running", "twin waiting", "twin running"])
            for a, b in zip(*both, strict=False):
                writer.writerow([a[0], a[1], a[2], b[1], b[2]])


if __name__ == "__main__":
    main()
