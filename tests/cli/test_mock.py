"""Which engines `jevons mock` makes of its options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jevons.base.errors import ConfigError
from jevons.cli.mock import command, engines_of
from jevons.config.calibration import read_calibration
from jevons.config.catalog import read_catalog
from jevons.config.scenario import make_scenario
from jevons.perf.roofline import Work, iteration
from jevons.serve.mock_fleet import Made
from jevons.twin.fleet import make_groups


def engines(*arguments: str) -> list[Made]:
    flags: dict[str, Any] = command.make_context("mock", list(arguments)).params
    return engines_of(flags)


def test_constants_make_engines_that_are_alike() -> None:
    made = engines("--count", "3", "--prefill-tokens-per-s", "1000", "--step-ms", "2", "--decode-ms", "0.5")

    assert [m.facts.id for m in made] == ["0000", "0001", "0002"]
    assert made[0].pace.seconds(100, 5_000, 4, 4_000) == pytest.approx(0.002 + 0.1 + 4 * 0.0005)


def test_chips_set_times_and_room() -> None:
    [made] = engines("--fleet", "1x2xh100", "--model", "llama-3.1-70b")
    table = {"model": "llama-3.1-70b", "fleet": [{"instances": 1, "tensor": 2, "chip": "h100"}]}
    scenario = make_scenario({**table, "traffic": {"kind": "chat"}}, "test")
    [group] = make_groups(scenario, read_catalog(), read_calibration())
    assert group.engine is not None
    work = Work(prompt_tokens=512, prompt_pairs=512 * 256, decodes=32, context_tokens=32 * 2_000)

    assert made.pace.seconds(512, 512 * 256, 32, 32 * 2_000) == pytest.approx(
        iteration(group.engine, work).seconds, rel=0.02
    )
    assert made.facts.blocks * made.facts.block_size == pytest.approx(group.blocks * group.group.block_size, rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--fleet", "2xh100", "--model", "llama-3.1-8b", "--count", "7"], "--count and --fleet: "),
        (["--fleet", "2xh100", "--model", "llama-3.1-8b", "--step-ms", "9"], "--step-ms and --fleet: "),
        (["--scenario", "day", "--decode-ms", "9"], "--decode-ms and --scenario: "),
        (["--scenario", "day", "--max-running", "9"], "--max-running and --scenario: "),
    ],
)
def test_what_chips_or_a_scenario_say_is_not_said_twice(arguments: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        engines(*arguments)
    assert len(engines("--fleet", "2xh100", "--model", "llama-3.1-8b", "--max-running", "9")) == 2


def test_a_scenario_makes_unlike_engines(tmp_path: Path) -> None:
    file = tmp_path / "two.toml"
    group = "instances = {}\nblocks = 100\nblock_size = 32\nprices = {{ per_step_s = {}, per_token_s = 0.0001 }}\n"
    fleet = "".join("[[fleet]]\n" + group.format(count, step_s) for count, step_s in ((2, 0.01), (1, 0.03)))
    file.write_text(fleet + "[traffic]\nkind = 'chat'\n")
    made = engines("--scenario", str(file))

    assert [(m.facts.id, m.facts.blocks, m.facts.block_size) for m in made] == [
        ("0000", 100, 32),
        ("0001", 100, 32),
        ("0002", 100, 32),
    ]
    assert [m.pace.seconds(0, 0, 0, 0) for m in made] == pytest.approx([0.01, 0.01, 0.03])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--fleet", "2xh100"], "--fleet and --model: one needs the other"),
        (["--fleet", "2xh100", "--model", "m", "--scenario", "vr-nvl72"], "--fleet and --scenario: give one"),
        (["--scenario", "mixed"], r"fleet\[0\].role: a mock engine computes whole requests"),
        (["--scenario", "no-such"], "neither a file nor one of"),
    ],
)
def test_what_does_not_go_together_is_told(arguments: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        engines(*arguments)
