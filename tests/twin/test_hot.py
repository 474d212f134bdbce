"""A prefix that all ask for, rehearsed: it is copied before those that hold it melt."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tests.twin.test_run import MOCKER, rehearse, scenario


def shared_by_all(path: Path, system_blocks: int, requests: int, every_ms: float) -> Path:
    """Prompts of a system prompt and a question of one block each."""
    rows = [
        {
            "timestamp": i * every_ms,
            "input_length": (system_blocks + 1) * 512,
            "output_length": 100,
            "hash_ids": [*range(system_blocks), 1_000_000 + i],
        }
        for i in range(requests)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_prefix_that_all_ask_for_comes_to_all_workers_and_each_is_computed_there_about_once(tmp_path: Path) -> None:
    trace = shared_by_all(tmp_path / "hot.jsonl", system_blocks=32, requests=1_500, every_ms=40)

    report, results = rehearse(scenario([MOCKER | {"instances": 16}], {"trace": str(trace)}))

    used, counts = np.unique(results["worker"], return_counts=True)
    assert len(used) >= 14
    assert counts.max() < 3 * counts.mean()
    computed = results["prompt"] - results["cached"]
    assert (computed > 8_192).sum() <= 2 * 16
    assert report.reuse_fraction["hbm"] > 0.93
