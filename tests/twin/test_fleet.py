"""A scenario's groups as the kernel's arrays: what the kernel says of a step is what the formula says."""

from __future__ import annotations

from typing import Any

import pytest

from jevons.base.hub import Hub
from jevons.config.catalog import read_catalog
from jevons.config.scenario import make_scenario
from jevons.perf import pace as paces
from jevons.perf.calibration import NOTHING
from jevons.perf.roofline import Work, iteration
from jevons.twin.fleet import Made, make_groups, set_pace

CATALOG = read_catalog()
SPREAD = {"chip": "h200", "tensor": 8, "attention": 8, "experts": 8}


def made(group: dict[str, Any], model: str, **more: Any) -> Made:
    """The first group of a fleet."""
    prompts = [{**group, "instances": 1, "role": "prefill", "ffn_chip": ""}] if group.get("role") == "decode" else []
    table = {"fleet": [{"instances": 1, **group}, *prompts], "traffic": {"kind": "chat"}, "model": model, **more}
    return make_groups(make_scenario(table, "of a test"), CATALOG, NOTHING)[0]


@pytest.mark.parametrize(
    ("group", "model"),
    [
        ({"chip": "h100", "tensor": 4}, "llama-3.1-70b"),
        ({"chip": "h100", "tensor": 4, "pipeline": 4}, "llama-3.1-70b"),
        ({**SPREAD, "pipeline": 2}, "deepseek-v3"),
        ({"chip": "b200", "tensor": 2, "pipeline": 3}, "gpt-oss-120b"),
    ],
)
def test_a_step_of_the_kernel_takes_what_the_formula_says_in_pipelines_too(group: dict[str, Any], model: str) -> None:
    it, arrays = made(group, model), paces.pace_arrays(1)
    set_pace(arrays, 0, it, CATALOG)
    pace = paces.Pace(Hub(arrays, {}), 0)
    assert it.engine is not None

    for decodes, context, prompt in (
        (1, 2_000, 0),
        (3, 2_000, 0),
        (64, 8_000, 0),
        (256, 50_000, 0),
        (64, 2_000, 4_096),
    ):
        work = Work(
            prompt_tokens=prompt,
            prompt_pairs=prompt * 2_048,
            decodes=decodes,
            context_tokens=decodes * context,
        )
        took_s = pace.seconds(prompt, prompt * 2_048, decodes, decodes * context)

        assert took_s == pytest.approx(iteration(it.engine, work).seconds, rel=0.001)
