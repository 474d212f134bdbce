"""The demo's workload on the real engine, and rehearsed by a twin that was calibrated on other runs of it.

    python bench/live_twin.py [--runs 6]

Runs in turns: the twin is calibrated on the first, third, fifth and rehearses the second, fourth, sixth. Conversations
are closed loops: a turn comes a while after the answer, whenever that is. Beside the twin's errors stand those of the
best guess without one: another live run.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
from itertools import permutations
from pathlib import Path
from statistics import median

from jevons.cli.demo import CHAT, DEMO, play
from jevons.cli.options import fetch
from jevons.config import make
from jevons.config.calibration import read_calibration
from jevons.config.catalog import read_catalog
from jevons.twin.record import Fidelity, read_record, rehearse, scenario_of, together
from jevons.twin.workload import conversations

FIGURES = ("ttft_p50_s", "ttft_p90_s", "tpot_p50_s", "tpot_mean_s")


def lived(folder: Path, runs: int) -> list[Path]:
    model_dir, talks = fetch("smollm2-135m"), conversations(CHAT)
    folders = [folder / str(run) for run in range(runs)]
    for each in folders:
        settings = make({**DEMO, "policy": "kv", "record": str(each)}, "bench")
        asyncio.run(play(settings, str(model_dir), talks))
    return folders


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=6, help="At least 4.")
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        began = os.times()
        folders = lived(Path(folder), runs)
        live_s = os.times().elapsed - began.elapsed
        scenario, fits = scenario_of(together([read_record(each) for each in folders[::2]]))
        began = os.times()
        held = [rehearse(each, scenario, read_catalog(), read_calibration()) for each in folders[1::2]]
        twin_s = (os.times().elapsed - began.elapsed) / len(held)
        every = [rehearse(each, scenario, read_catalog(), read_calibration()) for each in folders]
    for fitted in fits:
        print(f"calibrated on {fitted.steps} steps: half within {fitted.off_p50:.0%}, 9 of 10 {fitted.off_p90:.0%}")
    for found in held:
        print(
            f"rehearsed: {found.placed_alike} of {found.requests} placed alike, {found.cached_alike} with as many "
            f"cached tokens; " + ", ".join(f"{name} {getattr(found, name).off:+.1%}" for name in FIGURES)
        )
    print(f"{'median of the runs':<20}{'live':>10}{'twin':>10}{'off':>9}   another live run is off by, at the median")
    for name in FIGURES:
        live, twin = (median(getattr(getattr(f, name), side) for f in held) for side in ("live", "twin"))
        print(f"{name:<20}{live:>10.3f}{twin:>10.3f}{twin / live - 1:>+9.1%}   {_between(every, name):.1%}")
    print(
        f"a run takes {live_s / runs:.0f} s live, {twin_s:.2f} s in the twin (the first compiles or reads its kernels)"
    )


def _between(runs: list[Fidelity], name: str) -> float:
    values: list[float] = [getattr(found, name).live for found in runs]
    return median(abs(a / b - 1) for a, b in permutations(values, 2))


if __name__ == "__main__":
    main()
