"""What `jevons plan` saves over a pool that is made by hand, at one promise on one trace, and where that comes from.

    python bench/plan.py TRACE.jsonl [--ttft 5] [--tpot 0.05] [--share 0.9] [--requests N]

Every row is sized by rehearsals: as few instances as keep the promise. By hand: one pool of H100 or H200, tensor 4 or
8, prompts and answers on the same instances, with each router. Then what a plan may choose is freed step by step.
"""

from __future__ import annotations

import argparse
from typing import Any

from jevons.config.calibration import read_calibration
from jevons.config.catalog import read_catalog
from jevons.config.wants import make_wants
from jevons.twin.plan import plan
from jevons.twin.planned import Tried

_HAND = [(chip, tensor) for chip in ("h100", "h200") for tensor in (4, 8)]
_ROUTERS = ("round_robin", "least_loaded", "kv")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trace")
    parser.add_argument("--model", default="llama-3.1-70b")
    parser.add_argument("--ttft", type=float, default=5.0)
    parser.add_argument("--tpot", type=float, default=0.05)
    parser.add_argument("--share", type=float, default=0.9)
    parser.add_argument("--requests", type=int)
    parser.add_argument("--finalists", type=int, default=12)
    given = parser.parse_args()

    def row(name: str, **more: Any) -> Tried | None:
        best = planned(given, more)
        if best is None:
            print(f"{name:44s} nothing keeps the promise", flush=True)
        else:
            print(
                f"{name:44s} ${best.usd_per_hour:7.2f}/h  ${best.usd_per_million_output_tokens:6.2f}/Mtoken out  "
                f"within {best.met:.1%}  reused {best.reuse:.0%}  {best.name}",
                flush=True,
            )
        return best

    hand = [
        row(f"by hand: {chip} tensor {tensor}, {router}", chips=[chip], tensor=[tensor], roles=["both"], router=router)
        for chip, tensor in _HAND
        for router in _ROUTERS
    ]
    for chip in ("h100", "h200"):
        row(f"{chip}, any tensor, one pool", chips=[chip], roles=["both"])
        row(f"{chip}, prompts and answers apart", chips=[chip], roles=["split"])
    row("any one kind of chip, one pool", roles=["both"], most_kinds=1)
    row("NVIDIA alone, all else free", vendors=["NVIDIA"])
    best = row("all free")
    for each in hand:
        if best is not None and each is not None:
            ratio = 1 - best.usd_per_hour / each.usd_per_hour
            print(f"all free: {ratio:.0%} below {each.name} at ${each.usd_per_hour:.2f}/h")


def planned(given: argparse.Namespace, more: dict[str, Any]) -> Tried | None:
    traffic = {"trace": given.trace} | ({"requests": given.requests} if given.requests else {})
    slo = {"ttft_s": given.ttft, "tpot_s": given.tpot, "share": given.share}
    table = {"model": given.model, "traffic": traffic, "slo": slo, "finalists": given.finalists}
    return plan(make_wants(table | more, "of the bench"), read_catalog(), read_calibration()).best


if __name__ == "__main__":
    main()
