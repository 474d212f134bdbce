"""Made-up fleets and traffic, each drawn from a seed: whatever is rehearsed, everybody is answered once, the same seed
gives the same bytes, and jumping over iterations that are alike changes next to nothing."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from tests.twin.test_run import LLAMAS, POLYNOMIAL, Kept, check_answered, rehearse

from jevons.config.scenario import Scenario, make_scenario

Table = dict[str, Any]
LONGEST = 6_800  # tokens of a request
PRICES = {"per_step_s": 0.005, "per_token_s": 1e-4, "per_token_context_s": 1e-9, "per_decode_s": 2e-4}
TIER = {"name": "dram", "size_bytes": 2e10, "bytes_per_s": 1e9, "latency_s": 0.001, "instances": 2}


def write_trace(draw: Random, path: Path) -> None:
    """Prompts of a few groups; of some traces every second request follows another."""
    groups, is_linked, at_ms, rows = draw.randint(1, 8), draw.random() < 0.4, 0.0, []
    for i in range(draw.randint(40, 120)):
        at_ms += draw.expovariate(1 / draw.choice([20, 100, 400]))
        prompt, output = (
            min(6_000, int(draw.lognormvariate(6.5, 1)) + 1),
            min(800, int(draw.lognormvariate(3.5, 1)) + 1),
        )
        blocks = (prompt + output * draw.randint(0, 1)) // 64 + 1
        shared, group = min(blocks, draw.randint(0, 6)), 1_000 * draw.randrange(groups)
        ids = [*range(group, group + shared), *range(1_000_000 + 1_000 * i, 1_000_000 + 1_000 * i + blocks - shared)]
        row = {"timestamp": at_ms, "input_length": prompt, "output_length": output, "hash_ids": ids, "block_size": 64}
        if is_linked:
            row["request_id"] = str(i)
            if i and draw.random() < 0.5:
                row |= {"wait_for": [str(draw.randrange(i))], "delay": draw.choice([0, 50, 2_000])}
        rows.append(json.dumps(row))
    path.write_text("\n".join(rows))


def made_fleet(draw: Random) -> list[Table]:
    block = draw.choice([16, 32, 64, 128])

    def group(least: int = 1) -> Table:
        return {
            "instances": draw.randint(least, 5),
            "block_size": block,
            "step_tokens": draw.choice([64, 256, 2_048, 8_192]),
            "max_running": draw.choice([2, 8, 64, 256]),
            "blocks": draw.choice([LONGEST + draw.randint(0, 4_000), 20_000, 60_000]) // block + 1,
            "engine": draw.choice(["vllm", "vllm", "jevons"]),
        }

    chips = {"chip": draw.choice(["h100", "h200", "b200"]), "tensor": 4}
    tier = {"tier": TIER} if draw.random() < 0.4 else {}
    match draw.choice(["polynomial", "prices", "alike", "unlike", "apart", "apart"]):
        case "polynomial":
            return [{**group(), "polynomial": POLYNOMIAL}]
        case "prices":
            return [{**group(), "prices": {**PRICES, "per_context_s": draw.choice([0.0, 1e-8])}}]
        case "alike":
            return [{**group(), **chips, **tier}]
        case "unlike":
            return [{**group(), **chips}, {**group(), "chip": "h200", "tensor": 2, **tier}]
        case _:
            line = {"uplink_bytes_per_s": 1e8} if draw.random() < 0.4 else {}
            fleet = [{**group(), **chips, **line, "role": draw.choice(["both", "decode"])}]
            return [*fleet, {**group(), **chips, **line, **tier, "role": "prefill"}]


def made_events(draw: Random, fleet: list[Table]) -> list[Table]:
    """The first instance of each group is always up."""
    events, first = list[Table](), 0
    for group in fleet:
        whom = [first + i for i in range(1, group["instances"])]
        first += group["instances"]
        for _ in range(draw.randint(0, 3) if whom else 0):
            at_s, what, whose = draw.uniform(0, 15), draw.choice(["fail", "drain"]), draw.choice(whom)
            events += [{"at_s": at_s, "what": what, "first": whose}]
            events += [{"at_s": at_s + draw.uniform(0, 5), "what": "up", "first": whose}]
    if "chip" in fleet[0]:
        events.append({"at_s": draw.uniform(0, 15), "what": "cap", "first": 0, "power_w": 400.0})
    return events


def made(seed: int, folder: Path) -> Scenario:
    draw, trace = Random(seed), folder / "trace.jsonl"
    write_trace(draw, trace)
    fleet = made_fleet(draw)
    is_apart = any(group.get("role") == "prefill" for group in fleet)
    table: Table = {
        "fleet": fleet,
        "traffic": {"trace": str(trace), "speed": draw.choice([0.3, 1.0, 3.0]), "copies": draw.choice([1, 1, 2])},
        "router": "kv" if is_apart else draw.choice(["kv", "round_robin", "least_loaded", "random"]),
        "events": made_events(draw, fleet) if draw.random() < 0.5 else [],
        "event_lag_s": draw.choice([0.0, 0.0, 0.01, 1.0]),
        "event_loss": draw.choice([0.0, 0.0, 0.1]),
        "event_replay": draw.random() < 0.5,
        "seed": seed,
    }
    return make_scenario(table | (LLAMAS if "chip" in fleet[0] else {}), f"of seed {seed}")


@pytest.mark.parametrize("seed", range(40))
def test_whatever_is_rehearsed_everybody_is_answered_and_jumps_change_nothing(seed: int, tmp_path: Path) -> None:
    wanted = made(seed, tmp_path)
    kept = Kept(wanted)

    results = kept.go()

    kept.check_empty()
    rows = Path(wanted.traffic.trace).read_text().splitlines()
    is_linked = any("request_id" in row for row in rows)
    assert np.array_equal(results["request"], np.arange(len(rows) * wanted.traffic.copies))
    if not is_linked:
        check_answered(wanted, results)
    (jumped, again), (stepped, all) = rehearse(wanted), rehearse(wanted, exact=True)
    assert again.tobytes() == results.tobytes()
    is_alike = np.array_equal(again["worker"], all["worker"])
    # A router by load or blocks that hears what was evicted in the middle of a jump may take another of equals.
    assert is_alike or is_linked or wanted.router in ("kv", "least_loaded")
    if is_alike:
        for name in ("ttft_s", "tpot_s", "itl_s"):
            assert getattr(jumped, name).mean == pytest.approx(getattr(stepped, name).mean, rel=1e-3)
        assert jumped.iterations == pytest.approx(stepped.iterations, rel=1e-3)
